"""The parts of a page that are of one mediator: its finding, map and table, where heads look, one example."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from mediation.effects.sign_flips import ALPHA, LEAST_CLUSTERS
from mediation.reports import charts
from mediation.reports.page import Cell, Figure, Part, Picker, Table, Text, estimate, number, with_interval
from mediation.reports.report import in_words
from mediation.results.mediation_tables import SEVERAL
from mediation.results.study_results import StudyResults

LINKED = 200_000  # effects in single examples that a page takes
SHOWN_UNITS = 300  # rows of a table of units
CONTRAST = "gender_contrast"  # kind of effect, half a difference of two
EMBEDDING = "word embedding"  # is layer 0 of mediators whose layers are called so
ALL_OF_IT = .002  # a share this near 1 is all of the effect
IN_WORDS = {  # mediators that are not called as their names are spelled
    "heads": "attention heads (their weights)", "layers": "attention layers (weights of all their heads)",
    "mlps": "MLPs", "residuals": "residual streams", "attentions": "attention outputs"}
QUALIFIED = {"_each": "each position", "_all": "all positions at once", "_slot": "the slot",
             "_last": "the last token", "_zero_ablation": "zero ablation", "_mean_ablation": "mean ablation",
             "_resample_ablation": "resample ablation"}


def by_mediator(units: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """(mediator, its rows of all groups together) in the order of the table."""
    if not units.empty:
        yield from units[units["group"] == "all"].groupby("mediator", sort=False)


def plural(mediator: str) -> str:
    """mlps_each_zero_ablation: MLPs (each position, zero ablation); head_outputs: head outputs."""
    said: list[str] = []
    name = mediator
    while ending := next((each for each in QUALIFIED if name.endswith(each)), ""):
        name = name.removesuffix(ending)
        said.insert(0, QUALIFIED[ending])
    return IN_WORDS.get(name, name.replace("_", " ")) + (f" ({', '.join(said)})" if said else "")


def first_kind(units: pd.DataFrame) -> str:
    """The kind of effect by which a mediator's units are told."""
    kinds = list(dict.fromkeys(units["effect"]))
    return "indirect" if "indirect" in kinds else kinds[0]


def shown_kinds(units: pd.DataFrame) -> list[str]:
    """The kinds of effect of which a page has a map: the first, and the contrast where it is known."""
    return [first_kind(units), *([CONTRAST] if (units["effect"] == CONTRAST).any() else [])]


def _unit(row, layers: str = "", tokens: Mapping[str, str] | None = None):
    """layer-unit, and where. `layers`: what its mediator's layers are called."""
    unit = str(row["layer"]) + ("" if pd.isna(row["unit"]) else f"-{int(row['unit'])}")
    if unit == "0" and EMBEDDING in layers:
        unit = f"0 (the {EMBEDDING})"
    position = row["position"]
    if not position or position in ("context", "slot"):
        return unit
    if position in ("all", "last"):
        return f"{unit}, {position} position{'s' if position == 'all' else ''}"
    token = (tokens or {}).get(position, "").strip()
    return f"{unit}, position {position}" + (f" ({token})" if token else "")


def strongest_in_words(mediator: str, units: pd.DataFrame, examples: int, model: str = "",
                       kind: str | None = None, layers: str = "",
                       tokens: Mapping[str, str] | None = None) -> str:
    """Which unit has the strongest effect: of those whose effect is other than 0, where that was tested.

    Args:
        examples: of the study, said where a mediator has fewer; model: to be named, where there are several;
        kind: of effect, by default the first; layers: what the mediator's layers are called; tokens: at its
            positions.
    """
    kind = kind or first_kind(units)
    of_kind = units[(units["effect"] == kind) & (units["layer"].astype(str) != "all")]
    largest = of_kind.loc[of_kind["rank"].idxmin()]
    called = of_kind[of_kind["p"] <= ALPHA]
    top = largest if called.empty else called.loc[called["rank"].idxmin()]
    here = top.get("comparisons", np.nan)
    fewer = not np.isnan(here) and here != examples
    known = [f"**{interval_of(top, 'mean')}**"]
    if kind != "ablation" and is_share(top["share"], top["share_low"], top["low"]):
        # not that of all examples
        total = f", {top['mean'] / top['share']:.3g}" if fewer and top["share"] else ""
        known.append(f"{_share_of(top)} of {'their' if fewer else 'the'} total effect{total}"
                     + (" (all of it: so by construction where the word that differs is read in, and where "
                        "the answer is read out)" if abs(top["share"] - 1) < ALL_OF_IT else ""))
    if not np.isnan(top["in_top"]) and largest.name == top.name:
        known.append(f"among the ten strongest in {top['in_top']:.0%} of the bootstrap draws")
    name_of = partial(_unit, layers=layers, tokens=tokens)
    begin, of_these, what = f"{model}: " if model else "", ", ".join(known), effect_name(kind)
    over = f" (over {here:,.0f} of the {examples:,} examples)" if fewer else ""
    at = f"other than 0 at a family-wise error of {ALPHA}"
    if of_kind["p"].isna().all():
        clusters = top.get("clusters", np.nan)
        few = (f"; tests of units need {LEAST_CLUSTERS} clusters, here are {clusters:.0f}"
               if clusters < LEAST_CLUSTERS else "")
        return (f"{begin}Of the {plural(mediator)}, **{name_of(top)}** has the strongest {what}{over}: "
                f"{of_these}{few}.")
    if called.empty:
        rate = int((of_kind["q"] <= ALPHA).sum())
        fewer_sure = f" {rate:,} {'has' if rate == 1 else 'have'} one at a false discovery rate of {ALPHA}."
        return (f"{begin}Of {len(of_kind):,} {plural(mediator)} **none** can be said to have {an(what)} {at}"
                f"{over}: {top['clusters']:,.0f} clusters cannot tell, which does not mean that none has."
                f"{fewer_sure if rate else ''} "
                f"The largest mean is that of {name_of(top)}: {of_these}, {_sure(top)}.")
    have = f"{len(called):,} of {len(of_kind):,} {'has' if len(called) == 1 else 'have'}"
    if largest.name == top.name:
        return (f"{begin}Of the {plural(mediator)}, **{name_of(top)}** has the strongest {what}{over}: "
                f"{of_these}; {have} {an(what)} {at}.")
    return (f"{begin}Of the {plural(mediator)}, {have} {an(what)} {at}{over}; the strongest of them "
            f"is **{name_of(top)}**: {of_these}. {name_of(largest)} has a larger mean, "
            f"{interval_of(largest, 'mean')}, and is not called ({_sure(largest)}).")


def _sure(row):
    return f"family-wise p = {row['p']:.2g}" + ("" if np.isnan(row["q"]) else
                                                f", false discovery rate q = {row['q']:.2g}")


def effect_name(kind: str) -> str:
    """total_indirect: total indirect effect."""
    return in_words(kind) + ("" if kind == CONTRAST else " effect")


def an(word: str) -> str:
    """The word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def is_share(share: float, share_low: float, low: float) -> bool:
    """Whether a share of the total effect says anything: not where that may be 0, so that the share has no
    interval though the effect itself has one."""
    return bool(np.isfinite(share) and (np.isfinite(share_low) or np.isnan(low)))


def estimated(each: StudyResults, mediator: str) -> str:
    """Says so where not every effect of a mediator was run: by the manifest, files of 2020 have none."""
    swept = [(run["settings"].get("method"), entry) for run in each.runs for entry in run["files"].values()
             if entry.get("mediator", mediator) == mediator and "sweep_seconds" in entry]
    methods = {method for method, _ in swept}
    if mediator == "layers" or not methods & {"gradient", "screen"}:
        return ""
    if "gradient" not in methods:
        return " The strongest were run, the others are first-order estimates."
    off = [entry["largest_deviation_from_full_passes"] for method, entry in swept
           if method == "gradient" and "largest_deviation_from_full_passes" in entry]
    worst = f", off by up to {max(off):.2g} in a log-probability where full passes were run" if off else ""
    return (f" These are first-order estimates{worst}: run a unit before you cite it (`--method screen` runs "
            "the strongest).")


def _share_of(row):
    return with_interval(row["share"], row["share_low"], row["share_high"], ".1%")


def mediator_parts(each: StudyResults, mediator: str, units: pd.DataFrame, kind: str) -> Iterator[Part]:
    """Map and table of one mediator and kind of effect."""
    tokens, layers = each.tokens.get(mediator, {}), each.layers.get(mediator, "")
    yield from _map(each, mediator, units[units["effect"] == kind], kind, tokens)
    of_kind = units[units["effect"] == kind]
    called = of_kind[of_kind["p"] <= ALPHA]
    shown = pd.concat([of_kind.nsmallest(SHOWN_UNITS, "rank"), called.nsmallest(SHOWN_UNITS, "rank")])
    shown = shown[~shown.index.duplicated()].sort_values("rank", kind="stable")
    columns = {"unit": [Cell(_unit(row, layers, tokens)) for _, row in shown.iterrows()],
               f"{effect_name(kind)} [low, high]": _estimates(shown, "mean", ""),
               **({} if kind == CONTRAST else {  # half of a difference is no odds ratio
                   "odds ratio - 1 [low, high]": _estimates(shown, "effect_mean", "effect_", ".3g")}),
               "share of the total [low, high]": _shares(shown),
               "rank [low, high]": _estimates(shown, "rank", "rank_", ".0f")}
    columns |= {name: [number(value, form) for value in shown[column]] for name, column, form in
                (("in top 10", "in_top", ".0%"), ("p", "p", ".2g"), ("q", "q", ".2g"))}
    if "comparisons" in of_kind and of_kind["comparisons"].nunique() > 1:  # not all reach every position
        columns["examples"] = [number(value, ".0f") for value in shown["comparisons"]]
    keys = ["layer", "unit", "position"]
    for other in () if kind == CONTRAST else ("direct", "total_indirect"):
        rows = units[units["effect"] == other]
        if len(rows):
            means = shown[keys].merge(rows[[*keys, "mean"]], on=keys, how="left")["mean"]
            columns[effect_name(other)] = [number(mean) for mean in means]
    known = {name: cells for name, cells in columns.items() if any(cell.text != "-" for cell in cells)}
    every = len(of_kind)
    what = (f"All {every:,}" if every <= SHOWN_UNITS else
            f"The strongest {SHOWN_UNITS} of {every:,}, and those that are called below them: {len(shown):,}")
    tests = "".join(f"; {name}: {meaning}" for name, meaning in
                    (("p", "family-wise"), ("q", "false discovery rate")) if name in known)
    family = of_kind["family"].iloc[0]
    if EMBEDDING in layers and kind != CONTRAST:  # once
        yield Text(f"Layer 0 is the {EMBEDDING}, layer i the MLP of block i - 1, whose heads are in "
                   "attention layer i - 1.")
    yield Table(f"{what} {plural(mediator)}{tests}{f'; family: {family}' if family else ''}", list(known),
                list(zip(*known.values())))


def unlike(positions: Sequence[str], tokens: Mapping[str, str]) -> str:
    """Says so where a position, which is a token's number, holds other words in other examples. One position
    does by design: that of the words that fill the slot."""
    several = sum(SEVERAL in tokens.get(position, "").strip(SEVERAL) for position in positions)
    return ("" if several < 2 else
            f"; a position is the number of a token: at {several} of {len(positions)} the examples have "
            "different ones, so that a cell is the mean over different words, and over the examples that are "
            "long enough")


def _estimates(rows, mean, ends, form=".4g"):
    return [estimate(float(value), low, high, form) for value, low, high in
            zip(rows[mean], rows[f"{ends}low"], rows[f"{ends}high"])]


def _shares(rows):
    known = [is_share(*row) for row in rows[["share", "share_low", "low"]].itertuples(index=False)]
    return _estimates(rows.assign(share=rows["share"].where(known)), "share", "share_", ".1%")


def _map(each, mediator, of_kind, kind, tokens) -> Iterator[Part]:
    """The figure of one kind of effect."""
    cells = of_kind[of_kind["layer"].astype(str) != "all"]
    layer_title = each.layers.get(mediator, "layer")
    name_of = partial(_unit, layers=layer_title, tokens=tokens)
    top = cells.loc[cells["rank"].idxmin()]
    sure = "" if np.isnan(top["p"]) else f", {_sure(top)}"
    finding = f"The largest mean is that of {name_of(top)}: {interval_of(top, 'mean')}{sure}"
    data = pd.DataFrame({
        "cell": np.arange(len(cells)), "layer": cells["layer"].astype(int),
        "value": cells["mean"].astype(float), "low": cells["low"].astype(float),
        "high": cells["high"].astype(float), "rank": cells["rank"].astype(int),
        "p": cells["p"].astype(float), "q": cells["q"].astype(float),
        "unit": [name_of(row) for _, row in cells.iterrows()]}).reset_index(drop=True)
    places = cells["position"].nunique() > 1
    if cells["unit"].isna().all() and not places:
        yield Figure(f"In which layer is the {effect_name(kind)} of {plural(mediator)}?", f"{finding}.",
                     "A bar per layer: mean effect, with its 95% interval.",
                     charts.layer_bars(charts.EFFECT, layer_title, bool(data["low"].notna().any())),
                     {"rows": charts.columns_of(data[["layer", "value", "low", "high"]])})
        return
    if places:
        positions = list(dict.fromkeys(cells["position"]))
        data["number"] = [f"{position} {tokens.get(position, '')}".strip() for position in cells["position"]]
        if cells["unit"].notna().any():  # of each layer and position the strongest unit
            strongest = data.groupby(["layer", "number"], sort=False)["rank"].idxmin()
            data = data.loc[strongest].reset_index(drop=True)
            finding += "; a cell shows the strongest unit of its layer and position"
        x_title = "position and token" if len(positions) > 1 else "position"
        finding += unlike(list(map(str, positions)), tokens)
    else:
        data["number"] = cells["unit"].astype(int).to_numpy()
        x_title = mediator.removesuffix("s").replace("_", " ")
    held = (np.nan_to_num(data["low"]) * np.nan_to_num(data["high"]) > 0).sum()
    if data["low"].notna().any():
        finding += f"; {held:,} of {len(data):,} intervals do not hold 0"
    single = each.measured.maps.get(f"{mediator}, {kind}")
    linked = (single is not None and len(single.values) > 1 and single.values.shape[1] == len(data)
              and single.values.size <= LINKED and len(data) == len(cells))
    sets = {"cells": charts.columns_of(data)}
    if linked:
        rows, units = single.values.shape
        sets["effects"] = charts.columns_of(pd.DataFrame({
            "cell": np.tile(np.arange(units), rows), "value": single.values.ravel(),
            "example": np.repeat(np.arange(1, rows + 1), units)}))
        finding += ". Click a cell: below the map are its effects in the single examples"
    yield Figure(f"Where is the {effect_name(kind)} of {plural(mediator)}?", f"{finding}.",
                 f"Map of layers and {x_title}s, coloured by the mean effect.",
                 charts.unit_map(data, "number", x_title, layer_title, linked), sets,
                 canvas=len(data) > charts.LARGE)


def attention_parts(looked: Sequence[Mapping[str, Any]]) -> Iterator[Part]:
    """Attention from the pronoun, in single examples."""
    for each in looked:
        tokens = each["tokens"]
        rows = [{"head": head, "place": f"{place} {tokens[place]}", "token": tokens[place], "prompt": prompt,
                 "weight": weight}
                for head, both in each["heads"].items()
                for prompt, weights in zip(("female pronoun", "male pronoun"), both)
                for place, weight in enumerate(weights)]
        said = []
        for head, both in each["heads"].items():
            # the first token takes attention that heads have no other use for
            female, male = (tokens[1 + int(np.argmax(weights[1:]))] if len(tokens) > 1 else tokens[0]
                            for weights in both)
            said.append(f"{head} looks most at “{female}” with the female pronoun"
                        + (", and with the male one" if male == female else
                           f", at “{male}” with the male one"))
        yield Figure(f"Where do they look from the pronoun in: {each['title']}?",
                     f"The first token aside, {'; '.join(said)}.",
                     "Bars: attention of each head to each token, in both contexts.",
                     charts.attention_bars(), {"rows": charts.columns_of(pd.DataFrame(rows))})


def one_example(each: StudyResults) -> Iterator[Part]:
    """Maps of one example, picked from a list."""
    for name, single in each.measured.maps.items():
        if len(single.values) < 2 or single.values.size > LINKED:
            continue
        mediator, kind = name.split(", ")
        units = single.units
        x = next((column for column in ("position", "unit")
                  if column in units and units[column].nunique() > 1), None)
        if x is None:
            continue
        order = np.argsort(-np.nan_to_num(each.measured.total), kind="stable")
        data = pd.DataFrame({"layer": units["layer"].astype(int), "number": units[x].astype(str)
                             if x == "position" else units[x].astype(int), "value": single.values[order[0]],
                             "unit": [f"{layer}-{unit}" for layer, unit in zip(units["layer"], units[x])]})
        if len(data) > charts.LARGE or len(data.drop_duplicates(["layer", "number"])) < len(data):
            continue
        values = np.round(np.nan_to_num(single.values[order], posinf=0, neginf=0), 5)
        data["value"] = np.abs(values).max()  # the scale is that of all examples
        labels = [f"{each.measured.total[row]:.3g}: {short(each.texts[row], 150)}" for row in order]
        yield Figure(
            f"Where is the {kind} effect of {plural(mediator)} in this example?",
            f"{len(labels):,} examples, the largest total effect first (its number stands before the text); "
            "one colour scale for all of them.",
            "Map of the effects in the example that is chosen.",
            charts.unit_map(data, "number", x, "layer", False), {"cells": charts.columns_of(data)},
            picker=Picker("cells", "value", labels, values.tolist()))


def interval_of(row: Mapping[str, Any] | pd.Series | None, value: str = "value", form: str = ".3g") -> str:
    """A mean with its interval, from a row with `low` and `high`."""
    return "not known" if row is None else with_interval(row[value], row["low"], row["high"], form)


def short(texts: Sequence[str], length: int) -> str:
    """An example in a line."""
    null, alternative, one, other = texts
    whole = null + (f" → {alternative}" if alternative else "") + f": {one} / {other}"
    return whole if len(whole) <= length else whole[:length - 1] + "…"

"""What the attention scripts print of a JSON: counts, the total effect and its parts, the strongest heads,
the layers, and what all of these are worth."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mediation.effects.decomposition import Decomposition, proportions
from mediation.effects.resampling import Resampling
from mediation.effects.sign_flips import ALPHA
from mediation.effects.stability import held_out
from mediation.effects.summaries import ranked_units
from mediation.errors import InputError
from mediation.results.attention_results import (
    EFFECTS,
    MEANS,
    STRINGS,
    head_effects,
    layer_effects,
    read_results,
)
from mediation.results.attention_summaries import (
    StudySummary,
    effect_map,
    resampling_of,
    summarise_study,
    write_summaries,
)

UNKNOWN = "-"  # what cannot be said of too few clusters


def report_study(path: str | Path) -> None:
    """Print what a JSON says, and write the summaries of its units beside it."""
    content = read_results(path)
    results = content["results"]
    study = summarise_study(results)
    counts = ("num_examples_loaded", "num_examples_aligned", "threshold", "num_examples_analyzed")
    if "method" in content:
        estimated = content["method"] == "gradient"
        heads = "by first-order estimates" if estimated else "ranked by gradient, the strongest run"
        print(f"method {content['method']}: heads {heads}; layers and the whole model were run")
    print(", ".join(f"{key.removeprefix('num_').replace('_', ' ')} {content[key]:.6g}"
                    for key in counts if key in content))
    if content["do_filter"]:
        print("filtered by the odds ratio that the total effect is made of, which raises it, and with it "
              "what goes through single units: see --do-filter False beside it")
    print("", describe_effects(content, study), "", sep="\n")
    report_interventions_summary_by_head(results, study=study)
    report_interventions_summary_by_layer(results, study=study)
    print(describe_worth(study, path, content), "", sep="\n")
    print("wrote", path, *write_summaries(path, content, study))


def describe_effects(content: dict[str, Any], study: StudySummary) -> str:
    """Total effect and its exact parts, attention weights of the whole model replaced or held: on the log
    scale with shares of the total; beside them the means of 2020."""
    of, resampling = study.decomposition, study.resampling
    shares, total, parts = proportions(of, resampling), of.total[:, None], _parts(of)
    of_share = {"total indirect": (shares.total_indirect, shares.total_indirect_interval),
                "indirect": (shares.indirect, shares.indirect_interval)}
    means_of_2020 = dict(zip(("total", "indirect", "direct"), MEANS.items()))
    rows = []
    for name, (text, values) in {"total": ("total effect", total), **parts}.items():
        logs = f"{values.mean():10.4f}  {_interval(resampling, values)}"
        if name in means_of_2020:
            mean, key = means_of_2020[name]
            effects = np.array([[entry[key]] for entry in content["results"]], np.float64)
            odds = f"{content[mean]:10.6f}  {_interval(resampling, effects)}"
        else:
            odds = f"{'':10}  {'':18}"
        share, (low, high) = of_share.get(name, (values.mean(axis=0) / total.mean(),
                                                 resampling.of_ratio(values, of.total)))
        share = "" if name == "total" else f"{100 * share[0]:6.1f}%  {_ends(100 * low[0], 100 * high[0], 1)}"
        rows.append(f"{text:33} {logs}   {odds}   {share}".rstrip())
    heads = (f"{'':33} {'log ratio':>10}  {'95% interval':18}   {'ratio - 1':>10}  {'95% interval':18}   "
             f"{'share':>7}  95% interval")
    return "\n".join([
        heads, *rows, "",
        "log ratio: mean log odds ratio. total = direct + total indirect and total indirect = indirect + "
        "interaction hold exactly,",
        "in every example, and so do the shares of the mean total effect (total indirect: the proportion "
        "mediated).",
        "ratio - 1: mean odds ratio minus 1, the figures of 2020: these have no exact parts, and few "
        "examples can drive them.",
        describe_intervals(study)])


def describe_intervals(study: StudySummary) -> str:
    """One line on what all intervals are."""
    text = (f"intervals: 95%, percentiles of {len(study.resampling.weights):,} bootstrap draws of "
            f"{study.clusters} clusters: the occupations that a context names")
    if study.unnamed:
        text += f"; {study.unnamed} contexts name none and are clusters of their own"
    return text if study.resampling.varies else f"{text}. One cluster alone has no interval"


def _parts(of: Decomposition):
    """{name: (what the table calls it, values [N, 1])}."""
    return {"direct": ("  direct (weights held)", of.direct),
            "total indirect": ("  total indirect (total - direct)", of.total_indirect),
            "indirect": ("    indirect (weights replaced)", of.indirect),
            "interaction": ("    interaction", of.interaction)}


def _interval(resampling: Resampling, values):
    low, high = resampling.of_means(values)
    return _ends(low[0], high[0], 4)


def _ends(low, high, digits):
    if np.isnan(low):
        return f"{UNKNOWN:18}"
    return f"{f'[{low:.{digits}f}, {high:.{digits}f}]':18}"


def report_intervention(entry: dict[str, Any]) -> None:
    """Print one entry: contexts, candidates, total effect, and the model-level effects, whose sum is near the
    total but no identity."""
    print(*(f"{name}: {entry[key]}" for name, key in zip(("x ", "x'", "c1", "c2"), STRINGS)), sep="\n")
    indirect, direct = (entry[f"{kind}_effect_model"] for kind in EFFECTS)
    print(f"total effect {entry['total_effect']:.4f}; indirect {indirect:.4f} + direct {direct:.4f} "
          f"= {indirect + direct:.4f}")


def report_interventions_summary_by_head(
    results: Sequence[dict[str, Any]], effect_types: Sequence[str] = EFFECTS, k: int = 10,
    study: StudySummary | None = None,
) -> dict[str, pd.DataFrame]:
    """Print the k heads with the largest mean effect.

    Args:
        study: of `results`, where it is there.

    Returns: {effect: table with layer, head, mean, low, high (its interval), standard deviation, share above
        0, log mean, log low, log high, and for indirect effects p, q, in top}.
    """
    study = study or summarise_study(results)
    tables = {}
    for kind in effect_types:
        heads = head_effects(results, kind)
        tables[kind] = _ranked(heads.effects, heads.named("head"), study.table("heads", [kind]), kind).head(k)
        print(f"{kind} effect, strongest {len(tables[kind])} of {len(heads.layer)} heads, "
              f"over {len(results)} examples", _text(tables[kind]), "", sep="\n")
    return tables


def report_interventions_summary_by_layer(
    results: Sequence[dict[str, Any]], effect_types: Sequence[str] = EFFECTS,
    study: StudySummary | None = None,
) -> dict[str, pd.DataFrame]:
    """Print the attention layers by their mean effect, the weights of all their heads replaced.

    Returns: {effect: table with layer and the columns of heads but "in top"}.
    """
    study = study or summarise_study(results)
    tables = {}
    for kind in effect_types:
        layers = layer_effects(results, kind)
        single = study.table("layers", [kind]).iloc[:-1]  # the last is the whole model
        tables[kind] = _ranked(layers.effects, layers.named(), single, kind)
        print(f"{kind} effect by layer, over {len(results)} examples", _text(tables[kind]), "", sep="\n")
    return tables


def _ranked(effects, names, summary, kind):
    """Units by their mean effect, with what the summary says of them."""
    more = {"low": "effect_low", "high": "effect_high", "log mean": "mean", "log low": "low",
            "log high": "high"}
    if kind == "indirect":
        more |= {"p": "p", "q": "q"} | ({"in top": "in_top"} if "head" in names else {})
    columns = {name: summary[column].to_numpy(float) for name, column in more.items()}
    table = ranked_units(effects, {**names, **columns})
    first = [*names, "mean", "low", "high", "standard deviation", "share above 0"]
    return table[[*first, *(name for name in columns if name not in first)]]


def _text(table):
    return table.to_string(index=False, float_format="%.4f", na_rep=UNKNOWN)


def describe_worth(study: StudySummary, path: str | Path, content: dict[str, Any]) -> str:
    """Tests, stability and held-out means of the heads, in words."""
    units = study.units["indirect"]
    ranks, halves, top = units.ranks[0], units.halves[0], units.ranks[0].top
    lines = ["what the order of the heads is worth: indirect effects, log odds ratios, the strongest by "
             "size",
             f"  {_significant(study, 'indirect', 'indirect effect')}",
             f"  {_significant(study, 'total_indirect', 'total indirect effect (total - direct)')}",
             f"  {units.tests.describe()}, which take effects for symmetric around 0 where there is none",
             "  p: family-wise (maximum statistic, step-down), q: false discovery rate, of heads, layers and "
             f"the whole model together; in top: share of draws that have the head among their {top}",
             "  the direct effect of a head is near the total effect, so that it is above 0 says nothing of "
             "the head: its total indirect effect does"]
    if np.isnan(halves.overlap):
        lines.append(f"  {halves.clusters} clusters are too few to be halved")
    else:
        lines += [
            f"  random halves of the clusters: maps correlate at {halves.correlation:.2f} (stepped up to "
            f"all clusters), {halves.overlap * top:.1f} of the {top} strongest heads are the same",
            f"  bootstrap: {_shared(ranks):.1f} of the {top} strongest heads of a draw are among those of "
            "all examples",
            f"  the {top} strongest of one half: mean {halves.selected:.4f} there, {halves.held_out:.4f} in "
            "the other half"]
    other = _other_split(path, content)
    return "\n".join([*lines, *([f"  {other}"] if other else [])])


def _shared(ranks):
    """Units that two top sets share, from the mean Jaccard index."""
    return 2 * ranks.top * ranks.jaccard / (1 + ranks.jaccard)


def _significant(study, kind, what):
    """How many heads are called, in a sentence."""
    table = study.table("heads", [kind])
    if table["p"].isna().all():
        return f"{what}: no head can be called significant"
    called = f"{(table['p'] <= ALPHA).sum()} at a family-wise error of {ALPHA}"
    if table["q"].notna().any():
        called += f", {(table['q'] <= ALPHA).sum()} at a false discovery rate of {ALPHA}"
    return f"{what} other than 0, of {len(table)} heads: {called}"


def _other_split(path, content):
    """Heads chosen on WinoBias dev, reported on test, where both files lie side by side; None where not."""
    path, found = Path(path), {}
    for split in ("dev", "test"):
        name = re.sub(r"_(dev|test)((?:_[1-6])?\.json)$", rf"_{split}\2", path.name)
        if not path.with_name(name).exists() or "split" not in content:
            return None
        try:
            found[split] = content if name == path.name else read_results(path.with_name(name))
        except InputError as error:
            return f"not reported on the other split: {error}"
    if any(found["dev"].get(key) != found["test"].get(key) for key in ("model_version", "do_filter")):
        return None
    of = {split: effect_map(other["results"], "heads", "indirect", resampling_of(other["results"]))
          for split, other in found.items()}
    if not of["dev"].units.equals(of["test"].units):
        return None
    held = held_out(of["dev"].values, of["test"].values, of["test"].resampling)
    interval = _ends(held.low, held.high, 4).strip()
    return (f"the {len(held.units)} strongest of dev ({len(of['dev'].values)} examples): mean "
            f"{held.selected:.4f} there, {held.held_out:.4f} {interval} on test ({len(of['test'].values)} "
            "examples)")

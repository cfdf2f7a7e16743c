"""What the analysis scripts print, as text: tables that a researcher reads, each number with its formula and
filter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mediation.effects.estimands import Correlation, Estimand
from mediation.effects.screening import Screening
from mediation.effects.stability import SPLITS, Halves
from mediation.effects.summaries import over_orders, smallest_reaching
from mediation.effects.unit_summaries import UnitSummary
from mediation.reports.page import count, with_interval

FULL_PASSES = "Every intervention was a full pass of its own: there is nothing to check."


def describe_prompts(model: str, table: pd.DataFrame, unrated: Sequence[str]) -> str:
    """One line on what a total effect is computed over, one more on words that had to be left out."""
    counts = len(table), table["word"].nunique(), table["template"].nunique()
    lines = [f"{model}: " + ", ".join(map(count, counts, ("prompt", "profession", "template")))]
    if unrated:
        lines.append(f"left out, not rated: {', '.join(unrated)}")
    return "\n".join(lines)


def describe_estimands(estimands: Sequence[Estimand]) -> str:
    """A table of value, median, interval and prompts; below it what each line is."""
    width = max(len(estimand.name) for estimand in estimands)
    lines = [f"{'':{width}}  {'value':>9} {'median':>9}  {'95% interval':>20} {'prompts':>8}"]
    for estimand in estimands:
        low, high = estimand.interval
        interval = f"[{low:.3f}, {high:.3f}]"
        lines.append(f"{estimand.name:{width}}  {estimand.value:9.3f} {estimand.median:9.3f}  {interval:>20} "
                     f"{estimand.prompts:8}")
    lines += ["", "value = odds ratio - 1 (0 = no effect), or log odds ratio where that is said; median over "
              "prompts; interval: bootstrap over professions and templates; null = the profession's prompt"]
    lines += [f"  {estimand.name.strip()}: {estimand.formula} ({estimand.filter})" for estimand in estimands]
    return "\n".join(lines)


def describe_correlations(correlations: Sequence[Correlation]) -> str:
    """A line per correlation, and what its p value takes for independent."""
    lines = ["correlations (Pearson) over prompts, and over professions, each the mean of its prompts"]
    for each in correlations:
        lines.append(f"  {each.name + ', ' + each.filter:<52} r = {each.r:.3f} ({each.prompts} prompts), "
                     f"r = {each.r_of_means:.3f} (p = {each.p:.2g}, {each.professions} professions)")
    lines.append("p: two-sided, takes the professions for independent; the prompts of one are not")
    return "\n".join(lines)


def estimand_table(estimands: Sequence[Estimand]) -> pd.DataFrame:
    """The same numbers, unrounded, as a table to be written: name, value, median, low, high, prompts,
    formula, filter."""
    return pd.DataFrame([{"name": e.name.strip(), "value": e.value, "median": e.median,
                          "low": e.interval[0], "high": e.interval[1], "prompts": e.prompts,
                          "formula": e.formula, "filter": e.filter} for e in estimands])


def describe_screening(screening: Screening, samples: Sequence[Mapping[str, Any]]) -> str:
    """What a screened run may claim, in words.

    Args:
        screening: of the run; samples: what the manifest says of each table's sample (`screen` of its files).
    """
    bound = (f"recall of a prompt's exact top {screening.top}, mean over prompts: at least "
             f"{screening.recall:.3f} with 95% confidence "
             f"(at most {screening.missed_a_prompt:.2f} of them missed a prompt)"
             if screening.recall > 0 else
             f"too few draws for any statement about the recall of a prompt's exact top {screening.top} "
             "(bound 0): more professions, or a larger --screen_sample, make one")
    worst = [min((sample[name] for sample in samples if sample[name] is not None), default=float("nan"))
             for name in ("pearson", "spearman")]
    return (f"method screen: {screening.drawn} random neurons of the {screening.rest} a prompt that were "
            "left out "
            f"were run: {screening.missed} belong to the exact top {screening.top} of one of their "
            f"prompts\n{bound}\n"
            f"estimates against exact runs in these samples (change in log odds): Pearson {worst[0]:.4f}, "
            f"Spearman {worst[1]:.4f} in the worst table, largest difference "
            f"{max(sample['largest_difference'] for sample in samples):.1e}")


def describe_units(found: UnitSummary, top: int) -> str:
    """The strongest neurons of one map, see `strongest_units`; what was tested, and how stable the map is."""
    first = found.table.iloc[0]
    return "\n".join([
        f"{first['effect']} effects, {first['group']} professions, {count(first['comparisons'], 'prompt')}: "
        "the strongest neurons by the size of the mean log odds ratio", strongest_units(found.table, top),
        INTERVALS, found.tests.describe(), *how_stable(found.halves[0])])


INTERVALS = ("[low, high]: 95% bootstrap intervals over professions and templates; rank: by size of the "
             "mean; p: family-wise; q: false discovery rate")


def strongest_units(units: pd.DataFrame, count: int) -> str:
    """The units of one map by rank, as text; `units`: rows of a summary, see `effects.unit_summaries`."""
    top = units.nsmallest(count, "rank")
    rows = [row for _, row in top.iterrows()]
    columns = {"layer-neuron": [f"{row['layer']}-{row['unit']}" for row in rows],
               "log odds ratio": [_interval(row) for row in rows],
               "odds ratio - 1": [_interval(row, "effect_mean", "effect_") for row in rows],
               "rank": [_rank(row) for row in rows]}
    if top["in_top"].notna().all():
        columns["in the top 10"] = [f"{100 * row['in_top']:.0f}%" for row in rows]
    columns |= {column: [f"{row[column]:.2g}" for row in rows] for column in ("p", "q")
                if top[column].notna().any()}
    return pd.DataFrame(columns).to_string(index=False)


def recall(screening: Mapping[str, Any]) -> str:
    """A sentence on what a screened run missed; `screening`: of its entry in the manifest."""
    return (f"Screening: of {screening['drawn']} neurons drawn at random among those left out, "
            f"{screening['missed']} belong to the exact top {screening['top']} of a prompt; the recall of "
            f"that top, mean over prompts, is at least {screening['recall_at_least']:.3f} with 95% confidence"
            + (" (0: too few draws for a statement)." if screening["recall_at_least"] == 0 else "."))


@dataclass(frozen=True)
class Mediator:
    """What is known of one mediator: table of means, name of the whole table, its entry in the manifest and
    its run's."""

    means: pd.DataFrame
    file: str
    entry: dict[str, Any]
    run: dict[str, Any]

    @property
    def place(self) -> str:
        """What the one place where every comparison was changed is called; "" where there are several."""
        positions = self.entry.get("positions")
        return positions if positions in ("slot", "last") else ""

    @property
    def tokens(self) -> dict[str, str]:
        """{position, as text: the tokens that stand there}; empty for attention weights."""
        if "token" not in self.means:
            return {}
        return dict(zip(self.means["position"].astype(str), self.means["token"]))


def how_stable(halves: Halves) -> list[str]:
    """What halves of the clusters say of one mediator; nothing where there are too few."""
    if np.isnan(halves.correlation):
        return []
    return [f"Halves of the clusters, {SPLITS} splits: the two maps correlate at "
            f"{halves.correlation:.2f} (stepped up to all clusters), and share "
            f"{100 * halves.overlap:.0f}% of "
            f"their {halves.top} strongest; chosen on one half, these have a mean of {halves.selected:.4g} "
            f"there and of {halves.held_out:.4g} in the other."]


def _interval(row, mean="mean", ends=""):
    """mean [low, high], of these columns; `ends`: what the names of low and high begin with."""
    return with_interval(row[mean], row[f"{ends}low"], row[f"{ends}high"])


def _rank(row):
    """rank [low, high]."""
    return with_interval(float(row["rank"]), row["rank_low"], row["rank_high"], ".0f")


def in_words(kind: str) -> str:
    """total_indirect: total indirect."""
    return kind.replace("_", " ")


def selection(found: Mapping[str, dict[str, Any]], k: int, label: str, all_units: float,
              of_all: tuple[float, float]) -> str:
    """Effect against number of units, as a table, and what it says.

    Args:
        found: {"top-k" | "greedy" | "random order": {"val", label: [(layer, unit)]}} of `selection.run`,
            with "low" and "high" where intervals are known (`selections.with_intervals`); all_units: effect
            of all units together; of_all: its interval, or NaN.
    """
    table = pd.DataFrame(index=pd.RangeIndex(1, k + 1, name=f"{label}s"))
    for name, content in found.items():
        if name == "random order":
            orders = over_orders(content["val"], k)
            table["random, mean"] = orders["mean"]
            for end in ("low", "high") if "low" in content else ():
                table[f"random {end}"] = pd.Series(content[end], range(1, len(content[end]) + 1), float)
            table["random, largest"] = orders["largest"]
        else:
            numbers = pd.RangeIndex(1, len(content["val"]) + 1)
            table[name] = pd.Series(content["val"], numbers, float)
            for end in ("low", "high") if "low" in content else ():
                table[f"{name} {end}"] = pd.Series(content[end], numbers, float)
            names = [f"{layer}-{unit}" for layer, unit in content[label]]
            table[f"{name} {label}"] = pd.Series(names[: len(numbers)], numbers[: len(names)])
    interval = "" if np.isnan(of_all[0]) else f" [{of_all[0]:.6f}, {of_all[1]:.6f}]"
    lines = [table.to_string(float_format="%.6f", na_rep=""), "",
             f"all {label}s together: {all_units:.6f}{interval}"]
    without = [name for name in found if "low" not in found[name]]
    if len(without) < len(found):
        lines.append("low, high: 95% interval of the mean, bootstrap over "
                     + ("the occupations that a context names" if label == "head" else
                        "professions and templates")
                     + "; the choice is taken as it is, and was made on the same examples")
    if without:
        lines.append(f"no intervals of {', '.join(without)}: these files hold no objectives per example, "
                     "they are of 2020 or of an earlier version")
    for name, content in found.items():
        if name != "random order":
            values = content["val"][:k]
            number = smallest_reaching(values, all_units)
            reached = (f"{count(number, label)} reach it" if number
                       else f"{count(len(values), label)} do not reach it, {values[-1]:.6f}")
            lines.append(f"{name}: {reached}")
        if "certified" in content:
            lines.append(f"lazy greedy: {content['evaluations']} evaluations of sets, "
                         f"{content['saved']} saved; "
                         f"{content['grown']} gains grew; "
                         f"{'certified' if content['certified'] else 'not certified'} equal to plain greedy")
    return "\n".join(lines)

"""What `compare_models.py` prints: models side by side, their differences, the trend, the strongest units."""

import numpy as np
import pandas as pd

from mediation.effects.model_comparison import EVERY, LOG, ODDS, SHARE, Comparison
from mediation.reports.page import with_interval

LEGEND = """\
Log odds ratios: 0 is no effect. In brackets: 95% intervals, bootstrap over clusters (2,000 draws, the same
for all models). proportion mediated = (mean total - mean direct) / mean total; an interval that is not given:
one cluster, or a total effect that may be 0. Differences and trends are of examples that the models share."""


def comparison(compared: Comparison, table: pd.DataFrame, step: str) -> str:
    """The section of one study.

    Args:
        table: that of `compared`; step: that of the trend, in words.
    """
    means = table[table["what"] == "mean"]
    parts = [f"# {compared.study}", *_notes(compared), "",
             _side_by_side(means[means["group"] == EVERY], compared.controls)]
    of_groups = means[means["group"] != EVERY]
    if len(of_groups):
        of_groups = pd.concat([of_groups, table[table["what"] == "difference of groups"]])
        labels = [f"{row.model}, {row.group}" + (" - the others" if row.other else "")
                  for row in of_groups.itertuples()]
        parts += ["", "by group", _grid(of_groups.assign(label=labels))]
    differences = table[(table["what"] == "difference") & (table["scale"] != ODDS)]
    if len(differences):
        labels = [f"{row.model} - {row.other}" for row in differences.itertuples()]
        parts += ["", "differences, on the examples that both have", _grid(differences.assign(label=labels))]
    trends = table[table["what"] == "trend"]
    if len(trends):
        parts += ["", f"trend {step}, over {trends['model'].iloc[0]}, on the "
                      f"{_examples(trends.iloc[0])} that all of them have"]
        parts += [f"  {row.quantity + ', ' + row.scale:38} {_with_interval(row):28} larger at every step in "
                  f"{row.above_0:.0%} of the draws" for row in trends.itertuples()]
    overlaps = table[table["what"].isin(["overlap", "correlation of maps"])]
    if len(overlaps):
        parts += ["", "units of two models (of units where the models have the same, else by quarters of the "
                      "depth)"]
        parts += [f"  {row.model} and {row.other}, {row.quantity}: {_with_interval(row)} ({row.scale}"
                  + (f"; {row.by_chance:.2f} by chance)" if np.isfinite(row.by_chance) else ")")
                  for row in overlaps.itertuples()]
    return "\n".join(parts)


def _notes(compared):
    """Whose examples are compared, and who is left out of the trend."""
    lines = []
    if len(compared.places) > 1:
        every = len(compared.examples)
        lines.append(f"{every} examples in all, {compared.common} in all of {', '.join(compared.places)}; "
                     f"{every - compared.common} are not common")
    if compared.study.endswith(", filtered"):
        lines.append("filtered: every model has the examples on which its own total effect is large, which "
                     "raises its means; unfiltered files (--do-filter False) have all")
    without = [model for model in compared.measured if model not in (*compared.places, *compared.controls)]
    if without:
        lines.append(f"not in the trend, size unknown: {', '.join(without)} (name it with --sizes)")
    return lines


def _side_by_side(means, controls):
    labels = [model + (" (control)" if model in controls else "") for model in means["model"]]
    return _grid(means.assign(label=labels))


def _grid(rows):
    """A line per label, a column per quantity; 2020's means below."""
    texts = []
    for scales in ((LOG, SHARE), (ODDS,)):
        some = rows[rows["scale"].isin(scales)]
        if some.empty:
            continue
        some = some.assign(text=[_with_interval(row) for row in some.itertuples()])
        grid = some.pivot_table(index="label", columns="quantity", values="text", aggfunc="first", sort=False)
        counts = some.drop_duplicates("label").set_index("label")[["examples", "clusters"]]
        shown = counts.join(grid).rename_axis(None).rename_axis(None, axis=1).fillna("")
        title = LOG if LOG in scales else f"{ODDS}, as in 2020"
        texts.append(f"[{title}]\n{shown.to_string()}")
    return "\n".join(texts)


def _with_interval(row):
    return with_interval(row.value, row.low, row.high, ".3f")


def _examples(row):
    return f"{row['examples']} examples ({row['clusters']} clusters)"

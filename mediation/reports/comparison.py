"""What `compare_models.py` says: models side by side, their differences, the trend, the strongest units."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from mediation.effects.model_comparison import EVERY, LOG, ODDS, SHARE, Comparison
from mediation.reports.page import Bullets, Cell, Page, Section, Table, estimate, number, text
from mediation.reports.unit_parts import interval_of

LEAD = """\
Log odds ratios: 0 is no effect. In brackets: 95% intervals, bootstrap over clusters (2,000 draws, the same
for all models). proportion mediated = (mean total - mean direct) / mean total; an interval that is not given:
one cluster, or a total effect that may be 0. Differences and trends are of examples that the models share."""
FORM = ".3f"


class Compared(NamedTuple):
    """One study: its comparison, the table of it, and what a step of the trend is, in words."""

    comparison: Comparison
    table: pd.DataFrame
    step: str


def comparison_page(studies: Sequence[Compared]) -> Page:
    """All studies, a section each."""
    models = dict.fromkeys(model for each in studies for model in each.comparison.measured)
    return Page(f"Comparison of {', '.join(models)}", LEAD,
                {each.comparison.study if len(studies) > 1 else "": list(_findings(each))
                 for each in studies},
                [Section(each.comparison.study, list(_parts(each))) for each in studies])


def _findings(of_study):
    """The trend of the total effect, or without one the difference of two models."""
    table = of_study.table
    total = table[(table["quantity"] == "total effect") & (table["scale"] == LOG)]
    trends, differences = (total[total["what"] == what] for what in ("trend", "difference"))
    for _, row in trends.iterrows():
        sure = ("" if np.isnan(row["above_0"]) else
                f", and is larger at every step in {row['above_0']:.0%} of the draws")
        yield (f"Over {row['model']} the mean total effect changes by "
               f"**{interval_of(row, form=FORM)}** {of_study.step}{sure}.")
    for _, row in differences.iterrows() if trends.empty else ():
        yield (f"The mean total effect of {row['model']} minus that of {row['other']} is "
               f"**{interval_of(row, form=FORM)}**.")


def _parts(of_study) -> Iterator[Bullets | Table]:
    compared, table, step = of_study
    notes = list(_notes(compared))
    if notes:
        yield Bullets(notes)
    means = table[table["what"] == "mean"]
    labels = [model + (" (control)" if model in compared.controls else "") for model in means["model"]]
    yield from _grids("Means of each model", means.assign(label=labels)[means["group"] == EVERY])
    of_groups = means[means["group"] != EVERY]
    if len(of_groups):
        of_groups = pd.concat([of_groups, table[table["what"] == "difference of groups"]])
        labels = [f"{row.model}, {row.group}" + (" - the others" if row.other else "")
                  for row in of_groups.itertuples()]
        yield from _grids("Means by group", of_groups.assign(label=labels))
    differences = table[(table["what"] == "difference") & (table["scale"] != ODDS)]
    labels = [f"{row.model} - {row.other}" for row in differences.itertuples()]
    yield from _grids("Differences, on the examples that both have", differences.assign(label=labels))
    trends = table[table["what"] == "trend"]
    if len(trends):
        first = trends.iloc[0]
        yield Table(f"Trend {step}, over {first['model']}, on the {first['examples']} examples "
                    f"({first['clusters']} clusters) that all of them have",
                    ["quantity", "trend [low, high]", "larger at every step in"],
                    [[text(f"{row.quantity}, {row.scale}"), _estimate(row), number(row.above_0, ".0%")]
                     for row in trends.itertuples()])
    overlaps = table[table["what"].isin(["overlap", "correlation of maps"])]
    if len(overlaps):
        yield Table("Units of two models: of units where the models have the same, else by quarters of the "
                    "depth", ["models", "quantity", "measure", "value [low, high]", "by chance"],
                    [[text(f"{row.model} and {row.other}"), text(row.quantity), text(row.scale),
                      _estimate(row), number(row.by_chance, ".2f")] for row in overlaps.itertuples()])


def _notes(compared):
    """Whose examples are compared, and who is left out of the trend."""
    if len(compared.places) > 1:
        every = len(compared.examples)
        yield (f"{every} examples in all, {compared.common} in all of {', '.join(compared.places)}; "
               f"{every - compared.common} are not common")
    if compared.study.endswith(", filtered"):
        yield ("filtered: every model has the examples on which its own total effect is large, which raises "
               "its means; unfiltered files (--do-filter False) have all")
    without = [model for model in compared.measured if model not in (*compared.places, *compared.controls)]
    if without:
        yield f"not in the trend, size unknown: {', '.join(without)} (name it with --sizes)"


def _grids(caption, rows) -> Iterator[Table]:
    """A row per label, a column per quantity; 2020's means in a table of their own."""
    for scales, title in (((LOG, SHARE), LOG), ((ODDS,), f"{ODDS}, as in 2020")):
        of_scale = rows[rows["scale"].isin(scales)]
        quantities = list(dict.fromkeys(of_scale["quantity"]))
        if not quantities:
            continue
        lines = []
        for label, of_label in of_scale.groupby("label", sort=False):
            cells = {row.quantity: _estimate(row) for row in of_label.itertuples()}
            lines.append([text(label), *(number(float(of_label[column].iloc[0]), ",.0f")
                                         for column in ("examples", "clusters")),
                          *(cells.get(quantity, Cell("")) for quantity in quantities)])
        yield Table(f"{caption}: {title}", ["", "examples", "clusters", *quantities], lines)


def _estimate(row):
    return estimate(row.value, row.low, row.high, FORM)


"""The tables of a question of one's own: effects of every comparison and unit, and their means."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mediation.effects.odds import effect, log_odds
from mediation.effects.statistics import Moments, Screening
from mediation.results.attention_results import EFFECTS
from mediation.results.tables import table_writer

SCALES = ("_effect", "_log_effect")


@dataclass(frozen=True)
class Row:
    """Numbers of one comparison: `columns` that every table has of it, its `group`, the null prompt's log odds `base`.

    `probabilities`: {effect: [units, 2]}, of both candidates; `exact`: {effect: bool [units]}, which units were run, where not all were.
    """

    columns: dict
    group: str
    base: float
    probabilities: dict
    exact: dict


def write_effects(path, units, rows, groups):
    """The table of one mediator, comparison by comparison.

    Effects are relative to the null prompt's odds in the very run that the interventions start from: without an intervention exactly 0.

    Args:
        units: {column: array [units]}, which name them; rows: iterable of Rows; groups: the groups that have means of their own.

    Returns: (number of rows, table of means: of all comparisons, and by group).
    """
    groups = dict.fromkeys(["", *groups])
    moments = {group: {f"{kind}{scale}": Moments() for kind in EFFECTS for scale in SCALES} for group in groups}
    count = 0
    with table_writer(path) as append:
        for row in rows:
            columns = {**row.columns, **units}
            for kind in EFFECTS:
                c1, c2 = row.probabilities[kind].T
                columns |= {f"candidate1_{kind}_prob": c1, f"candidate2_{kind}_prob": c2, f"{kind}_effect": effect(log_odds(c2, c1), row.base)}
                for group in {"", row.group}:
                    moments[group][f"{kind}_effect"].add(columns[f"{kind}_effect"])
                    moments[group][f"{kind}_log_effect"].add(log_odds(c2, c1) - row.base)
            columns |= {f"{kind}_method": np.where(exact, "exact", "gradient") for kind, exact in row.exact.items()}
            count = append(columns)
    tables = []
    for group in groups:
        values = {f"{name}_{part}": value for name, moment in moments[group].items() for part, value in (("mean", moment.mean), ("std", moment.deviation))}
        tables.append(pd.DataFrame({"group": group or "all", **units, **values, "comparisons": moments[group]["indirect_effect"].count}))
    return count, pd.concat(tables, ignore_index=True)


def read_table(path):
    """A table of means or of total effects. Words such as "null" or "NA" stay words; a deviation of one comparison is not a number."""
    deviations = {f"{kind}{scale}_std": [""] for kind in EFFECTS for scale in SCALES}
    return pd.read_csv(path, keep_default_na=False, na_values=deviations, dtype=dict.fromkeys(("id", "group", "layer"), str))


def screening_of(entry, top):
    """The Screening that a screened table's entry in the manifest supports; None for others."""
    if "screen" not in entry:
        return None
    missed = entry["screen"]["missed"]
    return Screening(entry["screen"]["drawn"], missed if isinstance(missed, int) else len(missed), entry["screen"]["rest"], top)

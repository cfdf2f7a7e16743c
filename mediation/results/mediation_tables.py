"""The tables of a question of one's own: effects of every comparison and unit, and their means."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped

from mediation.effects.odds import effect, log_odds
from mediation.effects.statistics import Moments, Screening
from mediation.errors import InputError
from mediation.results.attention_results import EFFECTS
from mediation.results.tables import check_columns, check_numbers, read_columns, table_writer
from mediation.results.tidy import Piece

SCALES = ("_effect", "_log_effect")
COMPARISON = ("id", "group", "alternative")  # columns that every table has of a comparison
REMEDY = "this is no table of mediate.py, write it again"


@dataclass(frozen=True)
class Row:
    """Numbers of one comparison.

    `columns`: that every table has of it; `base`: log odds of the null prompt; `probabilities`: by effect, of
    both candidates; `exact`: by effect, which units were run, where not all were.
    """

    columns: Mapping[str, Any]
    group: str
    base: float
    probabilities: Mapping[str, Float[np.ndarray, "U 2"]]
    exact: Mapping[str, Bool[np.ndarray, "U"]]


def write_effects(
    path: str | Path, units: Mapping[str, Shaped[np.ndarray, "U"]], rows: Iterable[Row],
    groups: Iterable[str],
) -> tuple[int, pd.DataFrame]:
    """The table of one mediator, comparison by comparison.

    Effects are relative to the null prompt's odds in the very run that the interventions start from: without
    an intervention exactly 0.

    Args:
        units: by column, which name them; groups: those that have means of their own.

    Returns: (number of rows, table of means: of all comparisons, and by group).
    """
    groups = dict.fromkeys(["", *groups])
    moments = {group: {f"{kind}{scale}": Moments() for kind in EFFECTS for scale in SCALES}
               for group in groups}
    count = 0
    with table_writer(path) as append:
        for row in rows:
            columns = {**row.columns, **units}
            for kind in EFFECTS:
                c1, c2 = row.probabilities[kind].T
                columns |= {f"candidate1_{kind}_prob": c1, f"candidate2_{kind}_prob": c2,
                            f"{kind}_effect": effect(log_odds(c2, c1), row.base)}
                for group in {"", row.group}:
                    moments[group][f"{kind}_effect"].add(columns[f"{kind}_effect"])
                    moments[group][f"{kind}_log_effect"].add(log_odds(c2, c1) - row.base)
            columns |= {f"{kind}_method": np.where(exact, "exact", "gradient")
                        for kind, exact in row.exact.items()}
            count = append(columns)
    tables = []
    for group in groups:
        values = {f"{name}_{part}": value for name, moment in moments[group].items()
                  for part, value in (("mean", moment.mean), ("std", moment.deviation))}
        tables.append(pd.DataFrame({"group": group or "all", **units, **values,
                                    "comparisons": moments[group]["indirect_effect"].count}))
    return count, pd.concat(tables, ignore_index=True)


def read_pieces(path: str | Path, mediator: str, position: str = "") -> Iterator[Piece]:
    """Pieces of the tidy table from the table of one mediator, comparison by comparison.

    The file has effects, and no log odds of the null prompt: these follow from the unit whose effect is
    nearest to 0. A unit without any effect gives them exactly.

    Args:
        mediator: what the table is of; position: where in the prompt it was replaced.

    Raises:
        InputError: a file that is no such table; a cell that is not a number or a probability; comparisons
            that do not have the same units, or whose rows do not stand together.
    """
    written = [name for kind in EFFECTS
               for name in (f"candidate1_{kind}_prob", f"candidate2_{kind}_prob", f"{kind}_effect")]
    header = check_columns(path, [*COMPARISON, "layer", *written], REMEDY)
    names = header[header.index("layer") + 1:header.index(written[0])]
    if len(names) > 1:
        raise InputError(f"{path}: columns {', '.join(names)} stand between layer and {written[0]}, at most "
                         f"one names a unit: {REMEDY}")
    methods = [f"{kind}_method" for kind in EFFECTS if f"{kind}_method" in header]
    units, comparisons = None, set()
    for (stimulus, group, alternative), rows in _comparisons(path, [*names, *written], methods):
        if (stimulus, alternative) in comparisons:
            raise InputError(f"{path}: rows of {stimulus!r}, {alternative!r} do not stand together: {REMEDY}")
        comparisons.add((stimulus, alternative))
        own = rows[["layer", *names]].reset_index(drop=True)
        units = own if units is None else units
        if not own.equals(units) or (own is units and own.duplicated().any()):
            raise InputError(f"{path}: {stimulus!r}, {alternative!r} does not have the same units as the "
                             f"others, once each: {REMEDY}")
        under = {kind: np.asarray(log_odds(rows[f"candidate2_{kind}_prob"], rows[f"candidate1_{kind}_prob"]))
                 for kind in EFFECTS}
        stored = {kind: rows[f"{kind}_effect"].to_numpy(float) for kind in EFFECTS}
        base = _base_log_odds(np.concatenate(list(under.values())), np.concatenate(list(stored.values())))
        for kind in EFFECTS:
            method = rows[f"{kind}_method"].to_numpy(object) if f"{kind}_method" in methods else "exact"
            yield Piece(f"{stimulus} | {alternative}", stimulus, mediator, position, kind,
                        _layers(rows["layer"]), rows[names[0]].to_numpy(int) if names else None, base,
                        under[kind], group=group, method=method, stored=stored[kind])


def _comparisons(path, numbers, methods):
    """((id, group, alternative), its rows) one after the other; at most a chunk of the file and one
    comparison's rows are in memory."""
    texts, rest = [*COMPARISON, "layer", *methods], None
    for chunk in read_columns(path, [*texts, *numbers], texts):
        chunk["layer"] = chunk["layer"].astype(str)
        for column in numbers:
            if column.endswith("_prob"):
                check_numbers(path, chunk, column, np.finfo(float).tiny, 1, REMEDY, "a probability above 0")
            elif column.endswith("_effect"):
                check_numbers(path, chunk, column, -1, np.finfo(float).max, REMEDY, "an odds ratio minus 1")
            else:
                check_numbers(path, chunk, column, 0, 2**31 - 1, REMEDY, whole=True)
        bad = chunk.index[~((chunk["layer"] == "all") | chunk["layer"].str.fullmatch("[0-9]{1,9}"))]
        if len(bad):
            raise InputError(f"{path}: row {bad[0] + 1}, column 'layer' is neither a number nor 'all': "
                             f"{REMEDY}")
        rows = chunk if rest is None else pd.concat([rest, chunk])
        keys = rows[list(COMPARISON)].astype(str).to_numpy()
        starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
        for start, end in pairwise(starts):
            yield tuple(keys[start]), rows.iloc[start:end]
        rest = rows.iloc[starts[-1]:]
    if rest is None or not len(rest):
        raise InputError(f"{path}: the table has no rows: {REMEDY}")
    yield tuple(rest[list(COMPARISON)].astype(str).to_numpy()[0]), rest


def _layers(names):
    """Numbers where they are: "all" is none."""
    if (names == "all").any():
        return np.array([name if name == "all" else int(name) for name in names], object)
    return names.to_numpy(int)


def _base_log_odds(log_odds_under, effects):
    """The log odds without intervention, from those under interventions and their effects."""
    nearest = np.abs(effects).argmin()
    return float(log_odds_under[nearest] - np.log1p(effects[nearest]))


def read_table(path: str | Path) -> pd.DataFrame:
    """A table of means or of total effects. Words such as "null" or "NA" stay words; a deviation of one
    comparison is not a number."""
    deviations = {f"{kind}{scale}_std": [""] for kind in EFFECTS for scale in SCALES}
    return pd.read_csv(path, keep_default_na=False, na_values=deviations,
                       dtype=dict.fromkeys(("id", "group", "layer"), str))


def unit_column(means: pd.DataFrame) -> str | None:
    """The column of a table of means that names a unit within its layer; None: a whole layer is one unit."""
    after = list(means).index("layer") + 1
    return None if means.columns[after].endswith("_mean") else str(means.columns[after])


def screening_of(entry: Mapping[str, Any], top: int | None) -> Screening | None:
    """The Screening that a screened table's entry in the manifest supports; None for others."""
    if "screen" not in entry or top is None:
        return None
    missed = entry["screen"]["missed"]
    return Screening(entry["screen"]["drawn"], missed if isinstance(missed, int) else len(missed),
                     entry["screen"]["rest"], top)

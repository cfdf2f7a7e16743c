"""The tables of a question of one's own: effects of every comparison and unit, and their means."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Shaped

from mediation.effects.odds import effect, log_odds
from mediation.effects.screening import Screening
from mediation.effects.summaries import Moments
from mediation.errors import InputError
from mediation.results.attention_results import EFFECTS
from mediation.results.tables import check_columns, check_numbers, read_columns, table_writer, unreadable
from mediation.results.tidy import Piece

SCALES = ("_effect", "_log_effect")
KINDS = (*EFFECTS, "ablation")  # of effects
PLACE = ("position", "token")  # columns that name where a unit was changed
COMPARISON = ("id", "group", "alternative")  # columns that every table has of a comparison
# columns that hold texts, though a text may look like a number
TEXTS = (*COMPARISON, "layer", "token", "base_string", "alt_string", "candidate1", "candidate2")
SEVERAL = "/"  # between the tokens that several comparisons have at one position
REMEDY = "this is no table of mediate.py, write it again"


@dataclass(frozen=True)
class Row:
    """Numbers of one comparison.

    `columns`: that every table has of it; `units`: columns that name the U units; `places`: (position, its
    token) of each of the P places where each unit was changed, in columns of their own, None for attention
    weights; `base`: log odds of the null prompt; `probabilities`: by kind of effect, of both candidates, of
    U x P cells, places fastest; `exact`: by kind, which were run, where not all were.
    """

    columns: Mapping[str, Any]
    group: str
    units: Mapping[str, Shaped[np.ndarray, "U"]]
    places: Sequence[tuple[int | str, str]] | None
    base: float
    probabilities: Mapping[str, Float[np.ndarray, "cells 2"]]
    exact: Mapping[str, Bool[np.ndarray, " cells"]]


def write_effects(path: str | Path, rows: Iterable[Row], groups: Iterable[str],
                  one_place: str = "") -> tuple[int, pd.DataFrame]:
    """The table of one mediator, comparison by comparison.

    Effects are relative to the null prompt's odds in the very run that the interventions start from: without
    an intervention exactly 0.

    Args:
        groups: those that have means of their own; one_place: what the means call the place where each
            comparison has one, such as "slot"; "" keeps the places' own names.

    Returns: (number of rows, table of means: of all comparisons, and by group).
    """
    means, count = Means(["", *groups], one_place), 0
    with table_writer(path) as append:
        for row in rows:
            columns = {**row.columns, **row.units}
            if row.places is not None:
                repeated = {name: np.repeat(unit, len(row.places)) for name, unit in row.units.items()}
                number = len(next(iter(row.units.values())))
                positions, tokens = zip(*row.places)
                columns |= {**repeated, "position": np.tile(positions, number),
                            "token": np.tile(np.array(tokens, object), number)}
            for kind, of_kind in row.probabilities.items():
                c1, c2 = of_kind.T
                log_effects = np.asarray(log_odds(c2, c1)) - row.base
                columns |= {f"candidate1_{kind}_prob": c1, f"candidate2_{kind}_prob": c2,
                            f"{kind}_effect": effect(log_odds(c2, c1), row.base)}
                means.add(row, kind, columns[f"{kind}_effect"], log_effects)
            columns |= {f"{kind}_method": np.where(exact, "exact", "gradient")
                        for kind, exact in row.exact.items()}
            count = append(columns)
    return count, means.table()


class Means:
    """Means of effects over comparisons, by group, unit and position: what comes one by one is not stored.

    Args: as of `write_effects`.
    """

    def __init__(self, groups: Iterable[str], one_place: str = "") -> None:
        # [group][position][kind and scale]
        self.moments: dict[str, dict[Any, dict[str, Moments]]] = {group: {} for group in groups}
        self.tokens: dict[Any, dict[str, None]] = {}  # in the order in which they come
        self.one_place = one_place
        self.units: Mapping[str, Any] = {}

    def add(self, row: Row, kind: str, effects: Float[np.ndarray, " cells"],
            log_effects: Float[np.ndarray, " cells"]) -> None:
        """Count in one comparison's effects of one kind."""
        self.units = row.units
        places = row.places or [("", "")]
        for place, (position, token) in enumerate(places):
            key = self.one_place or position
            self.tokens.setdefault(key, {})[token] = None
            for group in {"", row.group}:
                moments = self.moments[group].setdefault(key, {})
                for scale, values in zip(SCALES, (effects, log_effects)):
                    moments.setdefault(f"{kind}{scale}", Moments()).add(values[place::len(places)])

    def table(self) -> pd.DataFrame:
        """A row per group, unit and position."""
        tables = []
        for group, of_positions in self.moments.items():
            pieces = []
            for position in sorted(of_positions):
                moments, tokens = of_positions[position], self.tokens[position]
                place = {"position": position, "token": joined(tokens)}
                values = {f"{name}_{part}": value for name, moment in moments.items()
                          for part, value in (("mean", moment.mean), ("std", moment.deviation))}
                pieces.append(pd.DataFrame({
                    "group": group or "all", **self.units, **(place if position != "" else {}), **values,
                    "comparisons": next(iter(moments.values())).count}))
            # units in their order, positions fastest
            tables.append(pd.concat(pieces).sort_index(kind="stable"))
        return pd.concat(tables, ignore_index=True)


def joined(tokens: Collection[str]) -> str:
    """The tokens that several comparisons have at one position: two of them, and whether there are more."""
    return SEVERAL.join([*list(tokens)[:2], *(["..."] if len(tokens) > 2 else [])])


def read_pieces(path: str | Path, mediator: str, position: str = "") -> Iterator[Piece]:
    """Pieces of the tidy table from the table of one mediator, comparison by comparison.

    The file has effects, and no log odds of the null prompt: these follow from the unit whose effect is
    nearest to 0. A unit without any effect gives them exactly.

    Args:
        mediator: what the table is of; position: where in the prompt it was replaced, if the table does not
            say.

    Raises:
        InputError: a file that is no such table; a cell that is not a number or a probability; comparisons
            that do not have the same units, or whose rows do not stand together.
    """
    header = check_columns(path, [*COMPARISON, "layer"], REMEDY)
    kinds = KINDS[2:] if any("_ablation_" in f"_{name}" for name in header) else EFFECTS
    written = [name for kind in kinds
               for name in (f"candidate1_{kind}_prob", f"candidate2_{kind}_prob", f"{kind}_effect")]
    check_columns(path, [*COMPARISON, "layer", *written], REMEDY)
    names = header[header.index("layer") + 1:header.index(written[0])]
    places = [name for name in PLACE if name in names]
    names = [name for name in names if name not in places]
    if len(names) > 1:
        raise InputError(f"{path}: columns {', '.join(names)} stand between layer and {written[0]}, at most "
                         f"one names a unit: {REMEDY}")
    methods = [f"{kind}_method" for kind in kinds if f"{kind}_method" in header]
    units, comparisons = None, set()
    for (stimulus, group, alternative), rows in _comparisons(path, [*names, *written], [*places, *methods]):
        if (stimulus, alternative) in comparisons:
            raise InputError(f"{path}: rows of {stimulus!r}, {alternative!r} do not stand together: {REMEDY}")
        comparisons.add((stimulus, alternative))
        cells = rows[["layer", *names, *places[:1]]]
        own = rows[["layer", *names]].drop_duplicates().reset_index(drop=True)
        units = own if units is None else units
        number = len(cells[places[:1]].drop_duplicates()) if places else 1  # of positions
        if cells.duplicated().any() or len(cells) != number * len(own) or not own.equals(units):
            raise InputError(f"{path}: {stimulus!r}, {alternative!r} does not have the same units as the "
                             f"others, once each: {REMEDY}")
        under = {kind: np.asarray(log_odds(rows[f"candidate2_{kind}_prob"], rows[f"candidate1_{kind}_prob"]))
                 for kind in kinds}
        stored = {kind: rows[f"{kind}_effect"].to_numpy(float) for kind in kinds}
        base = _base_log_odds(np.concatenate(list(under.values())), np.concatenate(list(stored.values())))
        for kind in kinds:
            method = rows[f"{kind}_method"].to_numpy(object) if f"{kind}_method" in methods else "exact"
            yield Piece(f"{stimulus} | {alternative}", stimulus, mediator,
                        rows["position"].to_numpy(object) if places else position, kind,
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
    """A table of means, of total effects or a summary. Words such as "null" or "NA" stay words; a deviation
    of one comparison is not a number.

    Raises:
        InputError: a file that cannot be read as what its ending says.
    """
    deviations = {f"{kind}{scale}_std": [""] for kind in KINDS for scale in SCALES}
    try:
        if Path(path).suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, keep_default_na=False, na_values=deviations,
                           dtype=dict.fromkeys(TEXTS, str))
    except Exception as error:  # a damaged file raises whatever its bytes happen to say
        raise unreadable(path, error) from error


def unit_column(means: pd.DataFrame) -> str | None:
    """The column of a table of means that names a unit within its layer; None: a whole layer is one unit."""
    after = str(means.columns[list(means).index("layer") + 1])
    return None if after in PLACE or after.endswith("_mean") else after


def screening_of(entry: Mapping[str, Any], top: int | None) -> Screening | None:
    """The Screening that a screened table's entry in the manifest supports; None for others."""
    if "screen" not in entry or top is None:
        return None
    missed = entry["screen"]["missed"]
    return Screening(entry["screen"]["drawn"], missed if isinstance(missed, int) else len(missed),
                     entry["screen"]["rest"], top)

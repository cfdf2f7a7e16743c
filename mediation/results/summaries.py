"""What the tables of a question of one's own are worth: the summary of units, and of total effects.

Everything that a summary says comes from the tables of effects and of total effects; see
`mediation.effects.unit_summaries` for its columns. One set of draws serves all mediators.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from mediation.effects.decomposition import Decomposition
from mediation.effects.odds import log_odds
from mediation.effects.resampling import Resampling
from mediation.effects.sign_flips import SignFlips
from mediation.effects.stability import Halves
from mediation.effects.unit_summaries import EffectMap, summarise
from mediation.files.storage import write_csv
from mediation.results.mediation_tables import read_pieces
from mediation.results.tables import table_writer
from mediation.results.tidy import Piece

ALL = "all"  # what the group of every comparison is called


@dataclass(frozen=True)
class Summary:
    """`units`: the table, a row per group, mediator, kind of effect, unit and position, in the order of the
    tables; `totals`: the mean total effect of every group; `tests`: by (group, kind of effect), of the whole
    family; `halves`: by (group, kind, mediator)."""

    units: pd.DataFrame
    totals: pd.DataFrame
    tests: dict[tuple[str, str], SignFlips]
    halves: dict[tuple[str, str, str], Halves]


@dataclass(frozen=True)
class Row:
    """Log odds ratios of one comparison and kind of effect, [units, places]; `places`: their positions."""

    stimulus: str
    comparison: str
    group: str
    places: tuple[str, ...]
    values: Float64[np.ndarray, "units places"]


def with_log_odds(totals: pd.DataFrame) -> pd.DataFrame:
    """The table of total effects with log odds on both prompts, and their difference `log_effect`."""
    base, alternative = (log_odds(totals[f"candidate2_{prompt}_prob"], totals[f"candidate1_{prompt}_prob"])
                         for prompt in ("base", "alt"))
    return totals.assign(log_odds_base=base, log_odds_alt=alternative, log_effect=alternative - base)


def summary(totals: pd.DataFrame, tables: Mapping[str, tuple[Path, str]], clusters: Mapping[str, str],
            seed: int = 0) -> Summary:
    """Summary of the tables of a run folder.

    Args:
        totals: table of `with_log_odds`; tables: {mediator: (its table, what the one place of every
            comparison is called, or "")}; clusters: {id of a stimulus: what it depends on}; seed: of draws
            and flips.
    """
    names, number = np.unique([clusters[stimulus] for stimulus in totals["id"]], return_inverse=True)
    number_of = dict(zip(totals["id"], number))
    draws = Resampling({"stimuli": [str(name) for name in names]}, seed=seed)
    total_of = dict(zip(zip(totals["id"], totals["id"] + " | " + totals["alternative"]),
                        totals["log_effect"]))
    maps: dict[tuple[str, str], list[tuple[str, EffectMap]]] = {}
    for mediator, (path, one_place) in tables.items():
        for (group, kind), of_kind in _maps(path, mediator, one_place, number_of, draws, total_of):
            maps.setdefault((group, kind), []).append((mediator, of_kind))
    found: list[pd.DataFrame] = []
    tests: dict[tuple[str, str], SignFlips] = {}
    of_halves: dict[tuple[str, str, str], Halves] = {}
    for (group, kind), family in maps.items():
        mediators = list(dict.fromkeys(mediator for mediator, _ in family))
        name = f"{kind} effects of {', '.join(mediators)}" + ("" if group == ALL else f", group {group}")
        of_family = summarise([each for _, each in family], name, seed=seed)
        found.append(of_family.table)
        tests[group, kind] = of_family.tests
        of_halves |= {(group, kind, mediator): of_map
                      for mediator, of_map in zip(mediators, of_family.halves)}
    units = pd.concat(found, ignore_index=True) if found else pd.DataFrame()
    return Summary(units, _of_totals(totals, number, draws), tests, of_halves)


def write_units(path: str | Path, units: pd.DataFrame) -> None:
    """The rows of one mediator as a CSV or parquet file; without a unit or a position where none has one."""
    columns = units.drop(columns="mediator")
    idle = [name for name in ("unit", "position") if columns[name].isin(["", pd.NA]).all()]
    columns = columns.drop(columns=idle).infer_objects()
    if columns["layer"].dtype == object:  # "all" is one of them
        columns["layer"] = columns["layer"].astype(str)
    if Path(path).suffix == ".csv":
        write_csv(Path(path), columns)
        return
    with table_writer(path) as append:
        append({name: columns[name].to_numpy() for name in columns})


def _of_totals(totals, number, draws):
    """A row per group: the mean log odds ratio with its interval, and 2020's mean beside it."""
    rows = []
    for group, chosen in _groups(totals["group"]).items():
        values = totals["log_effect"].to_numpy(float)[chosen]
        resampling = draws.of(number[chosen])
        both = np.column_stack([values, np.expm1(values)])
        low, high = resampling.of_means(both)
        rows.append({"group": group, "comparisons": len(values),
                     "clusters": resampling.clusters["stimuli"],
                     "mean": both[:, 0].mean(), "low": low[0], "high": high[0], "median": np.median(values),
                     "effect_mean": both[:, 1].mean(), "effect_low": low[1], "effect_high": high[1],
                     "share_above_0": (values > 0).mean()})
    return pd.DataFrame(rows)


def _groups(groups: Iterable[str]) -> dict[str, np.ndarray]:
    """{name: which rows}: all, then each group where there are several; what has no name is no group."""
    names = np.asarray(list(groups), object)
    found = {ALL: np.ones(len(names), bool)}
    if len(set(names)) > 1:
        found |= {group: names == group for group in dict.fromkeys(names) if group}
    return found


def _maps(path, mediator, one_place, number_of, draws,
          total_of) -> Iterator[tuple[tuple[str, str], EffectMap]]:
    """((group, kind), map) of one table: comparisons that have the same positions go together."""
    kinds, units = _rows_of(read_pieces(path, mediator), one_place)
    for kind, rows in _with_parts(kinds, total_of):
        labels = dict.fromkeys(place for row in rows for place in row.places)
        alike: dict[tuple[bool, ...], list[str]] = {}
        for label in labels:
            alike.setdefault(tuple(label in row.places for row in rows), []).append(label)
        for group, members in _groups(row.group for row in rows).items():
            for having, places in alike.items():
                chosen = list(compress(rows, members & np.array(having)))
                if chosen:
                    yield (group, kind), _map(chosen, places, units, mediator, group, kind,
                                              number_of, draws, total_of)


def _rows_of(pieces: Iterable[Piece], one_place: str) -> tuple[dict[str, list[Row]], pd.DataFrame]:
    """({kind: rows}, units without their positions)."""
    kinds: dict[str, list[Row]] = {}
    units = pd.DataFrame()
    for piece in pieces:
        several = not isinstance(piece.position, str)
        places = tuple(dict.fromkeys(map(str, piece.position))) if several else (str(piece.position),)
        if units.empty:
            own = slice(None, None, len(places))
            layer, unit = piece.layer[own], [pd.NA] if piece.unit is None else piece.unit[own]
            units = pd.DataFrame({"layer": layer.astype(object),
                                  "unit": pd.array(unit if piece.unit is not None else unit * len(layer),
                                                   dtype="Int64")})
        values = (piece.log_odds - piece.log_odds_base).reshape(-1, len(places))
        kinds.setdefault(piece.kind, []).append(
            Row(piece.cluster, piece.comparison, piece.group, (one_place,) if one_place else places, values))
    return kinds, units


def _with_parts(kinds, total_of):
    """(kind, rows), with the parts of the total effect that follow where both effects are there; one at a
    time, for each is as large as an effect."""
    yield from kinds.items()
    if set(kinds) != {"indirect", "direct"}:
        return
    for part in ("total_indirect", "interaction"):
        rows = []
        for indirect, direct in zip(kinds["indirect"], kinds["direct"]):
            total = np.array([total_of[indirect.stimulus, indirect.comparison]])
            of = Decomposition(total, direct.values.reshape(1, -1), indirect.values.reshape(1, -1))
            rows.append(replace(indirect, values=getattr(of, part).reshape(indirect.values.shape)))
        yield part, rows


def _map(rows, places, units, mediator, group, kind, number_of, draws, total_of) -> EffectMap:
    """Effects at `places`, which all rows have."""
    values = np.stack([row.values[:, [row.places.index(place) for place in places]].ravel() for row in rows])
    named = units.loc[units.index.repeat(len(places))].reset_index(drop=True)
    # an ablation has no alternative, though one could be called as the values that it puts in
    totals = None
    if kind != "ablation":
        totals = np.array([total_of[row.stimulus, row.comparison] for row in rows])
    labels: dict[str, Any] = {"group": group, "mediator": mediator, "effect": kind}
    return EffectMap(values, draws.of(np.array([number_of[row.stimulus] for row in rows])),
                     named.assign(position=places * len(units)), labels, totals)

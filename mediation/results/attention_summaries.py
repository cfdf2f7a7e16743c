"""What the numbers of a JSON of the attention study are worth: its examples are drawn again by their
occupations, its units tested and ranked, its total effect taken apart.

Heads, layers and the whole model ("all") are one family of tests for each kind of effect. Beside the two
kinds of a file stands the *total indirect* effect, total - direct: what holding the unit takes away.

>>> study = summarise_study(read_results("attention_intervention_gpt2_filtered_dev.json")["results"])
>>> study.table("heads")
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from mediation.effects.decomposition import Decomposition
from mediation.effects.resampling import Interval, Resampling
from mediation.effects.unit_summaries import EffectMap, UnitSummary, summarise
from mediation.errors import InputError
from mediation.files.storage import write_csv
from mediation.results.attention_results import EFFECTS, cluster_of, label_of, pieces_of
from mediation.results.tidy import Units, side_by_side
from mediation.stimuli.occupations import occupations_in

MEDIATORS = ("heads", "layers")
CLUSTERS = "occupations"


@dataclass(frozen=True)
class StudySummary:
    """One JSON. `decomposition`: of the whole model; `maps`: {kind: {mediator: log effects}}; `units`:
    {kind: summary of both mediators, heads first}; `unnamed`: examples whose context names no occupation."""

    resampling: Resampling
    decomposition: Decomposition
    maps: dict[str, dict[str, EffectMap]]
    units: dict[str, UnitSummary]
    unnamed: int

    def table(self, mediator: str, kinds: Sequence[str] | None = None) -> pd.DataFrame:
        """Summary of a mediator's units, see `mediation.effects.unit_summaries`; a kind's rows in the order
        of the units."""
        parts = [self.units[kind].table for kind in kinds or self.units]
        table = pd.concat([part[part["mediator"] == mediator] for part in parts], ignore_index=True)
        return table.drop(columns="mediator")

    @property
    def clusters(self) -> int:
        """How many clusters the examples are in."""
        return self.resampling.clusters[CLUSTERS]

    def interval(self, mediator: str, kind: str) -> Interval:
        """Of the mean odds ratio minus 1 of every unit."""
        table = self.table(mediator, [kind])
        return table["effect_low"].to_numpy(float), table["effect_high"].to_numpy(float)

    def unsure(self, mediator: str, kind: str) -> Bool[np.ndarray, "U"]:
        """Units whose interval holds 0, or that have none."""
        low, high = self.interval(mediator, kind)
        return ~((low > 0) | (high < 0))


def clusters_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cluster of each example, see `attention_results.cluster_of`."""
    return [cluster_of(entry, number) for number, entry in enumerate(results)]


def resampling_of(results: Sequence[Mapping[str, Any]]) -> Resampling:
    """2,000 draws of the clusters of one file's examples."""
    return Resampling({CLUSTERS: clusters_of(results)})


def shared_resampling(files: Sequence[Sequence[Mapping[str, Any]]]) -> list[Resampling]:
    """One set of draws for the examples of several files: an example of the same occupations is drawn as
    often in each."""
    clusters = [clusters_of(results) for results in files]
    joint = Resampling({CLUSTERS: [name for of_file in clusters for name in of_file]})
    file = np.repeat(np.arange(len(files)), list(map(len, clusters)))
    return [joint.of(file == number) for number in range(len(files))]


def log_totals(results: Sequence[Mapping[str, Any]]) -> Float64[np.ndarray, "N"]:
    """Total effects, log odds ratios."""
    odds = np.array([[entry["odds_base"], entry["odds_alt"]] for entry in results], np.float64)
    return np.log(odds[:, 1]) - np.log(odds[:, 0])


def log_effects(results: Sequence[Mapping[str, Any]], mediator: str, kind: str) -> Units:
    """Log odds ratios of "heads", or of "layers" with the whole model behind them, in every example.

    Raises:
        InputError: an odds ratio of 0, which has no logarithm.
    """
    units = side_by_side(pieces_of(results, effect_types=[kind]), mediator, kind, log=True)
    if not np.isfinite(units.effects).all():
        example = int(np.argmin(np.isfinite(units.effects).all(axis=1)))
        raise InputError(f"results[{example}]: a {kind} effect is -1, an odds ratio of 0, which has no "
                         "logarithm: write the file again, with --dtype float64")
    return units


def effect_map(results: Sequence[Mapping[str, Any]], mediator: str, kind: str,
               resampling: Resampling) -> EffectMap:
    """Log effects of one kind: of EFFECTS, or "total_indirect"."""
    units = log_effects(results, mediator, "indirect" if kind == "indirect" else "direct")
    totals = log_totals(results)
    values = totals[:, None] - units.effects if kind == "total_indirect" else units.effects
    number = pd.NA if units.unit is None else units.unit
    names = pd.DataFrame({"layer": units.layer, "unit": number, "position": "context"})
    labels = {"mediator": mediator, "group": "all", "effect": kind}
    return EffectMap(values, resampling, names, labels, totals)


def summarise_study(results: Sequence[Mapping[str, Any]]) -> StudySummary:
    """All of it, from the entries of `read_results`."""
    resampling = resampling_of(results)
    maps = {kind: {mediator: effect_map(results, mediator, kind, resampling) for mediator in MEDIATORS}
            for kind in (*EFFECTS, "total_indirect")}
    units = {kind: summarise(list(of_kind.values()), f"{kind} effects of heads and layers")
             for kind, of_kind in maps.items()}
    unnamed = sum(not occupations_in(entry["base_string1"]) for entry in results)
    # the attention weights of the whole model replaced or held
    model = {kind: maps[kind]["layers"].values[:, -1:] for kind in EFFECTS}
    of_model = Decomposition(log_totals(results), model["direct"], model["indirect"])
    return StudySummary(resampling, of_model, maps, units, unnamed)


def write_summaries(path: str | Path, content: Mapping[str, Any], study: StudySummary) -> list[Path]:
    """{M}_{filter}_{split or stat}_{heads,layers}_summary.csv beside a JSON; returns their paths.

    `content`: of the JSON at `path`.
    """
    label = label_of(path, content.get("stat"))
    return [write_csv(Path(path).with_name(f"{label}_{mediator}_summary.csv"), study.table(mediator))
            for mediator in MEDIATORS]

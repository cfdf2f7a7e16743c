"""Several models on the same examples: means, differences, trend over size, overlap of the strongest units.

Examples are lined up, a row for each that any model has; all numbers come from one set of draws of their
clusters, so that a difference of two models has an interval of its own.

Symbols in shapes: N examples, D draws, U units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from mediation.effects.resampling import Resampling, interval
from mediation.effects.stability import TOP, strongest
from mediation.errors import InputError

LOG, ODDS, SHARE = "log odds ratio", "odds ratio - 1", "share of the total"
EVERY = "all"  # of the groups
AT_ONCE = 4_000_000  # numbers in memory
QUARTERS = 4
FEW = 4 * TOP  # units: of fewer, the strongest are no selection
COLUMNS = ("study", "group", "what", "quantity", "scale", "model", "other", "value", "low", "high", "above_0",
           "by_chance", "examples", "clusters")
RANDOM_SETS = 2000  # for what overlaps by chance
MILLIONS = {"distilgpt2": 82.0, "gpt2": 124.0, "gpt2-medium": 355.0, "gpt2-large": 774.0, "gpt2-xl": 1558.0,
            "smollm2-135m": 135.0}  # parameters
CONTROL = "_random"  # behind the name of a model with random weights


@dataclass(frozen=True)
class UnitMap:
    """Log effects of one mediator, a row per example, or one row of means; `units`: columns layer and what
    else names a unit."""

    values: Float64[np.ndarray, "N U"]
    units: pd.DataFrame


@dataclass(frozen=True)
class Measured:
    """What one model says of one set of examples.

    `examples`: what tells them in every model's file; `factors`: their clusters, as of `Resampling`; `total`:
    log odds ratios; `indirect`, `direct`: the same of all attention weights at once, NaN or None where they
    were not run; `maps`: {mediator and kind of effect: UnitMap}.
    """

    study: str
    model: str
    examples: list[str]
    factors: Mapping[str, Sequence[str]]
    groups: Sequence[str]
    total: Float64[np.ndarray, "N"]
    indirect: Float64[np.ndarray, "N"] | None = None
    direct: Float64[np.ndarray, "N"] | None = None
    maps: Mapping[str, UnitMap] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantity:
    """A ratio of means over examples; of a mean, `below` is 1. {model: of all examples, NaN where it lacks
    them}."""

    name: str
    scale: str
    above: Mapping[str, Float64[np.ndarray, "N"]]
    below: Mapping[str, Float64[np.ndarray, "N"]]

    def known(self, model: str) -> Bool[np.ndarray, "N"]:
        """The examples that a model has."""
        return ~np.isnan(self.above[model])


class Comparison:
    """The models of one study, examples lined up.

    Args:
        measured: one per model; places: {model: where it stands on the axis of the trend}, of those that are
            in it (`trend_places`).

    Attributes:
        measured: {model: what it says}, in the order of the axis, then those that are not on it, controls
            last.
        places: in that order.
    """

    def __init__(self, measured: Sequence[Measured], places: Mapping[str, float], seed: int = 0) -> None:
        self.places = dict(sorted(places.items(), key=lambda item: item[1]))
        last = len(places), len(places) + 1
        order = {model: number for number, model in enumerate(self.places)}
        self.measured = {each.model: each for each in sorted(
            measured, key=lambda each: order.get(each.model, last[each.model.endswith(CONTROL)]))}
        rows: dict[str, tuple] = {}
        for each in measured:
            for place, example in enumerate(each.examples):
                rows.setdefault(example, (each.groups[place],
                                          *(of_rows[place] for of_rows in each.factors.values())))
        self.examples = {example: number for number, example in enumerate(rows)}
        groups, *of_factors = zip(*rows.values())
        self.groups = np.array(groups, object)
        self.resampling = Resampling(dict(zip(measured[0].factors, of_factors)), seed=seed)

    @property
    def study(self) -> str:
        """What was asked of all of them."""
        return next(iter(self.measured.values())).study

    def lined_up(self, model: str, values: Float64[np.ndarray, "n ..."]) -> Float64[np.ndarray, "N ..."]:
        """A model's values in the rows of all examples; NaN where it has none."""
        found = np.full((len(self.examples), *values.shape[1:]), np.nan)
        found[[self.examples[example] for example in self.measured[model].examples]] = values
        return found

    def quantities(self) -> list[Quantity]:
        """On the log scale, as shares of the mean total effect, and as 2020 has them."""
        parts = {"total effect": {model: self.lined_up(model, each.total)
                                  for model, each in self.measured.items()}}
        for name in ("indirect", "direct"):
            parts[f"{name}, model"] = {
                model: self.lined_up(model, values) for model, each in self.measured.items()
                if (values := getattr(each, name)) is not None}
        total, indirect, direct = parts.values()
        ones = {model: np.ones(len(self.examples)) for model in self.measured}
        found = [Quantity(name, LOG, of_models, ones) for name, of_models in parts.items()]
        held = {model: total[model] - values for model, values in direct.items()}
        found += [Quantity("proportion mediated", SHARE, held, total),
                  Quantity("indirect / total", SHARE, indirect, total)]
        found += [Quantity(name, ODDS, {model: np.expm1(values) for model, values in of_models.items()}, ones)
                  for name, of_models in parts.items()]
        return [each for each in found if each.above]

    @property
    def controls(self) -> list[str]:
        """The models with random weights."""
        return [model for model in self.measured if model.endswith(CONTROL)]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What is taken from what: each model from all after it, a control from its own model."""
        models = [model for model in self.measured if model not in self.controls]
        return [*combinations(models, 2), *((control, model) for control in self.controls
                                            if (model := control.removesuffix(CONTROL)) in models)]

    @property
    def common(self) -> int:
        """How many examples all models of the trend have."""
        return len(set.intersection(*(set(self.measured[model].examples) for model in self.places)))

    def estimate(self, quantity: Quantity, model: str,
                 rows: Bool[np.ndarray, "N"]) -> tuple[float, Float64[np.ndarray, "D"]]:
        """The value over these rows, and in every draw; NaN in all draws where there is one cluster, and
        where the mean below may be 0."""
        above, below = quantity.above[model][rows], quantity.below[model][rows]
        of_rows = self.resampling.of(rows)
        draws = np.full(len(of_rows.weights), np.nan)
        if max(of_rows.clusters.values()) > 1:
            draws = of_rows.ratios(above[:, None], below)[0]
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(above.sum() / below.sum()), draws

    def table(self, seed: int = 0) -> pd.DataFrame:
        """All numbers, a row each.

        | column | what it holds |
        | --- | --- |
        | study, group | examples; "all" for every group |
        | what | mean, of a model's own examples; mean, common: of those that all models with a size have; |
        | | difference (on the examples that both have), of groups; trend; overlap; correlation of maps |
        | quantity, scale | total effect ...; log odds ratio, odds ratio - 1, share |
        | model, other | model or group, and what is taken from it |
        | value, low, high | with the 95% interval |
        | above_0 | share of draws above 0: of a trend those in which every step is |
        | by_chance | overlap of sets drawn at random |
        | examples, clusters | over how many |
        """
        rows = [row for quantity in self.quantities()
                for row in [*self._means(quantity), *self._differences(quantity), *self._trend(quantity)]]
        return pd.DataFrame([*rows, *self._overlaps(np.random.default_rng(seed))], columns=list(COLUMNS))

    def _row(self, rows, value, draws, **columns):
        (low,), (high,) = interval(draws[:, None])
        known = draws[~np.isnan(draws)]
        return {"study": self.study, "group": EVERY, "other": "", "value": value, "low": low, "high": high,
                "above_0": (known > 0).mean() if len(known) else np.nan, "by_chance": np.nan,
                "examples": int(rows.sum()), "clusters": len(np.unique(self.resampling.first[rows])),
                **columns}

    def _means(self, quantity):
        """Of every model and group; groups against each other."""
        name = {"quantity": quantity.name, "scale": quantity.scale}
        groups = sorted(set(self.groups) - {""})
        for model in quantity.above:
            known = quantity.known(model)
            yield self._row(known, *self.estimate(quantity, model, known), what="mean", model=model, **name)
            inside = {group: known & (self.groups == group) for group in groups if len(groups) > 1}
            for group, rows in inside.items():
                rest = known & ~rows
                if rows.any() and rest.any():
                    (value, draws), (other, of_rest) = (self.estimate(quantity, model, part)
                                                        for part in (rows, rest))
                    yield self._row(rows, value, draws, what="mean", model=model, group=group, **name)
                    yield self._row(known, value - other, draws - of_rest, what="difference of groups",
                                    model=model, group=group, other="the other groups", **name)

    def _differences(self, quantity):
        """On the examples that both have."""
        for earlier, later in self.pairs:
            if not {earlier, later} <= quantity.above.keys():
                continue
            rows = quantity.known(earlier) & quantity.known(later)
            if rows.any():
                (before, of_before), (after, of_after) = (self.estimate(quantity, model, rows)
                                                          for model in (earlier, later))
                yield self._row(rows, after - before, of_after - of_before, what="difference", model=later,
                                other=earlier, quantity=quantity.name, scale=quantity.scale)

    def _trend(self, quantity):
        """Least squares over size, on the examples that all models with a size have, and their means
        there."""
        models = [model for model in self.places if model in quantity.above]
        name = {"quantity": quantity.name, "scale": quantity.scale}
        rows = np.all([quantity.known(model) for model in models], axis=0) if len(models) > 1 else np.zeros(0)
        if not rows.any():
            return
        values, draws = map(np.array, zip(*(self.estimate(quantity, model, rows) for model in models)))
        for model, value, of_model in zip(models, values, draws):
            yield self._row(rows, value, of_model, what="mean, common", model=model, **name)
        places = np.array([self.places[model] for model in models])
        slope = (places - places.mean()) / ((places - places.mean()) ** 2).sum()
        known = ~np.isnan(draws).any(axis=0)
        growing = (np.diff(draws[:, known], axis=0) > 0).all(axis=0).mean() if known.any() else np.nan
        yield self._row(rows, float(slope @ values), slope @ draws, what="trend", model=", ".join(models),
                        above_0=growing, **name)

    def _overlaps(self, generator):
        """Of the strongest units of two models, and correlations of their maps."""
        for earlier, later in self.pairs:
            maps = self.measured[earlier].maps, self.measured[later].maps
            for name in (name for name in maps[0] if name in maps[1]):
                yield from self._overlap(name, earlier, later, maps[0][name], maps[1][name], generator)

    def _overlap(self, name, earlier, later, first, second, generator):
        of_means = len(first.values) == len(second.values) == 1
        lined = [each.values if of_means else self.lined_up(model, each.values)
                 for model, each in ((earlier, first), (later, second))]
        rows = ~(np.isnan(lined[0]).any(axis=1) | np.isnan(lined[1]).any(axis=1))
        if not rows.any():
            return
        means = [values[rows].mean(axis=0) for values in lined]
        same = first.units.equals(second.units)
        places = [np.arange(len(each.units)) if same else quarters(each.units) for each in (first, second)]
        overlap, correlations = [], []
        for drawn in self._drawn_means(lined, rows, of_means):
            overlap += [shared(*pair, *places) for pair in zip(*drawn)]
            correlations += [correlation(*pair) for pair in zip(*drawn)] if same else []
        columns = {"model": later, "other": earlier}
        every = rows if not of_means else np.zeros(len(self.examples), bool)
        if min(map(len, means)) >= FEW:
            chance = TOP / len(first.units) if same else by_chance(places, generator)
            yield self._row(every, shared(*means, *places), np.array(overlap), what="overlap",
                            quantity=f"strongest {TOP} of {name}", by_chance=chance, **columns,
                            scale="share of units" if same else "share, by quarter of the depth")
        if same:
            yield self._row(every, correlation(*means), np.array(correlations), what="correlation of maps",
                            quantity=name, scale="Pearson", **columns)

    def _drawn_means(self, lined, rows, of_means):
        """Pairs of means [some draws, U] of both models."""
        if of_means:
            yield [np.full((1, values.shape[1]), np.nan) for values in lined]
            return
        weights = self.resampling.weights[:, rows]
        weights = weights[weights.any(axis=1)]
        step = max(1, AT_ONCE // max(values.shape[1] for values in lined))
        for start in range(0, len(weights), step):
            some = weights[start:start + step]
            yield [some @ values[rows] / some.sum(axis=1)[:, None] for values in lined]


def quarters(units: pd.DataFrame) -> np.ndarray:
    """Which quarter of the model's depth each unit lies in."""
    layers, number = np.unique(units["layer"].to_numpy(), return_inverse=True)
    return (QUARTERS * (number + 0.5) / len(layers)).astype(int)


def shared(first: np.ndarray, second: np.ndarray, places: np.ndarray, other_places: np.ndarray) -> float:
    """Share of the strongest units of two maps that lie in the same places; NaN for unknown maps."""
    if np.isnan(first).any():
        return np.nan
    size = 1 + max(places.max(), other_places.max())
    counts = [np.bincount(of_map[strongest(means, TOP)], minlength=size)
              for means, of_map in ((first, places), (second, other_places))]
    return float(np.minimum(*counts).sum() / TOP)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's of two maps; NaN where one does not vary."""
    return float(np.corrcoef(first, second)[0, 1]) if np.ptp(first) and np.ptp(second) else np.nan


def by_chance(places: Sequence[np.ndarray], generator: np.random.Generator) -> float:
    """The mean of `shared` for units drawn at random."""
    drawn = [generator.multivariate_hypergeometric(np.bincount(of_map, minlength=QUARTERS), TOP, RANDOM_SETS)
             for of_map in places]
    return float(np.minimum(*drawn).sum(axis=1).mean() / TOP)


def trend_places(models: Sequence[str], millions: Mapping[str, float]) -> tuple[dict[str, float], str]:
    """({model: where it stands on the axis of a trend}, what a step of it is): doublings of parameters where
    any is known, of those that are; else the order of the models. Controls have no place."""
    models = [model for model in models if not model.endswith(CONTROL)]
    known = {model: float(np.log2(millions[model])) for model in models if model in millions}
    if known:
        return known, "per doubling of the parameters"
    return {model: float(number) for number, model in enumerate(models)}, "per step in the order given"


def of_studies(measured: Sequence[Measured]) -> dict[str, list[Measured]]:
    """By what was asked, in the order in which it comes.

    Raises:
        InputError: one model twice.
    """
    found: dict[str, list[Measured]] = {}
    for each in measured:
        others = found.setdefault(each.study, [])
        if each.model in [other.model for other in others]:
            raise InputError(f"{each.study}: there are two results of {each.model}: name one of the two")
        others.append(each)
    return found


def check_comparable(studies: Mapping[str, Sequence[Measured]]) -> None:
    """Raises InputError: one model per study, without groups."""
    if not any(len(models) > 1 or len({*models[0].groups} - {""}) > 1 for models in studies.values()):
        (first, *_), *_ = studies.values()
        raise InputError(f"only {first.model} and no groups of examples: name the results of two models that "
                         "were asked the same")

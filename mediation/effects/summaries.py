"""Effects summed up: means, deviations and errors of units, layers, groups and neurons over prompts.

Every standard deviation is a sample's (divided by n - 1), as the columns `*_std` of 2020's aggregates.
"""

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int, Shaped
from numpy.typing import ArrayLike

from mediation.effects.decomposition import Decomposition
from mediation.effects.estimands import RatedWord
from mediation.effects.odds import Numbers, gender_contrast, odds_ratio
from mediation.effects.resampling import Resampling
from mediation.effects.unit_summaries import EffectMap
from mediation.errors import InputError


class Moments:
    """Mean and sample standard deviation of arrays that come one by one and are not stored (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Numbers | float = 0.0
        self._squares: Numbers | float = 0.0

    def add(self, values: Numbers) -> None:
        """Add one array; all must have one shape."""
        self.count += 1
        step = values - self.mean
        self.mean = self.mean + step / self.count
        self._squares = self._squares + step * (values - self.mean)

    @property
    def deviation(self) -> Numbers:
        """Sample standard deviation (divided by n - 1); NaN for one array."""
        if self.count < 2:
            return np.full_like(self.mean, np.nan)
        return np.sqrt(self._squares / (self.count - 1))


def sample_deviation(values: Float[np.ndarray, "N ..."]) -> Numbers:
    """Sample standard deviation over the first axis (divided by N - 1); NaN for one row."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.full_like(values[0], np.nan)


def standard_error(deviation: ArrayLike, count: ArrayLike) -> Float64[np.ndarray, "..."]:
    """Standard error of a mean over `count` independent values, from their sample standard deviation."""
    return np.asarray(np.asarray(deviation, np.float64) / np.sqrt(np.asarray(count, np.float64)))


def means_of_units(effects: Float64[np.ndarray, "N U"]) -> Float64[np.ndarray, "U"]:
    """Mean effect of every unit over N comparisons."""
    return effects.mean(axis=0)


def ranked_units(
    effects: Float64[np.ndarray, "N U"], names: Mapping[str, Shaped[np.ndarray, "U"]],
) -> pd.DataFrame:
    """Units by their mean effect, largest first: the columns of `names`, which name them, then mean, standard
    deviation, share above 0."""
    table = pd.DataFrame({**names, "mean": means_of_units(effects),
                          "standard deviation": sample_deviation(effects),
                          "share above 0": (effects > 0).mean(axis=0)})
    return table.sort_values("mean", ascending=False, ignore_index=True)


def strongest_means(means: pd.DataFrame, column: str, share: float | None) -> Float64[np.ndarray, "L"]:
    """Per layer, in order: the mean size of `column` over the strongest part of its units; with share None
    the value of its one unit, not a number for a layer without.

    Args:
        means: a row per unit, with a column layer; share: part of a layer's units, in (0, 1].
    """
    values = means.groupby("layer")[column]
    if share is None:
        return values.first().reindex(range(means["layer"].max() + 1)).to_numpy(float)
    strongest = values.apply(lambda layer: layer.abs().nlargest(max(1, int(share * len(layer)))).mean())
    return strongest.to_numpy(float)


def over_orders(values: Sequence[Sequence[float]], k: int) -> pd.DataFrame:
    """Mean, smallest and largest objective of random orders after 1 to k units, which are the index."""
    table = pd.DataFrame(values).iloc[:, :k]
    table.columns += 1
    return pd.DataFrame({"mean": table.mean(), "smallest": table.min(), "largest": table.max()})


def largest_and_median(deviations: pd.DataFrame) -> pd.DataFrame:
    """Of every column."""
    return pd.DataFrame({"largest": deviations.max(), "median": deviations.median()})


BOTH, FEMALE, OTHERS = "all", "female-biased", "others"  # groups of professions
LAYERS = ["share", "layer", "neurons", "odds_ratio_indirect_mean", "odds_ratio_indirect_low",
          "odds_ratio_indirect_high"]


class NeuronAggregate:
    """Effects of every neuron over prompts, one prompt after the other.

    Odds ratios are oriented to the anti-stereotypical gender: female-biased professions (bias < 0) he/she
    under the man interventions, all others she/he under the woman interventions. Log odds ratios of every
    prompt are kept, in float32: 4 bytes per prompt, neuron and kind of effect.
    """

    def __init__(self) -> None:
        self.prompts = self.female_biased = 0
        self.layers = self.neurons = np.zeros(0, int)  # of no table yet
        self.indirect, self.direct, self.total, self.contrast = Moments(), Moments(), Moments(), Moments()
        self.kept: list[dict[str, np.ndarray]] = []  # of prompts: {kind of effect: logs of neurons, float32}
        self.labels: list[tuple[str, str, str]] = []  # of prompts: word, template, group
        self.totals: list[float] = []  # log total effects

    def check_units(
        self, path: str | PathLike[str], layers: Int[np.ndarray, "U"], neurons: Int[np.ndarray, "U"],
    ) -> None:
        """Raises InputError when a table does not have the neurons of the tables before it."""
        if not len(self.layers):
            self.layers, self.neurons = layers, neurons
        elif not (np.array_equal(layers, self.layers) and np.array_equal(neurons, self.neurons)):
            raise InputError(f"{path} does not have the same neurons as the tables before it: write it again")

    @staticmethod
    def types_needed(profession: RatedWord) -> tuple[str, str]:
        """The two intervention types that count for a profession."""
        return ("man_direct", "man_indirect") if profession.bias < 0 else ("woman_direct", "woman_indirect")

    def add(
        self, word: str, template: str, profession: RatedWord, alternative: float,
        log_odds_of: Mapping[str, tuple[float, Float64[np.ndarray, "U"]]],
    ) -> None:
        """Add one prompt; log odds are of he over she.

        Args:
            alternative: log odds on the alternative prompt that counts for the profession; log_odds_of: by
                type, log odds without intervention, and with one on each unit.
        """
        direct_type, indirect_type = self.types_needed(profession)
        toward = 1 if profession.bias < 0 else -1
        ratios: list[Numbers] = []
        logs: dict[str, np.ndarray] = {}
        for name, kind, moments in (("indirect", indirect_type, self.indirect),
                                    ("direct", direct_type, self.direct)):
            base, intervened = log_odds_of[kind]
            ratios.append(odds_ratio(toward * intervened, toward * base))
            moments.add(ratios[-1])
            logs[name] = (toward * (intervened - base)).astype(np.float32)
        self.total.add(ratios[0] + ratios[1] - 1)
        if "man_indirect" in log_odds_of and "woman_indirect" in log_odds_of:
            under_man, under_woman = (log_odds_of[f"{gender}_indirect"][1] for gender in ("man", "woman"))
            contrast = gender_contrast(under_man, under_woman)
            self.contrast.add(contrast)
            logs["gender_contrast"] = np.asarray(contrast, np.float32)
        self.kept.append(logs)
        self.labels.append((word, template, FEMALE if profession.bias < 0 else OTHERS))
        self.totals.append(float(toward * (alternative - base)))
        self.prompts += 1
        self.female_biased += profession.bias < 0

    def effects(self) -> pd.DataFrame:
        """The table of `{M}_neuron_effects.csv`: odds ratios (1 = no effect), sample deviations over
        prompts."""
        table = pd.DataFrame({"neuron_": self._names(), "layer_direct_mean": self.layers.astype(float),
                              "neuron_direct_mean": self.neurons.astype(float)})
        for name, moments in (("odds_ratio_indirect", self.indirect), ("odds_ratio_direct", self.direct),
                              ("total_causal_effect", self.total)):
            table[f"{name}_mean"], table[f"{name}_std"] = moments.mean, moments.deviation
        return table.sort_values("neuron_", ignore_index=True)

    def gender_contrasts(self) -> pd.DataFrame:
        """Half the difference of a neuron's log indirect effects under man and under woman, over prompts."""
        return pd.DataFrame({"neuron_": self._names(), "layer": self.layers, "neuron": self.neurons,
                             "gender_contrast_mean": self.contrast.mean,
                             "gender_contrast_std": self.contrast.deviation, "prompts": self.contrast.count})

    def maps(self) -> Iterator[EffectMap]:
        """Log odds ratios of every kind of effect, of all prompts and by group of professions.

        Beside what was run: total_indirect and interaction, what is left of the total effect
        (`effects.decomposition`), and the gender contrast where both indirect types are. One at a time: a map
        of the whole study takes 370 MB.
        """
        draws, (kinds, names) = self.resampling(), self.kinds_and_groups()
        units = pd.DataFrame({"layer": self.layers, "unit": self.neurons})
        groups = np.array([group for _, _, group in self.labels])
        totals = np.array(self.totals)
        for kind in kinds:
            values = self._values(kind)
            for group in names:
                rows = np.ones(len(groups), bool) if group == BOTH else groups == group
                yield EffectMap(values[rows], draws.of(rows), units, {"group": group, "effect": kind},
                                None if kind == "gender_contrast" else totals[rows])

    def kinds_and_groups(self) -> tuple[list[str], list[str]]:
        """Of `maps`, which are a map of each kind and group."""
        contrast = ["gender_contrast"] if self.contrast.count == self.prompts else []
        both = 0 < self.female_biased < self.prompts
        return ["indirect", "direct", "total_indirect", "interaction", *contrast], [
            BOTH, *([FEMALE, OTHERS] if both else [])]

    def resampling(self) -> Resampling:
        """Draws of professions and templates."""
        words, templates, _ = zip(*self.labels)
        return Resampling({"professions": words, "templates": templates})

    def _values(self, kind):
        """[prompts, U] float64."""
        if kind in ("indirect", "direct", "gender_contrast"):
            return np.stack([logs[kind] for logs in self.kept]).astype(float)
        of = Decomposition(np.array(self.totals), self._values("direct"), self._values("indirect"))
        return getattr(of, kind)

    def top_of_layers(self, effects: pd.DataFrame, shares: Sequence[float]) -> pd.DataFrame:
        """Mean effect of the strongest neurons of each layer, as `top_of_layer` has it, with its interval.

        The neurons are chosen on the same prompts, which the interval does not know of. Columns: LAYERS.
        """
        names, draws = self._names(), self.resampling()
        column = {name: number for number, name in enumerate(names)}
        ratios = np.exp(self._values("indirect"))
        tables = []
        for share in shares:
            table = top_of_layer(effects, share).assign(share=share)
            chosen = [strongest_of_layer(rows, share)["neuron_"].map(column)
                      for _, rows in effects.groupby("layer_direct_mean")]
            means = np.stack([ratios[:, columns].mean(axis=1) for columns in chosen], axis=1)
            low, high = draws.of_means(means)
            tables.append(table.assign(odds_ratio_indirect_low=low, odds_ratio_indirect_high=high)[LAYERS])
        return pd.concat(tables, ignore_index=True)

    def _names(self):
        return [f"{layer}-{neuron}" for layer, neuron in zip(self.layers, self.neurons)]


def top_of_layer(effects: pd.DataFrame, share: float) -> pd.DataFrame:
    """Mean effect of the strongest neurons of each layer.

    Args:
        effects: table of `{M}_neuron_effects.csv`.
        share: part of a layer's neurons, in (0, 1]; at least one neuron is taken, rounding down.

    Returns: table with layer, neurons (how many), and means of odds_ratio_indirect_mean and
        odds_ratio_indirect_std over them.
    """
    rows = []
    for layer, neurons in effects.groupby("layer_direct_mean"):
        top = strongest_of_layer(neurons, share)
        rows.append({"layer": int(layer), "neurons": len(top),
                     "odds_ratio_indirect_mean": top["odds_ratio_indirect_mean"].mean(),
                     "odds_ratio_indirect_std": top["odds_ratio_indirect_std"].mean()})
    return pd.DataFrame(rows)


def strongest_of_layer(neurons: pd.DataFrame, share: float) -> pd.DataFrame:
    """The rows of one layer's strongest neurons by their mean indirect effect; at least one."""
    return neurons.nlargest(max(1, int(share * len(neurons))), "odds_ratio_indirect_mean")


def smallest_reaching(values: Sequence[float], level: float) -> int | None:
    """The least number of units whose objective reaches `level`, None when none does.

    `values`: after 1, 2, ... units.
    """
    return next((number for number, value in enumerate(values, start=1) if value >= level), None)

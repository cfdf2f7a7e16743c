"""From probabilities and effects to the figures that are cited: estimands, correlations, aggregates, errors.

Every estimand carries its formula and its filter: the 2020 study and its scripts average different things
under one name. Every standard deviation is a sample's (divided by n - 1), as the columns `*_std` of 2020's
aggregates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int, Shaped
from numpy.typing import ArrayLike
from scipy import stats

from mediation.effects.odds import Numbers, effect, gender_contrast, log_odds, odds_ratio
from mediation.errors import InputError

LEAST_PROBABILITY = 0.01  # the paper's filter: both candidates above it on the null prompt
RESAMPLES = 2000


@runtime_checkable
class RatedWord(Protocol):
    """A person word and its rating, as `stimuli.professions.Profession` is one."""

    @property
    def bias(self) -> float:
        """Negative = female-biased, positive = male-biased."""

    @property
    def is_definitional(self) -> bool:
        """Whether the word has its gender by definition."""


@dataclass(frozen=True)
class Estimand:
    """One cited number, how it is computed, over which prompts; `interval`: 95%, bootstrap over
    professions."""

    name: str
    formula: str
    filter: str
    value: float
    median: float
    interval: tuple[float, float]
    prompts: int


@dataclass(frozen=True)
class Correlation:
    """Pearson correlations: `r` over prompts, as the 2020 study has it; `r_of_means` over professions.

    A profession counts with the mean over its prompts. `p`: two-sided, of the second correlation: it takes
    professions for independent; the prompts of one profession are not.
    """

    name: str
    filter: str
    r: float
    prompts: int
    r_of_means: float
    p: float
    professions: int


def prompt_effects(
    probabilities: pd.DataFrame, professions: Mapping[str, RatedWord],
) -> tuple[pd.DataFrame, list[str]]:
    """One row per prompt with the ratings of its word, its log odds and its total effects.

    Args:
        probabilities: table of `utils.read_probabilities`; candidate 1 is "he", candidate 2 "she".
        professions: by their words.

    Returns: (table, words without a rating, left out). Added columns: definitional, bias, log_odds (he over
    she, null prompt), log_he_effect (log odds ratio he/she of man's prompt over the null), log_she_effect
    (she/he of woman's over the null), he_effect, she_effect (their exponentials minus 1: total effects, Vig
    et al. 2020, equation 1).
    """
    table = probabilities[probabilities["word"].isin(professions)].copy()
    unrated = sorted(set(probabilities["word"]) - set(professions))
    table["definitional"] = [professions[word].is_definitional for word in table["word"]]
    table["bias"] = [professions[word].bias for word in table["word"]]
    null, man, woman = (log_odds(table[f"candidate1_{prompt}_prob"], table[f"candidate2_{prompt}_prob"])
                        for prompt in ("base", "alt1", "alt2"))
    table["log_odds"] = null
    table["log_he_effect"], table["log_she_effect"] = man - null, null - woman
    table["he_effect"], table["she_effect"] = effect(man, null), effect(-woman, -null)
    return table.reset_index(drop=True), unrated


def estimand(name: str, formula: str, filter_text: str, prompts: pd.DataFrame, effects: ArrayLike,
             by_template: bool = False, seed: int = 0) -> Estimand:
    """Mean of `effects` over the rows of `prompts`: pooled, or of the templates' means. NaN over no
    prompts."""
    effects = np.asarray(effects, np.float64)
    if not len(prompts):
        return Estimand(name, formula, filter_text, np.nan, np.nan, (np.nan, np.nan), 0)
    templates = pd.factorize(prompts["template"])[0] if by_template else np.zeros(len(prompts), int)
    words = pd.factorize(prompts["word"])[0]
    shape = (templates.max() + 1, words.max() + 1)
    sums, counts = np.zeros(shape), np.zeros(shape)  # [templates, words]
    np.add.at(sums, (templates, words), effects)
    np.add.at(counts, (templates, words), 1)
    # professions are drawn with replacement: the prompts of one profession are not independent
    generator, chances = np.random.default_rng(seed), np.full(shape[1], 1 / shape[1])
    draws = generator.multinomial(shape[1], chances, RESAMPLES)  # [resamples, words]
    with np.errstate(invalid="ignore"):
        resampled = np.nanmean((draws @ sums.T) / (draws @ counts.T), axis=1)
    low, high = np.nanpercentile(resampled, [2.5, 97.5]) if shape[1] > 1 else (np.nan, np.nan)
    mean = float((sums.sum(1) / counts.sum(1)).mean())
    return Estimand(name, formula, filter_text, mean, float(np.median(effects)), (low, high), len(prompts))


def total_effects(table: pd.DataFrame) -> list[Estimand]:
    """The estimands of `compute_neuron_total_effect.py`, the paper's first, of a table of
    `prompt_effects`."""
    generic = table[~table["definitional"]]
    likely = generic[_both_likely(generic)]
    female, male = likely[likely["bias"] < 0], likely[likely["bias"] > 0]
    both = pd.concat([female, male])
    paper = "no definitional words, p(he) and p(she) > .01"
    preferred = np.where(generic["log_odds"] > 0, generic["he_effect"], generic["she_effect"])
    return [
        estimand("total effect",
                 "female-biased: odds(he) man/null - 1; male-biased: odds(she) woman/null - 1; mean", paper,
                 both, [*female["he_effect"], *male["she_effect"]]),
        estimand("  of female-biased professions", "odds(he) man/null - 1; mean", f"{paper}, bias < 0",
                 female, female["he_effect"]),
        estimand("  of male-biased professions", "odds(she) woman/null - 1; mean", f"{paper}, bias > 0",
                 male, male["she_effect"]),
        estimand("2020 script's total effect",
                 "null odds(he) > 1: odds(he) man/null - 1; else odds(she) woman/null - 1; "
                 "mean of templates' means",
                 "no definitional words", generic, preferred, True),
        estimand("  male (he) effect", "odds(he) man/null - 1; mean of templates' means",
                 "no definitional words", generic, generic["he_effect"], True),
        estimand("  female (she) effect", "odds(she) woman/null - 1; mean of templates' means",
                 "no definitional words", generic, generic["she_effect"], True),
    ]


def _both_likely(table):
    """The paper's filter, on the null prompt."""
    first, second = table["candidate1_base_prob"], table["candidate2_base_prob"]
    return (first > LEAST_PROBABILITY) & (second > LEAST_PROBABILITY)


def bias_correlations(table: pd.DataFrame) -> list[Correlation]:
    """Correlations of a profession's bias with its log total effects. Argument: table of `prompt_effects`."""
    generic = table[~table["definitional"]]
    filters = ("all prompts", table), ("no definitional words", generic)
    return [_correlation(f"bias with log {gender} effect", text, prompts, f"log_{gender}_effect")
            for gender in ("she", "he") for text, prompts in filters]


def _correlation(name, filter_text, prompts, column):
    means = prompts.groupby("word")[["bias", column]].mean()
    (r, _), (r_of_means, p) = (_pearson(table["bias"], table[column]) for table in (prompts, means))
    return Correlation(name, filter_text, r, len(prompts), r_of_means, p, len(means))


def _pearson(x, y):
    """(r, two-sided p); NaN where there is nothing to correlate."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan
    result = stats.pearsonr(x, y)
    return float(result.statistic), float(result.pvalue)


def split_total_effects(table: pd.DataFrame) -> list[Estimand]:
    """The estimands of `compute_neuron_split_total_effect.py`: total effects by what the model prefers and by
    the stereotype.

    Definitional words left out, both candidates above 0.01 on the null prompt.
    """
    prompts = table[~table["definitional"] & _both_likely(table)]
    splits = {"model": (prompts[prompts["log_odds"] < 0], prompts[prompts["log_odds"] > 0],
                        "null odds(he) below 1", "null odds(he) above 1"),
              "stereotype": (prompts[prompts["bias"] < 0], prompts[prompts["bias"] > 0],
                             "bias < 0", "bias > 0")}
    estimands = []
    for by, (female, male, female_filter, male_filter) in splits.items():
        both, effects = pd.concat([female, male]), [*female["he_effect"], *male["she_effect"]]
        estimands += [
            estimand(f"female professions by {by} -> man", "odds(he) man/null - 1; mean", female_filter,
                     female, female["he_effect"]),
            estimand(f"male professions by {by} -> woman", "odds(she) woman/null - 1; mean", male_filter,
                     male, male["she_effect"]),
            estimand(f"both by {by}", "mean over the prompts of both", "the two together", both, effects)]
    return estimands


def strong_examples(odds_ratios: ArrayLike, quantile: float) -> tuple[list[int], int, float]:
    """The model-filtered examples: their odds ratio r = y(x') / y(x) lies above a quantile of all r above 1.

    Args:
        odds_ratios: of N examples; quantile: in [0, 1), 0.25 in the study.

    Returns: (indices of these, number of examples with r > 1, threshold).

    Raises:
        InputError: no example with r > 1.
    """
    odds_ratios = np.asarray(odds_ratios, np.float64)
    aligned = odds_ratios[odds_ratios > 1]
    if not len(aligned):
        raise InputError("no example has an odds ratio above 1 in this model, filtering leaves nothing: "
                         "use --do-filter False")
    threshold = float(np.quantile(aligned, quantile))
    strong = np.flatnonzero(odds_ratios > threshold)
    if not len(strong):
        raise InputError(f"no example has an odds ratio above the threshold {threshold:.6f}: use more "
                         "examples or --do-filter False")
    return strong.tolist(), len(aligned), threshold


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


def errors_of_units(effects: Float64[np.ndarray, "N U"]) -> Float64[np.ndarray, "U"]:
    """Standard error of the mean effect of every unit over N comparisons; NaN for one."""
    return standard_error(sample_deviation(effects), len(effects))


def sum_of_means(effects: Float64[np.ndarray, "N U"]) -> float:
    """Sum of the units' mean effects: above the effect of all at once where units do the same work."""
    return float(means_of_units(effects).sum())


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
    the value of its one unit.

    Args:
        means: a row per unit, with a column layer; share: part of a layer's units, in (0, 1].
    """
    values = means.groupby("layer")[column]
    if share is None:
        return values.first().to_numpy(float)
    strongest = values.apply(lambda layer: layer.abs().nlargest(max(1, int(share * len(layer)))).mean())
    return strongest.to_numpy(float)


def summary_of_groups(groups: pd.Series, effects: pd.Series) -> pd.DataFrame:
    """Comparisons, mean of log odds ratios, median, mean and share above 0 of total effects: "all", then of
    each group where there are several; the group without a name has no row of its own."""
    of_groups = {"all": effects}
    if groups.nunique() > 1:
        of_groups |= {str(group): rows for group, rows in effects.groupby(groups, sort=False) if group}
    return pd.DataFrame([{"group": group, "comparisons": len(rows), "mean of logs": np.log1p(rows).mean(),
                          "median": rows.median(), "mean": rows.mean(), "share above 0": (rows > 0).mean()}
                         for group, rows in of_groups.items()])


def means_of_professions(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean of a column of `prompt_effects` over the prompts of each word, with its rating."""
    return table.groupby(["word", "bias", "definitional"], as_index=False)[column].mean()


def over_orders(values: Sequence[Sequence[float]], k: int) -> pd.DataFrame:
    """Mean, smallest and largest objective of random orders after 1 to k units, which are the index."""
    table = pd.DataFrame(values).iloc[:, :k]
    table.columns += 1
    return pd.DataFrame({"mean": table.mean(), "smallest": table.min(), "largest": table.max()})


def largest_and_median(deviations: pd.DataFrame) -> pd.DataFrame:
    """Of every column."""
    return pd.DataFrame({"largest": deviations.max(), "median": deviations.median()})


class NeuronAggregate:
    """Effects of every neuron over prompts, one prompt after the other; memory does not grow with them.

    Odds ratios are oriented to the anti-stereotypical gender: female-biased professions (bias < 0) he/she
    under the man interventions, all others she/he under the woman interventions.
    """

    def __init__(self) -> None:
        self.prompts = self.female_biased = 0
        self.layers = self.neurons = np.zeros(0, int)  # of no table yet
        self.indirect, self.direct, self.total, self.contrast = Moments(), Moments(), Moments(), Moments()

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
        self, profession: RatedWord, log_odds_of: Mapping[str, tuple[float, Float64[np.ndarray, "U"]]],
    ) -> None:
        """Add one prompt.

        Args:
            log_odds_of: by type, log odds he over she without intervention, and with one on each unit.
        """
        direct_type, indirect_type = self.types_needed(profession)
        toward = 1 if profession.bias < 0 else -1
        ratios = []
        for kind, moments in ((indirect_type, self.indirect), (direct_type, self.direct)):
            base, intervened = log_odds_of[kind]
            ratios.append(odds_ratio(toward * intervened, toward * base))
            moments.add(ratios[-1])
        self.total.add(ratios[0] + ratios[1] - 1)
        if "man_indirect" in log_odds_of and "woman_indirect" in log_odds_of:
            under_man, under_woman = (log_odds_of[f"{gender}_indirect"][1] for gender in ("man", "woman"))
            self.contrast.add(gender_contrast(under_man, under_woman))
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
        top = neurons.nlargest(max(1, int(share * len(neurons))), "odds_ratio_indirect_mean")
        rows.append({"layer": int(layer), "neurons": len(top),
                     "odds_ratio_indirect_mean": top["odds_ratio_indirect_mean"].mean(),
                     "odds_ratio_indirect_std": top["odds_ratio_indirect_std"].mean()})
    return pd.DataFrame(rows)


def strongest_in_any(strength: Float[np.ndarray, "N U"], count: int) -> Int[np.ndarray, " chosen"]:
    """Units to be run for several prompts at once: the prompts' strongest in turn, each prompt's best first.

    Args:
        strength: what the units are ranked by, of N prompts; -inf for a unit that is not to be chosen.

    Returns: at most `count` different units, in the order in which they were chosen.
    """
    # best of every prompt, second of every prompt, ...
    ranked = np.argsort(-strength, axis=1, kind="stable").T.ravel()
    units, first = np.unique(ranked, return_index=True)
    chosen = units[np.argsort(first)][:count]
    return chosen[np.isfinite(strength[:, chosen]).any(axis=0)]


def screened_units(
    strength: Float[np.ndarray, "N U"], silent: Bool[np.ndarray, "U"], always: int, count: int, sampled: int,
    rng: np.random.Generator,
) -> tuple[Int[np.ndarray, " chosen"], Int[np.ndarray, " drawn"], int]:
    """Which units of several prompts screening runs.

    Args:
        strength: what the units are ranked by, of N prompts; silent: units without effect as they are.
        always: the first so many units are run whatever their strength (word embedding and first block);
            count: units run in all, these included; sampled: others, drawn by `rng`.

    Returns: chosen units (sorted), drawn units (sorted), number of units left out.
    """
    candidates = np.flatnonzero(~silent)[always:]
    strongest = candidates[strongest_in_any(strength[:, candidates], max(0, count - always))]
    rest = np.setdiff1d(candidates, strongest)
    sample = np.sort(rng.choice(rest, min(sampled, len(rest)), replace=False))
    return np.concatenate([np.arange(always), np.sort(strongest)]), sample, len(rest)


def upper_share(found: int, drawn: int, confidence: float = 0.95) -> float:
    """Clopper and Pearson's (1934) one-sided upper bound on a share: `found` of `drawn` random members belong
    to it; 1 where none was drawn."""
    return float(stats.beta.ppf(confidence, found + 1, drawn - found)) if found < drawn else 1.0


@dataclass(frozen=True)
class Screening:
    """How sure a screening is of its strongest units, from units drawn at random among those that it left
    out, and run.

    `drawn`: units drawn; `missed`: those that belong to the exact top of one of their prompts; `rest`: units
    left out per prompt; `top`: size of the top.
    """

    drawn: int
    missed: int
    rest: int
    top: int

    @property
    def missed_a_prompt(self) -> float:
        """Units of the exact top that were left out, mean over prompts: at most so many, with 95%
        confidence."""
        return upper_share(self.missed, self.drawn) * self.rest

    @property
    def recall(self) -> float:
        """Share of the exact top that was found, mean over prompts: at least that much, with 95% confidence;
        0 is no statement."""
        return max(0.0, 1 - self.missed_a_prompt / self.top)


def misses(
    effects: Float[np.ndarray, "U"], chosen: Int[np.ndarray, " chosen"], drawn: Int[np.ndarray, " drawn"],
    top: int,
) -> Bool[np.ndarray, " drawn"]:
    """Which of the drawn units belong to a prompt's exact top: as strong as the weakest of the `top`
    strongest that were chosen, or stronger.

    The true top's weakest is at least as strong as that one, so no miss goes uncounted.

    Args:
        effects: exact for the units of `chosen` and `drawn` (indices, apart from each other); only their size
            counts.
    """
    known = np.sort(np.abs(effects[chosen]))
    threshold = known[-top] if len(known) >= top else 0.0
    return np.abs(effects[drawn]) >= threshold


def agreement(estimates: ArrayLike, exact: ArrayLike) -> dict[str, float | None]:
    """"pearson", "spearman", "largest_difference" of estimated and exact effects, arrays of one shape; None
    for a correlation of constants."""
    estimates, exact = np.ravel(estimates), np.ravel(exact)
    varied = len(exact) > 1 and np.ptp(exact) > 0 and np.ptp(estimates) > 0
    return {"pearson": float(stats.pearsonr(estimates, exact).statistic) if varied else None,
            "spearman": float(stats.spearmanr(estimates, exact).statistic) if varied else None,
            "largest_difference": float(np.abs(estimates - exact).max()) if len(exact) else 0.0}


def smallest_reaching(values: Sequence[float], level: float) -> int | None:
    """The least number of units whose objective reaches `level`, None when none does.

    `values`: after 1, 2, ... units.
    """
    return next((number for number, value in enumerate(values, start=1) if value >= level), None)

"""From probabilities to the figures that are cited: estimands, correlations, and which examples count.

Every estimand carries its formula and its filter: the 2020 study and its scripts average different things
under one name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from mediation.effects.odds import effect, log_odds
from mediation.effects.resampling import Resampling, interval
from mediation.errors import InputError

LEAST_PROBABILITY = 0.01  # the paper's filter: both candidates above it on the null prompt


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
    """One cited number, how it is computed, over which prompts; `interval`: 95%, bootstrap over professions
    and templates."""

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


def resampling_of(prompts: pd.DataFrame) -> Resampling:
    """Draws of professions and templates, which the prompts cross."""
    return Resampling({"professions": [str(word) for word in prompts["word"]],
                       "templates": [str(template) for template in prompts["template"]]})


def estimand(name: str, formula: str, filter_text: str, prompts: pd.DataFrame, effects: ArrayLike,
             by_template: bool = False, draws: Resampling | None = None) -> Estimand:
    """Mean of `effects` over the rows of `prompts`: pooled, or of the templates' means. NaN over no prompts.

    `draws`: of a table that the rows of `prompts` are part of, by their index; None draws for them alone.
    """
    effects = np.asarray(effects, np.float64)
    if not len(prompts):
        return Estimand(name, formula, filter_text, np.nan, np.nan, (np.nan, np.nan), 0)
    # the mean of templates' means: each prompt counts by how few its template has
    counts = prompts["template"].map(prompts["template"].value_counts()).to_numpy(float)
    shares = 1 / counts if by_template else np.ones(len(effects))
    of_prompts = resampling_of(prompts) if draws is None else draws.of(prompts.index.to_numpy())
    [low], [high] = of_prompts.of_ratio((effects * shares)[:, None], shares)
    mean = float((effects * shares).sum() / shares.sum())
    return Estimand(name, formula, filter_text, mean, float(np.median(effects)), (low, high), len(prompts))


def difference(name: str, formula: str, filter_text: str, first: pd.DataFrame, of_first: ArrayLike,
               second: pd.DataFrame, of_second: ArrayLike, draws: Resampling) -> Estimand:
    """Mean of the effects of the first prompts less that of the second, from one set of draws.

    `draws`: of a table that the rows of both are part of, by their index.
    """
    values = [np.asarray(effects, np.float64)[:, None] for effects in (of_first, of_second)]
    parts = [draws.of(prompts.index.to_numpy()) for prompts in (first, second)]
    low = high = mean = median = np.nan
    if len(first) and len(second):
        mean, median = (float(take(values[0]) - take(values[1])) for take in (np.mean, np.median))
        if all(part.varies for part in parts):
            [low], [high] = interval(parts[0].means(values[0]) - parts[1].means(values[1]))
    return Estimand(name, formula, filter_text, mean, median, (low, high), len(first) + len(second))


def total_effects(table: pd.DataFrame) -> list[Estimand]:
    """The estimands of `compute_neuron_total_effect.py`, the paper's first, of a table of
    `prompt_effects`."""
    table = table.reset_index(drop=True)  # draws go by the number of a row
    generic = table[~table["definitional"]]
    likely = generic[_both_likely(generic)]
    female, male = likely[likely["bias"] < 0], likely[likely["bias"] > 0]
    both = pd.concat([female, male])
    paper, draws = "no definitional words, p(he) and p(she) > .01", resampling_of(table)
    logs = {"female": female["log_he_effect"], "male": male["log_she_effect"]}
    preferred = np.where(generic["log_odds"] > 0, generic["he_effect"], generic["she_effect"])
    return [
        estimand("total effect",
                 "female-biased: odds(he) man/null - 1; male-biased: odds(she) woman/null - 1; mean", paper,
                 both, [*female["he_effect"], *male["she_effect"]], draws=draws),
        estimand("  of female-biased professions", "odds(he) man/null - 1; mean", f"{paper}, bias < 0",
                 female, female["he_effect"], draws=draws),
        estimand("  of male-biased professions", "odds(she) woman/null - 1; mean", f"{paper}, bias > 0",
                 male, male["she_effect"], draws=draws),
        estimand("total effect, log", "the same as log odds ratios; mean", paper, both,
                 [*logs["female"], *logs["male"]], draws=draws),
        difference("  female- less male-biased, log", "difference of the two means of log odds ratios", paper,
                   female, logs["female"], male, logs["male"], draws),
        estimand("2020 script's total effect",
                 "null odds(he) > 1: odds(he) man/null - 1; else odds(she) woman/null - 1; "
                 "mean of templates' means",
                 "no definitional words", generic, preferred, True, draws),
        estimand("  male (he) effect", "odds(he) man/null - 1; mean of templates' means",
                 "no definitional words", generic, generic["he_effect"], True, draws),
        estimand("  female (she) effect", "odds(she) woman/null - 1; mean of templates' means",
                 "no definitional words", generic, generic["she_effect"], True, draws),
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
    table = table.reset_index(drop=True)
    prompts = table[~table["definitional"] & _both_likely(table)]
    splits = {"model": (prompts[prompts["log_odds"] < 0], prompts[prompts["log_odds"] > 0],
                        "null odds(he) below 1", "null odds(he) above 1"),
              "stereotype": (prompts[prompts["bias"] < 0], prompts[prompts["bias"] > 0],
                             "bias < 0", "bias > 0")}
    estimands, draws = [], resampling_of(table)
    for by, (female, male, female_filter, male_filter) in splits.items():
        both, effects = pd.concat([female, male]), [*female["he_effect"], *male["she_effect"]]
        estimands += [
            estimand(f"female professions by {by} -> man", "odds(he) man/null - 1; mean", female_filter,
                     female, female["he_effect"], draws=draws),
            estimand(f"male professions by {by} -> woman", "odds(she) woman/null - 1; mean", male_filter,
                     male, male["she_effect"], draws=draws),
            estimand(f"both by {by}", "mean over the prompts of both", "the two together", both, effects,
                     draws=draws)]
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
                         "leave the filter out (--do-filter False)")
    threshold = float(np.quantile(aligned, quantile))
    strong = np.flatnonzero(odds_ratios > threshold)
    if not len(strong):
        raise InputError(f"no example has an odds ratio above the threshold {threshold:.6f}: use more "
                         "examples, or leave the filter out (--do-filter False)")
    return strong.tolist(), len(aligned), threshold


def means_of_professions(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Mean of a column of `prompt_effects` over the prompts of each word, with its rating."""
    return table.groupby(["word", "bias", "definitional"], as_index=False)[column].mean()

"""Effects of mediators on stimuli of one's own: comparisons, stages of tasks, rows of the tables.

A *comparison* is a stimulus' null prompt against one of its alternatives. Log odds are those of the second candidate over the first, and effects
(odds under the intervention - odds of the null prompt) / odds of the null prompt, the definitions of Vig et al. 2020, section 3.
"""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pandas as pd
import torch

from mediation.effects.odds import effect, log_odds
from mediation.errors import InputError
from mediation.files.storage import write_csv
from mediation.results.attention_results import EFFECTS
from mediation.results.mediation_tables import Row
from mediation.stimuli.interventions import Intervention
from mediation.studies import engine
from mediation.studies.heads import head_results, head_task, probabilities
from mediation.studies.neurons import Gradients, TreeResults, Units, plan


@dataclass(frozen=True)
class Comparison:
    """A stimulus of a file and one of its alternatives."""

    stimulus: object
    alternative: str
    intervention: Intervention

    def columns(self):
        """What every table says of it."""
        return {"id": self.stimulus.id, "group": self.stimulus.group, "alternative": self.alternative}


def describe_stimuli(model, found, options):
    """What decides total effects, and all else as well."""
    settings = {"model": model.name, "weights_sha256": model.weights_sha256(), "dtype": options.dtype, "multi_token": options.multi_token,
                "stimuli_sha256": sha256(repr(found).encode()).hexdigest()}
    return settings | ({"masking_approach": model.masking.approach} if model.masking else {})


def describe_settings(common, mediators, options):
    """What decides the numbers of mediators of one sweep: the same settings give the same tables."""
    estimated = any(mediator.estimated for mediator in mediators)
    settings = {**common, "precision": options.precision, "method": options.method if estimated else "exact", "seed": options.seed}
    if options.full_passes:
        settings["full_passes"] = True
    if options.method == "screen" and any(mediator.screened for mediator in mediators):
        settings |= {"screen_share": options.screen_share, "screen_sample": options.screen_sample, "screen_top": options.screen_top}
    return settings


def build_comparisons(model, path, stimuli, multi_token):
    """Every stimulus against each of its alternatives, in order.

    Raises:
        InputError: a stimulus that this model's tokens cannot express; file and line are named.
    """
    longest = longest_text(model)
    comparisons = []
    for stimulus in stimuli:
        null, *alternatives = stimulus.substitutes
        for alternative in alternatives:
            try:
                intervention = Intervention(model.tokenizer, stimulus.base, [null, alternative],
                                            stimulus.candidates, model.device, multi_token, any_length=True)
                length = max(len(prompt.tokens) for prompt in intervention.prompts) + max(map(len, intervention.candidates_tok))
                if length > longest:
                    raise InputError(f"{length} tokens, the model takes {longest}: shorten the text")
                if intervention.candidates_tok[0] == intervention.candidates_tok[1]:
                    raise InputError("field 'candidates': both are the same tokens to this model: choose others")
                if intervention.prompts[0].tokens == intervention.prompts[1].tokens:
                    raise InputError(f"field 'substitutes': {null!r} and {alternative!r} are the same tokens to this model: choose others")
            except InputError as error:
                raise InputError(f"{path}, line {stimulus.line}: {error}") from error
            comparisons.append(Comparison(stimulus, alternative, intervention))
    return comparisons


def longest_text(model):
    """Tokens of prompt and candidate together that the model can take."""
    config = model.model.config
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    if not model.masking:
        return longest
    before = config.pad_token_id + 1 if config.model_type == "roberta" else 0  # its positions begin behind the padding's
    return longest - before - (2 if model.masking.approach > 3 else 0)


def applicable(model, comparisons, mediator):
    """(comparisons for which a mediator's interventions are defined, {why not: ids of the others})."""
    fitting, dropped = [], {}
    for comparison in comparisons:
        try:
            mediator.fits(model, comparison.intervention)
            fitting.append(comparison)
        except InputError as error:
            dropped.setdefault(error.reason, []).append(comparison.stimulus.id)
    return fitting, dropped


class NeuronSweep:
    """Neurons, or sets of them, of comparisons: both effects.

    Args:
        mediator: of the catalogue; table: of the shards; options: StudyOptions.
    """

    def __init__(self, model, comparisons, mediator, table, options):
        self.options = options
        stimuli = [comparison.intervention for comparison in comparisons]
        sets = None if mediator.sets is None else torch.from_numpy(mediator.sets(model))
        gradients = Gradients(stimuli, table, len(EFFECTS)) if options.estimates and sets is None else None
        self.trees = {kind: plan(model, stimuli, kind, Units(sets, mediator.count(model)), options, table, gradients=gradients) for kind in EFFECTS}

    @property
    def stages(self):
        """Of both effects: gradients, which both need, are computed for the first."""
        return [stage for trees in self.trees.values() for stage in trees.stages]

    def results(self, shards):
        """Function of a comparison's index to ({effect: Swept}, the null prompt's log odds)."""
        of_effects = {kind: TreeResults(trees, shards, self.options.screen_top) for kind, trees in self.trees.items()}

        def of_comparison(index):
            swept = {kind: results(index) for kind, results in of_effects.items()}
            null1, null2 = swept["indirect"].base[0]
            return swept, null2 - null1

        return of_comparison

    @staticmethod
    def probabilities(log_probabilities):
        """exp."""
        return np.exp(log_probabilities)


class HeadSweep:
    """Heads, layers of them and all attention of comparisons, in one sweep: both effects."""

    def __init__(self, model, comparisons, _mediator, table, options):
        self.tasks = [head_task(model, comparison.intervention, options, table, f"comparison {number} of {len(comparisons)}")
                      for number, comparison in enumerate(comparisons, start=1)]
        self.stages = [self.tasks]

    def results(self, shards):
        """As a NeuronSweep's."""
        def of_comparison(index):
            arrays = shards(self.tasks[index].key)
            null1, null2 = arrays["probabilities"][0]
            return head_results(arrays), float(log_odds(null2, null1))

        return of_comparison

    probabilities = staticmethod(probabilities)


SWEEPS = {"neurons": NeuronSweep, "attention weights": HeadSweep}


def sweep(model, comparisons, mediator, table, options, run_folder, progress):
    """Compute what a mediator's sweep needs: (the sweep, function of a comparison's index to its results, see `NeuronSweep.results`)."""
    of_mediator = SWEEPS[mediator.sweep](model, comparisons, mediator, table, options)
    return of_mediator, of_mediator.results(engine.run(model, of_mediator.stages, run_folder, progress))


def rows(model, comparisons, mediator, of_mediator, results, account):
    """The Rows of a mediator's table, comparison by comparison; `account` counts in what gave them."""
    within = mediator.within(model)
    for index, comparison in enumerate(comparisons):
        swept, base = results(index)
        for of_effect in swept.values():
            account.add(of_effect)
        yield Row(comparison.columns(), comparison.stimulus.group, base,
                  {kind: of_mediator.probabilities(of_effect.log_probabilities)[within] for kind, of_effect in swept.items()},
                  {kind: of_effect.exact[within] for kind, of_effect in swept.items() if of_effect.exact is not None})


def write_total_effects(path, model, comparisons):
    """One row a comparison, without interventions; returns the number of rows."""
    rows = []
    for comparison in comparisons:
        (c1, c2), (alt1, alt2) = model.continuation_probabilities(comparison.intervention)
        texts, candidates = comparison.intervention.base_strings, comparison.stimulus.candidates
        rows.append({**comparison.columns(), "base_string": texts[0], "alt_string": texts[1], "candidate1": candidates[0], "candidate2": candidates[1],
                     "candidate1_base_prob": c1, "candidate2_base_prob": c2, "candidate1_alt_prob": alt1, "candidate2_alt_prob": alt2,
                     "odds_base": np.exp(log_odds(c2, c1)), "odds_alt": np.exp(log_odds(alt2, alt1)),
                     "total_effect": effect(log_odds(alt2, alt1), log_odds(c2, c1))})
    write_csv(path, pd.DataFrame(rows))
    return len(rows)

"""Comparisons: a stimulus' null prompt against one of its alternatives, in one model's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mediation.errors import InputError
from mediation.mediators.catalogue import Request
from mediation.mediators.positions import places
from mediation.model.language_model import LanguageModel
from mediation.stimuli.interventions import Intervention
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies.checks import hash_of


@dataclass(frozen=True)
class Comparison:
    """A stimulus of a file and one of its alternatives.

    `other`: the stimulus whose values are put in, where they are not the alternative's.
    """

    stimulus: Stimulus
    alternative: str
    intervention: Intervention
    other: Intervention | None = None

    @property
    def label(self) -> str:
        """In words."""
        return f"{self.stimulus.id}, {self.alternative}"

    def columns(self) -> dict[str, Any]:
        """What every table says of it."""
        return {"id": self.stimulus.id, "group": self.stimulus.group, "alternative": self.alternative}


def build_comparisons(model: LanguageModel, path: str | Path, stimuli: Sequence[Stimulus],
                      multi_token: str | None) -> list[Comparison]:
    """Every stimulus against each of its alternatives, in order.

    Raises:
        InputError: a stimulus that this model's tokens cannot express; file and line are named.
    """
    longest, comparisons = longest_text(model), []
    for stimulus in stimuli:
        null, *alternatives = stimulus.substitutes
        for alternative in alternatives:
            try:
                intervention = Intervention(model.tokenizer, stimulus.base, [null, alternative],
                                            stimulus.candidates, model.device, multi_token, any_length=True)
                check_expressible(intervention, null, alternative, longest)
            except InputError as error:
                raise InputError(f"{path}, line {stimulus.line}: {error}") from error
            comparisons.append(Comparison(stimulus, alternative, intervention))
    return comparisons


def check_expressible(intervention: Intervention, null: str, alternative: str, longest: float) -> None:
    """Raises InputError for a text that is too long, or for words that are the same tokens."""
    prompts, candidates = intervention.prompts, intervention.candidates_tok
    length = max(len(prompt.tokens) for prompt in prompts) + max(map(len, candidates))
    if length > longest:
        raise InputError(f"{length} tokens, the model takes {longest}: shorten the text")
    if candidates[0] == candidates[1]:
        raise InputError("field 'candidates': both are the same tokens to this model: choose others")
    if prompts[0].tokens == prompts[1].tokens:
        raise InputError(f"field 'substitutes': {null!r} and {alternative!r} are the same tokens to this "
                         "model: choose others")


def longest_text(model: LanguageModel) -> float:
    """Tokens of prompt and candidate together that the model can take."""
    config = model.model.config.get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    if not model.masking:
        return longest
    # positions begin behind the padding's
    before = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    return longest - before - (2 if model.masking.approach > 3 else 0)


def applicable(model: LanguageModel, comparisons: Sequence[Comparison], request: Request,
               seed: int = 0) -> tuple[list[Comparison], dict[str, list[str]]]:
    """Comparisons for which a mediator is defined, and {why not: ids of the others}.

    Values that are no alternative's change the null prompt's run alone: a stimulus is then one comparison,
    whatever its alternatives are, and what is put in stands for them.
    """
    fitting: list[Comparison] = []
    left_out: dict[str, list[str]] = {}
    for comparison in comparisons:
        if request.values != "alternative":
            comparison = alone(model, comparison)
        try:
            request.check(model, comparison.intervention)
            fitting.append(comparison)
        except InputError as error:
            left_out.setdefault(error.reason, []).append(comparison.stimulus.id)
    if request.values == "alternative":
        return fitting, left_out
    fitting = list({comparison.stimulus.id: comparison for comparison in reversed(fitting)}.values())[::-1]
    if request.values != "resample":
        return [replace(comparison, alternative=request.values) for comparison in fitting], left_out
    drawn: list[Comparison] = []
    for comparison in fitting:
        try:
            drawn.append(resampled(comparison, fitting, request, seed))
        except InputError as error:
            # as above, with each of its alternatives
            name, names = comparison.stimulus.id, [each.stimulus.id for each in comparisons]
            left_out.setdefault(error.reason, []).extend([name] * names.count(name))
    return drawn, left_out


def alone(model: LanguageModel, comparison: Comparison) -> Comparison:
    """The comparison with the null prompt in its alternative's place."""
    stimulus = comparison.stimulus
    intervention = Intervention(model.tokenizer, stimulus.base, stimulus.substitutes[:1] * 2,
                                stimulus.candidates, model.device, comparison.intervention.multi_token,
                                any_length=True)
    return replace(comparison, intervention=intervention)


def resampled(comparison: Comparison, others: Sequence[Comparison], request: Request,
              seed: int) -> Comparison:
    """The comparison with another stimulus of the file, drawn at random: its null prompt's values are put in.

    Raises:
        InputError: no other stimulus has another null prompt with as many places.
    """
    def size(one: Comparison) -> int:
        return sum(len(place.null) for place in places(one.intervention, request.positions))

    own = comparison.intervention.prompts[0].tokens
    fitting = [other for other in others
               if other.intervention.prompts[0].tokens != own and size(other) == size(comparison)]
    if not fitting:
        reason = "no other stimulus of the file whose values could be put in at these positions"
        raise InputError(f"{comparison.stimulus.id!r}: {reason}: add stimuli, or use other --values", reason)
    rng = np.random.default_rng([seed, hash_of(comparison.stimulus.id)])
    chosen = fitting[rng.integers(len(fitting))]
    return replace(comparison, alternative=chosen.stimulus.id, other=chosen.intervention)

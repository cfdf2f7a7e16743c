"""Comparisons: a stimulus' null prompt against one of its alternatives, in one model's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mediation.errors import InputError
from mediation.mediators.catalogue import Mediator
from mediation.model.language_model import LanguageModel
from mediation.stimuli.interventions import Intervention
from mediation.stimuli.stimulus_files import Stimulus


@dataclass(frozen=True)
class Comparison:
    """A stimulus of a file and one of its alternatives."""

    stimulus: Stimulus
    alternative: str
    intervention: Intervention

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
    config = model.model.config
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    if not model.masking:
        return longest
    # positions begin behind the padding's
    before = config.pad_token_id + 1 if config.model_type == "roberta" else 0
    return longest - before - (2 if model.masking.approach > 3 else 0)


def applicable(model: LanguageModel, comparisons: Sequence[Comparison],
               mediator: Mediator) -> tuple[list[Comparison], dict[str, list[str]]]:
    """Comparisons for which a mediator is defined, and {why not: ids of the others}."""
    fitting: list[Comparison] = []
    left_out: dict[str, list[str]] = {}
    for comparison in comparisons:
        try:
            mediator.fits(model, comparison.intervention)
            fitting.append(comparison)
        except InputError as error:
            left_out.setdefault(error.reason, []).append(comparison.stimulus.id)
    return fitting, left_out

"""At which tokens of two prompts a mediator is changed: `places`, by one of `catalogue.POSITIONS`."""

from dataclasses import dataclass

from mediation.errors import InputError
from mediation.stimuli.interventions import Intervention
from mediation.stimuli.prompts import check_candidates


@dataclass(frozen=True)
class Place:
    """Where one intervention changes a run: tokens of the null prompt, and those of the alternative that
    answer to them, in the same order."""

    null: tuple[int, ...]
    alternative: tuple[int, ...]


def places(intervention: Intervention, positions: str) -> list[Place]:
    """The places of a stimulus with one alternative, in the order of the prompt.

    Raises:
        InputError: the two prompts have no such places, or the candidates are the same.
    """
    names = [" ".join(tokens) for tokens in intervention.candidates]
    check_candidates(names, intervention.candidates_tok, single=False)
    if positions == "slot":
        intervention.check_for_neurons()
        null, alternative = intervention.places[:2]
        return [Place(tuple(null), tuple(alternative))]
    lengths = [len(prompt.tokens) for prompt in intervention.prompts[:2]]
    if positions == "last":
        return [Place((lengths[0] - 1,), (lengths[1] - 1,))]
    if lengths[0] != lengths[1]:
        raise InputError(f"{intervention.base_strings[0]!r} and {intervention.base_strings[1]!r} have "
                         f"{lengths[0]} and {lengths[1]} tokens, so their positions do not answer to each "
                         "other: use --positions slot or last, or other substitutes",
                         "prompts of different numbers of tokens; --positions slot or last takes them")
    every = range(lengths[0])
    if positions == "all":
        return [Place(tuple(every), tuple(every))]
    return [Place((position,), (position,)) for position in every]


def first_difference(intervention: Intervention) -> int:
    """The first token in which the two prompts differ: what comes before it is the same in both runs."""
    one, other = (prompt.tokens for prompt in intervention.prompts[:2])
    pairs = [index for index, (a, b) in enumerate(zip(one, other)) if a != b]
    return pairs[0] if pairs else min(len(one), len(other))

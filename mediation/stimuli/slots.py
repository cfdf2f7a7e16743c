"""From two prompts to one stimulus: what they share is the base, what differs fills its slot."""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeVar

from mediation.errors import InputError
from mediation.stimuli import stimulus_files
from mediation.stimuli.stimulus_files import Stimulus

Item = TypeVar("Item")


class Imported(NamedTuple):
    """Stimuli of a data set. `left_out`: {reason: names of what it is true of}, as "line 3"."""

    stimuli: list[Stimulus]
    left_out: dict[str, list[str]]


def collect(items: Iterable[tuple[str, Item]], make: Callable[[Item], Stimulus]) -> Imported:
    """A stimulus of every (name, item); what `make` refuses with an InputError is left out, with why."""
    imported = Imported([], {})
    for name, item in items:
        try:
            imported.stimuli.append(make(item))
        except InputError as error:
            imported.left_out.setdefault(error.reason, []).append(name)
    return imported


def stimulus_of(
    identity: str, null: str, alternative: str, candidates: tuple[str, str], group: str = "",
) -> Stimulus:
    """The stimulus of a null prompt and its alternative.

    Raises:
        InputError: what the format of `stimulus_files` cannot express.
    """
    base, substitutes = shared_base(null, alternative)
    fields = {"id": identity, "base": base, "substitutes": substitutes, "candidates": candidates,
              "group": group}
    try:
        return stimulus_files.parse(identity, 0, fields)
    except InputError as error:
        raise InputError(str(error), str(error).removeprefix(f"{identity}: ")) from error


def shared_base(first: str, second: str) -> tuple[str, tuple[str, str]]:
    """(base, what fills its slot in either prompt): the slot is the smallest span of whole words that differ.

    Signs around the words that both prompts have, such as a comma, stay in the base. Where one prompt only
    has more words than the other, the slot takes in the word before them, or else the one behind them.

    Raises:
        InputError: prompts that are equal or differ in their blanks, that are empty or hold `{}`, or that end
            in a blank, for a candidate comes after one.
    """
    for prompt in (first, second):
        if not prompt.strip():
            raise InputError("an empty prompt")
        if "{}" in prompt:
            raise InputError("a prompt holds {}, which marks the slot")
        if prompt != prompt.rstrip():
            raise InputError("a prompt ends in a blank")
    if first == second:
        raise InputError("the two prompts are equal")
    words = [list(re.finditer(r"\S+", prompt)) for prompt in (first, second)]
    one, other = ([word[0] for word in found] for found in words)
    if one == other:
        raise InputError("the two prompts differ in their blanks only")
    before = _equal(one, other)
    behind = _equal(one[before:][::-1], other[before:][::-1])
    if before + behind == min(len(one), len(other)):  # no slot is empty
        before, behind = (before - 1, behind) if before else (before, behind - 1)
    (start, end), (other_start, other_end) = (
        (found[before].start(), found[len(found) - behind - 1].end()) for found in words)
    if (first[:start], first[end:]) != (second[:other_start], second[other_end:]):
        raise InputError("the two prompts differ in their blanks as well")
    leading, trailing = _shared_signs(first[start:end], second[other_start:other_end])
    start, end = start + leading, end - trailing
    substitutes = first[start:end], second[other_start + leading:other_end - trailing]
    return first[:start] + "{}" + first[end:], substitutes


def _equal(one, other):
    """How many words two lists begin with alike."""
    return next((index for index, (left, right) in enumerate(zip(one, other)) if left != right),
                min(len(one), len(other)))


def _shared_signs(one, other):
    """How many signs, no letters or digits, two spans have alike at their beginnings and at their ends.

    None where nothing but a blank would be left of one.
    """
    longest = min(len(one), len(other)) - 1  # something is left of both
    leading = trailing = 0
    while leading < longest and one[leading] == other[leading] and not one[leading].isalnum():
        leading += 1
    while (trailing < longest - leading and one[-1 - trailing] == other[-1 - trailing]
           and not one[-1 - trailing].isalnum()):
        trailing += 1
    left = [span[leading:len(span) - trailing].strip() for span in (one, other)]
    return (leading, trailing) if all(left) else (0, 0)

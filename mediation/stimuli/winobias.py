"""WinoBias (Zhao et al. 2018): pairs of sentences about two occupations, one of them meant by a pronoun.

The 2020 study is on type 1, pro-stereotyped: `load`. Type 2 and the anti-stereotyped halves: `load_others`.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mediation.errors import InputError
from mediation.files.assets import fetch_data_set
from mediation.stimuli.prompts import PronounStimulus
from mediation.stimuli.slots import Imported, collect, stimulus_of
from mediation.stimuli.stimulus_files import Stimulus

SPLITS = ("dev", "test")
TYPES = (1, 2)
HALVES = ("pro", "anti")
PRONOUNS = (("she", "he"), ("her", "his"))
WITH_OBJECTS = (*PRONOUNS, ("her", "him"))


class Row(NamedTuple):
    """A sentence. `gender`: the occupation's, 0 female, 1 male; `pronouns`: index of the pair in PRONOUNS."""

    gender: int
    occupation: str
    pronouns: int
    base_string: str
    continuation: str


def load(split: str, folder: str | Path | None = None) -> list[PronounStimulus]:
    """The examples of a split, in the order of the file: 160 of 198 pairs for "dev", 130 of 198 for "test".

    Args:
        folder: where the four texts are; None fetches them into the project.

    Raises:
        InputError: an unknown split, a missing file, an unpaired row or an unknown occupation; file and line
            are named.
    """
    _check_split(split)
    folder = Path(folder) if folder else fetch_data_set("winobias")
    path = folder / f"pro_stereotyped_type1.txt.{split}"
    occupations, pairs = _occupations(folder), _pairs(path)
    examples = []
    for pair in pairs:
        if _is_usable(pair):
            first, second = (_read_row(path, number, text, occupations) for number, text in pair)
            examples.append(_example(path, first, second))
    return [example for example in examples if example is not None]


def load_others(split: str, number: int, half: str, folder: str | Path | None = None) -> Imported:
    """Stimuli of type 2, pro- or anti-stereotyped, or of type 1, anti-stereotyped.

    Type 1: the slot is the pronoun, candidates are the continuations, as in the 2020 study. Type 2: the
    sentences of a pair exchange the occupations before the pronoun, so these make the slot, and candidates
    are the pronouns. The null prompt is the one of the female pronoun, and the first candidate the one that
    it has in this half. Left out are pairs that mark something else, and those that differ in more.

    Args:
        number: the type, 1 or 2.
        half: "pro" or "anti".
        folder: where the texts are; None fetches them into the project.

    Raises:
        InputError: an unknown split, type or half, a missing file, or one with an unpaired row.
    """
    _check_split(split)
    if number not in TYPES or half not in HALVES or (number, half) == (1, "pro"):
        raise InputError(f"type {number}, {half!r} is none of the other parts of WinoBias: choose type 2, or "
                         "type 1 with 'anti'")
    folder = Path(folder) if folder else fetch_data_set("winobias_rest")
    path = folder / f"{half}_stereotyped_type{number}.txt.{split}"
    occupations, make = _occupations(folder), _of_type_1 if number == 1 else _of_type_2
    pairs = [(f"lines {pair[0][0]} and {pair[1][0]}", pair) for pair in _pairs(path)]
    name = f"winobias_{half}_type{number}_{split}"
    return collect(pairs, lambda pair: make(f"{name}_{pair[0][0]}", path, pair, occupations))


def _is_usable(pair: Sequence[tuple[int, str]]) -> bool:
    """Whether two rows of type 1 mark one occupation and one pronoun each, with "him" left out as in 2020."""
    return all(text.count("[") == text.count("]") == 2 and "[him]" not in text for _, text in pair)


def _of_type_1(name: str, path: Path, pair: Sequence[tuple[int, str]],
               occupations: Sequence[list[str]]) -> Stimulus:
    """Anti-stereotyped: "she" goes with the continuation about the male-stereotyped occupation."""
    if not _is_usable(pair):
        raise InputError("a sentence marks 'him', or not just two things")
    example = _example(path, *(_read_row(path, *row, occupations) for row in pair))
    if example is None:
        raise InputError("the sentences differ before the pronoun, or in its form")
    female, male = (example.base_string.replace("{}", pronoun) for pronoun in example.substitutes)
    return stimulus_of(name, female, male, example.candidates[::-1])


def _of_type_2(name: str, path: Path, pair: Sequence[tuple[int, str]],
               occupations: Sequence[list[str]]) -> Stimulus:
    """The prompt before the female pronoun against the one before the male pronoun."""
    genders, named, pronouns = zip(*(_marked(path, *row, occupations, WITH_OBJECTS) for row in pair))
    prompts = [_without_marks(text.split(f"[{pronoun}]")[0]) for (_, text), pronoun in zip(pair, pronouns)]
    if pronouns[0] not in ("she", "her"):
        prompts, pronouns = prompts[::-1], pronouns[::-1]
    if pronouns not in WITH_OBJECTS or set(genders) != {0, 1}:
        raise InputError("the sentences differ in the pronoun's form, or not in the occupations' gender")
    exchanged = {named[0]: named[1], named[1]: named[0]}
    either = "|".join(map(re.escape, named))
    if re.sub(rf"\b({either})\b", lambda word: exchanged[word[0]], prompts[0]) != prompts[1]:
        raise InputError("the sentences differ in more than the occupations' places before the pronoun")
    return stimulus_of(name, prompts[0], prompts[1], pronouns)


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown: choose from {', '.join(SPLITS)}")


def _occupations(folder: Path) -> list[list[str]]:
    return [_lines(folder / f"{gender}_occupations.txt") for gender in ("female", "male")]


def _pairs(path: Path) -> list[tuple[tuple[int, str], tuple[int, str]]]:
    """Every two rows, each with its line's number."""
    rows = [(number, re.sub(r"^\d+\s+", "", line)) for number, line in enumerate(_lines(path), start=1)]
    if len(rows) % 2:
        raise InputError(f"{path}, line {len(rows)}: the last row has no partner, rows come in pairs: fetch "
                         "the file again")
    return list(zip(rows[::2], rows[1::2]))


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): delete its folder and run again, it is fetched "
                         "then") from error


def _marked(path: Path, number: int, text: str, occupations: Sequence[list[str]],
            allowed: Sequence[tuple[str, str]]) -> tuple[int, str, str]:
    """(gender, occupation, pronoun) that a row marks.

    `occupations`: the female-stereotyped ones, the male-stereotyped ones; `allowed`: pairs of pronouns.
    """
    spans = re.findall(r"\[(.*?)\]", text)
    named = [(gender, occupation) for gender, listed in enumerate(occupations) for occupation in listed
             if any(span.lower() == f"the {occupation.lower()}" for span in spans)]
    pronouns = [span for span in spans if span in sum(allowed, ())]
    if len(named) != 1 or len(pronouns) != 1:
        missing = "one pronoun" if len(named) == 1 else "one listed occupation"
        raise InputError(f"{path}, line {number}: {text!r} does not mark {missing}: mend the row, or fetch "
                         "the file again", f"a sentence does not mark {missing}")
    return *named[0], pronouns[0]


def _without_marks(text):
    return text.replace("[", "").replace("]", "").strip()


def _read_row(path: Path, number: int, text: str, occupations: Sequence[list[str]]) -> Row:
    """One row of a file, read."""
    gender, occupation, pronoun = _marked(path, number, text, occupations, PRONOUNS)
    before, after = text.split(f"[{pronoun}]")
    group = next(index for index, pair in enumerate(PRONOUNS) if pronoun in pair)
    return Row(gender, occupation, group, _without_marks(before) + " {}", _without_marks(after))


def _example(path: Path, first: Row, second: Row) -> PronounStimulus | None:
    """The example of two rows, or None when their base strings or kinds of pronoun differ."""
    if (first.pronouns, first.base_string) != (second.pronouns, second.base_string):
        return None
    female, male = (first, second) if first.gender == 0 else (second, first)
    if (female.gender, male.gender) != (0, 1):
        raise InputError(f"{path}: {first.occupation!r} and {second.occupation!r} are on the same list, a "
                         "pair has one of each: mend the list, or fetch the files again")
    return PronounStimulus(female.base_string, PRONOUNS[female.pronouns],
                           (female.continuation, male.continuation), (female.occupation, male.occupation))

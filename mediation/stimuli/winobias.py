"""WinoBias, type 1, pro-stereotyped (Zhao et al. 2018): pairs of sentences about two occupations."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mediation.errors import InputError
from mediation.files.assets import fetch_data_set
from mediation.stimuli.prompts import PronounStimulus

SPLITS = ("dev", "test")
PRONOUNS = (("she", "he"), ("her", "his"))


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
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown: choose from {', '.join(SPLITS)}")
    folder = Path(folder) if folder else fetch_data_set("winobias")
    occupations = [_lines(folder / f"{gender}_occupations.txt") for gender in ("female", "male")]
    path = folder / f"pro_stereotyped_type1.txt.{split}"
    rows = [(number, re.sub(r"^\d+\s+", "", line)) for number, line in enumerate(_lines(path), start=1)]
    if len(rows) % 2:
        raise InputError(f"{path}, line {len(rows)}: the last row has no partner, rows come in pairs: fetch "
                         "the file again")
    examples = []
    for pair in zip(rows[::2], rows[1::2]):
        if all(text.count("[") == text.count("]") == 2 and "[him]" not in text for _, text in pair):
            first, second = (_read_row(path, number, text, occupations) for number, text in pair)
            examples.append(_example(path, first, second))
    return [example for example in examples if example is not None]


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): delete its folder and run again, it is fetched "
                         "then") from error


def _read_row(path: Path, number: int, text: str, occupations: Sequence[list[str]]) -> Row:
    """One row of a file, read. `occupations`: the female-stereotyped ones, the male-stereotyped ones."""
    spans = re.findall(r"\[(.*?)\]", text)
    named = [(gender, occupation) for gender, listed in enumerate(occupations) for occupation in listed
             if any(span.lower() == f"the {occupation.lower()}" for span in spans)]
    pronouns = [span for span in spans if span in PRONOUNS[0] + PRONOUNS[1]]
    if len(named) != 1 or len(pronouns) != 1:
        missing = "one pronoun" if len(named) == 1 else "one listed occupation"
        raise InputError(f"{path}, line {number}: {text!r} does not mark {missing}: mend the row, or fetch "
                         "the file again")
    before, after = text.split(f"[{pronouns[0]}]")
    base_string = before.replace("[", "").replace("]", "").strip() + " {}"
    group = next(index for index, pair in enumerate(PRONOUNS) if pronouns[0] in pair)
    continuation = after.replace("[", "").replace("]", "").strip()
    return Row(*named[0], group, base_string, continuation)


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

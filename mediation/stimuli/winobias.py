"""WinoBias, type 1, pro-stereotyped (Zhao et al. 2018): pairs of sentences about two occupations, one pronoun in each."""

import re
from pathlib import Path

from mediation.errors import InputError
from mediation.files.assets import fetch_data_set
from mediation.stimuli.prompts import PronounStimulus

SPLITS = ("dev", "test")
PRONOUNS = (("she", "he"), ("her", "his"))


def load(split: str, folder: str | Path | None = None) -> list[PronounStimulus]:
    """The examples of a split, in the order of the file: 160 of 198 pairs for "dev", 130 of 198 for "test".

    Args:
        folder: where the four texts are; None fetches them into the project.

    Raises:
        InputError: an unknown split, a missing file, an unpaired row or an unknown occupation; file and line are named.
    """
    if split not in SPLITS:
        raise InputError(f"split {split!r} is unknown: choose from {', '.join(SPLITS)}")
    folder = Path(folder) if folder else fetch_data_set("winobias")
    occupations = [_lines(folder / f"{gender}_occupations.txt") for gender in ("female", "male")]
    path = folder / f"pro_stereotyped_type1.txt.{split}"
    rows = [(number, re.sub(r"^\d+\s+", "", line)) for number, line in enumerate(_lines(path), start=1)]
    if len(rows) % 2:
        raise InputError(f"{path}, line {len(rows)}: the last row has no partner, rows come in pairs: fetch the file again")
    examples = []
    for pair in zip(rows[::2], rows[1::2]):
        if all(text.count("[") == text.count("]") == 2 and "[him]" not in text for _, text in pair):
            examples.append(_example(path, *(_read_row(path, number, text, occupations) for number, text in pair)))
    return [example for example in examples if example is not None]


def _lines(path):
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): delete its folder and run again, it is fetched then") from error


def _read_row(path, number, text, occupations):
    """(gender of the occupation: 0 female, 1 male; occupation; pronoun group; base string; continuation) of one row."""
    spans = re.findall(r"\[(.*?)\]", text)
    named = [(gender, occupation) for gender, listed in enumerate(occupations) for occupation in listed
             if any(span.lower() == f"the {occupation.lower()}" for span in spans)]
    pronouns = [span for span in spans if span in PRONOUNS[0] + PRONOUNS[1]]
    if len(named) != 1 or len(pronouns) != 1:
        raise InputError(f"{path}, line {number}: {text!r} does not mark {'one pronoun' if len(named) == 1 else 'one listed occupation'}: "
                         "mend the row, or fetch the file again")
    before, after = text.split(f"[{pronouns[0]}]")
    base_string = before.replace("[", "").replace("]", "").strip() + " {}"
    group = next(index for index, pair in enumerate(PRONOUNS) if pronouns[0] in pair)
    return (*named[0], group, base_string, after.replace("[", "").replace("]", "").strip())


def _example(path, first, second):
    """The example of two rows, or None when their base strings or kinds of pronoun differ."""
    if first[2:4] != second[2:4]:
        return None
    female, male = (first, second) if first[0] == 0 else (second, first)
    if (female[0], male[0]) != (0, 1):
        raise InputError(f"{path}: {first[1]!r} and {second[1]!r} are on the same list, a pair has one of each: mend the list, or fetch the files again")
    return PronounStimulus(female[3], PRONOUNS[female[2]], (female[4], male[4]), (female[1], male[1]))

"""The professions and their crowd ratings (Bolukbasi et al. 2016), and which of them fit a model's tokens."""

import csv
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mediation.errors import InputError
from mediation.stimuli.prompts import why_not_pairwise, why_not_single_token

if TYPE_CHECKING:  # a tokenizer comes with a model; reading the ratings needs none
    import transformers

RATINGS = Path(__file__).parents[2] / "experiment_data" / "professions.csv"
DEFINITIONAL = 0.75  # at or beyond it, on either side, a word has its gender by definition (king, waitress)


@dataclass(frozen=True)
class Profession:
    """A word with its two ratings, both in [-1, 1], negative = female."""

    word: str
    definitional: float
    stereotypical: float

    @property
    def text(self) -> str:
        """The word as it is written in a sentence: the ratings join words by an underscore."""
        return self.word.replace("_", " ")

    @property
    def bias(self) -> float:
        """definitional + stereotypical, in [-2, 2]: below 0 female-biased, above 0 male-biased, 0 neutral."""
        return self.definitional + self.stereotypical

    @property
    def is_definitional(self) -> bool:
        """True for words that carry a gender in their meaning: |definitional| >= 0.75."""
        return abs(self.definitional) >= DEFINITIONAL


def load(path: str | Path = RATINGS) -> dict[str, Profession]:
    """All 320 rated words, in the order of the file.

    Raises:
        InputError: a file that is not a table of word, definitional, stereotypical in [-1, 1].
    """
    professions = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a CSV ({error}): restore the file") from error
    for row in rows:
        try:
            profession = Profession(row["word"], float(row["definitional"]), float(row["stereotypical"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: row {str(row)[:200]} is not word, definitional, stereotypical: "
                             f"restore the file ({error})") from error
        if not (abs(profession.definitional) <= 1 and abs(profession.stereotypical) <= 1):
            raise InputError(f"{path}: {profession.word}: ratings lie in [-1, 1]: restore the file")
        professions[profession.word] = profession
    return professions


def select(words: Collection[str] | None = None, max_examples: int | None = None) -> list[Profession]:
    """The professions named by `words` (all for None), in the file's order, the first `max_examples` of them.

    Raises:
        InputError: a word without a rating, or max_examples below 1.
    """
    rated = load()
    if words is not None:
        unknown = [word for word in words if word not in rated]
        if unknown:
            raise InputError(f"no rating for {', '.join(map(repr, unknown))}: choose from the {len(rated)} "
                             f"words of {RATINGS.name}")
        rated = {word: rated[word] for word in rated if word in words}
    if max_examples is not None and max_examples < 1:
        raise InputError(f"--max_examples {max_examples}: give a number from 1 on")
    return list(rated.values())[:max_examples]


def usable(
    tokenizer: "transformers.PreTrainedTokenizerBase", template: str, professions: Collection[Profession],
    alternatives: Sequence[str] = ("man", "woman"), multi_token: str | None = None,
) -> tuple[list[Profession], dict[str, str]]:
    """(usable professions, {word: reason}) in one template.

    The others are dropped by the single-token rule of the 2020 study, or by the one that `multi_token` names.
    """
    if multi_token == "last":
        return list(professions), {}
    why_not = why_not_single_token if multi_token is None else why_not_pairwise
    words = {profession.word: profession.text if multi_token else profession.word
             for profession in professions}
    reasons = {name: why_not(tokenizer, template, word, alternatives) for name, word in words.items()}
    return ([profession for profession in professions if reasons[profession.word] is None],
            {word: why for word, why in reasons.items() if why})

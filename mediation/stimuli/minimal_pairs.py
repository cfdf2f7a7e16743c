"""Minimal pairs as edge attribution has them: a clean and a corrupted prompt, answers as token ids.

The null prompt is the corrupted one, the alternative the clean one, and the candidates are the incorrect and
the correct token as text: odds are correct over incorrect, so an effect toward the clean answer is above 0.
Ids mean something in one model's vocabulary only.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mediation.errors import InputError
from mediation.stimuli import rows
from mediation.stimuli.prompts import tokenize_candidate
from mediation.stimuli.slots import Imported, collect, stimulus_of
from mediation.stimuli.stimulus_files import Stimulus

if TYPE_CHECKING:
    import transformers

PROMPTS = ("clean", "corrupted")
ANSWERS = (("incorrect_idx", "corrupted_answer_idx"), ("correct_idx", "clean_answer_idx"))


def load(
    path: str | Path, tokenizer: "transformers.PreTrainedTokenizerBase",
) -> tuple[Imported, list[str]]:
    """(stimuli, lines where a cell is a list of ids, whose first is taken) of a CSV or of JSON lines.

    Left out are rows that no stimulus can express: equal prompts or answers, an answer that is not the one
    token that this text has behind a blank, what stands in the file twice.

    Raises:
        InputError: an unreadable file, a missing column, an id that is none of the vocabulary, or no row.
    """
    path, size = Path(path), len(tokenizer)
    found, lists, seen = [], [], set()
    for number, row in rows.read_records(path, PROMPTS, "minimal pairs"):
        where = f"{path}, line {number}"
        prompts = [_text(where, name, row) for name in PROMPTS]
        cells = [_ids(where, names, row) for names in ANSWERS]
        for cell in cells:
            for token in cell:
                if not 0 <= token < size:
                    raise InputError(f"{where}: token id {token} is outside the vocabulary of {size:,} "
                                     "tokens: name with -model the model that the file was made for")
        if any(len(cell) > 1 for cell in cells):
            lists.append(f"line {number}")
        answers = tuple(cell[0] for cell in cells)
        found.append((f"line {number}", (number, prompts, answers)))
    if not found:
        raise InputError(f"{path} holds no pair: a row has {', '.join(PROMPTS)}, "
                         f"{' and '.join(' or '.join(names) for names in ANSWERS)}")

    def stimulus(item: tuple[int, list[str], tuple[int, ...]]) -> Stimulus:
        number, (clean, corrupted), answers = item
        if (clean, corrupted, answers) in seen:
            raise InputError("the same row stands in the file before")
        seen.add((clean, corrupted, answers))
        if answers[0] == answers[1]:
            raise InputError("the two answers are the same token")
        incorrect, correct = (_after_blank(tokenizer, token) for token in answers)
        return stimulus_of(str(number), corrupted, clean, (incorrect, correct))

    return collect(found, stimulus), lists


def _text(where: str, name: str, row: dict[str, Any]) -> str:
    if not isinstance(row.get(name), str):
        raise InputError(f"{where}: field {name!r} is missing: write a prompt")
    return row[name]


def _ids(where: str, names: tuple[str, str], row: dict[str, Any]) -> list[int]:
    """The token ids of a cell, one or a list of them."""
    name = next((name for name in names if name in row), None)
    if name is None:
        raise InputError(f"{where}: column {names[0]!r} (or {names[1]!r}) is missing: it is the answer's "
                         "token id")
    value = row[name]
    try:
        value = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        value = None
    ids = value if isinstance(value, list) else [value]
    if not ids or any(type(token) is not int for token in ids):
        raise InputError(f"{where}: field {name!r} is {rows.short(str(row[name]))}: write a token id")
    return ids


def _after_blank(tokenizer: "transformers.PreTrainedTokenizerBase", token: int) -> str:
    """The text of a token, as a candidate that gives just this token again behind a blank."""
    text = tokenizer.decode([token]).strip()
    if not text or tokenize_candidate(tokenizer, text)[1] != [token]:
        raise InputError(f"token {token} ({rows.short(tokenizer.decode([token]))}) is no answer behind a "
                         "blank", "an answer's token does not begin with a blank, or is no whole text")
    return text

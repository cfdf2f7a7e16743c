"""Stimuli in files: JSON lines, or CSV with the same columns. Every fault is told with file, line and field.

A line is one stimulus:

    {"id": "n1", "base": "The {} said that", "substitutes": ["nurse", "man"], "candidates": ["she", "he"],
     "group": "female"}

(without the line break). The first substitute makes the null prompt, each of the others is an alternative to
it. Odds are those of the second candidate over the first. In a CSV, substitutes and candidates are JSON
lists, or texts separated by |.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mediation.errors import InputError
from mediation.files.storage import whole_file
from mediation.stimuli.rows import csv_rows, json_rows, read_lines, short

FIELDS = ("id", "base", "substitutes", "candidates", "group", "cluster")  # the last two may be absent
NEEDED = FIELDS[:4]
LISTS = ("substitutes", "candidates")
LONGEST = 2000  # characters of a text: about 500 tokens, whose attention weights still fit into memory


@dataclass(frozen=True)
class Stimulus:
    """One line of a file.

    `substitutes`: first the null prompt's; `group`: "" for none; `line`: its own; `cluster`: what stimuli
    that depend on each other share, which intervals are over, and which decides no effect; "" for the id.
    """

    id: str
    base: str
    substitutes: tuple[str, ...]
    candidates: tuple[str, str]
    group: str = ""
    line: int = 0
    cluster: str = field(default="", repr=False)  # numbers are found again by what is printed of a stimulus

    @property
    def depends_on(self) -> str:
        """Its cluster, else its id."""
        return self.cluster or self.id


def read(path: str | Path) -> list[Stimulus]:
    """The stimuli of a JSONL or CSV file (by its ending), in order.

    Raises:
        InputError: a file that is not there, empty or not text, or a line that is no stimulus; file, line and
            field are named.
    """
    path = Path(path)
    texts = read_lines(path, "stimuli")
    rows = _csv_rows(path, texts) if path.suffix.lower() == ".csv" else json_rows(path, texts)
    stimuli = _different(path, rows)
    if not stimuli:
        raise InputError(f"{path}, line 1: the file holds no stimulus: a line is a JSON object with "
                         f"{', '.join(NEEDED)}")
    return stimuli


def of_records(records: Iterable[Any], name: str = "stimuli") -> list[Stimulus]:
    """Stimuli from dictionaries with a file's fields; "line" counts them from 1. `name`: of them, for errors.

    Raises:
        InputError: none, or one that is no stimulus; its number and field are named.
    """
    # a table has something in every cell: what is missing is not a number, or None
    rows = [(number, {field: _plain(value) for field, value in record.items()
                      if not (field not in NEEDED and (value is None or value != value))}
             if isinstance(record, Mapping) else record)
            for number, record in enumerate(records, start=1)]
    stimuli = _different(name, rows)
    if not stimuli:
        raise InputError(f"{name}: there is none: give dictionaries with {', '.join(NEEDED)}")
    return stimuli


def _plain(value: Any) -> Any:
    """A cell without NumPy's types: tables that were read from Parquet have arrays for lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def _different(name: str | Path, rows: Iterable[tuple[int, Any]]) -> list[Stimulus]:
    """Stimuli of numbered rows, no two with one id."""
    stimuli: list[Stimulus] = []
    first: dict[str, int] = {}  # the line of each id
    for number, row in rows:
        stimulus = parse(f"{name}, line {number}", number, row)
        if stimulus.id in first:
            raise InputError(f"{name}, line {number}: field 'id': {short(stimulus.id)} stands in line "
                             f"{first[stimulus.id]} already: give every stimulus its own")
        first[stimulus.id] = number
        stimuli.append(stimulus)
    return stimuli


def write(path: str | Path, stimuli: Iterable[Stimulus]) -> Path:
    """Write stimuli as JSON lines, whole or not at all; returns the path."""
    with whole_file(path) as file:
        for stimulus in stimuli:
            fields = {name: value for name, value in asdict(stimulus).items()
                      if name in FIELDS and value != ""}
            file.write(json.dumps(fields, ensure_ascii=False) + "\n")
    return Path(path)


def _csv_rows(path: Path, texts: Iterable[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a CSV as dictionaries, lists read."""
    for number, row in csv_rows(path, texts, NEEDED, FIELDS[len(NEEDED):]):
        yield number, {name: _list(path, number, name, text) if name in LISTS else text
                       for name, text in row.items()}


def _list(path: Path, number: int, name: str, text: str) -> Any:
    if not text.lstrip().startswith("["):
        return text.split("|")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number}: field {name!r}: {short(text)} is no JSON list: write "
                         "[\"one\", \"two\"] or one|two") from error


def parse(where: str, number: int, row: Any) -> Stimulus:
    """The stimulus of one line's fields. `where`: what an error begins with; `number`: of the line.

    Raises:
        InputError: no stimulus; the field is named.
    """
    if not isinstance(row, dict):
        raise InputError(f"{where}: {_kind(row)}, not an object with the fields {', '.join(FIELDS)}")
    unknown = [str(name) for name in row if name not in FIELDS]
    if unknown:
        raise InputError(f"{where}: field {short(unknown[0])} is unknown: the fields are "
                         f"{', '.join(FIELDS)}")
    for name in NEEDED:
        if name not in row:
            raise InputError(f"{where}: field {name!r} is missing: a stimulus has {', '.join(NEEDED)}")
    group = row.get("group")
    base = _text(where, "base", row["base"])
    if base.count("{}") != 1:
        raise InputError(f"{where}: field 'base': {short(base)} has {base.count('{}')} slots '{{}}': write "
                         "exactly one")
    if base != base.rstrip():
        raise InputError(f"{where}: field 'base': {short(base)} ends in a blank: leave it out, candidates "
                         "come after one anyway")
    substitutes, candidates = (_texts(where, name, row[name]) for name in LISTS)
    if len(substitutes) < 2:
        raise InputError(f"{where}: field 'substitutes' has {len(substitutes)}: give the null prompt's and "
                         "at least one alternative")
    if len(candidates) != 2:
        raise InputError(f"{where}: field 'candidates' has {len(candidates)}: give two, odds are of the "
                         "second over the first")
    for name, texts in (("substitutes", substitutes), ("candidates", candidates)):
        if len({text.strip() for text in texts}) < len(texts):
            raise InputError(f"{where}: field {name!r}: two of them are the same, so nothing could differ: "
                             f"{short(', '.join(texts))}")
    if group == "all":
        raise InputError(f"{where}: field 'group': 'all' is what means over all groups are called: choose "
                         "another name")
    group = "" if group in (None, "") else _text(where, "group", group)
    cluster = "" if row.get("cluster") in (None, "") else _identity(where, row["cluster"], "cluster")
    return Stimulus(_identity(where, row["id"]), base, substitutes, candidates, group, number, cluster)


def _identity(where: str, value: Any, name: str = "id") -> str:
    """A text, or a whole number as text."""
    return str(value) if type(value) is int and abs(value) < 10**18 else _text(where, name, value)


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InputError(f"{where}: field {name!r} is {_kind(value)}: write a text")
    if not value.strip():
        raise InputError(f"{where}: field {name!r} is empty: write a text")
    if len(value) > LONGEST:
        raise InputError(f"{where}: field {name!r} has {len(value):,} characters: at most {LONGEST:,} can be "
                         "studied")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise InputError(f"{where}: field {name!r} holds a control character, such as a tab or the end of a "
                         "line: leave it out")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: field {name!r} holds half a character (a lone surrogate): write it "
                         "again") from None
    return value


def _texts(where: str, name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where}: field {name!r} is {_kind(value)}: write a list of texts")
    return tuple(_text(where, name, text) for text in value)


def _kind(value: Any) -> str:
    """The kind of a value of JSON, in words."""
    kinds = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list",
             dict: "an object", type(None): "null"}
    return kinds.get(type(value), f"of type {type(value).__name__}")

"""Rows of text files: JSON lines, or CSV. Every fault is told with file and line."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mediation.errors import InputError

EXTRA = "too many cells"  # the name of what stands in a CSV's row beyond its columns


def read_lines(path: Path, what: str) -> list[str]:
    """The lines of a UTF-8 text, without a byte order mark. `what`: what the file should be, for the error.

    Raises:
        InputError: a file that cannot be read, or is not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): name a file of {what}, JSON lines or "
                         "CSV") from error
    texts = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            texts.append(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: not UTF-8 text ({error.reason} at byte "
                             f"{error.start + 1}): save the file as UTF-8") from error
    return texts


def read_records(path: Path, columns: Sequence[str], what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, {field: value}) of every row of a CSV (by its ending) or of JSON lines.

    A CSV must have the columns; what a row of it or a line of JSON lacks is absent.

    Raises:
        InputError: what `read_lines`, `json_rows` and `csv_rows` raise, a line that is no object, or a row of
            more cells than columns; file and line are named.
    """
    texts = read_lines(path, what)
    rows = csv_rows(path, texts, columns) if path.suffix.lower() == ".csv" else json_rows(path, texts)
    for number, row in rows:
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: not an object with {', '.join(columns)}")
        if EXTRA in row:
            raise InputError(f"{path}, line {number}: more cells than columns: set texts that hold commas in "
                             "quotes")
        yield number, row


def json_rows(path: Path, texts: Iterable[str]) -> Iterator[tuple[int, Any]]:
    """(line, value) of every line that is not empty."""
    for number, text in enumerate(texts, start=1):
        if text.strip():
            try:
                yield number, json.loads(text, object_pairs_hook=_without_repeats)
            except (ValueError, RecursionError) as error:
                reason = str(error).splitlines()[0] if isinstance(error, ValueError) else "nested too deeply"
                raise InputError(f"{path}, line {number}: not a JSON object ({reason}): write one object per "
                                 "line, or end the file's name in .csv") from error


def _without_repeats(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"field {name!r} twice")
    return dict(pairs)


def csv_rows(
    path: Path, texts: Iterable[str], columns: Sequence[str], optional: Sequence[str] = (),
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, {column: text}) of every row that is not empty; a row's number is that of its last line."""
    reader = csv.DictReader(io.StringIO("\n".join(texts)), restkey=EXTRA, strict=True)
    try:
        names = reader.fieldnames or []
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise InputError(f"{path}, line 1: column {short(repeated[0])} stands there twice: leave one of "
                             "them out")
        missing = [name for name in columns if name not in names]
        if missing:
            raise InputError(f"{path}, line 1: column {missing[0]!r} is missing: the columns are "
                             f"{', '.join([*columns, *optional])}")
        for row in reader:
            if any(row.values()):
                yield reader.line_num, {name: text for name, text in row.items() if text is not None}
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: not a CSV ({error}): mend its quotes") from error


def short(text: str) -> str:
    """A text in quotes, cut when it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")

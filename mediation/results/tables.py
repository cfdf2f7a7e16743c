"""Tables of a study as CSV or parquet: written word by word and read by columns, so that memory does not grow
with the rows."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from mediation.errors import InputError
from mediation.files.storage import whole_file

FORMATS = ("csv", "parquet")
CHUNK = 500_000  # rows read at once


def check_one_format(folder: str | Path, names: Iterable[str]) -> None:
    """Raises InputError where one of these tables is there in another format: a folder that has a table twice
    cannot be analysed."""
    for path in (Path(folder) / name for name in names):
        for ending in FORMATS:
            other = path.with_suffix(f".{ending}")
            if other != path and other.exists() and not path.exists():
                raise InputError(f"{other} is there already: use --format {ending}, or choose another "
                                 "-out_dir and convert its tables with convert_tables.py when they are "
                                 "finished")


class _CsvRows:
    """Rows of a CSV with an unnamed row index, as pandas writes it."""

    def __init__(self, file, schema):
        file.write(",".join(["", *schema.names]).encode() + b"\n")
        self.file, self.rows = file, 0

    def write(self, table):
        """Append the rows of a pyarrow table."""
        index = pa.array(np.arange(self.rows, self.rows + len(table)))
        plain = [column.combine_chunks().dictionary_decode() if pa.types.is_dictionary(column.type)
                 else column for column in table.columns]
        whole = pa.table([index, *plain], names=["", *table.column_names])
        for quoting in ("none", "needed"):  # the second quotes every text: only taken where a text needs it
            try:
                rows = pa.BufferOutputStream()
                options = pa.csv.WriteOptions(include_header=False, quoting_style=quoting)
                pa.csv.write_csv(whole, rows, options)
                break
            except pa.ArrowInvalid:
                if quoting == "needed":
                    raise
        self.file.write(rows.getvalue())
        self.rows += len(table)

    def close(self):
        pass


class _ParquetRows:
    """Row groups of a parquet file: texts and whole numbers by dictionary, zstd."""

    def __init__(self, file, schema):
        by_dictionary = [field.name for field in schema if not pa.types.is_floating(field.type)]
        self.writer = pa.parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=by_dictionary)
        self.rows = 0

    def write(self, table):
        """Append the rows of a pyarrow table, as one row group."""
        self.writer.write_table(table)
        self.rows += len(table)

    def close(self):
        self.writer.close()


@contextmanager
def table_writer(path: str | Path) -> Iterator[Callable[[Mapping[str, Any]], int]]:
    """Function that appends rows to a new table, whole or not there at the end; the format is the path's
    ending.

    >>> with table_writer("effects.parquet") as append:
    ...     append({"word": "nurse", "layer": layers, "candidate1_prob": probabilities})  # nurse in every row

    The function returns the number of rows written so far.
    """
    with whole_file(path, "wb") as file:
        rows = None

        def append(columns):
            nonlocal rows
            length = max(np.size(values) for values in columns.values())
            table = pa.table({name: _column(values, length) for name, values in columns.items()})
            if rows is None:
                rows = (_ParquetRows if Path(path).suffix == ".parquet" else _CsvRows)(file, table.schema)
            rows.write(table)
            return rows.rows

        yield append
        if rows is not None:
            rows.close()


def _column(values, length):
    """Array of a column: a text that stands in every row is kept once."""
    if isinstance(values, str):
        return pa.DictionaryArray.from_arrays(pa.array(np.zeros(length, np.int32)), pa.array([values]))
    values = np.asarray(values)
    if values.ndim == 0:
        values = np.broadcast_to(values, length)
    if values.dtype.kind in "OU":
        return pa.array(values.astype(object)).dictionary_encode()
    return pa.array(values, from_pandas=True)


def table_columns(path: str | Path) -> list[str]:
    """Names of a table's columns.

    Raises:
        InputError: a file that is no table of its ending.
    """
    try:
        if Path(path).suffix == ".parquet":
            return pa.parquet.read_schema(path).names
        return list(pd.read_csv(path, nrows=0).columns)
    except Exception as error:  # a damaged file raises whatever its bytes happen to say
        raise unreadable(path, error) from error


def read_columns(path: str | Path, columns: list[str], texts: Sequence[str] = ()) -> Iterator[pd.DataFrame]:
    """The named columns of a table, chunk by chunk: an iterator of pandas tables with a row index that counts
    on.

    `texts`: those of the columns that are words whatever they look like: "1", "null", "NA" and "".

    Raises:
        InputError: a file that cannot be read as what its ending says.
    """
    try:
        if Path(path).suffix == ".parquet":
            start = 0
            with pa.parquet.ParquetFile(path) as file:
                for chunk in file.iter_batches(CHUNK, columns=columns):
                    table = chunk.to_pandas()
                    table.index += start
                    start += len(table)
                    yield table[columns]
        else:
            words = {"dtype": dict.fromkeys(texts, str), "keep_default_na": False} if texts else {}
            with pd.read_csv(path, usecols=columns, chunksize=CHUNK, **words) as chunks:
                for chunk in chunks:
                    # pandas takes what is too much for an index
                    if not isinstance(chunk.index, pd.RangeIndex):
                        raise ValueError("rows have more cells than there are columns")
                    yield chunk
    except Exception as error:  # a damaged file raises whatever its bytes happen to say
        raise unreadable(path, error) from error


def check_numbers(
    path: str | Path, chunk: pd.DataFrame, column: str, low: float, high: float, remedy: str,
    what: str = "a number", whole: bool = False,
) -> None:
    """Make a column of a chunk numbers from `low` to `high`, in place.

    Raises:
        InputError: a cell is none; file, row and column are named, `what` it should be, and the remedy.
    """
    chunk[column] = pd.to_numeric(chunk[column], errors="coerce")
    good = chunk[column].between(low, high)
    if whole:
        good &= chunk[column] % 1 == 0
    bad = chunk.index[~good]
    if len(bad):
        raise InputError(f"{path}: row {bad[0] + 1}, column {column!r} is not {what}: {remedy}")


def check_columns(path: str | Path, columns: Iterable[str], remedy: str) -> list[str]:
    """Names of a table's columns, among them all of `columns`.

    Raises:
        InputError: one of them is missing, or the file is no table of its ending.
    """
    header = table_columns(path)
    missing = [column for column in columns if column not in header]
    if missing:
        raise InputError(f"{path}: column {missing[0]!r} is missing: {remedy}")
    return header


def unreadable(path: str | Path, error: Exception) -> InputError:
    """InputError for a table that is damaged."""
    kind = "parquet file" if Path(path).suffix == ".parquet" else "CSV"
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return InputError(f"{path} cannot be read as a {kind} ({reason}): write it again")


def convert(source: str | Path, target: str | Path) -> int:
    """Write a table in the other format, chunk by chunk; returns the number of rows."""
    names = [name for name in table_columns(source) if not name.startswith("Unnamed")]
    rows = 0
    with table_writer(target) as append:
        for chunk in read_columns(source, names):
            rows = append({name: chunk[name].to_numpy() for name in names})
    return rows

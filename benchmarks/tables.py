"""Writing and reading 1.7 million rows of a neuron table: parquet and CSV as in the study, and the 2020 way.

    python -m benchmarks.tables
    python -m benchmarks.tables --words 20

The 2020 way: a list with one dictionary per row, a pandas table of it, `to_csv`; and read back whole. Ours:
one block of columns per word, appended; read back by columns, chunk by chunk. Both hold the same numbers,
which is checked. Peak memory is measured in processes of their own, for two sizes.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks import peak_of_this_process, timed
from mediation.options import Parser, positive
from mediation.results.tables import read_columns, table_writer

LAYERS, NEURONS = 31, 576  # of SmolLM2-135M
COLUMNS = ["word", "candidate1_base_prob", "candidate2_base_prob", "candidate1_prob", "candidate2_prob",
           "layer", "neuron"]


def word_columns(number: int) -> dict[str, Any]:
    """The block of one word, with numbers as a sweep gives them: most near the base probability."""
    random = np.random.default_rng(number)
    layer, neuron = (index.ravel() for index in np.indices((LAYERS, NEURONS)))
    base = random.uniform(0.01, 0.2, 6)
    texts = {"word": f"word{number}", "base_string": f"The word{number} said that",
             "alt_string1": "The man said that", "alt_string2": "The woman said that",
             "candidate1": "['Ġhe']", "candidate2": "['Ġshe']"}
    names = [f"candidate{candidate}_{run}_prob" for run in ("base", "alt1", "alt2") for candidate in (1, 2)]
    candidate1 = base[0] * np.exp(random.normal(0, 0.02, layer.size))
    candidate2 = base[1] * np.exp(random.normal(0, 0.02, layer.size))
    return {**texts, **dict(zip(names, base.tolist())), "candidate1_prob": candidate1,
            "candidate2_prob": candidate2, "layer": layer, "neuron": neuron}


def write_ours(path: Path, words: int) -> None:
    """Word by word."""
    with table_writer(path) as append:
        for number in range(words):
            append(word_columns(number))


def read_ours(path: Path) -> float:
    """Sum of both probabilities over all rows: everything is read, nothing is kept."""
    return sum(float(chunk["candidate1_prob"].sum() + chunk["candidate2_prob"].sum())
               for chunk in read_columns(path, COLUMNS))


def write_2020(path: Path, words: int) -> None:
    """One dictionary per row."""
    rows = []
    for number in range(words):
        columns = word_columns(number)
        length = len(columns["layer"])
        rows += [{name: values[row] if np.ndim(values) else values for name, values in columns.items()}
                 for row in range(length)]
    pd.DataFrame(rows).to_csv(path)


def read_2020(path: Path) -> float:
    """The whole table at once."""
    table = pd.read_csv(path)
    return float(table["candidate1_prob"].sum() + table["candidate2_prob"].sum())


WAYS = {"2020": ("csv", write_2020, read_2020), "csv": ("csv", write_ours, read_ours),
        "parquet": ("parquet", write_ours, read_ours)}


def main(options: argparse.Namespace) -> None:
    """All ways in turns; then memory."""
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        paths = {way: Path(folder) / f"{way}.{ending}" for way, (ending, _, _) in WAYS.items()}
        times, sums = {way: [] for way in WAYS}, {}
        for _ in range(options.rounds):
            for way, (_, write, read) in WAYS.items():
                writing, _ = timed(write, paths[way], options.words)
                reading, sums[way] = timed(read, paths[way])
                times[way].append((writing, reading))
        assert max(sums.values()) - min(sums.values()) < 1e-6 * sums["2020"], sums
        rows = options.words * LAYERS * NEURONS
        print(f"{rows:,} rows ({options.words} words), {options.rounds} rounds; the same numbers in all "
              "files\n")
        print("| way | writing, s | reading, s | both, times 2020 | MB | part of 2020's bytes | peak memory, "
              "MB | with 3 times the rows |\n| --- | --- | --- | --- | --- | --- | --- | --- |")
        for way in WAYS:
            ratios = [sum(old) / sum(new) for old, new in zip(times["2020"], times[way])]
            writing, reading = (statistics.median(column) for column in zip(*times[way]))
            size, largest = paths[way].stat().st_size, paths["2020"].stat().st_size
            # the memory of 2020's way grows with the rows: it is not run with three times as many
            sizes = [options.words, None if way == "2020" else 3 * options.words]
            memory = ["not run" if words is None else f"{peak_memory(way, words, folder):.0f}"
                      for words in sizes]
            print(f"| {way} | {writing:.2f} | {reading:.2f} | {statistics.median(ratios):.1f} | "
                  f"{size / 1e6:.1f} | 1/{largest / size:.1f} | {' | '.join(memory)} |")


def peak_memory(way: str, words: int, folder: str) -> float:
    """Peak memory in MB of a process that writes and reads one table, imports included."""
    command = [sys.executable, "-m", "benchmarks.tables", "--alone", way, "--words", str(words),
               "--folder", folder]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def alone(options: argparse.Namespace) -> None:
    """The process of `peak_memory`."""
    ending, write, read = WAYS[options.alone]
    path = Path(options.folder) / f"alone.{ending}"
    write(path, options.words)
    read(path)
    print(peak_of_this_process())


if __name__ == "__main__":
    command_line = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument("--words", type=positive, default=96, metavar="N",
                              help=f"of {LAYERS * NEURONS:,} rows each (default: 96)")
    command_line.add_argument("--rounds", type=positive, default=3, metavar="N",
                              help="turns of all ways (default: 3)")
    command_line.add_argument("--folder", default=None, metavar="D",
                              help="for temporary files (default: the system's)")
    command_line.add_argument("--alone", choices=WAYS, help="one way in this process, for its memory only")
    chosen_options = command_line.parse_args()
    (alone if chosen_options.alone else main)(chosen_options)

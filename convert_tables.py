"""Neuron tables from CSV to parquet, or back.

    python convert_tables.py results/20200301_neuron_intervention --to parquet
    python convert_tables.py results/20200301_neuron_intervention --to csv -out_dir as_csv

Converts every neuron table in FOLDER (or the one file that is named), row by row as it is, into the same name
with the other ending, beside it or under -out_dir. The source is kept; a target that is there already is not
overwritten. The analysis scripts read both formats, but not a folder that has one table twice: use -out_dir,
or move the source away. The manifest says of a target what it says of its source, so that the run can be
extended in the new format.
"""

import argparse
from pathlib import Path

from mediation.errors import InputError
from mediation.files.storage import RunFolder, check_writable
from mediation.options import Parser, exit_on_bad_input


def main(options: argparse.Namespace) -> None:
    """Find the tables, convert one after the other."""
    from tqdm import tqdm

    from mediation.results.neuron_tables import TYPES
    from mediation.results.tables import convert

    source = Path(options.folder)
    ending = "csv" if options.to == "parquet" else "parquet"
    paths = [source] if source.is_file() else sorted(
        path for path in source.glob(f"*.{ending}") if any(f"_{kind}_" in path.stem for kind in TYPES))
    if not paths or paths[0].suffix != f".{ending}":
        raise InputError(f"{source} has no neuron tables in {ending}: name a folder of them, or another "
                         "format with --to")
    out_dir = Path(options.out_dir or paths[0].parent)
    check_writable(out_dir)
    targets = [out_dir / f"{path.stem}.{options.to}" for path in paths]
    for target in targets:
        if target.exists():
            raise InputError(f"{target} is already there: move it away, or choose another -out_dir")
    rows = 0
    for path, target in tqdm(list(zip(paths, targets)), desc="converting", unit=" tables"):
        rows += convert(path, target)
    note_conversion(dict(zip(paths, targets)))
    before, after = (sum(path.stat().st_size for path in files) / 1e6 for files in (paths, targets))
    print(f"converted {len(paths)} tables, {rows:,} rows, {before:.1f} MB as {ending}, {after:.1f} MB as "
          f"{options.to}, in {out_dir}")


def note_conversion(targets: dict[Path, Path]) -> None:
    """Say in the targets' manifest what the sources' says of them.

    The same command with the new --format then finds its tables finished.
    """
    from mediation.results.neuron_tables import runs_in

    names = {path.name: target.name for path, target in targets.items()}
    source, target = next(iter(targets.items()))
    for run in runs_in(source.parent):
        files = {names.get(name, name): entry for name, entry in run["files"].items()}
        if files.keys() != run["files"].keys():
            RunFolder(target.parent).begin({**run, "files": files})


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="folder of the tables, or one table")
    parser.add_argument("--to", choices=("csv", "parquet"), default="parquet",
                        help="format to write (default: parquet)")
    parser.add_argument("--out_dir", metavar="D", help="where to write (default: beside the sources)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

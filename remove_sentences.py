"""Results of the attention study without the data set's sentences: numbers that may be passed on.

    python remove_sentences.py run/winobias_data/attention_intervention_gpt2_unfiltered_dev.json -out_dir mine

An entry then names its example by the number that it has in the data set; every script that reads result
files has the sentences from there again. --filtered writes what a filtered run has, too: its entries are
among those of the unfiltered file.
"""

import argparse
from pathlib import Path

from mediation.errors import InputError
from mediation.files.storage import check_writable, write_json
from mediation.options import Parser, exit_on_bad_input


def main(options: argparse.Namespace) -> None:
    """All files first, so that bad input writes nothing."""
    from mediation.results.attention_results import read_results
    from mediation.results.numbered import filtered, numbered

    out_dir = Path(options.out_dir)
    check_writable(out_dir)
    contents = {}
    for path in map(Path, options.files):
        content = read_results(path)
        if options.filtered and content["do_filter"]:
            raise InputError(f"{path} is filtered already: name the unfiltered file, or leave --filtered out")
        parts = [(path.name, content)]
        if options.filtered:
            parts.append((path.name.replace("_unfiltered", "_filtered"), filtered(content)))
        for name, part in parts:
            if out_dir / name in contents:
                raise InputError(f"{path}: there would be two files {out_dir / name}: give this one a name "
                                 "of its own, with _unfiltered in it where --filtered is asked for")
            contents[out_dir / name] = numbered(part, path)
    for path in contents:
        if path.exists():
            raise InputError(f"{path} is already there: move it away, or choose another -out_dir")
    for path, content in contents.items():
        write_json(path, content, indent=None)
        print(f"wrote {path}: {len(content['results'])} examples")


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="FILE", help="result files of the attention study")
    parser.add_argument("--out_dir", required=True, metavar="D",
                        help="where to write the files without sentences")
    parser.add_argument("--filtered", action="store_true",
                        help="write the part of each unfiltered file that passes the study's filter, too")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

"""The report of any results as one page that opens offline: what was asked, what was found, how sure it is.

    python make_report.py results/20200301_neuron_intervention smollm2-135m
    python make_report.py winobias_data winogender_data
    python make_report.py mine selection -out_dir pages

PATH: a folder of the neuron study, of the attention study or of mediate.py, a JSON of the attention study
(ours or of 2020), a folder of selections, or an -out_dir of any of these, of whose neuron studies the newest
counts; models that were asked the same are compared. The last argument may be the name of the one model that
is reported. Writes report.html, and report.md, its text; prints what was found.
"""

import argparse
import shlex
from pathlib import Path

from mediation.errors import InputError
from mediation.files.storage import check_writable, python_command
from mediation.options import Parser, exit_on_bad_input, model_size, seed
from mediation.stimuli import professions


def main(options: argparse.Namespace) -> None:
    """Everything that lies in the folders, on one page."""
    from mediation.effects.model_comparison import MILLIONS
    from mediation.reports.html import write_page
    from mediation.reports.page import found, plain
    from mediation.reports.study_page import study_page
    from mediation.results import study_results
    from mediation.results.model_results import sources_in
    from mediation.results.selections import selections_in

    *others, last = options.paths
    model = last if others and not Path(last).exists() else None
    paths = [Path(path) for path in (others if model else options.paths)]
    out_dir = Path(options.out_dir or (paths[0].parent if paths[0].is_file() else paths[0]))
    check_writable(out_dir)
    selected = [each for path in paths if path.is_dir() for each in selections_in(path)]
    sources = list(dict.fromkeys(source for path in paths if not _only_selections(path)
                                 for source in sources_in(path)))
    if model:
        sources = [source for source in sources if source.model == model]
        if not sources:
            raise InputError(f"{', '.join(map(str, paths))}: no results of {model!r}: name another model, "
                             "or a folder that is there")
    if not sources:
        raise InputError("there are selections alone: name a folder of results as well")
    rated = professions.load()
    results = [study_results.read(source, rated) for source in sources]

    def again(*more: str, every: bool = False) -> str:
        named = [*map(str, paths), *more, *([model] if model and not every else [])]
        sizes = [f"{name}={number:g}" for name, number in options.sizes]
        named += ["--sizes", *sizes] if sizes else []
        named += [f"--seed={options.seed}"] if options.seed else []
        named += ["-out_dir", options.out_dir] if options.out_dir else []
        return f"{python_command()} make_report.py {shlex.join(named)}"

    page = study_page(results, selected, MILLIONS | dict(options.sizes), options.seed, again=again)
    written = write_page(page, out_dir / "report.html")
    print("What was found:", *map(plain, found(page)), sep="\n")
    print("wrote", *reversed(written))


def _only_selections(path: Path) -> bool:
    results = "attention_intervention_*.json", "total_effects_*.csv"
    return any(path.glob("topk_*.pickle")) and not any(any(path.glob(pattern)) for pattern in results)


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="results, see above; the last may be a "
                                                                 "model")
    parser.add_argument("--sizes", type=model_size, nargs="+", default=[], metavar="M=MILLIONS",
                        help="parameters of models, in millions, for the trend over size; those of the five "
                             "GPT-2 and of smollm2-135m are known")
    parser.add_argument("--seed", type=seed, default=0, help="of the draws (default: 0)")
    parser.add_argument("--out_dir", metavar="D", help="where the pages go (default: the first folder)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

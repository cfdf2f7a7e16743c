"""Causal mediation analysis of your own stimuli: which neurons, MLPs, heads and layers carry a word's effect.

    python mediate.py stimuli.jsonl -model smollm2-135m -out_dir mine
    python mediate.py stimuli.csv -model gpt2 -out_dir mine --mediators neurons,heads,layers,mlps \\
        --method screen --multi_token last

A line of the file is one stimulus (docs/your_question.md tells more; export_stimuli.py writes examples):

    {"id": "n1", "base": "The {} said that", "substitutes": ["nurse", "man"], "candidates": ["she", "he"]}

It may have a "group", such as "female", too. The first substitute makes the null prompt; each other one is an
alternative to it. Odds are p(second candidate) / p(first), and for every mediator the effect relative to the
null prompt's odds is taken two ways: indirect (the null prompt is run, the mediator as in the alternative's
run) and direct (the alternative is run, the mediator as in the null prompt's run).

{mediators}

Writes OUT_DIR/total_effects_{M}.csv, and for each mediator {mediator}_{M}.csv (every comparison and unit),
{mediator}_mean_{M}.csv (means by group) and figures, report_{M}.md (on all mediators that the folder has) and
manifest.json. Finished tables are kept; an interrupted run goes on where it was.
"""

import argparse
import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mediation.errors import InputError
from mediation.files.storage import RunFolder, check_writable, whole_file, write_csv
from mediation.mediators.catalogue import CATALOGUE, DEFAULT, POSITIONS, VALUES, Request, order_of, together
from mediation.options import (
    Parser,
    add_full_passes,
    add_masking_approach,
    add_method,
    add_model_options,
    add_multi_token,
    add_screening,
    check_screen_share,
    choices,
    exit_on_bad_input,
    refuse_full_passes,
)
from mediation.results.tables import FORMATS, check_one_format
from mediation.stimuli import stimulus_files

if TYPE_CHECKING:
    from experiment import Model


def main(options: argparse.Namespace) -> None:
    """Stimuli, model, total effects; then one mediator after the other; figures and a report on the files."""
    from mediation.studies import own_question
    from mediation.studies.attention import masking_suffix
    from mediation.studies.comparisons import applicable, build_comparisons
    from utils import load_model

    requests = asked_for(options)
    stimuli = stimulus_files.read(options.stimuli)
    check_writable(options.out_dir)
    model = load_model(options)
    if any(request.mediator.screened for request in requests):
        check_screen_share(options, model.num_layers)
    if model.masking and options.method != "exact":
        raise InputError(f"{model.name} is a masked model: its heads are all run, use --method exact")
    comparisons = build_comparisons(model, options.stimuli, stimuli, options.multi_token)
    fitting = {request: applicable(model, comparisons, request, options.seed) for request in requests}
    print(f"stimuli: {len(stimuli)}, comparisons: {len(comparisons)}; model {model.name}: {model.num_layers} "
          f"layers, {model.num_heads} heads and {model.num_neurons} neurons a layer, on {model.device}")
    report_left_out(fitting, comparisons, options)

    name, run_folder = model.name + masking_suffix(model), RunFolder(options.out_dir)
    common = own_question.describe_stimuli(model, stimuli, options)
    totals = {"total_effects": f"total_effects_{name}.csv"}
    runs = []  # (files of mediators of one sweep, what decides their numbers)
    for of_sweep in together([request for request, (usable, _) in fitting.items() if usable]):
        files = {request: f"{request.name}_{name}.{options.format}" for request in of_sweep}
        runs.append((files, own_question.describe_settings(common, of_sweep, options)))
    for names, settings in [(totals.values(), common), *((files.values(), own) for files, own in runs)]:
        check_one_format(run_folder.folder, names)
        run_folder.claim(names, settings)  # before anything is computed
    with run_folder.claimed(totals.values(), common):
        run = run_folder.begin(describe_run(model, totals.values(), common, {}, options))
        write_totals(model, comparisons, run_folder, run, totals["total_effects"])
    for files, settings in runs:
        with run_folder.claimed(files.values(), settings):
            dropped = {request.name: fitting[request][1] for request in files}
            run = run_folder.begin(describe_run(model, files.values(), settings, dropped, options))
            usable = {request: fitting[request][0] for request in files}
            write_mediators(model, usable, run_folder, run, files, name, options)
    print(write_report(name, run_folder, common, options))


def asked_for(options: argparse.Namespace) -> list[Request]:
    """The mediators at their positions; of those that are not named, all that can be changed there.

    Raises:
        InputError: mediators, positions and values that do not go together.
    """
    if options.mediators:
        return [Request.of(name, options.positions, options.values) for name in options.mediators]
    fitting = [name for name in DEFAULT
               if (CATALOGUE[name].sites or (options.values == "alternative" and not options.positions))
               and options.positions in (None, *CATALOGUE[name].positions)]
    return [Request.of(name, options.positions, options.values) for name in fitting
            if options.values != "mean" or options.positions or CATALOGUE[name].positions[0] == "slot"]


def in_words(choices: dict[str, str]) -> str:
    """Options and what they mean."""
    return "; ".join(f"{name}: {what}" for name, what in choices.items())


def report_left_out(fitting: dict[Request, tuple], comparisons: list, options: argparse.Namespace) -> None:
    """Print which comparisons each mediator is not defined for, and why.

    Raises:
        InputError: nothing is left; file and line are named.
    """
    for request, (_, dropped) in fitting.items():
        for reason, names in dropped.items():
            sample = f"{', '.join(dict.fromkeys(names[:5]))}{' ...' if len(names) > 5 else ''}"
            print(f"{request.name}: {len(names)} of {len(comparisons)} comparisons left out: {reason} "
                  f"({sample})")
    if not any(usable for usable, _ in fitting.values()):
        reasons = {reason: names for _, dropped in fitting.values() for reason, names in dropped.items()}
        reason, names = next(iter(reasons.items()))
        asked = ", ".join(request.name for request in fitting)
        raise InputError(f"{options.stimuli}, line {comparisons[0].stimulus.line}: no stimulus of the file "
                         f"fits {asked}: {len(names)} of {len(comparisons)} comparisons, such as "
                         f"{names[0]!r}: {reason}")


def describe_run(model: "Model", files: Iterable[str], settings: dict[str, Any],
                 dropped: dict[str, dict[str, list[str]]], options: argparse.Namespace) -> dict[str, Any]:
    """The entry of the manifest. `dropped`: for each mediator {reason: comparisons that are left out}."""
    from mediation.files.storage import describe_machine, now

    left_out = {mediator: {reason: len(names) for reason, names in reasons.items()}
                for mediator, reasons in dropped.items()}
    return {"settings": settings, "files": {file: {} for file in files},
            "stimuli": str(options.stimuli), "left_out": left_out, "command": shlex.join(sys.argv),
            "machine": describe_machine(model), "started": now(), "finished": None}


def write_totals(model: "Model", comparisons: list, run_folder: RunFolder, run: int, file: str) -> None:
    """The table without interventions, unless it is finished."""
    from mediation.files.storage import now
    from mediation.studies import own_question

    if not run_folder.is_finished(file):
        rows = own_question.write_total_effects(run_folder.folder / file, model, comparisons)
        run_folder.finish_file(run, file, rows=rows)
    run_folder.update(run, finished=now())


def write_mediators(
    model: "Model", comparisons: dict[Request, list], run_folder: RunFolder, run: int,
    files: dict[Request, str], name: str, options: argparse.Namespace,
) -> None:
    """Sweep, tables and means of the mediators of one sweep, unless they are there.

    Args:
        comparisons, files: those that fit a mediator, and its table.
    """
    from tqdm import tqdm

    from mediation.files.storage import now
    from mediation.model.fast_rows import FastRows
    from mediation.results.mediation_tables import write_effects
    from mediation.studies import own_question
    from mediation.studies.engine import StudyOptions
    from mediation.studies.error_budget import Check, budget, describe_check
    from mediation.studies.neurons import describe_interpolation
    from mediation.studies.results import Account

    units = ", ".join(request.name for request in files)
    shards = f"{'_'.join(request.name for request in files)}_{name}"
    for request, file in files.items():
        fitting = comparisons[request]
        means = run_folder.folder / f"{request.name}_mean_{name}.csv"
        if run_folder.is_finished(file) and means.exists():
            print(f"kept: {run_folder.folder / file} is finished")
            continue
        interventions = own_question.interventions(model, fitting, request)
        account, groups = Account(), [comparison.stimulus.group for comparison in fitting]
        with tqdm(total=interventions, unit=" interventions", unit_scale=True, smoothing=0.05) as progress:
            effects = own_question.rows(model, fitting, request, shards, StudyOptions.of(options),
                                        run_folder, progress, account)
            one_place = request.positions if request.positions in ("slot", "last") else ""
            rows, table = write_effects(run_folder.folder / file, effects, groups, one_place)
        write_csv(means, table)
        run_folder.finish_file(run, file, **account.entry(rows), mediator=request.name,
                               layers=request.mediator.layers)
    entry = run_folder.entry_of(next(iter(files.values())))  # the others come from the same sweep
    fast = FastRows(**entry["fast"]) if "fast" in entry else None
    run_folder.update(run, finished=now(), error_budget=budget(options).describe(),
                      **({"fast": asdict(fast)} if fast else {}))
    if fast:
        print(fast)
    for kind, counts in entry.get("interpolation", {}).items():
        print(describe_interpolation(kind, counts, "word"))
    checked = Check.from_entry(entry)
    method = run_folder.read()["runs"][run]["settings"]["method"]
    if method == "gradient":
        print(f"{units}: estimates compared with {checked.random + checked.likely} full passes: "
              f"log-probabilities differ by at most {checked.deviation:.1e}")
    else:
        what = units if method == "exact" else f"{units} among those run"
        print(describe_check(checked, budget(options).total, what))


def write_report(
    name: str, run_folder: RunFolder, common: dict[str, Any], options: argparse.Namespace,
) -> str:
    """Figures of the means, and a report (returned) on all mediators of these stimuli in the folder."""
    from mediation.reports import plots, report
    from mediation.results.mediation_tables import read_table, screening_of

    totals = read_table(run_folder.folder / f"total_effects_{name}.csv")
    of_mediators: dict[str, report.Mediator] = {}
    figures: list[Path] = []
    for run in run_folder.read()["runs"]:
        if common.items() <= run["settings"].items():
            for file, entry in run["files"].items():
                if mediator := entry.get("mediator"):
                    means = read_table(run_folder.folder / f"{mediator}_mean_{name}.csv")
                    screening = screening_of(entry, run["settings"].get("screen_top"))
                    of_mediators[mediator] = report.Mediator(means, file, entry, run, screening)
    of_mediators = {mediator: of_mediators[mediator] for mediator in sorted(of_mediators, key=order_of)}
    for mediator, of_mediator in of_mediators.items():
        figures += plots.mediator(mediator, of_mediator.means, name, run_folder.folder,
                                  of_mediator.entry["layers"])
    text = report.mediation(name, options.stimuli, totals, of_mediators, figures)
    path = run_folder.folder / f"report_{name}.md"
    with whole_file(path) as file:
        file.write(text)
    return f"{text}\nwrote {path}"


if __name__ == "__main__":
    lines = "\n".join(f"  {mediator.name:13} {mediator.what}"
                      + (f" ({', '.join(mediator.positions)})" if mediator.positions else "")
                      for mediator in CATALOGUE.values())
    parser = Parser(description=__doc__.replace("{mediators}", lines),
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stimuli", metavar="STIMULI", type=Path,
                        help="JSONL file, or CSV with the same columns")
    add_model_options(parser)
    parser.add_argument("--out_dir", required=True, metavar="D",
                        help="where tables, figures and the report go")
    parser.add_argument("--mediators", type=choices(*CATALOGUE), metavar="M,...",
                        help=f"of {', '.join(CATALOGUE)}, separated by commas "
                             f"(default: {', '.join(DEFAULT)})")
    parser.add_argument("--positions", choices=tuple(POSITIONS),
                        help=f"where a mediator is changed. {in_words(POSITIONS)} (default: the first that "
                             "the list above has for the mediator)")
    parser.add_argument("--values", choices=tuple(VALUES), default="alternative",
                        help=f"what is put in. {in_words(VALUES)}. All but the first change the null "
                             "prompt's run alone; the effect is written as ablation (default: alternative)")
    parser.add_argument("--format", choices=FORMATS, default="csv",
                        help="of the tables of every comparison and unit (default: csv)")
    add_multi_token(parser)
    add_masking_approach(parser)
    add_method(parser)
    add_screening(parser)
    add_full_passes(parser)
    chosen_options = parser.parse_args()
    refuse_full_passes(parser, chosen_options)
    with exit_on_bad_input():
        main(chosen_options)

"""Neuron interventions on profession prompts: the natural direct and indirect effects of a model's neurons.

    python run_profession_neuron_experiments.py -model smollm2-135m -out_dir . -template_indices 1 \\
        --professions nurse doctor
    python run_profession_neuron_experiments.py -model smollm2-135m -out_dir . --total_effects_only
    python run_profession_neuron_experiments.py -model smollm2-135m -out_dir . --method screen \\
        -template_indices 1 --professions nurse doctor

For each template, profession and intervention type, the value of every neuron (word embedding and MLP
outputs) is replaced in turn, and the probabilities of " he" and " she" are kept. Writes, under
OUT_DIR/results/YYYYMMDD_neuron_intervention/[random/], one table per template and type, such as
The_X_said_that_man_indirect_gpt2.csv, and manifest.json (model and weights hash, settings, versions, times).
A finished table is not computed again; an interrupted run goes on where it was, and one that asks for more
than it did finishes it first.
"""

import argparse
import datetime
import json
import shlex
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mediation.errors import InputError
from mediation.files.storage import RunFolder, check_writable, not_default, software
from mediation.mediators.catalogue import CATALOGUE
from mediation.options import (
    Parser,
    add_engine,
    add_full_passes,
    add_method,
    add_model_options,
    add_multi_token,
    add_plan,
    add_screening,
    check_screen_share,
    exit_on_bad_input,
    refuse_full_passes,
)
from mediation.results.neuron_tables import runs_in
from mediation.results.tables import FORMATS, check_one_format, table_writer
from mediation.stimuli import professions
from mediation.stimuli.prompts import check_candidates, tokenize_candidate
from mediation.stimuli.templates import select_templates, template_file_stem
from mediation.studies.engines import engine_of

if TYPE_CHECKING:
    from experiment import Intervention, Model
    from mediation.effects.screening import Screening
    from mediation.studies.engine import StudyOptions
    from mediation.studies.error_budget import Check
    from mediation.studies.works import Work

    Interventions = dict[str, dict[str, Intervention]]  # {template: {word: its stimulus}}
    Dropped = dict[str, dict[str, str]]  # {template: {word: why it is dropped}}

TYPES = ("man_direct", "man_indirect", "woman_direct", "woman_indirect")
DIFFERENCES = ("man_minus_woman", "woman_minus_man")
NO_INTERVENTION = "no_intervention"


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--out_dir", required=True, metavar="D",
                        help="results go to D/results/YYYYMMDD_neuron_intervention")
    parser.add_argument("--template_indices", type=int, nargs="+", metavar="I",
                        help="templates 1 to 17 (default: all)")
    parser.add_argument("--professions", nargs="+", metavar="W",
                        help="words from experiment_data/professions.csv (default: all 320)")
    parser.add_argument("--max_examples", type=int, metavar="N", help="only the first N professions")
    parser.add_argument("--intervention_types", nargs="+", choices=TYPES + DIFFERENCES, default=list(TYPES),
                        metavar="T", help=f"of {', '.join(TYPES + DIFFERENCES)} (default: the first four)")
    parser.add_argument("--alpha", type=float, default=1.0,
                        help="factor on the value that replaces a neuron's, or on the difference added "
                             "(default: 1)")
    parser.add_argument("--candidates", nargs=2, default=["he", "she"], metavar=("C1", "C2"),
                        help="single-token continuations (default: he she; analysed in either order)")
    parser.add_argument("--total_effects_only", action="store_true",
                        help="no interventions: one row per profession with its probabilities, all that the "
                             "total effects need")
    parser.add_argument("--odds_only", action="store_true",
                        help="leave out the sum over the vocabulary, somewhat faster: a column log_odds, "
                             "probabilities under interventions empty")
    parser.add_argument("--format", choices=FORMATS, default="csv",
                        help="csv, or parquet: 1/17 of the size, faster to read (default: csv)")
    add_full_passes(parser)
    add_multi_token(parser)
    add_method(parser)
    add_screening(parser)
    add_engine(parser)
    add_plan(parser)
    options = parser.parse_args(arguments)
    refuse_full_passes(parser, options)
    if options.method != "exact" and options.total_effects_only:
        parser.error(f"--method {options.method} does not go with --total_effects_only")
    return options


def main(options: argparse.Namespace) -> None:
    """Stimuli, model, sweep, tables; bad input is found before anything is written."""
    from mediation.files.storage import describe_machine, now
    from mediation.model.readout import check_odds_only
    from mediation.studies.engine import StudyOptions
    from mediation.studies.plan import told
    from utils import load_model

    started = time.monotonic()  # the clock on the wall may jump
    templates = select_templates(options.template_indices)
    chosen = professions.select(options.professions, options.max_examples)
    check_writable(options.out_dir)
    types = list(dict.fromkeys(options.intervention_types))
    if options.total_effects_only:
        types = [NO_INTERVENTION]

    model = load_model(options)
    CATALOGUE["neurons"].check_model(model)
    check_screen_share(options, model.num_layers)
    interventions, dropped = build_interventions(model, templates, chosen, options.candidates,
                                                 options.multi_token)
    if options.odds_only:
        first, *_ = next(iter(interventions.values())).values()
        check_odds_only(first.candidates_tok)  # all stimuli have these
    report_stimuli(model, templates, chosen, interventions, dropped)

    files = {f"{template_file_stem(templates[number])}_{kind}_{model.name}.{options.format}":
             {"template": templates[number], "intervention_type": kind}
             for number in templates for kind in types}
    settings = describe_settings(model, options, interventions)
    run_folder = find_folder(Path(options.out_dir), options.randomize, settings, files)
    check_one_format(run_folder.folder, files)
    run_folder.claim(files, settings)
    parts = [*run_folder.stopped_within(files, settings), files]
    of_first = {name: entry for name, entry in files.items()
                if entry["template"] == next(iter(interventions))}
    more = {"one template": lambda: works(model, [of_first], settings, interventions, run_folder.folder,
                                          StudyOptions.of(options))} if len(templates) > 1 else {}
    if told(model, lambda chosen: works(model, parts, settings, interventions, run_folder.folder, chosen),
            options, run_folder.folder, more):
        return
    for part in parts:
        with run_folder.claimed(part, settings):
            run = run_folder.begin({"settings": settings, "files": part, "dropped_professions": dropped,
                                    "command": shlex.join(sys.argv), "machine": describe_machine(model),
                                    "started": now(), "finished": None, "wall_time_seconds": 0.0})

            write = write_probabilities if options.total_effects_only else write_interventions
            write(model, run_folder, run, interventions, options)

            seconds = run_folder.read()["runs"][run]["wall_time_seconds"] + time.monotonic() - started
            run_folder.update(run, finished=now(), wall_time_seconds=seconds)
            started = time.monotonic()
    print(f"finished: {len(files)} tables and manifest.json in {run_folder.folder}")


def works(
    model: "Model", parts: Sequence[dict[str, dict[str, Any]]], settings: dict[str, Any],
    interventions: "Interventions", folder: Path, options: "StudyOptions",
) -> list["Work"]:
    """What is still to be done for these files, part by part, for a plan; nothing is written."""
    from mediation.studies.professions import ProfessionStudy, total_effects
    from mediation.studies.works import Work

    ahead: list[Work] = []
    finished: set[str] = set()
    for part in parts:
        run_folder = RunFolder(folder)
        run_folder.claim(part, settings)
        todo = [name for name in part if name not in finished and not run_folder.is_finished(name)]
        opened = {name: entry for name, entry in run_folder.files_ahead(part, settings).items()
                  if name not in finished}
        finished |= set(part)
        if NO_INTERVENTION in {entry["intervention_type"] for entry in part.values()}:
            ahead += [total_effects(interventions[part[name]["template"]]) for name in todo]
        elif todo:
            study = ProfessionStudy(model, run_folder, interventions, opened, options)
            ahead += study.works(todo)
    return ahead


def build_interventions(
    model: "Model", templates: dict[int, str], chosen: list[professions.Profession],
    candidates: Sequence[str], multi_token: str | None = None,
) -> tuple["Interventions", "Dropped"]:
    """({template: {word: Intervention}}, {template: {dropped word: reason}}).

    Raises:
        InputError: candidates that are not two different ones (single tokens, without `multi_token`), or no
            word left.
    """
    from experiment import Intervention

    ids = [tokenize_candidate(model.tokenizer, candidate)[1] for candidate in candidates]
    check_candidates(candidates, ids, single=multi_token is None)
    interventions, dropped = {}, {}
    for template in templates.values():
        usable, dropped[template] = professions.usable(model.tokenizer, template, chosen,
                                                       multi_token=multi_token)
        words = {profession.word: profession.text if multi_token else profession.word
                 for profession in usable}
        interventions[template] = {
            name: Intervention(model.tokenizer, template, [word, "man", "woman"], candidates, model.device,
                               multi_token) for name, word in words.items()}
        if not usable:
            word, reason = next(iter(dropped[template].items()))
            raise InputError(f"no usable profession in {template!r}: {len(chosen)} dropped, such as "
                             f"{word!r}: {reason}; name single-token words with --professions, or take words "
                             "of several tokens with --multi_token last")
    return interventions, dropped


def report_stimuli(
    model: "Model", templates: dict[int, str], chosen: list[professions.Profession],
    interventions: "Interventions", dropped: "Dropped",
) -> None:
    """Print the model, the numbers of templates and prompts, and every dropped profession with the reason."""
    counts = {template: len(words) for template, words in interventions.items()}
    print(f"model {model.name}: {model.num_layers} layers, {model.num_neurons} neurons a layer, "
          f"{(model.num_layers + 1) * model.num_neurons} neurons with the word embedding, on {model.where}")
    used = str(next(iter(counts.values()))) if len(set(counts.values())) == 1 else str(counts)
    print(f"templates: {len(templates)}; prompts: {sum(counts.values())}; professions used in each template: "
          f"{used} of {len(chosen)}")
    where: dict[tuple[str, str], list[str]] = {}
    for template, reasons in dropped.items():
        for word, reason in reasons.items():
            where.setdefault((word, reason), []).append(template)
    if where:
        names = [f"{word}: {reason}" + ("" if len(places) == len(templates) else f" in {', '.join(places)}")
                 for (word, reason), places in where.items()]
        text = (f"dropped, {len(names)} professions that do not fill the slot with a single token: "
                f"{'; '.join(names)}")
        print(textwrap.fill(text, 120))
        print("--multi_token last takes words of several tokens, too")


def describe_settings(
    model: "Model", options: argparse.Namespace, interventions: "Interventions",
) -> dict[str, Any]:
    """What decides the numbers: the same settings give the same tables."""
    return {
        **model.describe(),
        "professions": list(dict.fromkeys(word for words in interventions.values() for word in words)),
        "candidates": list(options.candidates),
        "alpha": options.alpha,
        **model.describe_dtype(),
        "seed": options.seed if options.randomize else None,
        **not_default(options, multi_token=None, odds_only=False, precision="exact", full_passes=False),
        **describe_method(options),
    }


def describe_method(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of a method that estimates; none where every neuron is run."""
    if options.method == "exact":
        return {}
    screen = {"screen_share": options.screen_share, "screen_sample": options.screen_sample,
              "screen_top": options.screen_top, "screen_seed": options.seed}
    return {"method": options.method} | (screen if options.method == "screen" else {})


def find_folder(
    out_dir: Path, randomized: bool, settings: dict[str, Any], files: dict[str, dict[str, Any]],
) -> RunFolder:
    """Today's results folder, or an earlier one with this run unfinished: midnight does not split a run."""
    name = "random" if randomized else ""
    for earlier in sorted((out_dir / "results").glob("*_neuron_intervention"), reverse=True):
        run_folder = RunFolder(earlier / name)
        for run in runs_in(run_folder.folder):
            same = run["settings"] == settings and list(run["files"]) == list(files)
            if same and run["finished"] is None:
                print(f"going on with the unfinished run in {run_folder.folder}")
                return run_folder
    return RunFolder(out_dir / "results" / f"{datetime.date.today():%Y%m%d}_neuron_intervention" / name)


def write_probabilities(
    model: "Model", run_folder: RunFolder, run: int, interventions: "Interventions",
    _options: argparse.Namespace,
) -> None:
    """Tables of the probabilities without intervention, one row per profession."""
    from tqdm import tqdm

    from mediation.results.neuron_tables import base_columns

    for name, entry in tqdm(unwritten(run_folder, run).items(), desc="total effects", unit=" templates"):
        words = interventions[entry["template"]]
        rows = [base_columns(word, words[word], probabilities)
                for word, probabilities in zip(words, model.base_probabilities(words.values()))]
        with table_writer(run_folder.folder / name) as append:
            append({column: [row[column] for row in rows] for column in rows[0]})
        run_folder.finish_file(run, name, rows=len(rows))


def write_interventions(
    model: "Model", run_folder: RunFolder, run: int, interventions: "Interventions",
    options: argparse.Namespace,
) -> None:
    """Sweep type by type, keep each result at once, write a type's tables when all its prompts are there."""
    from tqdm import tqdm

    from mediation.model.fast_rows import FastRows
    from mediation.studies.engine import StudyOptions
    from mediation.studies.error_budget import budget
    from mediation.studies.neurons import describe_interpolation
    from mediation.studies.professions import ProfessionStudy, screening

    tables = unwritten(run_folder, run)
    study = ProfessionStudy(model, run_folder, interventions, run_folder.open_files(run),
                            StudyOptions.of(options))
    kinds = dict.fromkeys(entry["intervention_type"] for entry in tables.values())
    with tqdm(total=study.interventions_of(kinds), unit=" interventions", unit_scale=True, smoothing=0.05,
              disable=not tables) as progress:
        for kind in kinds:
            for name, entry in study.write(kind, tables, progress):
                run_folder.finish_file(run, name, **entry)
            study.forget(kind)
    study.forget_gradients()
    files = list(run_folder.read()["runs"][run]["files"].values())
    certainty = screening(files, options.screen_top) if options.method == "screen" else None
    if certainty:
        run_folder.update(run, screening=screening_entry(certainty))
    run_folder.update(run, error_budget=budget(options).describe(), checks=sum_of_checks(files).entry())
    if tables:
        report_checks(files, options, certainty)
        interpolations = {entry["intervention_type"]: entry["interpolation"] for entry in files
                          if "interpolation" in entry}
        for kind, counts in interpolations.items():
            print(describe_interpolation(kind, counts, "profession"))
    fast = sum((FastRows(**entry["fast"]) for entry in files if "fast" in entry), FastRows())
    if fast.rows:
        run_folder.update(run, fast=asdict(fast))
        print(fast)


def screening_entry(certainty: "Screening") -> dict[str, Any]:
    """The manifest's entry on how sure a screening is."""
    return {"drawn": certainty.drawn, "missed": certainty.missed, "rest": certainty.rest,
            "top": certainty.top, "confidence": 0.95, "missed_a_prompt_at_most": certainty.missed_a_prompt,
            "recall_at_least": certainty.recall}


def report_checks(
    files: list[dict[str, Any]], options: argparse.Namespace, certainty: "Screening | None",
) -> None:
    """Print how sure the numbers are, with `certainty` of a screening."""
    from mediation.reports.report import describe_screening
    from mediation.studies.error_budget import describe_check

    checked = sum_of_checks(files)
    if options.method == "gradient":
        print(f"method gradient: first-order estimates, no neuron was run. {checked.random} random neurons "
              f"and {checked.likely} in the first layers or with the largest effects, of a few professions, "
              "run as full passes: log-probabilities differ from the estimates by at most "
              f"{checked.deviation:.1e}")
        return
    units = "neurons among those run" if options.method == "screen" else "neurons"
    print(describe_check(checked, options, units))
    if certainty:
        print(describe_screening(certainty, [entry["screen"] for entry in files]))


def sum_of_checks(files: list[dict[str, Any]]) -> "Check":
    """The checks of a run, from its files' entries in the manifest."""
    from mediation.studies.error_budget import NOTHING_CHECKED, Check

    return sum(map(Check.from_entry, files), NOTHING_CHECKED)


def unwritten(run_folder: RunFolder, run: int) -> dict[str, dict[str, Any]]:
    """{name: entry} of the run's tables that are not there, or not complete by its manifest."""
    files = run_folder.read()["runs"][run]["files"]
    tables = {name: entry for name, entry in files.items() if not run_folder.is_finished(name)}
    if len(tables) < len(files):
        makers = {json.dumps(entry.get("software")) for name, entry in files.items() if name not in tables}
        others = makers - {json.dumps(software())}
        note = ", some of them made by other versions of the software: see manifest.json" if others else ""
        print(f"kept: {len(files) - len(tables)} finished tables{note}")
    return tables


if __name__ == "__main__":
    chosen_options = parse_options()
    with exit_on_bad_input(), engine_of(chosen_options):
        main(chosen_options)

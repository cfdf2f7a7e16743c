"""Neuron interventions on profession prompts: the natural direct and indirect effect of every neuron of a language model.

    python run_profession_neuron_experiments.py -model smollm2-135m -out_dir . -template_indices 1 --professions nurse doctor
    python run_profession_neuron_experiments.py -model smollm2-135m -out_dir . --total_effects_only
    python run_profession_neuron_experiments.py -model smollm2-135m -out_dir . --method screen -template_indices 1 --professions nurse doctor

For each template, profession and intervention type, every neuron (word embedding and MLP outputs) is replaced in turn, and
the probabilities of " he" and " she" are kept. Writes, under OUT_DIR/results/YYYYMMDD_neuron_intervention/[random/],
one table a template and type, such as The_X_said_that_man_indirect_gpt2.csv, and manifest.json (model and weights hash,
settings, versions, times). A finished table is not computed again; an interrupted run goes on where it was.
"""

import argparse
import datetime
import json
import shlex
import sys
import textwrap
import time
from dataclasses import asdict
from pathlib import Path

from mediation.errors import InputError
from mediation.files.storage import RunFolder, check_space, check_writable, software
from mediation.options import (
    Parser,
    add_full_passes,
    add_method,
    add_model_options,
    add_multi_token,
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

TYPES = ("man_direct", "man_indirect", "woman_direct", "woman_indirect")
DIFFERENCES = ("man_minus_woman", "woman_minus_man")
NO_INTERVENTION = "no_intervention"


def parse_options(arguments=None):
    """The command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--out_dir", required=True, metavar="D", help="results go to D/results/YYYYMMDD_neuron_intervention")
    parser.add_argument("--template_indices", type=int, nargs="+", metavar="I", help="templates 1 to 17 (default: all)")
    parser.add_argument("--professions", nargs="+", metavar="W", help="words from experiment_data/professions.csv (default: all 320)")
    parser.add_argument("--max_examples", type=int, metavar="N", help="only the first N professions")
    parser.add_argument("--intervention_types", nargs="+", choices=TYPES + DIFFERENCES, default=list(TYPES), metavar="T",
                        help=f"of {', '.join(TYPES + DIFFERENCES)} (default: the first four)")
    parser.add_argument("--alpha", type=float, default=1.0, help="factor on the value put in, or on the difference added (default: 1)")
    parser.add_argument("--candidates", nargs=2, default=["he", "she"], metavar=("C1", "C2"),
                        help="single-token continuations (default: he she; analysed in either order)")
    parser.add_argument("--total_effects_only", action="store_true",
                        help="no interventions: one row a profession with its probabilities, all that the total effects need")
    parser.add_argument("--odds_only", action="store_true",
                        help="leave out the sum over the vocabulary, a tenth faster: a column log_odds, probabilities under interventions empty")
    parser.add_argument("--format", choices=FORMATS, default="csv", help="csv, or parquet: a tenth of the size, faster to read (default: csv)")
    add_full_passes(parser)
    add_multi_token(parser)
    add_method(parser)
    add_screening(parser)
    options = parser.parse_args(arguments)
    refuse_full_passes(parser, options)
    if options.method != "exact" and options.total_effects_only:
        parser.error(f"--method {options.method} does not go with --total_effects_only")
    return options


def main(options):
    """Stimuli, model, sweep, tables; bad input is found before anything is written."""
    from mediation.files.storage import describe_machine, now
    from mediation.model.readout import check_odds_only
    from mediation.studies.estimated_trees import bytes_of_gradients
    from utils import load_model

    started = time.monotonic()  # the clock on the wall may jump
    templates = select_templates(options.template_indices)
    chosen = professions.select(options.professions, options.max_examples)
    check_writable(options.out_dir)
    types = [NO_INTERVENTION] if options.total_effects_only else list(dict.fromkeys(options.intervention_types))

    model = load_model(options)
    check_screen_share(options, model.num_layers)
    interventions, dropped = build_interventions(model, templates, chosen, options.candidates, options.multi_token)
    if options.odds_only:
        one, *_ = next(iter(interventions.values())).values()
        check_odds_only(one.candidates)  # all stimuli have these
    report_stimuli(model, templates, chosen, interventions, dropped)

    files = {f"{template_file_stem(templates[number])}_{kind}_{model.name}.{options.format}":
             {"template": templates[number], "intervention_type": kind}
             for number in templates for kind in types}
    settings = describe_settings(model, options, interventions)
    run_folder = find_folder(Path(options.out_dir), options.randomize, settings, files)
    check_one_format(run_folder.folder, files)
    run_folder.claim(files, settings)
    if options.method != "exact" and not all(map(run_folder.is_finished, files)):
        open_ones = {entry["template"]: None for name, entry in files.items() if not run_folder.is_finished(name)}
        stimuli = [stimulus for template in open_ones for stimulus in interventions[template].values()]
        needed = bytes_of_gradients(model, stimuli, options.method) - run_folder.shard_bytes()
        check_space(run_folder.folder, needed, f"the gradients of --method {options.method}")
    with run_folder.claimed(files, settings):
        run = run_folder.begin({"settings": settings, "files": files, "dropped_professions": dropped, "command": shlex.join(sys.argv),
                                "machine": describe_machine(model), "started": now(), "finished": None, "wall_time_seconds": 0.0})

        write = write_probabilities if options.total_effects_only else write_interventions
        write(model, run_folder, run, interventions, options)

        seconds = run_folder.read()["runs"][run]["wall_time_seconds"] + time.monotonic() - started
        run_folder.update(run, finished=now(), wall_time_seconds=seconds)
    print(f"finished: {len(files)} tables and manifest.json in {run_folder.folder}")


def build_interventions(model, templates, chosen, candidates, multi_token=None):
    """({template: {word: Intervention}}, {template: {dropped word: reason}}).

    Raises:
        InputError: candidates that are not two different ones (single tokens, without `multi_token`), or no word left.
    """
    from experiment import Intervention

    check_candidates(candidates, [tokenize_candidate(model.tokenizer, candidate)[1] for candidate in candidates], multi_token is None)
    interventions, dropped = {}, {}
    for template in templates.values():
        kept, dropped[template] = professions.usable(model.tokenizer, template, chosen, multi_token=multi_token)
        interventions[template] = {p.word: Intervention(model.tokenizer, template, [p.text if multi_token else p.word, "man", "woman"], candidates,
                                                        model.device, multi_token) for p in kept}
        if not kept:
            word, reason = next(iter(dropped[template].items()))
            raise InputError(f"no usable profession in {template!r}: {len(chosen)} dropped, such as {word!r}: {reason}; "
                             "name single-token words with --professions, or take words of several tokens with --multi_token last")
    return interventions, dropped


def report_stimuli(model, templates, chosen, interventions, dropped):
    """Print what is asked of which model, and every dropped profession with the reason."""
    kept = {template: len(words) for template, words in interventions.items()}
    print(f"model {model.name}: {model.num_layers} layers, {model.num_neurons} neurons a layer, "
          f"{(model.num_layers + 1) * model.num_neurons} neurons with the word embedding, on {model.device}")
    print(f"templates: {len(templates)}; prompts: {sum(kept.values())}; professions used in each template: "
          + (str(next(iter(kept.values()))) if len(set(kept.values())) == 1 else str(kept)) + f" of {len(chosen)}")
    where = {}
    for template, reasons in dropped.items():
        for word, reason in reasons.items():
            where.setdefault((word, reason), []).append(template)
    if where:
        names = [f"{word}: {reason}" + ("" if len(found) == len(templates) else f" in {', '.join(found)}") for (word, reason), found in where.items()]
        print(textwrap.fill(f"dropped, {len(names)} professions that do not fill the slot with a single token: {'; '.join(names)}", 120))
        print("--multi_token last takes words of several tokens, too")


def describe_settings(model, options, interventions):
    """What decides the numbers: the same settings give the same tables."""
    return {
        "model": model.name,
        "weights_sha256": model.weights_sha256(),
        "professions": list(dict.fromkeys(word for words in interventions.values() for word in words)),
        "candidates": list(options.candidates),
        "alpha": options.alpha,
        "dtype": options.dtype,
        "seed": options.seed if options.randomize else None,
    } | describe_defaults_left(options) | describe_method(options)


def describe_defaults_left(options):
    """Settings that are not the default, so that runs of before these options were there are taken up."""
    defaults = {"multi_token": None, "odds_only": False, "precision": "exact", "full_passes": False}
    return {name: getattr(options, name) for name, default in defaults.items() if getattr(options, name) != default}


def describe_method(options):
    """Settings of a method that estimates; none for the exact one."""
    if options.method == "exact":
        return {}
    screen = {"screen_share": options.screen_share, "screen_sample": options.screen_sample, "screen_top": options.screen_top, "screen_seed": options.seed}
    return {"method": options.method} | (screen if options.method == "screen" else {})


def find_folder(out_dir, randomized, settings, files):
    """Today's results folder, or an earlier day's that holds this very run unfinished: midnight does not split a run."""
    name = "random" if randomized else ""
    for earlier in sorted((out_dir / "results").glob("*_neuron_intervention"), reverse=True):
        run_folder = RunFolder(earlier / name)
        for run in runs_in(run_folder.folder):
            if run["finished"] is None and run["settings"] == settings and list(run["files"]) == list(files):
                print(f"going on with the unfinished run in {run_folder.folder}")
                return run_folder
    return RunFolder(out_dir / "results" / f"{datetime.date.today():%Y%m%d}_neuron_intervention" / name)


def write_probabilities(model, run_folder, run, interventions, _options):
    """Tables of the probabilities without intervention, one row a profession."""
    from tqdm import tqdm

    from mediation.results.neuron_tables import base_columns

    for name, entry in tqdm(unwritten(run_folder, run).items(), desc="total effects", unit=" templates"):
        words = interventions[entry["template"]]
        rows = [base_columns(word, words[word], probabilities) for word, probabilities in zip(words, model.base_probabilities(words.values()))]
        with table_writer(run_folder.folder / name) as append:
            append({column: [row[column] for row in rows] for column in rows[0]})
        run_folder.finish_file(run, name, rows=len(rows))


def write_interventions(model, run_folder, run, interventions, options):
    """Sweep type by type, keep what is computed at once, and write a type's tables when all of its prompts are there."""
    from tqdm import tqdm

    from mediation.model.fast_rows import FastRows
    from mediation.studies.engine import StudyOptions
    from mediation.studies.error_budget import budget
    from mediation.studies.neurons import describe_interpolation
    from mediation.studies.professions import ProfessionStudy, screening

    todo = unwritten(run_folder, run)
    study = ProfessionStudy(model, run_folder, interventions, run_folder.open_files(run), StudyOptions.of(options))
    total = (model.num_layers + 1) * model.num_neurons * sum(len(interventions[entry["template"]]) for entry in todo.values())
    with tqdm(total=total, unit=" interventions", unit_scale=True, smoothing=0.05, disable=not todo) as progress:
        for kind in dict.fromkeys(entry["intervention_type"] for entry in todo.values()):
            for name, entry in study.write(kind, todo, progress):
                run_folder.finish_file(run, name, **entry)
            study.forget(kind)
    study.forget_gradients()
    files = list(run_folder.read()["runs"][run]["files"].values())
    found = screening(files, options.screen_top) if options.method == "screen" else None
    if found:
        run_folder.update(run, screening=screening_entry(found))
    run_folder.update(run, error_budget=budget(options).describe(), checks=sum_of_checks(files).entry())
    if todo:
        report_checks(files, options, found)
        for kind, counts in {entry["intervention_type"]: entry["interpolation"] for entry in files if "interpolation" in entry}.items():
            print(describe_interpolation(kind, counts, "profession"))
    fast = sum((FastRows(**entry["fast"]) for entry in files if "fast" in entry), FastRows())
    if fast.rows:
        run_folder.update(run, fast=asdict(fast))
        print(fast)


def screening_entry(found):
    """What the manifest says of how sure a Screening is."""
    return {"drawn": found.drawn, "missed": found.missed, "rest": found.rest, "top": found.top, "confidence": 0.95,
            "missed_a_prompt_at_most": found.missed_a_prompt, "recall_at_least": found.recall}


def report_checks(files, options, found):
    """Print how sure the numbers are; `found`: the Screening, where there was one."""
    from mediation.reports.report import describe_screening
    from mediation.studies.error_budget import budget, describe_check

    checked = sum_of_checks(files)
    if options.method == "gradient":
        print(f"method gradient: first-order estimates, no neuron was run. {checked.random} random neurons and {checked.likely} in the first layers or with "
              f"the largest effects, of a few professions, run as full passes: log-probabilities differ from the estimates by at most "
              f"{checked.deviation:.1e}")
        return
    print(describe_check(checked, budget(options).total, "neurons" + (" among those run" if options.method == "screen" else "")))
    if found:
        print(describe_screening(found, [entry["screen"] for entry in files]))


def sum_of_checks(files):
    """What was checked of a run, from its files' entries in the manifest."""
    from mediation.studies.error_budget import NOTHING_CHECKED, Check

    return sum(map(Check.from_entry, files), NOTHING_CHECKED)


def unwritten(run_folder, run):
    """{name: entry} of the run's tables that are not there, or that the manifest does not call complete yet."""
    files = run_folder.read()["runs"][run]["files"]
    todo = {name: entry for name, entry in files.items() if not run_folder.is_finished(name)}
    if len(todo) < len(files):
        made_by = {json.dumps(entry.get("software")) for name, entry in files.items() if name not in todo} - {json.dumps(software())}
        print(f"kept: {len(files) - len(todo)} finished tables"
              + (", some of them made by other versions of the software: see manifest.json" if made_by else ""))
    return todo


if __name__ == "__main__":
    chosen_options = parse_options()
    with exit_on_bad_input():
        main(chosen_options)

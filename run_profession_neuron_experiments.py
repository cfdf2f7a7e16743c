"""Neuron interventions on profession prompts: the natural direct and indirect effect of every neuron of a language model.

    python run_profession_neuron_experiments.py -model smollm2-135m -out_dir . -template_indices 1 --professions nurse doctor
    python run_profession_neuron_experiments.py -model smollm2-135m -out_dir . --total_effects_only

For each template, profession and intervention type, every neuron (word embedding and MLP outputs) is replaced in turn, and
the probabilities of " he" and " she" are kept. Writes, under OUT_DIR/results/YYYYMMDD_neuron_intervention/[random/],
one CSV a template and type, such as The_X_said_that_man_indirect_gpt2.csv, and manifest.json (model and weights hash,
settings, versions, times). A finished CSV is not computed again; an interrupted run goes on with the next profession.
"""

import argparse
import datetime
import shlex
import sys
import textwrap
import time
from pathlib import Path

from mediation import professions, stimuli
from mediation.errors import InputError
from mediation.options import Parser, add_model_options, exit_on_bad_input
from mediation.storage import RunFolder, check_writable, whole_file, write_csv

TYPES = ("man_direct", "man_indirect", "woman_direct", "woman_indirect")
DIFFERENCES = ("man_minus_woman", "woman_minus_man")
NO_INTERVENTION = "no_intervention"
CHECKED = 4  # interventions a sweep that are run again under plain hooks
TOLERANCE = 1e-3  # in a log-probability; float32 gives about 1e-5


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
    parser.add_argument("--candidates", nargs=2, default=["he", "she"], metavar=("C1", "C2"), help="single-token continuations (default: he she)")
    parser.add_argument("--total_effects_only", action="store_true",
                        help="no interventions: one row a profession with its probabilities, all that the total effects need")
    parser.add_argument("--full_passes", action="store_true", help="every intervention as a full forward pass under plain hooks: slow, the reference")
    return parser.parse_args(arguments)


def main(options):
    """Stimuli, model, sweep, tables; bad input is found before anything is written."""
    from utils import describe_machine, load_model, now

    started = time.time()
    templates = stimuli.select_templates(options.template_indices)
    chosen = professions.select(options.professions, options.max_examples)
    check_writable(options.out_dir)
    types = [NO_INTERVENTION] if options.total_effects_only else list(dict.fromkeys(options.intervention_types))

    model = load_model(options)
    interventions, dropped = build_interventions(model, templates, chosen, options.candidates)
    report_stimuli(model, templates, chosen, interventions, dropped)

    files = {f"{stimuli.template_file_stem(templates[number])}_{kind}_{model.name}.csv":
             {"template": templates[number], "intervention_type": kind}
             for number in templates for kind in types}
    settings = describe_settings(model, options, interventions)
    run_folder = find_folder(Path(options.out_dir), options.randomize, settings, files)
    run_folder.claim(files, settings)
    run = run_folder.begin({"settings": settings, "files": files, "dropped_professions": dropped, "command": shlex.join(sys.argv),
                            "machine": describe_machine(model), "started": now(), "finished": None, "wall_time_seconds": 0.0})

    write = write_probabilities if options.total_effects_only else write_interventions
    write(model, run_folder, run, interventions, options)

    seconds = run_folder.read()["runs"][run]["wall_time_seconds"] + time.time() - started
    run_folder.update(run, finished=now(), wall_time_seconds=seconds)
    print(f"finished: {len(files)} tables and manifest.json in {run_folder.folder}")


def build_interventions(model, templates, chosen, candidates):
    """({template: {word: Intervention}}, {template: {dropped word: reason}}).

    Raises:
        InputError: candidates that are not two different single tokens, or no word left.
    """
    from experiment import Intervention

    stimuli.check_candidates(candidates, [stimuli.tokenize_candidate(model.tokenizer, candidate)[1] for candidate in candidates])
    interventions, dropped = {}, {}
    for template in templates.values():
        kept, dropped[template] = professions.usable(model.tokenizer, template, chosen)
        interventions[template] = {p.word: Intervention(model.tokenizer, template, [p.word, "man", "woman"], candidates, model.device) for p in kept}
        if not kept:
            word, reason = next(iter(dropped[template].items()))
            raise InputError(f"no usable profession in {template!r}: {len(chosen)} dropped, such as {word!r}: {reason}; "
                             "name single-token words with --professions")
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
    }


def find_folder(out_dir, randomized, settings, files):
    """Today's results folder, or an earlier day's that holds this very run unfinished: midnight does not split a run."""
    name = "random" if randomized else ""
    for earlier in sorted((out_dir / "results").glob("*_neuron_intervention"), reverse=True):
        run_folder = RunFolder(earlier / name)
        for run in run_folder.read()["runs"]:
            if run["finished"] is None and run["settings"] == settings and list(run["files"]) == list(files):
                print(f"going on with the unfinished run in {run_folder.folder}")
                return run_folder
    return RunFolder(out_dir / "results" / f"{datetime.date.today():%Y%m%d}_neuron_intervention" / name)


def write_probabilities(model, run_folder, run, interventions, _options):
    """Tables of the probabilities without intervention, one row a profession."""
    import pandas as pd
    from tqdm import tqdm

    from utils import base_columns

    for name, entry in tqdm(unwritten(run_folder, run).items(), desc="total effects", unit=" templates"):
        words = interventions[entry["template"]]
        rows = [base_columns(word, words[word], probabilities) for word, probabilities in zip(words, model.base_probabilities(words.values()))]
        write_csv(run_folder.folder / name, pd.DataFrame(rows), index=True)
        run_folder.update_file(run, name, rows=len(rows))


def write_interventions(model, run_folder, run, interventions, options):
    """Sweep profession by profession, keep each at once, and write a table when its professions are complete."""
    from tqdm import tqdm

    neurons = (model.num_layers + 1) * model.num_neurons
    todo = unwritten(run_folder, run)
    total = neurons * sum(len(interventions[entry["template"]]) for entry in todo.values())
    with tqdm(total=total, unit=" interventions", unit_scale=True, smoothing=0.05, disable=not todo) as progress:
        for name, entry in todo.items():
            results, seconds, deviation = {}, 0.0, 0.0
            for word, intervention in interventions[entry["template"]].items():
                progress.set_description(f"{entry['intervention_type']}, {intervention.base_strings[0]}")
                kept = run_folder.load_shard(name, word)
                if kept is None:
                    kept = sweep_profession(model, intervention, entry["intervention_type"], options, progress.update)
                    run_folder.save_shard(name, word, **kept)
                else:
                    progress.update(neurons)
                results[word] = (*kept["base"], kept["candidate1"], kept["candidate2"])
                seconds, deviation = seconds + float(kept["seconds"]), max(deviation, float(kept["deviation"]))
            rows = write_table(run_folder.folder / name, interventions[entry["template"]], results)
            run_folder.update_file(run, name, rows=rows, sweep_seconds=seconds, largest_deviation_from_full_passes=deviation)
            run_folder.remove_shards(name)
    files = run_folder.read()["runs"][run]["files"].values()
    print(f"checked {CHECKED} random neurons of each sweep against full passes under plain hooks: "
          f"log-probabilities differ by at most {max(entry['largest_deviation_from_full_passes'] for entry in files):.1e}")


def unwritten(run_folder, run):
    """{name: entry} of the run's tables that are not there, or that the manifest does not call complete yet."""
    files = run_folder.read()["runs"][run]["files"]
    todo = {name: entry for name, entry in files.items() if not run_folder.is_finished(name)}
    if len(todo) < len(files):
        print(f"kept: {len(files) - len(todo)} finished tables")
    return todo


def sweep_profession(model, intervention, kind, options, progress):
    """Arrays for one profession and type: base [6], candidate1 and candidate2 [L + 1, D], seconds, deviation from the reference."""
    import numpy as np

    started = time.perf_counter()
    result = model.neuron_intervention_single_experiment(intervention, kind, alpha=options.alpha, bsize=options.batch_size, progress=progress)
    seconds = time.perf_counter() - started
    candidate1, candidate2 = (probabilities.numpy() for probabilities in result[6:])
    if not (np.isfinite(candidate1).all() and np.isfinite(candidate2).all() and min(*result[:6], candidate1.min(), candidate2.min()) > 0):
        raise InputError(f"{intervention.base_strings[0]!r}, {kind}: the model gave probabilities that are zero or not numbers: "
                         "try --dtype float32 or float64, or check the model's weights")
    deviation = model.check_against_full_passes(intervention, kind, (candidate1, candidate2), options.alpha, CHECKED, options.seed)
    if deviation > TOLERANCE and options.dtype in ("float32", "float64"):
        raise InputError(f"{intervention.base_strings[0]!r}, {kind}: the sweep and full passes differ by {deviation:.1e} in a log-probability: "
                         "use --full_passes, and please report the model")
    return {"base": np.array(result[:6]), "candidate1": candidate1, "candidate2": candidate2, "seconds": seconds, "deviation": deviation}


def write_table(path, interventions, results):
    """One CSV, word by word so that memory does not grow; returns the number of rows."""
    from utils import convert_results_to_pd

    rows = 0
    with whole_file(path) as file:
        for word, result in results.items():
            table = convert_results_to_pd(interventions, {word: result})
            table.index += rows
            table.to_csv(file, header=rows == 0)
            rows += len(table)
    return rows


if __name__ == "__main__":
    chosen_options = parse_options()
    with exit_on_bad_input():
        main(chosen_options)

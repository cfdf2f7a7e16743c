"""The attention study: examples chosen, their sweeps kept as they go, checked, and written as the study's JSON has them."""

import shlex
import sys
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mediation.effects.odds import log_odds
from mediation.effects.statistics import strong_examples
from mediation.files.storage import RunFolder, describe_machine, now, write_json
from mediation.mediators import head_sweeps
from mediation.results.attention_results import EFFECTS, means, result_entry
from mediation.stimuli.interventions import Intervention
from mediation.studies import engine
from mediation.studies.engine import StudyOptions
from mediation.studies.error_budget import budget, describe_check
from mediation.studies.heads import head_results, head_task, probabilities
from mediation.studies.results import Account


def get_odds_ratio(intervention, model):
    """y(x') / y(x), y = p(c2) / p(c1): above 1 where the model follows the stereotype."""
    x, alternative = model.continuation_probabilities(intervention)
    return float(np.exp(log_odds(alternative[1], alternative[0]) - log_odds(x[1], x[0])))


def perform_intervention(intervention, model, effect_types=EFFECTS):
    """Every head, layer and the whole model of one stimulus, as one entry of `results` in the study's JSON (see `read_results`)."""
    return result_entry(intervention, model.continuation_probabilities(intervention),
                        {kind: head_sweeps.heads_layers_and_model(model, intervention, kind) for kind in effect_types})


def perform_interventions(interventions, model, effect_types=EFFECTS):
    """`perform_intervention` for each, with a progress bar."""
    return [perform_intervention(intervention, model, effect_types) for intervention in tqdm(interventions, desc=model.name, unit=" examples")]


def run_study(model, examples, data, name, about, options):
    """Filter, sweep, JSON: what the scripts of both data sets do with their examples.

    Args:
        examples: PronounStimulus objects, all of them; data: "winobias" or "winogender"; name: of the JSON.
        about: keys of the JSON that say what it is: model_version, do_filter, split or stat.

    Returns: path of the JSON. A finished one is kept; an unfinished one goes on with the next example.
    """
    run_folder = RunFolder(Path(options.out_dir) / f"{data}_data")
    settings = {**about, "model": model.name, "weights_sha256": model.weights_sha256(), "examples_sha256": sha256(repr(examples).encode()).hexdigest(),
                "filter_quantile": options.filter_quantile if options.do_filter else None, "max_examples": options.max_examples,
                "dtype": options.dtype, "seed": options.seed if options.randomize else None}
    method = {option: getattr(options, option) for option in ("method", "precision") if getattr(options, option) != "exact"}
    settings |= method | ({"full_passes": True} if options.full_passes else {}) | ({"masking_approach": model.masking.approach} if model.masking else {})
    with run_folder.claimed([name], settings):
        interventions = build_interventions(model, examples)
        if run_folder.is_finished(name):
            print(f"kept: {run_folder.folder / name} is finished")
            return run_folder.folder / name

        selected, counts = select_examples(model, interventions, options)
        about = {**about, **method, **counts}
        run = run_folder.begin({"settings": settings, "files": {name: {}}, "command": shlex.join(sys.argv), "machine": describe_machine(model),
                                "started": now(), "finished": None})
        sweep_examples(model, interventions, selected, run_folder, run, name, about, options)
        run_folder.update(run, finished=now())
        return run_folder.folder / name


def masking_suffix(model):
    """What a masked model's approach adds to the names of its files: "_1" to "_6"; nothing for others."""
    return f"_{model.masking.approach}" if model.masking else ""


def select_examples(model, interventions, options):
    """(indices of the examples that are analysed, what a JSON says of their choice): the model-filtered ones, or all."""
    counts = {"num_examples_loaded": len(interventions)}
    if not options.do_filter:
        return range(len(interventions)), counts
    ratios = [get_odds_ratio(intervention, model) for intervention in tqdm(interventions, desc="filter", unit=" examples")]
    selected, aligned, threshold = strong_examples(ratios, options.filter_quantile)
    print(f"{aligned} of {len(interventions)} examples have an odds ratio above 1, {len(selected)} above the threshold {threshold:.6f}")
    return selected, {**counts, "num_examples_aligned": aligned, "filter_quantile": options.filter_quantile, "threshold": threshold}


def build_interventions(model, examples):
    """Interventions of PronounStimulus objects, each checked to fit an attention study."""
    interventions = [Intervention(model.tokenizer, example.base_string, example.substitutes, example.candidates, model.device) for example in examples]
    for intervention in interventions:
        intervention.check_for_attention()
    return interventions


def sweep_examples(model, interventions, selected, run_folder, run, name, about, options):
    """Sweep the selected examples, and write the JSON when all are there."""
    sweep_options = StudyOptions.of(options)
    tasks = [head_task(model, interventions[index], sweep_options, name, f"example {count} of {len(selected)}")
             for count, index in enumerate(selected, start=1)]
    with tqdm(total=sum(task.interventions for task in tasks), unit=" interventions", unit_scale=True, smoothing=0.05) as progress:
        shards = engine.run(model, [tasks], run_folder, progress)
    entries, account = [], Account()
    for task in tasks:
        arrays = shards(task.key)
        swept = {kind: of_both_candidates(model, probabilities(arrays[kind])) for kind in EFFECTS}
        entries.append(result_entry(task.intervention, arrays["probabilities"].tolist(), swept)
                       | {f"{kind}_exact_head": heads_layers_and_model(model, arrays[f"{kind}_exact"])[0].tolist()
                          for kind in EFFECTS if f"{kind}_exact" in arrays})
        for swept in head_results(arrays).values():
            account.add(swept)
    write_json(run_folder.folder / name, {**about, "num_examples_analyzed": len(entries), **means(entries), "results": entries}, indent=None)
    run_folder.finish_file(run, name, **account.entry(len(entries)))
    run_folder.update(run, error_budget=budget(options).describe(), **({"fast": asdict(account.fast)} if account.fast.rows else {}))
    if account.fast.rows:
        print(account.fast)
    if options.method == "gradient":
        print(f"compared the estimates of {account.check.random} random heads and {account.check.likely} with the largest effects with full passes: "
              f"log-probabilities differ by at most {account.check.deviation:.1e}")
    else:
        print(describe_check(account.check, budget(options).total, "heads" + (" among those run" if options.method == "screen" else "")))


def heads_layers_and_model(model, values):
    """Values [S] of all sets of heads in their parts: of heads [L, H], of layers [L], and the whole model's."""
    heads = model.num_layers * model.num_heads
    return values[:heads].reshape(model.num_layers, model.num_heads), values[heads:-1], values[-1].item()


def of_both_candidates(model, values):
    """Values [S, 2] as `Model.attention_intervention_experiment` has them: heads of both candidates, layers of both, the model's of both."""
    return [part for of_both in zip(*(heads_layers_and_model(model, column) for column in values.T)) for part in of_both]

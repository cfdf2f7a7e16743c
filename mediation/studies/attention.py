"""The attention study: examples chosen, their sweeps kept as they go, checked, and written as the study's JSON has them."""

import shlex
import sys
import time
import zlib
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from mediation.effects.odds import effect, log_odds
from mediation.effects.statistics import strong_examples
from mediation.errors import InputError
from mediation.files.storage import RunFolder, describe_machine, now, write_json
from mediation.mediators.batches import FastRows
from mediation.mediators.heads import heads_layers_model
from mediation.results.attention_results import EFFECTS, means, result_entry
from mediation.stimuli.interventions import Intervention
from mediation.studies.error_budget import NOTHING_CHECKED, Check, budget, describe_check, within_budget

SCREENED = 0.1  # part of the heads that screening runs exactly


def get_odds_ratio(intervention, model):
    """y(x') / y(x), y = p(c2) / p(c1): above 1 where the model follows the stereotype."""
    x, alternative = model.continuation_probabilities(intervention)
    return float(np.exp(log_odds(alternative[1], alternative[0]) - log_odds(x[1], x[0])))


def perform_intervention(intervention, model, effect_types=EFFECTS):
    """Every head, layer and the whole model of one stimulus, as one entry of `results` in the study's JSON (see `read_results`)."""
    return result_entry(intervention, model.continuation_probabilities(intervention),
                        {kind: model.attention_intervention_experiment(intervention, kind) for kind in effect_types})


def indirect_effects_of_sets(model, intervention, sets, bsize=None):
    """Indirect effect of each set of heads, overridden together, float64 [len(sets)]; a head is layer x H + head."""
    chosen = torch.zeros(len(sets), model.num_layers * model.num_heads, dtype=torch.bool)
    for row, heads in enumerate(sets):
        chosen[row, list(heads)] = True
    c1, c2 = model.continuation_probabilities(intervention)[0]
    swept = model.attention_intervention_for_sets(intervention, "indirect", chosen.reshape(len(sets), model.num_layers, model.num_heads), bsize)
    return effect(swept[:, 1] - swept[:, 0], log_odds(c2, c1))


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
    """Sweep the selected examples, keep each at once, and write the JSON when all are there."""
    units = len(EFFECTS) * (model.num_layers * model.num_heads + model.num_layers + 1)
    entries, seconds, checked, fast = [], 0.0, NOTHING_CHECKED, FastRows()
    with tqdm(total=units * len(selected), unit=" interventions", unit_scale=True, smoothing=0.05) as progress:
        for count, index in enumerate(selected, start=1):
            progress.set_description(f"example {count} of {len(selected)}")
            kept = run_folder.load_shard(name, f"example_{index}")
            if kept is None:
                kept = sweep_example(model, interventions[index], options, progress.update)
                run_folder.save_shard(name, f"example_{index}", **kept)
            else:
                progress.update(units)
            swept = {kind: [kept[f"{kind}_{part}"] for part in range(6)] for kind in EFFECTS}
            entries.append(result_entry(interventions[index], kept["probabilities"].tolist(), swept)
                           | {key: kept[key].tolist() for key in (f"{kind}_exact_head" for kind in EFFECTS) if key in kept})
            seconds, checked = seconds + float(kept["seconds"]), checked + Check.from_arrays(kept)
            if "fast" in kept:
                fast += FastRows(*kept["fast"])
    content = {**about, "num_examples_analyzed": len(entries), **means(entries), "results": entries}
    write_json(run_folder.folder / name, content, indent=None)
    run_folder.finish_file(run, name, rows=len(entries), sweep_seconds=seconds, **checked.entry())
    run_folder.update(run, error_budget=budget(options).describe(), **({"fast": asdict(fast)} if fast.rows else {}))
    if fast.rows:
        print(fast)
    if options.method == "gradient":
        print(f"compared the estimates of {checked.random} random heads and {checked.likely} with the largest effects with full passes: "
              f"log-probabilities differ by at most {checked.deviation:.1e}")
    else:
        print(describe_check(checked, budget(options).total, "heads" + (" among those run" if options.method == "screen" else "")))


def sweep_example(model, intervention, options, progress):
    """Arrays of one example: probabilities [2, 2], {effect}_0 to _5 as `attention_intervention_experiment` gives them, seconds, a Check's, `fast`.

    Methods that estimate add {effect}_exact_head bool [L, H]: heads that were run. Layers and the whole model always are.
    """
    started, kept = time.perf_counter(), {"probabilities": np.array(model.continuation_probabilities(intervention))}
    all_checked = NOTHING_CHECKED
    for kind in EFFECTS:
        sweep, check = partial(sweep_effect, model, intervention, kind, options, progress), partial(check_effect, model, intervention, kind, options)
        if options.method == "gradient":
            found = sweep()
            checked = check(found)
        else:
            found, checked = within_budget(model, sweep, check, options, f"{intervention.base_strings[0]!r}, {kind}")
        kept |= found
        all_checked += checked
    fast = {"fast": model.fast_rows.take().shared(1)} if model.fast_rows else {}
    return {**kept, **all_checked.to_arrays(), **fast, "seconds": time.perf_counter() - started}


def sweep_effect(model, intervention, kind, options, progress):
    """Arrays of one effect of one example, as `sweep_example` has them.

    Raises:
        InputError: probabilities that are zero or no numbers.
    """
    if options.method == "exact":
        swept, exact = model.attention_intervention_experiment(intervention, kind, options.batch_size, progress), {}
    else:
        *swept, ran = estimated_heads(model, intervention, kind, options, progress)
        exact = {f"{kind}_exact_head": np.asarray(ran)}
    found = {f"{kind}_{part}": np.asarray(values) for part, values in enumerate(swept)}
    if not all(np.isfinite(values).all() and (values > 0).all() for values in found.values()):
        raise InputError(f"{intervention.base_strings[0]!r}: the model gave probabilities that are zero or not numbers: "
                         "try --dtype float32 or float64, or check the model's weights")
    return found | exact


def check_effect(model, intervention, kind, options, found):
    """Check of one effect's heads (those that were run, where only some were): another random one for every example and effect."""
    ran = np.flatnonzero(found[f"{kind}_exact_head"]) if options.method == "screen" else None
    seed = [options.seed, EFFECTS.index(kind), zlib.crc32(str(intervention.base_strings).encode())]
    return model.check_heads_against_full_passes(intervention, kind, (found[f"{kind}_0"], found[f"{kind}_1"]), seed=seed, among=ran)


def estimated_heads(model, intervention, kind, options, progress):
    """What `Model.attention_intervention_experiment` gives, heads to first order (screening: the strongest of them run), and which heads were run."""
    layers, heads = model.num_layers, model.num_heads
    estimates = model.attention_gradients(intervention, kind).reshape(-1, 2)
    c1, c2 = model.continuation_probabilities(intervention)[0 if kind == "indirect" else 1]
    strength = (estimates[:, 1] - estimates[:, 0] - float(log_odds(c2, c1))).abs()
    strongest = strength.argsort(descending=True)[: max(1, int(SCREENED * layers * heads))] if options.method == "screen" else torch.empty(0, dtype=torch.long)
    sets = torch.cat([strongest, torch.arange(layers * heads, layers * heads + layers + 1)])
    swept = model.attention_intervention_for_sets(intervention, kind, heads_layers_model(layers, heads)[sets], options.batch_size)
    estimates[strongest] = swept[: len(strongest)]
    progress(len(estimates) + layers + 1)
    exact = torch.zeros(layers * heads, dtype=torch.bool)
    exact[strongest] = True
    (head1, head2), rest = estimates.exp().reshape(layers, heads, 2).unbind(dim=2), swept[len(strongest):].exp()
    return head1, head2, rest[:layers, 0], rest[:layers, 1], *rest[layers].tolist(), exact.reshape(layers, heads)

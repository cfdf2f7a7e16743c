"""Attention interventions on pairs of contexts, their results as the study's JSON has them, and summaries.

The names are those of the 2020 study: `get_odds_ratio`, `perform_intervention`, `perform_interventions`,
`report_intervention`, `report_interventions_summary_by_head`, `report_interventions_summary_by_layer`.
"""

import json
import re
import shlex
import sys
import time
import zlib
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from experiment import Intervention
from mediation.attention import heads_layers_model
from mediation.batches import FastRows
from mediation.effects import effect, log_odds
from mediation.error_budget import NOTHING_CHECKED, Check, budget, describe_check, within_budget
from mediation.errors import InputError
from mediation.statistics import strong_examples
from mediation.storage import RunFolder, write_json
from utils import describe_machine, now

EFFECTS = ("indirect", "direct")
SCALARS = ("candidate1_base_prob", "candidate2_base_prob", "odds_base", "candidate1_alt_prob", "candidate2_alt_prob", "odds_alt", "total_effect",
           "indirect_effect_model", "direct_effect_model")
STRINGS = ("base_string1", "base_string2", "candidate1", "candidate2")
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


def result_entry(intervention, probabilities, swept):
    """One entry of `results` from stored probabilities.

    Args:
        probabilities: [[p(c1), p(c2)] after x, the same after x'].
        swept: {effect: what `Model.attention_intervention_experiment` returned}.

    Effects are (y_intervened - y_base) / y_base with y_base = y(x) for the indirect and the direct effect alike (Vig et al. 2020).
    """
    (c1, c2), (c1_alternative, c2_alternative) = probabilities
    base, alternative = log_odds(c2, c1), log_odds(c2_alternative, c1_alternative)
    names = dict(zip(STRINGS, (*intervention.base_strings, *(" ".join(tokens).replace("Ġ", "") for tokens in intervention.candidates))))
    entry = {**names, "candidate1_base_prob": c1, "candidate2_base_prob": c2, "odds_base": float(np.exp(base)),
             "candidate1_alt_prob": c1_alternative, "candidate2_alt_prob": c2_alternative, "odds_alt": float(np.exp(alternative)),
             "total_effect": float(effect(alternative, base))}
    for kind, (c1_head, c2_head, c1_layer, c2_layer, c1_model, c2_model) in swept.items():
        heads = log_odds(c2_head, c1_head)
        entry |= {f"{kind}_odds_head": np.exp(heads).tolist(), f"{kind}_effect_head": effect(heads, base).tolist(),
                  f"{kind}_effect_layer": effect(log_odds(c2_layer, c1_layer), base).tolist(),
                  f"{kind}_effect_model": float(effect(log_odds(c2_model, c1_model), base))}
    return entry


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


def means(entries):
    """The three means of a JSON."""
    names = {"mean_total_effect": "total_effect", "mean_model_indirect_effect": "indirect_effect_model", "mean_model_direct_effect": "direct_effect_model"}
    return {mean: float(np.mean([entry[name] for entry in entries])) for mean, name in names.items()}


def read_json(path):
    """Content of a JSON file.

    Raises:
        InputError: it is not there or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): write it again with attention_intervention_winobias.py or _winogender.py") from error


def example_key(base_string1, base_string2, candidate1, candidate2):
    """What tells an example in every file: contexts, and continuations without blanks, case and word-piece marks, for a file has them in tokens."""
    return base_string1, base_string2, *("".join(candidate.split()).replace("##", "").lower() for candidate in (candidate1, candidate2))


def read_results(path, examples=None):
    """A JSON of the attention study, ours or the published ones.

    Args:
        examples: PronounStimulus objects; entries that name their `example` by its number have their strings from there.

    Keys: `model_version`, `do_filter`, `split` or `stat`, counts, means, and `results`, a list of entries with strings, probabilities,
    odds and effects; [L][H] for heads, [L] for layers. `*_odds_head` may be absent.

    Raises:
        InputError: a file that is not JSON, or not of this form; file and place are named.
    """
    content = read_json(path)
    remedy = "this is no result of the attention study, write it again"
    if not isinstance(content, dict) or not isinstance(content.get("results"), list) or not content["results"]:
        raise InputError(f"{path}: no list of results: {remedy}")
    for key in ("model_version", "do_filter", "num_examples_analyzed", "mean_total_effect", "mean_model_indirect_effect", "mean_model_direct_effect"):
        if key not in content:
            raise InputError(f"{path}: key {key!r} is missing: {remedy}")
    shape = None
    for number, entry in enumerate(content["results"]):
        if examples and isinstance(entry, dict) and isinstance(entry.get("example"), int) and entry["example"] < len(examples):
            example = examples[entry["example"]]
            entry |= dict(zip(STRINGS, (*(example.base_string.replace("{}", word) for word in example.substitutes), *example.candidates)))
        where = f"{path}: results[{number}]"
        for key in (*STRINGS, *SCALARS, *(f"{kind}_effect_{level}" for kind in EFFECTS for level in ("head", "layer"))):
            if not isinstance(entry, dict) or key not in entry:
                raise InputError(f"{where}: key {key!r} is missing: {remedy}")
        for key in SCALARS:
            if not isinstance(entry[key], (int, float)) or not np.isfinite(entry[key]):
                raise InputError(f"{where}: {key} is not a number: {remedy}")
        for kind in EFFECTS:
            try:
                heads, layers = (np.asarray(entry[f"{kind}_effect_{level}"], np.float64) for level in ("head", "layer"))
            except (ValueError, TypeError):
                raise InputError(f"{where}: {kind} effects are not a table of numbers: {remedy}") from None
            shape = shape or heads.shape
            if len(shape) != 2 or heads.shape != shape or layers.shape != shape[:1] or not (np.isfinite(heads).all() and np.isfinite(layers).all()):
                raise InputError(f"{where}: {kind} effects are {list(heads.shape)} and {list(layers.shape)}, not layers x heads of finite numbers: {remedy}")
    return content


def find_results(out_dir, model=None):
    """{path: label} of the result files in OUT_DIR/winobias_data and winogender_data; label as in the figures' names, such as winobias_gpt2_filtered_dev.

    Args:
        model: only files of this model; None takes all.

    Raises:
        InputError: there is none.
    """
    found = {}
    for data in ("winobias", "winogender"):
        for path in sorted((Path(out_dir) / f"{data}_data").glob("attention_intervention_*.json")):
            label = path.stem.removeprefix("attention_intervention_")
            if data == "winogender":  # the statistic stands first in the file's name, last in the label
                statistic, _, rest = label.partition("_")
                label = f"{rest}_{statistic}"
            if model is None or re.fullmatch(rf"{re.escape(model)}_(un)?filtered_.+", label):
                found[path] = f"{data}_{label}"
    if not found:
        raise InputError(f"no attention_intervention_*.json{f' of {model}' if model else ''} in {out_dir}/winobias_data or {out_dir}/winogender_data: "
                         "run attention_intervention_winobias.py or _winogender.py first, or name the folder with -out_dir")
    return found


def head_effects(results, kind):
    """Effects of all heads, float64 [N, L, H], of the entries `results`; kind "indirect" or "direct"."""
    return np.array([entry[f"{kind}_effect_head"] for entry in results], np.float64)


def layer_effects(results, kind):
    """Effects of all layers, float64 [N, L]."""
    return np.array([entry[f"{kind}_effect_layer"] for entry in results], np.float64)


def report_study(path):
    """Print what a JSON says: counts, means, and the sum of indirect and direct beside the total, to show their interaction."""
    content = read_results(path)
    results = content["results"]
    counts = {key: content[key] for key in ("num_examples_loaded", "num_examples_aligned", "threshold", "num_examples_analyzed") if key in content}
    if "method" in content:
        print(f"method {content['method']}: heads {'by first-order estimates' if content['method'] == 'gradient' else 'ranked by gradient, the strongest run'}"
              "; layers and the whole model were run")
    print(", ".join(f"{key.removeprefix('num_').replace('_', ' ')} {value:.6g}" for key, value in counts.items()))
    if content["do_filter"]:
        print("filtered by the odds ratio that the total effect is made of, which raises it: see --do-filter False beside it")
    total, indirect, direct = (content[key] for key in ("mean_total_effect", "mean_model_indirect_effect", "mean_model_direct_effect"))
    print(f"total effect {total:.6f}; model-level indirect {indirect:.6f} + direct {direct:.6f} = {indirect + direct:.6f} "
          f"({100 * (indirect + direct) / total:.1f}% of the total: the two are no exact parts of it)\n")
    report_interventions_summary_by_head(results)
    report_interventions_summary_by_layer(results)
    print("wrote", path)


def report_intervention(entry):
    """Print one entry: contexts, candidates, total effect, and the model-level effects, whose sum is near the total but no identity."""
    print(f"x : {entry['base_string1']}\nx': {entry['base_string2']}\nc1: {entry['candidate1']}\nc2: {entry['candidate2']}")
    print(f"total effect {entry['total_effect']:.4f}; indirect {entry['indirect_effect_model']:.4f} + direct {entry['direct_effect_model']:.4f} "
          f"= {entry['indirect_effect_model'] + entry['direct_effect_model']:.4f}")


def report_interventions_summary_by_head(results, effect_types=EFFECTS, k=10):
    """Print the k heads with the largest mean effect; returns {effect: table with layer, head, mean, standard deviation, share above 0}."""
    tables = {}
    for kind in effect_types:
        effects = head_effects(results, kind)
        layer, head = (index.ravel() for index in np.indices(effects.shape[1:]))
        tables[kind] = _summary(effects.reshape(len(results), -1), {"layer": layer, "head": head}).head(k)
        print(f"{kind} effect, strongest {len(tables[kind])} of {effects[0].size} heads, over {len(results)} examples",
              tables[kind].to_string(index=False, float_format="%.4f"), "", sep="\n")
    return tables


def report_interventions_summary_by_layer(results, effect_types=EFFECTS):
    """Print the layers by mean effect of overriding all their heads; returns {effect: table with layer, mean, standard deviation, share above 0}."""
    tables = {}
    for kind in effect_types:
        effects = layer_effects(results, kind)
        tables[kind] = _summary(effects, {"layer": np.arange(effects.shape[1])})
        print(f"{kind} effect by layer, over {len(results)} examples", tables[kind].to_string(index=False, float_format="%.4f"), "", sep="\n")
    return tables


def _summary(effects, names):
    deviation = effects.std(axis=0, ddof=1) if len(effects) > 1 else np.full(effects.shape[1], np.nan)
    table = pd.DataFrame({**names, "mean": effects.mean(axis=0), "standard deviation": deviation, "share above 0": (effects > 0).mean(axis=0)})
    return table.sort_values("mean", ascending=False, ignore_index=True)


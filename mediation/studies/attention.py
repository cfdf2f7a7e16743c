"""The attention study: examples chosen, their sweeps kept as they go, checked, and written as the study's
JSON has them."""

import shlex
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mediation.effects.estimands import strong_examples
from mediation.effects.odds import log_odds
from mediation.errors import InputError
from mediation.files.storage import RunFolder, describe_machine, not_default, now, write_json
from mediation.mediators import head_sweeps
from mediation.mediators.catalogue import CATALOGUE
from mediation.mediators.heads import heads_layers_and_whole
from mediation.model.checkpoints import model_name
from mediation.model.language_model import LanguageModel
from mediation.results.attention_results import EFFECTS, means, result_entry
from mediation.stimuli.interventions import Intervention
from mediation.stimuli.prompts import PronounStimulus
from mediation.studies import engine
from mediation.studies.engine import Arrays, StudyOptions
from mediation.studies.error_budget import budget, describe_check
from mediation.studies.heads import Heads, head_results, head_task, probabilities
from mediation.studies.plan import told
from mediation.studies.results import Account
from mediation.studies.works import Output, Work


def get_odds_ratio(intervention: Intervention, model: LanguageModel) -> float:
    """y(x') / y(x), y = p(c2) / p(c1): above 1 where the model follows the stereotype."""
    return _odds_ratio(*model.continuation_probabilities(intervention))


def odds_ratios(interventions: Collection[Intervention], model: LanguageModel) -> list[float]:
    """`get_odds_ratio` of many, several in one run, with a progress bar."""
    of_each = tqdm(model.continuations_together(interventions), desc="filter", total=len(interventions),
                   unit=" examples")
    return [_odds_ratio(*of_prompts) for of_prompts in of_each]


def _odds_ratio(x, alternative):
    return float(np.exp(log_odds(alternative[1], alternative[0]) - log_odds(x[1], x[0])))


def perform_intervention(intervention: Intervention, model: LanguageModel,
                         effect_types: Sequence[str] = EFFECTS) -> dict[str, Any]:
    """Every head, layer and the whole model of one stimulus, as an entry of the study's JSON (see
    `read_results`)."""
    swept = {kind: head_sweeps.heads_layers_and_model(model, intervention, kind) for kind in effect_types}
    return result_entry(intervention, model.continuation_probabilities(intervention), swept)


def perform_interventions(interventions: Iterable[Intervention], model: LanguageModel,
                          effect_types: Sequence[str] = EFFECTS) -> list[dict[str, Any]]:
    """`perform_intervention` for each, with a progress bar."""
    return [perform_intervention(intervention, model, effect_types)
            for intervention in tqdm(interventions, desc=model.name, unit=" examples")]


def run_study(model: LanguageModel, examples: Sequence[PronounStimulus], data: str, name: str,
              of_data: dict[str, Any], options: Any) -> Path | None:
    """Filter, sweep, JSON: what the scripts of both data sets do with their examples.

    Args:
        examples: all of the data set's; data: "winobias" or "winogender"; name: of the JSON, without what all
            have; of_data: keys of the JSON that say which examples: split or stat.

    Returns: path of the JSON, None where only a plan was asked for. A finished one is left as it is; an
    unfinished one goes on with the next example.
    """
    name = f"attention_intervention_{name}{masking_suffix(model)}.json"
    about = {"model_version": model_name(options.model), "do_filter": options.do_filter, **of_data}
    check_every_layer(model)
    run_folder = RunFolder(Path(options.out_dir) / f"{data}_data")
    settings, method = describe_settings(model, examples, about, options)
    if options.plan:
        run_folder.claim([name], settings)
        interventions = build_interventions(model, examples)
        selected: Sequence[int] = []
        if not run_folder.is_finished(name):
            selected, _ = select_examples(model, interventions, options)
        chosen = [interventions[index] for index in selected]
        told(model, lambda study: works(model, chosen, run_folder, name, study), options, run_folder.folder)
        return None
    with run_folder.claimed([name], settings):
        interventions = build_interventions(model, examples)
        if run_folder.is_finished(name):
            print(f"kept: {run_folder.folder / name} is finished")
            return run_folder.folder / name

        selected, counts = select_examples(model, interventions, options)
        run = run_folder.begin({"settings": settings, "files": {name: {}}, "command": shlex.join(sys.argv),
                                "machine": describe_machine(model), "started": now(), "finished": None})
        chosen = [interventions[index] for index in selected]
        told(model, lambda study: works(model, chosen, run_folder, name, study), options, run_folder.folder)
        sweep_examples(model, chosen, run_folder, run, name, {**about, **method, **counts},
                       StudyOptions.of(options))
        run_folder.update(run, finished=now())
        return run_folder.folder / name


def check_every_layer(model: LanguageModel) -> None:
    """Raises InputError for a model without attention in each block: the formats of 2020 have all heads of
    all layers."""
    CATALOGUE["heads"].check_model(model)
    if len(there := model.parts.attending) < model.num_layers:
        raise InputError(f"only blocks {', '.join(map(str, there))} of this {model.model.config.model_type} "
                         f"model have attention, this study needs it in all {model.num_layers}: use "
                         "mediate.py --mediators heads,layers")


def describe_settings(model: LanguageModel, examples: Sequence[PronounStimulus], about: dict[str, Any],
                      options: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """What decides the numbers; and the part of it that says how they were computed, where not exactly."""
    method = not_default(options, method="exact", precision="exact")
    settings = {**about, **describe_examples(model, examples, options),
                "seed": options.seed if options.randomize else None, **method,
                **not_default(options, full_passes=False)}
    if model.masking:
        settings["masking_approach"] = model.masking.approach
    return settings, method


def describe_examples(model: LanguageModel, examples: Sequence[PronounStimulus], options: Any,
                      **more: Any) -> dict[str, Any]:
    """What decides which examples are analysed, and in which model; `more`: what else says so."""
    return {**model.describe(), **more, "examples_sha256": sha256(repr(examples).encode()).hexdigest(),
            "filter_quantile": options.filter_quantile if options.do_filter else None,
            "max_examples": options.max_examples, **model.describe_dtype()}


def masking_suffix(model: LanguageModel) -> str:
    """What a masked model's approach adds to the names of its files: "_1" to "_6"; nothing for others."""
    return f"_{model.masking.approach}" if model.masking else ""


def select_examples(model: LanguageModel, interventions: Sequence[Intervention],
                    options: Any) -> tuple[Sequence[int], dict[str, Any]]:
    """Indices of the examples that are analysed, all or the model-filtered ones; and what a JSON says of the
    choice."""
    counts: dict[str, Any] = {"num_examples_loaded": len(interventions)}
    if not options.do_filter:
        return range(len(interventions)), counts
    ratios = odds_ratios(interventions, model)
    selected, aligned, threshold = strong_examples(ratios, options.filter_quantile)
    print(f"{aligned} of {len(interventions)} examples have an odds ratio above 1, {len(selected)} above the "
          f"threshold {threshold:.6f}")
    counts |= {"num_examples_aligned": aligned, "filter_quantile": options.filter_quantile,
               "threshold": threshold}
    return selected, counts


def build_interventions(model: LanguageModel, examples: Sequence[PronounStimulus]) -> list[Intervention]:
    """The examples in the model's tokens, each checked to fit an attention study."""
    interventions = [Intervention(model.tokenizer, example.base_string, example.substitutes,
                                  example.candidates, model.device) for example in examples]
    for intervention in interventions:
        intervention.check_for_attention()
    return interventions


def tasks_of(model: LanguageModel, interventions: Sequence[Intervention], name: str,
             options: StudyOptions) -> list[Heads]:
    """A task per example."""
    return [head_task(model, intervention, options, name, f"example {count} of {len(interventions)}")
            for count, intervention in enumerate(interventions, start=1)]


def works(model: LanguageModel, interventions: Sequence[Intervention], run_folder: RunFolder, name: str,
          options: StudyOptions) -> list[Work]:
    """What is still to be done for the JSON, for a plan; after `claim`."""
    def write(path: Path) -> int:
        sets = model.num_layers * model.num_heads + model.num_layers + 1
        random = np.random.default_rng(0)
        arrays = {"probabilities": random.random((2, 2)),
                  **{kind: -random.random((sets, 2)) for kind in EFFECTS}}
        if options.estimates:
            arrays |= {f"{kind}_exact": np.zeros(sets, bool) for kind in EFFECTS}
        write_json(path, entry_of(model, interventions[0], arrays), indent=None)
        return 1

    return [Work.ahead(tasks_of(model, interventions, name, options), run_folder,
                       [Output(len(interventions), write, ending="json")])]


def sweep_examples(model: LanguageModel, interventions: Sequence[Intervention], run_folder: RunFolder,
                   run: int, name: str, about: dict[str, Any], options: StudyOptions) -> None:
    """Sweep the examples, and write the JSON when all are there."""
    tasks = tasks_of(model, interventions, name, options)
    total = sum(task.interventions for task in tasks)
    with tqdm(total=total, unit=" interventions", unit_scale=True, smoothing=0.05) as progress:
        shards = engine.run(model, [tasks], run_folder, progress)
    entries, account = [], Account()
    for task in tasks:
        arrays = shards(task.key)
        entries.append(entry_of(model, task.intervention, arrays))
        for swept in head_results(task, arrays, shards.seconds[task.key]).values():
            account.add(swept)
    content = {**about, "num_examples_analyzed": len(entries), **means(entries), "results": entries}
    write_json(run_folder.folder / name, content, indent=None)
    run_folder.finish_file(run, name, **account.entry(len(entries)))
    fast = {"fast": asdict(account.fast)} if account.fast.rows else {}
    run_folder.update(run, error_budget=budget(options).describe(), **fast)
    if account.fast.rows:
        print(account.fast)
    if options.method == "gradient":
        print(f"compared the estimates of {account.check.random} random heads and {account.check.likely} "
              f"with the largest effects with full passes: log-probabilities differ by at most "
              f"{account.check.deviation:.1e}")
    else:
        what = "heads" + (" among those run" if options.method == "screen" else "")
        print(describe_check(account.check, options, what))


def entry_of(model: LanguageModel, intervention: Intervention, arrays: Arrays) -> dict[str, Any]:
    """One entry of the JSON's results, from the arrays of a Heads task."""
    parts = partial(heads_layers_and_whole, layers=model.num_layers, heads=model.num_heads)
    swept = {}
    for kind in EFFECTS:
        one, other = (parts(column) for column in probabilities(arrays[kind]).T)
        swept[kind] = [part for of_both in zip(one, other) for part in of_both]
    entry = result_entry(intervention, arrays["probabilities"].tolist(), swept)
    ran = {kind: arrays[f"{kind}_exact"] for kind in EFFECTS if f"{kind}_exact" in arrays}
    return entry | {f"{kind}_exact_head": parts(exact)[0].tolist() for kind, exact in ran.items()}

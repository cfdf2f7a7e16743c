"""How near the methods that estimate come to exact runs, and what they cost: neurons on random prompts of the study, heads on WinoBias.

    python -m benchmarks.fidelity -model smollm2-135m --prompts 8 --examples 6

Draws (profession, template, type) at random, runs every neuron exactly, to first order, and by screening with a tenth of the neurons, in turns
in one process, and prints Markdown tables: agreement by group of layers, recall of the exact top 50, ratios of cost. Then the same for heads.
Effects are changes in log odds.
"""

import time
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import numpy as np
from scipy import stats
from tqdm import tqdm

from benchmarks import load, parser, timed
from mediation.options import exit_on_bad_input, positive
from mediation.stimuli.templates import TEMPLATES, template_file_stem

TOP, TOP_HEADS = 50, 10
TYPES = ("man_direct", "man_indirect", "woman_direct", "woman_indirect")
GROUPS = {"word embedding": (0, 1), "first block": (1, 2), "the rest of the first third": (2, 1 / 3), "the middle third": (1 / 3, 2 / 3),
          "the last third": (2 / 3, None)}  # from layer to layer, or from part to part of the layers


def main(options):
    """Speed of the whole study, then neurons, then heads."""
    model = load(options)
    rng = np.random.default_rng(options.seed)
    print(against_2020(model, options))
    print(neuron_tables([neuron_prompt(model, *drawn, options) for drawn in draw_prompts(model, rng, options.prompts)], model.num_layers + 1))
    if options.examples:
        print(head_table([head_example(model, intervention, kind, options) for intervention in draw_examples(model, rng, options.examples)
                          for kind in ("indirect", "direct")]))


def against_2020(model, options):
    """A line: how much less time the first order takes than 2020's full passes, for four professions in all templates and types, tables written."""
    import torch

    from benchmarks.neuron_sweep import by_full_passes_2020
    from benchmarks.study import few_interventions
    from experiment import Intervention
    from mediation.files.storage import RunFolder
    from mediation.studies.engine import StudyOptions
    from mediation.studies.professions import ProfessionStudy

    interventions = {template: {word: Intervention(model.tokenizer, template, [word, "man", "woman"], ["he", "she"], model.device)
                                for word in ("nurse", "carpenter", "teacher", "farmer")} for template in TEMPLATES}
    some = interventions["The {} ran because"]["nurse"]
    files = {f"{template_file_stem(template)}_{kind}.csv": {"template": template, "intervention_type": kind} for template in TEMPLATES for kind in TYPES}
    started = time.perf_counter()
    with TemporaryDirectory() as folder, tqdm(disable=True) as progress:
        run_folder = RunFolder(folder)
        run_folder.claim(files, {})
        study = ProfessionStudy(model, run_folder, interventions, files, StudyOptions.of(settings_of(options, "gradient")))
        for kind in TYPES:
            for _ in study.write(kind, files, progress):
                pass
    ours = (time.perf_counter() - started) / (4 * len(interventions))  # a prompt, all types
    with torch.no_grad():
        of_few, _ = timed(by_full_passes_2020, *few_interventions(model, some, 0, 256))
    theirs = of_few / 256 * len(TYPES) * (model.num_layers + 1) * model.num_neurons
    return (f"all neurons and types of a prompt: {theirs:.0f} s as in 2020 (from 256 full passes), {ours:.2f} s to first order, tables written: "
            f"{theirs / ours:.0f} times less")


def settings_of(options, method):
    """The options of a run of the study."""
    return SimpleNamespace(**{**vars(options), "method": method, "odds_only": False, "alpha": 1.0, "full_passes": False,
                              "screen_share": 0.1, "screen_sample": 64, "screen_top": TOP})


def draw_prompts(model, rng, count):
    """[(template, Intervention, word, intervention type)], types in turn."""
    from experiment import Intervention
    from mediation.stimuli import professions

    usable = [(template, profession.word) for template in TEMPLATES
              for profession in professions.usable(model.tokenizer, template, professions.select())[0]]
    chosen = [usable[index] for index in rng.choice(len(usable), count, replace=False)]
    return [(template, Intervention(model.tokenizer, template, [word, "man", "woman"], ["he", "she"], model.device), word, TYPES[number % len(TYPES)])
            for number, (template, word) in enumerate(chosen)]


def neuron_prompt(model, template, intervention, word, kind, options):
    """{"exact", "gradient", "screen"}: changes in log odds [L + 1, D], {method: seconds}."""
    from mediation.files.storage import RunFolder
    from mediation.studies.engine import StudyOptions
    from mediation.studies.professions import ProfessionStudy

    effects, seconds = {}, {}
    run_on = {"man_direct": 1, "woman_direct": 2}.get(kind, 0)
    for method in ("gradient", "screen", "exact"):
        with TemporaryDirectory() as folder, tqdm(disable=True) as progress:
            run_folder = RunFolder(folder)
            run_folder.claim([], {})
            started = time.perf_counter()
            study = ProfessionStudy(model, run_folder, {template: {word: intervention}}, {"table": {"template": template, "intervention_type": kind}},
                                    StudyOptions.of(settings_of(options, method)))
            results, _ = study.sweep(kind, progress)
            swept = results(0)
            seconds[method] = time.perf_counter() - started
        one, other = swept.log_probabilities.T.reshape(2, model.num_layers + 1, -1)
        effects[method] = one - other - (swept.base[run_on, 0] - swept.base[run_on, 1])
    print(f"{intervention.base_strings[0]}, {kind}: " + ", ".join(f"{method} {value:.2f} s" for method, value in seconds.items()), flush=True)
    return effects, seconds


def neuron_tables(measured, layers):
    """Markdown: agreement by group of layers, recall of the strongest, cost. Argument: what `neuron_prompt` gave for each prompt."""
    lines = ["", "| neurons of | Pearson, median (worst) | Spearman, median (worst) |", "| --- | --- | --- |"]
    bounds = {name: [int(bound * layers) if isinstance(bound, float) else bound for bound in group] for name, group in GROUPS.items()}
    for name, (first, last) in {**bounds, "all layers": (0, None)}.items():
        pairs = [(effects["gradient"][first:last].ravel(), effects["exact"][first:last].ravel()) for effects, _ in measured]
        lines.append(f"| {name} | " + " | ".join(median_and_worst([float(getattr(stats, correlation)(*pair).statistic) for pair in pairs])
                                                 for correlation in ("pearsonr", "spearmanr")) + " |")
    screened = [(effects["screen"].ravel(), effects["exact"].ravel()) for effects, _ in measured]
    lines.append("| all layers, screened | " + " | ".join(median_and_worst([float(getattr(stats, correlation)(*pair).statistic) for pair in screened])
                                                         for correlation in ("pearsonr", "spearmanr")) + " |")
    lines += ["", f"| method | recall of the exact top {TOP}, median (worst) | prompts with all of them | cost of exact over its own, median (least) |",
              "| --- | --- | --- | --- |"]
    for method in ("gradient", "screen"):
        recalls = [recall(effects[method], effects["exact"], TOP) for effects, _ in measured]
        ratios = [seconds["exact"] / seconds[method] for _, seconds in measured]
        lines.append(f"| {method} | {median_and_worst(recalls)} | {sum(found == 1 for found in recalls)} of {len(recalls)} | "
                     f"{np.median(ratios):.1f} ({min(ratios):.1f}) |")
    return "\n".join(lines)


def recall(estimates, exact, top):
    """Share of the `top` strongest exact effects that are among the `top` strongest estimates."""
    strongest, found = (set(np.argsort(-np.abs(values).ravel(), kind="stable")[:top].tolist()) for values in (exact, estimates))
    return len(strongest & found) / top


def median_and_worst(values):
    """As it stands in a table."""
    return f"{np.median(values):.4f} ({min(values):.4f})"


def draw_examples(model, rng, count):
    """Interventions of random WinoBias examples."""
    from mediation.stimuli import winobias
    from mediation.studies.attention import build_interventions

    examples = winobias.load("dev")
    return build_interventions(model, [examples[index] for index in rng.choice(len(examples), count, replace=False)])


def head_example(model, intervention, kind, options):
    """Changes in log odds by method {"exact", "gradient", "screen"} of "head" [L, H], and for exact and the heads' sums of "layer" [L] and "model"."""
    from mediation.mediators.head_sweeps import heads_in_sets
    from mediation.mediators.heads import heads_layers_model
    from mediation.studies.engine import StudyOptions
    from mediation.studies.heads import estimated_heads

    c1, c2 = model.continuation_probabilities(intervention)[0 if kind == "indirect" else 1]
    effects, seconds = {}, {}
    for method in ("gradient", "screen", "exact"):
        started = time.perf_counter()
        if method == "exact":
            swept = heads_in_sets(model, intervention, kind, heads_layers_model(model.num_layers, model.num_heads), options.batch_size)
        else:
            study = StudyOptions(method, batch_size=options.batch_size)
            swept, _ = estimated_heads(model, intervention, kind, study, lambda _: None)
        seconds[method] = time.perf_counter() - started
        changes, heads = (swept[:, 1] - swept[:, 0]).numpy() - np.log(c2 / c1), model.num_layers * model.num_heads
        effects[method] = changes[:heads].reshape(model.num_layers, -1), changes[heads:-1], changes[-1]
    print(f"{intervention.base_strings[0]}, {kind}: " + ", ".join(f"{method} {value:.2f} s" for method, value in seconds.items()), flush=True)
    return effects, seconds


def head_table(measured):
    """Markdown: agreement of heads, of layers and the model by the sums of their heads, and cost."""
    lines = ["", "| | Pearson, median (worst) | Spearman, median (worst) |", "| --- | --- | --- |"]
    pairs = {"heads": [(effects["gradient"][0].ravel(), effects["exact"][0].ravel()) for effects, _ in measured],
             "heads, screened": [(effects["screen"][0].ravel(), effects["exact"][0].ravel()) for effects, _ in measured],
             "layers as sums of their heads": [(effects["gradient"][0].sum(axis=1), effects["exact"][1]) for effects, _ in measured]}
    for name, of_examples in pairs.items():
        lines.append(f"| {name} | " + " | ".join(median_and_worst([float(getattr(stats, correlation)(*pair).statistic) for pair in of_examples])
                                                 for correlation in ("pearsonr", "spearmanr")) + " |")
    apart = [abs(effects["gradient"][0].sum() / effects["exact"][2] - 1) for effects, _ in measured]
    lines += ["", f"the whole model as the sum of its heads is off by {100 * np.median(apart):.0f}% (median), {100 * max(apart):.0f}% (worst): it is run",
              "", f"| method | recall of the exact top {TOP_HEADS}, median (worst) | cost of exact over its own, median (least) |", "| --- | --- | --- |"]
    for method in ("gradient", "screen"):
        recalls = [recall(effects[method][0], effects["exact"][0], TOP_HEADS) for effects, _ in measured]
        ratios = [seconds["exact"] / seconds[method] for _, seconds in measured]
        lines.append(f"| {method} | {median_and_worst(recalls)} | {np.median(ratios):.1f} ({min(ratios):.1f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line = parser(__doc__)
    command_line.add_argument("--prompts", type=positive, default=8, metavar="N", help="random prompts of the neuron study (default: 8)")
    command_line.add_argument("--examples", type=int, default=6, metavar="N", help="random WinoBias examples; 0 leaves the heads out (default: 6)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

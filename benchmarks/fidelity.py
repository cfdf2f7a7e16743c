"""How near estimates come to exact runs, and what they cost: neurons on random prompts, heads on WinoBias.

    python -m benchmarks.fidelity -model smollm2-135m --prompts 8 --examples 6

Draws (profession, template, type) at random, runs every neuron exactly, to first order, and by screening with
a tenth of the neurons, in turns in one process, and prints Markdown tables: agreement by group of layers,
recall of the exact top 50, ratios of cost. Then the same for heads. Effects are changes in log odds.
"""

import argparse
import time
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats
from tqdm import tqdm

from benchmarks import load, parser, timed
from mediation.options import exit_on_bad_input, positive
from mediation.stimuli.templates import TEMPLATES, template_file_stem

if TYPE_CHECKING:
    from experiment import Intervention, Model

    Measured = tuple[dict[str, np.ndarray], dict[str, float]]  # {method: effects}, {method: seconds}

TOP, TOP_HEADS = 50, 10
TYPES = ("man_direct", "man_indirect", "woman_direct", "woman_indirect")
GROUPS = {"word embedding": (0, 1), "first block": (1, 2), "the rest of the first third": (2, 1 / 3),
          # from layer to layer, or from part to part of the layers
          "the middle third": (1 / 3, 2 / 3), "the last third": (2 / 3, None)}


def main(options: argparse.Namespace) -> None:
    """Speed of the whole study, then neurons, then heads."""
    model = load(options)
    rng = np.random.default_rng(options.seed)
    print(against_2020(model, options))
    prompts = draw_prompts(model, rng, options.prompts)
    print(neuron_tables([neuron_prompt(model, *prompt, options) for prompt in prompts], model.num_layers + 1))
    if options.examples:
        examples = draw_examples(model, rng, options.examples)
        print(head_table([head_example(model, intervention, kind, options) for intervention in examples
                          for kind in ("indirect", "direct")]))


def against_2020(model: "Model", options: argparse.Namespace) -> str:
    """A line: how much less time the first order takes than 2020's full passes, for all templates and types.

    Ours is the study of four professions with its tables written; 2020's is scaled from 256 passes.
    """
    import torch

    from benchmarks.neuron_sweep import by_full_passes_2020
    from benchmarks.study import few_interventions
    from experiment import Intervention
    from mediation.files.storage import RunFolder
    from mediation.studies.engine import StudyOptions
    from mediation.studies.professions import ProfessionStudy

    interventions = {template: {word: Intervention(model.tokenizer, template, [word, "man", "woman"],
                                                   ["he", "she"], model.device)
                                for word in ("nurse", "carpenter", "teacher", "farmer")}
                     for template in TEMPLATES}
    nurse = interventions["The {} ran because"]["nurse"]
    files = {f"{template_file_stem(template)}_{kind}.csv": {"template": template, "intervention_type": kind}
             for template in TEMPLATES for kind in TYPES}
    started = time.perf_counter()
    with TemporaryDirectory() as folder, tqdm(disable=True) as progress:
        run_folder = RunFolder(folder)
        run_folder.claim(files, {})
        study = ProfessionStudy(model, run_folder, interventions, files,
                                StudyOptions.of(settings_of(options, "gradient")))
        for kind in TYPES:
            for _ in study.write(kind, files, progress):
                pass
    ours = (time.perf_counter() - started) / (4 * len(interventions))  # per prompt, all types
    with torch.no_grad():
        of_passes, _ = timed(by_full_passes_2020, *few_interventions(model, nurse, 0, 256))
    theirs = of_passes / 256 * len(TYPES) * (model.num_layers + 1) * model.num_neurons
    return (f"all neurons and types of a prompt: {theirs:.0f} s as in 2020 (from 256 full passes), "
            f"{ours:.2f} s to first order, tables written: {theirs / ours:.0f} times less")


def settings_of(options: argparse.Namespace, method: str) -> SimpleNamespace:
    """The options of a run of the study."""
    return SimpleNamespace(**{
        **vars(options), "method": method, "odds_only": False, "alpha": 1.0, "full_passes": False,
        "screen_share": 0.1, "screen_sample": 64, "screen_top": TOP})


def draw_prompts(
    model: "Model", rng: np.random.Generator, count: int,
) -> list[tuple[str, "Intervention", str, str]]:
    """[(template, Intervention, word, intervention type)], types in turn."""
    from experiment import Intervention
    from mediation.stimuli import professions

    usable = [(template, profession.word) for template in TEMPLATES
              for profession in professions.usable(model.tokenizer, template, professions.select())[0]]
    chosen = [usable[index] for index in rng.choice(len(usable), count, replace=False)]
    stimuli = [Intervention(model.tokenizer, template, [word, "man", "woman"], ["he", "she"], model.device)
               for template, word in chosen]
    return [(template, stimulus, word, TYPES[number % len(TYPES)])
            for number, ((template, word), stimulus) in enumerate(zip(chosen, stimuli))]


def neuron_prompt(
    model: "Model", template: str, intervention: "Intervention", word: str, kind: str,
    options: argparse.Namespace,
) -> "Measured":
    """Changes in log odds [L + 1, D] and seconds by method ("exact", "gradient", "screen")."""
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
            study = ProfessionStudy(model, run_folder, {template: {word: intervention}},
                                    {"table": {"template": template, "intervention_type": kind}},
                                    StudyOptions.of(settings_of(options, method)))
            results, _ = study.sweep(kind, progress)
            result = results(0)
            seconds[method] = time.perf_counter() - started
        c1, c2 = result.log_probabilities.T.reshape(2, model.num_layers + 1, -1)
        effects[method] = c1 - c2 - (result.base[run_on, 0] - result.base[run_on, 1])
    print_seconds(intervention, kind, seconds)
    return effects, seconds


def print_seconds(intervention: "Intervention", kind: str, seconds: dict[str, float]) -> None:
    """A line at once, for the whole takes long."""
    times = ", ".join(f"{method} {value:.2f} s" for method, value in seconds.items())
    print(f"{intervention.base_strings[0]}, {kind}: {times}", flush=True)


def neuron_tables(measured: Sequence["Measured"], layers: int) -> str:
    """Markdown: agreement by group of layers, recall of the strongest, cost.

    Args:
        measured: of each prompt what `neuron_prompt` gives.
        layers: number of layers, word embedding included.
    """
    lines = ["", "| neurons of | Pearson, median (worst) | Spearman, median (worst) |", "| --- | --- | --- |"]
    bounds = {name: [int(bound * layers) if isinstance(bound, float) else bound for bound in group]
              for name, group in GROUPS.items()}
    for name, (first, last) in {**bounds, "all layers": (0, None)}.items():
        pairs = [(effects["gradient"][first:last], effects["exact"][first:last]) for effects, _ in measured]
        lines.append(agreement_row(name, pairs))
    lines.append(agreement_row("all layers, screened",
                               [(effects["screen"], effects["exact"]) for effects, _ in measured]))
    lines += ["", f"| method | recall of the exact top {TOP}, median (worst) | prompts with all of them | "
              "cost of exact over its own, median (least) |", "| --- | --- | --- | --- |"]
    for method in ("gradient", "screen"):
        recalls = [recall(effects[method], effects["exact"], TOP) for effects, _ in measured]
        ratios = [seconds["exact"] / seconds[method] for _, seconds in measured]
        complete = sum(share == 1 for share in recalls)
        lines.append(f"| {method} | {median_and_worst(recalls)} | {complete} of {len(recalls)} | "
                     f"{np.median(ratios):.1f} ({min(ratios):.1f}) |")
    return "\n".join(lines)


def agreement_row(name: str, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> str:
    """A row of Markdown: correlations of (estimates, exact effects), one pair per prompt or example."""
    cells = [median_and_worst([float(correlation(estimates.ravel(), exact.ravel()).statistic)
                               for estimates, exact in pairs])
             for correlation in (stats.pearsonr, stats.spearmanr)]
    return f"| {name} | {' | '.join(cells)} |"


def recall(estimates: np.ndarray, exact: np.ndarray, top: int) -> float:
    """Share of the `top` strongest exact effects that are among the `top` strongest estimates."""
    strongest, estimated = (set(np.argsort(-np.abs(values).ravel(), kind="stable")[:top].tolist())
                            for values in (exact, estimates))
    return len(strongest & estimated) / top


def median_and_worst(values: Sequence[float]) -> str:
    """As it stands in a table."""
    return f"{np.median(values):.4f} ({min(values):.4f})"


def draw_examples(model: "Model", rng: np.random.Generator, count: int) -> list["Intervention"]:
    """Interventions of random WinoBias examples."""
    from mediation.stimuli import winobias
    from mediation.studies.attention import build_interventions

    examples = winobias.load("dev")
    drawn = rng.choice(len(examples), count, replace=False)
    return build_interventions(model, [examples[index] for index in drawn])


def head_example(
    model: "Model", intervention: "Intervention", kind: str, options: argparse.Namespace,
) -> tuple[dict[str, tuple], dict[str, float]]:
    """Changes in log odds of heads [L, H], attention layers [L] and the model, and seconds, by method.

    Methods are "exact", "gradient" and "screen".
    """
    from mediation.mediators.head_sweeps import heads_in_sets
    from mediation.mediators.heads import heads_layers_model
    from mediation.studies.engine import StudyOptions
    from mediation.studies.heads import estimated_heads

    c1, c2 = model.continuation_probabilities(intervention)[0 if kind == "indirect" else 1]
    effects, seconds = {}, {}
    for method in ("gradient", "screen", "exact"):
        started = time.perf_counter()
        if method == "exact":
            every = heads_layers_model(model.num_layers, model.num_heads)
            results = heads_in_sets(model, intervention, kind, every, options.batch_size)
        else:
            study = StudyOptions(method, batch_size=options.batch_size)
            results, _ = estimated_heads(model, intervention, kind, study)
        seconds[method] = time.perf_counter() - started
        changes = (results[:, 1] - results[:, 0]).numpy() - np.log(c2 / c1)
        heads = model.num_layers * model.num_heads
        effects[method] = changes[:heads].reshape(model.num_layers, -1), changes[heads:-1], changes[-1]
    print_seconds(intervention, kind, seconds)
    return effects, seconds


def head_table(measured: Sequence[tuple[dict[str, tuple], dict[str, float]]]) -> str:
    """Markdown: agreement of heads, of attention layers and the model by sums of their heads, and cost."""
    lines = ["", "| | Pearson, median (worst) | Spearman, median (worst) |", "| --- | --- | --- |"]
    pairs = {"heads": [(effects["gradient"][0], effects["exact"][0]) for effects, _ in measured],
             "heads, screened": [(effects["screen"][0], effects["exact"][0]) for effects, _ in measured],
             "layers as sums of their heads": [(effects["gradient"][0].sum(axis=1), effects["exact"][1])
                                               for effects, _ in measured]}
    lines += [agreement_row(name, of_examples) for name, of_examples in pairs.items()]
    errors = [abs(effects["gradient"][0].sum() / effects["exact"][2] - 1) for effects, _ in measured]
    lines += ["", f"the whole model as the sum of its heads is off by {100 * np.median(errors):.0f}% "
              f"(median), {100 * max(errors):.0f}% (worst): it is run", "",
              f"| method | recall of the exact top {TOP_HEADS}, median (worst) | "
              "cost of exact over its own, median (least) |", "| --- | --- | --- |"]
    for method in ("gradient", "screen"):
        recalls = [recall(effects[method][0], effects["exact"][0], TOP_HEADS) for effects, _ in measured]
        ratios = [seconds["exact"] / seconds[method] for _, seconds in measured]
        lines.append(f"| {method} | {median_and_worst(recalls)} | {np.median(ratios):.1f} "
                     f"({min(ratios):.1f}) |")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line = parser(__doc__)
    command_line.add_argument("--prompts", type=positive, default=8, metavar="N",
                              help="random prompts of the neuron study (default: 8)")
    command_line.add_argument("--examples", type=int, default=6, metavar="N",
                              help="random WinoBias examples; 0 leaves the heads out (default: 6)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

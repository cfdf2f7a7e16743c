"""Which few neurons carry the effect: top-k and greedy selection of neurons on the profession stimuli.

    python neuron_intervention_subset_selection.py --model_type smollm2-135m --algo topk,greedy --k 3 \\
        --out_dir selection -template_indices 1 --professions nurse carpenter
    python neuron_intervention_subset_selection.py --model_type smollm2-135m --layer 0 --out_dir selection \\
        -template_indices 1 --professions nurse carpenter

The objective is the mean odds ratio minus 1 toward the anti-stereotypical gender: female-biased professions
under man's values with odds he/she, male-biased ones under woman's with odds she/he; no definitional words,
both base probabilities above 0.01. Writes OUT_DIR/marg_contrib.pickle (every neuron alone),
{topk,greedy,random,lazy}_{M}.pickle or {...}_{M}_{layer}.pickle as asked for, by_example_{M}.pickle (the
effects of every prompt, for the 95% intervals that are printed and drawn), the figure sparsity_{M}.pdf and
manifest.json. Layers count as in the tables: 0 the word embedding. Each step is on disk before the next
begins: an interrupted run, or one with a larger --k, goes on from there.
"""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mediation.errors import InputError
from mediation.files.storage import RunFolder, check_writable
from mediation.mediators.catalogue import CATALOGUE
from mediation.options import (
    Parser,
    add_engine,
    add_model_options,
    add_plan,
    add_selection_options,
    exit_on_bad_input,
    positive,
)
from mediation.results.selections import KINDS
from mediation.stimuli import professions
from mediation.stimuli.templates import select_templates, template_file_stem
from mediation.studies.engines import engine_of

if TYPE_CHECKING:
    from experiment import Intervention, Model
    from mediation.studies.selection import NeuronExample, NeuronSelectionFiles

CANDIDATES = ("he", "she")


def main(options: argparse.Namespace) -> None:
    """Stimuli, model, neurons alone, selection, table and figure."""
    from mediation.files.storage import describe_machine, now
    from mediation.results.selections import with_intervals
    from mediation.studies import selection
    from mediation.studies.plan import told
    from mediation.studies.selection_plan import works
    from utils import load_model

    templates = select_templates(options.template_indices)
    chosen = professions.select(options.professions, options.max_examples)
    check_writable(options.out_dir)
    model = load_model(options)
    CATALOGUE["neurons"].check_model(model)
    first, shape = layers_to_select_from(model, options.layer)
    selection.check_size(options.k, shape[0] * shape[1])
    prompts = objective_prompts(model, templates, chosen)

    name = model.name if options.layer == -1 else f"{model.name}_{options.layer}"
    names = {"marg_contrib": "marg_contrib.pickle",
             **{kind: f"{kind}_{name}.pickle" for kind in KINDS}}
    settings = {**model.describe(), "prompts": list(prompts), **model.describe_dtype(), "seed": options.seed}
    run_folder = RunFolder(options.out_dir)
    run_folder.claim(names.values(), settings)
    examples = {key: selection.NeuronExample(*prompt, options.batch_size, first * model.num_neurons)
                for key, prompt in prompts.items()}
    files = selection.NeuronSelectionFiles(model, run_folder, names, examples, "", " prompts", shape,
                                           "neuron", first)
    # the neurons of all layers, so that a selection in another layer goes on from the same file
    of_all_layers = {key: replace(example, first=0) for key, example in examples.items()}
    units = [[unit] for unit in range((model.num_layers + 1) * model.num_neurons)]
    if told(model, lambda _: works(files, "marg_contrib", units, options, of_all_layers), options,
            run_folder.folder):
        return
    with run_folder.claimed(names.values(), settings):
        files.run = run_folder.begin({
            "settings": settings, "files": {file: {} for file in names.values()},
            "command": shlex.join(sys.argv), "machine": describe_machine(model), "started": now(),
            "finished": None})
        alone = marginal_contributions(files, of_all_layers, units)
        in_table = [(layer, neuron) for layer, neuron in zip(alone["layer"], alone["neuron"])
                    if options.layer in (-1, layer)]
        selections = selection.run(files, files.cells_of(in_table), options)
        everything = all_together(files)
        selections, of_all = with_intervals(selections, files.read("by_example"))
        run_folder.update(files.run, finished=now())
    show(name, files, selections, everything, of_all, options)


def layers_to_select_from(model: "Model", layer: int) -> tuple[int, tuple[int, int]]:
    """The first layer of neurons, and (layers, neurons of a layer); of all layers where `layer` is -1.

    Raises:
        InputError: no such layer.
    """
    layers, width = model.num_layers + 1, model.num_neurons
    if not -1 <= layer < layers:
        raise InputError(f"--layer {layer}: the model has layers 0 (word embedding) to {layers - 1}; "
                         "-1 takes all of them")
    return (0, (layers, width)) if layer == -1 else (layer, (1, width))


def objective_prompts(
    model: "Model", templates: dict[int, str], chosen: list[professions.Profession],
) -> dict[str, tuple["Intervention", str, int]]:
    """{key: (Intervention, intervention type, sign of log odds he over she)} of the prompts that count.

    Raises:
        InputError: none does.
    """
    from experiment import Intervention
    from mediation.effects import estimands

    prompts = {}
    biased = [profession for profession in chosen if profession.bias and not profession.is_definitional]
    for template in templates.values():
        usable, _ = professions.usable(model.tokenizer, template, biased)
        interventions = [Intervention(model.tokenizer, template, [profession.word, "man", "woman"],
                                      CANDIDATES, model.device) for profession in usable]
        base = model.base_probabilities(interventions)
        for profession, intervention, (he, she, *_) in zip(usable, interventions, base):
            if min(he, she) > estimands.LEAST_PROBABILITY:
                kind, sign = ("man_indirect", 1) if profession.bias < 0 else ("woman_indirect", -1)
                key = f"{template_file_stem(template)}-{profession.word}"
                prompts[key] = (intervention, kind, sign)
    if not prompts:
        raise InputError(f"none of {len(chosen)} professions counts in {len(templates)} templates (biased, "
                         "not definitional, single-token, p(he) and p(she) above "
                         f"{estimands.LEAST_PROBABILITY}): name others with --professions")
    print(f"{len(prompts)} prompts count, of {len(chosen)} professions in {len(templates)} templates")
    return prompts


def marginal_contributions(
    files: "NeuronSelectionFiles", examples: dict[str, "NeuronExample"], units: list[list[int]],
) -> dict[str, Any]:
    """Every neuron of the model alone, best mean odds ratio first: {"layer", "neuron", "val"}, arrays.

    They come from the file, or are computed into it.
    """
    from mediation.studies.selection import best_first

    content = files.read("marg_contrib")
    if content is None:
        means = files.objectives("marg_contrib", "single", units, examples).mean(axis=0) + 1
        order = best_first(means)
        width = files.shape[1]
        content = {"layer": order // width, "neuron": order % width, "val": means[order]}
        files.write("marg_contrib", content, len(order))
        files.run_folder.remove_shards(files.names["marg_contrib"])
    return content


def all_together(files: "NeuronSelectionFiles") -> float:
    """The mean objective of all neurons that are selected from; each example's is remembered."""
    every_cell = [list(range(files.cells))]
    objectives = [example.objectives(files.model, every_cell)[0] for example in files.examples.values()]
    files.remember("all", np.array(objectives)[:, None])
    return float(sum(objectives) / len(objectives))


def show(
    name: str, files: "NeuronSelectionFiles", selections: dict[str, Any], everything: float,
    of_all: tuple[float, float], options: argparse.Namespace,
) -> None:
    """Print the table and draw the figure."""
    from mediation.reports import plots, report

    folder = Path(options.out_dir)
    print(f"\n{name}: mean odds ratio - 1 over {len(files.examples)} prompts")
    print(report.selection(selections, options.k, "neuron", everything, of_all))
    print("wrote", plots.sparsity(selections, options.k, "neuron", everything, files.shape, name,
                                  folder / f"sparsity_{name}.pdf"))
    print("wrote", *(folder / file for file in files.names.values() if files.run_folder.is_finished(file)))


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    add_selection_options(parser)
    add_engine(parser)
    add_plan(parser)
    parser.add_argument("--layer", type=int, default=-1, metavar="L",
                        help="only neurons of this layer, 0 = word embedding; -1: all (default)")
    parser.add_argument("--template_indices", type=int, nargs="+", metavar="I",
                        help="templates 1 to 17 (default: all)")
    parser.add_argument("--professions", nargs="+", metavar="W",
                        help="words from experiment_data/professions.csv (default: all)")
    parser.add_argument("--max_examples", type=positive, metavar="N", help="only the first N professions")
    parser.add_argument("--out_dir", required=True, metavar="D", help="folder of the pickles")
    parser.set_defaults(full_passes=False)
    chosen_options = parser.parse_args()
    with exit_on_bad_input(), engine_of(chosen_options):
        main(chosen_options)

"""Which few heads carry the effect: top-k and greedy selection of attention heads.

    python attention_intervention_subset_selection.py --model_type smollm2-135m --algo topk,greedy --k 10 \\
        --data winobias --out_dir selection
    python attention_intervention_subset_selection.py --model_type smollm2-135m --algo topk,greedy,random \\
        --data winobias,winogender --out_dir selection

The mean indirect effect of sets of heads whose weights are replaced together, on the filtered examples of
WinoBias dev and Winogender (BLS). Writes
OUT_DIR/{topk,greedy,greedy_intermediate,mean_effect,random,lazy}_{M}_{data}.pickle as asked for,
by_example_{M}_{data}.pickle (the effects of every example, for intervals), the figure
sparsity_{M}_{data}.pdf and manifest.json, and prints the effect against the number of heads, with the 95%
intervals of its means. Each step is on disk before the next begins: an interrupted run, or one with a larger
--k, goes on from there.

    python attention_intervention_subset_selection.py --model_type gpt2 --figures_only --data winobias \\
        --out_dir selection

prints the table and draws the figure from the pickles that are there; 2020's, which are named wb and wg, are
read too.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mediation.errors import InputError
from mediation.files.storage import RunFolder, check_writable, read_pickle
from mediation.options import (
    Parser,
    add_attention_options,
    add_engine,
    add_plan,
    add_selection_options,
    choices,
    exit_on_bad_input,
)
from mediation.results.selections import KINDS
from mediation.stimuli import winobias, winogender
from mediation.stimuli.prompts import PronounStimulus
from mediation.studies.engines import engine_of

if TYPE_CHECKING:
    from experiment import Intervention, Model
    from mediation.studies.selection import SelectionFiles

SHORT_NAMES = {"winobias": "wb", "winogender": "wg"}  # in the file names of the 2020 code
DATA = {"winobias": lambda: winobias.load("dev"), "winogender": lambda: winogender.load("bls")}


def main(options: argparse.Namespace) -> None:
    """Stimuli, model; then one data set after the other."""
    from mediation.model.checkpoints import model_name
    from mediation.studies.attention import check_every_layer
    from mediation.studies.selection import check_size
    from utils import load_model

    if options.figures_only:
        name = model_name(options.model) + ("_random" if options.randomize else "")
        for data in options.data:
            show_files(name, data, options)
        return
    examples = {data: DATA[data]()[: options.max_examples] for data in options.data}
    check_writable(options.out_dir)
    model = load_model(options)
    check_every_layer(model)
    check_size(options.k, model.num_layers * model.num_heads)
    for data in options.data:
        select_heads(model, examples[data], data, options)


def select_heads(
    model: "Model", examples: list[PronounStimulus], data: str, options: argparse.Namespace,
) -> None:
    """Filter, heads alone, selection, table and figure of one data set."""
    from mediation.files.storage import describe_machine, now
    from mediation.studies import selection
    from mediation.studies.attention import (
        build_interventions,
        describe_examples,
        masking_suffix,
        select_examples,
    )

    name = model.name + masking_suffix(model)
    names = {kind: f"{kind}_{name}_{data}.pickle" for kind in ("mean_effect", *KINDS)}
    settings = {**describe_examples(model, examples, options, data=data), "seed": options.seed}
    run_folder = RunFolder(options.out_dir)
    run_folder.claim(names.values(), settings)

    def files_of(interventions: list["Intervention"], selected: Sequence[int]) -> selection.SelectionFiles:
        units = {index: selection.HeadExample(interventions[index], options.batch_size) for index in selected}
        return selection.SelectionFiles(model, run_folder, names, units, f"{data}, ", " examples",
                                        (model.num_layers, model.num_heads), "head")

    if options.plan:
        interventions = build_interventions(model, examples)
        selected, _ = select_examples(model, interventions, options)
        tell(files_of(interventions, selected), options)
        return
    with run_folder.claimed(names.values(), settings):
        interventions = build_interventions(model, examples)
        selected, counts = select_examples(model, interventions, options)
        files = files_of(interventions, selected)
        tell(files, options)
        files.run = run_folder.begin({
            "settings": settings, "files": {file: {} for file in names.values()},
            "command": shlex.join(sys.argv), "machine": describe_machine(model), "started": now(),
            "finished": None, **counts})
        means = mean_effects(files)
        order = selection.best_first(means["mean_effect_head"]).tolist()
        selections = selection.run(files, order, options)
        by_example = files.read("by_example") or {}
        run_folder.update(files.run, finished=now())

    print(f"\n{len(files.examples)} examples")
    show(name, data, selections, means, by_example, options)
    folder = Path(options.out_dir)
    print("wrote", *(folder / file for file in names.values() if run_folder.is_finished(file)))


def tell(files: "SelectionFiles", options: argparse.Namespace) -> None:
    """What is still to be done, where --plan or a long run asks for it."""
    from mediation.studies.plan import told
    from mediation.studies.selection_plan import works

    told(files.model, lambda _: works(files, "mean_effect", sets_alone(files), options), options,
         files.run_folder.folder)


def show(
    name: str, data: str, selections: dict[str, Any], means: dict[str, Any], by_example: dict[str, Any],
    options: argparse.Namespace,
) -> None:
    """Print the table of one data set and draw its figure."""
    from mediation.reports import plots, report
    from mediation.results.selections import with_intervals

    selections, of_all = with_intervals(selections, by_example)
    print(f"{name}, {data}: mean indirect effect of heads replaced together")
    print(report.selection(selections, options.k, "head", means["mean_effect_model"], of_all))
    figure = Path(options.out_dir) / f"sparsity_{name}_{data}.pdf"
    print("wrote", plots.sparsity(selections, options.k, "head", means["mean_effect_model"],
                                  np.shape(means["mean_effect_head"]), f"{name}, {data}", figure))


def show_files(name: str, data: str, options: argparse.Namespace) -> None:
    """The same from the files of an earlier run, or of the 2020 code.

    Raises:
        InputError: no such files, or damaged ones.
    """
    from mediation.results.selections import TITLES, read_by_example, read_selections

    folder = Path(options.out_dir)
    for written in (data, SHORT_NAMES[data]):
        path = folder / f"mean_effect_{name}_{written}.pickle"
        if path.exists():
            means = read_pickle(path)
            try:
                float(means["mean_effect_model"]), np.asarray(means["mean_effect_head"], float).sum(axis=1)
            except (KeyError, TypeError, ValueError) as error:
                raise InputError(f"{path} has no mean_effect_model and mean_effect_head [layers][heads]: "
                                 "move it away") from error
            paths = {kind: folder / f"{kind}_{name}_{written}.pickle" for kind in TITLES}
            by_example = read_by_example(folder / f"by_example_{name}_{written}.pickle")
            return show(name, data, read_selections(paths, "head"), means, by_example, options)
    raise InputError(f"{folder} has no mean_effect_{name}_{data}.pickle, nor one named {SHORT_NAMES[data]}: "
                     "run the selection without --figures_only")


def sets_alone(files: "SelectionFiles") -> list[list[int]]:
    """Every head alone, every attention layer's heads together, and all heads."""
    from mediation.mediators.heads import heads_layers_model

    return [row.flatten().nonzero().flatten().tolist() for row in heads_layers_model(*files.shape)]


def mean_effects(files: "SelectionFiles") -> dict[str, Any]:
    """Mean indirect effects of every head, every attention layer's heads together and all heads.

    They come from the file, or are computed into it: mean_effect_head [L, H], mean_effect_layer [L] and
    mean_effect_model.
    """
    content = files.read("mean_effect")
    if content is None:
        layers, heads = files.shape
        effects = files.objectives("mean_effect", "single", sets_alone(files))
        means = effects.mean(axis=0)
        files.remember("all", effects[:, -1:])
        if files.read("greedy_intermediate") is None:  # greedy begins with the heads alone
            alone = effects[:, : layers * heads].reshape(-1, layers, heads)
            files.write("greedy_intermediate", {0: alone}, 1)
        content = {"mean_effect_model": float(means[-1]), "mean_effect_layer": means[-1 - layers:-1],
                   "mean_effect_head": means[:-1 - layers].reshape(layers, heads)}
        files.write("mean_effect", content, len(files.examples))
    return content


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_attention_options(parser)
    add_selection_options(parser)
    add_engine(parser)
    add_plan(parser)
    parser.add_argument("--data", type=choices(*DATA), default=["winobias"], metavar="D,...",
                        help="winobias, winogender, or both (default: winobias)")
    parser.add_argument("--figures_only", action="store_true",
                        help="run nothing: table and figure from the pickles in OUT_DIR, 2020's included")
    chosen_options = parser.parse_args()
    with exit_on_bad_input(), engine_of(chosen_options):
        main(chosen_options)

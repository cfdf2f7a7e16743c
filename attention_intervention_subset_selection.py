"""Which few heads carry the effect: top-k and greedy selection of attention heads.

    python attention_intervention_subset_selection.py --model_type smollm2-135m --algo topk,greedy --k 10 --data winobias --out_dir selection
    python attention_intervention_subset_selection.py --model_type smollm2-135m --algo topk,greedy,random --data winobias,winogender --out_dir selection

The mean indirect effect of sets of heads that are overridden together, on the filtered examples of WinoBias dev and Winogender
(BLS). Writes OUT_DIR/{topk,greedy,greedy_intermediate,mean_effect,random,lazy}_{M}_{data}.pickle as asked for, the figure
sparsity_{M}_{data}.pdf and manifest.json, and prints the effect against the number of heads. Each step is on disk before the
next begins: an interrupted run, or one with a larger --k, goes on from there.
"""

import argparse
import shlex
import sys
from hashlib import sha256
from pathlib import Path

from mediation import winobias, winogender
from mediation.options import Parser, add_attention_options, add_selection_options, choices, exit_on_bad_input
from mediation.storage import RunFolder, check_writable

DATA = {"winobias": lambda: winobias.load("dev"), "winogender": lambda: winogender.load("bls")}


def main(options):
    """Stimuli, model; then one data set after the other."""
    from mediation.selection import check_size
    from utils import load_model

    examples = {data: DATA[data]()[: options.max_examples] for data in options.data}
    check_writable(options.out_dir)
    model = load_model(options)
    check_size(options.k, model.num_layers * model.num_heads)
    for data in options.data:
        select_heads(model, examples[data], data, options)


def select_heads(model, examples, data, options):
    """Filter, heads alone, selection, table and figure of one data set."""
    from tqdm import tqdm

    from attention_utils import build_interventions, indirect_effects_of_sets, select_examples
    from mediation import plots, report, selection
    from utils import describe_machine, now

    names = {kind: f"{kind}_{model.name}_{data}.pickle" for kind in ("mean_effect", *selection.KINDS)}
    settings = {"model": model.name, "weights_sha256": model.weights_sha256(), "data": data, "examples_sha256": sha256(repr(examples).encode()).hexdigest(),
                "filter_quantile": options.filter_quantile if options.do_filter else None, "max_examples": options.max_examples,
                "dtype": options.dtype, "seed": options.seed}
    run_folder = RunFolder(options.out_dir)
    run_folder.claim(names.values(), settings)
    interventions = build_interventions(model, examples)
    selected, counts = select_examples(model, interventions, options)
    run = run_folder.begin({"settings": settings, "files": {name: {} for name in names.values()}, "command": shlex.join(sys.argv),
                            "machine": describe_machine(model), "started": now(), "finished": None, **counts})

    def evaluate(index, sets):
        return indirect_effects_of_sets(model, interventions[index], sets, options.batch_size)

    files = selection.SelectionFiles(run_folder, run, names, evaluate, selected, lambda items, text: tqdm(items, desc=f"{data}, {text}", unit=" examples"),
                                     (model.num_layers, model.num_heads), "head")
    means = mean_effects(files)
    found = selection.run(files, selection.best_first(means["mean_effect_head"]).tolist(), options)
    run_folder.update(run, finished=now())

    print(f"\n{model.name}, {data}: mean indirect effect over {len(files.examples)} examples")
    print(report.selection(found, options.k, "head", means["mean_effect_model"]))
    figure = Path(options.out_dir) / f"sparsity_{model.name}_{data}.pdf"
    print("wrote", plots.sparsity(found, options.k, "head", means["mean_effect_model"], files.shape, f"{model.name}, {data}", figure))
    print("wrote", *(Path(options.out_dir) / name for name in names.values() if run_folder.is_finished(name)))


def mean_effects(files):
    """Mean indirect effects of every head [L, H], every layer's heads together [L] and all heads, from the file or computed into it."""
    from mediation.attention import heads_layers_model

    done = files.read("mean_effect")
    if done is None:
        layers, heads = files.shape
        sets = [row.flatten().nonzero().flatten().tolist() for row in heads_layers_model(layers, heads)]
        effects = files.objectives("mean_effect", "single", sets)
        means = effects.mean(axis=0)
        if files.read("greedy_intermediate") is None:  # greedy begins with the heads alone
            files.write("greedy_intermediate", {0: effects[:, : layers * heads].reshape(-1, layers, heads)}, 1)
        done = {"mean_effect_model": float(means[-1]), "mean_effect_layer": means[-1 - layers:-1],
                "mean_effect_head": means[:-1 - layers].reshape(layers, heads)}
        files.write("mean_effect", done, len(files.examples))
        files.run_folder.remove_shards(files.names["mean_effect"])
    return done


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_attention_options(parser)
    add_selection_options(parser)
    parser.add_argument("--data", type=choices(*DATA), default=["winobias"], metavar="D,...", help="winobias, winogender, or both (default: winobias)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

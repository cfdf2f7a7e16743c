"""Indirect effect of the strongest neurons of each layer, for all models in a folder.

    python compute_neuron_effect_per_layer.py results/20200301_neuron_intervention

Reads every {M}_neuron_effects.csv in FOLDER and FOLDER/random (compute_and_save_neuron_agg_effect.py writes
them). Draws neuron_layer_effect_{M}.pdf for each model and neuron_layer_effect.pdf for all, and writes the
numbers in them to neuron_layer_effect.csv.
"""

import argparse
from pathlib import Path

from mediation.effects import summaries
from mediation.errors import InputError
from mediation.files.storage import write_csv
from mediation.options import Parser, add_out_dir, exit_on_bad_input, share

SUFFIX = "_neuron_effects.csv"


def main(options: argparse.Namespace) -> None:
    """Effects of every neuron, of all models in the folder, to the profile over layers."""
    import pandas as pd

    from mediation.options import output_folder
    from mediation.reports import plots
    from mediation.results.neuron_tables import LAYER_COLUMNS, describe_methods, read_effects

    out_dir = output_folder(options)
    folder = Path(options.folder)
    paths = sorted(folder.glob(f"*{SUFFIX}")) + sorted(folder.glob(f"random/*{SUFFIX}"))
    if not paths:
        raise InputError(f"{folder} holds no *{SUFFIX}: run compute_and_save_neuron_agg_effect.py first, or "
                         "name its folder")

    models = {path: path.name.removesuffix(SUFFIX) for path in paths}
    for path, model in models.items():
        if method := describe_methods(path.parent, model):
            print(method)
    tables = [summaries.top_of_layer(read_effects(path), share).assign(model=model, share=share)
              for path, model in models.items() for share in options.shares]
    layers = pd.concat(tables, ignore_index=True)[LAYER_COLUMNS]
    print("mean odds ratio under the indirect interventions (1 = no effect), over the strongest neurons of "
          "each layer")
    means = layers.pivot(index=["model", "layer"], columns="share", values="odds_ratio_indirect_mean")
    print(means.to_string(float_format="%.4f"))

    print("\nwrote", write_csv(out_dir / "neuron_layer_effect.csv", layers))
    for model, rows in layers.groupby("model", sort=False):
        print("wrote", plots.layer_effect(rows, model, out_dir / f"neuron_layer_effect_{model}.pdf"))
    smallest = layers[layers["share"] == min(options.shares)]
    print("wrote", plots.layer_effects(smallest, out_dir / "neuron_layer_effect.pdf"))


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER", help="folder of the *_neuron_effects.csv")
    parser.add_argument("--shares", type=share, nargs="+", default=[0.025, 0.1], metavar="S",
                        help="strongest parts of each layer, by mean indirect effect (default: 0.025 0.1); "
                             "the figure of all models shows the smallest")
    add_out_dir(parser)
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

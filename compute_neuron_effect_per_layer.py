"""Indirect effect of the strongest neurons of each layer, for all models in a folder.

    python compute_neuron_effect_per_layer.py results/20200301_neuron_intervention

Reads every {M}_neuron_effects.csv in FOLDER and FOLDER/random (compute_and_save_neuron_agg_effect.py writes
them), and {M}_neuron_layer_summary.csv beside it, which has the intervals. Draws
neuron_layer_effect_{M}.pdf for each model and neuron_layer_effect.pdf for all, and writes the numbers in them
to neuron_layer_effect.csv.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mediation.effects import summaries
from mediation.errors import InputError
from mediation.files.storage import write_csv
from mediation.options import Parser, add_out_dir, exit_on_bad_input, share

if TYPE_CHECKING:
    import pandas

SUFFIX, INTERVALS = "_neuron_effects.csv", "_neuron_layer_summary.csv"
KEYS = ["share", "layer", "neurons"]
ENDS = ["odds_ratio_indirect_low", "odds_ratio_indirect_high"]


def main(options: argparse.Namespace) -> None:
    """Effects of every neuron, of all models in the folder, to the profile over layers."""
    import pandas as pd

    from mediation.options import output_folder
    from mediation.reports import plots, report
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
    tables = []
    for path, model in models.items():
        profile = pd.concat([summaries.top_of_layer(read_effects(path), share).assign(share=share)
                             for share in options.shares], ignore_index=True)
        tables.append(with_intervals(profile, path.with_name(f"{model}{INTERVALS}")).assign(model=model))
    layers = pd.concat(tables, ignore_index=True)[[*LAYER_COLUMNS, *ENDS]]
    print("mean odds ratio under the indirect interventions (1 = no effect), over the strongest neurons of "
          "each layer\n[95% interval over professions and templates; the neurons are chosen on the same "
          "prompts]")
    layers["mean"] = [report.with_interval(mean, low, high, ".4f") for mean, low, high in
                      layers[["odds_ratio_indirect_mean", *ENDS]].itertuples(index=False)]
    print(layers.pivot(index=["model", "layer"], columns="share", values="mean").to_string())
    without = layers.loc[layers[ENDS[0]].isna(), ["model", "share"]].drop_duplicates()
    for row in without.itertuples():
        print(f"no interval of the strongest {100 * row.share:g}% of {row.model}: of two professions on, "
              f"compute_and_save_neuron_agg_effect.py --shares {row.share:g} writes it")

    print("\nwrote", write_csv(out_dir / "neuron_layer_effect.csv", layers.drop(columns="mean")))
    for model, rows in layers.groupby("model", sort=False):
        print("wrote", plots.layer_effect(rows, model, out_dir / f"neuron_layer_effect_{model}.pdf"))
    smallest = layers[layers["share"] == min(options.shares)]
    print("wrote", plots.layer_effects(smallest, out_dir / "neuron_layer_effect.pdf"))


def with_intervals(profile: "pandas.DataFrame", path: Path) -> "pandas.DataFrame":
    """The profile of one model with the ends of its intervals, NaN where they are not known.

    Raises:
        InputError: a summary that is no such table, or of other effects.
    """
    import numpy as np

    from mediation.results.neuron_tables import read_effects

    if not path.exists():
        return profile.assign(**dict.fromkeys(ENDS, np.nan))
    known = read_effects(path, summaries.LAYERS)
    merged = profile.merge(known[[*KEYS, "odds_ratio_indirect_mean", *ENDS]], "left", KEYS,
                           suffixes=("", "_there"), validate="one_to_one")
    there = merged["odds_ratio_indirect_mean_there"]
    if not np.isclose(there.dropna(), merged.loc[there.notna(), "odds_ratio_indirect_mean"]).all():
        raise InputError(f"{path} is of other effects than the table beside it: run "
                         "compute_and_save_neuron_agg_effect.py again")
    return merged.drop(columns="odds_ratio_indirect_mean_there")


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

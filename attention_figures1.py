"""Figures of the attention study, eight per result file: heat maps over heads, bars over attention layers.

    python attention_figures1.py
    python attention_figures1.py -out_dir replication -model gpt2

Reads every attention_intervention_*.json in OUT_DIR/winobias_data and OUT_DIR/winogender_data, of any model,
and draws
OUT_DIR/results/attention_intervention/{kind of figure}/{winobias,winogender}_{M}_{filter}_{split|stat}.pdf.
Effects are means over examples; the layouts follow the model's numbers of attention layers and heads.
"""

import argparse
from pathlib import Path
from typing import Any

from mediation.files.storage import check_writable
from mediation.options import MODEL_SPELLINGS, Parser, exit_on_bad_input


def main(options: argparse.Namespace) -> None:
    """Each file to its eight figures."""
    from tqdm import tqdm

    from mediation.results.attention_results import find_results, read_results

    check_writable(options.out_dir)
    figures = Path(options.out_dir) / "results" / "attention_intervention"
    labels = find_results(options.out_dir, options.model)
    contents = {path: read_results(path) for path in labels}  # all of them first: bad input draws no figure
    for path, label in tqdm(labels.items(), desc="figures", unit=" files"):
        draw(contents[path]["results"], label, figures)
    print(f"drew 8 figures of each of {len(labels)} result files in {figures}")


def draw(results: list[dict[str, Any]], label: str, figures: Path) -> None:
    """The eight figures of one result file. `label`: as in the figures' names, see `find_results`."""
    from mediation.effects.summaries import errors_of_units, means_of_units
    from mediation.reports import plots
    from mediation.results.attention_results import EFFECTS, head_effects, layer_effects

    title = f"{label.replace('_', ' ')}\n{len(results)} examples"
    of_heads = {kind: head_effects(results, kind) for kind in EFFECTS}
    heads = {kind: units.grid(means_of_units(units.effects)) for kind, units in of_heads.items()}
    layers = {kind: layer_effects(results, kind).effects for kind in EFFECTS}
    means = {kind: means_of_units(effects) for kind, effects in layers.items()}
    name = f"{label}.pdf"
    plots.stacked_layer_bars(means["indirect"], means["direct"], title, figures / "stacked_bar_charts" / name)
    for kind in EFFECTS:
        errors = errors_of_units(layers[kind])
        plots.head_heat_map(heads[kind], kind, title, figures / f"heat_maps_{kind}" / name)
        plots.layer_bars(means[kind], errors, kind, title, figures / f"layer_{kind}" / name)
        plots.head_heat_map_with_bar(heads[kind], means[kind], kind, title,
                                     figures / f"heat_maps_with_bar_{kind}" / name)
    plots.head_heat_map_with_bar(heads["indirect"], means["indirect"], "indirect", title,
                                 figures / "heat_maps_with_bar_indirect_sorted" / name, sort=True)


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", default=".", metavar="D",
                        help="where winobias_data and winogender_data are (default: here)")
    parser.add_argument(*MODEL_SPELLINGS, dest="model", metavar="M",
                        help="only the files of this model, named as in them (default: all)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

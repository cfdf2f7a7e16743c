"""Figures of the attention study, eight per result file: heat maps over heads, bars over attention layers.

    python attention_figures1.py
    python attention_figures1.py -out_dir replication -model gpt2

Reads every attention_intervention_*.json in OUT_DIR/winobias_data and OUT_DIR/winogender_data, of any model,
and draws
OUT_DIR/results/attention_intervention/{kind of figure}/{winobias,winogender}_{M}_{filter}_{split|stat}.pdf.
Effects are means over examples, with 95% intervals: bars over attention layers have error bars, heads whose
interval holds 0 are hatched. The layouts follow the model's numbers of attention layers and heads. Also
writes, beside each JSON, what its script writes since it has statistics, so that files of 2020 have them,
too: {M}_{filter}_{split|stat}_{heads,layers}_summary.csv.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mediation.files.storage import check_writable
from mediation.options import MODEL_SPELLINGS, Parser, exit_on_bad_input

if TYPE_CHECKING:
    from mediation.results.attention_summaries import StudySummary


def main(options: argparse.Namespace) -> None:
    """Each file to its eight figures."""
    from tqdm import tqdm

    from mediation.results.attention_results import find_results, read_results
    from mediation.results.attention_summaries import summarise_study, write_summaries

    check_writable(options.out_dir)
    figures = Path(options.out_dir) / "results" / "attention_intervention"
    labels = find_results(options.out_dir, options.model)
    contents = {path: read_results(path) for path in labels}  # all of them first: bad input draws no figure
    for path, label in tqdm(labels.items(), desc="figures", unit=" files"):
        study = summarise_study(contents[path]["results"])
        draw(contents[path]["results"], study, label, figures)
        write_summaries(path, contents[path], study)
    print(f"drew 8 figures of each of {len(labels)} result files in {figures}; wrote beside each file the "
          "summaries of its heads and layers, *_summary.csv")


def draw(results: list[dict[str, Any]], study: "StudySummary", label: str, figures: Path) -> None:
    """The eight figures of one result file. `label`: as in the figures' names, see `find_results`."""
    from mediation.effects.summaries import means_of_units
    from mediation.reports import plots
    from mediation.results.attention_results import EFFECTS, head_effects, layer_effects

    title = f"{label.replace('_', ' ')}\n{len(results)} examples, {study.clusters} clusters"
    of_heads = {kind: head_effects(results, kind) for kind in EFFECTS}
    heads = {kind: units.grid(means_of_units(units.effects)) for kind, units in of_heads.items()}
    # a head's direct effect is near the total effect: what the head does is the difference
    unsure = {kind: units.grid(study.unsure("heads", "total_indirect" if kind == "direct" else kind))
              for kind, units in of_heads.items()}
    means = {kind: means_of_units(layer_effects(results, kind).effects) for kind in EFFECTS}
    ends = {kind: study.interval("layers", kind) for kind in EFFECTS}
    intervals = {kind: (low[:-1], high[:-1]) for kind, (low, high) in ends.items()}  # the last: the model
    name = f"{label}.pdf"
    plots.stacked_layer_bars(means["indirect"], means["direct"], title, figures / "stacked_bar_charts" / name,
                             (intervals["indirect"], intervals["direct"]))
    for kind in EFFECTS:
        of_kind = heads[kind], means[kind], kind, title
        plots.head_heat_map(heads[kind], kind, title, figures / f"heat_maps_{kind}" / name,
                            unsure=unsure[kind])
        plots.layer_bars(means[kind], plots.reach(means[kind], intervals[kind]), kind, title,
                         figures / f"layer_{kind}" / name, bars=plots.INTERVAL)
        plots.head_heat_map_with_bar(*of_kind, figures / f"heat_maps_with_bar_{kind}" / name, unsure[kind],
                                     intervals[kind])
        if kind == "indirect":
            plots.head_heat_map_with_bar(*of_kind, figures / "heat_maps_with_bar_indirect_sorted" / name,
                                         unsure[kind], intervals[kind], sort=True)


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", default=".", metavar="D",
                        help="where winobias_data and winogender_data are (default: here)")
    parser.add_argument(*MODEL_SPELLINGS, dest="model", metavar="M",
                        help="only the files of this model, named as in them (default: all)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

"""Several models, or several groups of one, side by side: does an effect differ, does it grow with size?

    python compare_models.py winobias_data winogender_data
    python compare_models.py results/20200301_neuron_intervention mine --sizes smollm2-135m=135 mine-1b=1100

FOLDER_OR_FILE: JSONs of the attention study, ours or the published ones (a folder stands for the files in it,
in its winobias_data and in its winogender_data), folders of the neuron study, folders or total_effects_*.csv
of mediate.py. What was asked alike is compared: means with 95% intervals, differences on the examples that
two models share, the trend over size on those that all share, overlap of the strongest units. Models named
*_random are controls and not in the trend. Prints the comparison, and writes it as
model_comparison.html, a page for a browser, .md, .csv and .pdf.
"""

import argparse
from pathlib import Path

from mediation.files.storage import check_writable, write_csv
from mediation.options import Parser, exit_on_bad_input, model_size, seed
from mediation.stimuli import professions


def main(options: argparse.Namespace) -> None:
    """Files to what each model says, then study by study."""
    import pandas as pd

    from mediation.effects.model_comparison import (
        MILLIONS,
        Comparison,
        check_comparable,
        of_studies,
        trend_places,
    )
    from mediation.reports import plots
    from mediation.reports.comparison import Compared, comparison_page
    from mediation.reports.html import write_page
    from mediation.reports.page import markdown
    from mediation.results.model_results import measured_in

    out_dir = Path(options.out_dir)
    check_writable(out_dir)
    rated, measured = professions.load(), []
    for path in dict.fromkeys(Path(each).resolve() for each in options.paths):
        measured += measured_in(path, rated)
    sizes = MILLIONS | dict(options.sizes)
    studies, everything = of_studies(measured), []
    check_comparable(studies)
    for of_models in studies.values():
        places, step = trend_places([each.model for each in of_models], sizes)
        compared = Comparison(of_models, places, options.seed)
        everything.append(Compared(compared, compared.table(options.seed), step))
    page = comparison_page(everything)
    table = pd.concat([each.table for each in everything], ignore_index=True)
    print(markdown(page))
    for path in write_page(page, out_dir / "model_comparison.html"):
        print("wrote", path)
    print("wrote", write_csv(out_dir / "model_comparison.csv", table))
    print("wrote", plots.compared_models(table, out_dir / "model_comparison.pdf"))


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", metavar="FOLDER_OR_FILE", help="results to compare")
    parser.add_argument("--sizes", type=model_size, nargs="+", default=[], metavar="M=MILLIONS",
                        help="parameters of models, in millions; those of the five GPT-2 and of smollm2-135m "
                             "are known. Without any, models stand in the order of the command line")
    parser.add_argument("--seed", type=seed, default=0, help="of the draws (default: 0)")
    parser.add_argument("--out_dir", default=".", metavar="D",
                        help="where model_comparison.html, .md, .csv and .pdf go (default: here)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

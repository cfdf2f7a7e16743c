"""Total, direct and indirect effect of all models side by side, on filtered WinoBias dev.

    python attention_figures2.py -out_dir .

Reads OUT_DIR/winobias_data/attention_intervention_{M}_filtered_dev.json of every model that is there (of
masked ones, every approach). Draws OUT_DIR/results/attention_intervention/effects.pdf, and writes the numbers
in it to effects.csv beside it: TE, NDE-all and NIE-all (all heads' weights replaced at once), NIE-sum (the
sum of the heads' own indirect effects; above NIE-all where heads do the same work).
"""

import argparse
import re
from pathlib import Path

from mediation.errors import InputError
from mediation.files.storage import check_writable, write_csv
from mediation.options import Parser, exit_on_bad_input


def main(options: argparse.Namespace) -> None:
    """Files to a table, the table to a figure."""
    import pandas as pd

    from mediation.effects.summaries import sum_of_means
    from mediation.reports import plots
    from mediation.results.attention_results import find_results, head_effects, read_results

    check_writable(options.out_dir)
    matches = {path: match for path, label in find_results(options.out_dir).items()
               # a masked model's approach stands last
               if (match := re.fullmatch(r"winobias_(.+)_filtered_dev(?:_([1-6]))?", label))}
    if not matches:
        raise InputError(f"{options.out_dir}/winobias_data holds no filtered dev results: run "
                         "attention_intervention_winobias.py --do-filter True --split dev")
    rows = {}
    for path, match in matches.items():
        content = read_results(path)
        rows[match[1] + (f" ({match[2]})" if match[2] else "")] = {
            "TE": content["mean_total_effect"], "NDE-all": content["mean_model_direct_effect"],
            "NIE-all": content["mean_model_indirect_effect"],
            "NIE-sum": sum_of_means(head_effects(content["results"], "indirect").effects)}
    table = pd.DataFrame.from_dict(rows, orient="index")
    print(table.to_string(float_format="%.4f"))
    folder = Path(options.out_dir) / "results" / "attention_intervention"
    print("wrote", plots.effects_of_models(table, folder / "effects.pdf"))
    print("wrote", write_csv(folder / "effects.csv", table.rename_axis("model"), index=True))


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", default=".", metavar="D",
                        help="where winobias_data is (default: here)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

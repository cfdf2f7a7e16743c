"""Total, direct and indirect effect of all models side by side, on filtered WinoBias dev.

    python attention_figures2.py -out_dir .

Reads OUT_DIR/winobias_data/attention_intervention_{M}_filtered_dev.json of every model that is there (of
masked ones, every approach). Draws OUT_DIR/results/attention_intervention/effects.pdf, and writes the numbers
in it to effects.csv beside it: TE, NDE-all and NIE-all (all heads' weights replaced at once), NIE-sum (the
sum of the heads' own indirect effects; above NIE-all where heads do the same work). Each is a mean over
examples, odds ratio minus 1, with its 95% interval: a bootstrap over the occupations that an example is
about, the same draws for all models, whose examples differ by the filter.
"""

import argparse
import re
from pathlib import Path

import numpy as np

from mediation.errors import InputError
from mediation.files.storage import check_writable, write_csv
from mediation.options import Parser, exit_on_bad_input

COLUMNS = {"TE": "mean_total_effect", "NDE-all": "mean_model_direct_effect",
           "NIE-all": "mean_model_indirect_effect"}  # keys of a JSON

def main(options: argparse.Namespace) -> None:
    """Files to a table, the table to a figure."""
    import pandas as pd

    from mediation.reports import plots
    from mediation.results.attention_results import MEANS, find_results, head_effects, read_results
    from mediation.results.attention_summaries import shared_resampling

    check_writable(options.out_dir)
    matches = {path: match for path, label in find_results(options.out_dir).items()
               # a masked model's approach stands last
               if (match := re.fullmatch(r"winobias_(.+)_filtered_dev(?:_([1-6]))?", label))}
    if not matches:
        raise InputError(f"{options.out_dir}/winobias_data holds no filtered dev results: run "
                         "attention_intervention_winobias.py --do-filter True --split dev")
    contents = {match[1] + (f" ({match[2]})" if match[2] else ""): read_results(path)
                for path, match in matches.items()}
    draws = shared_resampling([content["results"] for content in contents.values()])
    means, lows, highs = {}, {}, {}
    for (model, content), resampling in zip(contents.items(), draws):
        results = content["results"]
        of_examples = {title: np.array([entry[MEANS[key]] for entry in results], float)
                       for title, key in COLUMNS.items()}
        of_examples["NIE-sum"] = head_effects(results, "indirect").effects.sum(axis=1)
        low, high = resampling.of_means(np.stack(list(of_examples.values()), axis=1))
        lows[model], highs[model] = dict(zip(of_examples, low)), dict(zip(of_examples, high))
        means[model] = {title: content[key] for title, key in COLUMNS.items()}
        means[model]["NIE-sum"] = of_examples["NIE-sum"].mean()
    table, low, high = (pd.DataFrame.from_dict(rows, orient="index") for rows in (means, lows, highs))
    whole = table.copy()
    for title in table:
        whole[f"{title} low"], whole[f"{title} high"] = low[title], high[title]
    shown = pd.DataFrame({part: [f"{mean:.4f} [{low:.4f}, {high:.4f}]" for mean, low, high in zip(
        whole[part], whole[f"{part} low"], whole[f"{part} high"])] for part in table}, whole.index)
    print(shown.to_string())
    print("in brackets: 95% interval, bootstrap over the occupations of the examples")
    folder = Path(options.out_dir) / "results" / "attention_intervention"
    print("wrote", plots.effects_of_models(table, low, high, folder / "effects.pdf"))
    print("wrote", write_csv(folder / "effects.csv", whole.rename_axis("model"), index=True))


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out_dir", default=".", metavar="D",
                        help="where winobias_data is (default: here)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

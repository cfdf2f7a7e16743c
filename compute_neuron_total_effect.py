"""Total effects of a model on profession prompts, and how they follow the professions' gender bias.

    python compute_neuron_total_effect.py results/20200301_neuron_intervention gpt2
    python compute_neuron_total_effect.py professions_gpt2_probs.csv gpt2 -out_dir .

Reads the neuron tables of model M in FOLDER (or one table with the same probability columns). Prints every
estimand with its formula and filter, the paper's first, and the correlations of bias with effect. Writes
{M}_total_effects.csv and neuron_profession_correlation.pdf.
"""

import argparse

from mediation.effects.estimands import bias_correlations, prompt_effects, total_effects
from mediation.files.storage import write_csv
from mediation.options import exit_on_bad_input, folder_and_model_parser
from mediation.reports import report
from mediation.stimuli import professions


def main(options: argparse.Namespace) -> None:
    """Probabilities without intervention to total effects, correlations and a figure."""
    from mediation.options import output_folder
    from mediation.reports import plots
    from mediation.results.neuron_tables import read_probabilities

    out_dir = output_folder(options)
    probabilities = read_probabilities(options.folder, options.model)
    table, unrated = prompt_effects(probabilities, professions.load())

    estimands, correlations = total_effects(table), bias_correlations(table)
    print(report.describe_prompts(options.model, table, unrated), report.describe_estimands(estimands),
          report.describe_correlations(correlations), sep="\n\n")

    path = out_dir / f"{options.model}_total_effects.csv"
    print("\nwrote", write_csv(path, report.estimand_table(estimands)))
    print("wrote", plots.profession_correlation(table, correlations[0], options.model,
                                                out_dir / "neuron_profession_correlation.pdf"))


if __name__ == "__main__":
    chosen_options = folder_and_model_parser(__doc__).parse_args()
    with exit_on_bad_input():
        main(chosen_options)

"""Total effects split by the gender that the model prefers for a profession, and by its stereotype's gender.

    python compute_neuron_split_total_effect.py results/20200301_neuron_intervention gpt2

Reads the neuron tables of model M in FOLDER (or one table with the same probability columns). Definitional
words are left out, and prompts on which p(he) or p(she) is not above 0.01. Prints the effects and writes
{M}_split_total_effects.csv.
"""

import argparse

from mediation.effects.estimands import prompt_effects, split_total_effects
from mediation.files.storage import write_csv
from mediation.options import exit_on_bad_input, folder_and_model_parser
from mediation.reports import report
from mediation.stimuli import professions


def main(options: argparse.Namespace) -> None:
    """Probabilities without intervention to total effects by preferred and by stereotypical gender."""
    from mediation.options import output_folder
    from mediation.results.neuron_tables import read_probabilities

    out_dir = output_folder(options)
    probabilities = read_probabilities(options.folder, options.model)
    table, unrated = prompt_effects(probabilities, professions.load())

    estimands = split_total_effects(table)
    print(report.describe_prompts(options.model, table, unrated), report.describe_estimands(estimands),
          sep="\n\n")
    path = out_dir / f"{options.model}_split_total_effects.csv"
    print("\nwrote", write_csv(path, report.estimand_table(estimands)))


if __name__ == "__main__":
    chosen_options = folder_and_model_parser(__doc__).parse_args()
    with exit_on_bad_input():
        main(chosen_options)

"""The report of a neuron study: stimuli, results, how sure they are, what was left out, where the files are.

    python make_report.py results/20200301_neuron_intervention smollm2-135m

Reads what run_profession_neuron_experiments.py and the compute_* scripts wrote into FOLDER. Prints the report
and writes it to {M}_report.md.
"""

import argparse
from pathlib import Path

from mediation.effects import estimands
from mediation.effects.unit_summaries import NUMBERS
from mediation.errors import InputError
from mediation.files.storage import RunFolder, whole_file
from mediation.options import exit_on_bad_input, folder_and_model_parser
from mediation.reports import report
from mediation.stimuli import professions


def main(options: argparse.Namespace) -> None:
    """Everything that lies in the folder, on one page."""
    from mediation.options import output_folder
    from mediation.results.neuron_tables import (
        CONTRAST_COLUMNS,
        LAYER_COLUMNS,
        describe_methods,
        find_tables,
        read_effects,
        read_probabilities,
    )

    folder, model, out_dir = Path(options.folder), options.model, output_folder(options)
    tables = find_tables(folder, model)
    runs = [run for run in RunFolder(folder).read()["runs"] if run["settings"].get("model") == model]
    if not any("sweep_seconds" in entry for run in runs for entry in run["files"].values()):
        raise InputError(f"{folder} has no manifest of a finished sweep of {model!r}: run "
                         "run_profession_neuron_experiments.py first")
    probabilities = read_probabilities(folder, model)
    table, _ = estimands.prompt_effects(probabilities, professions.load())
    effects = read_effects(folder / f"{model}_neuron_effects.csv")
    layers = read_effects(folder / "neuron_layer_effect.csv", LAYER_COLUMNS)
    contrasts_path = folder / f"{model}_neuron_gender_contrast.csv"  # only where both indirect types were run
    contrasts = read_effects(contrasts_path, CONTRAST_COLUMNS) if contrasts_path.exists() else None
    units_path = folder / f"{model}_neurons_summary.csv"
    units = read_effects(units_path, NUMBERS) if units_path.exists() else None

    path = out_dir / f"{model}_report.md"
    figures = sorted(folder.glob("*.pdf"))
    numbers = [*sorted(folder.glob(f"{model}_*.csv")), folder / "neuron_layer_effect.csv"]
    kinds = list(tables.values())
    files = [f"{folder}/*_{kind}_{model}.* (tables: {kinds.count(kind)})" for kind in dict.fromkeys(kinds)]
    text = report.neuron_study(report.NeuronStudy(
        model, runs, probabilities, estimands.total_effects(table), estimands.bias_correlations(table)[0],
        effects, contrasts, layers[layers["model"] == model], units,
        [*files, *figures, *numbers, folder / "manifest.json", path], describe_methods(folder, model)))
    with whole_file(path) as file:
        file.write(text)
    print(text)


if __name__ == "__main__":
    chosen_options = folder_and_model_parser(__doc__).parse_args()
    with exit_on_bad_input():
        main(chosen_options)

"""Does this software reproduce a result file of the attention study? Recompute and compare it by example.

    python check_replication.py --data winobias -model gpt2
    python check_replication.py --json winobias_data/attention_intervention_smollm2-135m_filtered_dev.json \\
        -model smollm2-135m --sample 10

The file is one of the published study or of our own (--json), or by default
OUT_DIR/{data}_data/attention_intervention_*_{M}_*.json for --data; the published figures of GPT-2 small on
filtered WinoBias dev come with this software. Prints the deviation of every probability and effect, whether
the file's means lie within the 95% intervals of the recomputed ones, the examples that only one side has, and
a verdict, which is about deviations: an interval says how far means would be with other stimuli. Exit code 0:
reproduced; 1: not.
"""

import argparse
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mediation.errors import InputError
from mediation.options import Parser, add_model_options, exit_on_bad_input, positive
from mediation.stimuli.prompts import PronounStimulus

if TYPE_CHECKING:
    import pandas

    from experiment import Intervention, Model

PUBLISHED = Path(__file__).parent / "experiment_data" / "published"

Key = tuple[str, ...]  # the strings that name an example, see `attention_results.example_key`


def main(options: argparse.Namespace) -> int:
    """File, stimuli, model, comparison, verdict."""
    import pandas as pd
    from tqdm import tqdm

    from attention_utils import perform_intervention
    from experiment import Intervention
    from mediation.results.attention_results import (
        EFFECTS,
        STRINGS,
        data_set_of,
        example_key,
        read_results,
    )
    from utils import load_model

    path = find_file(options)
    content = read_results(path)
    examples = data_set_of(content)[: content.get("num_examples_loaded")]
    theirs = {example_key(*(entry[name] for name in STRINGS)): entry for entry in content["results"]}
    keys = [key_of(example) for example in examples]
    common = [key for key in theirs if key in keys]
    if not common:
        raise InputError(f"{path}: none of its {len(theirs)} examples is in the data set: name a result file "
                         "of this data set")

    approach = re.search(r"filtered(?:_dev|_test)?_([1-6])$", path.stem)
    options.masking_approach = int(approach[1]) if approach else 1
    model = load_model(options)
    interventions = {key: Intervention(model.tokenizer, example.base_string, example.substitutes,
                                       example.candidates, model.device)
                     for key, example in zip(keys, examples)}
    ours = selected(model, interventions, content)
    if options.sample:
        drawn = np.random.default_rng(options.seed).choice(len(common), min(options.sample, len(common)),
                                                           replace=False)
        common = [common[index] for index in sorted(drawn)]
    again = {key: perform_intervention(interventions[key], model, EFFECTS)
             for key in tqdm(common, desc="examples", unit=" examples")}
    table = pd.DataFrame([compare(theirs[key], entry) | {"context": key[0]} for key, entry in again.items()])
    means = compare_means(content, list(again.values()))
    return report(path, model, table, means, ours, theirs, options.tolerance)


def report(
    path: Path, model: "Model", table: "pandas.DataFrame", means: "pandas.DataFrame", ours: Collection[Key],
    theirs: Collection[Key], tolerance: float,
) -> int:
    """Print the comparison; returns the exit code.

    Args:
        table: one row per example that was recomputed, columns of `compare`; means: of `compare_means`.
        ours, theirs: keys of the examples that this software and the file analyse.
    """
    from mediation.effects.summaries import largest_and_median

    print(f"{path}: {len(theirs)} examples, {len(table)} recomputed with {model.name}\n")
    print("largest deviation in each example (probabilities relative, effects absolute)")
    print(table.to_string(float_format="%.1e"), "\n")
    deviations = table.drop(columns="context")
    print(largest_and_median(deviations).to_string(float_format="%.1e"), "\n")
    print(means.to_string(float_format="%.6f", na_rep="-"))
    print(f"in the file: mean of its {len(theirs)} examples; ours: of the {len(table)} recomputed, with its "
          "95% interval, a bootstrap over\nthe occupations that a context names\n")
    for title, keys in (("in the file", [key for key in theirs if key not in ours]),
                        ("in ours", [key for key in ours if key not in theirs])):
        print(f"examples only {title}: {len(keys)}", *(f"  {' | '.join(key[::2])}" for key in keys), sep="\n")
    largest, same = float(deviations.max().max()), set(ours) == set(theirs)
    reproduced = same and largest <= tolerance
    print(f"\nverdict: {'REPRODUCED' if reproduced else 'NOT REPRODUCED'}: largest deviation {largest:.1e} "
          f"(allowed: {tolerance:g}), {'the same' if same else 'other'} examples, {len(table)} of "
          f"{len(theirs)} recomputed")
    return 0 if reproduced else 1


def find_file(options: argparse.Namespace) -> Path:
    """The file that is named, or the one that the model's name and --data say."""
    if options.json:
        return Path(options.json)
    from mediation.model.checkpoints import model_name

    name = model_name(options.model) + ("_random" if options.randomize else "")
    pattern = {"winobias": f"attention_intervention_{name}_filtered_dev.json",
               "winogender": f"attention_intervention_*_{name}_filtered.json"}[options.data]
    folder = Path(options.out_dir) / f"{options.data}_data"
    patterns = pattern, pattern.replace(".json", "_[1-6].json")  # a masked model's files end in the approach
    paths = next((paths for place in (folder, PUBLISHED) for each in patterns
                  if (paths := sorted(place.glob(each)))), [])
    if not paths:
        raise InputError(f"no {pattern} in {folder}: name the file with --json, or the folder above "
                         f"{folder.name} with -out_dir")
    return paths[0]


def key_of(example: PronounStimulus) -> Key:
    """The key of a data set's example, as that of a result file's entry."""
    from mediation.results.attention_results import example_key, strings_of

    return example_key(*strings_of(example))


def selected(
    model: "Model", interventions: dict[Key, "Intervention"], content: dict[str, Any],
) -> list[Key]:
    """Keys of the examples that this software would analyse with the file's settings."""
    from mediation.effects.estimands import strong_examples
    from mediation.studies.attention import odds_ratios

    if not content["do_filter"]:
        return list(interventions)
    ratios = odds_ratios(interventions.values(), model)
    strong, aligned, threshold = strong_examples(ratios, content["filter_quantile"])
    print(f"aligned examples {aligned} (file: {content['num_examples_aligned']}), threshold {threshold:.6f} "
          f"(file: {content['threshold']:.6f}), analysed {len(strong)} "
          f"(file: {content['num_examples_analyzed']})")
    return [list(interventions)[index] for index in strong]


def compare(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, float]:
    """Largest deviations of two entries of one example: of probabilities relative, of effects absolute."""
    probabilities = [name for name in theirs if name.endswith("_prob")]
    deviations = {"probability": max(abs(ours[name] / theirs[name] - 1) for name in probabilities),
                  "total": abs(ours["total_effect"] - theirs["total_effect"])}
    for kind in ("indirect", "direct"):
        for level in ("head", "layer", "model"):
            name = f"{kind}_effect_{level}"
            deviation = np.abs(np.asarray(ours[name]) - np.asarray(theirs[name])).max()
            deviations[f"{kind} {level}"] = float(deviation)
    return deviations


def compare_means(content: dict[str, Any], again: list[dict[str, Any]]) -> "pandas.DataFrame":
    """The means of a file beside those of the entries that were recomputed, and whether it lies within their
    intervals; "-" where one cluster has none."""
    import pandas as pd

    from mediation.results.attention_results import MEANS
    from mediation.results.attention_summaries import resampling_of

    effects = np.array([[entry[name] for name in MEANS.values()] for entry in again], np.float64)
    low, high = resampling_of(again).of_means(effects)
    theirs = np.array([content[name] for name in MEANS])
    within = np.where(np.isnan(low), "-", np.where((low <= theirs) & (theirs <= high), "yes", "no"))
    return pd.DataFrame({"in the file": theirs, "ours": effects.mean(axis=0), "low": low, "high": high,
                         "within the interval": within}, [name.removeprefix("mean_") for name in MEANS])


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--data", choices=("winobias", "winogender"), default="winobias",
                        help="data set, where no file is named (default: winobias)")
    parser.add_argument("--json", metavar="FILE", help="result file to check")
    parser.add_argument("--sample", type=positive, metavar="N",
                        help="recompute N random examples (default: all)")
    parser.add_argument("--tolerance", type=float, default=1e-3, metavar="E",
                        help="largest deviation that counts as reproduced (default: 0.001)")
    parser.add_argument("--out_dir", default=".", metavar="D",
                        help="where winobias_data and winogender_data are (default: here)")
    parser.set_defaults(full_passes=False)
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        raise SystemExit(main(chosen_options))

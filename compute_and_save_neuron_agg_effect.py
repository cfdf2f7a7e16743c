"""Aggregate the effects of each neuron over professions and templates.

    python compute_and_save_neuron_agg_effect.py results/20200301_neuron_intervention gpt2

Reads the man_direct, man_indirect, woman_direct and woman_indirect tables of model M in FOLDER. Odds ratios
are oriented to the anti-stereotypical gender: he/she under the man interventions for female-biased
professions, she/he under the woman interventions for all others. Writes {M}_neuron_effects.csv, and
{M}_neuron_gender_contrast.csv where both indirect types are.
"""

import argparse

from mediation.effects import summaries
from mediation.errors import InputError
from mediation.files.storage import write_csv
from mediation.options import exit_on_bad_input, folder_and_model_parser
from mediation.stimuli import professions

TYPES = ("man_direct", "man_indirect", "woman_direct", "woman_indirect")


def main(options: argparse.Namespace) -> None:
    """Tables to one aggregate: one template at a time, so that memory does not grow."""
    from tqdm import tqdm

    from mediation.options import output_folder
    from mediation.results.neuron_tables import describe_methods, find_tables, read_pieces

    out_dir = output_folder(options)
    paths = find_tables(options.folder, options.model, TYPES)
    rated = professions.load()
    aggregate = summaries.NeuronAggregate()
    left_out: dict[str, list[str]] = {}
    stems = sorted({path.stem.removesuffix(f"_{kind}_{options.model}") for path, kind in paths.items()})
    for stem in tqdm(stems, desc="templates", unit=" templates"):
        # {type: {word: (log odds without, and with one intervention on each neuron)}}
        tables: dict[str, dict] = {}
        for path, kind in paths.items():
            if path.stem == f"{stem}_{kind}_{options.model}":
                for piece in read_pieces(path, kind):
                    assert piece.unit is not None
                    aggregate.check_units(path, piece.layer, piece.unit)
                    tables.setdefault(kind, {})[piece.cluster] = piece.log_odds_base, piece.log_odds
        words = dict.fromkeys(word for table in tables.values() for word in table)
        for word in words:
            reason = why_left_out(rated.get(word), options.definitional)
            missing = [] if reason else [kind for kind in aggregate.types_needed(rated[word])
                                         if word not in tables.get(kind, {})]
            if missing:
                reason = f"no {missing[0]} of {stem}"
            if reason:
                left_out.setdefault(reason, []).append(word)
            else:
                of_word = {kind: table[word] for kind, table in tables.items() if word in table}
                aggregate.add(rated[word], of_word)

    for reason, names in left_out.items():
        print(f"left out, {reason}: {', '.join(dict.fromkeys(names))}")
    if not aggregate.prompts:
        raise InputError(f"{options.folder}: no profession of {options.model!r} is left to aggregate: run "
                         "more professions or types, or see --definitional")
    print(f"{options.model}: {aggregate.prompts} prompts, {aggregate.female_biased} of female-biased "
          f"professions, {aggregate.prompts - aggregate.female_biased} of others; "
          f"{len(aggregate.layers)} neurons")
    if method := describe_methods(options.folder, options.model):
        print(method)
    path = out_dir / f"{options.model}_neuron_effects.csv"
    print("wrote", write_csv(path, aggregate.effects(), index=True))
    if aggregate.contrast.count:
        path = out_dir / f"{options.model}_neuron_gender_contrast.csv"
        print("wrote", write_csv(path, aggregate.gender_contrasts()))


def why_left_out(profession: professions.Profession | None, definitional: str) -> str | None:
    """None, or the reason why a profession does not count."""
    if profession is None:
        return "not rated"
    if definitional != "include" and profession.is_definitional != (definitional == "only"):
        return "definitional" if profession.is_definitional else "not definitional"
    return None


if __name__ == "__main__":
    parser = folder_and_model_parser(__doc__)
    parser.add_argument("--definitional", choices=("exclude", "include", "only"), default="exclude",
                        help="words with a gender by definition, |definitional| >= 0.75; only: the file as "
                             "the 2020 code wrote it (default: exclude)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

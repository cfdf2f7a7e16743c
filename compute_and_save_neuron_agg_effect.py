"""Aggregate the effects of each neuron over professions and templates.

    python compute_and_save_neuron_agg_effect.py results/20200301_neuron_intervention gpt2

Reads the man_direct, man_indirect, woman_direct and woman_indirect tables of model M in FOLDER. Odds ratios
are oriented to the anti-stereotypical gender: he/she under the man interventions for female-biased
professions, she/he under the woman interventions for all others. Writes {M}_neuron_effects.csv,
{M}_neuron_gender_contrast.csv where both indirect types are, and how sure the means are:
{M}_neurons_summary.csv (a row per neuron, group of professions and kind of effect: log odds ratios with 95%
intervals over professions and templates, ranks, p values) and {M}_neuron_layer_summary.csv (intervals of
the strongest neurons of each layer, which compute_neuron_effect_per_layer.py draws).
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mediation.effects import summaries
from mediation.errors import InputError
from mediation.files.storage import write_csv
from mediation.options import exit_on_bad_input, folder_and_model_parser, positive, share
from mediation.stimuli import professions

if TYPE_CHECKING:
    import pandas as pd

    from mediation.results.tidy import Piece

TYPES = ("man_direct", "man_indirect", "woman_direct", "woman_indirect")


def main(options: argparse.Namespace) -> None:
    """Tables to one aggregate; means, contrasts and layers; intervals and tests of every neuron."""
    from mediation.options import output_folder
    from mediation.results.neuron_tables import describe_methods

    out_dir = output_folder(options)
    aggregate, left_out = aggregate_tables(options.folder, options.model, options.definitional)
    describe(options, aggregate, left_out)
    if method := describe_methods(options.folder, options.model):
        print(method)
    effects, name = aggregate.effects(), out_dir / options.model
    print("wrote", write_csv(Path(f"{name}_neuron_effects.csv"), effects, index=True))
    if aggregate.contrast.count:
        print("wrote", write_csv(Path(f"{name}_neuron_gender_contrast.csv"), aggregate.gender_contrasts()))
    layers = aggregate.top_of_layers(effects, options.shares)
    print("wrote", write_csv(Path(f"{name}_neuron_layer_summary.csv"), layers))
    print("wrote", write_csv(Path(f"{name}_neurons_summary.csv"), summary_of(aggregate, options.flips)))


def aggregate_tables(
    folder: str, model: str, definitional: str,
) -> tuple[summaries.NeuronAggregate, dict[str, list[str]]]:
    """The aggregate of all tables, one template at a time, so that memory does not grow; and {why words do
    not count: these words}."""
    from tqdm import tqdm

    from mediation.results.neuron_tables import find_tables

    paths = find_tables(folder, model, TYPES)
    rated = professions.load()
    aggregate = summaries.NeuronAggregate()
    left_out: dict[str, list[str]] = {}
    stems = sorted({path.stem.removesuffix(f"_{kind}_{model}") for path, kind in paths.items()})
    for stem in tqdm(stems, desc="templates", unit=" templates"):
        tables = read_template({path: kind for path, kind in paths.items()
                                if path.stem == f"{stem}_{kind}_{model}"}, aggregate)
        for word in dict.fromkeys(word for table in tables.values() for word in table):
            reason = why_left_out(rated.get(word), definitional)
            missing = [] if reason else [kind for kind in aggregate.types_needed(rated[word])
                                         if word not in tables.get(kind, {})]
            if missing:
                reason = f"no {missing[0]} of {stem}"
            if reason:
                left_out.setdefault(reason, []).append(word)
            else:
                pieces = {kind: table[word] for kind, table in tables.items() if word in table}
                direct = pieces[aggregate.types_needed(rated[word])[0]]
                assert direct.log_odds_alternative is not None
                aggregate.add(word, direct.template, rated[word], direct.log_odds_alternative,
                              {kind: (piece.log_odds_base, piece.log_odds) for kind, piece in pieces.items()})
    return aggregate, left_out


def read_template(
    paths: dict[Path, str], aggregate: summaries.NeuronAggregate,
) -> dict[str, dict[str, "Piece"]]:
    """{type: {word: Piece}} of one template's tables, which must have the aggregate's neurons."""
    from mediation.results.neuron_tables import read_pieces

    tables: dict[str, dict[str, Piece]] = {}
    for path, kind in paths.items():
        for piece in read_pieces(path, kind):
            assert piece.unit is not None
            aggregate.check_units(path, piece.layer, piece.unit)
            tables.setdefault(kind, {})[piece.cluster] = piece
    return tables


def describe(options: argparse.Namespace, aggregate: summaries.NeuronAggregate,
             left_out: dict[str, list[str]]) -> None:
    """Print what the aggregate is of.

    Raises:
        InputError: of nothing.
    """
    for reason, names in left_out.items():
        print(f"left out, {reason}: {', '.join(dict.fromkeys(names))}")
    if not aggregate.prompts:
        raise InputError(f"{options.folder}: no profession of {options.model!r} is left to aggregate "
                         f"({'; '.join(left_out) or 'no tables'}): an aggregate is of professions that have "
                         "the direct and the indirect effect; run these types, or see --definitional")
    print(f"{options.model}: {aggregate.prompts} prompts, {aggregate.female_biased} of female-biased "
          f"professions, {aggregate.prompts - aggregate.female_biased} of others; "
          f"{len(aggregate.layers)} neurons")


def summary_of(aggregate: summaries.NeuronAggregate, flips: int | None) -> "pd.DataFrame":
    """Intervals and tests, a row per neuron, group and kind of effect; prints the strongest neurons."""
    import pandas as pd
    from tqdm import tqdm

    from mediation.effects.unit_summaries import summarise
    from mediation.reports import report

    kinds, groups = aggregate.kinds_and_groups()
    maps = tqdm(aggregate.maps(), total=len(kinds) * len(groups), desc="intervals and tests", unit=" maps")
    of_maps = [summarise([each], f"{each.labels['effect']} effects, {each.labels['group']} professions",
                         flips) for each in maps]
    print(f"\n{report.describe_units(of_maps[0], 10)}\n")
    return pd.concat([of_map.table for of_map in of_maps], ignore_index=True)


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
    parser.add_argument("--shares", type=share, nargs="+", default=[0.025, 0.1], metavar="S",
                        help="strongest parts of each layer that get intervals (default: 0.025 0.1)")
    parser.add_argument("--flips", type=positive, metavar="N",
                        help="sign flips of the tests: a false discovery rate needs 20 per neuron (default: "
                             "as many where that is at most 100,000, else 10,000, which do for p)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

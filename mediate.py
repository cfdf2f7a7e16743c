"""Causal mediation analysis of your own stimuli: where in a model, and at which token, a word's effect runs.

    python mediate.py stimuli.jsonl -model smollm2-135m -out_dir mine
    python mediate.py stimuli.jsonl -model smollm2-135m -out_dir mine --mediators mlps --positions each
    python mediate.py stimuli.csv -model gpt2 -out_dir mine --mediators neurons --method screen
    python mediate.py stimuli.csv -model gpt2 -out_dir mine --mediators head_outputs --values zero

A line of the file is one stimulus (docs/your_question.md tells more; export_stimuli.py writes examples):

    {"id": "n1", "base": "The {} said that", "substitutes": ["nurse", "man"], "candidates": ["she", "he"]}

It may have a "group", such as "female", too. The first substitute makes the null prompt; each other one is an
alternative to it. Odds are p(second candidate) / p(first), and for every mediator the effect relative to the
null prompt's odds is taken two ways: indirect (the null prompt is run, the mediator as in the alternative's
run) and direct (the alternative is run, the mediator as in the null prompt's run).

Mediators, and in parentheses the positions at which each can be changed, by default the first:

{mediators}

Writes OUT_DIR/total_effects_{M}.csv, and for each mediator {mediator}_{M}.csv (every comparison and unit),
{mediator}_mean_{M}.csv (means by group) and figures (positions and values that are not the default stand in
their names, as in mlps_each_{M}.csv), report_{M}.md (on all mediators that the folder has) and
manifest.json. Finished tables are kept; an interrupted run goes on where it was.
"""

import argparse
from pathlib import Path

from mediation.files.storage import check_writable
from mediation.mediators.catalogue import CATALOGUE, DEFAULT, POSITIONS, VALUES, Request, requests_at
from mediation.options import (
    Parser,
    add_engine,
    add_full_passes,
    add_masking_approach,
    add_method,
    add_model_options,
    add_multi_token,
    add_plan,
    add_screening,
    choices,
    exit_on_bad_input,
    refuse_full_passes,
)
from mediation.results.tables import FORMATS
from mediation.stimuli import stimulus_files
from mediation.studies.engines import engine_of


def main(options: argparse.Namespace) -> None:
    """Stimuli, model, effects of one mediator after the other; figures and a report on the files."""
    requests = ([Request.of(name, options.positions, options.values) for name in options.mediators]
                if options.mediators else requests_at(options.positions, options.values))
    stimuli = stimulus_files.read(options.stimuli)
    check_writable(options.out_dir)
    # these imports take seconds: --help and bad input answer without them
    from mediation.analysis import AnalysisOptions, planned, run, write_report
    from utils import load_model

    model = load_model(options)
    if planned(model, stimuli, requests, options.out_dir, options):
        return
    written = run(model, stimuli, requests, options.out_dir, AnalysisOptions.of(options))
    text, path = write_report(written)
    print(f"{text}\nwrote {path}")


def in_words(choices: dict[str, str]) -> str:
    """Options and what they mean."""
    return "; ".join(f"{name}: {what}" for name, what in choices.items())


if __name__ == "__main__":
    lines = "\n".join(f"  {mediator.name:13} {mediator.what}"
                      + (f" ({', '.join(mediator.positions)})" if mediator.positions else "")
                      for mediator in CATALOGUE.values())
    parser = Parser(description=__doc__.replace("{mediators}", lines),
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stimuli", metavar="STIMULI", type=Path,
                        help="JSONL file, or CSV with the same columns")
    add_model_options(parser)
    parser.add_argument("--out_dir", required=True, metavar="D",
                        help="where tables, figures and the report go")
    parser.add_argument("--mediators", type=choices(*CATALOGUE), metavar="M,...",
                        help=f"of {', '.join(CATALOGUE)}, separated by commas "
                             f"(default: {', '.join(DEFAULT)})")
    parser.add_argument("--positions", choices=tuple(POSITIONS),
                        help=f"where a mediator is changed. {in_words(POSITIONS)} (default: the first that "
                             "the list above has for the mediator)")
    parser.add_argument("--values", choices=tuple(VALUES), default="alternative",
                        help=f"what is put in. {in_words(VALUES)}. All but the first change the null "
                             "prompt's run alone; the effect is written as ablation (default: alternative)")
    parser.add_argument("--format", choices=FORMATS, default="csv",
                        help="of the tables of every comparison and unit (default: csv)")
    add_multi_token(parser)
    add_masking_approach(parser)
    add_method(parser)
    add_screening(parser)
    add_full_passes(parser)
    add_engine(parser)
    add_plan(parser)
    chosen_options = parser.parse_args()
    refuse_full_passes(parser, chosen_options)
    with exit_on_bad_input(), engine_of(chosen_options):
        main(chosen_options)

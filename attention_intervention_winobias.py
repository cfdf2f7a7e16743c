"""Attention interventions on WinoBias: how much of the stereotype goes through heads, layers, attention.

    python attention_intervention_winobias.py -model smollm2-135m --do-filter True --split dev
    python attention_intervention_winobias.py -model smollm2-135m --do-filter False --split dev \\
        --max_examples 10

Each example is a pair of contexts that differ in a pronoun, and two continuations. In the run of one context
the attention weights are replaced by those of the other, for every head, every attention layer and the whole
model. Writes OUT_DIR/winobias_data/attention_intervention_{M}_{filtered|unfiltered}_{split}.json and
manifest.json beside it, prints the total effect and its parts, the strongest heads and the layers, with
intervals and tests, and writes {M}_{filter}_{split}_{heads,layers}_summary.csv beside the JSON. The name of a
masked model's JSON ends in its --masking_approach. A finished JSON is not computed again; an interrupted run
goes on with the next example.
"""

import argparse

from mediation.files.storage import check_writable
from mediation.options import Parser, add_attention_study, exit_on_bad_input, refuse_full_passes
from mediation.stimuli import winobias
from mediation.studies.engines import engine_of


def main(options: argparse.Namespace) -> None:
    """Stimuli, model, sweep, report."""
    from mediation.reports.attention import report_study
    from mediation.studies.attention import run_study
    from utils import load_model

    examples = winobias.load(options.split)[: options.max_examples]
    check_writable(options.out_dir)
    model = load_model(options)
    kind = "filtered" if options.do_filter else "unfiltered"
    name = f"{model.name}_{kind}_{options.split}"
    path = run_study(model, examples, "winobias", name, {"split": options.split}, options)
    if path:
        report_study(path)


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_attention_study(parser)
    parser.add_argument("--split", choices=winobias.SPLITS, default="dev",
                        help="part of the data set (default: dev)")
    chosen_options = parser.parse_args()
    refuse_full_passes(parser, chosen_options)
    with exit_on_bad_input(), engine_of(chosen_options):
        main(chosen_options)

"""Attention interventions on Winogender: how much of the stereotype goes through heads, layers, attention.

    python attention_intervention_winogender.py -model smollm2-135m --do-filter True --stat bls

As attention_intervention_winobias.py; --stat names the statistic of women in an occupation that decides which
continuation is the female-stereotyped one. Writes
OUT_DIR/winogender_data/attention_intervention_{stat}_{M}_{filtered|unfiltered}.json and manifest.json beside
it, prints what it says, with intervals and tests, and writes
{M}_{filter}_{stat}_{heads,layers}_summary.csv beside the JSON.
"""

import argparse

from mediation.files.storage import check_writable
from mediation.options import Parser, add_attention_study, exit_on_bad_input, refuse_full_passes
from mediation.stimuli import winogender
from mediation.studies.engines import engine_of


def main(options: argparse.Namespace) -> None:
    """Stimuli, model, sweep, report."""
    from mediation.reports.attention import report_study
    from mediation.studies.attention import run_study
    from utils import load_model

    examples = winogender.load(options.stat)[: options.max_examples]
    check_writable(options.out_dir)
    model = load_model(options)
    kind = "filtered" if options.do_filter else "unfiltered"
    name = f"{options.stat}_{model.name}_{kind}"
    path = run_study(model, examples, "winogender", name, {"stat": options.stat}, options)
    if path:
        report_study(path)


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_attention_study(parser)
    parser.add_argument("--stat", choices=list(winogender.STATISTICS), default="bergsma",
                        help="statistic of women in an occupation (default: bergsma)")
    chosen_options = parser.parse_args()
    refuse_full_passes(parser, chosen_options)
    with exit_on_bad_input(), engine_of(chosen_options):
        main(chosen_options)

"""Bars of how fast this project and other libraries run the same neuron interventions.

    python -m benchmarks.figure bench/report.md docs/figures/speed.png
    python -m benchmarks.figure bench/report.md docs/figures/speed.png

The report is that of `python -m benchmarks`.
"""

import argparse
import re
from pathlib import Path

import matplotlib

from mediation.errors import InputError
from mediation.options import Parser, exit_on_bad_input

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def ratios(report: str) -> dict[str, dict[str, float]]:
    """{model: {way: ratio to the 2020 algorithm}} of the report's tables of other libraries, neurons only."""
    of_models = {}
    for model, section in re.findall(r"## Other libraries, (\S+)\n(.*?)(?=\n## |\Z)", report, re.DOTALL):
        neurons = section.partition("**Heads**")[0]
        # the first cell, and the number that the fifth begins with
        rows = re.findall(r"^\| ([^|]+?) \|(?:[^|\n]*\|){3} ([\d.]+) ", neurons, re.MULTILINE)
        of_models[model] = {way: float(ratio) for way, ratio in rows}
    return of_models


def main(options: argparse.Namespace) -> None:
    """One panel per model."""
    of_models = ratios(Path(options.report).read_text(encoding="utf-8"))
    if not of_models or not all(of_models.values()):
        raise InputError(f"{options.report} has no tables of other libraries: run python -m benchmarks first")
    count = len(of_models)
    figure, panels = plt.subplots(1, count, figsize=(4.6 * count, 3), sharex=True, squeeze=False)
    for panel, (model, of_ways) in zip(panels[0], of_models.items()):
        colours = ["C0" if way.startswith("this project") else "0.6" for way in of_ways]
        bars = panel.barh(list(of_ways), list(of_ways.values()), color=colours)
        panel.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        panel.invert_yaxis()
        panel.margins(x=0.15)
        panel.set_title(model, fontsize=10)
        panel.set_xlabel("times the 2020 algorithm")
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(options.figure, dpi=150)
    print("wrote", options.figure)


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", metavar="REPORT", help="report.md of the benchmarks")
    parser.add_argument("figure", metavar="FIGURE", help="where to write, such as docs/figures/speed.png")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

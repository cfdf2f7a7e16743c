"""How fast this project and other libraries compute maps of one prompt: which site carries the effect.

    python -m benchmarks.peers.sites -model smollm2-135m
    python -m benchmarks.peers.sites -model smollm2-135m --only nnsight exact --maps residuals

A cell is one indirect effect: in the null prompt's run a unit takes its value of the alternative's run.
Residuals, attention modules and MLPs are changed at each position, heads' outputs and values at all of them.
Every way is timed from the two prompts to the last number, after all its numbers were compared with full
passes of this project under plain hooks. batched is what a library can do best: 64 cells per run, logits of
the last position, no cells before the prompts differ; invokes (nnsight) and one_run_a_cell are what its
documentation does. The latter runs a random part of a map's cells, and its time is scaled by the number of
runs. Environments, processes and turns are those of `benchmarks.peers.compare`.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.peers.compare import OURS, SLOW, THREADS, Arrays, Way, Worker, WorkerError, model_folder
from mediation.options import MODEL_SPELLINGS, Parser, exit_on_bad_input, positive, seed

MAPS = {"residuals": "each", "attentions": "each", "mlps": "each", "head_outputs": "all", "values": "all"}
REFERENCE, EXACT = (OURS, "full_passes"), (OURS, "exact")
WAYS = [EXACT, ("transformer_lens", "batched"), ("transformer_lens", SLOW),
        ("nnsight", "batched"), ("nnsight", "invokes"), ("nnsight", SLOW)]
TOLERANCE = 1e-4  # in a log-probability, from full_passes; a way beyond it is not timed
WITHOUT = 2  # runs without intervention: the null prompt's and the alternative's

Seconds = dict[tuple[Way, str], list[float]]  # of ways and maps, round by round


def main(options: argparse.Namespace) -> None:
    """One table: a row per way, a column per map."""
    with tempfile.TemporaryDirectory() as folder:
        task, about = draw_task(options)
        ways = [way for way in WAYS
                if way == EXACT or not options.only or set(way) & set(options.only)]
        print(f"{about}; {THREADS} threads, {options.rounds} rounds in turns; seconds, and in brackets how "
              "many times as fast this project's exact way is, with the smallest and the largest ratio\n")
        columns = [*(f"{name} ({len(task[f'{name}_layers'])})" for name in options.maps), "all"]
        print(f"| way | {' | '.join(columns)} | largest deviation | versions |")
        print(f"| {' | '.join(['---'] * (len(columns) + 3))} |")
        for row in compare(task, ways, options, Path(folder)):
            print(f"| {' | '.join(row)} |", flush=True)


def draw_task(options: argparse.Namespace) -> tuple[Arrays, str]:
    """(arrays of the task as `worker` describes them, the task in words).

    Raises:
        InputError: prompts of different numbers of tokens, candidates of several.
    """
    from experiment import Intervention, Model
    from mediation.mediators.catalogue import CATALOGUE
    from mediation.mediators.positions import first_difference, places
    from mediation.stimuli.prompts import check_candidates

    model = Model(device="cpu", gpt2_version=str(model_folder(options.model)))
    stimulus = Intervention(model.tokenizer, options.base, options.substitutes, options.candidates)
    check_candidates(options.candidates, stimulus.candidates_tok, single=True)
    null, other = (list(prompt.tokens) for prompt in stimulus.prompts[:2])
    task: Arrays = {
        "model": str(model_folder(options.model)), "prompt": options.base,
        "substitutes": options.substitutes, "words": options.candidates, "tokens": null, "other": other,
        "first": first_difference(stimulus), "candidates": [ids[0] for ids in stimulus.candidates_tok]}
    for name in options.maps:
        columns = CATALOGUE[name].units(model)
        layers, units = columns["layer"], columns.get("head", np.zeros_like(columns["layer"]))
        at = [place.null[0] if MAPS[name] == "each" else -1 for place in places(stimulus, MAPS[name])]
        task |= {f"{name}_layers": layers.repeat(len(at)), f"{name}_units": units.repeat(len(at)),
                 f"{name}_positions": np.tile(at, len(layers))}
    return ({name: np.asarray(value) for name, value in task.items()},
            f"{options.model}, {stimulus.base_strings[0]!r} and {stimulus.base_strings[1]!r}, "
            f"{len(null)} tokens")


def compare(task: Arrays, ways: Sequence[Way], options: argparse.Namespace, folder: Path) -> list[list[str]]:
    """Rows of the table: cells as text."""
    generator = np.random.default_rng(options.seed)
    drawn = {name: np.sort(generator.permutation(len(task[f"{name}_layers"]))[: options.sample])
             for name in options.maps}
    workers: dict[Way, Worker] = {}
    notes: dict[Way, str] = {}
    expected: dict[str, np.ndarray] = {}
    try:
        for way in [REFERENCE, *ways]:
            try:
                worker = Worker(way[0], f"maps_{way[1]}", part_of(task, drawn) if way[1] == SLOW else task,
                                folder)
                workers[way] = worker
                worker.deviation = 0.0
                for name in options.maps:
                    _, result = worker.run(name)  # warms up
                    right = expected.setdefault(name, result)
                    deviation = np.abs(result - (right[drawn[name]] if way[1] == SLOW else right)).max()
                    worker.deviation = max(worker.deviation, float(deviation))
                if way == REFERENCE:
                    worker.close()  # it is not timed
                if not worker.deviation < TOLERANCE:
                    raise WorkerError(f"its numbers deviate by {worker.deviation:.1e}")
            except WorkerError as error:
                if way[0] == OURS:  # others may be missing
                    raise
                notes[way] = f"not measured: {error}"
        timed = [way for way in ways if way not in notes]
        seconds: Seconds = {(way, name): [] for way in timed for name in options.maps}
        for number in range(options.rounds):
            for name in options.maps:
                for way in timed:
                    count = len(task[f"{name}_layers"])
                    scale = (count + WITHOUT) / (len(drawn[name]) + WITHOUT) if way[1] == SLOW else 1.0
                    seconds[way, name].append(scale * workers[way].run(name)[0])
                    print(f"{name}, round {number + 1} of {options.rounds}, {' '.join(way)}: "
                          f"{seconds[way, name][-1]:.2f} s", file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.close()
    empty = [""] * (len(options.maps) + 2)
    return [[" ".join(way), notes[way], *empty] if way in notes
            else row_of(way, workers[way], seconds, options.maps) for way in ways]


def part_of(task: Arrays, drawn: dict[str, np.ndarray]) -> Arrays:
    """The task with a part of each map's cells."""
    return task | {f"{name}_{column}": task[f"{name}_{column}"][cells]
                   for name, cells in drawn.items() for column in ("layers", "units", "positions")}


def row_of(way: Way, worker: Worker, seconds: Seconds, maps: Sequence[str]) -> list[str]:
    """Cells of a way that was timed."""
    def cell(times: Sequence[float], ours: Sequence[float]) -> str:
        ratios = [theirs / exact for theirs, exact in zip(times, ours)]
        ratio = f" ({statistics.median(ratios):.1f}; {min(ratios):.1f}–{max(ratios):.1f})"
        return f"{statistics.median(times):.2f}{'' if way == EXACT else ratio}"

    def summed(of_way: Way) -> list[float]:
        return [sum(times) for times in zip(*(seconds[of_way, name] for name in maps))]

    return [" ".join(way), *(cell(seconds[way, name], seconds[EXACT, name]) for name in maps),
            cell(summed(way), summed(EXACT)), f"{worker.deviation:.1e}", worker.versions]


if __name__ == "__main__":
    command_line = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument(*MODEL_SPELLINGS, dest="model", required=True, metavar="M",
                              help="a bundled model, or a local directory")
    command_line.add_argument("--base", default="The capital city of {} is called", metavar="TEXT",
                              help="prompt with one slot {} (default: The capital city of {} is called)")
    command_line.add_argument("--substitutes", nargs=2, default=["France", "Italy"], metavar="WORD",
                              help="of the null prompt and the alternative (default: France Italy)")
    command_line.add_argument("--candidates", nargs=2, default=["Paris", "Rome"], metavar="WORD",
                              help="of one token each (default: Paris Rome)")
    command_line.add_argument("--maps", nargs="+", choices=MAPS, default=list(MAPS), help="default: all")
    command_line.add_argument("--sample", type=positive, default=12, metavar="N",
                              help=f"cells of a map that {SLOW} runs, drawn at random (default: 12)")
    command_line.add_argument("--rounds", type=positive, default=3, metavar="N",
                              help="turns of every way (default: 3)")
    names = ", ".join(sorted({name for way in WAYS for name in way}))
    command_line.add_argument("--only", nargs="+", metavar="NAME",
                              help=f"only these libraries or ways, beside our exact one: {names}")
    command_line.add_argument("--seed", type=seed, default=0, help="of everything random (default: 0)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

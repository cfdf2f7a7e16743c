"""How fast this project and other libraries run the same interventions: neurons of a prompt, attention heads.

    python -m benchmarks.peers.compare -model smollm2-135m
    python -m benchmarks.peers.compare -model gpt2-small-sized --units 256 --heads 36 --rounds 3
    python -m benchmarks.peers.compare -model smollm2-135m --only nnsight exact

algorithm_2020 is always run. gpt2-small-sized has random weights and the size of GPT-2 small. Every library
has an environment of its own, `.venv-bench/NAME`, made from `requirements-NAME.txt` the first time; every way
is a process with the model loaded. First all results are compared, then the ways run in turns. Prints two
tables in Markdown. A ratio is taken between runs of the same round, so that a busy machine slows both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import GPT2_SMALL_SIZED, NO_BFLOAT16, save_gpt2_small_sized
from mediation.model.products import multiplies_bfloat16
from mediation.options import MODEL_SPELLINGS, Parser, exit_on_bad_input, positive, seed

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENVIRONMENTS = ROOT / ".venv-bench"
THREADS = 2
TOLERANCE = 1e-3  # in a log-probability, from algorithm_2020; a way beyond it is not timed
OURS = "this project"
REFERENCE = (OURS, "algorithm_2020")
KINDS = ("neurons", "heads")
WAYS = [REFERENCE, (OURS, "exact"), (OURS, "fast"), ("transformer_lens", "batched"),
        ("transformer_lens", "one_run_a_cell"), ("nnsight", "batched"), ("nnsight", "invokes"),
        ("pyvene", "batched")]
IMPOSSIBLE = {("heads", "pyvene", "batched"): "not possible: it changes what goes into or out of a module, "
                                              "and by default attention weights pass through none"}
SLOW = "one_run_a_cell"  # given a random part of the units
SLOW_UNITS = 64

Way = tuple[str, str]  # (library, its way)
Arrays = dict[str, Any]  # a task, as `worker` describes it


class WorkerError(Exception):
    """A worker, or its environment, failed."""


def main(options: argparse.Namespace) -> None:
    """Draw both tasks, then a table each."""
    with tempfile.TemporaryDirectory() as folder:
        tasks, about = draw_tasks(options, Path(folder))
        for kind in options.kinds:
            ways = [way for way in WAYS
                    if way == REFERENCE or not options.only or set(way) & set(options.only)]
            rows = compare(kind, tasks[kind], ways, options, Path(folder))
            print(f"\n**{kind.capitalize()}**: {about[kind]}; {THREADS} threads, {options.rounds} rounds in "
                  "turns\n")
            print("| way | versions | interventions | a second | ratio to algorithm_2020 | "
                  "largest deviation |")
            print("| --- | --- | --- | --- | --- | --- |")
            print("\n".join(f"| {' | '.join(row)} |" for row in rows), flush=True)


def draw_tasks(options: argparse.Namespace, folder: Path) -> tuple[dict[str, Arrays], dict[str, str]]:
    """({kind: arrays of a task}, {kind: the task in words}), as `worker` describes them."""
    from experiment import Intervention, Model
    from mediation.mediators.head_sweeps import head_edits
    from mediation.mediators.heads import heads_layers_model
    from mediation.mediators.neuron_sweeps import runs_and_edits

    small = options.model == GPT2_SMALL_SIZED
    source = save_gpt2_small_sized(folder, options.seed) if small else model_folder(options.model)
    model = Model(device="cpu", gpt2_version=str(source))
    neurons = Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"])
    heads = Intervention(model.tokenizer, "The carpenter thanked the nurse because {}", ["she", "he"],
                         ["had helped in the night.", "was ill and tired."])
    with torch.no_grad():
        _, run_on, edits = runs_and_edits(model, neurons, "man_indirect")
        order = torch.randperm(len(edits), generator=torch.Generator().manual_seed(options.seed))
        edits = edits[order[: options.units].sort().values]
        every = heads_layers_model(model.num_layers, model.num_heads)
        context, of_heads = head_edits(model, heads, "indirect", every)
    cells = np.random.default_rng(options.seed).permutation(model.num_layers * model.num_heads)
    units = np.sort(cells[: options.heads])
    layers, numbers = np.divmod(units, model.num_heads)
    tasks = {
        "neurons": dict(tokens=neurons.base_strings_tok[run_on], position=edits.position,
                        candidates=[ids[0] for ids in neurons.candidates_tok], layers=edits.layers[:, 0],
                        neurons=edits.neurons[:, 0], values=edits.values[:, 0]),
        "heads": dict(tokens=context, candidate1=heads.candidates_tok[0], candidate2=heads.candidates_tok[1],
                      weights=of_heads.weights, first=of_heads.first, layers=layers, heads=numbers),
    }
    lengths = [len(ids) for ids in heads.candidates_tok]
    about = {"neurons": f"{options.model}, {neurons.base_strings[run_on]!r}, {len(edits)} neurons of all "
                        f"layers, drawn with seed {options.seed}",
             "heads": f"{options.model}, {heads.base_strings[0]!r}, {len(units)} heads, continuations of "
                      f"{lengths} tokens"}
    return {kind: {"model": str(source)} | {name: np.asarray(value) for name, value in task.items()}
            for kind, task in tasks.items()}, about


def model_folder(name: str) -> Path:
    """The folder of a bundled model, or the folder that is named."""
    from mediation.files.assets import MODELS
    from mediation.model.checkpoints import bundled_model

    return bundled_model(name) if name in MODELS else Path(name).absolute()


def compare(
    kind: str, task: Arrays, ways: Sequence[Way], options: argparse.Namespace, folder: Path,
) -> list[list[str]]:
    """Rows of the table of one kind: cells as text."""
    count = len(task["layers"])
    drawn = np.random.default_rng(options.seed).choice(count, size=min(SLOW_UNITS, count), replace=False)
    workers, notes, reference = {}, {}, None
    try:
        for library, way in ways:
            units = np.sort(drawn) if way == SLOW else np.arange(count)
            if way == "fast" and not multiplies_bfloat16(torch.device("cpu")):
                notes[library, way] = NO_BFLOAT16
                continue
            try:
                if (kind, library, way) in IMPOSSIBLE:
                    raise WorkerError(IMPOSSIBLE[kind, library, way])
                worker = Worker(library, way if kind == "neurons" else f"{kind}_{way}", part_of(task, units),
                                folder)
                worker.count = len(units)
                workers[library, way] = worker
                _, result = worker.run()  # warms up
                reference = result if reference is None else reference
                worker.deviation = np.abs(result - reference[units]).max()
                if worker.deviation >= TOLERANCE:
                    raise WorkerError(f"not timed: its numbers deviate by {worker.deviation:.1e}")
            except WorkerError as error:
                if library == OURS:  # others may be missing
                    raise
                notes[library, way] = str(error)
        seconds = {way: [] for way in workers if way not in notes}
        for number in range(options.rounds):
            for way, times in seconds.items():
                print(f"{kind}, round {number + 1} of {options.rounds}: {' '.join(way)}", file=sys.stderr)
                times.append(workers[way].run()[0] / workers[way].count)
    finally:
        for worker in workers.values():
            worker.close()
    return [[" ".join(way), notes[way], "", "", "", ""] if way in notes
            else row_of(way, workers[way], seconds[way], seconds[REFERENCE], count) for way in ways]


def part_of(task: Arrays, units: np.ndarray) -> Arrays:
    """The task with a part of its interventions."""
    return {name: value[units] if name in ("layers", "neurons", "values", "heads") else value
            for name, value in task.items()}


def row_of(
    way: Way, worker: "Worker", times: Sequence[float], reference: Sequence[float], count: int,
) -> list[str]:
    """Cells of a way that was timed; `times` and `reference` are seconds per intervention, round by round."""
    ratios = [slow / fast for slow, fast in zip(reference, times)]
    return [" ".join(way), worker.versions,
            f"{worker.count}" if worker.count == count else f"{worker.count} of {count}",
            f"{1 / statistics.median(times):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
            f"{worker.deviation:.1e}"]


class Worker:
    """A process that runs one way, see `worker`.

    Attributes:
        versions: of the packages.
        count: of the interventions, and deviation, from the reference; the caller sets both.

    Raises:
        WorkerError: its environment cannot be made, or the worker reports an error or ends.
    """

    def __init__(self, library: str, way: str, task: Arrays, folder: Path) -> None:
        self.count, self.deviation = 0, None
        stem = folder / f"{library} {way}"
        np.savez(f"{stem}.npz", **task)
        self.result, self.log = Path(f"{stem}.npy"), Path(f"{stem}.log")
        script = ["-m", "benchmarks.peers.ours_way"] if library == OURS else [str(HERE / f"{library}_way.py")]
        python = sys.executable if library == OURS else environment(library)
        print(f"loading {library} {way}", file=sys.stderr)
        settings = {"OMP_NUM_THREADS": str(THREADS), "MKL_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [python, *script, f"{stem}.npz", way], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=log, text=True, cwd=ROOT, env=os.environ | settings)
        try:
            self.versions = self._answer()["ready"]
        except WorkerError:
            self.close()
            raise

    def run(self, of_map: str = "") -> tuple[float, np.ndarray]:
        """(seconds, log-probabilities [n, 2]) of all its interventions, or of one of its maps."""
        try:
            self.process.stdin.write(f"run {self.result}\t{of_map}\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"ended: {self._last_words()}") from error
        return self._answer()["seconds"], np.load(self.result)

    def _answer(self) -> dict[str, Any]:
        # libraries print lines of their own
        line = next((line for line in self.process.stdout if line.startswith("{")), "")
        answer = json.loads(line) if line else {"error": f"ended: {self._last_words()}"}
        if "error" in answer:
            raise WorkerError(" ".join(answer["error"].split()))
        return answer

    def _last_words(self) -> str:
        return (self.log.read_text().strip().splitlines() or [f"exit code {self.process.wait()}"])[-1]

    def close(self) -> None:
        """Ends the process, whatever it does."""
        self.process.kill()
        self.process.communicate()


def environment(name: str) -> str:
    """The Python of `.venv-bench/NAME`, made when it is not there, or was made from other requirements.

    Raises:
        WorkerError: it cannot be made.
    """
    folder, requirements = ENVIRONMENTS / name, HERE / f"requirements-{name}.txt"
    python = folder / "bin" / "python"
    stamp = folder / "made-from.txt"  # written last, when all is there
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        print(f"installing {requirements.name} into {folder}", file=sys.stderr)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-r", requirements]
        for command in ([sys.executable, "-m", "venv", "--clear", folder], pip):
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode:
                errors = (line for line in process.stderr.splitlines() if line.startswith("ERROR"))
                reason = next(errors, process.stderr.strip()[-200:])
                raise WorkerError(f"could not be installed: {' '.join(reason.split())}")
        stamp.write_text(requirements.read_text())
    return str(python)


if __name__ == "__main__":
    command_line = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument(*MODEL_SPELLINGS, dest="model", required=True, metavar="M",
                              help=f"a bundled model, a local directory, or {GPT2_SMALL_SIZED}")
    command_line.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS,
                              help="what is intervened upon (default: both, a table each)")
    command_line.add_argument("--units", type=positive, default=512, metavar="N",
                              help="neurons, drawn at random from all layers (default: 512)")
    command_line.add_argument("--heads", type=positive, metavar="N",
                              help="heads, drawn at random (default: every head)")
    command_line.add_argument("--rounds", type=positive, default=5, metavar="N",
                              help="turns of every way (default: 5)")
    names = ", ".join(sorted({name for way in WAYS for name in way}))
    command_line.add_argument("--only", nargs="+", metavar="NAME",
                              help=f"only these libraries or ways: {names}")
    command_line.add_argument("--seed", type=seed, default=0, help="of everything random (default: 0)")
    chosen_options = command_line.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

"""Speed as ratios of ways, timed in turns in one process: machines may be shared. Results are compared."""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mediation.options import Parser, add_model_options, positive

if TYPE_CHECKING:
    import torch

    from experiment import Model

GPT2_SMALL_SIZED = "gpt2-small-sized"


def parser(description: str | None) -> Parser:
    """The command line of a benchmark: a model, and how many turns."""
    options = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(options)
    options.add_argument("--rounds", type=positive, default=3, metavar="N",
                         help="turns of both ways (default: 3)")
    options.set_defaults(full_passes=False)
    return options


NO_BFLOAT16 = "not measured: the fast precision, for this processor does not multiply bfloat16"


def has_bfloat16(device: str) -> bool:
    """Whether the device multiplies bfloat16."""
    from mediation.model.checkpoints import find_device
    from mediation.model.products import multiplies_bfloat16

    return multiplies_bfloat16(find_device(device))


def choose_precision(options: argparse.Namespace) -> bool:
    """Make `load` load a fast model where its device multiplies bfloat16, and say so where it does not.

    Returns whether it is fast.
    """
    fast = has_bfloat16(options.device)
    options.precision = "fast" if fast else "exact"
    if not fast:
        print(NO_BFLOAT16)
    return fast


def load(options: argparse.Namespace) -> "Model":
    """The model of the command line, or one with random weights and the size of GPT-2 small.

    The latter needs no download of weights.
    """
    from utils import load_model

    if options.model != GPT2_SMALL_SIZED:
        return load_model(options)
    with tempfile.TemporaryDirectory() as folder:
        options.model = str(save_gpt2_small_sized(Path(folder), options.seed))
        return load_model(options)


def save_gpt2_small_sized(folder: Path, seed: int) -> Path:
    """A folder in `folder` with a model of GPT-2 small's size, random weights and SmolLM2's tokenizer."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from mediation.model.checkpoints import bundled_model

    torch.manual_seed(seed)
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder / GPT2_SMALL_SIZED)
    AutoTokenizer.from_pretrained(bundled_model("smollm2-135m")).save_pretrained(folder / GPT2_SMALL_SIZED)
    return folder / GPT2_SMALL_SIZED


def compare(ways: dict[str, tuple[Callable, int, Any]], rounds: int) -> None:
    """Print deviations of several ways to the same numbers; time them in turns, print ratios to the first.

    Args:
        ways: {name: (function to log-probabilities of two candidates [rows, 2], how many interventions, which
            rows are the first way's, None for all)}.
    """
    reference, *others = ways
    expected = log_odds(ways[reference][0]())
    deviations = {reference: 0.0}
    for name in others:
        run, _, rows = ways[name]
        actual = log_odds(run())
        deviations[name] = float(((actual if rows is None else actual[rows]) - expected).abs().max())
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (run, _, _) in ways.items():
            seconds[name].append(timed(run)[0])
    print(f"\n| way | interventions | a second | times {reference} | largest difference in log odds |")
    print("| --- | --- | --- | --- | --- |")
    for name, (_, count, _) in ways.items():
        # both ways' times are per intervention: the slow way runs fewer
        ratios = [old * count / new / ways[reference][1]
                  for old, new in zip(seconds[reference], seconds[name])]
        print(f"| {name} | {count} | {count / statistics.median(seconds[name]):.1f} | "
              f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
              f"| {deviations[name]:.1e} |")


def log_odds(log_probabilities: "torch.Tensor") -> "torch.Tensor":
    """[rows, 2] -> [rows]: an effect is an odds ratio minus 1, so an error here is one in an effect."""
    return log_probabilities[:, 0] - log_probabilities[:, 1]


def share_of_products(run: Callable, rounds: int) -> float:
    """The part of a sweep's time that its products with weights take, run alone in the same shapes.

    It is the median over turns.
    """
    import torch

    from mediation.model import products, readout

    calls, originals = [], (products._product_of, readout.product)

    def recording(make: Callable) -> Callable:
        def recorded(*arguments):
            multiply = make(*arguments)

            def call(inputs):
                calls.append((multiply, inputs.shape, inputs.dtype))
                return multiply(inputs)
            return call
        return recorded

    products._product_of, readout.product = map(recording, originals)
    try:
        run()
    finally:
        products._product_of, readout.product = originals
    inputs = {(shape, dtype): torch.randn(shape).to(dtype) for _, shape, dtype in calls}

    def alone() -> None:
        for multiply, shape, dtype in calls:
            multiply(inputs[shape, dtype])

    return statistics.median(timed(alone)[0] / timed(run)[0] for _ in range(rounds))


def timed(run: Callable, *arguments: Any, **named: Any) -> tuple[float, Any]:
    """(seconds, result) of one call."""
    started = time.perf_counter()
    result = run(*arguments, **named)
    return time.perf_counter() - started, result


def peak_of_this_process() -> float:
    """Peak memory in MB, by Linux's own count: the other one includes the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

"""Speed as ratios of two ways, timed in turns in one process: the machine may be shared and noisy. Results are compared first."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from mediation.options import Parser, add_model_options, positive

GPT2_SMALL_SIZED = "gpt2-small-sized"


def parser(description):
    """The command line of a benchmark: a model, and how many turns."""
    options = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(options)
    options.add_argument("--rounds", type=positive, default=3, metavar="N", help="turns of both ways (default: 3)")
    options.set_defaults(full_passes=False)
    return options


def load(options):
    """The model of the command line, or one with random weights and the size of GPT-2 small, which needs no download of weights."""
    from utils import load_model

    if options.model != GPT2_SMALL_SIZED:
        return load_model(options)
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from mediation.checkpoints import bundled_model

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(options.seed)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(f"{folder}/{GPT2_SMALL_SIZED}")
        AutoTokenizer.from_pretrained(bundled_model("smollm2-135m")).save_pretrained(f"{folder}/{GPT2_SMALL_SIZED}")
        options.model = f"{folder}/{GPT2_SMALL_SIZED}"
        return load_model(options)


def compare(ways, rounds):
    """Print how far several ways to the same numbers are apart, then time them in turns and print a table of ratios to the first.

    Args:
        ways: {name: (function to log-probabilities, how many interventions, which rows of the first way's they are, or None for the same)}.
    """
    reference, *others = ways
    expected = ways[reference][0]()
    apart = {reference: 0.0}
    for name in others:
        run, _, rows = ways[name]
        found = run()
        apart[name] = float(((found if rows is None else found[rows]) - expected).abs().max())
    seconds = {name: [] for name in ways}
    for _ in range(rounds):
        for name, (run, _, _) in ways.items():
            seconds[name].append(timed(run)[0])
    print(f"\n| way | interventions | a second | times {reference} | largest difference in a log-probability |\n| --- | --- | --- | --- | --- |")
    for name, (_, count, _) in ways.items():
        ratios = [old * count / new / ways[reference][1] for old, new in zip(seconds[reference], seconds[name])]
        print(f"| {name} | {count} | {count / statistics.median(seconds[name]):.1f} | {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
              f"| {apart[name]:.1e} |")


def share_of_products(run, rounds):
    """Which part of a sweep's time its linear layers' products take when they are run alone, in the same shapes: median over turns."""
    from mediation import products

    calls, product_of = [], products._product_of

    def recording(layer, dtype):
        multiply = product_of(layer, dtype)

        def call(x):
            calls.append((multiply, x.shape, x.dtype))
            return multiply(x)
        return call

    products._product_of = recording
    try:
        run()
    finally:
        products._product_of = product_of
    inputs = {(shape, dtype): torch.randn(shape).to(dtype) for _, shape, dtype in calls}

    def alone():
        for multiply, shape, dtype in calls:
            multiply(inputs[shape, dtype])

    return statistics.median(timed(alone)[0] / timed(run)[0] for _ in range(rounds))


def timed(run, *arguments, **named):
    """(seconds, result) of one call."""
    started = time.perf_counter()
    result = run(*arguments, **named)
    return time.perf_counter() - started, result


def peak_of_this_process():
    """Peak memory in MB; from Linux's own count, since the other one goes on counting from the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

"""Speed as ratios of two ways, timed in turns in one process: the machine may be shared and noisy. Results are compared first."""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

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
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from mediation.checkpoints import bundled_model

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(options.seed)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(f"{folder}/{GPT2_SMALL_SIZED}")
        AutoTokenizer.from_pretrained(bundled_model("smollm2-135m")).save_pretrained(f"{folder}/{GPT2_SMALL_SIZED}")
        options.model = f"{folder}/{GPT2_SMALL_SIZED}"
        return load_model(options)


def compare(slow, fast, interventions, rounds):
    """Print the largest difference of two ways, each (name, function to log-probabilities), then time them in turns and print the ratio."""
    import torch

    print(f"{interventions} interventions, {torch.get_num_threads()} threads")
    print(f"largest difference in a log-probability: {(slow[1]() - fast[1]()).abs().max():.1e}")
    seconds = {slow[0]: [], fast[0]: []}
    for _ in range(rounds):
        for name, way in (slow, fast):
            started = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - started)
    for name, times in seconds.items():
        print(f"{name:24} {interventions / statistics.median(times):8.1f} interventions a second (median of {rounds})")
    ratios = [a / b for a, b in zip(*seconds.values())]
    print(f"ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


def timed(run, *arguments, **named):
    """(seconds, result) of one call."""
    started = time.perf_counter()
    result = run(*arguments, **named)
    return time.perf_counter() - started, result


def peak_of_this_process():
    """Peak memory in MB; from Linux's own count, since the other one goes on counting from the process that started this one."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

"""The worker of the comparison: a process loads one model, and runs one way whenever it is told to.

    python benchmarks/peers/transformer_lens_way.py TASK.npz batched

It prints lines of JSON: {"ready": versions} when the model is loaded, then for each line "run PATH" on its
standard input {"seconds": ...}, the time of all interventions, whose log-probabilities (float64 [n, 2]) are
then in PATH. A task of maps is told which, behind a tab: "run PATH\tMAP". An error comes back as
{"error": ...}, and the process ends. It sleeps between its turns.

A task of neurons has `model` (a local folder), `tokens` [T] and `position` in them, `candidates` [2], and
`layers`, `neurons`, `values` [n]: layer 0 is the word embedding's output, layer i >= 1 the output of the MLP
of block i - 1. A task of heads has `model`, `tokens` [T], `candidate1` and `candidate2` (token ids of the
continuations), `weights` [L, H, T, T], `first` (rows of weights before it are equal in both runs), and
`layers`, `heads` [n]. A task of maps has `model`, `tokens` and `other` [T] (the null prompt and the
alternative, whose values are put in), `first` (the first position in which they differ), `candidates` [2],
the stimulus as text (`prompt`, `substitutes`, `words`), and of every map MAP `MAP_layers`, `MAP_units`,
`MAP_positions` [n], position -1 for all of them. Nothing of the project is imported here: the file runs in
every environment.
"""

import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

ROWS = 64  # interventions in a batch


def serve(packages: Sequence[str], load: Callable, ways: dict[str, Callable]) -> None:
    """Answer until the standard input ends.

    Args:
        packages: those whose versions are told.
        load: function of the task to a model.
        ways: {name: function (model, task) to log-probabilities [n, 2]}.
    """
    try:
        path, way = sys.argv[1:]
        with np.load(path) as arrays:
            task = SimpleNamespace(**{name: array.tolist() if array.dtype.kind == "U" else
                                      torch.from_numpy(array) for name, array in arrays.items()})
        torch.set_grad_enabled(False)
        model = load(task)
        versions = (f"{package} {importlib.metadata.version(package)}" for package in packages)
        answer(ready=", ".join(versions))
        for line in sys.stdin:
            path, _, task.map = line.removeprefix("run ").rstrip("\n").partition("\t")
            started = time.perf_counter()
            log_probabilities = ways[way](model, task)
            seconds = time.perf_counter() - started
            np.save(path, log_probabilities.double().numpy())
            answer(seconds=seconds)
    except Exception as error:  # any library's error is told in a row of the table
        answer(error=f"{type(error).__name__}: {error}")
        raise


def answer(**content: Any) -> None:
    """One line of JSON. Libraries print lines of their own, which the reader skips."""
    print(json.dumps(content), flush=True)


def batches(count: int) -> list[slice]:
    """Slices of at most ROWS of `count` interventions."""
    return [slice(start, start + ROWS) for start in range(0, count, ROWS)]


def edits_by_layer(layers: torch.Tensor, *columns: torch.Tensor) -> list[tuple]:
    """Of one batch: [(layer, rows of the batch that change this layer, the columns' entries for them)]."""
    return [(layer, rows, *(column[rows] for column in columns))
            for layer in layers.unique().tolist() for rows in [(layers == layer).nonzero().squeeze(1)]]


def last_token(logits: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of single-token candidates after the last token: [B, T, vocabulary] -> [B, 2]."""
    return logits[:, -1].log_softmax(-1)[:, candidates]


def continuation_runs(task: SimpleNamespace) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For both continuations: (tokens that are run [1, T + len(ids) - 1], ids).

    The first token of `ids` is predicted by the context's last.
    """
    return [(torch.cat([task.tokens, ids[:-1]]).unsqueeze(0), ids)
            for ids in (task.candidate1, task.candidate2)]


def continuation(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean token log-probability of a continuation: the last logits [B, len(ids), vocabulary] -> [B]."""
    return logits.log_softmax(-1)[:, torch.arange(len(ids)), ids].mean(dim=1)


def cells_of(task: SimpleNamespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Layers, units and positions [n] of the map that is asked for."""
    layers, units, positions = (getattr(task, f"{task.map}_{name}")
                                for name in ("layers", "units", "positions"))
    return layers, units, positions


def put(values: torch.Tensor, rows: Any, units: torch.Tensor, positions: torch.Tensor,
        source: torch.Tensor) -> None:
    """Put the alternative's values into rows of a batch, a unit each, in place.

    Args:
        values: [B, T, U, numbers]; source: the same of the alternative's run [1, T, U, numbers]; positions:
            one for each row, or -1: all.
    """
    if (positions < 0).all():
        values[rows, :, units] = source[0][:, units].transpose(0, 1)
    else:
        values[rows, positions, units] = source[0][positions, units]

"""The pickles of selections of heads or neurons, read back: ours and those of 2020."""

from pathlib import Path
from typing import Any

import numpy as np

from mediation.errors import InputError
from mediation.files.storage import read_pickle

KINDS = ("topk", "greedy", "greedy_intermediate", "lazy", "random")
TITLES = {"topk": "top-k", "greedy": "greedy", "lazy": "lazy greedy", "random": "random order"}


def read_selections(paths: dict[str, Path], label: str) -> dict[str, dict[str, Any]]:
    """The selections in files, {title: {"val", label, ...}}.

    Args:
        paths: {kind: path}; files that are not there are left out; label: "head" or "neuron".

    Raises:
        InputError: a file that `read_pickle` refuses, or one that is no selection.
    """
    selections = {}
    for kind, path in paths.items():
        if path.exists():
            content = read_pickle(path)
            try:
                orders = (zip(content["val"], content[label]) if kind == "random"
                          else [(content["val"], content[label])])
                for values, pairs in orders:
                    check_choice(values, pairs)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise InputError(f"{path} is no selection of {label}s (val and {label} of equal length): "
                                 "move it away") from error
            selections[TITLES[kind]] = content
    return selections


def check_choice(values: Any, pairs: Any) -> None:
    """Raises ValueError or TypeError when these are not as many finite numbers as pairs of whole numbers."""
    units, numbers = np.asarray(pairs), np.asarray(values, float)
    whole = np.issubdtype(units.dtype, np.integer)
    if not len(values) or units.shape != (len(values), 2) or not whole or not np.isfinite(numbers).all():
        raise ValueError("no selection")

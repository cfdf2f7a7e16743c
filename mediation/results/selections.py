"""The pickles of selections of heads or neurons, read back: ours and those of 2020.

`by_example` is ours: {"clusters": {what is drawn again: the cluster of each example}, "topk", "greedy",
"lazy" and "random" (mean over its orders): objectives [N, number of units], "all": [N, 1]}. The others, which
have means alone, are as in 2020.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mediation.effects.resampling import Resampling
from mediation.errors import InputError
from mediation.files.storage import read_pickle

KINDS = ("topk", "greedy", "greedy_intermediate", "lazy", "random", "by_example")
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


@dataclass(frozen=True)
class Selected:
    """The selections of one model and data set. `unit`: "head" or "neuron"; `selections`: of
    `with_intervals`; `all_units`, `interval`: effect of all units together, NaN where it is not known."""

    name: str
    unit: str
    selections: dict[str, dict[str, Any]]
    all_units: float
    interval: tuple[float, float]


def selections_in(folder: str | Path) -> list[Selected]:
    """Every selection whose pickles are in a folder."""
    found = []
    for topk in sorted(Path(folder).glob("topk_*.pickle")):
        name = topk.stem.removeprefix("topk_")
        paths = {kind: topk.with_name(f"{kind}_{name}.pickle") for kind in TITLES}
        by_example = read_by_example(topk.with_name(f"by_example_{name}.pickle"))
        of_heads = isinstance(read_pickle(topk), Mapping)
        chosen = read_selections(paths, "head") if of_heads else _of_neurons(topk, paths)
        selections, interval = with_intervals(chosen, by_example)
        every = float(np.mean(by_example["all"])) if "all" in by_example else np.nan
        found.append(Selected(name, "head" if of_heads else "neuron", selections, every, interval))
    return found


def _of_neurons(topk: Path, paths: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """As of `read_selections`: the pickles of neurons have layers and neurons apart, and top-k the order of
    all neurons alone."""
    alone, found = topk.with_name("marg_contrib.pickle"), {}
    try:
        order = read_pickle(alone)
        for kind in ("topk", "greedy", "lazy"):
            if paths[kind].exists():
                content = read_pickle(paths[kind])
                if kind == "topk":
                    content = {**order, "val": content}
                pairs = list(zip(map(int, content["layer"]), map(int, content["neuron"])))
                pairs = pairs[:len(content["val"])]
                check_choice(content["val"], pairs)
                found[TITLES[kind]] = {"val": list(content["val"]), "neuron": pairs}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{topk.parent} has no selection of neurons in {topk.name} and {alone.name}: move "
                         "them away") from error
    return found


def check_choice(values: Any, pairs: Any) -> None:
    """Raises ValueError or TypeError when these are not as many finite numbers as pairs of whole numbers."""
    units, numbers = np.asarray(pairs), np.asarray(values, float)
    whole = np.issubdtype(units.dtype, np.integer)
    if not len(values) or units.shape != (len(values), 2) or not whole or not np.isfinite(numbers).all():
        raise ValueError("no selection")


def read_by_example(path: Path) -> dict[str, Any]:
    """Objectives of every example; {} where the file is not there.

    Raises:
        InputError: a file that `read_pickle` refuses, or one that holds something else.
    """
    if not path.exists():
        return {}
    content = read_pickle(path)
    try:
        rows = {len(clusters) for clusters in content["clusters"].values()}
        tables = [np.asarray(table, float) for kind, table in content.items() if kind != "clusters"]
        if len(rows) != 1 or any(table.ndim != 2 or len(table) not in rows or not np.isfinite(table).all()
                                 for table in tables):
            raise ValueError("other shapes")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path} has no objectives of examples (clusters, and tables of numbers): move it "
                         "away") from error
    return content


def with_intervals(selections: Mapping[str, dict[str, Any]], by_example: Mapping[str, Any],
                   ) -> tuple[dict[str, dict[str, Any]], tuple[float, float]]:
    """The selections with "low" and "high" beside "val", ends of 95% intervals from one set of draws; and
    the same of all units together.

    What `by_example` does not have, is of 2020 or of an earlier version, gets none: NaN in the case of all
    units. Those of random orders are of the mean over the orders.
    """
    if not by_example:
        return dict(selections), (np.nan, np.nan)
    draws, found = Resampling(by_example["clusters"]), {}
    kinds = {title: kind for kind, title in TITLES.items()}
    for title, content in selections.items():
        table = by_example.get(kinds[title])
        sizes = len(content["val"][0] if title == TITLES["random"] else content["val"])
        if table is not None and table.shape[1] >= sizes:
            low, high = draws.of_means(np.asarray(table, float)[:, :sizes])
            content = {**content, "low": low, "high": high}
        found[title] = content
    if "all" not in by_example:
        return found, (np.nan, np.nan)
    low, high = draws.of_means(by_example["all"])
    return found, (float(low[0]), float(high[0]))

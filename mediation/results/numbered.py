"""Results of the attention study without the data set's sentences: numbers that may be passed on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mediation.effects.estimands import strong_examples
from mediation.errors import InputError
from mediation.files.storage import FILTER_QUANTILE
from mediation.results.attention_results import STRINGS, data_set_of, example_key, means, strings_of

DIGITS = 6  # of every number: an effect is known to five


def numbered(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The content with each entry's `example` in place of its strings, and odds of heads left out: they
    follow from the effects.

    Raises:
        InputError: an example that is not in the data set.
    """
    numbers = {example_key(*strings_of(example)): number
               for number, example in enumerate(data_set_of(content))}
    results = []
    for entry in content["results"]:
        key = example_key(*(entry[name] for name in STRINGS))
        if key not in numbers:
            raise InputError(f"{path}: {entry[STRINGS[0]]!r} is not in the data set, whose examples can be "
                             "numbered alone")
        results.append({"example": numbers[key]} | {
            name: _rounded(value) for name, value in entry.items()
            if name not in (*STRINGS, "example") and not name.endswith("_odds_head")})
    return {**content, "results": results}


def filtered(content: Mapping[str, Any], quantile: float = FILTER_QUANTILE) -> dict[str, Any]:
    """What a run with the filter has: the entries that pass it, their counts and means."""
    ratios = [entry["odds_alt"] / entry["odds_base"] for entry in content["results"]]
    indices, aligned, threshold = strong_examples(ratios, quantile)
    entries = [content["results"][index] for index in indices]
    return {**content, "do_filter": True, "num_examples_aligned": aligned, "filter_quantile": quantile,
            "threshold": threshold, "num_examples_analyzed": len(entries), **means(entries),
            "results": entries}


def _rounded(value):
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


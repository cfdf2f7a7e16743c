"""What the attention scripts print of a JSON: counts, means, the strongest heads, the layers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mediation.effects.summaries import ranked_units
from mediation.results.attention_results import (
    EFFECTS,
    MEANS,
    STRINGS,
    head_effects,
    layer_effects,
    read_results,
)


def report_study(path: str | Path) -> None:
    """Print what a JSON says: counts, means, and the sum of indirect and direct beside the total, to show
    their interaction."""
    content = read_results(path)
    results = content["results"]
    counts = ("num_examples_loaded", "num_examples_aligned", "threshold", "num_examples_analyzed")
    if "method" in content:
        estimated = content["method"] == "gradient"
        heads = "by first-order estimates" if estimated else "ranked by gradient, the strongest run"
        print(f"method {content['method']}: heads {heads}; layers and the whole model were run")
    print(", ".join(f"{key.removeprefix('num_').replace('_', ' ')} {content[key]:.6g}"
                    for key in counts if key in content))
    if content["do_filter"]:
        print("filtered by the odds ratio that the total effect is made of, which raises it: see "
              "--do-filter False beside it")
    total, indirect, direct = (content[key] for key in MEANS)
    print(f"total effect {total:.6f}; model-level indirect {indirect:.6f} + direct {direct:.6f} = "
          f"{indirect + direct:.6f} ({100 * (indirect + direct) / total:.1f}% of the total: the two are no "
          f"exact parts of it)\n")
    report_interventions_summary_by_head(results)
    report_interventions_summary_by_layer(results)
    print("wrote", path)


def report_intervention(entry: dict[str, Any]) -> None:
    """Print one entry: contexts, candidates, total effect, and the model-level effects, whose sum is near the
    total but no identity."""
    print(*(f"{name}: {entry[key]}" for name, key in zip(("x ", "x'", "c1", "c2"), STRINGS)), sep="\n")
    indirect, direct = (entry[f"{kind}_effect_model"] for kind in EFFECTS)
    print(f"total effect {entry['total_effect']:.4f}; indirect {indirect:.4f} + direct {direct:.4f} "
          f"= {indirect + direct:.4f}")


def report_interventions_summary_by_head(
    results: Sequence[dict[str, Any]], effect_types: Sequence[str] = EFFECTS, k: int = 10,
) -> dict[str, pd.DataFrame]:
    """Print the k heads with the largest mean effect; returns {effect: table with layer, head, mean, standard
    deviation, share above 0}."""
    tables = {}
    for kind in effect_types:
        heads = head_effects(results, kind)
        tables[kind] = ranked_units(heads.effects, heads.named("head")).head(k)
        print(f"{kind} effect, strongest {len(tables[kind])} of {len(heads.layer)} heads, "
              f"over {len(results)} examples",
              tables[kind].to_string(index=False, float_format="%.4f"), "", sep="\n")
    return tables


def report_interventions_summary_by_layer(
    results: Sequence[dict[str, Any]], effect_types: Sequence[str] = EFFECTS,
) -> dict[str, pd.DataFrame]:
    """Print the attention layers by their mean effect, the weights of all their heads replaced.

    Returns: {effect: table with layer, mean, standard deviation, share above 0}.
    """
    tables = {}
    for kind in effect_types:
        layers = layer_effects(results, kind)
        tables[kind] = ranked_units(layers.effects, layers.named())
        print(f"{kind} effect by layer, over {len(results)} examples",
              tables[kind].to_string(index=False, float_format="%.4f"), "", sep="\n")
    return tables

"""The JSON of the attention study: entries made from probabilities, files read and found, effects as arrays."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from mediation.effects.odds import effect, log_odds
from mediation.errors import InputError
from mediation.stimuli.prompts import PronounStimulus

if TYPE_CHECKING:  # an Intervention holds tensors; reading a file needs none
    import mediation.stimuli.interventions

EFFECTS = ("indirect", "direct")
SCALARS = ("candidate1_base_prob", "candidate2_base_prob", "odds_base", "candidate1_alt_prob", "candidate2_alt_prob", "odds_alt", "total_effect",
           "indirect_effect_model", "direct_effect_model")
STRINGS = ("base_string1", "base_string2", "candidate1", "candidate2")


def result_entry(
    intervention: "mediation.stimuli.interventions.Intervention", probabilities: Sequence[Sequence[float]],
    swept: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """One entry of `results` from stored probabilities.

    Args:
        probabilities: [[p(c1), p(c2)] after x, the same after x'].
        swept: {effect: what `Model.attention_intervention_experiment` returned}.

    Effects are (y_intervened - y_base) / y_base with y_base = y(x) for the indirect and the direct effect alike (Vig et al. 2020).
    """
    (c1, c2), (c1_alternative, c2_alternative) = probabilities
    base, alternative = log_odds(c2, c1), log_odds(c2_alternative, c1_alternative)
    names = dict(zip(STRINGS, (*intervention.base_strings, *(" ".join(tokens).replace("Ġ", "") for tokens in intervention.candidates))))
    entry = {**names, "candidate1_base_prob": c1, "candidate2_base_prob": c2, "odds_base": float(np.exp(base)),
             "candidate1_alt_prob": c1_alternative, "candidate2_alt_prob": c2_alternative, "odds_alt": float(np.exp(alternative)),
             "total_effect": float(effect(alternative, base))}
    for kind, (c1_head, c2_head, c1_layer, c2_layer, c1_model, c2_model) in swept.items():
        heads = log_odds(c2_head, c1_head)
        entry |= {f"{kind}_odds_head": np.exp(heads).tolist(), f"{kind}_effect_head": effect(heads, base).tolist(),
                  f"{kind}_effect_layer": effect(log_odds(c2_layer, c1_layer), base).tolist(),
                  f"{kind}_effect_model": float(effect(log_odds(c2_model, c1_model), base))}
    return entry


def means(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The three means of a JSON."""
    names = {"mean_total_effect": "total_effect", "mean_model_indirect_effect": "indirect_effect_model", "mean_model_direct_effect": "direct_effect_model"}
    return {mean: float(np.mean([entry[name] for entry in entries])) for mean, name in names.items()}


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises:
        InputError: it is not there or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): write it again with attention_intervention_winobias.py or _winogender.py") from error


def example_key(base_string1: str, base_string2: str, candidate1: str, candidate2: str) -> tuple[str, ...]:
    """What tells an example in every file: contexts, and continuations without blanks, case and word-piece marks, for a file has them in tokens."""
    return base_string1, base_string2, *("".join(candidate.split()).replace("##", "").lower() for candidate in (candidate1, candidate2))


def read_results(path: str | Path, examples: Sequence[PronounStimulus] | None = None) -> dict[str, Any]:
    """A JSON of the attention study, ours or the published ones.

    Args:
        examples: entries that name their `example` by its number have their strings from there.

    Keys: `model_version`, `do_filter`, `split` or `stat`, counts, means, and `results`, a list of entries with strings, probabilities,
    odds and effects; [L][H] for heads, [L] for layers. `*_odds_head` may be absent.

    Raises:
        InputError: a file that is not JSON, or not of this form; file and place are named.
    """
    content = read_json(path)
    remedy = "this is no result of the attention study, write it again"
    if not isinstance(content, dict) or not isinstance(content.get("results"), list) or not content["results"]:
        raise InputError(f"{path}: no list of results: {remedy}")
    for key in ("model_version", "do_filter", "num_examples_analyzed", "mean_total_effect", "mean_model_indirect_effect", "mean_model_direct_effect"):
        if key not in content:
            raise InputError(f"{path}: key {key!r} is missing: {remedy}")
    shape = None
    for number, entry in enumerate(content["results"]):
        if examples and isinstance(entry, dict) and isinstance(entry.get("example"), int) and entry["example"] < len(examples):
            example = examples[entry["example"]]
            entry |= dict(zip(STRINGS, (*(example.base_string.replace("{}", word) for word in example.substitutes), *example.candidates)))
        where = f"{path}: results[{number}]"
        for key in (*STRINGS, *SCALARS, *(f"{kind}_effect_{level}" for kind in EFFECTS for level in ("head", "layer"))):
            if not isinstance(entry, dict) or key not in entry:
                raise InputError(f"{where}: key {key!r} is missing: {remedy}")
        for key in SCALARS:
            if not isinstance(entry[key], (int, float)) or not np.isfinite(entry[key]):
                raise InputError(f"{where}: {key} is not a number: {remedy}")
        for kind in EFFECTS:
            try:
                heads, layers = (np.asarray(entry[f"{kind}_effect_{level}"], np.float64) for level in ("head", "layer"))
            except (ValueError, TypeError):
                raise InputError(f"{where}: {kind} effects are not a table of numbers: {remedy}") from None
            shape = shape or heads.shape
            if len(shape) != 2 or heads.shape != shape or layers.shape != shape[:1] or not (np.isfinite(heads).all() and np.isfinite(layers).all()):
                raise InputError(f"{where}: {kind} effects are {list(heads.shape)} and {list(layers.shape)}, not layers x heads of finite numbers: {remedy}")
    return content


def find_results(out_dir: str | Path, model: str | None = None) -> dict[Path, str]:
    """{path: label} of the result files in OUT_DIR/winobias_data and winogender_data; label as in the figures' names, such as winobias_gpt2_filtered_dev.

    Args:
        model: only files of this model; None takes all.

    Raises:
        InputError: there is none.
    """
    found = {}
    for data in ("winobias", "winogender"):
        for path in sorted((Path(out_dir) / f"{data}_data").glob("attention_intervention_*.json")):
            label = path.stem.removeprefix("attention_intervention_")
            if data == "winogender":  # the statistic stands first in the file's name, last in the label
                statistic, _, rest = label.partition("_")
                label = f"{rest}_{statistic}"
            if model is None or re.fullmatch(rf"{re.escape(model)}_(un)?filtered_.+", label):
                found[path] = f"{data}_{label}"
    if not found:
        raise InputError(f"no attention_intervention_*.json{f' of {model}' if model else ''} in {out_dir}/winobias_data or {out_dir}/winogender_data: "
                         "run attention_intervention_winobias.py or _winogender.py first, or name the folder with -out_dir")
    return found


def head_effects(results: Iterable[Mapping[str, Any]], kind: str) -> Float64[np.ndarray, "N L H"]:
    """Effects of all heads, of the entries `results`; kind "indirect" or "direct"."""
    return np.array([entry[f"{kind}_effect_head"] for entry in results], np.float64)


def layer_effects(results: Iterable[Mapping[str, Any]], kind: str) -> Float64[np.ndarray, "N L"]:
    """Effects of all layers."""
    return np.array([entry[f"{kind}_effect_layer"] for entry in results], np.float64)

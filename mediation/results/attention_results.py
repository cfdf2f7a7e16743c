"""The JSON of the attention study: entries made from probabilities, files found and read."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mediation.effects.odds import effect, log_odds
from mediation.errors import InputError
from mediation.results.tidy import Piece, Units, side_by_side
from mediation.stimuli import winobias, winogender
from mediation.stimuli.occupations import occupations_in
from mediation.stimuli.prompts import PronounStimulus

if TYPE_CHECKING:  # an Intervention holds tensors; reading a file needs none
    import mediation.stimuli.interventions

EFFECTS = ("indirect", "direct")
ATTENTION_FOLDER = Path("results", "attention_intervention", "qualitative")  # within -out_dir
MEANS = {"mean_total_effect": "total_effect", "mean_model_indirect_effect": "indirect_effect_model",
         "mean_model_direct_effect": "direct_effect_model"}
SCALARS = ("candidate1_base_prob", "candidate2_base_prob", "odds_base", "candidate1_alt_prob",
           "candidate2_alt_prob", "odds_alt", "total_effect", "indirect_effect_model", "direct_effect_model")
STRINGS = ("base_string1", "base_string2", "candidate1", "candidate2")


def result_entry(
    intervention: "mediation.stimuli.interventions.Intervention", probabilities: Sequence[Sequence[float]],
    swept: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """One entry of `results` from stored probabilities.

    Args:
        probabilities: [[p(c1), p(c2)] after x, the same after x'].
        swept: {effect: what `Model.attention_intervention_experiment` returned}.

    Effects are (y_intervened - y_base) / y_base with y_base = y(x) for the indirect and the direct effect
    alike (Vig et al. 2020).
    """
    (c1, c2), (c1_alternative, c2_alternative) = probabilities
    base, alternative = log_odds(c2, c1), log_odds(c2_alternative, c1_alternative)
    candidates = (" ".join(tokens).replace("Ġ", "") for tokens in intervention.candidates)
    entry = {**dict(zip(STRINGS, (*intervention.base_strings, *candidates))),
             "candidate1_base_prob": c1, "candidate2_base_prob": c2, "odds_base": float(np.exp(base)),
             "candidate1_alt_prob": c1_alternative, "candidate2_alt_prob": c2_alternative,
             "odds_alt": float(np.exp(alternative)),
             "total_effect": float(effect(alternative, base))}
    for kind, (c1_head, c2_head, c1_layer, c2_layer, c1_model, c2_model) in swept.items():
        heads = log_odds(c2_head, c1_head)
        entry |= {f"{kind}_odds_head": np.exp(heads).tolist(),
                  f"{kind}_effect_head": effect(heads, base).tolist(),
                  f"{kind}_effect_layer": effect(log_odds(c2_layer, c1_layer), base).tolist(),
                  f"{kind}_effect_model": float(effect(log_odds(c2_model, c1_model), base))}
    return entry


def means(entries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The three means of a JSON."""
    return {mean: float(np.mean([entry[name] for entry in entries])) for mean, name in MEANS.items()}


def read_json(path: str | Path) -> Any:
    """Content of a JSON file.

    Raises:
        InputError: it is not there or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): write it again with "
                         "attention_intervention_winobias.py or _winogender.py") from error


def example_key(base_string1: str, base_string2: str, candidate1: str, candidate2: str) -> tuple[str, ...]:
    """What tells an example in every file: contexts, and continuations without blanks, case and word-piece
    marks, for a file has them in tokens."""
    candidates = ("".join(each.split()).replace("##", "").lower() for each in (candidate1, candidate2))
    return base_string1, base_string2, *candidates


def strings_of(example: PronounStimulus) -> tuple[str, str, str, str]:
    """The STRINGS of a data set's example: its contexts and candidates."""
    female, male = (example.base_string.replace("{}", word) for word in example.substitutes)
    return female, male, *example.candidates


def data_set_of(content: Mapping[str, Any]) -> list[PronounStimulus]:
    """All examples of a result file's data set: Winogender's names its statistic, WinoBias's its split."""
    if "stat" in content:
        return winogender.load(content["stat"])
    return winobias.load(content.get("split", "dev"))


def read_results(path: str | Path) -> dict[str, Any]:
    """A JSON of the attention study, ours or the published ones.

    Entries that name their `example` by its number alone have their strings from the data set.

    Keys: `model_version`, `do_filter`, `split` or `stat`, counts, means, and `results`, a list of entries
    with strings, probabilities, odds and effects; [L][H] for heads, [L] for layers. `*_odds_head` may be
    absent.

    Raises:
        InputError: a file that is not JSON, or not of this form; file and place are named; or a data set
            that cannot be fetched.
    """
    content = read_json(path)
    remedy = "this is no result of the attention study, write it again"
    if not isinstance(content, dict) or not isinstance(content.get("results"), list) \
            or not content["results"]:
        raise InputError(f"{path}: no list of results: {remedy}")
    for key in ("model_version", "do_filter", "num_examples_analyzed", *MEANS):
        if key not in content:
            raise InputError(f"{path}: key {key!r} is missing: {remedy}")
    shape = None
    _fill_in_strings(path, content, remedy)
    for number, entry in enumerate(content["results"]):
        where = f"{path}: results[{number}]"
        arrays = (f"{kind}_effect_{level}" for kind in EFFECTS for level in ("head", "layer"))
        for key in (*STRINGS, *SCALARS, *arrays):
            if not isinstance(entry, dict) or key not in entry:
                raise InputError(f"{where}: key {key!r} is missing: {remedy}")
        for key in SCALARS:
            if not isinstance(entry[key], (int, float)) or not np.isfinite(entry[key]):
                raise InputError(f"{where}: {key} is not a number: {remedy}")
        for key in (key for key in SCALARS if key.startswith("odds") and entry[key] <= 0):
            raise InputError(f"{where}: {key} is not above 0: {remedy}")
        for kind in EFFECTS:
            shape = _check_effects(where, entry, kind, shape, remedy)
    return content


def _fill_in_strings(path, content, remedy):
    """Strings of entries that have their example's number alone, such as files that may be passed on."""
    numbered = [entry for entry in content["results"]
                if isinstance(entry, dict) and "example" in entry and STRINGS[0] not in entry]
    examples = data_set_of(content) if numbered else []
    for entry in numbered:
        number = entry["example"]
        if not isinstance(number, int) or not 0 <= number < len(examples):
            raise InputError(f"{path}: example {number!r} is none of the data set's {len(examples)}: "
                             f"{remedy}")
        entry |= dict(zip(STRINGS, strings_of(examples[number])))


def _check_effects(where, entry, kind, shape, remedy):
    """Shape [L, H] of an entry's effects; `shape`: of the entries before it, or None.

    Raises:
        InputError: they are not tables of numbers of one shape, or no odds ratios minus 1.
    """
    def numbers(key):
        try:
            return np.asarray(entry[key], np.float64)
        except (ValueError, TypeError):
            raise InputError(f"{where}: {key} is not a table of numbers: {remedy}") from None

    heads, layers = (numbers(f"{kind}_effect_{level}") for level in ("head", "layer"))
    shape = shape or heads.shape
    if len(shape) != 2 or heads.shape != shape or layers.shape != shape[:1] \
            or not (np.isfinite(heads).all() and np.isfinite(layers).all()):
        raise InputError(f"{where}: {kind} effects are {list(heads.shape)} and {list(layers.shape)}, not "
                         f"layers x heads of finite numbers: {remedy}")
    if min(heads.min(initial=0), layers.min(initial=0), entry[f"{kind}_effect_model"]) < -1:
        raise InputError(f"{where}: {kind} effects are below -1, which no odds ratio minus 1 is: {remedy}")
    for key in (f"{kind}_{name}_head" for name in ("odds", "exact") if f"{kind}_{name}_head" in entry):
        values = numbers(key)
        if values.shape != shape or not (np.isfinite(values) & (values >= 0)).all():
            raise InputError(f"{where}: {key} is not layers x heads of numbers from 0 on: {remedy}")
    return shape


def find_results(out_dir: str | Path, model: str | None = None) -> dict[Path, str]:
    """{path: label} of the result files in OUT_DIR/winobias_data and winogender_data; label as in the
    figures' names, such as winobias_gpt2_filtered_dev.

    Args:
        model: only files of this model; None takes all.

    Raises:
        InputError: there is none.
    """
    found = {}
    for data in ("winobias", "winogender"):
        for path in sorted((Path(out_dir) / f"{data}_data").glob("attention_intervention_*.json")):
            statistic = path.stem.split("_")[2] if data == "winogender" else None
            label = label_of(path, statistic)
            if model is None or re.fullmatch(rf"{re.escape(model)}_(un)?filtered_.+", label):
                found[path] = f"{data}_{label}"
    if not found:
        raise InputError(f"no attention_intervention_*.json{f' of {model}' if model else ''} in "
                         f"{out_dir}/winobias_data or {out_dir}/winogender_data: run "
                         "attention_intervention_winobias.py or _winogender.py first, or name the folder "
                         "with -out_dir")
    return found


def label_of(path: str | Path, statistic: str | None = None) -> str:
    """{M}_{filter}_{split or statistic} of a result file; a statistic stands first in the file's name."""
    label = Path(path).stem.removeprefix("attention_intervention_")
    if statistic and label.startswith(f"{statistic}_"):
        return f"{label.removeprefix(f'{statistic}_')}_{statistic}"
    return label


def read_pieces(path: str | Path) -> Iterator[Piece]:
    """Pieces of the tidy table from a JSON of the attention study, see `read_results`, example by example."""
    content = read_results(path)
    yield from pieces_of(content["results"], content.get("method", "exact"))


def pieces_of(
    results: Sequence[Mapping[str, Any]], method: str = "exact", effect_types: Sequence[str] = EFFECTS,
) -> Iterator[Piece]:
    """Pieces of entries of `read_results`: of each effect heads, then layers and the whole model ("all").

    A file has the odds of heads at most: what it lacks is computed from the effect and the odds of x.

    `method`: the file's; layers and the whole model were run by every method.
    """
    for number, entry in enumerate(results):
        base = float(np.log(entry["odds_base"]))
        piece = partial(Piece, f"{entry['base_string1']} | {entry['base_string2']}",
                        cluster_of(entry, number), position="context", log_odds_base=base)
        for kind in effect_types:
            heads = np.asarray(entry[f"{kind}_effect_head"], np.float64)
            layers = np.asarray([*entry[f"{kind}_effect_layer"], entry[f"{kind}_effect_model"]], np.float64)
            layer, head = (index.ravel() for index in np.indices(heads.shape))
            odds, exact = entry.get(f"{kind}_odds_head"), entry.get(f"{kind}_exact_head")
            under_heads = _log_odds_of(heads, base) if odds is None else np.log(np.asarray(odds, np.float64))
            estimated = "exact" if method == "exact" else "gradient"
            yield piece(mediator="heads", kind=kind, layer=layer, unit=head, log_odds=under_heads.ravel(),
                        method=estimated if exact is None else np.where(np.ravel(exact), "exact", estimated),
                        stored=heads.ravel())
            yield piece(mediator="layers", kind=kind, unit=None, log_odds=_log_odds_of(layers, base),
                        stored=layers, layer=np.array([*range(len(layers) - 1), "all"], object))


def cluster_of(entry: Mapping[str, Any], number: int) -> str:
    """What an example shares with others: its occupations, such as "designer, developer"; where its context
    names none, it shares nothing, and its number stands for it."""
    return ", ".join(occupations_in(entry["base_string1"])) or str(entry.get("example", number))


def _log_odds_of(effects, base):
    """Log odds under interventions, from their effects and the base log odds."""
    with np.errstate(divide="ignore"):  # an odds ratio that was rounded to 0
        return base + np.log1p(effects)


def head_effects(results: Sequence[Mapping[str, Any]], kind: str) -> Units:
    """Effects of all heads in every example."""
    return side_by_side(pieces_of(results, effect_types=[kind]), "heads", kind)


def layer_effects(results: Sequence[Mapping[str, Any]], kind: str) -> Units:
    """Effects of all attention layers in every example, the whole model left out."""
    return side_by_side(pieces_of(results, effect_types=[kind]), "layers", kind).single_layers()

"""Neuron tables as the study of 2020 has them, CSV or parquet: columns made from results, and read back."""

import ast
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mediation.effects.odds import log_odds
from mediation.errors import InputError
from mediation.files.storage import RunFolder
from mediation.results.tables import FORMATS, check_columns, check_numbers, read_columns, table_columns
from mediation.results.tidy import Piece
from mediation.stimuli.templates import split_base_string

if TYPE_CHECKING:  # an Intervention holds tensors; reading a file needs none
    import mediation.stimuli.interventions

BASE_COLUMNS = ["word", "base_string", "alt_string1", "alt_string2", "candidate1", "candidate2",
                "candidate1_base_prob", "candidate2_base_prob", "candidate1_alt1_prob",
                "candidate2_alt1_prob", "candidate1_alt2_prob", "candidate2_alt2_prob"]
NEURON_COLUMNS = [*BASE_COLUMNS, "candidate1_prob", "candidate2_prob", "layer", "neuron"]
PROBABILITIES = BASE_COLUMNS[6:]  # without intervention, on the null, man's and woman's prompt
EFFECT_COLUMNS = ["neuron_", "layer_direct_mean", "neuron_direct_mean", "odds_ratio_indirect_mean",
                  "odds_ratio_indirect_std", "odds_ratio_direct_mean", "odds_ratio_direct_std",
                  "total_causal_effect_mean", "total_causal_effect_std"]
CONTRAST_COLUMNS = ["neuron_", "layer", "neuron", "gender_contrast_mean", "gender_contrast_std", "prompts"]
LAYER_COLUMNS = ["model", "share", "layer", "neurons", "odds_ratio_indirect_mean", "odds_ratio_indirect_std"]
INTERVENTIONS = ("man_direct", "man_indirect", "woman_direct", "woman_indirect", "man_minus_woman",
                 "woman_minus_man")
WHOLE_STUDY = INTERVENTIONS[:4]  # the types that a run has when none is named
TYPES = (*INTERVENTIONS, "no_intervention")
ALTERNATIVES = {"man": "alt1", "woman": "alt2"}  # what the columns of a gender's prompt are called
# median error of the effects of 200 neurons of SmolLM2-135M on log odds, half of which are below .003
HALF_PRECISION = {"bfloat16": ".04", "float16": ".002"}
# largest relative difference of one prompt's probabilities in two tables; in half precision (True) they
# depend on what is run together
TOLERANCE = {False: 1e-3, True: 1e-2}


def base_columns(
    word: str, intervention: "mediation.stimuli.interventions.Intervention", probabilities: Iterable[float],
) -> dict[str, Any]:
    """The first twelve columns of a neuron table: prompts, candidates, the six probabilities without
    intervention."""
    candidates = (str(tokens) for tokens in intervention.candidates[:2])
    return dict(zip(BASE_COLUMNS, [word, *intervention.base_strings[:3], *candidates, *probabilities]))


def convert_results_to_pd(
    interventions: Mapping[str, "mediation.stimuli.interventions.Intervention"],
    intervention_results: Mapping[str, Sequence[Any]], layer_fixed: Any = None, neuron_fixed: Any = None,
) -> pd.DataFrame:
    """Results of `Model.neuron_intervention_experiment` as a table, a row per word, layer and neuron.

    Args:
        interventions, intervention_results: by word; the results are the eight values of
            `neuron_intervention_single_experiment`.
        layer_fixed: for results of one layer or one set: what is written in the column `layer` (None: rows of
            the result, from 0).
        neuron_fixed: for results of one set: what is written in the column `neuron`.
    """
    tables = []
    for word, (*probabilities, one, other) in intervention_results.items():
        candidate1, candidate2 = (np.atleast_2d(np.asarray(each, dtype=np.float64)) for each in (one, other))
        layer, neuron = (index.ravel() for index in np.indices(candidate1.shape))
        table = pd.DataFrame({"candidate1_prob": candidate1.ravel(), "candidate2_prob": candidate2.ravel(),
                              "layer": layer, "neuron": neuron})
        if layer_fixed is not None:
            table["layer"] = [layer_fixed] * len(table)
        if neuron_fixed is not None:
            table["neuron"] = [neuron_fixed] * len(table)
        tables.append(table.assign(**base_columns(word, interventions[word], probabilities)))
    return pd.concat(tables, ignore_index=True)[NEURON_COLUMNS]


def runs_in(folder: str | Path) -> list[dict[str, Any]]:
    """The runs of a folder's manifest; none, said on standard error, where the file is of other software: no
    analysis is stopped by it."""
    try:
        return RunFolder(folder).read()["runs"]
    except InputError as error:
        print(f"not looked at: {error}", file=sys.stderr)
        return []


def find_tables(folder: str | Path, model: str, types: Sequence[str] = TYPES) -> dict[Path, str]:
    """{path: type} of the neuron tables (CSV or parquet) of one model in a folder, sorted by name; never
    empty.

    Raises:
        InputError: no such folder, no such table in it (the message names the models that are there), one in
            both formats, or tables of other weights or another alpha.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name the one that holds the neuron tables")
    names = sorted(path.name for ending in FORMATS for path in folder.glob(f"*.{ending}"))
    tables = {folder / name: kind for name in names for kind in types for ending in FORMATS
              if name.endswith(f"_{kind}_{model}.{ending}")}
    twice = [path for path in tables if path.suffix == ".csv" and path.with_suffix(".parquet") in tables]
    if twice:
        raise InputError(f"{twice[0]} is there as parquet too: move one of them away")
    if not tables:
        models = models_in(folder)
        remedy = (f"models there: {', '.join(models)}" if models
                  else "run run_profession_neuron_experiments.py first, or name its folder")
        raise InputError(f"{folder} holds no tables of model {model!r} ({', '.join(types)}): {remedy}")
    check_made_alike(folder, tables)
    return tables


def models_in(folder: str | Path) -> list[str]:
    """The models that have neuron tables in a folder."""
    pattern = rf"_(?:{'|'.join(TYPES)})_(.+)\.(?:{'|'.join(FORMATS)})$"
    matches = (re.search(pattern, path.name) for path in Path(folder).iterdir())
    return sorted({match[1] for match in matches if match})


def check_made_alike(folder: Path, tables: Mapping[Path, str]) -> None:
    """Raises InputError where tables (path: type) have other weights or alphas, by the manifest."""
    first: dict[str, tuple[str, Any]] = {}
    for run in runs_in(folder):
        for name in (name for name in run["files"] if folder / name in tables):
            settings = run["settings"]
            # means over such tables would be of neither; a hash is of the weights in one dtype
            made = {f"weights in {settings.get('dtype')}": settings.get("weights_sha256")}
            if tables[folder / name] != "no_intervention":
                made["alpha"] = settings.get("alpha")
            for what, value in made.items():
                other, before = first.setdefault(what, (name, value))
                if value != before:
                    raise InputError(f"{folder / name} and {other} were made with other {what} "
                                     f"({value} and {before}): keep them in separate folders")


def describe_methods(folder: str | Path, model: str) -> str:
    """A line on how the neuron tables of a model were made, by the manifest of their folder; empty where
    every neuron was run or no manifest tells."""
    sweeps = [run["settings"] for run in runs_in(folder) if run["settings"].get("model") == model
              and any("sweep_seconds" in entry for entry in run["files"].values())]
    methods = {settings.get("method", "exact") for settings in sweeps}
    fast = "; precision fast: most interventions in bfloat16 on the difference to the base run"
    fast = fast if any("precision" in settings for settings in sweeps) else ""
    texts = {"exact": "every neuron run", "gradient": "first-order estimates",
             "screen": "the strongest neurons run, the others first-order estimates"}
    if methods <= {"exact"} and not fast:
        return ""
    described = "; ".join(f"method {method}, {texts[method]}" for method in sorted(methods))
    return f"{model}: effects by {described}{fast} (docs/methods.md)"


def read_table(
    path: str | Path, columns: Sequence[str], also_there: Sequence[str] = (),
) -> Iterator[pd.DataFrame]:
    """The named columns of a CSV or parquet file, chunk by chunk; probabilities as float64.

    `also_there`: columns that are not read but have to be there, or the table is not what it is taken for.

    Raises:
        InputError: a file that is not what its ending says, a missing column, or a value that is not a
            number or not a probability.
    """
    remedy = "write the table again with run_profession_neuron_experiments.py"
    check_columns(path, [*columns, *also_there], remedy)
    largest, smallest = np.finfo(float).max, np.finfo(float).tiny
    for chunk in read_columns(path, list(columns)):
        for column in columns:
            if column in ("word", "base_string") and chunk[column].isna().any():
                row = chunk.index[chunk[column].isna()][0] + 1
                raise InputError(f"{path}: row {row}, column {column!r} is empty: {remedy}")
            if "prob" in column:
                check_numbers(path, chunk, column, smallest, 1, remedy, "a probability above 0")
            elif column == "log_odds":
                check_numbers(path, chunk, column, -largest, largest, remedy)
            elif column in ("layer", "neuron"):
                check_numbers(path, chunk, column, 0, 2**31 - 1, remedy, whole=True)
        yield chunk


def candidate_word(tokens: Any) -> str:
    """The word of a candidate's printed tokens: "['Ġhe']" -> "he"; a text that is no such list as it is."""
    try:
        return "".join(ast.literal_eval(tokens)).replace("Ġ", " ").replace("▁", " ").strip()
    except (ValueError, SyntaxError, TypeError):
        return str(tokens)


def he_first(path: str | Path, table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a neuron table with "he" as candidate 1 and "she" as candidate 2, whichever was which.

    A table without columns of candidates is taken to be so already, as 2020's published probabilities are.

    Raises:
        InputError: other candidates: every label of the analysis would be untrue.
    """
    if "candidate1" not in table:
        return table
    table, names = table.copy(), BASE_COLUMNS[4:6]
    for printed in table[names].drop_duplicates().itertuples(index=False):
        words = tuple(map(candidate_word, printed))
        if set(words) != {"he", "she"}:
            raise InputError(f"{path}: the candidates are {words[0]!r} and {words[1]!r}, the analysis "
                             "is of 'he' and 'she': run these, or take your own candidates to mediate.py")
        if words == ("she", "he"):
            rows = (table[names] == list(printed)).all(axis=1)
            for first in [name for name in table if name.startswith("candidate1_")]:
                second = first.replace("candidate1", "candidate2")
                one, other = table[first], table[second]
                table[first], table[second] = one.mask(rows, other), other.mask(rows, one)
            if "log_odds" in table:
                table["log_odds"] = table["log_odds"].mask(rows, -table["log_odds"])
    return table.drop(columns=names)


def read_probabilities(folder: str | Path, model: str) -> pd.DataFrame:
    """Probabilities without intervention, a row per prompt: word, template and the PROBABILITIES, "he" first.

    Log odds alone are not enough here: the paper leaves out prompts whose candidates are improbable.

    Args:
        folder: a results folder (all tables of the model are united), or one CSV that has these columns.

    Raises:
        InputError: what `find_tables` and `read_table` raise, or tables that contradict each other.
    """
    columns = ["base_string", *PROBABILITIES]
    paths = [Path(folder)] if Path(folder).is_file() else list(find_tables(folder, model))
    named = {path: [name for name in BASE_COLUMNS[4:6] if name in table_columns(path)] for path in paths}
    rows = pd.concat([he_first(path, chunk.drop_duplicates()) for path in paths
                      for chunk in read_table(path, [*columns, *named[path]])]).drop_duplicates()
    if rows.empty:
        raise InputError(f"{folder}: the tables have no rows: write them again with "
                         "run_profession_neuron_experiments.py")
    spread = rows.groupby("base_string")[PROBABILITIES].agg(["min", "max"])
    factor = 1 + TOLERANCE[_in_half_precision(paths[0].parent, model)]
    for column in PROBABILITIES:
        prompts = spread.index[spread[column, "max"] > spread[column, "min"] * factor]
        if len(prompts):
            raise InputError(f"{folder}: tables disagree on {column} of {prompts[0]!r}: they come from "
                             "different models or settings, keep them in separate folders")
    rows = rows.drop_duplicates("base_string").reset_index(drop=True)
    rows[["template", "word"]] = [split_base_string(base_string) for base_string in rows["base_string"]]
    rows["word"] = rows["word"].str.replace(" ", "_")  # as the ratings write words of several parts
    return rows


def _in_half_precision(folder, model):
    """True when the folder's manifest says that a model's tables were made in half precision; a manifest of
    other software says nothing."""
    settings = [run["settings"] for run in runs_in(folder)]
    return any(made.get("model") == model and made.get("dtype") in HALF_PRECISION for made in settings)


def read_pieces(path: str | Path, kind: str) -> Iterator[Piece]:
    """Pieces of the tidy table from a table of interventions on every neuron, word by word.

    `kind`: the intervention type, which the file's name tells (`find_tables`). Units are sorted by layer and
    neuron; log odds are of he over she.

    Raises:
        InputError: what `read_table` raises, or words that do not have the same neurons once each.
    """
    header = table_columns(path)
    intervened = ["log_odds"] if "log_odds" in header else ["candidate1_prob", "candidate2_prob"]
    method = [name for name in ("method",) if name in header]  # where not all neurons were run
    parts: dict[str, list[pd.DataFrame]] = {}  # rows of each word; one template fits into memory
    first: dict[str, dict[str, Any]] = {}
    alternative = ALTERNATIVES.get(kind.partition("_")[0]) if kind.endswith("direct") else None
    of_alternative = [f"candidate{number}_{alternative}_prob" for number in (1, 2)] if alternative else []
    columns = [*BASE_COLUMNS[:8], *of_alternative, *intervened, "layer", "neuron", *method]
    for chunk in read_table(path, columns, NEURON_COLUMNS):
        chunk = he_first(path, chunk)
        if "log_odds" not in chunk:
            chunk["log_odds"] = log_odds(chunk["candidate1_prob"], chunk["candidate2_prob"])
        for word, rows in chunk.groupby("word", sort=False, observed=True):
            first.setdefault(str(word), rows.iloc[0].to_dict())
            parts.setdefault(str(word), []).append(rows[["layer", "neuron", "log_odds", *method]])
    units = None
    for word in list(parts):
        rows = pd.concat(parts.pop(word)) if len(parts[word]) > 1 else parts.pop(word)[0]
        own = rows[["layer", "neuron"]].to_numpy(int)
        order = np.lexsort((own[:, 1], own[:, 0]))
        own = own[order]
        units = own if units is None else units
        repeated = (np.diff(own, axis=0) == 0).all(axis=1).any()
        if own.shape != units.shape or (own != units).any() or repeated:
            raise InputError(f"{path}: {word!r} does not have the same neurons as the other words, once "
                             "each: the table is incomplete, write it again")
        base = log_odds(first[word]["candidate1_base_prob"], first[word]["candidate2_base_prob"])
        of_prompt = [first[word][name] for name in of_alternative]
        yield Piece(comparison_name(first[word], kind), word, "neurons", "slot", kind,
                    units[:, 0], units[:, 1], float(base), rows["log_odds"].to_numpy(float)[order],
                    template=template_of(first[word]["base_string"]),
                    method=rows["method"].to_numpy(object)[order] if method else "exact",
                    log_odds_alternative=float(log_odds(*of_prompt)) if of_prompt else None)


def comparison_name(row: Mapping[str, Any], kind: str) -> str:
    """Null prompt and the alternatives of an intervention type, of a row of a neuron table."""
    alternatives = [row[f"alt_string{number}"] for number, gender in ((1, "man"), (2, "woman"))
                    if gender in kind.split("_")]
    return " | ".join(map(str, [row["base_string"], *alternatives]))


def template_of(base_string: str) -> str:
    """The study's template that a prompt is made from; "" for another."""
    try:
        return split_base_string(base_string)[0]
    except InputError:
        return ""


def pieces_in(folder: str | Path, model: str, types: Sequence[str] = INTERVENTIONS) -> Iterator[Piece]:
    """Pieces of all tables of a model in a folder, one table in memory at a time.

    Raises:
        InputError: what `find_tables` and `read_pieces` raise.
    """
    for path, kind in find_tables(folder, model, types).items():
        yield from read_pieces(path, kind)


def read_effects(path: str | Path, columns: Sequence[str] = EFFECT_COLUMNS) -> pd.DataFrame:
    """A table written by an analysis script, such as `{M}_neuron_effects.csv`, with the named columns or
    more.

    Raises:
        InputError: a file that is not a CSV, a missing column, no rows, or a mean that is not a number.
    """
    remedy = ("write the table again with compute_and_save_neuron_agg_effect.py and "
              "compute_neuron_effect_per_layer.py")
    try:
        table = pd.read_csv(path)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError, OSError) as error:
        message = f"{path} cannot be read as a CSV ({str(error).splitlines()[0]}): {remedy}"
        raise InputError(message) from error
    for column in columns:
        if column not in table:
            raise InputError(f"{path}: column {column!r} is missing: {remedy}")
        numbers = pd.to_numeric(table[column], errors="coerce")
        if table.empty or (column.endswith("mean") and not np.isfinite(numbers).all()):
            raise InputError(f"{path}: column {column!r} holds what is not a number: {remedy}")
    return table

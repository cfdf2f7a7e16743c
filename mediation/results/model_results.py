"""What several models say of the same examples, read from the files of every study."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mediation.effects.estimands import RatedWord, prompt_effects
from mediation.effects.model_comparison import Measured, UnitMap
from mediation.errors import InputError
from mediation.files.storage import RunFolder
from mediation.results import mediation_tables
from mediation.results.attention_results import STRINGS, example_key, pieces_of, read_results
from mediation.results.neuron_tables import models_in, read_effects, read_probabilities
from mediation.results.tidy import Piece

ATTENTION_FILE = re.compile(r"attention_intervention_(?:(?:bergsma|bls)_)?(.+)_(?:un)?filtered(?:_dev|_test)?"
                            r"(?:_([1-6]))?")
TOTALS = "total_effects_"
ATTENTION, PROFESSIONS, OWN = "pronouns", "professions", "stimuli of one's own"


def measured_in(path: str | Path, rated: Mapping[str, RatedWord]) -> list[Measured]:
    """All that a file, or a folder of any study, says of its models; raises what `sources_in` does, or what
    the readers of the formats raise."""
    return [source.measured(rated) for source in sources_in(path)]


@dataclass(frozen=True)
class Source:
    """Where one model's results of one study are. `path`: the JSON, the table of total effects, or the folder
    of the neuron study; `model`: as the file names say."""

    kind: str
    path: Path
    model: str

    def measured(self, rated: Mapping[str, RatedWord], most_rows: int | None = None) -> Measured:
        """What it says of the model; tables of own mediators with more than `most_rows` are left out."""
        if self.kind == PROFESSIONS:
            prompts, _ = prompt_effects(read_probabilities(self.path, self.model), rated)
            return of_professions(self.path, self.model, prompts)
        return of_own_question(self.path, most_rows) if self.kind == OWN else of_attention(self.path)


def sources_in(path: str | Path) -> list[Source]:
    """Every model's results in a file, or in a folder of any study.

    Raises:
        InputError: nothing that can be read.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix == ".json":
            return [_attention(path)]
        if path.suffix == ".csv" and path.name.startswith(TOTALS):
            return [_own_question(path)]
        raise InputError(f"{path} is no file of results: name a JSON of the attention study, a "
                         f"{TOTALS}*.csv of mediate.py, or a folder")
    if not path.is_dir():
        raise InputError(f"{path} is not there: name a folder or a file of results")
    # where the scripts put them below their -out_dir; of the neuron study the newest folder
    folders = [*sorted(path.glob("results/[0-9]*_neuron_intervention"))[-1:], path,
               *(each for name in ("winobias_data", "winogender_data", "random")
                 if (each := path / name).is_dir())]
    found = [source for folder in folders for source in _in_folder(folder)]
    if not found:
        raise InputError(f"{path} holds no results: no attention_intervention_*.json, no {TOTALS}*.csv and "
                         "no tables of run_profession_neuron_experiments.py: run a study first, or name "
                         "another folder")
    return found


def _in_folder(folder: Path) -> Iterator[Source]:
    yield from map(_attention, sorted(folder.glob("attention_intervention_*.json")))
    yield from map(_own_question, sorted(folder.glob(f"{TOTALS}*.csv")))
    yield from (Source(PROFESSIONS, folder, model) for model in models_in(folder))


def _attention(path):
    named = ATTENTION_FILE.fullmatch(path.stem)
    return Source(ATTENTION, path, "" if not named else named[1] + (f" ({named[2]})" if named[2] else ""))


def _own_question(path):
    return Source(OWN, path, path.stem.removeprefix(TOTALS))


def of_attention(path: Path) -> Measured:
    """Of a JSON of the attention study. Its model is that of its name, where `_random` stands, too."""
    content = read_results(path)
    results = content["results"]
    model = _attention(path).model or content["model_version"]
    data = f"Winogender {content['stat']}" if "stat" in content else f"WinoBias {content.get('split', 'dev')}"
    examples = [" | ".join(example_key(*(entry[name] for name in STRINGS))) for entry in results]
    pieces = list(pieces_of(results, content.get("method", "exact")))
    clusters = [piece.cluster for piece in pieces if (piece.mediator, piece.kind) == ("heads", "indirect")]
    # a number is of this file, and another example's in the next
    clusters = [example if cluster.isdigit() else cluster for cluster, example in zip(clusters, examples)]
    whole = {kind: np.array([entry[f"{kind}_effect_model"] for entry in results], float)
             for kind in ("indirect", "direct")}
    return Measured(f"{data}, {'filtered' if content['do_filter'] else 'unfiltered'}", model, examples,
                    {"clusters": clusters}, [""] * len(results),
                    np.log1p([float(entry["total_effect"]) for entry in results]),
                    np.log1p(whole["indirect"]), np.log1p(whole["direct"]), _maps(pieces))


def of_professions(folder: Path, model: str, table: pd.DataFrame) -> Measured:
    """Of the neuron study's tables: total effects toward the gender that the stereotype does not expect,
    definitional and neutral words left out; improbable candidates count, for other models' may be others.

    `table`: of `effects.estimands.prompt_effects`.
    """
    table = table[~table["definitional"] & (table["bias"] != 0)]
    if table.empty:
        raise InputError(f"{folder}: model {model!r} has no profession with a stereotype: run more "
                         "professions")
    female = (table["bias"] < 0).to_numpy()
    path = folder / f"{model}_neuron_effects.csv"
    maps = {}
    if path.exists():
        effects = read_effects(path)
        layer, unit = (effects[f"{name}_direct_mean"].astype(int) for name in ("layer", "neuron"))
        units = pd.DataFrame({"layer": layer, "unit": unit})
        means = np.log(effects["odds_ratio_indirect_mean"].to_numpy(float))
        order = np.lexsort((unit, layer))
        maps = {"neurons, indirect": UnitMap(means[None, order], units.iloc[order].reset_index(drop=True))}
    total = np.where(female, table["log_he_effect"], table["log_she_effect"])
    return Measured(PROFESSIONS, model, list(table["base_string"]),
                    {"professions": list(table["word"]), "templates": list(table["template"])},
                    ["female-biased" if each else "male-biased" for each in female], total, maps=maps)


def of_own_question(path: Path, most_rows: int | None = None) -> Measured:
    """Of a table of total effects of `mediate.py`, and of the mediators' tables that its manifest names,
    those with more than `most_rows` left out."""
    columns = ["id", "group", "alternative", "base_string", "alt_string", "candidate1", "candidate2",
               "total_effect"]
    table = mediation_tables.read_table(path)
    missing = [name for name in columns if name not in table]
    if missing or table.empty or not (pd.to_numeric(table["total_effect"], errors="coerce") > -1).all():
        what = f"column {missing[0]!r} is missing" if missing else "total effects are no odds ratios minus 1"
        raise InputError(f"{path}: {what}: {mediation_tables.REMEDY}")
    model = path.stem.removeprefix(TOTALS)
    examples = [" | ".join(row) for row in table[columns[:-1]].astype(str).to_numpy().tolist()]
    ids = [f"{stimulus} | {alternative}" for stimulus, alternative in zip(table["id"], table["alternative"])]
    pieces = [piece for mediator, of_mediator in mediators_of(path.parent, model, most_rows).items()
              for piece in mediation_tables.read_pieces(of_mediator, mediator)]
    of_model = {kind: {piece.comparison: float(piece.log_odds[-1] - piece.log_odds_base) for piece in pieces
                       if (piece.mediator, piece.kind) == ("layers", kind) and piece.layer[-1] == "all"}
                for kind in ("indirect", "direct")}
    indirect, direct = (np.array([of_kind.get(each, np.nan) for each in ids]) if of_kind else None
                        for of_kind in of_model.values())
    clusters = table["cluster" if "cluster" in table else "id"].astype(str)
    return Measured(OWN, model, examples, {"stimuli": list(clusters)}, list(table["group"].fillna("")),
                    np.log1p(table["total_effect"].to_numpy(float)), indirect, direct, _maps(pieces, ids))


def mediators_of(folder: Path, model: str, most_rows: int | None = None) -> dict[str, Path]:
    """{mediator: its table} that the manifest of a folder names and that are there, up to `most_rows`."""
    found = {}
    for run in RunFolder(folder).read()["runs"]:
        for file, entry in run["files"].items():
            few = most_rows is None or entry.get("rows", 0) <= most_rows
            of_model = "mediator" in entry and Path(file).stem.endswith(f"_{model}")
            if few and of_model and (folder / file).exists():
                found[Path(file).stem.removesuffix(f"_{model}")] = folder / file
    return found


def _maps(pieces: Sequence[Piece], ids: Sequence[str] | None = None) -> dict[str, UnitMap]:
    """{mediator and kind: UnitMap} of indirect effects and ablations; `ids`: of the rows, NaN where a
    mediator lacks one, by default the pieces' own order."""
    kept: dict[str, list[Piece]] = {}
    for piece in pieces:
        if piece.kind != "direct":
            kept.setdefault(f"{piece.mediator}, {piece.kind}", []).append(piece)
    maps = {}
    for name, of_map in kept.items():
        single = of_map[0].layer.astype(object) != "all"
        columns = {"layer": of_map[0].layer[single].astype(int)}
        for column, values in (("unit", of_map[0].unit), ("position", of_map[0].position)):
            if isinstance(values, np.ndarray):
                columns[column] = values[single]
        if len({len(piece.log_odds) for piece in of_map}) > 1:
            continue  # a cell per token, of prompts that are not equally long
        effects = [(piece.log_odds - piece.log_odds_base)[single] for piece in of_map]
        if ids is None:
            values = np.array(effects)
        else:
            by_id = dict(zip((piece.comparison for piece in of_map), effects))
            values = np.array([by_id.get(each, np.full(single.sum(), np.nan)) for each in ids])
        maps[name] = UnitMap(values, pd.DataFrame(columns))
    return maps

"""What a report reads of one model's results, whichever study they are of: what was measured, the summaries
of its units, the texts of its examples, how it was made, what is missing."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mediation.effects.estimands import (
    Correlation,
    Estimand,
    RatedWord,
    bias_correlations,
    prompt_effects,
    total_effects,
)
from mediation.effects.model_comparison import Measured
from mediation.effects.sign_flips import SignFlips
from mediation.effects.stability import Halves
from mediation.effects.unit_summaries import NUMBERS
from mediation.errors import InputError
from mediation.files.storage import FILTER_QUANTILE, python_command
from mediation.results import mediation_tables
from mediation.results.attention_results import (
    ATTENTION_FOLDER,
    STRINGS,
    label_of,
    read_json,
    read_results,
)
from mediation.results.attention_summaries import MEDIATORS, summarise_study
from mediation.results.model_results import ATTENTION, PROFESSIONS, Source, mediators_of, of_professions
from mediation.results.neuron_tables import (
    WHOLE_STUDY,
    find_tables,
    models_in,
    read_effects,
    read_probabilities,
    runs_in,
)
from mediation.results.summaries import ALL, Summary, with_log_odds
from mediation.results.tables import FORMATS, check_columns
from mediation.stimuli.templates import TEMPLATES, template_file_stem

MOST_ROWS = 500_000  # of a table whose single examples a report shows
NO_MANIFEST = ("no manifest: the file does not say with which weights, options and software it was made, nor "
               "how its effects were checked; files of 2020 do not")
PASSED_ON = ("no manifest: these are numbers without sentences, which were passed on; a README.md beside "
             "them may say how they were made and checked")
NO_SUMMARY = "no summary of units: intervals, ranks and p values of {} are missing; {}"


@dataclass(frozen=True)
class StudyResults:
    """One model's results.

    Attributes:
        units: rows of the summaries (columns of `effects.unit_summaries`, and mediator), of all comparisons;
            where there is none, of the means alone.
        texts: null prompt, alternative prompt and the two candidates of each of the measured examples.
        tokens: {mediator: {position: the tokens there}}.
        layers: {mediator: what its layers are called}.
        runs: of the manifest, of this model.
        tests: {kind of effect: of all comparisons}, where they were made just now; halves: {mediator: of its
            first kind of effect}, too.
        attention: where the strongest heads look in single examples, as attention_figures3.py wrote it:
            title, tokens [T], heads {name: weights [2, T] in both contexts}.
        estimands, correlations: the numbers of the neuron study's total effects.
        left_out: sentences on comparisons that do not count, and on what was not run.
        asked_of: options that take a selection of units to the same prompts.
        exchanged: texts of examples whose candidates look exchanged: the null prompt prefers the second, and
            the alternative shifts the odds toward the first.
        missing: sentences on what these files do not have.
    """

    source: Source
    measured: Measured
    units: pd.DataFrame
    texts: list[tuple[str, str, str, str]]
    tokens: Mapping[str, Mapping[str, str]]
    layers: Mapping[str, str]
    runs: list[dict[str, Any]]
    left_out: list[str]
    missing: list[str]
    tests: Mapping[str, SignFlips] = field(default_factory=dict)
    halves: Mapping[str, Halves] = field(default_factory=dict)
    attention: Sequence[Mapping[str, Any]] = ()
    estimands: Sequence[Estimand] = ()
    correlations: Sequence[Correlation] = ()
    asked_of: str = ""
    exchanged: Sequence[tuple[str, str, str, str]] = ()


def read(source: Source, rated: Mapping[str, RatedWord], found: Summary | None = None) -> StudyResults:
    """One model's results.

    Args:
        rated: professions; found: what is known of a question of one's own, whose mediators alone count; by
            default what its files of summaries say.

    Raises:
        InputError: what the readers of the formats refuse.
    """
    if source.kind == PROFESSIONS:
        return _of_professions(source, rated)
    measured = source.measured(rated, MOST_ROWS)
    return _of_attention(source, measured) if source.kind == ATTENTION else _of_own(source, measured, found)


def _of_attention(source, measured):
    content = read_results(source.path)
    study = summarise_study(content["results"])
    units = pd.concat([of_kind.table for of_kind in study.units.values()], ignore_index=True)
    texts = [tuple(entry[name] for name in STRINGS) for entry in content["results"]]
    runs = [run for run in runs_in(source.path.parent) if source.path.name in run["files"]]
    left_out = []
    loaded, kept = content.get("num_examples_loaded"), content["num_examples_analyzed"]
    aligned = content.get("num_examples_aligned", loaded)
    if loaded and content["do_filter"]:
        left_out.append(f"{loaded - aligned:,} of {loaded:,} examples by the filter: their odds ratio is not "
                        f"above 1, the model does not follow the stereotype; {aligned - kept:,} more: the "
                        f"weakest {content.get('filter_quantile', FILTER_QUANTILE):.0%} of the others. Run "
                        "again with `--do-filter False` for all that were loaded")
    first = next((most for run in runs if (most := run["settings"].get("max_examples"))), None)
    if first and first == loaded:
        left_out.insert(0, f"what the data set has beyond its first {first}: `--max_examples {first}`")
    missing = [] if runs else [PASSED_ON if "example" in content["results"][0] else NO_MANIFEST]
    asked_of = (f"--data {'winogender' if 'stat' in content else 'winobias'}"
                + (f" --max_examples {first}" if first else ""))
    tests = {kind: of_kind.tests for kind, of_kind in study.units.items()}
    halves = dict(zip(MEDIATORS, study.units["indirect"].halves))
    return StudyResults(source, measured, units, texts, {}, {}, runs, left_out, missing, tests, halves,
                        _attention(source.path), asked_of=asked_of)


def _attention(path):
    """Beside the data's folder, where attention_figures3.py was run; else nothing."""
    file = path.parent.parent / ATTENTION_FOLDER / f"winobias_{label_of(path)}_attention.json"
    if not file.exists():
        return ()
    looked = read_json(file)
    try:
        for each in looked:
            shapes = {np.shape(weights) for weights in each["heads"].values()}
            if shapes != {(2, len(each["tokens"]))} or not isinstance(each["title"], str):
                raise ValueError("other shapes")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{file} has no attention of heads: write it again with attention_figures3.py, or "
                         "move it away") from error
    return looked


def _of_own(source, measured, found):
    folder, model = source.path.parent, source.model
    units = None if found is None else found.units
    mediators = list(mediators_of(folder, model))
    if units is not None:  # without rows it has no columns either
        mediators = [] if units.empty else list(dict.fromkeys(units["mediator"]))
    maps = {name: of_map for name, of_map in measured.maps.items() if name.split(", ")[0] in mediators}
    measured = replace(measured, maps=maps)
    totals = mediation_tables.read_table(source.path)
    texts = list(zip(*(totals[name].astype(str) for name in
                       ("base_string", "alt_string", "candidate1", "candidate2"))))
    runs = [run for run in runs_in(folder)
            if any(Path(name).stem.endswith(f"_{model}") for name in run["files"])]
    layers: dict[str, str] = {}
    summaries, tokens, missing, left_out = [], {}, [], []
    for mediator in mediators:
        paths = [folder / f"{model}_{mediator}_summary.{format}" for format in FORMATS]
        written = next((path for path in paths if path.exists()), None)
        if units is not None:
            summaries.append(units[units["mediator"] == mediator])
        elif written is None:
            missing.append(NO_SUMMARY.format(mediator, "run mediate.py again, it goes on where it was"))
            continue
        else:
            check_columns(written, ["group", "effect", "layer", *NUMBERS], mediation_tables.REMEDY)
            summaries.append(_read_summary(mediation_tables.read_table(written), mediator))
        means = folder / f"{mediator}_mean_{model}.csv"
        if means.exists():
            table = mediation_tables.read_table(means)
            if "token" in table:
                tokens[mediator] = dict(zip(table["position"].astype(str), table["token"].astype(str)))
    if mediators:
        left_out.append(f"of the mediators only {', '.join(mediators)} were run: `mediate.py --help` lists "
                        "the others, `--mediators` takes them, and what is finished in this folder is kept")
    for run in runs:
        layers |= {entry["mediator"]: entry["layers"] for entry in run["files"].values() if "layers" in entry}
        left_out += [f"{mediator}: {number:,} of {len(totals):,} comparisons left out: {reason}"
                     for mediator, reasons in run.get("left_out", {}).items() if mediator in mediators
                     for reason, number in reasons.items()]
    every = pd.concat(summaries, ignore_index=True) if summaries else pd.DataFrame()
    known = StudyResults(source, measured, every, texts, tokens, layers, runs, list(dict.fromkeys(left_out)),
                         missing or ([] if runs else [NO_MANIFEST]), exchanged=_exchanged(totals, texts))
    if found is None:
        return known
    tests = {kind: of_kind for (group, kind), of_kind in found.tests.items() if group == ALL}
    halves: dict[str, Halves] = {}
    for (group, _, mediator), of_mediator in found.halves.items():
        if group == ALL:
            halves.setdefault(mediator, of_mediator)
    return replace(known, tests=tests, halves=halves)


def _exchanged(totals, texts):
    """See `StudyResults`; none where no example says the opposite, for then all may be meant so."""
    if not {f"candidate{one}_{prompt}_prob" for one in (1, 2) for prompt in ("base", "alt")} <= {*totals}:
        return []
    known = with_log_odds(totals)
    against = ((known["log_odds_base"] > 0) & (known["log_effect"] < 0)).to_numpy()
    return list(compress(texts, against)) if (known["log_effect"] > 0).any() else []


def _of_professions(source, rated):
    folder, model = source.path, source.model
    prompts, _ = prompt_effects(read_probabilities(folder, model), rated)
    measured = of_professions(folder, model, prompts)
    runs = [run for run in runs_in(folder) if run["settings"].get("model") == model]
    path, means = folder / f"{model}_neurons_summary.csv", folder / f"{model}_neuron_effects.csv"
    units, missing = pd.DataFrame(), [] if runs else [NO_MANIFEST]
    compute = f"run `{aggregation(folder, model)}`"
    if path.exists():
        units = _read_summary(read_effects(path, NUMBERS), "neurons")
    elif means.exists():
        units = _of_means(read_effects(means))
        missing += [NO_SUMMARY.format("neurons", compute),
                    "effects of neurons are logarithms of mean odds ratios, which few prompts can drive"]
    else:
        missing.append(f"no effects of neurons: {compute}")
    texts = [(example, "", "he", "she") for example in measured.examples]
    tables, everyone = _swept(runs), set(prompts["word"])
    left_out = [*_words_left_out(runs, prompts), *_not_run(folder, model, runs, tables, len(everyone)),
                *_beside(folder, model)]
    return StudyResults(source, measured, units, texts, {}, {"neurons": "layer (0 = word embedding)"}, runs,
                        left_out, missing,
                        estimands=total_effects(prompts), correlations=bias_correlations(prompts),
                        asked_of=_asked_of(tables, everyone))


def aggregation(folder: Path, model: str) -> str:
    """The command that makes means and summaries of a neuron study's tables."""
    return f"{python_command()} compute_and_save_neuron_agg_effect.py {folder} {model}"


def _swept(runs):
    """{name: (seconds, professions)} of the finished tables of neurons, of the types that the whole study
    has; a later run names those that it kept once more."""
    return {name: (entry["sweep_seconds"], run["settings"]["professions"]) for run in runs
            for name, entry in run["files"].items()
            if "sweep_seconds" in entry and any(f"_{kind}_" in name for kind in WHOLE_STUDY)}


def _asked_of(tables, everyone):
    """Options for the prompts of `_swept` tables; "" for the whole study, and where no run says so.

    `everyone`: words whose total effects are known.
    """
    words = list(dict.fromkeys(word for _, professions in tables.values() for word in professions))
    templates = _templates(tables)
    few = [f"--template_indices {' '.join(map(str, templates))}"] if len(templates) < len(TEMPLATES) else []
    few += [f"--professions {' '.join(words)}"] if set(words) < everyone or few else []
    return " ".join(few) if words else ""


def model_option(name: str) -> str:
    """The option for a model as files name it."""
    return f"-model {name.removesuffix('_random')}{' --randomize' if name.endswith('_random') else ''}"


def _templates(tables):
    """Numbers of the templates in which neurons were run."""
    return [number for number, template in enumerate(TEMPLATES, 1)
            if any(name.startswith(f"{template_file_stem(template)}_") for name in tables)]


def _beside(folder, model) -> Iterator[str]:
    """Other runs of the study in the same -out_dir: a page is of one."""
    others = [other.name for other in sorted(folder.parent.glob("[0-9]*_neuron_intervention"))
              if other.is_dir() and not other.samefile(folder) and model in models_in(other)]
    if others:
        yield (f"other runs of this study beside it, each a folder of its own: {', '.join(others)}; name one "
               "to have its page")


def _words_left_out(runs, prompts) -> Iterator[str]:
    """Professions that were not run, and those that were and do not count."""
    dropped = {word for run in runs for of_template in run.get("dropped_professions", {}).values()
               for word in of_template}
    if dropped:
        yield (f"professions that this model does not read as one token: {len(dropped):,}, such as "
               f"{', '.join(sorted(dropped)[:3])}; `--multi_token all` or `last` takes them")
    words = prompts.drop_duplicates("word")
    definitional, neutral = words["definitional"], ~words["definitional"] & (words["bias"] == 0)
    for chosen, what in ((definitional, "have a gender by definition"), (neutral, "have no stereotype")):
        names = list(words.loc[chosen, "word"])
        if names:
            yield (f"professions that {what}: {len(names)} of {len(words)}, such as {', '.join(names[:3])}; "
                   "they are in the tables, not in the means above")


def _not_run(folder, model, runs, tables, professions):
    """Which of the whole neuron study was not run, how long that takes, and the command for it.

    `tables`: of `_swept`; `professions`: how many.
    """
    every = len(WHOLE_STUDY) * len(TEMPLATES) * professions
    ran = sum(len(words) for _, words in tables.values())
    if not ran:
        there = set(find_tables(folder, model).values()) - {"no_intervention"}
        return [] if there else ["every neuron: only total effects were run"]
    if ran >= every:
        return []
    hours = (every / ran - 1) * sum(seconds for seconds, _ in tables.values()) / 3600
    sizes = sum((folder / name).stat().st_size for name in tables if (folder / name).exists())
    disk = (every / ran - 1) * sizes / 1e9
    asked = model_option(model)
    parquet = any(name.endswith(".parquet") for name in tables)
    asked += " --format parquet" if parquet else ""
    asked += f" --method {runs[-1]['settings']['method']}" if "method" in runs[-1]["settings"] else ""
    here = len(_templates(tables))
    return [f"neurons were run for {ran:,} of {every:,} prompts and types of intervention, in "
            f"{here} of {len(TEMPLATES)} templates"
            + (", so that intervals of neurons are of professions and say nothing of other templates"
               if here == 1 else "") + ": the whole study "
            f"has {len(TEMPLATES)} templates, {len(WHOLE_STUDY)} types and here {professions} professions. "
            f"The others take {hours:.1f} hours at the speed of these runs, and {disk:.1f} GB in a folder of "
            f"their own{'' if parquet else ' (less with `--format parquet`)'}. Stopped, the command goes on: "
            f"`{python_command()} run_profession_neuron_experiments.py {asked} -out_dir all`"]


def _of_means(effects):
    """Rows of a summary from the means alone: files of 2020 say no more."""
    rows = []
    for kind in ("indirect", "direct"):
        odds = effects[f"odds_ratio_{kind}_mean"].to_numpy(float)
        rows.append(pd.DataFrame({
            "mediator": "neurons", "group": "all", "effect": kind,
            "layer": effects["layer_direct_mean"].astype(int),
            "unit": effects["neuron_direct_mean"].astype(int),
            "position": "", "mean": np.log(odds), "effect_mean": odds - 1}))
    units = pd.concat(rows, ignore_index=True)
    unknown = ["low", "high", "effect_low", "effect_high", "share", "share_low", "share_high", "rank_low",
               "rank_high", "in_top", "p", "q"]
    units[unknown] = np.nan
    units["rank"] = units.groupby("effect")["mean"].transform(lambda mean: (-mean.abs()).rank(method="min"))
    return units.assign(family="")


def _read_summary(table, mediator):
    """A summary as read, with every column of its key as text or number."""
    table = table.assign(mediator=mediator)
    for name, empty in (("unit", pd.NA), ("position", "")):
        if name not in table:
            table[name] = empty
    table["position"] = table["position"].fillna("").astype(str)
    table["unit"] = pd.to_numeric(table["unit"], errors="coerce").astype("Int64")
    for name in (name for name in NUMBERS if name != "family"):
        table[name] = pd.to_numeric(table[name], errors="coerce")  # "" where there is none
    return table

"""A whole analysis of stimuli of one's own: what mediate.py does, and `mediation.mediate` in a notebook.

    stimuli -> comparisons -> total effects -> one sweep after the other -> tables -> figures and report

Everything goes through the files of a run folder: finished tables are kept, an interrupted run goes on where
it was.
"""

import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mediation.errors import InputError
from mediation.files.storage import RunFolder, describe_machine, now, write_csv
from mediation.mediators.catalogue import Request, order_of, together
from mediation.model.fast_rows import FastRows
from mediation.model.language_model import LanguageModel
from mediation.options import check_screen_share
from mediation.reports import plots, report
from mediation.reports.html import write_page
from mediation.reports.page import Page, markdown
from mediation.reports.study_page import study_page
from mediation.results import study_results
from mediation.results.mediation_tables import read_table, unit_column, write_effects
from mediation.results.model_results import OWN, Source
from mediation.results.summaries import Summary, summary, with_log_odds, write_units
from mediation.results.tables import check_one_format
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies import own_question
from mediation.studies.attention import masking_suffix
from mediation.studies.comparisons import Comparison, applicable, build_comparisons
from mediation.studies.engine import StudyOptions
from mediation.studies.error_budget import Check, budget, describe_check
from mediation.studies.neurons import describe_interpolation
from mediation.studies.plan import before_running, told
from mediation.studies.results import Account
from mediation.studies.works import Output, Work

SHOWN = 10  # rows of a table that are printed
BYTES_OF_TOTAL = 250  # of a row of total effects


@dataclass(frozen=True)
class AnalysisOptions(StudyOptions):
    """How an analysis is run, and what is told of it.

    `multi_token`: see `Intervention`; `format`: of the tables of every comparison and unit; `stimuli`: the
    file's name, or what else they are called; `command`: that was given.
    """

    multi_token: str | None = None
    format: str = "csv"
    stimuli: str | Path = "stimuli"
    command: str = field(default_factory=lambda: shlex.join(sys.argv))


@dataclass(frozen=True)
class Written:
    """An analysis in its folder. `name`: the model's, as it stands in file names; `common`: the settings that
    all of its runs share; `clusters`: {id of a stimulus: its cluster}."""

    run_folder: RunFolder
    name: str
    common: dict[str, Any]
    options: AnalysisOptions
    clusters: dict[str, str]

    def total_effects(self) -> pd.DataFrame:
        """The table of total effects, with log odds."""
        return with_log_odds(read_table(self.run_folder.folder / f"total_effects_{self.name}.csv"))

    def summary(self, mediators: Mapping[str, report.Mediator]) -> Summary:
        """What the effects of these mediators are worth."""
        tables = {name: (self.run_folder.folder / mediator.file, mediator.place)
                  for name, mediator in mediators.items()}
        return summary(self.total_effects(), tables, self.clusters, self.options.seed)

    def mediators(self) -> dict[str, report.Mediator]:
        """Every mediator of these stimuli that the folder has, in the catalogue's order."""
        return {mediator: report.Mediator(read_table(means), file, entry, run)
                for mediator, (means, file, entry, run) in self._finished().items() if means.exists()}

    def without_means(self) -> dict[str, str]:
        """{mediator: the table of means that is gone} of those that could be reported but for it."""
        return {mediator: means.name
                for mediator, (means, *_) in self._finished().items() if not means.exists()}

    def _finished(self) -> dict[str, tuple[Path, str, dict[str, Any], dict[str, Any]]]:
        """{mediator: (its table of means, its table, the manifest's entry, its run)}, in the catalogue's
        order."""
        finished = {}
        for run in self.run_folder.read()["runs"]:
            if self.common.items() <= run["settings"].items():
                for file, entry in run["files"].items():
                    # what was written before mediators had positions does not say which it is of
                    of_name = file.removesuffix(Path(file).suffix).removesuffix(f"_{self.name}")
                    mediator = entry.get("mediator", of_name)
                    there = (self.run_folder.folder / file).exists()
                    if mediator != "total_effects" and "rows" in entry and there:
                        means = self.run_folder.folder / f"{mediator}_mean_{self.name}.csv"
                        finished[mediator] = means, file, entry, run
        return {mediator: finished[mediator] for mediator in sorted(finished, key=order_of)}


def run(model: LanguageModel, stimuli: Sequence[Stimulus], requests: Sequence[Request], folder: str | Path,
        options: AnalysisOptions) -> Written:
    """Total effects, then the mediators, into tables; what is finished is kept.

    Raises:
        InputError: options that do not go together, stimuli that the model cannot express or that fit no
            mediator, a folder with tables of other settings.
    """
    ready = prepared(model, stimuli, requests, folder, options)
    run_folder, name, common = ready.run_folder, ready.name, ready.common
    before_running(model, works(model, ready, options), folder)
    with run_folder.claimed([ready.totals], common):
        index = run_folder.begin(describe_run(model, [ready.totals], common, {}, options))
        write_totals(model, ready.comparisons, run_folder, index, ready.totals)
    for files, settings in ready.runs:
        with run_folder.claimed(files.values(), settings):
            dropped = {request.name: ready.fitting[request][1] for request in files}
            index = run_folder.begin(describe_run(model, files.values(), settings, dropped, options))
            usable = {request: ready.fitting[request][0] for request in files}
            write_mediators(model, usable, run_folder, index, files, name, options)
    clusters = {stimulus.id: stimulus.depends_on for stimulus in stimuli}
    return Written(run_folder, name, common, options, clusters)


def planned(model: LanguageModel, stimuli: Sequence[Stimulus], requests: Sequence[Request],
            folder: str | Path, options: Any) -> bool:
    """With --plan print what an analysis will cost, and return True; errors as of `run`."""
    if not options.plan:
        return False
    ready = prepared(model, stimuli, requests, folder, AnalysisOptions.of(options))
    return told(model, lambda chosen: works(model, ready, chosen), options, folder)


@dataclass(frozen=True)
class Prepared:
    """An analysis that may begin: nothing stands in its way, nothing is written.

    `fitting`: of each mediator (comparisons, which are left out and why); `totals`: the file of total
    effects; `runs`: (files of the mediators of one sweep, what decides their numbers).
    """

    comparisons: list[Comparison]
    fitting: dict[Request, tuple[list[Comparison], dict[str, list[str]]]]
    name: str
    run_folder: RunFolder
    common: dict[str, Any]
    totals: str
    runs: list[tuple[dict[Request, str], dict[str, Any]]]


def works(model: LanguageModel, ready: Prepared, options: StudyOptions) -> list[Work]:
    """What is still to be done, sweep by sweep."""
    ahead = []
    if not ready.run_folder.is_finished(ready.totals):
        prompts = [prompt for comparison in ready.comparisons for prompt in comparison.intervention.prompts]
        ahead.append(Work([], [Output(len(ready.comparisons), bytes_a_row=BYTES_OF_TOTAL)],
                          sum(len(prompt.tokens) for prompt in prompts)))
    for files, settings in ready.runs:
        run_folder = RunFolder(ready.run_folder.folder)
        run_folder.claim(files.values(), settings)
        todo = [request for request, file in files.items() if not run_folder.is_finished(file)]
        comparisons = {request: ready.fitting[request][0] for request in todo}
        ahead.append(own_question.works(model, comparisons, shards_of(files, ready.name), todo, options,
                                        run_folder))
    return ahead


def shards_of(files: Iterable[Request], name: str) -> str:
    """The table under which one sweep's shards stand."""
    return f"{'_'.join(request.name for request in files)}_{name}"


def prepared(model: LanguageModel, stimuli: Sequence[Stimulus], requests: Sequence[Request],
             folder: str | Path, options: AnalysisOptions) -> Prepared:
    """Comparisons that fit, and the files that may be written; errors as of `run`."""
    check_together(model, requests, options)
    comparisons = build_comparisons(model, options.stimuli, stimuli, options.multi_token)
    fitting = {request: applicable(model, comparisons, request, options.seed) for request in requests}
    print(f"stimuli: {len(stimuli)}, comparisons: {len(comparisons)}; model {model.name}: {model.num_layers} "
          f"layers, {model.num_heads} heads and {model.num_neurons} neurons a layer, on {model.where}")
    report_left_out(fitting, comparisons, options)
    report_mixed_positions(fitting)

    name, run_folder = model.name + masking_suffix(model), RunFolder(folder)
    common = own_question.describe_stimuli(model, stimuli, options)
    totals = f"total_effects_{name}.csv"
    runs = []  # (files of mediators of one sweep, what decides their numbers)
    for of_sweep in together([request for request, (usable, _) in fitting.items() if usable]):
        files = {request: f"{request.name}_{name}.{options.format}" for request in of_sweep}
        runs.append((files, own_question.describe_settings(common, of_sweep, options)))
    claims: list[tuple[Collection[str], dict[str, Any]]] = [([totals], common)]
    for names, settings in [*claims, *((files.values(), own) for files, own in runs)]:
        check_one_format(run_folder.folder, names)
        run_folder.claim(names, settings)  # before anything is computed
    return Prepared(comparisons, fitting, name, run_folder, common, totals, runs)


def check_together(model: LanguageModel, requests: Sequence[Request], options: AnalysisOptions) -> None:
    """Raises InputError for a method that does not go with the model, or runs nothing."""
    if any(request.mediator.screened for request in requests):
        check_screen_share(options, model.num_layers)
    if model.masking and options.method != "exact":
        raise InputError(f"{model.name} is a masked model: its heads are all run, use --method exact")
    architecture = model.parts.architecture
    if options.estimates and not architecture.resumes:
        raise InputError(f"--method {options.method} does not go with this {model.model.config.model_type} "
                         f"model, which {architecture.obstacle}: use --method exact")
    if options.estimates and options.full_passes:
        raise InputError(f"--method {options.method} does not go with full passes, which run everything")


def report_left_out(fitting: Mapping[Request, tuple], comparisons: Sequence[Comparison],
                    options: AnalysisOptions) -> None:
    """Print which comparisons each mediator is not defined for, and why.

    Raises:
        InputError: nothing is left; file and line are named.
    """
    for request, (_, dropped) in fitting.items():
        for reason, names in dropped.items():
            sample = f"{', '.join(dict.fromkeys(names[:5]))}{' ...' if len(names) > 5 else ''}"
            print(f"{request.name}: {len(names)} of {len(comparisons)} comparisons left out: {reason} "
                  f"({sample})")
    if not any(usable for usable, _ in fitting.values()):
        reasons = {reason: names for _, dropped in fitting.values() for reason, names in dropped.items()}
        reason, names = next(iter(reasons.items()))
        asked = ", ".join(request.name for request in fitting)
        raise InputError(f"{options.stimuli}, line {comparisons[0].stimulus.line}: no stimulus of the file "
                         f"fits {asked}: {len(names)} of {len(comparisons)} comparisons, such as "
                         f"{names[0]!r}: {reason}")


def report_mixed_positions(fitting: Mapping[Request, tuple[list[Comparison], Any]]) -> None:
    """Print a note where means over each position mix words."""
    lengths = sorted({len(comparison.intervention.prompts[0].tokens)
                      for request, (usable, _) in fitting.items() if request.positions == "each"
                      for comparison in usable})
    if len(lengths) > 1:
        print(f"note: the prompts have {lengths[0]} to {lengths[-1]} tokens. A position is the number of a "
              "token, so that means over them mix different words: stimuli of one frame, a file each, make "
              "maps that can be read")


def describe_run(model: LanguageModel, files: Iterable[str], settings: dict[str, Any],
                 dropped: dict[str, dict[str, list[str]]], options: AnalysisOptions) -> dict[str, Any]:
    """The entry of the manifest. `dropped`: for each mediator {reason: comparisons that are left out}."""
    left_out = {mediator: {reason: len(names) for reason, names in reasons.items()}
                for mediator, reasons in dropped.items()}
    return {"settings": settings, "files": {file: {} for file in files},
            "stimuli": str(options.stimuli), "left_out": left_out, "command": options.command,
            "machine": describe_machine(model), "started": now(), "finished": None}


def write_totals(model: LanguageModel, comparisons: Sequence[Comparison], run_folder: RunFolder, run: int,
                 file: str) -> None:
    """The table without interventions, unless it is finished."""
    if not run_folder.is_finished(file):
        rows = own_question.write_total_effects(run_folder.folder / file, model, comparisons)
        run_folder.finish_file(run, file, rows=rows)
    run_folder.update(run, finished=now())


def write_mediators(
    model: LanguageModel, comparisons: Mapping[Request, list[Comparison]], run_folder: RunFolder, run: int,
    files: Mapping[Request, str], name: str, options: AnalysisOptions,
) -> None:
    """Sweep, tables and means of the mediators of one sweep, unless they are there.

    Args:
        comparisons, files: those that fit a mediator, and its table.
    """
    units = ", ".join(request.name for request in files)
    shards = shards_of(files, name)
    for request, file in files.items():
        fitting = comparisons[request]
        means = run_folder.folder / f"{request.name}_mean_{name}.csv"
        if run_folder.is_finished(file) and means.exists():
            print(f"kept: {run_folder.folder / file} is finished")
            continue
        account, groups = Account(), [comparison.stimulus.group for comparison in fitting]
        effects = own_question.rows(model, fitting, request, shards, options, run_folder, account)
        one_place = request.positions if request.positions in ("slot", "last") else ""
        rows, table = write_effects(run_folder.folder / file, effects, groups, one_place)
        write_csv(means, table)
        run_folder.finish_file(run, file, **account.entry(rows), mediator=request.name,
                               positions=request.positions, values=request.values,
                               layers=request.mediator.layers)
    entry = run_folder.entry_of(next(iter(files.values())))  # the others come from the same sweep
    fast = FastRows(**entry["fast"]) if "fast" in entry else None
    run_folder.update(run, finished=now(), error_budget=budget(options).describe(),
                      **({"fast": asdict(fast)} if fast else {}))
    if fast:
        print(fast)
    for kind, counts in entry.get("interpolation", {}).items():
        print(describe_interpolation(kind, counts, "word"))
    checked = Check.from_entry(entry)
    method = run_folder.read()["runs"][run]["settings"]["method"]
    if method == "gradient":
        print(f"{units}: estimates compared with {checked.random + checked.likely} full passes: "
              f"log-probabilities differ by at most {checked.deviation:.1e}")
    else:
        what = units if method == "exact" else f"{units} among those run"
        print(describe_check(checked, options, what))


def figures_of(name: str, mediator: report.Mediator, found: Summary) -> plots.MediatorFigures:
    """What the figures of one mediator are drawn from."""
    return plots.MediatorFigures(name, found.units[found.units["mediator"] == name],
                                 unit_column(mediator.means), mediator.tokens,
                                 mediator.entry.get("layers", "layer"))


def write_report(written: Written) -> tuple[str, Path]:
    """Summaries of units, figures of the means, and a report on all mediators of these stimuli in the folder,
    as text and as a page for a browser: (text, path of the page)."""
    of_mediators, folder = written.mediators(), written.run_folder.folder
    found = written.summary(of_mediators)
    summaries = {mediator: folder / f"{written.name}_{mediator}_summary.{written.options.format}"
                 for mediator in of_mediators}
    for mediator, path in summaries.items():
        write_units(path, found.units[found.units["mediator"] == mediator])
    figures = [path for mediator, of_mediator in of_mediators.items()
               for path in plots.mediator(figures_of(mediator, of_mediator, found), written.name, folder)]
    page = page_of(written, found, [*figures, *summaries.values()])
    _, path = write_page(page, folder / f"report_{written.name}.html")
    return markdown(page, SHOWN), path


def page_of(written: Written, found: Summary, files: Sequence[Path] = ()) -> Page:
    """The report on what was found; `files`: figures and tables to name."""
    source = Source(OWN, written.run_folder.folder / f"total_effects_{written.name}.csv", written.name)
    known = study_results.read(source, {}, found)
    gone = [f"not reported: {name}: its table of means {file} is not there: run this mediator again"
            for name, file in written.without_means().items()]
    known = replace(known, missing=[*known.missing, *gone])
    return study_page([known], seed=written.options.seed, files=files)

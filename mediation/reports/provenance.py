"""The parts of a page that are of how results came about: how sure they are, what was left out, how they were
made and are made again."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mediation.files.storage import python_command
from mediation.reports.page import Bullets, Code, Part, Table, Text, text
from mediation.reports.report import FULL_PASSES, describe_screening, how_stable, in_words, recall
from mediation.results.mediation_tables import screening_of
from mediation.results.model_results import PROFESSIONS
from mediation.results.study_results import StudyResults, aggregation


def how_sure(found: Sequence[StudyResults]) -> Iterator[Part]:
    """Checks, error budget, screening, families of tests, stability; what intervals and p say."""
    lines: list[str] = []
    several = len({each.measured.study for each in found}) > 1
    for each in found:
        model = each.measured.model + (f", {each.measured.study}" if several else "")
        for run in each.runs:
            lines += [f"{model}, {sentence}" for sentence in _checked(run)]
            if "error_budget" in run:
                lines.append(f"{model}: error budget of the run, in log-probabilities: "
                             + ", ".join(f"{name} {value:.1e}" for name, value in run["error_budget"].items())
                             + ".")
            if "screening" in run:
                lines.append(f"{model}: {recall(run['screening'])}")
        for kind, of_kind in each.tests.items():
            lines.append(f"{model}, {in_words(kind)} effects: {of_kind.describe()}.")
        if not each.tests and not each.units.empty:
            of_all = each.units.loc[each.units["group"] == "all", "family"]
            families = "; ".join(family for family in dict.fromkeys(of_all) if family)
            lines += [f"{model}: units were tested in families: {families}."] if families else []
        for mediator, halves in each.halves.items():
            lines += [f"{model}, {mediator}: {sentence}" for sentence in how_stable(halves)]
    lines += ["Intervals are percentiles of 2,000 bootstrap draws of clusters: of professions and "
              "templates, of the occupations that a context names, or of stimuli (or what their field "
              "`cluster` names). They say what other stimuli of this kind would give, not what another "
              "model would.",
              "p is family-wise: with .05, 95% of such studies call no unit wrongly (sign flips of cluster "
              "means, step-down maximum statistic, which takes them for symmetric around 0 where there is no "
              "effect; a unit that changes nothing in any example is not tested); q is a false discovery "
              "rate (Benjamini-Hochberg). They ask whether a unit has any effect; a small p does not say "
              "that the effect is large: read the interval."]
    yield Bullets(list(dict.fromkeys(lines)))


def _checked(run):
    """What was compared with full passes in one run, a sentence per mediator."""
    entries: dict[str, list[dict[str, Any]]] = {}
    for name, entry in run["files"].items():
        # the studies of 2020 have one mediator each, and do not name it
        usual = "heads" if name.startswith("attention_intervention") else "neurons"
        entries.setdefault(entry.get("mediator", usual), []).append(entry)
    for mediator, of_mediator in entries.items():
        if not any("sweep_seconds" in entry for entry in of_mediator):
            continue
        if run["settings"].get("full_passes"):
            yield f"{mediator}: {FULL_PASSES[0].lower()}{FULL_PASSES[1:]}"
        elif not any("largest_deviation_from_full_passes" in one for one in of_mediator):
            yield f"{mediator}: no intervention can reach the output, there is nothing to check."
        else:
            deviation = max(one.get("largest_deviation_from_full_passes", 0) for one in of_mediator)
            checked = sum(one.get(f"checked_{how}", 0) for one in of_mediator
                          for how in ("at_random", "where_likely"))
            estimates = run["settings"].get("method") == "gradient"
            what = "first-order estimates" if estimates else "interventions"
            accepted = run.get("error_budget", {}).get("total")
            verdict = (": estimates are not bounded by the error budget, single ones can be far off; run the "
                       "units that matter (`--method screen` runs the strongest)" if estimates else
                       "" if accepted is None else
                       f", {'within' if deviation <= accepted else 'ABOVE'} the error budget of "
                       f"{accepted:.1e}")
            yield (f"{mediator}: {checked:,} {what} were compared with full passes under plain hooks; the "
                   f"largest difference was {deviation:.1e} in a log-probability{verdict}.")
        for one in of_mediator:
            screening = screening_of(one, run["settings"].get("screen_top")) if "mediator" in one else None
            if screening:
                yield describe_screening(screening, [one["screen"]]).replace("\n", ". ") + "."


def left_out(found: Sequence[StudyResults]) -> Iterator[Part]:
    """What does not count, was not run, or is not in the files."""
    lines = []
    for each in found:
        name = f"{each.measured.model}, {each.measured.study}"
        lines += [f"{name}: {line}." for line in [*each.left_out, *each.missing]]
    yield Bullets(lines or ["Nothing: every example counts, and every file is there."])


def provenance(found: Sequence[StudyResults], files: Sequence[Path], again: str | None) -> Iterator[Part]:
    """Runs, and the commands that make all of it again.

    Args:
        files: figures and tables to name; again: the command of the page, where none of these makes it.
    """
    rows, commands = [], []
    for each in found:
        for run in each.runs:
            settings: dict[str, Any] = run["settings"]
            machine = ", ".join(f"{name} {value}" for name, value in run.get("machine", {}).items())
            row = [text(each.measured.model), text(settings.get("weights_sha256", "")[:12]),
                   text(settings.get("method", "exact")), text(settings.get("precision", "exact")),
                   text(settings.get("dtype", "")),
                   text("-" if settings.get("seed") is None else settings["seed"]),
                   text(settings.get("multi_token") or "left out"),
                   text(run.get("finished", "not finished")), text(machine)]
            if row not in rows:
                rows.append(row)
            if "command" in run:
                commands.append(run["command"])
    if rows:
        yield Table("Runs", ["model", "weights (SHA-256)", "method", "precision", "numbers", "seed",
                             "words of several tokens", "finished", "machine"], rows)
    if commands or again:
        python = python_command()
        commands = [f"{python} {command}" if ".py" in command.split()[0] else command for command in commands]
        commands += [aggregation(each.source.path, each.measured.model) for each in found
                     if each.source.kind == PROFESSIONS and not each.units.empty]
        yield Text("Commands; what is finished is kept, and a run that was stopped goes on:")
        commands += [again] if again else []
        yield Code("\n".join(dict.fromkeys(commands)))
    yield Bullets([*(f"read from `{each.source.path}`" for each in found),
                   *([f"figures and tables: {', '.join(path.name for path in files)}"] if files else [])])

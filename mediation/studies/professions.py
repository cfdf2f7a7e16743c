"""The profession study: templates x professions x intervention types, one table per template and type."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mediation.effects.screening import Screening
from mediation.files.storage import RunFolder
from mediation.model.language_model import LanguageModel
from mediation.results.neuron_tables import base_columns
from mediation.results.tables import table_writer
from mediation.stimuli.interventions import Intervention
from mediation.studies import engine
from mediation.studies.engine import StudyOptions
from mediation.studies.error_budget import NOTHING_CHECKED
from mediation.studies.estimated_trees import Gradients
from mediation.studies.neurons import NeuronResults, NeuronSweep, plan
from mediation.studies.results import Account, Swept
from mediation.studies.works import Output, Work


class ProfessionStudy:
    """The sweeps of one run.

    Args:
        interventions: {template: {word: Intervention}}.
        open_files: {file: {"template", "intervention_type"}} that are computed together, finished ones of
            this run among them: the same trees of prompts whenever the run was stopped.
    """

    def __init__(self, model: LanguageModel, run_folder: RunFolder,
                 interventions: dict[str, dict[str, Intervention]], open_files: dict[str, dict],
                 options: StudyOptions) -> None:
        self.model, self.run_folder, self.interventions, self.options = (
            model, run_folder, interventions, options)
        self.names: dict[str, dict[str, str]] = {}  # {intervention type: {template: file}}
        for name, entry in open_files.items():
            self.names.setdefault(entry["intervention_type"], {})[entry["template"]] = name
        self.gradients = None
        if options.estimates:
            templates = dict.fromkeys(template for names in self.names.values() for template in names)
            stimuli = [interventions[template][word] for template, word in self.prompts(templates)]
            self.gradients = Gradients(stimuli, f"gradients_{model.name}", len(self.names))

    def interventions_of(self, kinds: Iterable[str]) -> int:
        """How many interventions the sweeps of these types are."""
        units = (self.model.num_layers + 1) * self.model.num_neurons
        return units * sum(len(self.prompts(self.names[kind])) for kind in kinds)

    def prompts(self, templates: Iterable[str]) -> list[tuple[str, str]]:
        """(template, word) of all prompts, word by word: a word's templates are one tree."""
        templates = list(templates)
        words = dict.fromkeys(word for template in templates for word in self.interventions[template])
        return [(template, word) for word in words for template in templates
                if word in self.interventions[template]]

    def planned(self, kind: str) -> tuple[NeuronSweep, list[tuple[str, str]]]:
        """The tasks of one intervention type, and its prompts in their order."""
        prompts = self.prompts(self.names[kind])
        stimuli = [self.interventions[template][word] for template, word in prompts]
        return plan(self.model, stimuli, kind, self.options, f"{kind}_{self.model.name}",
                    labels=[word for _, word in prompts], gradients=self.gradients), prompts

    def works(self, todo: Collection[str]) -> list[Work]:
        """What is still to be done for the tables in `todo`, one intervention type after the other."""
        gradients = self.gradients.tasks if self.gradients else []
        works = [Work.ahead(gradients, self.run_folder, of_all=True)] if gradients else []
        for kind, names in self.names.items():
            templates = [template for template, name in names.items() if name in todo]
            if templates:
                stages = self.planned(kind)[0].stages[bool(gradients):]
                works.append(Work.ahead([task for stage in stages for task in stage], self.run_folder,
                                        [self.output(template) for template in templates]))
        return works

    def output(self, template: str) -> Output:
        """One template's table of one intervention type."""
        word, stimulus = next(iter(self.interventions[template].items()))

        def write(path: Path) -> int:
            units = (self.model.num_layers + 1) * self.model.num_neurons
            made = -10 - np.random.default_rng(0).random((units, 2))
            exact = np.zeros(units, bool) if self.options.estimates else None
            swept = Swept(made, np.full((3, 2), -4.5), exact, 0.0, NOTHING_CHECKED, None, ())
            with table_writer(path) as append:
                return append(self.columns(word, stimulus, swept))

        units = (self.model.num_layers + 1) * self.model.num_neurons
        return Output(units * len(self.interventions[template]), write)

    def sweep(self, kind: str, progress: tqdm) -> tuple[NeuronResults, list[tuple[str, str]]]:
        """The results of one intervention type, and its prompts in their order."""
        sweep, prompts = self.planned(kind)
        shards = engine.run(self.model, sweep.stages, self.run_folder, progress)
        return NeuronResults(sweep, shards, self.options.screen_top), prompts

    def write(self, kind: str, todo: Iterable[str], progress: tqdm) -> Iterator[tuple[str, dict[str, Any]]]:
        """Sweep one type and write those of its tables that are in `todo`; (file, its entry in the manifest)
        each."""
        results, prompts = self.sweep(kind, progress)
        files = {template: name for template, name in self.names[kind].items() if name in todo}
        accounts, rows = {template: Account() for template in files}, {}
        with ExitStack() as stack:  # all tables at once: what a tree of prompts gave is read once
            append = {template: stack.enter_context(table_writer(self.run_folder.folder / name))
                      for template, name in files.items()}
            for index, (template, word) in enumerate(prompts):
                if template in files:
                    swept = results(index)
                    accounts[template].add(swept)
                    columns = self.columns(word, self.interventions[template][word], swept)
                    rows[template] = append[template](columns)
        interpolation = results.interpolation()
        for template, name in files.items():
            accounts[template].interpolation = interpolation
            yield name, accounts[template].entry(rows[template])

    def columns(self, word: str, intervention: Intervention, swept: Swept) -> dict[str, Any]:
        """The rows of one word, as the study's tables have them."""
        one, other = swept.log_probabilities.T
        layer, neuron = (index.ravel() for index in
                         np.indices((self.model.num_layers + 1, self.model.num_neurons)))
        columns = base_columns(word, intervention, np.exp(swept.base).ravel().tolist())
        unknown = np.full(len(one), np.nan)
        columns |= {"candidate1_prob": unknown if self.options.odds_only else np.exp(one),
                    "candidate2_prob": unknown if self.options.odds_only else np.exp(other),
                    "layer": layer, "neuron": neuron}
        if self.options.odds_only:
            columns["log_odds"] = one - other
        if swept.exact is not None:
            columns["method"] = (np.where(swept.exact, "exact", "gradient") if swept.exact.any()
                                 else "gradient")
        return columns

    def forget(self, kind: str) -> None:
        """Remove what was kept on the way to the tables of one intervention type."""
        for table in (f"{kind}_{self.model.name}", f"interpolated_{kind}_{self.model.name}"):
            self.run_folder.remove_shards(table)

    def forget_gradients(self) -> None:
        """Remove the gradients, when no intervention type needs them any more."""
        if self.gradients:
            self.run_folder.remove_shards(self.gradients.table)


def total_effects(words: dict[str, Intervention]) -> Work:
    """The table of one template's probabilities without intervention, for a plan."""
    def write(path: Path) -> int:
        rows = [base_columns(word, stimulus, np.full(6, 1 / 7).tolist()) for word, stimulus in words.items()]
        with table_writer(path) as append:
            return append({column: [row[column] for row in rows] for column in rows[0]})

    passes = sum(len(prompt.tokens) for stimulus in words.values() for prompt in stimulus.prompts)
    return Work([], [Output(len(words), write)], passes)


def screening(files: Sequence[dict[str, Any]], top: int) -> Screening:
    """The Screening of a run from its files' entries in the manifest.

    A unit drawn for a profession and type is run in all templates at once: it is one draw, and missed when
    it is missed in one of them.
    """
    drawn: dict[str, int] = {}
    missed = set()
    for entry in files:
        kind, screen = entry["intervention_type"], entry["screen"]
        drawn[kind] = max(drawn.get(kind, 0), screen["drawn"])
        missed |= {(kind, word, unit) for word, unit in screen["missed"]}
    return Screening(sum(drawn.values()), len(missed), max(entry["screen"]["rest"] for entry in files), top)

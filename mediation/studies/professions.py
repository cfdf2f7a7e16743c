"""The profession study: templates x professions x intervention types, one table per template and type."""

from contextlib import ExitStack

import numpy as np

from mediation.effects.statistics import Screening
from mediation.results.neuron_tables import base_columns
from mediation.results.tables import table_writer
from mediation.studies.engine import run
from mediation.studies.neurons import Gradients, TreeResults, Units, plan
from mediation.studies.results import Account


class ProfessionStudy:
    """The sweeps of one run.

    Args:
        interventions: {template: {word: Intervention}}; open_files: {file: {"template", "intervention_type"}} that are computed together,
            finished ones of this run among them: the same trees whenever it was stopped; options: StudyOptions.
    """

    def __init__(self, model, run_folder, interventions, open_files, options):
        self.model, self.run_folder, self.interventions, self.options = model, run_folder, interventions, options
        self.names = {}  # {intervention type: {template: file}}
        for name, entry in open_files.items():
            self.names.setdefault(entry["intervention_type"], {})[entry["template"]] = name
        self.gradients = None
        if options.estimates:
            templates = {template: None for names in self.names.values() for template in names}
            self.gradients = Gradients([self.interventions[template][word] for template, word in self.prompts(templates)],
                                       f"gradients_{model.name}", len(self.names))

    def prompts(self, templates):
        """(template, word) of all prompts, word by word: a word's templates are one tree."""
        words = dict.fromkeys(word for template in templates for word in self.interventions[template])
        return [(template, word) for word in words for template in templates if word in self.interventions[template]]

    def sweep(self, kind, progress):
        """(TreeResults of one intervention type, its prompts in their order)."""
        prompts, width = self.prompts(self.names[kind]), self.model.num_neurons
        trees = plan(self.model, [self.interventions[template][word] for template, word in prompts], kind,
                     Units(None, (self.model.num_layers + 1) * width), self.options, f"{kind}_{self.model.name}",
                     [word for _, word in prompts], self.gradients)
        return TreeResults(trees, run(self.model, trees.stages, self.run_folder, progress), self.options.screen_top), prompts

    def write(self, kind, todo, progress):
        """Sweep one intervention type and write its tables that are in `todo`; yields (file, what the manifest says of it)."""
        results, prompts = self.sweep(kind, progress)
        names, accounts, rows = self.names[kind], {}, {}
        with ExitStack() as stack:
            tables = {template: stack.enter_context(table_writer(self.run_folder.folder / name)) for template, name in names.items() if name in todo}
            for index, (template, word) in enumerate(prompts):  # all tables at once: what a tree of prompts gave is read once
                if template in tables:
                    swept = results(index)
                    accounts.setdefault(template, Account()).add(swept)
                    rows[template] = tables[template](self.columns(word, self.interventions[template][word], swept))
        interpolation = results.interpolation()
        for template in tables:
            yield names[template], accounts[template].entry(rows[template]) | ({"interpolation": interpolation} if interpolation else {})

    def columns(self, word, intervention, swept):
        """The rows of one word, as the study's tables have them."""
        one, other = swept.log_probabilities.T
        layer, neuron = (index.ravel() for index in np.indices((self.model.num_layers + 1, self.model.num_neurons)))
        columns = base_columns(word, intervention, np.exp(swept.base).ravel().tolist())
        if self.options.odds_only:
            empty = np.full(len(one), np.nan)
            columns |= {"candidate1_prob": empty, "candidate2_prob": empty, "layer": layer, "neuron": neuron, "log_odds": one - other}
        else:
            columns |= {"candidate1_prob": np.exp(one), "candidate2_prob": np.exp(other), "layer": layer, "neuron": neuron}
        if swept.exact is not None:
            columns["method"] = np.where(swept.exact, "exact", "gradient") if swept.exact.any() else "gradient"
        return columns

    def forget(self, kind):
        """Remove what was kept on the way to the tables of one intervention type."""
        for table in (f"{kind}_{self.model.name}", f"interpolated_{kind}_{self.model.name}"):
            self.run_folder.remove_shards(table)

    def forget_gradients(self):
        """Remove the gradients, when no intervention type needs them any more."""
        if self.gradients:
            self.run_folder.remove_shards(self.gradients.table)


def screening(files, top):
    """The Screening of a run from its files' entries in the manifest.

    A unit drawn for a profession and type is run in all templates at once: it is one draw, and missed when it is missed in one of them.
    """
    drawn, missed = {}, set()
    for entry in files:
        kind, found = entry["intervention_type"], entry["screen"]
        drawn[kind] = max(drawn.get(kind, 0), found["drawn"])
        missed |= {(kind, word, unit) for word, unit in found["missed"]}
    return Screening(sum(drawn.values()), len(missed), max(entry["screen"]["rest"] for entry in files), top)

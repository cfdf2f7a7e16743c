"""Neuron sweeps of a study (templates x professions x intervention types): what is computed together, kept, checked and written.

A profession's prompts share everything up to its position, so its templates are one tree of prompts, run once. In the direct effects the
prompt is the same for all professions, so each neuron's few nodes serve all of them (`mediation.interpolation`).
"""

import time

import numpy as np

from experiment import INTERVENTION_TYPES
from mediation.errors import InputError
from mediation.interpolation import Interpolants
from mediation.tables import table_writer
from utils import base_columns

DIRECT = ("man_direct", "woman_direct")
SHARED_FROM = 12  # professions from which on direct effects are interpolated: a neuron needs about six runs
CHECKED = 4  # interventions of a profession and type that are run again under plain hooks
TOLERANCE = 1e-3  # in a log-probability; float32 gives about 1e-5


def sweep_kind(model, run_folder, kind, names, interventions, options, progress):
    """Function (template, word) to what was computed for it, for one intervention type: computed together where work is shared, kept at once.

    Args:
        names: {template: file name}, all of the run's tables of this type; interventions: {template: {word: Intervention}}.

    The function returns {"log_probabilities" [2, L + 1, D], "base" [3, 2] (log-probabilities of the candidates on the null, man's and woman's
    prompt), "seconds", "deviation"}.
    """
    words = {word for template in names for word in interventions[template]}
    shared = kind in DIRECT and len(words) >= SHARED_FROM and not options.full_passes and options.dtype in ("float32", "float64")
    return (InterpolatedWords if shared else WordByWord)(model, run_folder, kind, names, interventions, options, progress)


class WordByWord:
    """Every profession swept in its own prompts, all templates in one tree."""

    def __init__(self, model, run_folder, kind, names, interventions, options, progress):
        self.model, self.run_folder, self.kind, self.names = model, run_folder, kind, names
        self.interventions, self.options, self.progress = interventions, options, progress

    def __call__(self, template, word):
        kept = self.run_folder.load_shard(self.names[template], word)
        if kept is None:
            self.sweep(word)
            return self.run_folder.load_shard(self.names[template], word)
        self.progress.update(kept["log_probabilities"][0].size)
        return kept

    def sweep(self, word):
        """All templates of a profession; always the same tree, so that a run that was stopped gives the same numbers."""
        stimuli = {template: self.interventions[template][word] for template in self.names if word in self.interventions[template]}
        self.progress.set_description(f"{self.kind}, {word}")
        started, options = time.perf_counter(), self.options
        if options.full_passes:
            single = [self.model.neuron_intervention_single_experiment(stimulus, self.kind, alpha=options.alpha, bsize=options.batch_size,
                                                                       progress=self.progress.update) for stimulus in stimuli.values()]
            swept = [np.log([candidate.numpy() for candidate in result[6:]]) for result in single]
        else:
            swept = self.model.neuron_intervention_in_templates(list(stimuli.values()), self.kind, options.alpha, options.batch_size, options.odds_only,
                                                                self.progress.update).movedim(-1, 1).numpy()  # [templates, 2, L + 1, D]
        seconds = (time.perf_counter() - started) / len(stimuli)
        if options.full_passes:
            base = np.log([result[:6] for result in single]).reshape(-1, 3, 2)
        else:
            base = self.model.log_probabilities_in_templates(list(stimuli.values())).numpy()
        for stimulus, of_template, without in zip(stimuli.values(), swept, base):
            check_finite(stimulus, self.kind, of_template, without)
        checked = hash_of(word) % len(stimuli)
        deviation = check(self.model, list(stimuli.values())[checked], self.kind, swept[checked], options)
        for template, of_template, without in zip(stimuli, swept, base):
            self.run_folder.save_shard(self.names[template], word, log_probabilities=of_template, base=without, seconds=seconds, deviation=deviation)

    def forget(self):
        """Remove what was kept on the way."""
        for name in self.names.values():
            self.run_folder.remove_shards(name)


class InterpolatedWords:
    """Direct effects: the alternative prompt's runs as functions of the value put into each neuron, evaluated at each profession's."""

    def __init__(self, model, run_folder, kind, names, interventions, options, progress):
        self.model, self.kind, self.interventions, self.options, self.progress = model, kind, interventions, options, progress
        self.run_folder, self.shared = run_folder, f"shared_{kind}_{model.name}"
        one = [next(iter(interventions[template].values())) for template in names]
        self.columns = {template: number for number, template in enumerate(names)}
        words = {word: stimulus for template in names for word, stimulus in interventions[template].items()}
        self.values = dict(zip(words, model.null_values(words.values())))  # {word: [L + 1, D]}
        started, self.layers = time.perf_counter(), []
        for layer in range(model.num_layers + 1):
            progress.set_description(f"{kind}, layer {layer}, {len(words)} professions at once")
            kept = run_folder.load_shard(self.shared, f"layer_{layer}")
            if kept is None:
                of_layer = np.stack([values[layer] for values in self.values.values()])
                kept = model.direct_interpolants(one, kind, of_layer, layer, options.alpha, options.batch_size, options.odds_only).to_arrays()
                run_folder.save_shard(self.shared, f"layer_{layer}", **kept)
            self.layers.append(Interpolants.from_arrays(kept))
            progress.update(model.num_neurons * sum(len(interventions[template]) for template in names))
        self.seconds = (time.perf_counter() - started) / sum(len(interventions[template]) for template in names)
        self.deviations, self.bases = {}, {}

    def __call__(self, template, word):
        stimulus = self.interventions[template][word]
        column = 2 * self.columns[template]
        swept = np.stack([layer(values)[:, column: column + 2] for layer, values in zip(self.layers, self.values[word])])  # [L + 1, D, 2]
        swept = np.moveaxis(swept, -1, 0)
        base = self.base(word)[self.columns[template]]
        if stimulus.position < len(stimulus.prompts[0].tokens) - 1:
            swept[:, -1] = base[INTERVENTION_TYPES[self.kind][0]][:, None]  # cannot reach the output: exactly no effect, past rounding
        check_finite(stimulus, self.kind, swept, base)
        if word not in self.deviations:
            self.deviations[word] = check(self.model, stimulus, self.kind, swept, self.options)
        return {"log_probabilities": swept, "base": base, "seconds": self.seconds, "deviation": self.deviations[word]}

    def base(self, word):
        """Log-probabilities without intervention in all templates [templates, 3, 2], computed once a word."""
        if word not in self.bases:
            stimuli = [self.interventions[template].get(word) for template in self.columns]
            found = self.model.log_probabilities_in_templates([stimulus for stimulus in stimuli if stimulus]).numpy()
            self.bases[word] = np.full((len(stimuli), *found.shape[1:]), np.nan)
            self.bases[word][[stimulus is not None for stimulus in stimuli]] = found
        return self.bases[word]

    def forget(self):
        """Remove what was kept on the way."""
        self.run_folder.remove_shards(self.shared)


def hash_of(word):
    """A number that a word has on every machine and in every run."""
    return sum(word.encode())


def check_finite(stimulus, kind, log_probabilities, base):
    """Raises InputError when a model gave what is no probability above 0."""
    if not (np.isfinite(log_probabilities).all() and np.isfinite(base).all()):
        raise InputError(f"{stimulus.base_strings[0]!r}, {kind}: the model gave probabilities that are zero or not numbers: "
                         "try --dtype float32 or float64, or check the model's weights")


def check(model, stimulus, kind, log_probabilities, options):
    """Largest deviation of a few random interventions from full passes under plain hooks.

    Raises:
        InputError: it is above TOLERANCE.
    """
    deviation = model.check_against_full_passes(stimulus, kind, log_probabilities, options.alpha, CHECKED, options.seed, options.odds_only)
    if deviation > TOLERANCE and options.dtype in ("float32", "float64"):
        raise InputError(f"{stimulus.base_strings[0]!r}, {kind}: the sweep and full passes differ by {deviation:.1e} in a log-probability: "
                         "use --full_passes, and please report the model")
    return deviation


def write_table(path, results, interventions, odds_only):
    """One table, word by word so that memory does not grow.

    Args:
        results: function of a word to its results; interventions: {word: Intervention}.

    Returns: (rows, sum of seconds, largest deviation).
    """
    rows, seconds, deviation = 0, 0.0, 0.0
    with table_writer(path) as append:
        for word, intervention in interventions.items():
            kept = results(word)
            rows = append({**base_columns(word, intervention, np.exp(kept["base"]).ravel().tolist()), **unit_columns(kept["log_probabilities"], odds_only)})
            seconds, deviation = seconds + float(kept["seconds"]), max(deviation, float(kept["deviation"]))
    return rows, seconds, deviation


def unit_columns(log_probabilities, odds_only):
    """The columns of one word that differ from neuron to neuron, from log-probabilities [2, L + 1, D]."""
    layer, neuron = (index.ravel() for index in np.indices(log_probabilities.shape[1:]))
    one, other = log_probabilities.reshape(2, -1)
    if odds_only:
        empty = np.full(len(one), np.nan)
        return {"candidate1_prob": empty, "candidate2_prob": empty, "layer": layer, "neuron": neuron, "log_odds": one - other}
    return {"candidate1_prob": np.exp(one), "candidate2_prob": np.exp(other), "layer": layer, "neuron": neuron}

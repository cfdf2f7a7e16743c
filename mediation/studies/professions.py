"""Neuron sweeps of a study (templates x professions x intervention types): what is computed together, kept, checked and written.

A profession's prompts share everything up to its position, so its templates are one tree of prompts, run once. In the direct effects the
prompt is the same for all professions, so each neuron's few nodes serve all of them (`mediators.interpolation`). Methods that estimate
(`--method gradient` and `screen`, docs/methods.md) take the gradients of each prompt once for all types.
"""

import time
from dataclasses import asdict, replace
from hashlib import sha256

import numpy as np
import torch

from mediation.effects.statistics import Screening, agreement, misses, screened_units
from mediation.errors import InputError
from mediation.mediators.batches import FastRows, batch
from mediation.mediators.interpolation import Interpolants
from mediation.mediators.neurons import INTERVENTION_TYPES, MAN, NULL, WOMAN
from mediation.model.architectures import has_kinks
from mediation.results.neuron_tables import base_columns
from mediation.results.tables import table_writer
from mediation.stimuli.templates import template_file_stem
from mediation.studies.error_budget import CHECKED, NOTHING_CHECKED, Check, budget, draws, within_budget

DIRECT = ("man_direct", "woman_direct")
SHARED_FROM = 12  # professions from which on direct effects are interpolated: a neuron needs 8 to 12 runs
COMPARED = 64  # estimates of one profession a table that are compared with full passes
WORDS_AT_ONCE = 4  # professions whose gradients are taken together: with 17 templates about 64 prompts of equal shape


def sweep_kind(model, run_folder, kind, names, interventions, options, progress, gradients=None):
    """Function (template, word) to what was computed for it, for one intervention type: computed together where work is shared, kept at once.

    Args:
        names: {template: file name}, all of the run's tables of this type; interventions: {template: {word: Intervention}}.
        gradients: Gradients, for the methods that estimate.

    The function returns {"log_probabilities" [2, L + 1, D], "base" [3, 2] (log-probabilities of the candidates on the null, man's and woman's
    prompt), "seconds", "deviation" and "checked" (of a Check)}, and "fast" (of FastRows) where that precision was asked for; methods that estimate add
    "exact" bool [L + 1, D], and screening "chosen" and "drawn" (units), "rest" (how many
    were not chosen), and "estimates" of those that were drawn (change in log odds).
    """
    if options.method != "exact":
        return (FirstOrder if options.method == "gradient" else Screened)(model, run_folder, kind, names, interventions, options, progress, gradients)
    words = {word for template in names for word in interventions[template]}
    one_token = all(len(places) == 1 for template in names for stimulus in interventions[template].values()
                    for places in stimulus.places)  # an interpolant has one variable
    shared = (kind in DIRECT and len(words) >= SHARED_FROM and one_token and not options.full_passes
              and options.dtype in ("float32", "float64") and not has_kinks(model.model.config))
    return (InterpolatedWords if shared else WordByWord)(model, run_folder, kind, names, interventions, options, progress)


class WordByWord:
    """Every profession swept in its own prompts, all templates in one tree."""

    def __init__(self, model, run_folder, kind, names, interventions, options, progress):
        self.model, self.run_folder, self.kind, self.names = model, run_folder, kind, names
        self.interventions, self.options, self.progress = interventions, options, progress
        self.counted = set()  # words whose progress a sweep has told, for all templates at once

    def __call__(self, template, word):
        kept = self.run_folder.load_shard(self.names[template], word)
        if kept is None:
            self.sweep(word)
            self.counted.add(word)
            return self.run_folder.load_shard(self.names[template], word)
        if word not in self.counted:
            self.progress.update(kept["log_probabilities"][0].size)
        return kept

    def sweep(self, word):
        """All templates of a profession; always the same tree, so that a run that was stopped gives the same numbers."""
        stimuli = {template: self.interventions[template][word] for template in self.names if word in self.interventions[template]}
        self.progress.set_description(f"{self.kind}, {word}")
        started = time.perf_counter()

        def sweep():
            swept, base = (self.by_full_passes if self.options.full_passes else self.by_descent)(list(stimuli.values()))
            for stimulus, of_template, without in zip(stimuli.values(), swept, base):
                check_finite(stimulus, self.kind, of_template, without)
            return swept, base

        (swept, base), checked = self.within_budget(sweep, list(stimuli.values()))
        self.keep(word, stimuli, checked, started, [{"log_probabilities": of_template, "base": without} for of_template, without in zip(swept, base)])

    def by_descent(self, stimuli):
        """Log-probabilities under every intervention [templates, 2, L + 1, D], and without [templates, 3, 2]."""
        options = self.options
        swept = self.model.neuron_intervention_in_templates(stimuli, self.kind, options.alpha, options.batch_size, options.odds_only, self.progress.update)
        return swept.movedim(-1, 1).numpy(), self.model.log_probabilities_in_templates(stimuli).numpy()

    def by_full_passes(self, stimuli):
        """The same by the slow reference."""
        single = [self.model.neuron_intervention_single_experiment(stimulus, self.kind, alpha=self.options.alpha, bsize=self.options.batch_size,
                                                                   progress=self.progress.update) for stimulus in stimuli]
        swept = [np.log([candidate.numpy() for candidate in result[6:]]) for result in single]
        return swept, np.log([result[:6] for result in single]).reshape(-1, 3, 2)

    def within_budget(self, sweep, stimuli, units=None):
        """What `sweep()` gives (log-probabilities of all stimuli first), and the Check of it (of the neurons `units`)."""
        return within_budget(self.model, sweep, lambda result: check_all(self.model, stimuli, self.kind, result[0], self.options, units), self.options,
                             f"{stimuli[0].base_strings[0]!r}, {self.kind}")

    def keep(self, word, stimuli, checked, started, arrays):
        """Keep what one sweep gave for each of its templates; what was done once for all is shared among them, or stands with the first."""
        fast = {"fast": self.model.fast_rows.take().shared(len(stimuli))} if self.model.fast_rows else {}
        seconds = (time.perf_counter() - started) / len(stimuli)
        for index, (template, of_template) in enumerate(zip(stimuli, arrays)):
            of_this = replace(checked, random=0, likely=0) if index else checked
            self.run_folder.save_shard(self.names[template], word, seconds=seconds, **of_this.to_arrays(), **fast, **of_template)

    def forget(self):
        """Remove what was kept on the way."""
        for name in self.names.values():
            self.run_folder.remove_shards(name)


class InterpolatedWords:
    """Direct effects: the alternative prompt's runs as functions of the value put into each neuron, evaluated at each profession's.

    `interpolation`: for the manifest, how many neurons were interpolated, and how many run for every word since that would not have been exact.
    """

    def __init__(self, model, run_folder, kind, names, interventions, options, progress):
        self.model, self.kind, self.interventions, self.options, self.progress = model, kind, interventions, options, progress
        self.run_folder, self.shared = run_folder, f"shared_{kind}_{model.name}"
        one = [next(iter(interventions[template].values())) for template in names]
        self.columns = {template: number for number, template in enumerate(names)}
        words = {word: stimulus for template in names for word, stimulus in interventions[template].items()}
        self.values = dict(zip(words, model.null_values(words.values())))  # {word: [L + 1, D]}
        started, self.layers = time.perf_counter(), []
        # a shard's columns are these templates in this order; another run of the files may have others
        together = f"{hash_of(repr(list(names))):x}"
        for layer in range(model.num_layers + 1):
            progress.set_description(f"{kind}, layer {layer}, {len(words)} professions at once")
            kept = run_folder.load_shard(self.shared, f"layer_{layer}_{together}")
            if kept is None:
                of_layer = np.stack([values[layer] for values in self.values.values()])
                kept = model.direct_interpolants(one, kind, of_layer, layer, options.alpha, options.batch_size, options.odds_only).to_arrays()
                run_folder.save_shard(self.shared, f"layer_{layer}_{together}", **kept)
            self.layers.append(Interpolants.from_arrays(kept))
            progress.update(model.num_neurons * sum(len(interventions[template]) for template in names))
        self.seconds = (time.perf_counter() - started) / sum(len(interventions[template]) for template in names)
        self.number = {word: number for number, word in enumerate(words)}
        run, neurons = sum(len(layer.run) for layer in self.layers), len(self.layers) * model.num_neurons
        self.interpolation = {"interpolated": neurons - run, "run_for_every_word": run,
                              "evaluations_a_neuron": sum(layer.evaluations for layer in self.layers) / neurons,
                              "largest_error": max(layer.error for layer in self.layers)}
        self.bases = {}

    def __call__(self, template, word):
        stimulus = self.interventions[template][word]
        column, number = 2 * self.columns[template], self.number[word]
        swept = np.stack([layer(values, number)[:, column: column + 2] for layer, values in zip(self.layers, self.values[word])])  # [L + 1, D, 2]
        swept = np.moveaxis(swept, -1, 0)
        base = self.base(word)[self.columns[template]]
        if stimulus.position < len(stimulus.prompts[0].tokens) - 1:
            swept[:, -1] = base[INTERVENTION_TYPES[self.kind][0]][:, None]  # cannot reach the output: exactly no effect, past rounding
        check_finite(stimulus, self.kind, swept, base)
        checked = self.check(template, word, swept)
        return {"log_probabilities": swept, "base": base, "seconds": self.seconds, **checked.to_arrays()}

    def check(self, template, word, swept):
        """Check of one word in one template, of those interventions that are drawn there of the word in all its templates.

        Raises:
            InputError: one is off by more than the budget of an exact sweep, which this one always is.
        """
        names = [name for name in self.columns if word in self.interventions[name]]
        stimuli, here = [self.interventions[name][word] for name in names], names.index(template)
        random = drawn_in(stimuli, self.kind, self.options)
        if here not in random:
            return NOTHING_CHECKED
        found = check(self.model, stimuli[here], self.kind, swept, self.options, sample=random[here])
        exact = budget(self.options).total - budget(self.options).fast
        if not found.deviation <= exact:
            raise InputError(f"{stimuli[here].base_strings[0]!r}, {self.kind}: interpolation and full passes differ by {found.deviation:.1e} "
                             f"in a log-probability, more than the accepted {exact:.1e}: use --full_passes with another -out_dir, and please report the model")
        return found

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


class Gradients:
    """Log-probabilities, gradients and values of every prompt of a study, taken once for all types and kept on disk until `forget`.

    Called with a template, a word and a prompt (0 null, 1 man's, 2 woman's) it gives {"log_probabilities" [2], "gradients" [2, P, L + 1, D],
    "values" [P, L + 1, D]}, at the P tokens where a neuron is changed. The alternatives' prompts are the same for all words.
    """

    def __init__(self, model, run_folder, interventions):
        self.model, self.run_folder, self.interventions, self.name = model, run_folder, interventions, f"gradients_{model.name}"
        words = list(dict.fromkeys(word for of_template in interventions.values() for word in of_template))
        self.together = {word: some for some in batch(words, WORDS_AT_ONCE) for word in some}
        self.alternatives = {}

    def __call__(self, template, word, prompt):
        if prompt != NULL:
            if prompt not in self.alternatives:
                found = self.take([next(iter(words.values())) for words in self.interventions.values()], prompt)
                self.alternatives[prompt] = dict(zip(self.interventions, found))
            return self.alternatives[prompt][template]
        key = f"{template_file_stem(template)}-{word}"
        kept = self.run_folder.load_shard(self.name, key)
        if kept is None:  # always the same words together, so that a run that was stopped gives the same numbers
            stimuli = {f"{template_file_stem(of)}-{some}": words[some] for some in self.together[word] for of, words in self.interventions.items()
                       if some in words}
            for name, found in zip(stimuli, self.take(stimuli.values(), NULL)):
                self.run_folder.save_shard(self.name, name, **found)
            kept = self.run_folder.load_shard(self.name, key)
        return kept

    def take(self, stimuli, prompt):
        """What a call gives, for one prompt of many stimuli."""
        names = ("log_probabilities", "gradients", "values")
        return [dict(zip(names, found)) for found in zip(*self.model.neuron_gradients(list(stimuli), prompt))]

    def first_order(self, template, word, kind, alpha):
        """Log-probabilities [2, L + 1, D] of every neuron under one type of intervention to first order, and those without intervention [3, 2]."""
        run_on, source, minus = INTERVENTION_TYPES[kind]
        prompts = [self(template, word, prompt) for prompt in (NULL, MAN, WOMAN)]
        values = [prompt["values"].astype(float) for prompt in prompts]
        step = alpha * values[source] - (values[run_on] if minus is None else alpha * values[minus])
        base = np.stack([prompt["log_probabilities"] for prompt in prompts])
        moved = base[run_on][:, None, None] + (prompts[run_on]["gradients"] * step).sum(axis=1)
        return capped(moved, self.interventions[template][word].candidates_tok), base

    def forget(self):
        """Remove what was kept on the way."""
        self.run_folder.remove_shards(self.name)


def bytes_on_the_way(model, interventions, method):
    """What the methods that estimate keep on disk, about.

    Of each null prompt two gradients and a value of every neuron at each token that is changed; with
    screening, for one type at a time, two log-probabilities as well, whether they are exact, and which neurons
    were chosen.
    """
    units = (model.num_layers + 1) * model.num_neurons
    places = [len(stimulus.places[NULL]) for words in interventions.values() for stimulus in words.values()]
    number = 8 if model.model.dtype == torch.float64 else 4
    return units * (3 * number * sum(places) + (18 * len(places) if method == "screen" else 0))


class FirstOrder:
    """Every neuron of every profession to first order: nothing is intervened upon but a sample for comparison, one profession a table."""

    def __init__(self, model, run_folder, kind, names, interventions, options, progress, gradients):
        self.model, self.kind, self.interventions, self.options, self.progress, self.gradients = model, kind, interventions, options, progress, gradients
        self.compared = {template: list(interventions[template])[hash_of(template) % len(interventions[template])] for template in names}

    def __call__(self, template, word):
        started = time.perf_counter()
        moved, base = self.gradients.first_order(template, word, self.kind, self.options.alpha)
        stimulus = self.interventions[template][word]
        check_finite(stimulus, self.kind, moved, base)
        seconds, compared = time.perf_counter() - started, NOTHING_CHECKED
        if self.compared[template] == word:
            compared = check(self.model, stimulus, self.kind, moved, self.options, sample=COMPARED)
        self.progress.update(moved[0].size)
        return {"log_probabilities": moved, "base": base, "seconds": seconds, **compared.to_arrays(), "exact": np.zeros(moved.shape[1:], bool)}

    def forget(self):
        """Nothing is kept for one type alone."""


class Screened(WordByWord):
    """Embedding and first block exactly, of the others the strongest by gradient, and a few drawn at random to see what was missed."""

    def __init__(self, model, run_folder, kind, names, interventions, options, progress, gradients):
        super().__init__(model, run_folder, kind, names, interventions, options, progress)
        self.gradients = gradients

    def sweep(self, word):
        """All templates of a profession, with the same neurons run exactly in each."""
        started, options, width = time.perf_counter(), self.options, self.model.num_neurons
        self.progress.set_description(f"{self.kind}, {word}")
        stimuli = {template: self.interventions[template][word] for template in self.names if word in self.interventions[template]}
        moved, base = (np.stack(part) for part in zip(*(self.gradients.first_order(template, word, self.kind, options.alpha) for template in stimuli)))
        flat = moved.reshape(len(stimuli), 2, -1)  # [templates, 2, units]
        without = base[:, INTERVENTION_TYPES[self.kind][0]]
        estimates = flat[:, 0] - flat[:, 1] - (without[:, 0] - without[:, 1])[:, None]
        silent = np.zeros(flat.shape[2], bool)  # the last layer, where it cannot reach the output: exactly no effect as it is
        silent[-width:] = all(stimulus.position < len(stimulus.prompts[0].tokens) - 1 for stimulus in stimuli.values())
        rng = np.random.default_rng([options.seed, hash_of(word), list(INTERVENTION_TYPES).index(self.kind)])
        chosen, drawn, rest = screened_units(np.abs(estimates), silent, 2 * width, int(options.screen_share * len(silent)), options.screen_sample, rng)
        units = np.concatenate([chosen, drawn])

        def sweep():
            flat[:, :, units] = self.model.neuron_intervention_in_templates(list(stimuli.values()), self.kind, options.alpha, options.batch_size,
                                                                            options.odds_only, units=units).movedim(-1, 1).numpy()
            for stimulus, of_template, without in zip(stimuli.values(), moved, base):  # the same memory as flat, layer by layer
                check_finite(stimulus, self.kind, of_template, without)
            return moved, base

        _, checked = self.within_budget(sweep, list(stimuli.values()), units)
        self.progress.update(estimates.size)
        exact = silent.copy()
        exact[units] = True
        shared = {"exact": exact.reshape(-1, width), "chosen": chosen, "drawn": drawn, "rest": rest}
        self.keep(word, stimuli, checked, started,
                  [{"log_probabilities": moved[index], "base": base[index], "estimates": estimates[index, drawn], **shared} for index in range(len(stimuli))])


def capped(log_probabilities, candidates):
    """Estimates of two candidates' log-probabilities [2, ...], both lowered alike where they would be none: the odds stay as they are.

    Two single tokens' sum to at most 1; means over several tokens (`candidates`: lists of ids) are at most 1 each.
    """
    if all(len(ids) == 1 for ids in candidates):
        return log_probabilities - np.maximum(np.logaddexp(*log_probabilities), 0)
    return log_probabilities - np.maximum(log_probabilities.max(axis=0), 0)


def hash_of(word):
    """A number that a word has on every machine and in every run."""
    return int.from_bytes(sha256(word.encode()).digest()[:8], "big")


def seed_of(stimulus, kind, options):
    """Other random neurons for every stimulus and type, the same ones in every run."""
    return [options.seed, hash_of("\n".join(stimulus.base_strings)), list(INTERVENTION_TYPES).index(kind)]


def check_finite(stimulus, kind, log_probabilities, base):
    """Raises InputError when a model gave what is no probability above 0."""
    if not (np.isfinite(log_probabilities).all() and np.isfinite(base).all()):
        raise InputError(f"{stimulus.base_strings[0]!r}, {kind}: the model gave probabilities that are zero or not numbers: "
                         "try --dtype float32 or float64, or check the model's weights")


def check_all(model, stimuli, kind, log_probabilities, options, units=None, sets=None, sample=CHECKED):
    """Check of a sweep over several stimuli, log-probabilities [stimuli, 2, ...]: of its random interventions each is as likely, in any of them.

    Those where an error is likely are chosen in one of the stimuli.
    """
    total = NOTHING_CHECKED
    for number, random in drawn_in(stimuli, kind, options, sample).items():
        total += check(model, stimuli[number], kind, log_probabilities[number], options, units, sets, random)
    return total


def drawn_in(stimuli, kind, options, sample=CHECKED):
    """{number of a stimulus: how many of a sweep's `sample` random interventions are drawn in it}; one more stimulus stands for the likely ones."""
    seed = seed_of(stimuli[0], kind, options)
    random = draws(len(stimuli), sample, seed)
    return {number: int(random[number]) for number in sorted({*np.flatnonzero(random).tolist(), seed[1] % len(stimuli)})}


def check(model, stimulus, kind, log_probabilities, options, units=None, sets=None, sample=CHECKED):
    """Check of a few interventions (of the neurons `units`, on the `sets`, as in `Model.check_against_full_passes`), of which `sample` are random."""
    return model.check_against_full_passes(stimulus, kind, log_probabilities, options.alpha, sample, seed_of(stimulus, kind, options), options.odds_only,
                                           units, sets)


def write_table(path, results, interventions, kind, options):
    """One table, word by word so that memory does not grow.

    Args:
        results: function of a word to its results; interventions: {word: Intervention}.

    Returns: what the manifest says of the file: rows, sum of seconds, what was checked and run fast; of a screened one what its sample says.
    """
    rows, seconds, checked, fast, samples = 0, 0.0, NOTHING_CHECKED, FastRows(), {}
    with table_writer(path) as append:
        for word, intervention in interventions.items():
            kept = results(word)
            columns = {**base_columns(word, intervention, np.exp(kept["base"]).ravel().tolist()), **unit_columns(kept["log_probabilities"], options.odds_only)}
            if "exact" in kept:
                columns["method"] = np.where(kept["exact"].ravel(), "exact", "gradient") if kept["exact"].any() else "gradient"
            rows = append(columns)
            seconds, checked = seconds + float(kept["seconds"]), checked + Check.from_arrays(kept)
            if "fast" in kept:
                fast += FastRows(*kept["fast"])
            if "drawn" in kept:
                samples[word] = sample_of(kept, kind, options.screen_top)
    entry = {"rows": rows, "sweep_seconds": seconds, **checked.entry()} | ({"fast": asdict(fast)} if fast.rows else {})
    return entry | ({"screen": describe_samples(samples)} if samples else {})


def sample_of(kept, kind, top):
    """What the random sample of one screened prompt says: (units that were missed, units left out, estimated and exact changes in log odds)."""
    one, other = kept["log_probabilities"].reshape(2, -1)
    without = kept["base"][INTERVENTION_TYPES[kind][0]]
    effects = one - other - (without[0] - without[1])
    return kept["drawn"][misses(effects, kept["chosen"], kept["drawn"], top)], int(kept["rest"]), kept["estimates"], effects[kept["drawn"]]


def describe_samples(samples):
    """What a manifest says of the samples of one table's words: plain values."""
    missed, rest, estimates, exact = zip(*samples.values())
    return {"drawn": sum(len(values) for values in exact), "rest": max(rest),
            "missed": [[word, int(unit)] for word, units in zip(samples, missed) for unit in units],
            **agreement(np.concatenate(estimates), np.concatenate(exact))}


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


def unit_columns(log_probabilities, odds_only):
    """The columns of one word that differ from neuron to neuron, from log-probabilities [2, L + 1, D]."""
    layer, neuron = (index.ravel() for index in np.indices(log_probabilities.shape[1:]))
    one, other = log_probabilities.reshape(2, -1)
    if odds_only:
        empty = np.full(len(one), np.nan)
        return {"candidate1_prob": empty, "candidate2_prob": empty, "layer": layer, "neuron": neuron, "log_odds": one - other}
    return {"candidate1_prob": np.exp(one), "candidate2_prob": np.exp(other), "layer": layer, "neuron": neuron}

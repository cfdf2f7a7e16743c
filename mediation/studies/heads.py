"""Sweeps of attention heads, of all heads of a layer, and of the whole model, as tasks: one per stimulus.

Shapes: S = L x H + L + 1 sets of heads: every head alone, every layer's heads together, all heads of the model. L layers, H heads per layer.
"""

import zlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from mediation.effects.odds import log_odds
from mediation.errors import InputError
from mediation.mediators.head_sweeps import head_estimates, heads_in_sets
from mediation.mediators.heads import heads_layers_model
from mediation.model.fast_rows import FastRows
from mediation.results.attention_results import EFFECTS
from mediation.stimuli.interventions import Intervention
from mediation.studies.checks import check_heads
from mediation.studies.engine import StudyOptions, Task
from mediation.studies.error_budget import NOTHING_CHECKED, Check, within_budget
from mediation.studies.neurons import digest
from mediation.studies.results import Swept

SCREENED = 0.1  # part of the heads that screening runs exactly


def number_of_sets(model):
    """S, the interventions of one stimulus and kind of effect."""
    return model.num_layers * model.num_heads + model.num_layers + 1


def head_task(model, intervention, options, table, title):
    """The task of one stimulus: all its sets of heads, indirect and direct."""
    return Heads(table, f"heads_{digest([intervention])}", title, len(EFFECTS) * number_of_sets(model), intervention, options)


@dataclass(frozen=True)
class Heads(Task):
    """Gives `probabilities` [2 prompts, 2] without intervention, and {effect} [S, 2], log-probabilities of both candidates; a Check's arrays, `fast`.

    Methods that estimate add {effect}_exact bool [S]: what was run. Layers and the whole model always are.
    """

    intervention: Intervention
    options: StudyOptions

    def compute(self, model, earlier, progress):
        """See `Task`."""
        intervention, options = self.intervention, self.options
        arrays, all_checked = {"probabilities": np.array(model.continuation_probabilities(intervention))}, NOTHING_CHECKED
        for kind in EFFECTS:
            sweep, check = partial(self.sweep, model, kind, progress), partial(self.check, model, kind)
            if options.method == "gradient":
                of_effect = sweep()
                checked = check(of_effect)
            else:
                of_effect, checked = within_budget(model, sweep, check, options, f"{intervention.base_strings[0]!r}, {kind}")
            arrays |= of_effect
            all_checked += checked
        fast = {"fast": model.fast_rows.take().shared(1)} if model.fast_rows else {}
        return {**arrays, **all_checked.to_arrays(), **fast}

    def sweep(self, model, kind, progress):
        """Arrays of one effect.

        Raises:
            InputError: log-probabilities that are no numbers.
        """
        if self.options.estimates:
            swept, exact = estimated_heads(model, self.intervention, kind, self.options, progress)
            arrays = {kind: swept.numpy(), f"{kind}_exact": exact.numpy()}
        else:
            sets = heads_layers_model(model.num_layers, model.num_heads)
            arrays = {kind: heads_in_sets(model, self.intervention, kind, sets, self.options.batch_size, progress).numpy()}
        if not np.isfinite(arrays[kind]).all():
            raise InputError(f"{self.intervention.base_strings[0]!r}: the model gave probabilities that are zero or not numbers: "
                             "try --dtype float32 or float64, or check the model's weights")
        return arrays

    def check(self, model, kind, arrays):
        """Check of one effect's heads (those that were run, where only some were): another random one for every stimulus and effect."""
        heads = model.num_layers * model.num_heads
        ran = np.flatnonzero(arrays[f"{kind}_exact"][:heads]) if self.options.method == "screen" else None
        seed = [self.options.seed, EFFECTS.index(kind), zlib.crc32(str(self.intervention.base_strings).encode())]
        return check_heads(model, self.intervention, kind, probabilities(arrays[kind][:heads]).T, seed=seed, among=ran)


def probabilities(log_probabilities):
    """exp, as PyTorch computes it: the last digits of the study's JSON are of that."""
    return torch.from_numpy(log_probabilities).exp().numpy()


def head_results(arrays):
    """{effect: Swept} of a Heads task's arrays: U = S; what was done for both effects stands with the first."""
    fast = FastRows(*arrays["fast"]) if "fast" in arrays else None
    whole = {"seconds": float(arrays["seconds"]), "check": Check.from_arrays(arrays), "fast": fast}
    nothing = {"seconds": 0.0, "check": NOTHING_CHECKED, "fast": None}
    return {kind: Swept(arrays[kind], np.log(arrays["probabilities"]), arrays.get(f"{kind}_exact"), **(nothing if number else whole))
            for number, kind in enumerate(EFFECTS)}


def estimated_heads(model, intervention, kind, options, progress):
    """(log-probabilities float64 [S, 2], heads to first order and with method screen the strongest of them run; bool [S], which were run)."""
    layers, heads = model.num_layers, model.num_heads
    estimates = head_estimates(model, intervention, kind).reshape(-1, 2)
    c1, c2 = model.continuation_probabilities(intervention)[0 if kind == "indirect" else 1]
    strength = (estimates[:, 1] - estimates[:, 0] - float(log_odds(c2, c1))).abs()
    strongest = strength.argsort(descending=True)[: max(1, int(SCREENED * layers * heads))] if options.method == "screen" else torch.empty(0, dtype=torch.long)
    run = torch.cat([strongest, torch.arange(layers * heads, layers * heads + layers + 1)])
    swept = heads_in_sets(model, intervention, kind, heads_layers_model(layers, heads)[run], options.batch_size)
    log_probabilities = torch.cat([estimates, torch.empty(layers + 1, 2, dtype=estimates.dtype)])
    log_probabilities[run] = swept
    progress(len(log_probabilities))
    exact = torch.zeros(len(log_probabilities), dtype=torch.bool)
    exact[run] = True
    return log_probabilities, exact

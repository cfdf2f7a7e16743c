"""Sweeps of attention heads, of all heads of an attention layer, and of the whole model: one task per
stimulus.

Symbols in shapes: S = L x H + L + 1 sets of heads (every head alone, every layer's heads together, all heads
of the model), L layers, H heads per layer.
"""

import zlib
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from mediation.effects.odds import log_odds
from mediation.mediators.batches import Progress
from mediation.mediators.head_sweeps import head_estimates, heads_in_sets
from mediation.mediators.heads import heads_layers_model
from mediation.model.fast_rows import FastRows
from mediation.model.language_model import LanguageModel
from mediation.results.attention_results import EFFECTS
from mediation.stimuli.interventions import Intervention
from mediation.studies.checks import check_heads, check_probabilities
from mediation.studies.engine import Arrays, Earlier, StudyOptions, Task
from mediation.studies.error_budget import NOTHING_CHECKED, Check, within_budget
from mediation.studies.results import Swept
from mediation.studies.trees import digest

SCREENED = 0.1  # part of the heads that screening runs exactly


def head_task(model: LanguageModel, intervention: Intervention, options: StudyOptions, table: str,
              title: str) -> "Heads":
    """The task of one stimulus: all its sets of heads, indirect and direct."""
    sets = model.num_layers * model.num_heads + model.num_layers + 1
    return Heads(table, f"heads_{digest([intervention])}", title, len(EFFECTS) * sets, intervention, options)


@dataclass(frozen=True)
class Heads(Task):
    """All sets of heads of one stimulus.

    Gives `probabilities` [2 prompts, 2] without intervention, and {effect} [S, 2], log-probabilities of both
    candidates; the arrays of a Check, and `fast`. Methods that estimate add {effect}_exact bool [S]: what
    was run. Layers and the whole model always are.
    """

    intervention: Intervention
    options: StudyOptions

    def compute(self, model: LanguageModel, earlier: Earlier, progress: Progress) -> Arrays:
        """See `Task`."""
        arrays: Arrays = {"probabilities": np.array(model.continuation_probabilities(self.intervention))}
        total = NOTHING_CHECKED
        for kind in EFFECTS:
            sweep, check_of = partial(self.sweep, model, kind, progress), partial(self.check, model, kind)
            if self.options.method == "gradient":  # nothing was run that a budget could bound
                of_effect = sweep()
                check = check_of(of_effect)
            else:
                what = f"{self.intervention.base_strings[0]!r}, {kind}"
                of_effect, check = within_budget(model, sweep, check_of, self.options, what)
            arrays |= of_effect
            total += check
        fast = {"fast": model.fast_rows.take().shared(1)} if model.fast_rows else {}
        return {**arrays, **total.to_arrays(), **fast}

    def sweep(self, model: LanguageModel, kind: str, progress: Progress) -> Arrays:
        """Arrays of one effect.

        Raises:
            InputError: log-probabilities that are no numbers.
        """
        if self.options.estimates:
            swept, exact = estimated_heads(model, self.intervention, kind, self.options)
            arrays = {kind: swept.numpy(), f"{kind}_exact": exact.numpy()}
        else:
            sets = heads_layers_model(model.num_layers, model.num_heads)
            swept = heads_in_sets(model, self.intervention, kind, sets, self.options.batch_size, progress)
            arrays = {kind: swept.numpy()}
        check_probabilities(repr(self.intervention.base_strings[0]), arrays[kind])
        return arrays

    def check(self, model: LanguageModel, kind: str, arrays: Arrays) -> Check:
        """Check of one effect's heads (of those that were run): other random ones for every stimulus and
        effect."""
        heads = model.num_layers * model.num_heads
        among = np.flatnonzero(arrays[f"{kind}_exact"][:heads]) if self.options.method == "screen" else None
        seed = [self.options.seed, EFFECTS.index(kind),
                zlib.crc32(str(self.intervention.base_strings).encode())]
        of_heads = probabilities(arrays[kind][:heads]).T
        return check_heads(model, self.intervention, kind, list(of_heads), seed=seed, among=among)


def probabilities(log_probabilities: Float64[np.ndarray, "S 2"]) -> Float64[np.ndarray, "S 2"]:
    """exp, as PyTorch computes it: the last digits of the study's JSON are of that."""
    return torch.from_numpy(log_probabilities).exp().numpy()


def head_results(task: Heads, arrays: Arrays, seconds: float) -> dict[str, Swept]:
    """{effect: numbers} of a task, whose units are the S sets; what both effects share stands with the
    first."""
    fast = FastRows(*arrays["fast"]) if "fast" in arrays else None
    base, check = np.log(arrays["probabilities"]), Check.from_arrays(arrays)
    shares = [(seconds, check, fast), (0.0, NOTHING_CHECKED, None)]
    return {kind: Swept(arrays[kind], base, arrays.get(f"{kind}_exact"), *share, source=(task.key, kind))
            for kind, share in zip(EFFECTS, shares)}


def estimated_heads(model: LanguageModel, intervention: Intervention, kind: str,
                    options: StudyOptions) -> tuple[Float64[Tensor, "S 2"], Bool[Tensor, "S"]]:
    """Log-probabilities with heads to first order (with method screen the strongest run), and which sets were
    run."""
    layers, heads = model.num_layers, model.num_layers * model.num_heads
    estimates = head_estimates(model, intervention, kind).reshape(-1, 2)
    c1, c2 = model.continuation_probabilities(intervention)[0 if kind == "indirect" else 1]
    strength = (estimates[:, 1] - estimates[:, 0] - float(log_odds(c2, c1))).abs()
    count = max(1, int(SCREENED * heads)) if options.method == "screen" else 0
    run = torch.cat([strength.argsort(descending=True)[:count], torch.arange(heads, heads + layers + 1)])
    sets = heads_layers_model(layers, model.num_heads)
    log_probabilities = torch.cat([estimates, torch.empty(layers + 1, 2, dtype=estimates.dtype)])
    log_probabilities[run] = heads_in_sets(model, intervention, kind, sets[run], options.batch_size)
    exact = torch.zeros(len(sets), dtype=torch.bool)
    exact[run] = True
    return log_probabilities, exact

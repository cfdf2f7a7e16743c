"""Sweeps over the neurons of a language model: on one stimulus, on many in trees of prompts, of sets.

All take a `LanguageModel` first, and `Intervention` objects. A unit is a neuron of the whole model, counted
layer by layer: (layer in the tables) x D + neuron. Layers that a caller names count from -1 (the word
embedding), the rule of the 2020 study; those of the tables, and of `NeuronEdits`, from 0.

Symbols in shapes: B batch (interventions), K neurons of a set, U units, N stimuli, P positions, T tokens,
C candidates, W words, D neurons per layer, `layers` = L + 1: the word embedding and L blocks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mediation.errors import InputError
from mediation.mediators import interpolation
from mediation.mediators.batches import Progress, batch
from mediation.mediators.catalogue import CATALOGUE
from mediation.mediators.gradients import neuron_gradients
from mediation.mediators.neurons import (
    INTERVENTION_TYPES,
    NULL,
    InterventionType,
    NeuronEdits,
    single_neuron_edits,
)
from mediation.mediators.sweeps import sweep, sweep_by_full_passes
from mediation.model.forward import BaseRun, Narrowing, run_base
from mediation.model.language_model import PROMPTS_AT_ONCE, LanguageModel
from mediation.model.token_trees import Tree, pack
from mediation.stimuli.interventions import Intervention


@dataclass(frozen=True)
class SweepOptions:
    """How a sweep over neurons is run.

    `alpha`: factor on the values that are put in, or on the difference that is added; `batch_size`:
    interventions run at once, None for as many as suit the model; `odds_only`: leave out the sum over the
    vocabulary, so that log-probabilities are known up to a number that both candidates share.
    """

    alpha: float = 1.0
    batch_size: int | None = None
    odds_only: bool = False


PLAIN = SweepOptions()


# what can be swept

def type_of(name: str) -> InterventionType:
    """The InterventionType of a name; raises InputError for an unknown one."""
    if name not in INTERVENTION_TYPES:
        known = ", ".join(INTERVENTION_TYPES)
        raise InputError(f"intervention type {name!r} is unknown: choose from {known}")
    return INTERVENTION_TYPES[name]


def check_for_neurons(model: LanguageModel, intervention: Intervention,
                      intervention_type: str | None = None) -> None:
    """Raises InputError for a stimulus, or a model, without neuron interventions, or those of a type."""
    model.check_causal()
    CATALOGUE["neurons"].check_model(model)
    intervention.check_for_neurons()
    one_alternative = intervention_type in ("direct", "indirect")
    if intervention_type and (len(intervention.prompts) == 2) != one_alternative:
        needed = "a word and one alternative" if one_alternative else "three substitutes (word, man, woman)"
        raise InputError(f"{intervention.base_strings[0]!r} has {len(intervention.prompts)} substitutes: "
                         f"{intervention_type} needs {needed}",
                         f"not {needed}, which {intervention_type} needs")


def check_units(model: LanguageModel, layers: Sequence[int], neurons: Sequence[Sequence[int]]) -> None:
    """Raises InputError unless each row of `neurons` names one of the model's neurons per layer."""
    for layer in layers:
        if not -1 <= layer < model.num_layers:
            raise InputError(f"layer {layer} is not in the model: layers go from -1 (embedding) to "
                             f"{model.num_layers - 1}")
    for row in neurons:
        if len(row) != len(layers):
            raise InputError(f"neurons {row} and layers {list(layers)} differ in length: a row names one "
                             "neuron per layer")
        for neuron in row:
            if not 0 <= neuron < model.num_neurons:
                raise InputError(f"neuron {neuron} is not in the model: neurons go from 0 to "
                                 f"{model.num_neurons - 1}")


# one prompt

@torch.no_grad()
def neuron_intervention(model: LanguageModel, context: Int[Tensor, "*one T"],
                        candidates: Sequence[Sequence[int]], values: dict[int, Float[Tensor, "D"]],
                        layers: Sequence[int], neurons: Sequence[Sequence[int]], position: int,
                        intervention_type: str = "diff", alpha: float = 1.0) -> list[list[float]]:
    """Probabilities of candidates (lists of token ids) when neurons at one position of a prompt are changed.

    Args:
        values: {layer: what its neurons are set to ("replace") or what is added ("diff"), times `alpha`}.
        layers: K layers, shared by all rows; neurons: B rows of K, a neuron for each layer, changed together.

    Returns: a row for each row of neurons.

    Raises:
        InputError: a layer or neuron outside the model, a ragged row, or an unknown intervention type.
    """
    if intervention_type not in ("diff", "replace"):
        raise InputError(f"intervention_type {intervention_type!r}: choose 'diff' or 'replace'")
    check_units(model, layers, neurons)
    tokens = context.reshape(-1).to(model.device)
    changed = torch.tensor(neurons, device=model.device)  # [B, K]
    of_layers = torch.tensor(layers, device=model.device).expand(changed.shape)
    each = torch.arange(len(layers), device=model.device)
    put_in = torch.stack([values[layer] for layer in layers])[each, changed] * alpha  # [B, K]
    edits = NeuronEdits(of_layers + 1, changed, put_in, position, add=intervention_type == "diff")
    return sweep_prompt(model, model.base_run(tokens, candidates), tokens, edits, candidates).exp().tolist()


@torch.no_grad()
def sweep_prompt(model: LanguageModel, base: BaseRun, tokens: Int[Tensor, "T"], edits: NeuronEdits,
                 candidates: Sequence[Sequence[int]], batch_size: int | None = None,
                 progress: Progress | None = None) -> Float64[Tensor, "B C"]:
    """Log-probabilities, by descent or by full passes as the model was made; fast if `base` serves that."""
    if model.full_passes:
        return sweep_by_full_passes(model.model, model.parts, tokens, edits, candidates, batch_size, progress)
    fast = model.fast_rows if base.linear_maps else None
    predictions = pack([tokens.tolist()], candidates, model.device).predictions
    return sweep(model.parts, base, predictions, edits, batch_size, progress=progress, fast=fast)


# one stimulus

@torch.no_grad()
def neuron_experiment(
    model: LanguageModel, intervention: Intervention, intervention_type: str, options: SweepOptions = PLAIN,
    layers_to_adj: int | Sequence[int] = (), neurons_to_adj: Sequence[int] = (),
    intervention_loc: str = "all", progress: Progress | None = None,
) -> tuple[float | Float64[Tensor, "layers neurons"], ...]:
    """One stimulus under one type of intervention; `odds_only` is not heeded.

    Args:
        layers_to_adj, neurons_to_adj: neurons changed as well in every intervention; with intervention_loc
            "layer" one layer, with "neuron" the one set that is changed.
        intervention_loc: "all" every neuron of the model in turn, "layer" of one layer, "neuron" one set.

    Returns: probabilities p(c1), p(c2) without intervention after each prompt; then, under each intervention,
    those of c1 and those of c2: [L + 1, D], [1, D] or [1, 1] as intervention_loc says.

    Raises:
        InputError: a stimulus that is not of this form, or units outside the model.
    """
    candidates = intervention.candidates_tok
    runs, run_on, edits = runs_and_edits(model, intervention, intervention_type, options.alpha, layers_to_adj,
                                         neurons_to_adj, intervention_loc)
    prompts = intervention.base_strings_tok
    swept = sweep_prompt(model, runs[run_on], prompts[run_on].to(model.device), edits, candidates,
                         options.batch_size, progress)
    base = [model.read_out(run, tokens, candidates) for run, tokens in zip(runs, prompts)]
    shape = (-1, 1 if intervention_loc == "neuron" else model.num_neurons)
    return *torch.cat(base).exp().tolist(), *(column.exp().reshape(shape) for column in swept.unbind(dim=1))


@torch.no_grad()
def neuron_sets(model: LanguageModel, intervention: Intervention, intervention_type: str,
                units: Int[Tensor, "B K"],
                batch_size: int | None = None) -> tuple[Float64[Tensor, "B 2"], Float64[Tensor, "2"]]:
    """Log-probabilities of both candidates under B sets of K neurons that are changed together.

    A neuron named twice in a set is changed once. Errors as in `neuron_experiment`.

    Returns: these, and those without intervention on the null prompt.
    """
    runs, run_on, every = runs_and_edits(model, intervention, intervention_type)
    tokens, candidates = intervention.base_strings_tok[run_on].to(model.device), intervention.candidates_tok
    base = model.read_out(runs[NULL], intervention.base_strings_tok[NULL], candidates)
    edits = every.sets(units.to(model.device))
    return sweep_prompt(model, runs[run_on], tokens, edits, candidates, batch_size), base


@torch.no_grad()
def runs_and_edits(model: LanguageModel, intervention: Intervention, intervention_type: str,
                   alpha: float = 1.0, layers_to_adj: int | Sequence[int] = (),
                   neurons_to_adj: Sequence[int] = (),
                   intervention_loc: str = "all") -> tuple[list[BaseRun], int, NeuronEdits]:
    """Base runs of a stimulus' prompts, index of the one that is intervened upon, and the interventions.

    Arguments and errors as in `neuron_experiment`.
    """
    run_on, values_of, minus = type_of(intervention_type)
    check_for_neurons(model, intervention, intervention_type)
    runs = [model.base_run(tokens, intervention.candidates_tok, linear_maps=model.fast_rows is not None)
            for tokens in intervention.base_strings_tok]
    values = _at(runs[values_of], intervention.places[values_of])
    if minus is not None:
        values = values - _at(runs[minus], intervention.places[minus])
    edits = edits_of_units(model, values * alpha, intervention.places[run_on], minus is not None,
                           layers_to_adj, neurons_to_adj, intervention_loc)
    return runs, run_on, edits


def edits_of_units(model: LanguageModel, values: Float[Tensor, "P layers D"], places: Sequence[int],
                   add: bool, layers_to_adj: int | Sequence[int], neurons_to_adj: Sequence[int],
                   intervention_loc: str) -> NeuronEdits:
    """The interventions that `neuron_experiment` names by its arguments, with `values` at P places."""
    layers = [layers_to_adj] if isinstance(layers_to_adj, int) else list(layers_to_adj)
    if intervention_loc not in ("all", "layer", "neuron"):
        raise InputError(f"intervention_loc {intervention_loc!r}: choose 'all', 'layer' or 'neuron'")
    varied = {"all": list(range(-1, model.num_layers)), "layer": layers[:1], "neuron": []}[intervention_loc]
    if intervention_loc == "layer":
        layers = varied * len(neurons_to_adj)
    check_units(model, [*varied, *layers], [])
    check_units(model, layers, [neurons_to_adj])
    if not varied and not neurons_to_adj:
        needed = "layers_to_adj" if intervention_loc == "layer" else "layers_to_adj and neurons_to_adj"
        raise InputError(f"intervention_loc {intervention_loc!r} needs {needed}: what is to be changed")
    width = model.num_neurons
    rows = torch.arange(len(varied) * width if varied else 1, device=model.device)
    chosen = [(layer + 1) * width + neuron for layer, neuron in zip(layers, neurons_to_adj)]
    columns = [torch.full_like(rows, unit) for unit in chosen]
    if varied:
        columns.insert(0, rows + (varied[0] + 1) * width)
    return single_neuron_edits(values, places, add).sets(torch.stack(columns, dim=1))  # units [B, K]


def _at(run: BaseRun, places: Sequence[int]) -> Float[Tensor, "P layers D"]:
    """Values of all neurons at P places of a run."""
    return torch.stack([run.representations(place) for place in places])


# many stimuli, whose prompts share what they have in common

@torch.no_grad()
def neurons_in_trees(model: LanguageModel, interventions: Sequence[Intervention], intervention_type: str,
                     options: SweepOptions = PLAIN, units: Int[Tensor | np.ndarray, "U ..."] | None = None,
                     progress: Progress | None = None) -> Float64[Tensor, "N ... 2"]:
    """Every neuron in turn on several stimuli at once, such as one profession in all templates.

    What their prompts share is run once.

    Args:
        units: only these neurons, [U]; or sets of K that are changed together, [U, K].

    Returns: log-probabilities of both candidates, [N, L + 1, D, 2]; with units [N, U, 2].

    Raises:
        InputError: an unknown type, or a model or stimulus without its interventions.
    """
    run_on, values_of, minus = type_of(intervention_type)
    every = units is None
    units = torch.arange((model.num_layers + 1) * model.num_neurons) if every else torch.as_tensor(units)
    sets = units.reshape(len(units), -1).to(model.device)
    result = torch.empty(len(interventions), len(units), 2, dtype=torch.float64)
    for members, tree in _trees(model, interventions, run_on, intervention_type):
        one = interventions[members[0]]
        values = _values(model, one, values_of)
        if minus is not None:
            values = values - _values(model, one, minus)
        base = run_base(model.model, model.parts, tree.tokens, tree, model.fast_rows is not None)
        edits = single_neuron_edits(values * options.alpha, one.places[run_on], minus is not None).sets(sets)
        swept = sweep(model.parts, base, tree.predictions, edits, options.batch_size, options.odds_only,
                      _times(len(members), progress), model.fast_rows)
        result[members] = swept.reshape(len(units), len(members), 2).movedim(1, 0)
    return result.reshape(len(interventions), -1, model.num_neurons, 2) if every else result


def _trees(model: LanguageModel, interventions: Sequence[Intervention], prompt: int,
           intervention_type: str) -> list[tuple[list[int], Tree]]:
    """The model's trees of one prompt of stimuli that are checked first."""
    for intervention in interventions:
        check_for_neurons(model, intervention, intervention_type)
    return model.trees(interventions, prompt)


def _values(model: LanguageModel, intervention: Intervention, prompt: int) -> Float[Tensor, "P layers D"]:
    """Values of all neurons at the slot of one prompt of a stimulus."""
    places = intervention.places[prompt]
    return _at(model.base_run(intervention.base_strings_tok[prompt][: places[-1] + 1]), places)


def _times(count: int, progress: Progress | None) -> Progress:
    """Reports each row of a tree's sweep as `count` interventions, one for each stimulus of the tree."""
    return lambda rows: progress(rows * count) if progress else None


@torch.no_grad()
def null_values(model: LanguageModel,
                interventions: Iterable[Intervention]) -> list[Float64[np.ndarray, "layers D"]]:
    """Values of all neurons at the slot of each stimulus' null prompt; slots of one token."""
    return [_values(model, intervention, NULL)[0].double().cpu().numpy() for intervention in interventions]


@torch.no_grad()
def direct_interpolants(model: LanguageModel, interventions: Sequence[Intervention], intervention_type: str,
                        values: Float64[np.ndarray, "W D"], layer: int, options: SweepOptions = PLAIN,
                        progress: Progress | None = None) -> interpolation.Interpolants:
    """Direct effects of one layer's neurons as functions of the value put in, the same for all words.

    Args:
        interventions: one for each template, with alternatives alike up to the slot.
        intervention_type: one of a direct effect, such as man_direct.
        values: of each word's null prompt in this layer; layer: as in the tables, 0 the word embedding.

    Returns: Interpolants of D functions with 2 x N values: both candidates' log-probabilities, stimulus by
    stimulus.
    """
    run_on = type_of(intervention_type).run_on
    prompts = [each.prompts[run_on].tokens for each in interventions]
    candidates = interventions[0].candidates_tok
    tree = pack(prompts, candidates, model.device)
    (position,) = interventions[0].places[run_on]
    with Narrowing() as narrowing:
        base = run_base(model.model, model.parts, tree.tokens, tree)
    dtype = str(model.dtype).removeprefix("torch.")
    tolerance = interpolation.NARROWED if narrowing.seen else interpolation.TOLERANCE[dtype]

    def run(neurons: Int[np.ndarray, "K"],
            points: Float64[np.ndarray, "K M"]) -> Float64[np.ndarray, "K M Q"]:
        """Log-probabilities when the value of each of K neurons is each of its M points."""
        rows = torch.as_tensor(neurons, device=model.device).repeat_interleave(points.shape[1]).unsqueeze(1)
        put_in = torch.as_tensor(points * options.alpha, dtype=model.dtype, device=model.device)
        edits = NeuronEdits(torch.full_like(rows, layer), rows, put_in.reshape(-1, 1), position)
        swept = sweep(model.parts, base, tree.predictions, edits, options.batch_size, options.odds_only,
                      progress)
        return swept.numpy().reshape(*points.shape, -1)

    return interpolation.fit(run, values, tolerance)


@torch.no_grad()
def neuron_gradients_of(
    model: LanguageModel, interventions: Sequence[Intervention], prompt: int,
) -> tuple[Float64[np.ndarray, "N 2"], Float[np.ndarray, "N 2 P layers D"],
           Float[np.ndarray, "N P layers D"]]:
    """What the first order needs of one prompt of many stimuli, see `mediation.mediators.gradients`.

    Prompts of equal shape are run together.

    Args:
        interventions: all with neurons changed at P tokens: one, but for multi_token "all".
        prompt: 0 the null prompt, 1 man's, 2 woman's.

    Returns: log-probabilities of both candidates, their gradients with respect to every neuron at the slot,
    values of the neurons there; the last two of the model's dtype, at least float32.
    """
    shape = (len(interventions[0].places[prompt]), model.num_layers + 1, model.num_neurons)
    dtype = np.float64 if model.dtype == torch.float64 else np.float32
    count = len(interventions)
    log_probabilities = np.empty((count, 2))
    gradients, values = np.empty((count, 2, *shape), dtype), np.empty((count, *shape), dtype)
    for members, tree in _of_equal_shape(model, interventions, prompt):
        one = interventions[members[0]]
        branches = len(tree.tokens) > len(one.prompts[prompt].tokens)  # then members are the same prompt
        for together in [members] if branches else batch(members, PROMPTS_AT_ONCE):
            prompts = [interventions[index].base_strings_tok[prompt] for index in together]
            rows = torch.stack([tree.tokens] if branches else prompts).to(model.device)
            computed = neuron_gradients(model.model, model.parts, rows, one.places[prompt], tree.predictions,
                                        tree if branches else None)
            log_probabilities[together], gradients[together], values[together] = (
                part.to(torch.float64).cpu().numpy() for part in computed)
    return log_probabilities, gradients, values


def _of_equal_shape(model: LanguageModel, interventions: Sequence[Intervention],
                    prompt: int) -> list[tuple[list[int], Tree]]:
    """Stimuli whose gradients can be taken at once: their indices, and the tree of the first one's prompt.

    These have prompts of equal length, or, with candidates of several tokens, the same prompt.
    """
    alike: dict[tuple, list[int]] = {}
    for index, intervention in enumerate(interventions):
        check_for_neurons(model, intervention)
        tokens, candidates = intervention.prompts[prompt].tokens, intervention.candidates_tok
        form = tokens if any(len(ids) > 1 for ids in candidates) else len(tokens)
        alike.setdefault((form, str(intervention.places[prompt]), str(candidates)), []).append(index)
    first = [interventions[members[0]] for members in alike.values()]
    trees = [pack([one.prompts[prompt].tokens], one.candidates_tok, model.device) for one in first]
    return list(zip(alike.values(), trees))

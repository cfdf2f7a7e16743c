"""The mediators: one record each. Nothing else in the house asks which mediator it is.

A new mediator is a record here, and at most a file beside with how a sweep changes it (docs/code.md shows
how). Importing this needs no PyTorch, so that `mediate.py --help` can tell them.

Symbols in shapes: U units of a sweep, K neurons of a set.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from jaxtyping import Int64

if TYPE_CHECKING:  # both hold tensors
    import mediation.model.language_model
    import mediation.stimuli.interventions

LanguageModel: TypeAlias = "mediation.model.language_model.LanguageModel"
Intervention: TypeAlias = "mediation.stimuli.interventions.Intervention"


@dataclass(frozen=True)
class Mediator:
    """What can be changed in a run, and how it is told.

    `what`: a line for people.
    `sweep`: mediators of one sweep are computed together, and it says what is changed: "neurons" or
        "attention weights".
    `fits`: raises InputError (with its `reason`) for a stimulus for which the mediator is not defined in this
        model.
    `units`: of a model, the columns that name the mediator's units; `within`: of a model, its part of its
        sweep's units; `count`: of a model, how many these are.
    `sets`: of a model, neurons that are changed together; None where each is changed alone.
    `estimated`: whether the methods that estimate do so; else every unit is always run.
    `screened`: whether there are so many units that screening names its share and its sample.
    """

    name: str
    what: str
    sweep: str
    fits: Callable[[LanguageModel, Intervention], None]
    units: Callable[[LanguageModel], dict[str, np.ndarray]]
    within: Callable[[LanguageModel], slice]
    count: Callable[[LanguageModel], int]
    sets: Callable[[LanguageModel], Int64[np.ndarray, "U K"]] | None = None
    estimated: bool = False
    screened: bool = False


def _neurons_fit(model, intervention):
    from mediation.mediators.neuron_sweeps import check_for_neurons

    check_for_neurons(model, intervention)


def _attention_fits(_model, intervention):
    intervention.check_for_attention()


def _columns(shape, *names):
    """{name: index of each cell of a table of this shape}."""
    return dict(zip(names, (index.ravel() for index in np.indices(shape))))


def _heads(model):
    return model.num_layers * model.num_heads


def _sets_of_heads(model):
    return _heads(model) + model.num_layers + 1


def _every_layer_and_all(model):
    return {"layer": np.array([*map(str, range(model.num_layers)), "all"])}


def _of_one_layer(model):
    layers = model.num_layers + 1
    return np.arange(layers * model.num_neurons).reshape(layers, model.num_neurons)


CATALOGUE = {mediator.name: mediator for mediator in (
    Mediator(
        "neurons", "every neuron (word embedding, MLP outputs) at the slot", "neurons", _neurons_fit,
        units=lambda model: _columns((model.num_layers + 1, model.num_neurons), "layer", "neuron"),
        within=lambda _: slice(None), count=lambda model: (model.num_layers + 1) * model.num_neurons,
        estimated=True, screened=True),
    Mediator(
        "mlps", "all of a layer's neurons at the slot", "neurons", _neurons_fit,
        units=lambda model: _columns((model.num_layers + 1,), "layer"),
        within=lambda _: slice(None), count=lambda model: model.num_layers + 1, sets=_of_one_layer),
    Mediator(
        "heads", "every attention head's weights, on prompts of equal length", "attention weights",
        _attention_fits,
        units=lambda model: _columns((model.num_layers, model.num_heads), "layer", "head"),
        within=lambda model: slice(_heads(model)), count=_sets_of_heads, estimated=True),
    Mediator(
        "layers", 'all heads of a layer, and of the model ("all")', "attention weights", _attention_fits,
        units=_every_layer_and_all, within=lambda model: slice(_heads(model), None), count=_sets_of_heads,
        estimated=True),
)}


def together(names: Collection[str]) -> list[list[Mediator]]:
    """The named mediators in groups that come from one sweep, in the catalogue's order."""
    groups: dict[tuple, list[Mediator]] = {}
    for mediator in CATALOGUE.values():
        if mediator.name in names:
            # a sweep over sets of neurons is another one than over each alone
            groups.setdefault((mediator.sweep, mediator.sets), []).append(mediator)
    return list(groups.values())

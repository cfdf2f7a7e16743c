"""The mediators: one record each. Nothing else in the house asks which mediator it is.

A new mediator is a record here with the sites where its values lie (docs/code.md shows how). Importing this
needs no PyTorch, so that `mediate.py --help` can tell them.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from mediation.errors import InputError

if TYPE_CHECKING:  # they hold tensors
    import mediation.mediators.sites
    import mediation.model.architectures
    import mediation.model.language_model
    import mediation.stimuli.interventions

LanguageModel: TypeAlias = "mediation.model.language_model.LanguageModel"
Parts: TypeAlias = "mediation.model.architectures.Parts"
Intervention: TypeAlias = "mediation.stimuli.interventions.Intervention"

POSITIONS = {
    "slot": "the slot's last token (with --multi_token all: its tokens together)",
    "last": "the prompt's last token",
    "each": "every token of the prompt in turn",
    "all": "all tokens of the prompt at once",
}
LIKE_EACH_OTHER = ("each", "all")  # these need prompts of equally many tokens
# what is put in: into the null prompt's run and the alternative's, or into the null prompt's alone
VALUES = {
    "alternative": "the value in the other prompt's run",
    "mean": "the mean over the file's null prompts",
    "zero": "zero",
    "resample": "the value of another stimulus of the file, drawn with --seed",
}


@dataclass(frozen=True)
class Mediator:
    """What can be changed in a run, and how it is told.

    `what`: a line for people; `layers`: how its layers count, for axes; `units`: of a model, the columns that
    name its units.
    `sites`: of a model, where its values lie, a site per layer; None for attention weights. `positions`: at
        which of a prompt's tokens it can be changed, by default the first; none for attention weights.
    `within`: of a model, its part of the sets of heads that one sweep of attention weights runs.
    `in_trees`: whether the sweep over trees of prompts serves it (at the slot, with the alternative's
        values).
    `screened`: whether there are so many units that only a part need be run exactly.
    """

    name: str
    what: str
    layers: str
    units: Callable[[LanguageModel], dict[str, np.ndarray]]
    sites: Callable[[Parts], "list[mediation.mediators.sites.Site]"] | None = None
    positions: tuple[str, ...] = ()
    within: Callable[[LanguageModel], list[int]] | None = None
    in_trees: bool = False
    screened: bool = False

    def check_model(self, model: LanguageModel) -> None:
        """Raises InputError for a model in which the values were not found, such as one without MLPs."""
        parts = model.parts
        if not model.masking and not (self.sites(parts) if self.sites else parts.attentions):
            raise InputError(f"this {model.model.config.model_type} model has no {self.name} that could be "
                             f"found ({self.what}): choose another mediator or model",
                             f"no {self.name} in this model")

    def count(self, model: LanguageModel) -> int:
        """Number of units."""
        return len(next(iter(self.units(model).values())))


def _columns(shape, *names, first_layer=0):
    """{name: index of each cell of a table of this shape}."""
    columns = dict(zip(names, (index.ravel() for index in np.indices(shape))))
    return columns | {"layer": columns["layer"] + first_layer}


def _by_layer(model):
    return _columns((model.num_layers + 1,), "layer")


def _by_attention(model, *shape):
    """Columns of units of the blocks that have attention; shape: of the units of one."""
    columns = _columns((len(model.parts.attending), *shape), "layer", "head")
    return columns | {"layer": np.array(model.parts.attending, dtype=int)[columns["layer"]]}


def _by_head(model):
    return _by_attention(model, model.num_heads)


def _by_group(part):
    """Of keys (1) or values (2)."""
    def units(model):
        groups = {len(each.columns) for each in model.parts.projections[part] if each is not None}
        return _by_attention(model, *groups)
    return units


def _heads(model):
    """Indices of single heads among the sets of `heads.heads_layers_model`."""
    return [layer * model.num_heads + head for layer in model.parts.attending
            for head in range(model.num_heads)]


def _layers(model):
    """Of whole layers, and of the model."""
    heads = model.num_layers * model.num_heads
    return [heads + layer for layer in [*model.parts.attending, model.num_layers]]


def _inner(model):
    width = model.parts.mlp_outputs[0].weight.numel() // model.num_neurons
    return _columns((model.num_layers, width), "layer", "neuron", first_layer=1)


def _every_layer_and_all(model):
    return {"layer": np.array([*map(str, model.parts.attending), "all"])}


def _sites(name, *arguments):
    """The function of this name in `sites`, which is imported when a model is there."""
    def of(parts):
        from mediation.mediators import sites

        return getattr(sites, name)(parts, *arguments)
    return of


ONE_PLACE = ("slot", "last", "each")
EVERYWHERE = ("each", "slot", "last")
FROM_EMBEDDING, ATTENTION = "layer (0 = word embedding)", "attention layer"
ALL_AT_ONCE = ("all", "each")
CATALOGUE = {mediator.name: mediator for mediator in (
    Mediator("residuals", "the residual stream before a block, and behind the last",
             "before block (the last: behind all)", _by_layer, _sites("residuals"), EVERYWHERE),
    Mediator("attentions", "a whole attention module's output", ATTENTION,
             _by_attention, _sites("attentions"), EVERYWHERE),
    Mediator("mlps", "the word embedding, or a whole MLP's output", FROM_EMBEDDING, _by_layer,
             _sites("mlps"), ONE_PLACE),
    Mediator("head_outputs", "a head's weighted sum of values", ATTENTION, _by_head,
             _sites("head_outputs"), (*ALL_AT_ONCE, "slot", "last")),
    Mediator("queries", "a head's queries", ATTENTION, _by_head, _sites("projections", 0), ALL_AT_ONCE),
    Mediator("keys", "a head's keys, or a group's of heads that share them", ATTENTION, _by_group(1),
             _sites("projections", 1), ALL_AT_ONCE),
    Mediator("values", "a head's values, or a group's of heads that share them", ATTENTION, _by_group(2),
             _sites("projections", 2), ALL_AT_ONCE),
    Mediator("heads", "a head's attention weights, on prompts of equal length", ATTENTION, _by_head,
             within=_heads),
    Mediator("layers", 'attention weights of all heads of a layer, and of the model ("all")',
             "attention layer (weights of all its heads replaced)", _every_layer_and_all,
             within=_layers),
    Mediator("neurons", "every neuron: a number of the word embedding, or of an MLP's output", FROM_EMBEDDING,
             lambda model: _columns((model.num_layers + 1, model.num_neurons), "layer", "neuron"),
             _sites("neurons"), ONE_PLACE, in_trees=True, screened=True),
    Mediator("inner_neurons", "every hidden unit of an MLP: a number that its last linear map is given",
             "layer (i = MLP of block i - 1)", _inner, _sites("inner_neurons"), ONE_PLACE, screened=True),
)}
DEFAULT = ("residuals", "attentions", "mlps", "head_outputs", "values", "heads", "layers", "neurons")


@dataclass(frozen=True)
class Request:
    """A mediator as it is asked for, a plain record.

    `mediator_name`: in the CATALOGUE; `positions`: one of POSITIONS, "" for attention weights; `values`: what
    is put in, one of VALUES.
    """

    mediator_name: str
    positions: str
    values: str = "alternative"

    @classmethod
    def of(cls, name: str, positions: str | None = None, values: str = "alternative") -> "Request":
        """By names; without `positions` at the mediator's first.

        Raises:
            InputError: a mediator, positions or values that are unknown, or that do not go together.
        """
        if name not in CATALOGUE:
            raise InputError(f"mediator {name!r} is unknown: choose from {', '.join(CATALOGUE)}")
        mediator = CATALOGUE[name]
        if values not in VALUES:
            raise InputError(f"values {values!r} are unknown: choose from {', '.join(VALUES)}")
        if mediator.sites is None:
            if positions or values != "alternative":
                what = f"positions {positions}" if positions else f"values {values}"
                raise InputError(f"{name}: attention weights are replaced by the alternative's on the whole "
                                 f"context, so --{what} does not go with them: leave {name} out")
            return cls(name, "")
        if positions and positions not in mediator.positions:
            raise InputError(f"{name} cannot be changed at positions {positions!r}: choose from "
                             f"{', '.join(mediator.positions)}, or leave {name} out")
        chosen = positions or mediator.positions[0]
        if values == "mean" and chosen in LIKE_EACH_OTHER:
            raise InputError(f"{name}: a mean over prompts needs one place in each of them: use --values "
                             "mean with --positions slot or last")
        return cls(name, chosen, values)

    @property
    def mediator(self) -> Mediator:
        """The record."""
        return CATALOGUE[self.mediator_name]

    @property
    def name(self) -> str:
        """As files are named: what is not the default is told."""
        name = self.mediator_name
        if self.positions and self.positions != self.mediator.positions[0]:
            name += f"_{self.positions}"
        # "mean" alone would be the name of a table of means
        return name if self.values == "alternative" else f"{name}_{self.values}_ablation"

    @property
    def sweep(self) -> str:
        """Which sweep serves it: attention weights, neurons in trees of prompts, or sites."""
        if self.mediator.sites is None:
            return "attention weights"
        in_trees = self.mediator.in_trees and (self.positions, self.values) == ("slot", "alternative")
        return "neurons" if in_trees else "sites"

    def check(self, model: LanguageModel, intervention: Intervention) -> None:
        """Raises InputError (with its `reason`) for a stimulus for which the mediator is not defined."""
        self.mediator.check_model(model)
        if self.mediator.sites is None:
            intervention.check_for_attention()
            return
        from mediation.mediators.positions import places

        model.check_causal()
        places(intervention, self.positions)


def together(requests: Sequence[Request]) -> list[list[Request]]:
    """Requests in groups that come from one sweep, in the catalogue's order: attention weights together."""
    groups: dict[str, list[Request]] = {}
    for request in sorted(requests, key=lambda request: list(CATALOGUE).index(request.mediator_name)):
        groups.setdefault(request.name if request.mediator.sites else request.sweep, []).append(request)
    return list(groups.values())


def requests_at(positions: str | None, values: str) -> list[Request]:
    """What is asked for where no mediator is named: all of DEFAULT that can be changed so, but where every
    token has its turn not what has thousands of units."""
    requests = []
    for name in DEFAULT:
        if positions == "each" and CATALOGUE[name].screened:
            continue
        with suppress(InputError):
            requests.append(Request.of(name, positions, values))
    return requests


def order_of(name: str) -> int:
    """Where a Request's name stands in the catalogue; a mediator that is not in it comes last."""
    fitting = [index for index, mediator in enumerate(CATALOGUE) if f"{name}_".startswith(f"{mediator}_")]
    return fitting[0] if fitting else len(CATALOGUE)

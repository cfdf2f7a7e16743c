"""Sites: the places in a model where a value can be replaced, and what is replaced there (`SiteEdits`).

A site is one layer of a mediator: the input or the output of a module, and which of its numbers are a unit's.
Whatever is replaced lies in such a place, so one descent and one kind of hook serve every mediator. The plain
way to run it (`edited_sites`) is the reference.

Symbols in shapes: B interventions, M replacements of which they are made (unit, positions), T tokens of the
context, U units of a site, C numbers of a unit, W width of a site, L blocks.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from mediation.model.architectures import Parts
from mediation.model.forward import first_argument

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Site:
    """One layer of a mediator.

    `module`, `end`: the module whose INPUT or OUTPUT the values are; `joins`: the block before which an
    intervention's own run begins, L where none has to be run; `columns`: the numbers of each unit.
    `added`: the values are added to the residual stream before block `joins` and nothing else sees them, so
    that the block's predecessor need not be run. `residual`: the values are the residual stream itself.
    `crosses`: later positions see the value within the block itself, as they see keys and values.
    """

    module: nn.Module
    end: str
    joins: int
    columns: Int[Tensor, "U C"]
    added: bool = False
    residual: bool = False
    crosses: bool = False

    def is_inside(self, module: nn.Module) -> bool:
        """Whether the value is one of a part of this module."""
        return any(part is self.module for child in module.children() for part in child.modules())

    def stays_in_place(self, blocks: int) -> bool:
        """Whether no later position can see the value any more, in a model of so many blocks."""
        in_last = self.joins == blocks - 1 and not (self.residual or self.added or self.crosses)
        return self.joins == blocks or in_last


def whole(width: int) -> Int[Tensor, "1 {width}"]:
    """Columns of a site that is one unit."""
    return torch.arange(width)[None]


def each_alone(width: int) -> Int[Tensor, "{width} 1"]:
    """Columns of a site every number of which is a unit."""
    return torch.arange(width)[:, None]


def residuals(parts: Parts) -> list[Site]:
    """The residual stream before every block, and behind the last: L + 1 sites of one unit."""
    blocks, width = list(parts.blocks), parts.architecture.width
    before = [Site(block, INPUT, layer, whole(width), residual=True) for layer, block in enumerate(blocks)]
    return [*before, Site(blocks[-1], OUTPUT, len(blocks), whole(width), residual=True)]


def mlps(parts: Parts) -> list[Site]:
    """Word embedding (site 0) and MLP of every block (site i: of block i - 1): L + 1 sites of one unit."""
    return _outputs(parts, whole(parts.architecture.width))


def neurons(parts: Parts) -> list[Site]:
    """The same, every number a unit."""
    return _outputs(parts, each_alone(parts.architecture.width))


def _outputs(parts, columns):
    if not parts.mlps:
        return []
    embedding = Site(parts.embedding, OUTPUT, 0, columns, added=True)
    return [embedding, *(Site(mlp, OUTPUT, block, columns) for block, mlp in enumerate(parts.mlps))]


def inner_neurons(parts: Parts) -> list[Site]:
    """Hidden layer of every MLP: the input of its last linear map. L sites."""
    return [Site(output, INPUT, block, each_alone(_inputs(output)))
            for block, output in enumerate(parts.mlp_outputs)]


def attentions(parts: Parts) -> list[Site]:
    """Output of every attention module, behind its output projection: a site of one unit for each block that
    has attention, as of all that follow."""
    width = parts.architecture.width
    return [Site(end, OUTPUT, block, whole(width)) for block, end in enumerate(parts.attention_ends)
            if end is not None]


def head_outputs(parts: Parts) -> list[Site]:
    """Every head's weighted sum of values: its slice of the output projection's input."""
    heads = parts.architecture.heads
    return [Site(output, INPUT, block, torch.arange(_inputs(output)).reshape(heads, -1))
            for block, output in enumerate(parts.attention_outputs) if output is not None]


def projections(parts: Parts, which: int) -> list[Site]:
    """What the projections to queries (0), keys (1) or values (2) give, before norms and rotations.

    Heads that share keys and values share a unit.
    """
    return [Site(each.linear_map, OUTPUT, block, each.columns, crosses=which > 0)
            for block, each in enumerate(parts.projections[which]) if each is not None]


def _inputs(linear_map):
    """Width of a linear map's input, whichever way its weight is kept (GPT-2 has it transposed)."""
    return linear_map.nx if hasattr(linear_map, "nx") else linear_map.in_features


@dataclass(frozen=True)
class SiteEdits:
    """B interventions, made of M replacements.

    `row`: the intervention that a replacement belongs to, ascending; `site`, `unit`: what is replaced, as
    indices of `sites` and of its units; `at`: at which of the context's positions.
    `values`: of each site, what is put in, at every position and in all columns.
    """

    sites: Sequence[Site]
    values: Sequence[Float[Tensor, "T _"]]
    row: Int[Tensor, "M"]
    site: Int[Tensor, "M"]
    unit: Int[Tensor, "M"]
    at: Bool[Tensor, "M T"]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Int[Tensor, " R"]) -> "SiteEdits":
        """The interventions with these indices, in this order."""
        place = torch.full((self.count,), -1, dtype=torch.long)
        place[rows] = torch.arange(len(rows))
        row = place[self.row]
        members = (row >= 0).nonzero().squeeze(1)
        members = members[row[members].argsort(stable=True)]
        return SiteEdits(self.sites, self.values, row[members], self.site[members], self.unit[members],
                         self.at[members], len(rows))

    @property
    def joins(self) -> Int[Tensor, "B"]:
        """The block before which each intervention begins."""
        joins = torch.tensor([site.joins for site in self.sites])[self.site]
        return torch.full((self.count,), len(self.sites) + 1).scatter_reduce(0, self.row, joins, "amin")

    @property
    def first(self) -> Int[Tensor, "B"]:
        """The first position that each intervention changes; T where it changes none."""
        length = self.at.shape[1]
        places = torch.where(self.at.any(dim=1), self.at.int().argmax(dim=1), length)
        return torch.full((self.count,), length).scatter_reduce(0, self.row, places, "amin")

    def sets(self, members: Sequence[Sequence[int]]) -> "SiteEdits":
        """One intervention for each list of these interventions' indices: on all that they replace."""
        of_row = [(self.row == row).nonzero().squeeze(1) for row in range(self.count)]
        picked = [torch.cat([of_row[row] for row in rows]) for rows in members]
        row = torch.cat([torch.full_like(each, index) for index, each in enumerate(picked)])
        chosen = torch.cat(picked)
        return SiteEdits(self.sites, self.values, row, self.site[chosen], self.unit[chosen], self.at[chosen],
                         len(members))

    def write(self, index: int, tensor: Float[Tensor, "B S W"], first: int = 0) -> None:
        """Put the values of site `index` into a tensor whose positions begin with `first`, in place."""
        of_site = self.at & (self.site == index)[:, None]
        members, positions = of_site.nonzero(as_tuple=True)
        if not len(members):
            return
        columns = self.sites[index].columns[self.unit[members]].to(tensor.device)  # [places, C]
        positions, rows = positions[:, None].to(tensor.device), self.row[members][:, None].to(tensor.device)
        tensor[rows, positions - first, columns] = self.values[index][positions, columns]


@contextmanager
def edited_sites(edits: SiteEdits, chosen: Sequence[int], length: int, first: int = 0) -> Iterator[None]:
    """While open, a pass runs under the interventions, a row each, at the sites with these indices.

    Plain hooks, nothing else. The sequences are `length` tokens, the first of which is position `first`. A
    descent's rows may be less than B: those that come later replace nothing in these sites.

    >>> with edited_sites(edits, range(len(edits.sites)), len(tokens)):
    ...     logits = model(tokens.expand(len(edits), -1)).logits
    """
    @no_type_check  # a hook is made for every block of every batch
    def writing(index):
        def write(tensor):
            copy = tensor.clone()
            # some blocks give their MLP rows and tokens in one
            rows = copy.view(-1, length if copy.dim() == 2 else copy.shape[-2], copy.shape[-1])
            # where what is cached is made into keys and values later, a descent sees all positions here
            edits.write(index, rows, first + length - rows.shape[1])
            return copy
        return write

    with ExitStack() as stack:
        for index in chosen:
            stack.enter_context(_hooked(edits.sites[index], writing(index)))
        yield


@contextmanager
def recorded_sites(sites: Sequence[Site]) -> Iterator[list[Float[Tensor, "..."]]]:
    """While open, a run leaves the values of these sites in this list, in their order.

    The tensors are part of the run's graph. A site that the run does not come to stays an empty tensor.
    """
    record = [torch.empty(0)] * len(sites)

    @no_type_check
    def keeping(index):
        def keep(tensor):
            record[index] = tensor
            return tensor.clone()  # some blocks add to it in place
        return keep

    with ExitStack() as stack:
        for index, site in enumerate(sites):
            stack.enter_context(_hooked(site, keeping(index)))
        yield record


@contextmanager
def _hooked(site: Site, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, the site's values are what the function makes of them."""
    @no_type_check  # as in `forward.run_base`
    def at_input(module: Any, inputs: tuple, named: dict):
        if inputs:
            return (function(inputs[0]), *inputs[1:]), named
        name = first_argument(module)
        return inputs, named | {name: function(named[name])}

    @no_type_check
    def at_output(_module: Any, _inputs: tuple, output: Any):
        if isinstance(output, (tuple, list)):
            return type(output)([function(output[0]), *output[1:]])
        return function(output)

    if site.end == INPUT:
        handle = site.module.register_forward_pre_hook(at_input, with_kwargs=True)
    else:
        handle = site.module.register_forward_hook(at_output)
    try:
        yield
    finally:
        handle.remove()

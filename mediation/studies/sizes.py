"""A model's sizes and a tree's form, and the operations and bytes that passes of these take.

An operation is one multiplication or addition of a linear map, of attention, or of the unembedding; norms and
activation functions are left out. Which rows get the whole sum over the vocabulary depends on the numbers
that come out: their share is taken as it was measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from mediation.mediators.sweeps import rows_at_once
from mediation.model.language_model import LanguageModel
from mediation.model.readout import FARTHEST, LIKELIEST, ROWS_AT_ONCE, Normaliser
from mediation.model.token_trees import pack

WHOLE_SUM = 0.08  # share of the rows that get the whole sum over the vocabulary (docs/performance.md)
# a process ends up with so many times what one batch takes, pieces that were freed and oneDNN's kernels for
# each size of a batch (measured on SmolLM2-135M): where a batch is of one layer's neurons, and where its rows
# join at many blocks, so that it has another size in each
KEPT_LAYER, KEPT_MIXED = 3, 8
KEPT_GPU = 2  # assumed: PyTorch's allocator on a GPU hands freed pieces out again


@dataclass(frozen=True)
class Sizes:
    """A model's sizes, as far as its costs depend on them.

    `block`: weights of the linear maps of one block; `inner`: the widest of what they give; `element`: bytes
    of a number; `device`: the kind that computes; `masked`, `full_passes`: as of a LanguageModel.
    """

    layers: int
    width: int
    heads: int
    head_size: int
    block: int
    inner: int
    vocabulary: int
    element: int = 4
    device: str = "cpu"
    masked: bool = False
    full_passes: bool = False

    @classmethod
    def of(cls, model: LanguageModel) -> "Sizes":
        """Of a model that is loaded."""
        config = model.model.config.get_text_config()
        head = model.parts.head.weight
        maps = [weight for weight in model.parts.blocks[0].parameters() if weight.dim() > 1]
        heads = model.num_heads or 1  # where none are found attention is taken to be as wide as the model
        size = getattr(config, "head_dim", None) or model.num_neurons // heads
        return cls(model.num_layers, model.num_neurons, heads, size,
                   sum(weight.numel() for weight in maps), max(max(weight.shape) for weight in maps),
                   len(head), model.dtype.itemsize, model.device.type, bool(model.masking), model.full_passes)

    @property
    def units(self) -> int:
        """Neurons, with the word embedding."""
        return (self.layers + 1) * self.width

    @property
    def weights(self) -> int:
        """Bytes of the weights that linear maps multiply by, which are those of the packed copies."""
        return self.element * (self.layers * self.block + self.vocabulary * self.width)

    def blocks(self, count: float, positions: int, nodes: int) -> float:
        """Operations of a row in so many blocks, at these positions, which see so many nodes."""
        attention = 4 * self.heads * self.head_size * positions * nodes
        return count * (2 * self.block * positions + attention)

    def read_out(self, positions: int, rows: int = 1, odds_only: bool = False) -> float:
        """Operations of one of so many rows, whose normaliser is split where rows are many."""
        whole = 2 * self.vocabulary * self.width
        if odds_only:
            return 0.0
        if not self.is_split(rows):
            return positions * whole
        return positions * (2 * self.width * (LIKELIEST + FARTHEST + self.width) + WHOLE_SUM * whole)

    def is_split(self, rows: int) -> bool:
        """Whether so many rows have a normaliser that is split."""
        return self.element == 4 and Normaliser.pays(rows, self.vocabulary, self.width)

    def normalisers(self, positions: int, rows: int, odds_only: bool = False) -> float:
        """Operations of making the split normalisers."""
        return 0.0 if odds_only or not self.is_split(rows) else (
            2 * positions * self.vocabulary * self.width * self.width)

    def full_pass(self, tokens: int, predicted: int = 1) -> float:
        """Operations of one sequence from its first token to its last."""
        return self.blocks(self.layers, tokens, tokens) + self.read_out(predicted)

    def descents(self, layers: Iterable[tuple[int, float]], form: "Form", odds_only: bool = False) -> float:
        """Operations of rows that join the descent: (layer of neurons, how many rows) each, 0 the word
        embedding; layer i joins before block i."""
        layers = list(layers)
        rows = int(sum(count for _, count in layers))
        if self.full_passes:
            return rows * self.full_pass(form.nodes, form.predicted)
        ways = sum(count * self.blocks(self.layers - layer, form.changing, form.nodes)
                   for layer, count in layers)
        reading = rows * self.read_out(form.predicted, rows, odds_only)
        return ways + reading + self.normalisers(form.predicted, rows, odds_only)

    def batch_bytes(self, form: "Form", rows: int, asked: int | None, kept: int = KEPT_MIXED) -> float:
        """That batches take: of one on its way through a block and of its logits, times `kept`."""
        kept = kept if self.device == "cpu" else KEPT_GPU
        size = min(rows, asked or rows_at_once(self.inner, self.device, form.changing))
        tokens = size * (form.nodes if self.full_passes else form.changing)
        attention = 3 * size * self.heads * form.changing * form.nodes
        block = tokens * (3 * self.inner + 8 * self.width) + attention
        logits = 2 * min(size * form.predicted, ROWS_AT_ONCE) * self.vocabulary
        return kept * self.element * (block + logits)

    def graph_bytes(self, tokens: int, length: int) -> float:
        """That a forward pass keeps for its backward pass."""
        of_block = tokens * (4 * self.inner + 12 * self.width) + 3 * tokens * self.heads * length
        return self.element * (self.layers * of_block + 4 * tokens // max(1, length) * self.vocabulary)


@dataclass(frozen=True)
class Form:
    """Of a tree of prompts: its nodes, how many from the first changed one on, positions that predict."""

    nodes: int
    changing: int
    predicted: int

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], candidates: Sequence[Sequence[int]], first: int) -> "Form":
        """Of prompts and candidates as they are packed."""
        nodes, predicted = _packed(tuple(map(tuple, prompts)), tuple(map(tuple, candidates)))
        return cls(nodes, nodes - first, predicted)


@lru_cache(maxsize=10_000)
def _packed(prompts: tuple, candidates: tuple) -> tuple[int, int]:
    """Nodes of a tree, and how many of them predict; asked for again for every intervention type and
    method."""
    tree = pack(prompts, candidates, "cpu")
    return len(tree.tokens), len({position for positions, _ in tree.predictions for position in positions})

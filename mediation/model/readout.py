"""What a residual stream that left the last block says of tokens: logits, and log-probabilities.

The normaliser between the two sums over the whole vocabulary, a sixth to a quarter of a sweep's work. Rows of
a sweep lie near its base run, so `Normaliser` sums some thousand tokens exactly and expands the others around
the base run, where a bound says that it may.

Symbols in shapes: B rows, P positions, S tokens that can change, D hidden size, V vocabulary.
"""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any, no_type_check

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from mediation.errors import InputError
from mediation.model.architectures import Parts
from mediation.model.forward import logits_behind
from mediation.model.half_weights import times
from mediation.model.products import product, version_of
from mediation.model.token_trees import Prediction

ROWS_AT_ONCE = 96  # rows of logits: larger buffers spend their time in page faults
NOT_PROBABILITIES = ("the model gave probabilities that are zero or not numbers: try --dtype float32 or "
                     "float64, or check the model's weights")
TOKENS_AT_ONCE = 8192  # of the unembedding, where it is copied
# tokens whose logits are always computed: the most probable ones, and of the others those least like the rest
LIKELIEST, FARTHEST = 1024, 256
TOLERANCE = 2e-6  # in a log-probability; a float32 sum over the vocabulary is as far off
# bytes of normalisers that are kept: of SmolLM2's 70, both alternatives in 17 templates twice over
MEMORY = 300_000_000

# unembedding -> {base row and version of the weight: its Normaliser}, the last MEMORY bytes of them
_normalisers: weakref.WeakKeyDictionary[nn.Linear, dict[Any, Any]] = weakref.WeakKeyDictionary()


class Normaliser:
    """Log of the sum of exp(logits) for rows near a base row, mostly without the whole vocabulary.

    It is off by at most TOLERANCE, and rounding. With d a row's difference to the base row, the sum over the
    other tokens (not LIKELIEST, not FARTHEST) is the base run's times E[exp(w.d)], a token drawn by its base
    probability and w its unembedding. With the mean m, u = (w - m).d has E[u] = 0 and E[u^2] = d.C d for the
    covariance C of the w, so E[exp(w.d)] = exp(m.d) (1 + E[u^2] / 2 + r). No token is left out of m and C.
    By Taylor's theorem |r| <= E[|u|^3] exp(U) / 6 <= U exp(U) E[u^2] / 6, where U is a bound of |u| over all
    these tokens, which is the largest |w - m| times |d|. Rows for which that, times the other tokens' share
    of the sum, is not below TOLERANCE get the full sum.

    Args:
        head: the unembedding; base: the base row behind the final norm.
    """

    def __init__(self, head: nn.Linear, base: Float[Tensor, "D"]) -> None:
        self.base = base
        logits = head(base).double()
        exact = logits.topk(LIKELIEST).indices  # tokens that are summed exactly
        logits[exact] = -torch.inf  # what is left in `logits` is expanded
        mean = self._mean(head, logits)
        # the bound U is set by the token farthest from the mean: without the few farthest it is much smaller
        chunks = [(chunk.to(base.dtype) - mean).norm(dim=1) for chunk in head.weight.split(TOKENS_AT_ONCE)]
        distances = torch.cat(chunks).masked_fill(logits == -torch.inf, 0)
        exact = torch.cat([exact, distances.topk(FARTHEST).indices])
        logits[exact] = -torch.inf
        weight = head.weight[exact].to(base.dtype)
        self.exact = product(weight, None if head.bias is None else head.bias[exact])
        self.log_sum = logits.logsumexp(0)  # of the others in the base run
        self.mean, self.farthest = self._mean(head, logits), 0.0
        covariance = base.new_zeros(len(base), len(base))
        for chunk in (logits > -torch.inf).nonzero().flatten().split(TOKENS_AT_ONCE):
            centred = head.weight[chunk].to(base.dtype) - self.mean
            probabilities = (logits[chunk] - self.log_sum).exp().to(base.dtype)
            covariance = covariance + (centred * probabilities.unsqueeze(1)).T @ centred
            self.farthest = max(self.farthest, float(centred.norm(dim=1).max()))
        self.spread = product(covariance)

    def _mean(self, head: nn.Linear, logits: Float64[Tensor, "V"]) -> Float[Tensor, "D"]:
        """Of the unembeddings, weighted by exp(logits)."""
        return times(logits.softmax(0).to(self.base.dtype), head.weight.T)

    @classmethod
    def of(cls, head: nn.Linear, base: Float[Tensor, "D"]) -> "Normaliser":
        """The normaliser of a base row, made once: sweeps over one prompt ask for it again and again."""
        normalisers = _normalisers.setdefault(head, {})
        key = *version_of(head), base.cpu().numpy().tobytes()
        normalisers[key] = normalisers.pop(key, None) or cls(head, base)  # what was asked for last comes last
        width = base.numel()
        count = MEMORY // (4 * width * (width + LIKELIEST + FARTHEST))
        for oldest in list(normalisers)[:-max(2, count)]:
            del normalisers[oldest]
        return normalisers[key]

    @staticmethod
    def serves(head: nn.Linear, dtype: torch.dtype, rows: int) -> bool:
        """Whether it is worth its making, which costs as much as D rows' full sums.

        It takes as many rows, a plain linear map to a large vocabulary, and float32: half precision cannot
        sum.
        """
        tokens, width = head.weight.shape
        return type(head) is nn.Linear and dtype == torch.float32 and Normaliser.pays(rows, tokens, width)

    @staticmethod
    def pays(rows: int, tokens: int, width: int) -> bool:
        """`serves` by numbers alone: rows, tokens of the vocabulary, hidden size."""
        return rows > width and tokens > 4 * (LIKELIEST + FARTHEST + width)

    def __call__(self, head: nn.Linear, rows: Float[Tensor, "B D"]) -> Float64[Tensor, "B"]:
        """Of each row; `head`, which a kept Normaliser must not hold on to, is the one that it is of."""
        difference = rows - self.base
        exact = self.exact(rows).logsumexp(dim=1).double()
        square = (self.spread(difference) * difference).sum(dim=1).double()  # E[u^2]
        others = self.log_sum + (difference @ self.mean).double() + (square / 2).log1p()
        total = torch.logaddexp(exact, others)
        largest = self.farthest * difference.norm(dim=1).double()  # U
        error = (others - total).exp() * largest * largest.exp() * square / 6
        is_far = ~(error < TOLERANCE)  # true for what is not a number
        for far in is_far.nonzero().flatten().split(ROWS_AT_ONCE):
            total[far] = log_sum_exp(head, rows[far])
        return total


def widen(head: nn.Linear) -> None:
    """Make the unembedding of a half-precision model give float32 logits.

    It would round them to two or three digits on their way out.
    """
    head.forward = partial(_float32_logits, head)  # type: ignore[method-assign]  # exchanged on purpose


def _float32_logits(head: nn.Linear, hidden: Float[Tensor, "... D"]) -> Float[Tensor, "... V"]:
    """The unembedding is copied in chunks."""
    chunks = [times(hidden.float(), chunk) for chunk in head.weight.split(TOKENS_AT_ONCE)]
    return torch.cat(chunks, dim=-1) + (0 if head.bias is None else head.bias.float())


def log_sum_exp(head: nn.Linear, rows: Float[Tensor, "B D"]) -> Float64[Tensor, "B"]:
    """Log of the sum of exp(logits) over the whole vocabulary."""
    return torch.cat([_log_sum_exp_of(_wide(head(chunk))).double() for chunk in rows.split(ROWS_AT_ONCE)])


def _log_sum_exp_of(logits):
    """`torch.logsumexp` over the last dimension, to the digit, in the place of the logits: their copy would
    take longer than the rest."""
    largest = logits.detach().amax(dim=1, keepdim=True)  # whatever it is, the sum is the same
    return logits.sub_(largest).exp_().sum(dim=1).log() + largest[:, 0]


def _wide(logits):
    """At least float32: half precision has too few digits for a sum over the vocabulary."""
    return logits if logits.dtype == torch.float64 else logits.float()


def check_odds_only(tokens: Sequence[Sequence[int]]) -> None:
    """Raises InputError for a candidate of several tokens: normalisers of other positions do not cancel."""
    longest = max(tokens, key=len)
    if len(longest) > 1:
        raise InputError(f"odds_only is for candidates of one token each, one has "
                         f"{len(longest)} ({longest}): leave --odds_only out, or choose other --candidates")


class ReadOut:
    """Log-probabilities of predictions from residual streams of many rows, near one base run.

    Args:
        parts: the model's modules.
        predictions: which tokens are predicted at which positions; one column of the result each.
        base: residual stream of the base run behind the last block; rows: how many rows are to be read out.
        odds_only: leave the normaliser out: columns are then known up to what two tokens predicted at one
            position share.
        fast: one more column, the largest Euclidean distance from the base run behind the final norm, over
            the positions.

    Raises:
        InputError: `odds_only` for a prediction of several tokens.
    """

    def __init__(
        self, parts: Parts, predictions: Sequence[Prediction], base: Float[Tensor, "T D"] | None = None,
        rows: int = 1, odds_only: bool = False, fast: bool = False,
    ) -> None:
        if odds_only:
            check_odds_only([tokens for _, tokens in predictions])
        self.parts, self.predictions, self.odds_only, self.fast = parts, predictions, odds_only, fast
        self.positions = sorted({position for positions, _ in predictions for position in positions})
        self.columns = len(predictions) + fast
        self.normalisers: dict[int, Normaliser] = {}
        if base is not None and parts.final_norm is not None:
            self.base: Float[Tensor, "1 P D"] = parts.final_norm(base[None, self.positions])
            if not odds_only and Normaliser.serves(parts.head, base.dtype, rows):
                self.normalisers = {position: Normaliser.of(parts.head, row)
                                    for position, row in zip(self.positions, self.base[0])}

    def __call__(self, hidden: Float[Tensor, "B S D"], first: int = 0) -> Float64[Tensor, "B {self.columns}"]:
        """Mean token log-probability of each prediction, on the CPU.

        Args:
            hidden: residual streams that left the last block, from position `first` on.
        """
        hidden = hidden[:, [position - first for position in self.positions]]
        if self.parts.final_norm is None:
            at_once = max(1, ROWS_AT_ONCE // len(self.positions))
            return torch.cat([self._by_library(rows) for rows in hidden.split(at_once)]).cpu()
        normed = self.parts.final_norm(hidden)
        rows = dict(zip(self.positions, normed.unbind(dim=1)))
        sums: dict[int, Tensor] = {}
        if self.normalisers:
            sums = {position: self.normalisers[position](self.parts.head, row)
                    for position, row in rows.items()}
        elif not self.odds_only:
            # all positions at once: with few rows, reading the unembedding is most of the time
            of_all = log_sum_exp(self.parts.head, normed.flatten(0, 1)).reshape(normed.shape[:2])
            sums = dict(zip(self.positions, of_all.unbind(dim=1)))
        columns = []
        for positions, tokens in self.predictions:
            of_tokens = [self._logit(rows[position], token) - sums.get(position, 0.0)
                         for position, token in zip(positions, tokens)]
            columns.append(torch.stack(of_tokens).mean(dim=0))
        if self.fast:
            columns.append((normed - self.base).norm(dim=2).amax(dim=1).double())
        return torch.stack(columns, dim=1).cpu()

    def _by_library(self, hidden: Float[Tensor, "B P D"]) -> Float64[Tensor, "B {self.columns}"]:
        """Where logits are not a linear map of a normed residual stream: capped, scaled."""
        logits = _wide(logits_behind(self.parts, hidden))
        sums = logits.logsumexp(dim=2).double()  # [B, P]
        columns = []
        for positions, tokens in self.predictions:
            places = [self.positions.index(position) for position in positions]
            of_tokens = logits[:, places, list(tokens)].double()
            columns.append((of_tokens if self.odds_only else of_tokens - sums[:, places]).mean(dim=1))
        return torch.stack(columns, dim=1)

    @no_type_check  # it is called for every token, with what __call__ has checked
    def _logit(self, rows: Float[Tensor, "B D"], token: int) -> Float64[Tensor, "B"]:
        """Of one token."""
        head = self.parts.head
        bias = 0.0 if head.bias is None else head.bias[token].double()
        return rows.double() @ head.weight[token].double() + bias

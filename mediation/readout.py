"""What a residual stream that left the last block says of tokens: logits, and the normaliser that makes them log-probabilities.

The normaliser sums over the whole vocabulary, a sixth to a quarter of a sweep's work. Rows of a sweep lie near its base run, so
`Normaliser` sums the likeliest tokens exactly and expands the others around the base run.

Shapes: B rows, P positions, D hidden size, V vocabulary.
"""

import torch
from torch import nn

from .errors import InputError
from .products import product

ROWS = 96  # rows of logits held at once: larger buffers spend their time in page faults
LIKELIEST = 1024  # tokens whose logits are always computed
SAMPLED = 2048  # of the others
TOLERANCE = 1e-6  # in a log-probability; a float32 sum over the vocabulary is 2e-6 off
WORTH = 100  # rows from which on a Normaliser is worth its making


class Normaliser:
    """Log of the sum of exp(logits) for rows near a base row, mostly without the whole vocabulary.

    With d a row's difference to the base row and w a token's unembedding, the sum over the unlikely tokens is the base run's times
    E[exp(w.d)], tokens drawn by their base probability: exp(m.d) E[exp(u)] with u = (w - m).d and the exact mean m. As E[u] = 0, E[exp(u)] is
    E[exp(u) - u], which a fixed sample of tokens gives well. Its standard error is about the variance of u over the square root of twice the
    sample; rows for which twice that, times the share of the unlikely tokens, exceeds TOLERANCE get the full sum.

    Args:
        head: the unembedding, a linear layer; base: [D], the base row behind the final norm; fast: the sample's products in bfloat16.
    """

    def __init__(self, head, base, fast=False):
        self.head, self.base = head, base
        logits = head(base).double()
        self.likeliest = logits.topk(LIKELIEST).indices
        logits[self.likeliest] = -torch.inf
        self.log_sum = logits.logsumexp(0)  # of the unlikely tokens in the base run
        probability = (logits - self.log_sum).exp()
        self.mean = probability.to(base.dtype) @ head.weight
        drawn = torch.multinomial(probability.cpu(), SAMPLED, replacement=True, generator=torch.Generator().manual_seed(0)).to(base.device)
        self.likely = product(head.weight[self.likeliest], None if head.bias is None else head.bias[self.likeliest])
        self.dtype = torch.bfloat16 if fast else base.dtype
        self.centred = product((head.weight[drawn] - self.mean).to(self.dtype))

    @staticmethod
    def serves(head, dtype, rows):
        """Whether it is worth its making: many rows, a plain linear layer over a large vocabulary, float32 (half precision cannot sum)."""
        return rows > WORTH and type(head) is nn.Linear and dtype == torch.float32 and len(head.weight) > 4 * (LIKELIEST + SAMPLED)

    def __call__(self, rows):
        """rows [B, D] -> [B], float64."""
        difference = rows - self.base
        likely = self.likely(rows).logsumexp(dim=1).double()
        u = self.centred(difference.to(self.dtype)).to(rows.dtype)  # [B, SAMPLED]
        unlikely = self.log_sum + (difference @ self.mean).double() + (u.exp() - u).mean(dim=1).double().log()
        total = torch.logaddexp(likely, unlikely)
        error = 2 * (unlikely - total).exp() * u.double().square().mean(dim=1) / (2 * SAMPLED) ** 0.5
        for some in (~(error < TOLERANCE)).nonzero().flatten().split(ROWS):
            total[some] = log_sum_exp(self.head, rows[some])
        return total


def log_sum_exp(head, rows):
    """Log of the sum of exp(logits) over the whole vocabulary, rows [B, D] -> float64 [B]."""
    return torch.cat([_wide(head(some)).logsumexp(dim=1).double() for some in rows.split(ROWS)])


def _wide(logits):
    """At least float32: half precision has too few digits for a sum over the vocabulary."""
    return logits if logits.dtype == torch.float64 else logits.float()


def check_odds_only(tokens):
    """Raises InputError for a candidate of several tokens: normalisers of other positions do not cancel."""
    longest = max(tokens, key=len)
    if len(longest) > 1:
        raise InputError(f"odds_only is for candidates of one token each, one has "
                         f"{len(longest)} ({longest}): leave --odds_only out, or choose other --candidates")


class ReadOut:
    """Log-probabilities of predictions from residual streams of many rows, near one base run.

    Args:
        parts: the model's modules.
        predictions: tuple of (positions, tokens): which tokens are predicted at which positions; one column of the result each.
        base: residual stream of the base run [T, D] behind the last block; rows: how many rows are to be read out.
        odds_only: leave the normaliser out: columns are then known up to what two tokens predicted at one position share.
        fast: the normaliser's sample in bfloat16, and one more column, the largest Euclidean distance from the base run behind the final norm,
            over the positions.

    Raises:
        InputError: `odds_only` for a prediction of several tokens.
    """

    def __init__(self, parts, predictions, base=None, rows=1, odds_only=False, fast=False):
        if odds_only:
            check_odds_only([tokens for _, tokens in predictions])
        self.parts, self.predictions, self.odds_only, self.fast = parts, predictions, odds_only, fast
        self.positions = sorted({position for positions, _ in predictions for position in positions})
        self.columns = len(predictions) + fast
        self.base = None if base is None else parts.final_norm(base[None, self.positions])  # [1, P, D]
        self.normalisers = {}
        if base is not None and not odds_only and Normaliser.serves(parts.head, base.dtype, rows):
            self.normalisers = {position: Normaliser(parts.head, row, fast) for position, row in zip(self.positions, self.base[0])}

    def __call__(self, hidden, first=0):
        """Mean token log-probability of each prediction.

        Args:
            hidden: [B, T - first, D], residual streams that left the last block, from position `first` on.

        Returns: float64 [B, columns], on the CPU.
        """
        normed = self.parts.final_norm(hidden[:, [position - first for position in self.positions]])
        rows = dict(zip(self.positions, normed.unbind(dim=1)))
        sums = {}
        if self.normalisers:
            sums = {position: self.normalisers[position](row) for position, row in rows.items()}
        elif not self.odds_only:  # all positions at once: with few rows, reading the unembedding is most of the time
            sums = dict(zip(self.positions, log_sum_exp(self.parts.head, normed.flatten(0, 1)).reshape(normed.shape[:2]).unbind(dim=1)))
        columns = []
        for positions, tokens in self.predictions:
            each = [self._logit(rows[position], token) - sums.get(position, 0.0) for position, token in zip(positions, tokens)]
            columns.append(torch.stack(each).mean(dim=0))
        if self.fast:
            columns.append((normed - self.base).norm(dim=2).amax(dim=1).double())
        return torch.stack(columns, dim=1).cpu()

    def _logit(self, rows, token):
        """Logit of one token, rows [B, D] -> float64 [B]."""
        return rows.double() @ self.parts.head.weight[token].double() + (0.0 if self.parts.head.bias is None else self.parts.head.bias[token].double())

"""The read-out: the split normaliser against the full sum, and where it gives way to it."""

import gc
import weakref

import pytest
import torch
from torch import nn

from mediation.model import readout
from mediation.model.readout import FARTHEST, LIKELIEST, TOLERANCE, Normaliser, ReadOut, log_sum_exp

WIDTH, VOCABULARY = 32, 20_000


@pytest.fixture
def head():
    """An unembedding with peaked output, as a trained model's: few tokens have most of the probability."""
    torch.manual_seed(0)
    made = nn.Linear(WIDTH, VOCABULARY, bias=False)
    made.weight.data = torch.randn(VOCABULARY, WIDTH) * 0.5
    return made.requires_grad_(False)


def full_sums(head, rows):
    """In float64."""
    return (rows.double() @ head.weight.double().T
            + (0 if head.bias is None else head.bias.double())).logsumexp(dim=1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("step", [1e-4, 1e-2, 1.0])
def test_split_normaliser_equals_the_full_sum(head, step, bias):
    if bias:
        head.bias = nn.Parameter(torch.randn(VOCABULARY), requires_grad=False)
    base = torch.randn(WIDTH)
    rows = base + step * torch.randn(200, WIDTH)
    torch.testing.assert_close(Normaliser(head, base)(head, rows), full_sums(head, rows), rtol=0,
                               atol=TOLERANCE + 3e-6)  # 3e-6: float32


@pytest.mark.parametrize("rank", [2_000, 10_000, 19_999])
@pytest.mark.parametrize("length", [10, 100, 1000])
@pytest.mark.parametrize("others", [0, 400])
def test_tokens_whose_logits_grow_strongly_are_seen(head, rank, length, others):
    """One that is unlikely in the base run and far from all others, or as far as some others.

    No sample need hold it.
    """
    base = torch.randn(WIDTH)
    by_probability = (head.weight @ base).argsort(descending=True)
    directions = torch.randn(1 + others, WIDTH)
    # likely or not in the base run is as it was
    directions -= (directions @ base).unsqueeze(1) * base / base.square().sum()
    directions *= length / directions.norm(dim=1, keepdim=True)
    head.weight[by_probability[rank]] += directions[0]
    head.weight[by_probability[2_100: 2_100 + others]] += directions[1:]
    steps = torch.logspace(-4, 0.5, 200).unsqueeze(1)
    rows = base + steps * directions[0] / length
    torch.testing.assert_close(Normaliser(head, base)(head, rows), full_sums(head, rows), rtol=2e-6,
                               atol=TOLERANCE + 3e-6 + 3e-7 * length)  # float32


def test_normalisers_are_made_once_for_each_base_row_and_weight(head, monkeypatch):
    monkeypatch.setattr(readout, "MEMORY", 3 * 4 * WIDTH * (WIDTH + LIKELIEST + FARTHEST))
    rows = torch.randn(4, WIDTH)
    first = [Normaliser.of(head, row) for row in rows]
    reuses = [Normaliser.of(head, row) is before for row, before in zip(reversed(rows), reversed(first))]
    assert reuses == [True, True, True, False]
    head.weight.mul_(1.1)
    again = Normaliser.of(head, rows[0])
    torch.testing.assert_close(again(head, rows[:1]), full_sums(head, rows[:1]), rtol=0,
                               atol=TOLERANCE + 3e-6)


def test_rows_far_from_the_base_get_the_full_sum(head):
    base = torch.randn(WIDTH)
    rows = torch.cat([base + 1e-4 * torch.randn(100, WIDTH), base + 3 * torch.randn(20, WIDTH)])
    seen = []
    head.register_forward_hook(lambda _, inputs, output: seen.append(len(inputs[0])))
    normaliser = Normaliser(head, base)
    seen.clear()
    sums = normaliser(head, rows)
    assert sum(seen) == 20
    torch.testing.assert_close(sums[100:], log_sum_exp(head, rows[100:]), rtol=0, atol=0)


def test_where_it_does_not_serve(head):
    assert Normaliser.serves(head, torch.float32, 1000)
    assert not any(Normaliser.serves(head, dtype, 1000)
                   for dtype in (torch.float64, torch.bfloat16, torch.float16))
    assert not Normaliser.serves(head, torch.float32, WIDTH)
    assert not Normaliser.serves(nn.Linear(WIDTH, 4 * (LIKELIEST + FARTHEST)), torch.float32, 1000)


def test_odds_only_keeps_differences(toy_model):
    model = toy_model("llama")
    hidden = torch.randn(5, 3, model.num_neurons)
    predictions = (([2], [7]), ([2], [9]))
    full, odds = (ReadOut(model.parts, predictions, odds_only=odds_only)(hidden)
                  for odds_only in (False, True))
    torch.testing.assert_close(full[:, 0] - full[:, 1], odds[:, 0] - odds[:, 1], rtol=1e-9, atol=1e-9)
    assert (full.exp() < 1).all() and not torch.allclose(full, odds)


def test_a_kept_normaliser_does_not_keep_its_model(head):
    gone = weakref.ref(head)
    Normaliser.of(head, torch.randn(WIDTH))
    del head
    gc.collect()
    normalisers = [part for part in gc.get_objects() if isinstance(part, Normaliser)]
    assert all(not any(value is gone() for value in vars(part).values()) for part in normalisers)

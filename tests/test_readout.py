"""The read-out: the split normaliser against the full sum, and where it gives way to it."""

import pytest
import torch
from torch import nn

from mediation.readout import LIKELIEST, SAMPLED, TOLERANCE, Normaliser, ReadOut, log_sum_exp

WIDTH, VOCABULARY = 32, 20_000


@pytest.fixture
def head():
    """An unembedding whose output is as peaked as a trained model's: a few tokens have most of the probability."""
    torch.manual_seed(0)
    made = nn.Linear(WIDTH, VOCABULARY, bias=False)
    made.weight.data = torch.randn(VOCABULARY, WIDTH) * 0.5
    return made.requires_grad_(False)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("step", [1e-4, 1e-2, 1.0])
def test_split_normaliser_equals_the_full_sum(head, step, bias, fast):
    if bias:
        head.bias = nn.Parameter(torch.randn(VOCABULARY), requires_grad=False)
    base = torch.randn(WIDTH)
    rows = base + step * torch.randn(200, WIDTH)
    reference = (rows.double() @ head.weight.double().T + (head.bias.double() if bias else 0)).logsumexp(dim=1)
    torch.testing.assert_close(Normaliser(head, base, fast)(rows), reference, rtol=0, atol=TOLERANCE + 3e-6)  # 3e-6: float32


def test_rows_far_from_the_base_get_the_full_sum(head):
    base = torch.randn(WIDTH)
    rows = torch.cat([base + 1e-4 * torch.randn(100, WIDTH), base + 3 * torch.randn(20, WIDTH)])
    seen = []
    head.register_forward_hook(lambda _, inputs, output: seen.append(len(inputs[0])))
    normaliser = Normaliser(head, base)
    seen.clear()
    found = normaliser(rows)
    assert sum(seen) == 20
    torch.testing.assert_close(found[100:], log_sum_exp(head, rows[100:]), rtol=0, atol=0)


def test_where_it_does_not_serve(head):
    assert Normaliser.serves(head, torch.float32, 1000)
    assert not any(Normaliser.serves(head, dtype, 1000) for dtype in (torch.float64, torch.bfloat16, torch.float16))
    assert not Normaliser.serves(head, torch.float32, 10)
    assert not Normaliser.serves(nn.Linear(WIDTH, LIKELIEST + SAMPLED), torch.float32, 1000)


def test_odds_only_keeps_differences(toy_model):
    model = toy_model("llama")
    hidden = torch.randn(5, 3, model.num_neurons)
    predictions = (([2], [7]), ([2], [9]))
    full, odds = (ReadOut(model.parts, predictions, odds_only=odds_only)(hidden) for odds_only in (False, True))
    torch.testing.assert_close(full[:, 0] - full[:, 1], odds[:, 0] - odds[:, 1], rtol=1e-9, atol=1e-9)
    assert (full.exp() < 1).all() and not torch.allclose(full, odds)

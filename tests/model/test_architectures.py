"""What is found in models of many types, and that it is right; what is not found or does not hold is said.

`python -m tests.architectures` does the same for every type of the library.
"""

import pytest
import torch
from torch import nn

from experiment import Intervention, Model
from mediation.errors import InputError
from mediation.mediators.catalogue import CATALOGUE
from mediation.mediators.site_sweeps import run_with_sites, sweep_sites
from mediation.mediators.sites import residuals
from mediation.model import probes
from mediation.model.architectures import parts_of
from mediation.model.discovery import discover, sample_tokens, watch
from mediation.model.fast_rows import FastRows
from mediation.model.forward import Resumption, run_base
from mediation.model.token_trees import pack
from tests.architectures import TOLERANCE, every_unit, row_of
from tests.helpers import InDouble
from tests.tiny_models import tiny_model

ALL = {"residuals", "attentions", "mlps", "head_outputs", "queries", "keys", "values", "inner_neurons",
       "neurons", "heads"}
MIXTURE = ALL - {"inner_neurons"}
PREFIX = {  # with the mediators that are found
    "gpt2": ALL, "llama": ALL, "mistral": ALL, "qwen2": ALL, "qwen3": ALL, "phi3": ALL, "gpt_neox": ALL,
    "opt": ALL, "gemma3_text": ALL,  # those that all other tests run on
    "gemma2": ALL,  # logits capped, norms behind the MLP
    "olmo2": ALL,  # norms over all heads' queries
    "cohere2": ALL,  # attention and MLP side by side, logits scaled
    "granite": ALL,  # everything scaled
    "glm4": ALL, "phi": ALL, "starcoder2": ALL, "stablelm": ALL,
    "mixtral": MIXTURE, "qwen3_moe": MIXTURE,
    "gpt_oss": MIXTURE,  # sinks beside the weights
    "deepseek_v3": MIXTURE - {"keys"},  # part of the keys is shared by all heads
    "bert": ALL,  # as a decoder: norms behind the sums
    "phimoe": {"residuals", "mlps", "neurons", "heads"},  # a window that the mask tells of
    "ctrl": ALL,  # scales its embedding in place
    "falcon": {"residuals", "mlps", "inner_neurons", "neurons"},  # attention without the interface
}
FULL_PASSES = {"bloom": "resumed", "gemma4_text": "embedding", "qwen3_next": "get_conv_state",
               "bart": "branches"}
REFUSED = {"xlnet": "later tokens", "reformer": "positions in ways of its own"}


@pytest.mark.parametrize("kind", PREFIX)
def test_every_unit_of_what_is_found_equals_full_passes(kind):
    row = row_of(kind)
    assert row.served == "from a prefix" and not row.why, row
    assert set(row.mediators.split()) == PREFIX[kind]
    assert row.largest_difference < TOLERANCE and row.smallest_effect > 1e-3


@pytest.mark.parametrize("kind", FULL_PASSES)
def test_what_cannot_be_resumed_runs_full_passes_and_says_why(kind):
    row = row_of(kind)
    assert row.served == "full passes" and FULL_PASSES[kind] in row.why
    assert {"residuals", "mlps"} <= set(row.mediators.split()) and row.smallest_effect > 1e-3
    assert row.largest_difference < TOLERANCE and ("heads" in row.mediators) == (kind != "bloom")


@pytest.mark.parametrize("kind", REFUSED)
def test_what_sees_later_tokens_is_refused(kind):
    row = row_of(kind)
    assert row.served == "refused" and REFUSED[kind] in row.why


def seen_in(model):
    """What discovery finds."""
    tokens = sample_tokens(model)
    return discover(model, tokens, watch(model, tokens[:1]))


def test_heads_whose_output_is_no_weighted_sum_of_values_are_left_out():
    model = tiny_model("granite_swa")
    found = seen_in(model)
    assert not found.attentions and found.attention_outputs


def test_attention_of_some_blocks_is_found_and_the_others_have_none():
    model = tiny_model("qwen3_next")
    found = seen_in(model)
    parts = parts_of(model, found)
    assert found.attentions == ("", "model.layers.1.self_attn", "")
    assert parts.attending == [1] and parts.attentions[0] is None and parts.projections[0][2] is None
    assert [site.joins for site in CATALOGUE["keys"].sites(parts)] == [1]


def test_an_attention_that_several_blocks_have_in_common_is_left_out():
    model = tiny_model("llama")
    layers = model.model.layers
    layers[2].self_attn = layers[0].self_attn
    found = seen_in(model)
    assert not found.heads and not found.attentions and not found.queries and found.mlps


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)


@DTYPES
def test_a_change_that_a_plain_replay_hides_is_seen(dtype):
    """Blocks that keep something of the run before: without a change the replay is exact."""
    model = tiny_model("llama").to(dtype)
    seen = {}

    class Keeping(nn.Module):
        """Adds what it was given when it first saw this many tokens."""

        def forward(self, hidden):
            kept = seen.setdefault(hidden.shape[-2], hidden[:1].detach())
            return hidden + kept

    layers = model.model.layers
    layers[1].mlp = nn.Sequential(layers[1].mlp, Keeping())
    with torch.no_grad(), InDouble():
        found = probes.probed(model)
    assert not found.resumes and "residual stream is another" in found.obstacle


def test_an_mlp_is_run_at_some_tokens_alone_where_it_looks_at_no_others():
    model = tiny_model("llama")
    mlp = model.model.layers[1].mlp

    class Shifted(nn.Module):
        """Gives what the token before is worth, too."""

        def forward(self, hidden):
            return mlp(hidden) + nn.functional.pad(hidden, (0, 0, 1, 0))[..., :-1, :]

    with torch.no_grad(), InDouble():
        assert probes.probed(model).mlps_alone
        model.model.layers[1].mlp = Shifted()
        assert not probes.probed(model).mlps_alone


@DTYPES
def test_prompts_that_see_each_other_are_refused(dtype):
    model = tiny_model("llama").to(dtype)
    norm = model.model.norm

    class OverTheBatch(nn.Module):
        def forward(self, hidden):
            return norm(hidden) - hidden.mean(dim=0, keepdim=True)

    model.model.norm = OverTheBatch()
    with InDouble(), pytest.raises(InputError, match="cannot be studied: prompts that are run together"):
        probes.probed(model)


def test_half_precision_hides_no_scale_and_is_left_as_it_was():
    model = tiny_model("granite").bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = probes.probed(model)
    assert found.resumes and not found.embedding_adds and not found.mlp_adds
    after = model.state_dict()
    assert all(tensor.dtype == after[name].dtype and torch.equal(tensor, after[name])
               for name, tensor in before.items())


def test_a_window_that_no_mask_tells_of_refuses_trees():
    model = tiny_model("gpt_neo", window_size=256)
    assert "window that no mask tells of" in probes.probed(model).obstacle


def test_other_weights_of_one_config_are_asked_anew(tmp_path, monkeypatch):
    """An MLP that gives nothing hides what a block does with it."""
    monkeypatch.setattr(probes, "cache_folder", lambda: tmp_path)
    model = tiny_model("granite")
    for block in model.model.layers:
        block.mlp.down_proj.weight.data.zero_()
    with InDouble():
        assert not probes.known_architecture(model).mlp_adds
        assert not probes.known_architecture(tiny_model("granite")).mlp_adds
    assert len(list((tmp_path / "architectures").iterdir())) == 2


def test_an_mlp_is_as_wide_as_the_stream_and_a_mixer_is_none():
    assert not seen_in(tiny_model("zaya")).mlps and not seen_in(tiny_model("mamba")).mlps


def test_layers_with_other_numbers_of_groups_offer_no_keys():
    found = seen_in(tiny_model("mimo_v2_flash"))
    assert not found.keys and not found.values and found.queries


def test_what_cannot_be_resumed_is_refused_where_trees_are_asked_for():
    model = tiny_model("bart")
    parts = parts_of(model, probes.probed(model))
    tree = pack([[5, 6, 7]], [[8, 9], [10]], "cpu")
    with pytest.raises(InputError, match=r"this bart model cannot be run with branches .* full passes"):
        run_base(model, parts, tree.tokens, tree)
    with pytest.raises(InputError, match="this bart model cannot be run with branches"):
        Resumption(parts, run_base(model, parts, tree.tokens[:3]), 1)


@pytest.mark.parametrize("kind", ["deepseek_v3", "mixtral"])
def test_the_fast_precision_serves_them_too(kind):
    with torch.no_grad():
        model = tiny_model(kind).float()
        parts = parts_of(model, probes.probed(model))
        tree = pack([[5, 6, 7, 8]], [[9, 10], [11]], "cpu")
        base, own = run_with_sites(model, parts, tree, residuals(parts), linear_maps=True)
        edits = every_unit(model, parts, residuals(parts), torch.tensor([5, 6, 12, 8]))
        exact, fast = (sweep_sites(parts, base, own, tree, edits, fast=rows) for rows in (None, FastRows()))
    assert 0 < (exact - fast).abs().max() < 1e-2 or torch.allclose(exact, fast, atol=1e-4)


def test_a_model_that_does_not_run_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(probes, "cache_folder", lambda: tmp_path)
    model = tiny_model("llama")
    model.model.norm = nn.Linear(3, 3)
    with pytest.raises(InputError, match=r"llama model cannot be studied: a short run of it fails \(Run"):
        probes.known_architecture(model)


@pytest.mark.parametrize("kind", ["gemma3", "llama4"])
def test_of_a_checkpoint_for_text_and_images_the_text_model_is_studied(kind, toy_tokenizer, tmp_path):
    tiny_model(kind).float().save_pretrained(tmp_path / kind)
    toy_tokenizer.save_pretrained(tmp_path / kind)
    model, reference = (Model(gpt2_version=str(tmp_path / kind), full_passes=full) for full in (False, True))
    stimulus = Intervention(model.tokenizer, "The {} said that", ["nurse", "man"], ["he", "she"])
    swept, expected = (each.neuron_intervention_single_experiment(stimulus, "indirect")[4:]
                       for each in (model, reference))
    for one, other in zip(swept, expected):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=0)


def test_a_model_is_asked_once(toy_model, tmp_path, monkeypatch):
    model = toy_model("llama")
    monkeypatch.setattr(probes, "cache_folder", lambda: tmp_path)
    asked = []
    monkeypatch.setattr(probes, "probed", lambda model, own=probes.probed: asked.append(1) or own(model))
    first = probes.known_architecture(model.model)
    (stored,) = (tmp_path / "architectures").iterdir()
    assert probes.known_architecture(model.model) == first and asked == [1]
    stored.write_text("{damaged")
    assert probes.known_architecture(model.model) == first and asked == [1, 1]
    stored.unlink()
    (tmp_path / "architectures").rmdir()
    (tmp_path / "architectures").write_text("a file where the folder should be")
    assert probes.known_architecture(model.model) == first and asked == [1, 1, 1]


def test_probes_draw_nothing_of_the_users(toy_model):
    model = toy_model("llama")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    probes.probed(model.model)
    assert torch.equal(torch.rand(3), expected)


def test_a_mediator_that_a_model_does_not_have_is_named(toy_model):
    model = toy_model("llama")
    parts = parts_of(model.model, probes.replace(model.parts.architecture, keys=()))
    without = type(model).__new__(type(model))
    without.__dict__.update(model.__dict__ | {"parts": parts})
    CATALOGUE["values"].check_model(without)
    with pytest.raises(InputError, match=r"this llama model has no keys that could be found .*: choose"):
        CATALOGUE["keys"].check_model(without)

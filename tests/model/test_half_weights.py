"""Weights kept in half precision: the numbers are those of a float32 model with the same weights."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

import mediation
from experiment import Model
from mediation.errors import InputError
from mediation.mediators import batches
from mediation.mediators.catalogue import Request
from mediation.mediators.head_sweeps import head_estimates, heads_in_sets
from mediation.mediators.heads import heads_layers_model
from mediation.mediators.neuron_sweeps import neuron_gradients_of, neurons_in_trees
from mediation.model.half_weights import check_float32, keep_in_half
from mediation.model.language_model import LanguageModel
from mediation.model.readout import Normaliser, log_sum_exp, widen
from tests.helpers import GOOD_STIMULUS, assert_refused, damaged_checkpoint, profession_stimulus, swept_by
from tests.tiny_models import tiny_model

# what tells the others apart is not how weights are kept
CASES = [("gemma3_text", torch.bfloat16), ("gpt2", torch.bfloat16), ("opt", torch.bfloat16),
         ("llama", torch.bfloat16), ("llama", torch.float16)]


@pytest.fixture(scope="module")
def checkpoint(toy_checkpoint, toy_tokenizer, tmp_path_factory):
    """checkpoint("llama", torch.bfloat16) -> folder of a toy whose weights are of half precision."""
    def make(kind, dtype):
        folder = tmp_path_factory.mktemp("half") / f"toy-{kind}"
        AutoModelForCausalLM.from_pretrained(toy_checkpoint(kind), dtype=dtype).save_pretrained(folder)
        toy_tokenizer.save_pretrained(folder)
        return str(folder)
    return make


def swept(model, stimulus):
    """Log-probabilities and estimates of several sweeps."""
    comparison = stimulus(model)
    heads = heads_layers_model(model.num_layers, model.num_heads)
    nurse = profession_stimulus(model)
    pair = type(nurse)(model.tokenizer, "The {} said that", ["nurse", "man"], ["he", "she"])
    of_mlps = swept_by(model, SimpleNamespace(intervention=pair), Request.of("mlps"))
    _, gradients, values = neuron_gradients_of(model, [nurse], 0)
    return {"neurons": neurons_in_trees(model, [nurse], "man_indirect"),
            "heads": heads_in_sets(model, comparison, "indirect", heads),
            "head estimates": head_estimates(model, comparison, "indirect"),
            "gradients": torch.from_numpy(gradients), "values": torch.from_numpy(values),
            **{f"mlps {kind}": torch.as_tensor(of_kind) for kind, of_kind in of_mlps.items()}}


@pytest.mark.parametrize(("kind", "dtype"), CASES, ids=str)
def test_kept_weights_give_the_float32_models_numbers(checkpoint, stimulus, kind, dtype):
    folder = checkpoint(kind, dtype)
    kept = Model(gpt2_version=folder, weights_dtype=dtype)
    assert kept.dtype == torch.float32
    run = kept.base_run(torch.arange(3, 9))
    assert {each.dtype for each in (*run.residuals, *run.mlp_outputs, run.embedding)} == {torch.float32}
    matrices = [weight for weight in kept.model.parameters() if weight.dim() > 1]
    assert {weight.dtype for weight in matrices} == {dtype}
    assert {weight.dtype for weight in kept.model.parameters() if weight.dim() == 1} <= {torch.float32}
    expected = swept(Model(gpt2_version=folder), stimulus)
    for name, numbers in swept(kept, stimulus).items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(numbers, expected[name], rtol=0, atol=1e-5 * scale, msg=name)


def test_kept_weights_are_what_the_fast_precision_multiplies_by(checkpoint, monkeypatch):
    """It rounds weights to bfloat16, which these are: nothing is different."""
    monkeypatch.setattr(batches, "AIM", 1e9)
    monkeypatch.setattr(batches, "BOUND", 1e9)  # toys are too far off to be run fast else
    folder = checkpoint("llama", torch.bfloat16)
    models = [Model(gpt2_version=folder, precision="fast", weights_dtype=kept)
              for kept in (torch.bfloat16, None)]
    one, other = (neurons_in_trees(model, [profession_stimulus(model)], "man_indirect") for model in models)
    assert models[0].fast_rows.rows > models[0].fast_rows.exact
    torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_normaliser_of_kept_weights(checkpoint):
    head = torch.nn.Linear(16, 6000, bias=False)
    head.weight.data = head.weight.data.bfloat16()
    widen(head)
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(16, generator=generator)
    rows = base + 0.01 * torch.randn(40, 16, generator=generator)
    with torch.no_grad():
        found = Normaliser(head, base)(head, rows)
        whole = log_sum_exp(head, rows)
        true = (rows.double() @ head.weight.double().T).logsumexp(1)
    assert float((found - true).abs().max()) < 4e-6 and float((whole - true).abs().max()) < 2e-6


def test_a_model_that_computes_in_half_precision_is_refused():
    """The library's Mamba 2 multiplies by weights that are not its own, in their precision."""
    model = tiny_model("mamba2").float()
    keep_in_half(model, torch.bfloat16)
    with pytest.raises(InputError, match="leave out --weights_dtype"):
        check_float32(model, torch.arange(3, 13)[None])


def test_what_does_not_fit_is_refused(toy_checkpoint, run_script, tmp_path):
    large = damaged_checkpoint(toy_checkpoint("llama"), tmp_path / "large",
                               lm_head__weight=lambda weight: weight * 1e6)
    run = f"run_profession_neuron_experiments.py -model {large} -out_dir {tmp_path / 'out'}"
    assert_refused(run_script(f"{run} --weights_dtype float16"), "lm_head.weight", "bfloat16")
    assert_refused(run_script(f"{run} --weights_dtype bfloat16 --dtype float64"), "leave out --dtype float64")
    assert not (tmp_path / "out").exists()


def test_the_manifest_says_how_weights_were_kept(toy_checkpoint, run_script, tmp_path):
    run = ("run_profession_neuron_experiments.py --total_effects_only -template_indices 1 "
           f"--professions nurse -model {toy_checkpoint('llama')} -out_dir {tmp_path}")
    code, _, errors = run_script(run, "--weights_dtype", "bfloat16")
    assert code == 0, errors
    manifests = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert '"dtype": "float32"' in manifests and '"weights_dtype": "bfloat16"' in manifests


def test_python_keeps_weights_in_half_precision_too(toy_checkpoint, tmp_path):
    named = toy_checkpoint("llama")
    kept, loaded = (mediation.mediate(model, [GOOD_STIMULUS], "mlps", out_dir=tmp_path / str(number),
                                      progress=False, **options)
                    for number, (model, options) in enumerate([
                        (named, {"weights_dtype": "bfloat16"}),
                        (LanguageModel(str(named), weights_dtype=torch.bfloat16), {})]))
    assert kept.effects.equals(loaded.effects) and len(kept.effects)
    assert '"weights_dtype": "bfloat16"' in (tmp_path / "0" / "manifest.json").read_text()
    with pytest.raises(InputError, match="weights_dtype 'half' is unknown"):
        mediation.mediate(named, [GOOD_STIMULUS], weights_dtype="half")
    with pytest.raises(InputError, match="this one is loaded already"):
        mediation.mediate(LanguageModel(str(named)), [GOOD_STIMULUS], weights_dtype="float16")

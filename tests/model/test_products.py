"""Exchanged products: packed weights against the library's own, and bfloat16 where it is multiplied."""

import itertools
import os
import subprocess
import sys

import pytest
import torch

from experiment import Model
from mediation.errors import InputError
from mediation.model import language_model, products
from mediation.model.forward import run_base
from mediation.model.products import exchanged, fixed_weights, on_differences, packed, recorded
from tests.helpers import PROJECT, profession_stimulus


def test_packed_products_equal_the_librarys(toy_model, architecture):
    model = toy_model(architecture)
    tokens = profession_stimulus(model).base_strings_tok[0].unsqueeze(0)
    with torch.no_grad():
        plain = model.model(tokens).logits
        layers = packed(model.parts.blocks)
        assert len(layers) >= model.num_layers * 4
        with exchanged(layers):
            torch.testing.assert_close(model.model(tokens).logits, plain, rtol=1e-4, atol=1e-4)
        assert torch.equal(model.model(tokens).logits, plain)  # nothing stays exchanged


def test_products_are_put_back_after_an_error(toy_model, architecture):
    model = toy_model(architecture)
    with pytest.raises(ZeroDivisionError), exchanged(packed(model.parts.blocks)):
        assert any("forward" in module.__dict__ for module in model.model.modules())
        raise ZeroDivisionError
    assert not any("forward" in module.__dict__ for module in model.model.modules())


@pytest.mark.parametrize("change", [lambda parameter: parameter.mul_(1.1),
                                    lambda parameter: parameter.data.mul_(1.1)], ids=["in place", "data"])
def test_changed_weights_are_packed_again(toy_checkpoint, change):
    model = Model(gpt2_version=str(toy_checkpoint("llama")))
    first = model.neuron_intervention_single_experiment(profession_stimulus(model), "man_indirect")[6]
    with torch.no_grad():
        for parameter in model.parts.blocks.parameters():
            change(parameter)
    second = model.neuron_intervention_single_experiment(profession_stimulus(model), "man_indirect")[6]
    model.full_passes = True
    slow = model.neuron_intervention_single_experiment(profession_stimulus(model), "man_indirect")[6]
    torch.testing.assert_close(second, slow, rtol=1e-4, atol=0)
    assert not torch.allclose(first, second, rtol=1e-3)


def test_weights_that_somebody_vouches_for_are_summed_up_once(toy_checkpoint):
    model = Model(gpt2_version=str(toy_checkpoint("llama")))
    (linear_map, *_) = packed(model.parts.blocks)
    with fixed_weights():
        before = packed(model.parts.blocks)[linear_map]
        linear_map.weight.data.mul_(2)
        assert packed(model.parts.blocks)[linear_map] is before
        with torch.no_grad():
            linear_map.weight.mul_(2)  # what the weight itself tells is heard all the same
        assert packed(model.parts.blocks)[linear_map] is not before
    after = packed(model.parts.blocks)[linear_map]
    inputs = torch.randn(3, 16)
    torch.testing.assert_close(after(inputs), linear_map(inputs))


def test_no_difference_to_the_base_run_changes_nothing(fast_model):
    tokens = profession_stimulus(fast_model).base_strings_tok[0]
    with torch.no_grad():
        base = run_base(fast_model.model, fast_model.parts, tokens, linear_maps=True)
        with exchanged(on_differences(fast_model.parts.blocks, base.linear_maps, 0)):
            again = run_base(fast_model.model, fast_model.parts, tokens)
    torch.testing.assert_close(again.residuals[-1], base.residuals[-1], rtol=1e-5, atol=1e-5)


def test_a_record_holds_every_linear_map_once(fast_model):
    with torch.no_grad(), recorded(fast_model.parts.blocks) as record:
        fast_model.model(profession_stimulus(fast_model).base_strings_tok[0].unsqueeze(0))
    assert set(record) == {module for module in fast_model.parts.blocks.modules()
                           if type(module).__name__ in ("Linear", "Conv1D")}
    assert len(record) >= 4 * fast_model.num_layers


# where the processor multiplies bfloat16, and where not

def test_fast_is_refused_where_it_is_not_meant(toy_checkpoint):
    for settings in ({"dtype": torch.float64}, {"full_passes": True}):
        with pytest.raises(InputError, match="--precision exact"):
            Model(gpt2_version=str(toy_checkpoint("gpt2")), precision="fast", **settings)
    with pytest.raises(InputError, match="choose exact or fast"):
        Model(gpt2_version=str(toy_checkpoint("gpt2")), precision="quick")


def test_fast_is_refused_where_the_processor_does_not_multiply_bfloat16(toy_checkpoint, run_script,
                                                                        monkeypatch, tmp_path):
    monkeypatch.setattr(language_model, "check_bfloat16", products.check_bfloat16)
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device: True)
    Model(gpt2_version=str(toy_checkpoint("gpt2")), precision="fast")
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device: False)
    code, _, errors = run_script("run_profession_neuron_experiments.py --precision fast --device cpu",
                                 "-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path)
    assert code == 2
    assert errors == ("error: --precision fast needs a processor that multiplies bfloat16, and cpu does not: "
                      "use --precision exact\n")
    assert not any(tmp_path.iterdir())


def test_a_processor_multiplies_bfloat16_where_both_it_and_its_library_do(monkeypatch):
    """oneDNN's answer heeds ONEDNN_MAX_CPU_ISA, the processor's does not."""
    for in_hardware, in_the_library in itertools.product((False, True), repeat=2):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=in_hardware: able)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda able=in_the_library: able)
        assert products.multiplies_bfloat16(torch.device("cpu")) == (in_hardware and in_the_library)


def test_the_switch_that_takes_bfloat16_away_is_heeded():
    """What `make test-avx2` sets."""
    program = ("import torch; from mediation.model.products import multiplies_bfloat16; "
               "print(multiplies_bfloat16(torch.device('cpu')))")
    done = subprocess.run([sys.executable, "-c", program], cwd=PROJECT,
                          env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


def bfloat16_product(rows, width, out):
    """(input, weight, bias, their product in float64) of random bfloat16 numbers."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=generator).bfloat16()
                       for shape in ((rows, width), (out, width), (out,)))
    return x, weight, bias, x.double() @ weight.double().T + bias.double()


SHAPES = [(3, 7, 5), (64, 576, 192), (2, 1536, 576)]


@pytest.mark.parametrize("shape", SHAPES)
def test_an_emulated_product_is_the_true_one_rounded_to_bfloat16(monkeypatch, shape):
    monkeypatch.setattr(products, "multiplies_bfloat16", lambda device: False)
    x, weight, bias, exact = bfloat16_product(*shape)
    for given in (None, bias):
        rounded = products.product(weight, given)(x)
        expected = exact - (bias.double() if given is None else 0)
        assert rounded.dtype == torch.bfloat16
        # half of bfloat16's last digit, and float32's sum
        torch.testing.assert_close(rounded.double(), expected, rtol=2**-8 + 1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_this_machines_product_is_the_true_one_rounded_to_bfloat16(shape):
    """In hardware or emulated: the same within the last digit, which sums in another order may move."""
    x, weight, bias, exact = bfloat16_product(*shape)
    torch.testing.assert_close(products.product(weight, bias)(x).double(), exact, rtol=2**-7, atol=1e-4)

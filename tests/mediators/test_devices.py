"""Every sweep on GPUs that are not there (`tests.devices`): no operation meets tensors of two devices."""

import copy
import re

import numpy as np
import pytest
import torch

import mediation
from experiment import Model
from mediation.errors import InputError
from mediation.mediators.catalogue import CATALOGUE, Request
from mediation.mediators.head_sweeps import attention_intervention, head_estimates, heads_in_sets
from mediation.mediators.heads import heads_layers_model
from mediation.mediators.neuron_sweeps import (
    direct_interpolants,
    neuron_experiment,
    neuron_gradients_of,
    neuron_intervention,
    neuron_sets,
    neurons_in_trees,
)
from mediation.model import checkpoints, placement
from mediation.model.architectures import parts_of
from mediation.model.forward import changed
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies.comparisons import build_comparisons
from tests.devices import Devices, MixedDevices
from tests.helpers import (
    GOOD_STIMULUS,
    assert_refused,
    multi_token_stimulus,
    profession_stimuli,
    profession_stimulus,
    swept_by,
)

MINE = [Stimulus("one", "The {} went home because", ("nurse", "man"), ("he was", "she"))]
SPREAD = {"device": "auto", "device_map": "auto"}
# at each end of a module, one that keys and values cross, and one whose units are single numbers
SITES = "residuals", "mlps", "head_outputs", "keys", "inner_neurons"


@pytest.fixture
def devices(monkeypatch):
    """A GPU that models can be loaded to."""
    monkeypatch.setattr(checkpoints, "find_device", lambda name: torch.device(name, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return Devices()


def of_neurons(model):
    """{name: numbers} of the sweeps over neurons."""
    stimuli = [each["nurse"] for each in profession_stimuli(model).values()]
    nurse, several = stimuli[0], multi_token_stimulus(model, words=("xqz", "zqx", "qxz"), multi_token="all")
    units = torch.tensor([[3, 40], [17, 20]])
    for kind in ("man_indirect", "woman_direct", "man_minus_woman"):
        yield f"trees {kind}", neurons_in_trees(model, stimuli, kind, units=np.arange(0, 64, 3))
    yield "sets", neuron_sets(model, nurse, "man_indirect", units)[0]
    yield "several positions", neurons_in_trees(model, [several], "man_indirect", units=np.arange(0, 64, 5))
    yield "one stimulus", neuron_experiment(model, nurse, "man_direct", layers_to_adj=[1],
                                            neurons_to_adj=[2], intervention_loc="layer")[-1]
    run = model.base_run(nurse.base_strings_tok[0])
    values = {layer: run.representations(1)[layer + 1] for layer in (0, 1)}
    yield "by hand", torch.tensor(neuron_intervention(
        model, nurse.base_strings_tok[1], nurse.candidates_tok, values, [0, 1], [[1, 2], [3, 4]], 1))
    points = np.linspace(-0.1, 0.1, 9)[:, None].repeat(model.num_neurons, 1)
    yield "interpolated", torch.from_numpy(
        direct_interpolants(model, stimuli, "man_direct", points, 2)(points[4], 4))
    for name, numbers in zip(("values", "gradients", "own"), neuron_gradients_of(model, stimuli, 0)):
        yield name, torch.from_numpy(numbers)
    yield "base", torch.tensor(model.base_probabilities(stimuli))
    yield "continuations", torch.tensor(list(model.continuations_together([several])))


def of_heads(model, stimulus):
    """The same of attention weights."""
    chosen = heads_layers_model(model.num_layers, model.num_heads)
    if model.masking:  # every token of a candidate is a sequence of its own
        chosen = chosen[::9]
    for effect in ("indirect", "direct"):
        yield effect, heads_in_sets(model, stimulus, effect, chosen)
    yield "led", heads_in_sets(model, stimulus, "indirect", chosen | chosen[1])
    model.full_passes = True
    yield "full passes", heads_in_sets(model, stimulus, "indirect", chosen[::4])
    model.full_passes = False
    if model.masking:
        return
    yield "estimates", head_estimates(model, stimulus, "indirect")
    context = stimulus.base_strings_tok[0]
    shape = 1, model.num_heads, len(context), len(context)
    override = {"layer": 1, "attention_override": torch.full(shape, 0.1),
                "attention_override_mask": torch.ones(shape)}
    yield "by hand", torch.tensor(attention_intervention(model, context, stimulus.candidates_tok, [override]))


def of_sites(model, names, method="exact"):
    """The same of all other mediators."""
    comparison, = build_comparisons(model, "x", MINE, "last")
    for name in names:
        request = Request.of(name, CATALOGUE[name].positions[-1])
        for kind, numbers in swept_by(model, comparison, request, method=method).items():
            yield f"{name} {kind}", torch.as_tensor(numbers)


def assert_same(model, devices, sweeps, device="cuda", **how):
    """What sweeps give on a GPU, or on several, is what they give without one."""
    with devices:
        on_gpu = Model(gpt2_version=str(model.source["name"]), device=device, dtype=model.dtype, **how)
        found = dict(sweeps(on_gpu))
        assert {devices.of(weight).type for weight in on_gpu.model.parameters()} == {"cuda"}
    assert devices.seen["cuda:0"] > 1000
    tolerance = 1e-10 if model.dtype == torch.float64 else 2e-5
    for name, numbers in sweeps(model):
        scale = float(numbers.abs().max())
        torch.testing.assert_close(found.pop(name), numbers, rtol=0, atol=tolerance * scale, msg=name)
    assert not found


# what tells architectures apart is the library's own code, but for norms behind MLPs and transposed weights
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_neurons(toy_model, devices, kind):
    assert_same(toy_model(kind), devices, of_neurons)


def test_heads(toy_model, stimulus, devices):
    assert_same(toy_model("llama"), devices, lambda model: of_heads(model, stimulus(model)))


def test_sites(toy_model, devices):
    assert_same(toy_model("llama"), devices, lambda model: of_sites(model, SITES, "exact"))
    estimated = "neurons", "values"
    assert_same(toy_model("llama"), devices, lambda model: of_sites(model, estimated, "gradient"))


def test_masked_heads(masked_model, stimulus, devices):
    model, _ = masked_model("distilbert", dtype=torch.float32)
    assert_same(model, devices, lambda model: of_heads(model, stimulus(model)))


def test_fast_rows(toy_checkpoint, stimulus, devices):
    with devices:
        model = Model(gpt2_version=str(toy_checkpoint("llama")), device="cuda", precision="fast")
        heads_in_sets(model, stimulus(model), "direct", heads_layers_model(3, 4))
        assert dict(of_sites(model, ("mlps", "values")))
        neurons_in_trees(model, [profession_stimulus(model)], "man_indirect")
    assert model.fast_rows.rows


def test_a_script_and_its_plan(toy_checkpoint, devices, run_script, tmp_path):
    run = (f"run_profession_neuron_experiments.py -model {toy_checkpoint('llama')} -out_dir {tmp_path} "
           "--device cuda -template_indices 1 13 --professions nurse --intervention_types man_indirect")
    with devices:
        for more in ("--plan", "--method screen --screen_share .6"):
            code, _, errors = run_script(f"{run} {more}")
            assert code == 0, errors
    assert devices.seen["cuda:0"] > 1000


# over several GPUs

@pytest.fixture
def several(devices, monkeypatch):
    """Three GPUs: a toy's word embedding is on the first, its blocks are on the others."""
    monkeypatch.setattr(placement, "gpus", lambda: [torch.device("cuda", index) for index in range(3)])
    return devices


def everything(model, stimulus):
    """Of every sweep, with full passes and gradients."""
    for part, sweeps in (("neurons", of_neurons(model)), ("heads", of_heads(model, stimulus(model))),
                         ("exact", of_sites(model, ("mlps", "head_outputs", "keys", "inner_neurons"))),
                         ("gradient", of_sites(model, ("residuals", "keys", "neurons"), "gradient"))):
        for name, numbers in sweeps:
            yield f"{part} {name}", numbers


def test_blocks_on_several_gpus(toy_model, stimulus, several, in_double):
    model = toy_model("llama", torch.float64)
    assert_same(model, several, lambda model: everything(model, stimulus), **SPREAD)
    assert min(several.seen[f"cuda:{index}"] for index in range(3)) > 1000


# a word embedding that adds positions, biases, packed projections; norms behind MLPs, two kinds of masks
@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text"])
def test_other_blocks_on_several_gpus(toy_model, several, in_double, kind):
    def sweeps(model):
        nurse = profession_stimulus(model)
        yield "neurons", neurons_in_trees(model, [nurse], "man_indirect", units=np.arange(0, 64, 3))
        yield from of_sites(model, ("residuals", "values"))

    assert_same(toy_model(kind, torch.float64), several, sweeps, **SPREAD)


def test_masked_heads_on_several_gpus(masked_model, stimulus, several):
    model, _ = masked_model("distilbert")

    def sweeps(model):
        chosen = heads_layers_model(3, 4)[::9]
        yield "indirect", heads_in_sets(model, stimulus(model), "indirect", chosen)

    assert_same(model, several, sweeps, **SPREAD)


def test_kept_weights_and_fast_rows_on_several_gpus(toy_checkpoint, several):
    """Together: the largest models."""
    named = {"gpt2_version": str(toy_checkpoint("llama")), "weights_dtype": torch.bfloat16}
    with several:
        model = Model(**named, precision="fast", **SPREAD)
        assert {weight.dtype for weight in model.parts.head.parameters()} == {torch.bfloat16}
        found = neurons_in_trees(model, [profession_stimulus(model)], "man_indirect")
    on_cpu = Model(**named)
    expected = neurons_in_trees(on_cpu, [profession_stimulus(on_cpu)], "man_indirect")
    assert model.fast_rows.rows > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_a_script_on_several_gpus(toy_checkpoint, several, run_script, tmp_path):
    run = (f"run_profession_neuron_experiments.py -model {toy_checkpoint('llama')} -out_dir {tmp_path} "
           "--device_map auto -template_indices 1 --professions nurse --intervention_types man_indirect")
    with several:
        for more in ("--plan", ""):
            code, output, errors = run_script(f"{run} {more}")
            assert code == 0 and "on cuda:0, cuda:1, cuda:2" in output, errors
            told = "of the weights [0-9.]+ kB on cuda:0, [0-9.]+ kB on cuda:1, [0-9.]+ kB on cuda:2; a batch"
            assert not more or re.search(told, output)
    assert '"device": "cuda:0, cuda:1, cuda:2"' in "".join(
        path.read_text() for path in tmp_path.rglob("*manifest*.json"))


def test_a_model_that_does_not_fit_on_all_gpus_together(toy_checkpoint, several, run_script, monkeypatch,
                                                        tmp_path):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(placement, "last_logits", full)
    with several:
        outcome = run_script(f"run_profession_neuron_experiments.py -model {toy_checkpoint('llama')} "
                             f"-out_dir {tmp_path}/out --device_map auto")
    assert_refused(outcome, "does not fit on 3 GPUs", "--weights_dtype bfloat16")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_divided_is_refused_before_weights_are_loaded(toy_checkpoint, run_script, monkeypatch,
                                                                     tmp_path):
    monkeypatch.setattr(checkpoints, "load_model", None)
    run = (f"run_profession_neuron_experiments.py -model {toy_checkpoint('llama')} --device_map auto "
           f"-out_dir {tmp_path}/out")
    for number in (0, 1):
        monkeypatch.setattr(placement, "gpus", lambda number=number: [torch.device("cuda", 0)] * number)
        assert_refused(run_script(run), f"{number} can be seen", "leave it out")
    for device in ("cpu", "cuda:1"):
        assert_refused(run_script(f"{run} --device {device}"), f"--device {device}", "use --device auto")
    assert_refused(run_script(f"{run} --engine dask --gpus 2"), "does not go with --engine dask")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="device_map 'even' is unknown"):
        mediation.mediate(toy_checkpoint("llama"), [GOOD_STIMULUS], device_map="even")


def test_a_loaded_model_is_where_it_is(toy_model):
    with pytest.raises(InputError, match="device_map is of a model that is named"):
        mediation.mediate(toy_model("llama"), [GOOD_STIMULUS], device_map="auto")


def test_blocks_that_share_weights_are_refused(toy_model, several):
    model = copy.deepcopy(toy_model("llama").model)
    parts = parts_of(model, toy_model("llama").parts.architecture)
    parts.blocks[2].mlp = parts.blocks[0].mlp
    with several, pytest.raises(InputError, match=r"not run on 3 GPUs together .MixedDevices"):
        placement.spread(parts, placement.gpus())


def test_other_numbers_than_on_the_cpu_are_refused(toy_model, several, monkeypatch):
    model = copy.deepcopy(toy_model("llama").model)
    parts = parts_of(model, toy_model("llama").parts.architecture)
    to = torch.Tensor.to  # a GPU that rows do not arrive at
    monkeypatch.setattr(placement, "changed", lambda function, given: changed(
        lambda path, tensor: to(torch.zeros_like(tensor), function(path, tensor).device), given))
    with several, pytest.raises(InputError, match="other numbers than on the CPU"):
        placement.spread(parts, placement.gpus())


@pytest.mark.parametrize(("sizes", "others", "devices", "expected"), [
    ([5] * 8, 0, 4, [0, 0, 1, 1, 2, 2, 3, 3]),
    ([5, 5, 5], 1, 2, [0, 1, 1]),
    ([5, 5, 5], 0, 2, [0, 0, 1]),
    ([5, 5, 5], 4, 2, [0, 1, 1]),
    ([5] * 9, 0, 4, [0, 0, 0, 1, 1, 2, 2, 3, 3]),  # none is left empty
    ([5] * 6, 20, 3, [1, 1, 1, 2, 2, 2]),
    ([1, 1, 1, 9, 1, 1, 1], 0, 3, [0, 0, 0, 1, 2, 2, 2]),
    ([5], 0, 3, [0]),
])
def test_blocks_are_divided_evenly_and_in_order(sizes, others, devices, expected):
    assert placement.divided(sizes, others, devices) == expected


# the harness

def test_what_cuda_refuses_is_refused():
    with Devices() as devices:
        here, there = torch.randn(3, 3), torch.randn(3, 3, device="cuda")
        other = there.to("cuda:1")
        index = torch.tensor([0, 1])
        for mixed in (lambda: here @ there, lambda: there + other, lambda: here[index.to("cuda")],
                      lambda: torch.cat([here, there]), lambda: here.index_put_((index,), there[:2]),
                      lambda: there.index_put_((index,), here[:2]), lambda: torch.where(there > 0, here, 0.0),
                      lambda: there.sum(0).backward(here[0])):
            with pytest.raises((MixedDevices, RuntimeError)):
                mixed()
        with pytest.raises(TypeError, match=r"use \.cpu"):
            there.numpy()
        assert str(there.device) == "cuda:0" and devices.of(other).index == 1


def test_what_cuda_allows_is_allowed():
    with Devices() as devices:
        there = torch.randn(3, 3, device="cuda", requires_grad=True)
        moved = (there[torch.tensor([0, 1])] * torch.tensor(2.0)).to("cuda:1")
        gradient, = torch.autograd.grad(moved.sum(), there)
        assert [str(devices.of(each)) for each in (moved, gradient)] == ["cuda:1", "cuda:0"]
        copy = torch.empty(3, 3)
        copy[:] = there.detach()
        assert torch.equal(copy, there.detach().cpu()) and there.cpu().device.type == "cpu"

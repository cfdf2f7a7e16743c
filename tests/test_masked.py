"""Masked models: six ways to score a candidate, and the attention study, against the library's own eager forward under plain hooks."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM

from attention_utils import perform_intervention
from experiment import Intervention, Model
from mediation.errors import InputError
from mediation.mediators.head_sweeps import head_estimates
from mediation.model.masked import APPROACHES
from mediation.results.attention_results import EFFECTS, STRINGS, example_key, read_results
from mediation.stimuli import winobias
from mediation.studies.checks import check_heads
from tests.conftest import MASKED

MASK, BEGIN, SEPARATOR = 11, 12, 13


@pytest.fixture(params=MASKED)
def architecture(request):
    return request.param


@pytest.fixture(scope="module")
def masked_model(toy_checkpoint, toy_tokenizer):
    """masked_model("bert", approach, dtype) -> (Model, the library's eager model of the same weights)."""
    loaded = {}

    def load(kind, approach=1, dtype=torch.float64):
        if (kind, dtype) not in loaded:
            folder = toy_checkpoint(kind)
            tokenizer = toy_tokenizer
            names = tokenizer.convert_ids_to_tokens([MASK, BEGIN, SEPARATOR])
            tokenizer = type(tokenizer).from_pretrained(folder, mask_token=names[0], cls_token=names[1], sep_token=names[2])
            tokenizer.save_pretrained(folder)
            eager = AutoModelForMaskedLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
            loaded[kind, dtype] = Model(gpt2_version=str(folder), dtype=dtype), eager
        model, eager = loaded[kind, dtype]
        model.masking = type(model.masking).of(model.tokenizer, approach)
        return model, eager

    return load


def sequence_by_hand(context, candidate, index, approach):
    """(token ids, position of the mask) by the words of the contract."""
    later = candidate[index + 1:]
    ids = list(context) + list(candidate[:index]) + [MASK]
    position = len(ids) - 1
    if approach in (2, 5):
        ids = ids + later
    if approach in (3, 6):
        ids = ids + [MASK for _ in later]
    return ([BEGIN, *ids, SEPARATOR], position + 1) if approach > 3 else (ids, position)


def override_by_hooks(eager, heads, new, length):
    """Handles of hooks that put the weights `new` of `heads` {(layer, head)} into a run over `length` tokens."""
    modules = [module for name, module in eager.named_modules() if name.endswith(("attention.self", ".attention")) and hasattr(module, "dropout")
               and not hasattr(module, "self")]
    count, values, handles = eager.config.num_attention_heads, {}, []

    def keep(layer):
        return lambda _module, _inputs, output: values.__setitem__(layer, output[0].reshape(length, count, -1))

    def change(layer, outputs):
        whole = outputs[0].clone()
        for of_layer, head in heads:
            if of_layer == layer:
                whole.view(length, count, -1)[:, head] = new[layer][0, head] @ values[layer][:, head]
        return (whole, *outputs[1:])

    for layer, module in enumerate(modules):
        handles.append((getattr(module, "value", None) or module.v_lin).register_forward_hook(keep(layer)))
        if hasattr(module, "out_lin"):
            handles.append(module.out_lin.register_forward_pre_hook(lambda _module, inputs, layer=layer: change(layer, inputs)))
        else:
            handles.append(module.register_forward_hook(lambda _module, _inputs, outputs, layer=layer: change(layer, outputs)))
    return handles


def by_hooks(eager, intervention, effect, heads, approach):
    """Mean token log-probabilities of both candidates with the weights of `heads` {(layer, head)} taken from the other prompt."""
    x, alternative = (tokens.tolist() for tokens in intervention.base_strings_tok)
    run_on, source = (x, alternative) if effect == "indirect" else (alternative, x)
    means = []
    for candidate in intervention.candidates_tok:
        each = []
        for index, token in enumerate(candidate):
            ids, position = sequence_by_hand(run_on, candidate, index, approach)
            other, _ = sequence_by_hand(source, candidate, index, approach)
            handles = override_by_hooks(eager, heads, eager(torch.tensor([other]), output_attentions=True).attentions, len(ids))
            try:
                logits = eager(torch.tensor([ids])).logits[0, position]
            finally:
                for handle in handles:
                    handle.remove()
            each.append(float(logits.double().log_softmax(-1)[token]))
        means.append(np.mean(each))
    return means


@pytest.mark.parametrize("approach", APPROACHES)
@torch.no_grad()
def test_every_head_and_approach_equals_plain_hooks(masked_model, stimulus, architecture, in_double, approach):
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        model, eager = masked_model(architecture, approach, dtype)
        one = stimulus(model)
        kind = EFFECTS[approach % 2]
        swept = model.attention_intervention_experiment(one, kind)
        for layer, head in ((0, 0), (0, 3), (1, 2), (2, 1)):
            expected = by_hooks(eager, one, kind, {(layer, head)}, approach)
            np.testing.assert_allclose(np.log([swept[0][layer, head], swept[1][layer, head]]), expected, rtol=tolerance)
        whole = {(layer, head) for layer in range(3) for head in range(4)}
        np.testing.assert_allclose(np.log(swept[4:]), by_hooks(eager, one, kind, whole, approach), rtol=tolerance)
        np.testing.assert_allclose(np.log([swept[2][1], swept[3][1]]), by_hooks(eager, one, kind, {(1, head) for head in range(4)}, approach), rtol=tolerance)
        np.testing.assert_allclose(np.log(model.continuation_probabilities(one)[0]), by_hooks(eager, one, "indirect", set(), approach), rtol=tolerance)
        assert np.ptp(swept[0].numpy()) > 1e-3 * swept[0].mean()  # the interventions did something


def test_descent_equals_full_passes(masked_model, stimulus, architecture, in_double, monkeypatch):
    model, _ = masked_model(architecture, 5)
    fast = model.attention_intervention_experiment(stimulus(model), "indirect")
    monkeypatch.setattr(model, "full_passes", True)
    for a, b in zip(fast, model.attention_intervention_experiment(stimulus(model), "indirect")):
        np.testing.assert_allclose(a, b, rtol=1e-10)


def test_an_entry_of_the_study(masked_model, stimulus):
    model, _ = masked_model("bert", 2)
    entry = perform_intervention(stimulus(model), model)
    assert np.shape(entry["indirect_effect_head"]) == (3, 4)
    swept = model.attention_intervention_experiment(stimulus(model), "indirect")
    assert check_heads(model, stimulus(model), "indirect", swept[:2], 3).deviation < 1e-6


def test_what_a_masked_model_cannot_do_is_said(masked_model, stimulus, toy_checkpoint):
    model, _ = masked_model("distilbert")
    neurons = Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"])
    with pytest.raises(InputError, match=r"masked model.*neurons need a causal model"):
        model.neuron_intervention_single_experiment(neurons, "man_indirect")
    with pytest.raises(InputError, match=r"masked model.*--method exact"):
        head_estimates(model, stimulus(model), "indirect")
    with pytest.raises(InputError, match="masking approach 7 is unknown: choose 1 to 6"):
        Model(gpt2_version=str(toy_checkpoint("distilbert")), masking_approach=7)


def test_a_checkpoint_without_its_head_is_refused(toy_checkpoint, toy_tokenizer, tmp_path):
    """The library would draw the head at random, and say so in a warning only."""
    AutoModelForMaskedLM.from_pretrained(toy_checkpoint("bert")).bert.save_pretrained(tmp_path / "headless")
    toy_tokenizer.save_pretrained(tmp_path / "headless")
    with pytest.raises(InputError, match=r"headless' has no weights for cls\..*name a checkpoint with its language-model head"):
        Model(gpt2_version=str(tmp_path / "headless"))


# the scripts

def test_the_study_of_a_masked_model(masked_model, toy_checkpoint, data, run_script, tmp_path):
    masked_model("distilbert")
    folder = toy_checkpoint("distilbert")
    for approach in (1, 4):
        code, printed, error = run_script(f"attention_intervention_winobias.py -model {folder} --do-filter False --split dev -out_dir {tmp_path} "
                                          f"--masking_approach {approach}")
        assert code == 0, error
    files = {path.name for path in (tmp_path / "winobias_data").glob("*.json")} - {"manifest.json"}
    assert files == {f"attention_intervention_toy-distilbert_unfiltered_dev_{approach}.json" for approach in (1, 4)}
    one, four = (json.loads((tmp_path / "winobias_data" / name).read_text()) for name in sorted(files))
    assert one["mean_total_effect"] != four["mean_total_effect"]
    assert run_script(f"attention_figures1.py -out_dir {tmp_path}")[0] == 0
    assert len(list((tmp_path / "results").glob("**/winobias_toy-distilbert_unfiltered_dev_4.pdf"))) == 8
    code, printed, error = run_script(f"attention_figures3.py -model {folder} --do-filter False --examples 1 --masking_approach 4 -out_dir {tmp_path}")
    assert code == 0 and "winobias_toy-distilbert_unfiltered_dev_4_1.pdf" in printed, error
    path = tmp_path / "winobias_data" / "attention_intervention_toy-distilbert_unfiltered_dev_4.json"
    code, printed, error = run_script(f"check_replication.py -model {folder} --json {path}")
    assert code == 0 and "verdict: REPRODUCED" in printed, error


def test_bars_of_all_models_name_the_approach(tmp_path, shared, run_script):
    (tmp_path / "winobias_data").mkdir()
    for name in ("gpt2_filtered_dev", "distilbert-base-uncased_filtered_dev_1"):
        file = f"attention_intervention_{name}.json"
        (tmp_path / "winobias_data" / file).write_bytes((shared / "published" / "winobias_data" / file).read_bytes())
    code, printed, error = run_script(f"attention_figures2.py -out_dir {tmp_path}")
    assert code == 0 and "distilbert-base-uncased (1)" in printed, error


def test_published_masked_results_are_read_and_their_examples_found(shared):
    path = shared / "published" / "winobias_data" / "attention_intervention_distilbert-base-uncased_filtered_dev_1.json"
    try:
        examples = winobias.load("dev")
    except InputError as error:
        pytest.skip(str(error))
    entries = read_results(path)["results"]
    keys = {example_key(*(example.base_string.replace("{}", word) for word in example.substitutes), *example.candidates) for example in examples}
    assert len(entries) == 69 and all(example_key(*(entry[name] for name in STRINGS)) in keys for entry in entries)

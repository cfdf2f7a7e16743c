"""Words and candidates of several tokens, begin tokens, slots anywhere: against one full pass under plain hooks each."""

import json
import shutil
from itertools import permutations

import numpy as np
import pytest
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from experiment import Intervention, Model
from mediation.errors import InputError
from mediation.files.storage import RunFolder
from mediation.mediators.neuron_sweeps import (
    SweepOptions,
    direct_interpolants,
    neuron_gradients_of,
    neurons_in_trees,
)
from mediation.mediators.neurons import INTERVENTION_TYPES, single_neuron_edits
from mediation.mediators.sweeps import by_full_passes
from mediation.stimuli.prompts import begin_tokens, fill, is_masked
from mediation.studies.checks import check_neurons
from mediation.studies.engine import StudyOptions
from mediation.studies.interpolated_trees import INTERPOLATED_FROM
from mediation.studies.professions import ProfessionStudy
from tests.test_engine import TOLERANCE

CANDIDATES = (["he", "she"], ["he was", "she said that"], ["was fired", "he"])


def by_hooks(model, intervention, kind, layer, neuron):
    """Log-probabilities of both candidates when one neuron is changed at all places, one full pass a candidate: shares no code with the sweeps."""
    run_on, source, minus = INTERVENTION_TYPES[kind]
    modules = [model.parts.embedding, *model.parts.mlps]
    outputs = {}
    for prompt in {run_on, source, minus} - {None}:
        handle = modules[layer].register_forward_hook(lambda _m, _i, output, prompt=prompt: outputs.__setitem__(prompt, output))
        model.model(intervention.base_strings_tok[prompt][None])
        handle.remove()

    def change(_module, _inputs, output):
        output = output.clone()
        rows = output.view(-1, output.shape[-1])
        for place, other in zip(intervention.places[run_on], intervention.places[source]):
            value = outputs[source].view(-1, output.shape[-1])[other, neuron]
            if minus is not None:
                third = intervention.places[minus][intervention.places[run_on].index(place)]
                value = rows[place, neuron] + value - outputs[minus].view(-1, output.shape[-1])[third, neuron]
            rows[place, neuron] = value
        return output

    handle = modules[layer].register_forward_hook(change)
    found = []
    try:
        for ids in intervention.candidates_tok:
            tokens = torch.cat([intervention.base_strings_tok[run_on], torch.tensor(ids[:-1], dtype=torch.long)])
            logits = model.model(tokens[None]).logits[0, len(intervention.base_strings_tok[run_on]) - 1:]
            found.append(float(logits.double().log_softmax(-1)[range(len(ids)), ids].mean()))
    finally:
        handle.remove()
    return found


def make(model, template="The {} went home because", words=("electrician", "man", "woman"), candidates=CANDIDATES[1], multi_token="last"):
    return Intervention(model.tokenizer, template, list(words), candidates, multi_token=multi_token)


@pytest.mark.parametrize("kind", ["man_indirect", "woman_direct", "man_minus_woman"])
@pytest.mark.parametrize("multi_token, words", [("last", ("electrician", "man", "woman")), ("all", ("xqz", "zqx", "qzx")),
                                                ("last", ("nurse", "electrician", "school principal"))], ids=["last", "all", "longer alternative"])
@torch.no_grad()
def test_several_tokens_equal_hooks(toy_model, in_double, kind, multi_token, words):
    for dtype in TOLERANCE:
        for architecture, candidates in (("gpt2", CANDIDATES[1]), ("llama", CANDIDATES[0]), ("gemma3_text", CANDIDATES[2]), ("opt", CANDIDATES[1])):
            model = toy_model(architecture, dtype)
            one = make(model, words=words, candidates=candidates, multi_token=multi_token)
            assert (len(one.places[0]) > 1) == (multi_token == "all")
            swept = model.neuron_intervention_single_experiment(one, kind)
            together = neurons_in_trees(model, [one], kind)[0]
            for layer, neuron in ((0, 0), (0, 7), (1, 3), (2, 15), (3, 2)):
                expected = by_hooks(model, one, kind, layer, neuron)
                np.testing.assert_allclose(np.log([swept[6][layer, neuron], swept[7][layer, neuron]]), expected, rtol=TOLERANCE[dtype])
                np.testing.assert_allclose(together[layer, neuron], expected, rtol=TOLERANCE[dtype])
            assert check_neurons(model, one, kind, together.movedim(-1, 0).numpy(), sample=8).deviation < 10 * TOLERANCE[dtype]
            assert np.ptp(together[1].numpy(), axis=0).min() > 1e-5  # the interventions did something


@torch.no_grad()
def test_whole_mlps_are_all_neurons_of_a_layer(toy_model, in_double):
    model = toy_model("gemma3_text", torch.float64)
    one, width = make(model), model.num_neurons
    sets = torch.arange(4 * width).reshape(4, width)
    swept = neurons_in_trees(model, [one], "man_indirect", units=sets)[0]  # [L + 1, 2]
    for layer in range(4):
        alone = model.neuron_intervention_single_experiment(one, "man_indirect", [layer - 1] * width, list(range(width)), intervention_loc="neuron")
        np.testing.assert_allclose(swept[layer].exp(), [alone[6].item(), alone[7].item()], rtol=1e-10)
    assert check_neurons(model, one, "man_indirect", swept.T.numpy(), sets=sets).deviation < 1e-10


def test_first_order_of_several_tokens_is_the_slope(toy_model):
    model = toy_model("gpt2", torch.float64)
    one = make(model, words=("xqz", "zqx"), multi_token="all")
    null, alternative = (neuron_gradients_of(model, [one], prompt) for prompt in (0, 1))
    step = alternative[2][0] - null[2][0]  # [P, L + 1, D]
    slope = (null[1][0] * step).sum(axis=1)  # [2, L + 1, D]
    small = 1e-4
    with torch.no_grad():
        edits = single_neuron_edits(torch.tensor(null[2][0] + small * step), one.places[0])
        moved = by_full_passes(model.model, model.parts, one.base_strings_tok[0], edits, one.candidates_tok).numpy()
    np.testing.assert_allclose((moved.T.reshape(slope.shape) - null[0][0][:, None, None]) / small, slope, rtol=1e-2, atol=1e-4)


def test_the_default_is_the_rule_of_2020(toy_model):
    model = toy_model()
    with pytest.raises(InputError, match=r"not of equal length.*multi_token"):
        make(model, candidates=CANDIDATES[0], multi_token=None)
    of_two = make(model, words=("xqz", "zqx", "qzx"), candidates=CANDIDATES[0], multi_token=None)
    with pytest.raises(InputError, match=r"differ in a single token.*multi_token"):
        model.neuron_intervention_single_experiment(of_two, "man_indirect")
    with pytest.raises(InputError, match=r"is 2 tokens.*--multi_token"):
        model.neuron_intervention_single_experiment(make(model, words=("nurse", "man", "woman"), multi_token=None), "man_indirect")
    with pytest.raises(InputError, match="not as many: use multi_token last"):
        model.neuron_intervention_single_experiment(make(model, multi_token="all"), "man_indirect")


@pytest.mark.parametrize("template", ["{} said that", "Who is the {}", "\"The {},\" said the man, and"])
@torch.no_grad()
def test_slots_anywhere(toy_model, template):
    model = toy_model("llama", torch.float64)
    one = make(model, template)
    swept = neurons_in_trees(model, [one], "man_indirect")[0]
    for layer in (0, 3):
        np.testing.assert_allclose(swept[layer, 5], by_hooks(model, one, "man_indirect", layer, 5), rtol=1e-6)


def test_a_study_of_words_of_several_tokens(toy_model, tmp_path):
    """An interpolant has one variable: slots of several tokens are swept word by word."""
    model, template, run_folder = toy_model(), "The {} said that", RunFolder(tmp_path)
    words = ["".join(pair) for pair in permutations("xqzj", 2)]
    stimuli = {word: make(model, template, (word, "xx", "qq"), CANDIDATES[0], "all") for word in words}
    run_folder.claim([], {})
    assert len(words) >= INTERPOLATED_FROM
    study = ProfessionStudy(model, run_folder, {template: stimuli}, {"t.csv": {"template": template, "intervention_type": "man_direct"}},
                            StudyOptions())
    with tqdm(disable=True) as progress:
        results, prompts = study.sweep("man_direct", progress)
    expected = model.neuron_intervention_single_experiment(stimuli[words[3]], "man_direct")[6:]
    found = results(prompts.index((template, words[3]))).log_probabilities.T
    np.testing.assert_allclose(found, np.log([part.numpy().ravel() for part in expected]), atol=1e-5)


# without the normaliser


def test_odds_of_several_tokens_need_the_normaliser(toy_model, toy_checkpoint, run_script, tmp_path):
    model = toy_model()
    for candidates in CANDIDATES[1:]:
        one = make(model, candidates=candidates)
        with pytest.raises(InputError, match="odds_only is for candidates of one token each"):
            neurons_in_trees(model, [one], "man_indirect", SweepOptions(odds_only=True))
        with pytest.raises(InputError, match="odds_only is for candidates of one token each"):
            direct_interpolants(model, [one], "man_direct", np.zeros((2, 16)), 1, SweepOptions(odds_only=True))
    code, _, error = run_script("run_profession_neuron_experiments.py --template_indices 1 --professions nurse",
                                "--odds_only", "--multi_token", "last", "--candidates", "he was", "she",
                                "-model", toy_checkpoint("gpt2"), "-out_dir", tmp_path / "out")
    assert code == 2 and error.count("\n") == 1
    assert error.startswith("error: odds_only is for candidates of one token each, one has 2")
    assert not (tmp_path / "out").exists()


def test_odds_of_single_tokens_after_words_of_several(toy_model):
    model = toy_model()
    one = make(model, candidates=CANDIDATES[0])
    full, odds = (neurons_in_trees(model, [one], "man_indirect", SweepOptions(odds_only=odds_only))
                  for odds_only in (False, True))
    np.testing.assert_allclose(odds[..., 0] - odds[..., 1], full[..., 0] - full[..., 1], atol=1e-5)


# begin tokens


@pytest.fixture(scope="module", params=[False, True], ids=["begin", "begin and end"])
def with_begin_token(request, toy_checkpoint, toy_tokenizer, tmp_path_factory):
    """A toy Llama whose tokenizer puts a begin token before every text, and maybe an end token behind it."""
    folder = tmp_path_factory.mktemp("begin") / "toy-begin"
    shutil.copytree(toy_checkpoint("llama"), folder)
    begin = toy_tokenizer.convert_ids_to_tokens(9)
    content = json.loads((folder / "tokenizer.json").read_text())
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    end = toy_tokenizer.convert_ids_to_tokens(10)
    special = {name: {"id": name, "ids": [number], "tokens": [name]}
               for name, number in ((begin, 9), (end, 10))}
    single = [{"SpecialToken": {"id": begin, "type_id": 0}}, first,
              {"SpecialToken": {"id": end, "type_id": 0}}]
    content["post_processor"] = {"type": "TemplateProcessing", "single": single[: 2 + request.param],
                                 "pair": [first, second], "special_tokens": special}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), bos_token=begin,
                            eos_token=end).save_pretrained(folder)
    return folder


def test_a_begin_token_stands_before_every_prompt(with_begin_token, toy_tokenizer):
    model = Model(gpt2_version=str(with_begin_token))
    assert begin_tokens(model.tokenizer) == [9] and begin_tokens(toy_tokenizer) == []
    plain, begun = (fill(tokenizer, "The {} said that", "nurse") for tokenizer in (toy_tokenizer, model.tokenizer))
    assert begun.tokens == (9, *plain.tokens) and begun.slot == (plain.slot[0] + 1, plain.slot[1] + 1)
    one = Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"])
    assert one.candidates_tok == [model.tokenizer(word, add_special_tokens=False)["input_ids"] for word in (" he", " she")]
    with torch.no_grad():
        expected = model.model(torch.tensor([[9, *plain.tokens]])).logits[0, -1].softmax(-1)[[ids[0] for ids in one.candidates_tok]]
    found = model.neuron_intervention_single_experiment(one, "man_indirect")
    np.testing.assert_allclose(found[:2], expected, rtol=1e-5)


def test_what_frames_a_text_of_a_masked_model_is_no_begin_token(with_begin_token):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(with_begin_token)
    framed = len(tokenizer("a")["input_ids"]) == 3
    tokenizer.mask_token = tokenizer.convert_ids_to_tokens(11)
    assert begin_tokens(tokenizer) == [9] and not is_masked(tokenizer)  # as Gemma's, which names a mask and predicts the next token
    tokenizer = PreTrainedTokenizerFast.from_pretrained(with_begin_token)
    tokenizer.mask_token, tokenizer.cls_token = tokenizer.convert_ids_to_tokens(11), tokenizer.bos_token  # as RoBERTa's
    assert is_masked(tokenizer) and begin_tokens(tokenizer) == ([] if framed else [9])
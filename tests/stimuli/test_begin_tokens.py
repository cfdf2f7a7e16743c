"""Tokenizers that put a token before every text, and maybe one behind it."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from experiment import Intervention, Model
from mediation.stimuli.prompts import begin_tokens, fill, is_masked


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
    plain, begun = (fill(tokenizer, "The {} said that", "nurse")
                    for tokenizer in (toy_tokenizer, model.tokenizer))
    assert begun.tokens == (9, *plain.tokens) and begun.slot == (plain.slot[0] + 1, plain.slot[1] + 1)
    one = Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"])
    assert one.candidates_tok == [model.tokenizer(word, add_special_tokens=False)["input_ids"]
                                  for word in (" he", " she")]
    with torch.no_grad():
        probabilities = model.model(torch.tensor([[9, *plain.tokens]])).logits[0, -1].softmax(-1)
        expected = probabilities[[ids[0] for ids in one.candidates_tok]]
    results = model.neuron_intervention_single_experiment(one, "man_indirect")
    np.testing.assert_allclose(results[:2], expected, rtol=1e-5)


def test_what_frames_a_text_of_a_masked_model_is_no_begin_token(with_begin_token):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(with_begin_token)
    framed = len(tokenizer("a")["input_ids"]) == 3
    tokenizer.mask_token = tokenizer.convert_ids_to_tokens(11)
    # as Gemma's, which names a mask and predicts the next token
    assert begin_tokens(tokenizer) == [9] and not is_masked(tokenizer)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(with_begin_token)
    # as RoBERTa's
    tokenizer.mask_token, tokenizer.cls_token = tokenizer.convert_ids_to_tokens(11), tokenizer.bos_token
    assert is_masked(tokenizer) and begin_tokens(tokenizer) == ([] if framed else [9])

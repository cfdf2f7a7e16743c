"""Checkpoints: random weights, what is refused and why, and that nothing that comes with one is run."""

import json
import os
import pickle

import pytest
from transformers import AutoConfig, AutoModelForMaskedLM

from experiment import Model
from mediation.errors import InputError
from tests.helpers import damaged_checkpoint, resized


def test_random_weights_have_their_seed(toy_checkpoint):
    first, again, other = (Model(gpt2_version=str(toy_checkpoint("gpt2")), random_weights=True, seed=seed)
                           for seed in (1, 1, 2))
    assert first.name == "toy-gpt2_random"
    assert first.weights_sha256() == again.weights_sha256() != other.weights_sha256()


@pytest.mark.parametrize("kind, settings, message", [
    ("t5", {}, "'t5' is not supported.*masked models bert, distilbert, roberta"),
    ("vit", {}, "'vit' is not supported"),
    ("xlnet", {}, "this xlnet model sees later tokens"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "this gemma3_text model sees later tokens"),
])
def test_other_architectures_are_refused_by_name_before_weights_are_loaded(tmp_path, kind, settings, message):
    """The folder has no weights and no tokenizer: the config alone decides."""
    AutoConfig.for_model(kind, **settings).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=message):
        Model(gpt2_version=str(tmp_path))


def test_a_checkpoint_without_its_head_is_refused(toy_checkpoint, toy_tokenizer, tmp_path):
    """The library would draw the head at random, and say so in a warning only."""
    AutoModelForMaskedLM.from_pretrained(toy_checkpoint("bert")).bert.save_pretrained(tmp_path / "headless")
    toy_tokenizer.save_pretrained(tmp_path / "headless")
    message = r"headless' has no weights for cls\..*name a checkpoint with its language-model head"
    with pytest.raises(InputError, match=message):
        Model(gpt2_version=str(tmp_path / "headless"))


def test_a_special_token_without_a_row_does_no_harm(toy_checkpoint, toy_tokenizer, tmp_path):
    """As Gemma 3's placeholder for images does."""
    tokenizer, rows = type(toy_tokenizer).from_pretrained(toy_checkpoint("gpt2")), len(toy_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    folder = resized(toy_checkpoint("gpt2"), tmp_path / "toy", rows, tokenizer)
    assert len(Model(gpt2_version=str(folder)).tokenizer) == rows + 1


# nobody let in

class Payload:
    """What a pickle would run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_checkpoint_that_would_run_code_is_refused(toy_checkpoint, tmp_path):
    folder, marker = damaged_checkpoint(toy_checkpoint("gpt2"), tmp_path / "evil"), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(InputError, match="cannot load model"):
        Model(gpt2_version=str(folder))
    assert not marker.exists()


def test_code_that_comes_with_a_model_is_not_run(toy_checkpoint, tmp_path):
    folder, marker = damaged_checkpoint(toy_checkpoint("gpt2"), tmp_path / "evil"), tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil",
               "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n")
    with pytest.raises(InputError, match="cannot load model"):
        Model(gpt2_version=str(folder))
    assert not marker.exists()

"""The scripts on models that cannot be resumed, or do not have all that is asked for."""

import numpy as np
import pandas as pd
import pytest
import torch

from experiment import Intervention, Model
from mediation.stimuli.stimulus_files import Stimulus
from tests.helpers import COMMAND, assert_refused, read_own_table, write_stimuli
from tests.tiny_models import tiny_model

MINE = [Stimulus("1", "The {} went home because", ("nurse", "man"), ("he was", "she"), "a"),
        Stimulus("2", "The {} went home because", ("captain", "woman"), ("he", "she"), "b")]


@pytest.fixture(scope="module")
def checkpoint(toy_tokenizer, tmp_path_factory):
    """checkpoint("bloom") -> folder of a tiny checkpoint of that type."""
    made = {}

    def make(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("tiny") / f"tiny-{kind}"
            tiny_model(kind).float().save_pretrained(made[kind])
            toy_tokenizer.save_pretrained(made[kind])
        return made[kind]

    return make


def test_a_model_that_cannot_be_resumed_runs_full_passes(checkpoint, tmp_path, run_script):
    path = write_stimuli(tmp_path, MINE)
    command = f"mediate.py {path} -model {checkpoint('bloom')} -out_dir {tmp_path / 'out'} --multi_token last"
    code, printed, error = run_script(f"{command} --mediators residuals,mlps,heads,neurons")
    assert code == 0, error
    for told in ("this bloom model cannot be resumed", "every intervention is a full pass"):
        assert told in printed
    assert "heads: 2 of 2 comparisons left out: no heads in this model" in printed
    model = Model(gpt2_version=str(checkpoint("bloom"))).model
    for name in ("residuals", "mlps_each"):
        if name == "mlps_each":
            code, _, error = run_script(f"{command} --mediators mlps --positions each")
            assert code == 0, error
        table = read_own_table(tmp_path / "out", f"{name}_tiny-bloom.csv")
        of_captain = table[table["id"].astype(str) == "2"]
        row = of_captain[(of_captain["layer"] == 2) & (of_captain["position"] == 1)].iloc[0]
        assert row["candidate2_indirect_prob"] == pytest.approx(by_hook(model, name), rel=1e-4)
    neurons = read_own_table(tmp_path / "out", "neurons_tiny-bloom.csv")
    assert len(neurons) == 2 * 4 * 32 and (neurons["indirect_effect"].abs() > 1e-3).mean() > 0.5


def by_hook(model, name):
    """p(she) after the captain's prompt when layer 2's residual stream or MLP is the woman's at the word."""
    tokenizer = Model(gpt2_version=str(model.config._name_or_path)).tokenizer
    stimulus = Intervention(tokenizer, MINE[1].base, list(MINE[1].substitutes), list(MINE[1].candidates))
    null, other = stimulus.base_strings_tok
    blocks, kept = model.transformer.h, []

    def keep(_module, inputs, output=None):
        kept.append((inputs[0] if output is None else output)[0, 1].clone())

    def put(_module, inputs, output=None):
        new = (inputs[0] if output is None else output).clone()
        new[0, 1] = kept[0]
        return (new, *inputs[1:]) if output is None else new

    module = blocks[2] if name == "residuals" else blocks[1].mlp.dense_4h_to_h
    register = module.register_forward_pre_hook if name == "residuals" else module.register_forward_hook
    with torch.no_grad():
        for hook, tokens in ((keep, other), (put, null)):
            handle = register(hook)
            logits = model(tokens[None], use_cache=False).logits[0, -1]
            handle.remove()
    return float(logits.softmax(-1)[stimulus.candidates_tok[1][0]])


@pytest.mark.parametrize("options, words", [
    ("--method gradient", ("--method gradient does not go with this bloom model", "use --method exact")),
    ("--method screen", ("--method screen does not go with this bloom model",)),
    ("--mediators heads", ("no stimulus of the file", "no heads in this model")),
])
def test_what_such_a_model_cannot_do_is_refused(checkpoint, tmp_path, run_script, options, words):
    path = write_stimuli(tmp_path, MINE[1:])
    command = f"mediate.py {path} -model {checkpoint('bloom')} -out_dir {tmp_path / 'out'}"
    assert_refused(run_script(f"{command} --mediators mlps {options}" if "--med" not in options
                              else f"{command} {options}"), *words)


def test_the_profession_study_runs_on_it_too(checkpoint, tmp_path, run_script):
    name, *_ = COMMAND.split()
    code, printed, error = run_script(
        f"{name} -model {checkpoint('bloom')} -out_dir {tmp_path} -template_indices 1 --professions nurse")
    assert code == 0, error
    assert "every intervention is a full pass" in printed
    (table,) = (tmp_path / "results").rglob("*_man_indirect_tiny-bloom.csv")
    assert np.isfinite(pd.read_csv(table)["candidate1_prob"]).all()


def test_the_attention_study_refuses_a_model_without_attention_that_can_be_changed(
        checkpoint, data, tmp_path, run_script):
    assert_refused(run_script(f"attention_intervention_winobias.py -model {checkpoint('bloom')} "
                              f"-out_dir {tmp_path / 'out'} --do_filter False"), "bloom model has no heads")

"""docs/code.md shows how to add a mediator, an architecture, a study and a statistic: its examples run here
as they stand."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from experiment import Intervention
from mediation.files.storage import RunFolder
from mediation.mediators.catalogue import CATALOGUE
from mediation.mediators.neuron_sweeps import neurons_in_trees
from tests.helpers import PROJECT

EXAMPLES = re.findall(r"## To add an? (\w+)\n.*?```python\n(.*?)```",
                      (PROJECT / "docs" / "code.md").read_text(), re.DOTALL)
LINES = """\
{"id": "1", "base": "The {} said that", "substitutes": ["nurse", "man"], "candidates": ["he", "she"]}
{"id": "2", "base": "The {} went home because", "substitutes": ["captain", "man"], \
"candidates": ["he", "she"]}
"""


@pytest.fixture
def example():
    """example("study") -> the names that an example of the page defines; what it registers is taken back
    after the test."""
    before = dict(CATALOGUE)

    def run(name):
        namespace = {"__name__": "example"}
        exec(dict(EXAMPLES)[name], namespace)
        return namespace

    yield run
    CATALOGUE.clear()
    CATALOGUE.update(before)


def test_the_page_has_an_example_of_each():
    assert [name for name, _ in EXAMPLES] == ["mediator", "architecture", "study", "statistic"]


def test_a_mediator_is_one_record(example, run_script, toy_checkpoint, toy_model, tmp_path):
    example("mediator")
    (tmp_path / "mine.jsonl").write_text(LINES)
    command = (f"mediate.py {tmp_path / 'mine.jsonl'} -model {toy_checkpoint('llama')} "
               f"--out_dir {tmp_path / 'out'} --mediators mlp_inputs")
    code, printed, error = run_script(command)
    assert code == 0 and "mlp_inputs" in printed, error
    table = pd.read_csv(tmp_path / "out" / "mlp_inputs_toy-llama.csv")
    assert len(table) == 2 * 3
    model = toy_model("llama")
    stimulus = Intervention(model.tokenizer, "The {} said that", ["nurse", "man"], ["he", "she"])
    null, alternative = stimulus.base_strings_tok
    mlp, given = model.model.model.layers[1].mlp, []
    with torch.no_grad():
        handle = mlp.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].clone()))
        model.model(alternative[None])
        handle.remove()

        def at_slot(_module, inputs):
            inputs[0][0, stimulus.position] = given[0][0, stimulus.position]

        handle = mlp.register_forward_pre_hook(at_slot)
        expected = model.model(null[None]).logits[0, -1].softmax(-1)[[ids[0] for ids in
                                                                       stimulus.candidates_tok]]
        handle.remove()
    row = table[(table["id"] == 1) & (table["layer"] == 1)].iloc[0]
    np.testing.assert_allclose([row["candidate1_indirect_prob"], row["candidate2_indirect_prob"]], expected,
                               rtol=1e-5)


def test_an_architecture_is_found(example, capsys):
    example("architecture")
    printed = "model.layers.0.mlp, behind it model.layers.0.post_feedforward_layernorm; resumed: True"
    assert capsys.readouterr().out.strip() == printed


def test_a_study_is_tasks_in_stages(example, toy_model, tmp_path, monkeypatch):
    study, model = example("study"), toy_model("llama")
    stimulus = Intervention(model.tokenizer, "The {} said that", ["nurse", "man"], ["he", "she"])
    run_folder = RunFolder(tmp_path)
    run_folder.claim([], {})
    found = study["dose_response"](model, stimulus, 1, [0.5, 1.0, 2.0], run_folder)
    one, other = neurons_in_trees(model, [stimulus], "indirect", units=torch.arange(16)[None] + 16)[0, 0]
    assert found[1] == pytest.approx(float(other - one), abs=1e-6) and len(set(found)) == 3
    monkeypatch.setattr(study["Dose"], "compute", None)  # all shards are there: nothing is computed again
    assert study["dose_response"](model, stimulus, 1, [0.5, 1.0, 2.0], run_folder) == found


def test_a_statistic_is_a_function_of_arrays(example, tmp_path):
    statistic = example("statistic")
    assert statistic["trimmed_mean"](np.array([-100.0, *range(8), 100])) == 3.5
    table = pd.DataFrame({"layer": [0, 0, 1, 1], "indirect_effect": np.expm1([1.0, 3.0, -1.0, 0.0])})
    table.to_csv(tmp_path / "mlps.csv", index=False)
    assert statistic["trimmed_by_layer"](tmp_path / "mlps.csv").tolist() == pytest.approx([2.0, -0.5])

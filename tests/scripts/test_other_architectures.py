"""The scripts on models that cannot be resumed, or do not have all that is asked for."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from experiment import Intervention, Model
from mediation import mediate
from mediation.errors import InputError
from mediation.files.storage import read_pickle
from mediation.model import language_model
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies import trees
from tests.helpers import COMMAND, assert_refused, interrupt_at, read_own_table, tables, write_stimuli
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


@pytest.mark.usefixtures("unreported")
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


@pytest.fixture
def study(checkpoint, tmp_path, run_script):
    """study("whole", "1 13") runs the profession study on BLOOM in a folder: (exit code, what it printed)."""
    def run(folder, templates):
        code, printed, _ = run_script(
            f"run_profession_neuron_experiments.py -model {checkpoint('bloom')} -out_dir {tmp_path / folder} "
            f"-template_indices {templates} --professions nurse captain --intervention_types man_indirect")
        return code, printed
    return run


def test_it_is_extended_and_goes_on_where_it_was_stopped(study, tmp_path, monkeypatch):
    assert study("whole", "1 13")[0] == 0
    assert study("extended", "1")[0] == 0
    (first,) = tables(tmp_path / "extended").items()
    with monkeypatch.context() as patched:
        calls = interrupt_at(patched, (trees, "neuron_experiment"), 2)
        assert study("extended", "1 13")[0] == 130 and len(calls) == 2
    calls = interrupt_at(monkeypatch, (trees, "neuron_experiment"), 0)
    assert study("extended", "1 13")[0] == 0 and len(calls) == 1  # the other word was there
    assert first in tables(tmp_path / "extended").items()
    assert tables(tmp_path / "extended") == tables(tmp_path / "whole")


@pytest.mark.usefixtures("unreported")
def test_full_passes_are_not_said_to_be_checked(study, checkpoint, tmp_path, run_script):
    nothing = "every intervention was a full pass of its own, there is nothing to check"
    code, printed = study("out", "1")
    assert code == 0 and nothing in printed and "differ by at most" not in printed
    (manifest,) = (tmp_path / "out" / "results").glob("*/manifest.json")
    (run,) = json.loads(manifest.read_text())["runs"]
    (entry,) = run["files"].values()
    assert run["settings"]["full_passes"] and run["checks"] == {"checked_at_random": 0,
                                                                "checked_where_likely": 0}
    assert "largest_deviation_from_full_passes" not in entry

    command = f"mediate.py {write_stimuli(tmp_path, MINE)} -model {checkpoint('bloom')} --multi_token last"
    code, printed, error = run_script(f"{command} --mediators mlps --out_dir {tmp_path / 'mine'}")
    assert code == 0, error
    assert f"mlps: {nothing}" in printed and "by at most" not in printed
    found = mediate(str(checkpoint("bloom")), tmp_path / "mine.jsonl", ("mlps",), multi_token="last")
    page = found.report(tmp_path / "page.html").read_text()
    assert "was a full pass of its own: there is nothing to check" in page and "by at most" not in page


def test_the_attention_study_refuses_a_model_without_attention_that_can_be_changed(
        checkpoint, data, tmp_path, run_script):
    assert_refused(run_script(f"attention_intervention_winobias.py -model {checkpoint('bloom')} "
                              f"-out_dir {tmp_path / 'out'} --do_filter False"), "bloom model has no heads")


# the same model, kept from being resumed

STUDY = "run_profession_neuron_experiments.py -template_indices 1 --professions nurse captain"
SELECTION = "--algo greedy,random --k 1 --orders 1"
COMMANDS = [
    "mediate.py {mine} --mediators residuals,heads --multi_token all",
    "mediate.py {mine} --mediators mlps,values --positions each --multi_token last --batch_size 5",
    "mediate.py {mine} --mediators attentions,mlps --values resample --positions slot --multi_token last "
    "--format parquet",
    f"{STUDY} --intervention_types man_minus_woman --alpha 2",
    f"{STUDY} --intervention_types woman_direct --odds_only",
    "attention_intervention_winobias.py --split dev --do_filter False --max_examples 2",
    f"attention_intervention_subset_selection.py --do_filter False {SELECTION}",
    f"neuron_intervention_subset_selection.py -template_indices 1 --professions nurse captain {SELECTION}",
]


@pytest.fixture
def kept_from_resuming(monkeypatch):
    """From now on every model runs full passes."""
    def known(model, own=language_model.known_architecture):
        return replace(own(model), resumes=False, obstacle="cannot be resumed (a test)")

    return lambda: monkeypatch.setattr(language_model, "known_architecture", known)


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split("{mine}")[-1][:80])
def test_runs_by_full_passes_write_what_resumed_ones_do(
        command, toy_checkpoint, data, tmp_path, run_script, kept_from_resuming, monkeypatch):
    monkeypatch.setattr("mediation.effects.estimands.LEAST_PROBABILITY", 0.0)
    command = command.format(mine=write_stimuli(tmp_path, MINE))
    written = []
    for way in ("resumed", "full"):
        if way == "full":
            kept_from_resuming()
        code, printed, error = run_script(command, "-model", toy_checkpoint("llama"), "--out_dir",
                                          tmp_path / way, "--dtype", "float64")
        assert code == 0, error
        assert ("every intervention is a full pass" in printed) == (way == "full")
        written.append({path.relative_to(tmp_path / way): path for path in (tmp_path / way).rglob("*")
                        if path.suffix in (".csv", ".parquet", ".json", ".pickle")
                        and path.name != "manifest.json"})
    resumed, full = written
    assert resumed and resumed.keys() == full.keys()
    for name, path in resumed.items():
        for one, other in zip(columns(path), columns(full[name]), strict=True):
            if np.issubdtype(one.dtype, np.floating):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5, err_msg=str(name))
            else:
                assert one.tolist() == other.tolist(), name


def columns(path):
    """A table's columns, or the values of a JSON or a pickle, as arrays."""
    if path.suffix in (".csv", ".parquet"):
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        return [table[column].to_numpy() for column in table]
    content = json.loads(path.read_text()) if path.suffix == ".json" else read_pickle(path)
    return [np.array([leaf]) for leaf in leaves(content)]


def leaves(content):
    """What nested lists, dictionaries and arrays hold."""
    content = content.tolist() if isinstance(content, np.ndarray) else content
    content = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(content, (list, tuple)):
        return [content]
    return [leaf for part in content for leaf in leaves(part)]


# attention in some blocks only

@pytest.mark.usefixtures("undrawn")
def test_attention_is_served_where_there_is_some_and_layers_keep_their_numbers(
        checkpoint, tmp_path, run_script):
    """Of LFM 2's three blocks here the second has attention."""
    path = write_stimuli(tmp_path, MINE)
    command = f"mediate.py {path} -model {checkpoint('lfm2')} -out_dir {tmp_path / 'out'} --multi_token all"
    asked = ("attentions", "keys", "heads", "layers")
    code, printed, error = run_script(f"{command} --mediators {','.join(asked)}")
    assert code == 0, error
    assert "comparisons left out" not in printed
    for name in asked:
        table = read_own_table(tmp_path / "out", f"{name}_tiny-lfm2.csv")
        assert set(table["layer"].astype(str)) == ({"1", "all"} if name == "layers" else {"1"})
        assert (table["indirect_effect"].abs() > 1e-6).any()
    whole, head = (read_own_table(tmp_path / "out", f"{name}_tiny-lfm2.csv") for name in ("layers", "heads"))
    assert len(head) == 2 * 4
    of_layer = whole.groupby("layer")["candidate1_indirect_prob"].apply(list)
    assert of_layer["1"] == of_layer["all"]
    means = read_own_table(tmp_path / "out", "heads_mean_tiny-lfm2.csv")
    assert set(means["layer"]) == {1} and list((tmp_path / "out").glob("heads_*.pdf"))


@pytest.mark.parametrize("script", [
    "attention_intervention_winobias.py --do_filter False -out_dir {out}",
    "attention_intervention_subset_selection.py --do_filter False --out_dir {out}"])
def test_studies_that_need_attention_everywhere_refuse_it(checkpoint, data, tmp_path, run_script, script):
    assert_refused(run_script(f"{script.format(out=tmp_path / 'out')} -model {checkpoint('lfm2')}"),
                   "only blocks 1 of this lfm2 model have attention", "use mediate.py")


def test_a_head_in_a_block_without_attention_is_not_in_the_model(checkpoint):
    model = Model(gpt2_version=str(checkpoint("lfm2")))
    stimulus = Intervention(model.tokenizer, MINE[1].base, list(MINE[1].substitutes), ["he", "she"])
    with pytest.raises(InputError, match="head 0-1 is not in the model: layers 1, heads 0 to 3"):
        model.attention_intervention_single_experiment(stimulus, "indirect", [0], [1], search=False)

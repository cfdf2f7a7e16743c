"""The attention study against the oracle numbers, and the published files."""

import json

import numpy as np
import pytest
import torch

from experiment import Intervention, Model
from mediation.errors import InputError
from mediation.model.attention import attention_weights
from mediation.results import attention_results
from mediation.results.attention_results import STRINGS, example_key, find_results, read_results
from mediation.stimuli import winobias, winogender
from tests.helpers import PROJECT


@pytest.fixture(scope="module")
def examples(golden):
    """The oracle's examples and ours, where the data sets can be had."""
    try:
        ours = {**{f"winobias_{split}": winobias.load(split) for split in winobias.SPLITS},
                **{statistic: winogender.load(statistic) for statistic in winogender.STATISTICS}}
    except InputError as error:
        pytest.skip(f"no data sets: {error}")
    return ours, json.loads((golden / "attention" / "inputs.json").read_text())


def test_every_example_is_read_as_the_oracle_read_it(examples):
    ours, oracle = examples
    for split, count, possessive in (("dev", 160, 6), ("test", 130, 5)):
        examples_of_split = ours[f"winobias_{split}"]
        possessives = sum(example.substitutes == ("her", "his") for example in examples_of_split)
        assert (len(examples_of_split), possessives) == (count, possessive)
        for example, expected in zip(examples_of_split, oracle[f"winobias_{split}"], strict=True):
            texts = tuple(expected[key] for key in (
                "base_string", "female_pronoun", "male_pronoun", "female_occupation_continuation",
                "male_occupation_continuation"))
            assert (example.base_string, *example.substitutes, *example.candidates) == texts
    for statistic in ("bls", "bergsma"):
        assert len(ours[statistic]) == 44
        for example, expected in zip(ours[statistic], oracle["winogender"], strict=True):
            continuations = [expected["continuation_occupation"], expected["continuation_participant"]]
            if expected[f"{statistic}_pct_female"] <= 50:
                continuations.reverse()
            assert (example.base_string, list(example.candidates)) == (expected["base_string"], continuations)


GOLDEN_FILES = {"winobias_dev_filtered_firstALL": "winobias --split dev",
                "winobias_dev_unfiltered_first12": "winobias --split dev --max_examples 12 --do-filter False",
                "winobias_test_unfiltered_first12":
                    "winobias --split test --max_examples 12 --do-filter False",
                "winogender_bergsma_filtered_firstALL": "winogender --stat bergsma",
                "winogender_bls_filtered_firstALL": "winogender --stat bls",
                "winogender_bergsma_unfiltered_first12":
                    "winogender --stat bergsma --max_examples 12 --do-filter False",
                "winogender_bls_unfiltered_first12":
                    "winogender --stat bls --max_examples 12 --do-filter False"}


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_result_files_of_the_oracle(golden, golden_model, examples, run_script, tmp_path, name):
    data, *options = GOLDEN_FILES[name].split()
    code, _, errors = run_script(f"attention_intervention_{data}.py", *options, "-model", golden_model,
                                 "-out_dir", tmp_path)
    assert code == 0, errors
    (path,) = find_results(tmp_path)
    ours, oracle = read_results(path), read_results(golden / "attention" / f"{name}.json")
    assert list(ours) == list(oracle)
    for key in oracle.keys() - {"results"}:
        assert ours[key] == (pytest.approx(oracle[key], rel=1e-5, abs=1e-5)
                             if isinstance(oracle[key], float) else oracle[key]), key
    for entry, expected in zip(ours["results"], oracle["results"], strict=True):
        assert entry.keys() == expected.keys()
        for key, value in expected.items():
            if key in STRINGS:
                assert entry[key] == value
            elif "effect" in key:  # 2020 ran in float32: an effect is off by a millionth of its odds ratio
                np.testing.assert_allclose(entry[key], value, rtol=5e-6, atol=1e-5, err_msg=key)
            else:
                np.testing.assert_allclose(entry[key], value, rtol=1e-5, err_msg=key)


def test_attention_weights_of_the_oracle(golden, golden_model, examples):
    model, oracle = Model(gpt2_version=str(golden_model)), np.load(golden / "attention" / "attn_example0.npz")
    first = examples[0]["winobias_dev"][0]
    contexts = Intervention(model.tokenizer, first.base_string, first.substitutes,
                            first.candidates).base_strings_tok
    for context, name in zip(contexts, ("x", "xalt")):
        with torch.no_grad():
            weights = attention_weights(model.model, model.parts, context)
        np.testing.assert_allclose(weights, [oracle[f"{name}_layer{layer}"] for layer in range(4)], atol=1e-5)


def test_published_files_load_and_their_means_are_those_of_their_results(shared):
    paths = find_results(shared / "published")
    assert len(paths) == 16
    for path in paths:
        content = read_results(path)
        loaded = content["num_examples_loaded"]
        aligned = content.get("num_examples_aligned", loaded)
        assert len(content["results"]) == content["num_examples_analyzed"] <= aligned <= loaded
        for key, value in attention_results.means(content["results"]).items():
            assert content[key] == pytest.approx(value, rel=1e-9)


def test_the_published_figures_that_are_brought_along_are_the_published_ones(shared, examples):
    name = "attention_intervention_gpt2_filtered_dev.json"
    ours = read_results(PROJECT / "experiment_data" / "published" / name)
    published = read_results(shared / "published" / "winobias_data" / name)
    for entry, expected in zip(ours["results"], published["results"], strict=True):
        one, other = (attention_results.example_key(*(each[name] for name in STRINGS))
                      for each in (entry, expected))
        assert one == other
        np.testing.assert_allclose(entry["indirect_effect_head"], expected["indirect_effect_head"], rtol=1e-6)


ALONG = {  # file: data set; examples, those that follow the stereotype, that pass; total effect of these
    "winobias_data/attention_intervention_smollm2-135m_{}_dev.json": ("winobias_dev", 160, 116, 87, .2466),
    "winobias_data/attention_intervention_smollm2-135m_{}_test.json": ("winobias_test", 130, 81, 60, .2611),
    "winogender_data/attention_intervention_bls_smollm2-135m_{}.json": ("bls", 44, 23, 17, .2048),
    "winogender_data/attention_intervention_bergsma_smollm2-135m_{}.json": ("bergsma", 44, 26, 19, .2761)}


@pytest.mark.parametrize("name", ALONG)
def test_the_results_that_come_along_are_numbers_alone_and_pass_the_filter(examples, name):
    data_set, loaded, aligned, passing, total = ALONG[name]
    contexts = [example.base_string for example in examples[0][data_set]]
    paths = [PROJECT / name.format(kind) for kind in ("unfiltered", "filtered")]
    for path in paths:
        text = path.read_text()
        assert not any(context.partition(" {}")[0] in text for context in contexts)
    unfiltered, filtered = map(read_results, paths)
    assert len(unfiltered["results"]) == loaded
    assert (len(filtered["results"]), filtered["num_examples_aligned"]) == (passing, aligned)
    assert filtered["mean_total_effect"] == pytest.approx(total, abs=5e-5)  # docs/attention_study.md
    heads = np.mean([entry["indirect_effect_head"] for entry in filtered["results"]], axis=0)
    assert np.unravel_index(heads.argmax(), heads.shape) == (14, 8)


def test_published_masked_results_are_read_and_their_examples_found(shared):
    name = "attention_intervention_distilbert-base-uncased_filtered_dev_1.json"
    path = shared / "published" / "winobias_data" / name
    try:
        examples = winobias.load("dev")
    except InputError as error:
        pytest.skip(str(error))
    entries = read_results(path)["results"]
    keys = {example_key(*(example.base_string.replace("{}", word) for word in example.substitutes),
                        *example.candidates) for example in examples}
    assert len(entries) == 69
    assert all(example_key(*(entry[name] for name in STRINGS)) in keys for entry in entries)

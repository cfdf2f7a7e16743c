"""The Python face: the names, shapes and errors that 2020's notebooks rely on."""

import shutil
import textwrap

import numpy as np
import pytest
import torch

from experiment import Intervention, Model
from mediation.errors import InputError
from mediation.mediators.neuron_sweeps import check_for_neurons
from mediation.results.neuron_tables import NEURON_COLUMNS
from tests.helpers import MASKED
from utils import batch, convert_results_to_pd


@pytest.fixture
def model(toy_model):
    return toy_model("llama", torch.float64)


@pytest.fixture
def intervention(model):
    return Intervention(model.tokenizer, "The {} said that", ["nurse", "man", "woman"], ["he", "she"])


def test_the_snippet_of_the_contract(toy_checkpoint, tmp_path, monkeypatch):
    (tmp_path / "gpt2").symlink_to(toy_checkpoint("gpt2"))
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec("""
from transformers import AutoTokenizer
from experiment import Intervention, Model

# also output_attentions, random_weights, masking_approach
model = Model(device="cpu", gpt2_version="gpt2")
substitutes, candidates = ["teacher", "man", "woman"], ["he", "she"]
intervention = Intervention(model.tokenizer, "The {} said that", substitutes, candidates, device="cpu")
results = model.neuron_intervention_experiment({"teacher": intervention}, "man_minus_woman", alpha=1.0)
""", namespace)
    *base, candidate1, candidate2 = namespace["results"]["teacher"]
    assert all(0 < p < 1 for p in base) and candidate1.shape == candidate2.shape == (4, 16)
    assert namespace["model"].name == "gpt2"


def test_sizes(model):
    assert (model.num_layers, model.num_neurons, model.num_heads) == (3, 16, 4)


def test_probabilities(model, intervention):
    contexts = torch.stack(intervention.base_strings_tok)
    he, she = intervention.candidates_tok
    rows = model.get_probabilities_for_examples(contexts, [he, she])
    expected = model.model(contexts).logits[:, -1].softmax(-1)[:, [he[0], she[0]]]
    np.testing.assert_allclose(rows, expected.detach(), rtol=1e-12)
    with pytest.raises(ValueError, match="multitoken"):
        model.get_probabilities_for_examples(contexts, [[1, 2]])


def test_probability_of_several_tokens_is_the_exponential_of_the_mean(model, intervention):
    context = intervention.base_strings_tok[0]
    (probability,) = model.get_probabilities_for_examples_multitoken(context, [[5, 9, 11]])
    tokens = torch.cat([context, torch.tensor([5, 9, 11])]).unsqueeze(0)
    log_probabilities = model.model(tokens).logits[0].log_softmax(-1).detach()
    expected = np.mean([log_probabilities[len(context) - 1 + i, token] for i, token in enumerate([5, 9, 11])])
    assert probability == pytest.approx(np.exp(expected), rel=1e-12)
    (one,) = model.get_probabilities_for_examples_multitoken(context, [[5]])
    assert one == pytest.approx(model.get_probabilities_for_examples(context, [[5]])[0][0], rel=1e-12)


def test_base_probabilities_equal_those_of_a_sweep(model, intervention):
    (base,) = model.base_probabilities([intervention])
    np.testing.assert_allclose(base,
                               model.neuron_intervention_single_experiment(intervention, "man_direct")[:6],
                               rtol=1e-12)


def test_direct_and_indirect_are_what_the_definitions_say(model, intervention):
    """man_indirect: the null prompt with man's values; man_direct: man's prompt with the null's values."""
    null, man, _ = intervention.base_strings_tok
    position, neurons = intervention.position, [[n] for n in range(16)]
    for kind, run_on, source in (("man_indirect", null, man), ("man_direct", man, null)):
        values = model.get_representations(source, position)
        swept = model.neuron_intervention_single_experiment(intervention, kind)
        for layer in (-1, 1):
            rows = model.neuron_intervention(run_on, intervention.candidates_tok, values, [layer], neurons,
                                             position, "replace")
            np.testing.assert_allclose(np.array(rows).T, [p[layer + 1] for p in swept[6:]], rtol=1e-12)


def test_differences_are_added_times_alpha(model, intervention):
    null, man, woman = intervention.base_strings_tok
    position = intervention.position
    a, b = (model.get_representations(context, position) for context in (man, woman))
    swept = model.neuron_intervention_single_experiment(intervention, "man_minus_woman", alpha=0.5)
    difference = {0: a[0] - b[0]}
    rows = model.neuron_intervention(null, intervention.candidates_tok, difference, [0],
                                     [[n] for n in range(16)], position, "diff", alpha=0.5)
    np.testing.assert_allclose(np.array(rows).T, [p[1] for p in swept[6:]], rtol=1e-12)


def test_sets_layers_and_single_neurons(model, intervention):
    def run(**arguments):
        return model.neuron_intervention_single_experiment(intervention, "man_indirect", **arguments)[6]

    everywhere = run()
    torch.testing.assert_close(run(layers_to_adj=1, intervention_loc="layer"), everywhere[2:3], rtol=1e-12,
                               atol=0)
    one = run(layers_to_adj=[1], neurons_to_adj=[5], intervention_loc="neuron")
    assert one.shape == (1, 1) and one.item() == pytest.approx(everywhere[2, 5].item(), rel=1e-12)
    with_set = run(layers_to_adj=[1], neurons_to_adj=[5])
    # a neuron of the set, added again, changes nothing
    assert with_set[2, 5].item() == pytest.approx(one.item(), rel=1e-12)
    pair = run(layers_to_adj=[1, 0], neurons_to_adj=[5, 3], intervention_loc="neuron")
    assert pair.item() == pytest.approx(with_set[1, 3].item(), rel=1e-12)


def test_results_become_the_table_of_the_contract(model, intervention):
    results = model.neuron_intervention_experiment({"nurse": intervention}, "man_direct")
    table = convert_results_to_pd({"nurse": intervention}, results)
    assert list(table.columns) == NEURON_COLUMNS and len(table) == 4 * 16
    row = table.iloc[16 + 7]
    assert (row["word"], row["base_string"], row["alt_string1"],
            row["candidate2"]) == ("nurse", "The nurse said that", "The man said that", "['Ġshe']")
    assert (row["layer"], row["neuron"]) == (1, 7) and row["candidate1_prob"] == results["nurse"][6][1, 7]
    fixed = convert_results_to_pd({"nurse": intervention}, {"nurse": (*results["nurse"][:6], 0.25, 0.5)},
                                  layer_fixed=3, neuron_fixed=8)
    assert (fixed["layer"][0], fixed["neuron"][0], fixed["candidate2_prob"][0]) == (3, 8, 0.5)


def test_batch():
    assert list(batch([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]


@pytest.mark.parametrize("arguments, message", [
    ({"intervention_type": "both"}, "'both' is unknown: choose from man_direct"),
    ({"intervention_loc": "head"}, "'head': choose"),
    ({"intervention_loc": "neuron"}, "needs layers_to_adj"),
    ({"layers_to_adj": [3], "neurons_to_adj": [0]}, "layer 3 is not in the model: layers go from -1"),
    ({"layers_to_adj": [0], "neurons_to_adj": [16]}, "neuron 16 is not in the model"),
    ({"layers_to_adj": [0, 1], "neurons_to_adj": [1]}, "differ in length"),
])
def test_what_cannot_be_run_is_said(model, intervention, arguments, message):
    with pytest.raises(InputError, match=message):
        model.neuron_intervention_single_experiment(intervention,
                                                    **{"intervention_type": "man_direct", **arguments})


@pytest.mark.parametrize("substitutes, candidates, message", [
    (["violinist", "man", "woman"], ["he", "she"], "are not of equal length"),
    (["xqz", "zqx", "qzx"], ["he", "she"], "do not differ in a single token"),
    (["man", "woman"], ["he", "she"], "three substitutes"),
    (["nurse", "man", "woman"], ["he", " he"], "same token"),
])
def test_stimuli_that_are_none_of_a_neuron_study_are_refused(model, substitutes, candidates, message):
    with pytest.raises(InputError, match=message):  # some by the stimulus itself, some by the experiment
        stimulus = Intervention(model.tokenizer, "The {} said that", substitutes, candidates)
        model.neuron_intervention_single_experiment(stimulus, "man_direct")


@pytest.mark.parametrize("substitutes, candidates, multi_token, reason", [
    (["xqz", "zqx", "qzx"], ["he", "she"], None,
     "word or candidate of several tokens; --multi_token last takes it"),
    (["nurse", "man"], ["he was", "she"], None,
     "word or candidate of several tokens; --multi_token last takes it"),
    (["violinist", "man"], ["he", "she"], "all",
     "slots of different numbers of tokens; --multi_token last takes them"),
    (["nurse", "man"], ["he", "she"], None,
     "not three substitutes (word, man, woman), which man_direct needs"),
])
def test_stimuli_that_are_refused_alike_share_a_reason(model, substitutes, candidates, multi_token, reason):
    """The message names the stimulus, the reason does not."""
    intervention = Intervention(model.tokenizer, "The {} said that", substitutes, candidates,
                                multi_token=multi_token)
    with pytest.raises(InputError) as refused:
        check_for_neurons(model, intervention, "man_direct")
    assert refused.value.reason == reason and reason not in str(refused.value)


def test_attention_stimuli_have_reasons_too(model):
    for words, reason in ((["violinist", "man"], "not of equal length"), (["man", "man"], "the same")):
        one = Intervention(model.tokenizer, "The {} said that", words, ["he", "she"], any_length=True)
        with pytest.raises(InputError) as refused:
            one.check_for_attention()
        assert refused.value.reason.startswith(f"the two prompts are {reason} in this model's tokens")
    assert InputError("a message").reason == "a message"


def test_unknown_device():
    with pytest.raises(InputError, match="--device cpu"):
        Model(device="cuda:99", gpt2_version="smollm2-135m")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gives_the_same_base_probabilities_in_every_run(toy_model, architecture, dtype):
    """Prompts of equal length together, and in a tree of templates: logits are not rounded.

    Tables without intervention have the first, sweeps the second.
    """
    model = toy_model(architecture, dtype)
    templates = ("The {} said that", "The {} yelled because", "The {} was fired because")
    stimuli = [Intervention(model.tokenizer, template, [word, "man", "woman"], ["he", "she"])
               for word in ("nurse", "captain") for template in templates]
    together = model.base_in_trees(stimuli).exp().flatten(1)
    # what the analysis accepts
    np.testing.assert_allclose(np.array(model.base_probabilities(stimuli)), together, rtol=1e-3)
    assert model.model(stimuli[0].base_strings_tok[0].unsqueeze(0)).logits.dtype == torch.float32


def test_half_precision_is_warned_of_in_one_line(toy_checkpoint, run_script, tmp_path):
    run = ("run_profession_neuron_experiments.py --total_effects_only -template_indices 1 "
           f"--professions nurse -model {toy_checkpoint('gpt2')}")
    for dtype, warned in (("bfloat16", 1), ("float16", 1), ("float32", 0)):
        code, _, errors = run_script(run, "--dtype", dtype, "-out_dir", tmp_path / dtype)
        assert code == 0 and errors.count("warning: --dtype") == warned


CLIENT = textwrap.dedent("""
    from attention_utils import perform_intervention
    from experiment import Intervention, Model
    from utils import convert_results_to_pd

    model = Model(device="cpu", gpt2_version=NAME)
    words, interventions = ["nurse", "violinist", "teacher", "school principal"], {}
    for word in words:
        try:
            interventions[word] = Intervention(model.tokenizer, "The {} said that", [word, "man", "woman"],
                                               ["he", "she"], device="cpu")
        except ValueError:
            pass
    results = model.neuron_intervention_experiment(interventions, "man_direct")
    neurons = convert_results_to_pd(interventions, results)
    pronouns = Intervention(model.tokenizer, "The captain told the nurse that {}", ["she", "he"],
                            ["was here", "said that"], device="cpu")
    heads, *_ = model.attention_intervention_experiment(pronouns, "indirect")
    entry = perform_intervention(pronouns, model)
""")


def test_a_script_written_as_in_2020(toy_checkpoint):
    """Words are dropped by the ValueError of an Intervention whose prompts differ in length."""
    made = {"NAME": str(toy_checkpoint("gpt2"))}
    exec(CLIENT, made)
    assert list(made["interventions"]) == ["nurse", "teacher"]
    assert list(made["neurons"].columns) == NEURON_COLUMNS and len(made["neurons"]) == 2 * 4 * 16
    assert made["heads"].shape == np.shape(made["entry"]["indirect_effect_head"]) == (3, 4)


def test_prompts_of_other_lengths_are_taken_when_asked_for(model):
    for settings in ({"multi_token": "last"}, {"any_length": True}):
        one = Intervention(model.tokenizer, "The {} ran", ["violinist", "man"], ["he", "she"], **settings)
        assert len(one.prompts[0].tokens) > len(one.prompts[1].tokens)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "distilbert", "roberta", "llama"])
def test_models_say_what_they_are_by_the_names_of_2020(toy_checkpoint, toy_tokenizer, tmp_path, kind):
    model = masked_toy(toy_checkpoint, toy_tokenizer, tmp_path, kind)
    names = ("gpt2", "txl", "xlnet", "bert", "distilbert", "roberta")
    assert [name for name in names if getattr(model, f"is_{name}")] == [kind] * (kind in names)
    if model.masking:  # each of its sequences has its own length
        Intervention(model.tokenizer, "The {} said that", ["violinist", "man"], ["he", "she"])


def masked_toy(toy_checkpoint, toy_tokenizer, folder, kind):
    """A Model of any architecture; its tokenizer names a mask where it needs one."""
    target = folder / f"toy-{kind}"
    shutil.copytree(toy_checkpoint(kind), target)
    if kind in MASKED:
        name = toy_tokenizer.convert_ids_to_tokens(11)
        type(toy_tokenizer).from_pretrained(target, mask_token=name).save_pretrained(target)
    return Model(gpt2_version=str(target))

"""The model's parts in use: resumed blocks, candidates packed behind a prompt, changed attention outputs."""

import pytest
import torch

from mediation.model import attention
from mediation.model.forward import Resumption, run_base, run_bases
from mediation.model.token_trees import pack
from tests.helpers import profession_stimulus


def test_changed_outputs_are_gone_after_an_error(toy_model):
    model, tokens = toy_model(), torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        before = model.model(tokens).logits
        with (pytest.raises(ZeroDivisionError),
              attention.changed_outputs({model.parts.attentions[0]: lambda output, *_: 2 * output})):
            assert not torch.equal(model.model(tokens).logits, before)
            raise ZeroDivisionError
        assert torch.equal(model.model(tokens).logits, before)


def test_packed_candidates_do_not_see_each_other(toy_model, stimulus, architecture):
    model = toy_model(architecture, torch.float64)
    packed = pack([[7, 8, 9]], [[1, 2, 3], [4], [5, 6]], "cpu")
    assert packed.tokens.tolist() == [7, 8, 9, 1, 2, 5] and packed.position_ids.tolist() == [0, 1, 2, 3, 4, 3]
    assert packed.predictions == (([2, 3, 4], [1, 2, 3]), ([2], [4]), ([2, 5], [5, 6]))
    intervention = profession_stimulus(model)
    every = model.continuation_probabilities(intervention)
    for context, probabilities in zip(intervention.base_strings_tok, every):
        alone = model.get_probabilities_for_examples_multitoken(context, intervention.candidates_tok)
        assert probabilities == pytest.approx(alone, rel=1e-6)


def test_stimuli_that_are_run_together_have_the_probabilities_of_each_alone(toy_model, architecture,
                                                                            stimulus):
    model = toy_model(architecture, torch.float64)
    one, other = profession_stimulus(model), stimulus(model)
    many = [one, other, one, *[other] * 12]  # more than are run at once
    together = list(model.continuations_together(many))
    assert len(together) == len(many)
    exact = 1e-12 if architecture == "gpt2" else 1e-5  # norms or softmax of the others are in float32
    for stimulus, probabilities in zip(many, together):
        for ours, alone in zip(probabilities, model.continuation_probabilities(stimulus)):
            assert ours == pytest.approx(alone, rel=exact)


def test_resumed_blocks_equal_the_base_run(toy_model, architecture):
    model = toy_model(architecture, torch.float64)
    tokens = profession_stimulus(model).base_strings_tok[0]
    with torch.no_grad():
        base = run_base(model.model, model.parts, tokens)
        for position in range(len(tokens)):
            resumption = Resumption(model.parts, base, position)
            for block in range(model.num_layers):
                torch.testing.assert_close(resumption.block(block, resumption.rows(block, 2))[1],
                                           base.residuals[block + 1][position:], rtol=1e-12, atol=1e-12)


def test_prompts_of_one_shape_run_together_leave_what_each_leaves_alone(toy_model, architecture):
    model = toy_model(architecture, torch.float64)
    trees = [pack([tokens], [[1, 2, 3], [4], [5, 6]], "cpu") for tokens in ([7, 8, 9, 10], [7, 11, 9, 12])]
    assert trees[0].has_shape_of(trees[1]) and not trees[0].has_shape_of(pack([[7, 8]], [[1]], "cpu"))
    with torch.no_grad():
        together = run_bases(model.model, model.parts, torch.stack([tree.tokens for tree in trees]), trees[0])
        for base, tree in zip(together, trees):
            alone = run_base(model.model, model.parts, tree.tokens, tree)
            for one, other in zip((*base.residuals, *base.mlp_outputs, base.embedding),
                                  (*alone.residuals, *alone.mlp_outputs, alone.embedding)):
                torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
            for block in range(model.num_layers):  # by its own arguments, keys and values
                resumption = Resumption(model.parts, base, 2)
                torch.testing.assert_close(resumption.block(block, resumption.rows(block, 3))[1],
                                           alone.residuals[block + 1][2:], rtol=1e-12, atol=1e-12)

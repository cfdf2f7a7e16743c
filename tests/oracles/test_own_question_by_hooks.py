"""mediate.py on the real model: effects recomputed by hooks on the library's own model."""


import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from mediation.mediators.head_sweeps import heads_in_sets
from mediation.model.language_model import LanguageModel
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies.comparisons import build_comparisons
from tests.helpers import read_own_table, write_stimuli


def by_hooks(model, prompt, candidates, modules=(), change=None):
    """Log odds (second over first) behind a prompt, after full passes.

    `change(output)` is what a hook gives in place of the output of each of the modules.
    """
    odds = []
    for ids in candidates:
        handles = [module.register_forward_hook(lambda _m, _i, output: change(output)) for module in modules]
        try:
            tokens = torch.tensor([*prompt, *ids[:-1]])
            logits = model(tokens[None]).logits[0, len(prompt) - 1:].double().log_softmax(-1)
        finally:
            for handle in handles:
                handle.remove()
        odds.append(float(logits[range(len(ids)), ids].mean()))
    return odds[1] - odds[0]


def in_tokens(tokenizer, stimulus):
    """Both prompts, the index of each word's last token, and the candidates, in token ids."""
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    before = stimulus.base.split("{}")[0]
    filled = [ids(stimulus.base.replace("{}", word)) for word in stimulus.substitutes]
    # these words end where a token ends
    last = [len(ids(before + word)) - 1 for word in stimulus.substitutes]
    return filled, last, [ids(" " + candidate) for candidate in stimulus.candidates]


def layer_by_hooks(model, stimulus, layer, kind):
    """Log odds with a layer's output at the word that of the other prompt; 0 the word embedding."""
    prompts, places, candidates = stimulus
    module = [model.model.embed_tokens, *(block.mlp for block in model.model.layers)][layer]
    outputs = []
    for prompt in prompts:
        handle = module.register_forward_hook(lambda _m, _i, output: outputs.append(output[0].clone()))
        model(torch.tensor([prompt]))
        handle.remove()
    run, source = (0, 1) if kind == "indirect" else (1, 0)

    def change(output):
        output = output.clone()
        output[0, places[run]] = outputs[source][places[source]]
        return output

    return by_hooks(model, prompts[run], candidates, [module], change)


def head_by_hooks(model, stimulus, layer, head):
    """Log odds with a head's attention weights those of the alternative: the output projection is given the
    difference."""
    (base, alternative), _, candidates = stimulus
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    weights = [model(torch.tensor([prompt]), output_attentions=True).attentions[layer][0, head]
               for prompt in (base, alternative)]
    attention, values = model.model.layers[layer].self_attn, []

    def project(_module, inputs):
        changed = inputs[0].clone()
        group = head // (config.num_attention_heads // config.num_key_value_heads)
        of_head, of_group = (slice(number * size, (number + 1) * size) for number in (head, group))
        changed[0, : len(base), of_head] += (weights[1] - weights[0]) @ values[-1][: len(base), of_group]
        return (changed,)

    handles = [attention.v_proj.register_forward_hook(lambda _m, _i, output: values.append(output[0])),
               attention.o_proj.register_forward_pre_hook(project)]
    try:
        return by_hooks(model, base, candidates)
    finally:
        for handle in handles:
            handle.remove()


MIXED = [
    ("The {} said that", ["electrician", "woman"], ["he", "she"]),
    ("The {} yelled because", ["registered nurse", "man"], ["she", "he"]),
    ("The {}", ["author", "authors"], ["was born", "were born"]),
    ("The capital of {} is", ["France", "Italy"], ["Paris", "Rome"]),
    ("My {} told me", ["mother-in-law", "father"], ["that she", "that he"]),
]


@pytest.mark.usefixtures("unreported")
def test_mixed_lines_on_the_real_model(smollm2, tmp_path, run_script):
    """A user's file of mixed lengths and words: five effects by hand, with nothing of the project's own."""
    stimuli = [Stimulus(f"q{number}", base, tuple(words), tuple(candidates), "mine")
               for number, (base, words, candidates) in enumerate(MIXED)]
    path, folder = write_stimuli(tmp_path, stimuli), tmp_path / "out"
    command = f"mediate.py {path} -model smollm2-135m -out_dir {folder}"
    code, _, error = run_script(f"{command} --multi_token last --mediators mlps")
    assert code == 0, error
    totals, mlps = (read_own_table(folder, f"{name}_smollm2-135m.csv") for name in ("total_effects", "mlps"))
    assert len(totals) == len(MIXED) and len(mlps) == len(MIXED) * 31

    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32,
                                                 attn_implementation="eager").eval()
    known = [in_tokens(tokenizer, stimulus) for stimulus in stimuli]
    with torch.no_grad():
        (base, alternative), _, candidates = known[2]  # candidates of two tokens
        y = [by_hooks(model, prompt, candidates) for prompt in (base, alternative)]
        assert totals.set_index("id").loc["q2",
                                          "total_effect"] == pytest.approx(np.expm1(y[1] - y[0]), rel=1e-4)

        # words of several tokens
        for number, layer, kind in ((1, 0, "indirect"), (0, 5, "direct"), (4, 11, "indirect")):
            (base, _), _, candidates = known[number]
            odds, y = layer_by_hooks(model, known[number], layer, kind), by_hooks(model, base, candidates)
            row = mlps[(mlps["id"] == f"q{number}") & (mlps["layer"] == layer)].iloc[0]
            assert row[f"{kind}_effect"] == pytest.approx(np.expm1(odds - y), rel=1e-3, abs=1e-4)

        layer, head = 14, 3
        (base, _), _, candidates = known[3]
        odds, y = head_by_hooks(model, known[3], layer, head), by_hooks(model, base, candidates)
        ours = LanguageModel(str(smollm2))
        (comparison,) = build_comparisons(ours, "mine", [stimuli[3]], "last")
        chosen = torch.zeros(1, ours.num_layers, ours.num_heads, dtype=torch.bool)
        chosen[0, layer, head] = True
        (swept,) = heads_in_sets(ours, comparison.intervention, "indirect", chosen)
        assert float(swept[1] - swept[0] - y) == pytest.approx(odds - y, rel=1e-3, abs=1e-5)

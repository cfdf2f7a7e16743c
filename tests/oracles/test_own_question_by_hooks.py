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


def by_hooks(model, base, alternative, candidates, run_base_prompt, modules, change):
    """Log odds (second over first) after full passes.

    `change(layer, output)` is what a hook does to the output of `modules[layer]`.
    """
    odds = []
    prompt = base if run_base_prompt else alternative
    for ids in candidates:
        handles = [module.register_forward_hook(lambda _m, _i, output, layer=layer: change(layer, output))
                   for layer, module in modules.items()]
        try:
            tokens = torch.tensor([*prompt, *ids[:-1]])
            logits = model(tokens[None]).logits[0, len(prompt) - 1:].double().log_softmax(-1)
        finally:
            for handle in handles:
                handle.remove()
        odds.append(float(logits[range(len(ids)), ids].mean()))
    return odds[1] - odds[0]


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

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def prompts_of(number):
        stimulus = stimuli[number]
        before = stimulus.base.split("{}")[0]
        filled = [ids(stimulus.base.replace("{}", word)) for word in stimulus.substitutes]
        # these words end where a token ends
        last = [len(ids(before + word)) - 1 for word in stimulus.substitutes]
        return filled, last, [ids(" " + candidate) for candidate in stimulus.candidates]

    with torch.no_grad():
        (base, alternative), _, candidates = prompts_of(2)  # candidates of two tokens
        y = [by_hooks(model, prompt, None, candidates, True, {}, None) for prompt in (base, alternative)]
        assert totals.set_index("id").loc["q2",
                                          "total_effect"] == pytest.approx(np.expm1(y[1] - y[0]), rel=1e-4)

        # words of several tokens
        for number, layer, kind in ((1, 0, "indirect"), (0, 5, "direct"), (4, 11, "indirect")):
            (base, alternative), places, candidates = prompts_of(number)
            modules = [model.model.embed_tokens, *(block.mlp for block in model.model.layers)]
            outputs = []
            for prompt in (base, alternative):
                handle = modules[layer].register_forward_hook(
                    lambda _m, _i, output, outputs=outputs: outputs.append(output[0].clone()))
                model(torch.tensor([prompt]))
                handle.remove()
            run, source = (0, 1) if kind == "indirect" else (1, 0)

            def change(_layer, output, run=run, source=source, places=places, outputs=outputs):
                output = output.clone()
                output[0, places[run]] = outputs[source][places[source]]
                return output

            odds = by_hooks(model, base, alternative, candidates, run == 0, {layer: modules[layer]}, change)
            y = by_hooks(model, base, None, candidates, True, {}, None)
            row = mlps[(mlps["id"] == f"q{number}") & (mlps["layer"] == layer)].iloc[0]
            assert row[f"{kind}_effect"] == pytest.approx(np.expm1(odds - y), rel=1e-3, abs=1e-4)

        # attention weights of one head: the output projection is given the difference
        (base, alternative), _, candidates = prompts_of(3)
        layer, head, size = 14, 3, model.config.hidden_size // model.config.num_attention_heads
        weights = [model(torch.tensor([prompt]), output_attentions=True).attentions[layer][0, head]
                   for prompt in (base, alternative)]
        attention, values = model.model.layers[layer].self_attn, []
        handles = [attention.v_proj.register_forward_hook(lambda _m, _i, output: values.append(output[0]))]

        def project(_module, inputs):
            changed = inputs[0].clone()
            group = head // (model.config.num_attention_heads // model.config.num_key_value_heads)
            of_head, of_group = (slice(number * size, (number + 1) * size) for number in (head, group))
            difference = (weights[1] - weights[0]) @ values[-1][: len(base), of_group]
            changed[0, : len(base), of_head] += difference
            return (changed,)

        handles.append(attention.o_proj.register_forward_pre_hook(project))
        odds = by_hooks(model, base, None, candidates, True, {}, None)
        for handle in handles:
            handle.remove()
        y = by_hooks(model, base, None, candidates, True, {}, None)
        ours = LanguageModel(str(smollm2))
        (comparison,) = build_comparisons(ours, "mine", [stimuli[3]], "last")
        chosen = torch.zeros(1, ours.num_layers, ours.num_heads, dtype=torch.bool)
        chosen[0, layer, head] = True
        (swept,) = heads_in_sets(ours, comparison.intervention, "indirect", chosen)
        assert float(swept[1] - swept[0] - y) == pytest.approx(odds - y, rel=1e-3, abs=1e-5)

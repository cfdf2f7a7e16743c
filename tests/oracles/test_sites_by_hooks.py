"""Every unit of every site against full passes of the library's model under hooks written here.

They share no code with the sweeps: where a site lies, and which of its numbers are a unit's, is written down
again, by the names of the library's modules.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from mediation.mediators.catalogue import CATALOGUE, Request
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies.comparisons import build_comparisons
from tests.helpers import TOLERANCE, swept_by

SITES = [name for name, mediator in CATALOGUE.items() if mediator.sites]
PROMPTS = Stimulus("one", "The {} went home because", ("nurse", "man"), ("he was", "she"))


class ByHooks:
    """One intervention, one full pass of the library's own model, one hook."""

    def __init__(self, model):
        self.model, config = model, model.config
        self.heads = config.num_attention_heads
        self.groups = getattr(config, "num_key_value_heads", None) or self.heads
        self.size = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.width = config.hidden_size
        self.modules = dict(model.named_modules())

    def named(self, *ends):
        """Modules whose names end so, in the order of the blocks."""
        return [module for name, module in self.modules.items() if name.endswith(ends)]

    def site(self, name, layer):
        """(module, whether its input is meant, {unit: numbers}) of a mediator in a layer of its table."""
        blocks = self.named(*(f"{stem}.{number}" for stem in ("layers", ".h") for number in range(9)))
        down = self.named("down_proj", "mlp.c_proj", "dense_4h_to_h", "fc2")
        outer = self.named("o_proj", "attn.c_proj", "attention.dense", "out_proj")
        everything = {0: slice(None)}
        by_head = {head: slice(head * self.size, (head + 1) * self.size) for head in range(self.heads)}
        if name == "residuals":
            behind = layer == len(blocks)
            return blocks[-1 if behind else layer], not behind, everything
        if name in ("mlps", "neurons"):
            modules = [self.model.get_input_embeddings(), *self.named(".mlp", ".fc2")]
            units = everything if name == "mlps" else {number: number for number in range(self.width)}
            return modules[layer], False, units
        if name == "inner_neurons":
            module = down[layer - 1]
            wide = module.nx if hasattr(module, "nx") else module.in_features
            return module, True, {number: number for number in range(wide)}
        if name == "attentions":
            return outer[layer], False, everything
        if name == "head_outputs":
            return outer[layer], True, by_head
        part = ("queries", "keys", "values").index(name)
        of_part = [self.heads, self.groups, self.groups]
        if alone := self.named(f".{'qkv'[part]}_proj"):
            return alone[layer], False, {unit: by_head[unit] for unit in range(of_part[part])}
        if fused := self.named("query_key_value"):  # head by head: query, key, value
            return fused[layer], False, {head: slice((3 * head + part) * self.size,
                                                     (3 * head + part + 1) * self.size)
                                         for head in range(self.heads)}
        before = sum(of_part[:part]) * self.size
        return self.named("c_attn", "qkv_proj")[layer], False, {
            unit: slice(before + unit * self.size, before + (unit + 1) * self.size)
            for unit in range(of_part[part])}

    @contextmanager
    def changed(self, module, of_input, function):
        def rows(tensor):
            copy = tensor.clone()
            function(copy.view(-1, copy.shape[-1]))  # one sequence: a row per token
            return copy

        def before(_module, inputs, named):
            if inputs:
                return (rows(inputs[0]), *inputs[1:]), named
            return inputs, named | {"hidden_states": rows(named["hidden_states"])}

        handle = (module.register_forward_pre_hook(before, with_kwargs=True) if of_input else
                  module.register_forward_hook(lambda _module, _inputs, output: rows(output)))
        try:
            yield
        finally:
            handle.remove()

    def values(self, tokens, module, of_input):
        """Values of a site in a run, [T, width]."""
        seen = []
        with self.changed(module, of_input, lambda rows: seen.append(rows.clone())), torch.no_grad():
            self.model(torch.tensor([tokens]), use_cache=False)
        return seen[0]

    def log_odds(self, tokens, candidates):
        """Second candidate over the first, mean over their tokens."""
        means = []
        for ids in candidates:
            with torch.no_grad():
                logits = self.model(torch.tensor([[*tokens, *ids[:-1]]]), use_cache=False).logits[0]
            chosen = logits[len(tokens) - 1:].double().log_softmax(-1)[range(len(ids)), ids]
            means.append(float(chosen.mean()))
        return means[1] - means[0]

    def effect(self, name, layer, unit, positions, run_on, source, candidates):
        """Log odds under one intervention."""
        module, of_input, units = self.site(name, layer)
        put_in = self.values(source, module, of_input)

        def replace(rows):
            rows[positions, units[unit]] = put_in[positions, units[unit]]

        with self.changed(module, of_input, replace):
            return self.log_odds(run_on, candidates)


def rows_of(model, name, positions):
    """(layer, unit, positions) of every row of a table, in its order."""
    mediator, length = CATALOGUE[name], len(build_comparisons(model, "x", [PROMPTS], "last")[0]
                                            .intervention.prompts[0].tokens)
    units = mediator.units(model)
    second = next((column for column in units if column != "layer"), None)
    unit = units[second] if second else np.zeros_like(units["layer"])
    places = {"each": [[number] for number in range(length)], "all": [list(range(length))],
              "last": [[length - 1]], "slot": [[1]]}[positions]
    return [(layer, number, place) for layer, number in zip(units["layer"], unit) for place in places]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", SITES)
def test_every_unit_at_every_position_equals_a_full_pass_under_a_hook(toy_model, architecture, in_double,
                                                                      dtype, name):
    model = toy_model(architecture, dtype)
    (comparison,) = build_comparisons(model, "x", [PROMPTS], "last")
    stimulus = comparison.intervention
    null, alternative = (list(prompt.tokens) for prompt in stimulus.prompts)
    assert stimulus.prompts[0].slot == (1, 2) and len(null) == len(alternative)
    ours = ByHooks(model.model)
    random = np.random.default_rng(0)
    for positions in CATALOGUE[name].positions:
        swept = swept_by(model, comparison, Request.of(name, positions))
        rows = rows_of(model, name, positions)
        moved = 0.0
        for kind, run_on, source in (("indirect", null, alternative), ("direct", alternative, null)):
            log_odds = swept[kind][:, 1] - swept[kind][:, 0]
            base = ours.log_odds(run_on, stimulus.candidates_tok)
            # float64 every row; many neurons, and float32, a sample of them
            few = len(rows) if dtype == torch.float64 and len(rows) < 150 else 25
            for row in random.choice(len(rows), min(few, len(rows)), replace=False):
                expected = ours.effect(name, *rows[row], run_on, source, stimulus.candidates_tok)
                assert log_odds[row] == pytest.approx(expected, abs=TOLERANCE[dtype]), (positions, rows[row])
            moved = max(moved, np.abs(log_odds - base).max())
            if positions == "each":  # what stands before the first difference changes nothing
                first = [row for row, (_, _, place) in enumerate(rows) if place == [0]]
                assert np.ptp(log_odds[first]) == 0
        assert moved > 1e-4, "the interventions did something"

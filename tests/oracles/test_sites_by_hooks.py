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
    """Full passes of the library's own model, a row per intervention, under one hook."""

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
    def changed(self, name, layers, count, function):
        """`function` is given a layer, its site in `count` sequences, [count, T, width], to change it, and
        its units."""
        def hooks(layer):
            module, of_input, units = self.site(name, layer)

            def rows(tensor):
                copy = tensor.clone()
                function(layer, copy.view(count, -1, copy.shape[-1]), units)
                return copy

            def before(_module, inputs, named):
                if inputs:
                    return (rows(inputs[0]), *inputs[1:]), named
                return inputs, named | {"hidden_states": rows(named["hidden_states"])}

            return (module.register_forward_pre_hook(before, with_kwargs=True) if of_input else
                    module.register_forward_hook(lambda _module, _inputs, output: rows(output)))

        handles = [hooks(layer) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def log_odds(self, tokens, candidates, count=1):
        """Second candidate over the first, mean over their tokens, [count]."""
        means = []
        for ids in candidates:
            sequence = torch.tensor([*tokens, *ids[:-1]]).expand(count, -1)
            logits = self.model(sequence, use_cache=False).logits[:, len(tokens) - 1:]
            means.append(logits.double().log_softmax(-1)[:, range(len(ids)), ids].mean(dim=1))
        return (means[1] - means[0]).numpy()

    @torch.no_grad()
    def effects(self, name, rows, run_on, source, candidates):
        """Log odds under each of the interventions (layer, unit, positions), a row of the batch each."""
        of_layers, seen = {}, {}
        for row, (layer, unit, positions) in enumerate(rows):
            of_layers.setdefault(layer, []).append((row, unit, positions))

        def keep(layer, site, _units):
            seen[layer] = site[0].clone()

        def replace(layer, site, units):
            for row, unit, positions in of_layers[layer]:
                site[row, positions, units[unit]] = seen[layer][positions, units[unit]]

        with self.changed(name, of_layers, 1, keep):
            self.model(torch.tensor([source]), use_cache=False)
        with self.changed(name, of_layers, len(rows), replace):
            return self.log_odds(run_on, candidates, len(rows))


def rows_of(model, name, positions, length):
    """[(layer, unit, positions)] of a table's rows, in its order."""
    units = CATALOGUE[name].units(model)
    second = next((column for column in units if column != "layer"), None)
    unit = units[second] if second else np.zeros_like(units["layer"])
    places = {"each": [[number] for number in range(length)], "all": [list(range(length))],
              "last": [[length - 1]], "slot": [[1]]}[positions]
    return [(layer, number, place) for layer, number in zip(units["layer"].tolist(), unit.tolist())
            for place in places]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", SITES)
def test_every_unit_at_every_position_equals_a_full_pass_under_a_hook(toy_model, architecture, in_double,
                                                                      dtype, name):
    model = toy_model(architecture, dtype)
    (comparison,) = build_comparisons(model, "x", [PROMPTS], "last")
    stimulus, hooks = comparison.intervention, ByHooks(model.model)
    null, alternative = (list(prompt.tokens) for prompt in stimulus.prompts)
    assert stimulus.prompts[0].slot == (1, 2) and len(null) == len(alternative)
    # in float32 only where each mediator is changed by default: what differs is the products' rounding
    for positions in CATALOGUE[name].positions[:None if dtype == torch.float64 else 1]:
        swept = swept_by(model, comparison, Request.of(name, positions))
        rows = rows_of(model, name, positions, len(null))
        for kind, run_on, source in (("indirect", null, alternative), ("direct", alternative, null)):
            log_odds = swept[kind][:, 1] - swept[kind][:, 0]
            expected = hooks.effects(name, rows, run_on, source, stimulus.candidates_tok)
            np.testing.assert_allclose(log_odds, expected, rtol=0, atol=TOLERANCE[dtype],
                                       err_msg=f"{positions}, {kind}")
            (base,) = hooks.log_odds(run_on, stimulus.candidates_tok)
            if positions == "each":  # what stands before the first difference changes exactly nothing
                before = [place == [0] for _, _, place in rows]
                assert np.ptp(log_odds[before]) == 0
            if positions != "last" or name not in ("mlps", "neurons", "inner_neurons"):
                assert np.abs(log_odds - base).max() > 1e-4, "the interventions did something"

"""Every causal model type of the library: what is found in it, what it does, and whether every unit is right.

    python -m tests.architectures                 # all, into docs/architecture_table.md; some minutes
    python -m tests.architectures llama mixtral   # these, on the screen

Of each type a tiny random checkpoint is made, in float64 (norms and softmax, too). Every unit of every site,
every head and every neuron is intervened upon by the sweep, some of them by the project's full passes, and
all of these by full passes of the library's model under hooks written here (`ByHooks`). The table tells the
largest difference of a log-probability.
"""

import argparse
import inspect
import itertools
import sys
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

from mediation.errors import InputError
from mediation.mediators import sites as places
from mediation.mediators.heads import HeadEdits, heads_layers_model
from mediation.mediators.neurons import single_neuron_edits
from mediation.mediators.site_sweeps import run_with_sites, sites_by_full_passes, sweep_sites
from mediation.mediators.sites import SiteEdits
from mediation.mediators.sweeps import by_full_passes, heads_by_full_passes, sweep, sweep_heads
from mediation.model.architectures import NOT_CAUSAL, parts_of
from mediation.model.attention import EAGER, attention_weights
from mediation.model.forward import run_base
from mediation.model.probes import first_line, probed
from mediation.model.token_trees import Tree, pack
from tests.helpers import InDouble
from tests.tiny_models import KINDS, tiny_model

TABLE = Path(__file__).parent.parent / "docs" / "architecture_table.md"
SITES = {
    "residuals": places.residuals, "attentions": places.attentions, "mlps": places.mlps,
    "head_outputs": places.head_outputs, "queries": lambda parts: places.projections(parts, 0),
    "keys": lambda parts: places.projections(parts, 1), "values": lambda parts: places.projections(parts, 2),
    "inner_neurons": places.inner_neurons, "neurons": places.neurons,
}
CANDIDATES = [[7, 8], [9]]
LENGTH, PLACE = 7, 3  # of the prompt; where its word stands
AT_ONCE = 400  # full passes
FEW = 30  # of them, where not all are compared
TOLERANCE = 1e-9


@dataclass
class Row:
    """One type of model: `served`: "from a prefix", "full passes", "refused" or "misplaced"; `why` not from a
    prefix; `mediators` that were found; `largest_difference` of a log-probability to passes under own hooks;
    `smallest_effect`: the least that a mediator's strongest unit does, to show that something was done."""

    model_type: str
    served: str = "refused"
    mediators: str = ""
    largest_difference: float | str = ""
    smallest_effect: float | str = ""
    why: str = ""


def row_of(kind: str) -> Row:
    """Make a model of a type and try everything on it."""
    if kind in NOT_CAUSAL:
        return Row(kind, why="sees later tokens, or iterates over positions in ways of its own")
    try:
        model = tiny_model(kind)
    except Exception as error:  # the library's own: sizes that do not fit each other, missing packages
        return Row(kind, "not made", why=f"no tiny model could be made: {first_line(error)}")
    try:
        with torch.no_grad(), InDouble():
            architecture = probed(model)
            if wrong := misplaced(model, architecture):
                return Row(kind, "misplaced", why=f"{', '.join(wrong)} lie elsewhere")
            differences, effects = compared(model, architecture)
    except InputError as error:
        return Row(kind, why=str(error).split(": ", 1)[1].split("; docs/")[0])
    except Exception as error:
        return Row(kind, why=f"a run fails: {first_line(error)}")
    return Row(kind, "from a prefix" if architecture.resumes else "full passes", " ".join(effects),
               float(f"{max(differences.values()):.1e}"), float(f"{min(effects.values()):.1e}"),
               architecture.obstacle)


def compared(model, architecture) -> tuple[dict[str, float], dict[str, float]]:
    """Of each mediator, (the largest difference to full passes under own hooks, the strongest unit's effect).

    The word of the one prompt is exchanged for another's, in a tree with candidates of one and two tokens.
    """
    parts, hooks = parts_of(model, architecture), ByHooks(model, architecture)
    generator = torch.Generator().manual_seed(2)
    prompt, other = torch.randint(10, 380, (2, LENGTH), generator=generator)
    other = torch.where(torch.arange(LENGTH) == PLACE, other, prompt)
    differences, effects = {}, {}
    tree = Tree(prompt, None, None, ())
    if architecture.resumes:
        tree = pack([prompt.tolist()], CANDIDATES, "cpu")

    def compare(name, rows, reference, full_passes, sweep):
        """Full passes of the project on a few of the rows, and its sweep on all; what cannot be resumed has
        only these."""
        few = torch.linspace(0, rows - 1, min(rows, FEW)).long().unique()
        compared = torch.arange(rows) if architecture.resumes else few
        expected = in_parts(reference, compared)
        effects[name] = float((expected - expected.mean(dim=0)).abs().max())
        off = in_parts(full_passes, few) - expected[torch.isin(compared, few)]
        differences[name] = float(off.abs().max())
        if architecture.resumes:
            differences[f"{name} in trees"] = float((sweep() - expected).abs().max())

    for name, of in SITES.items():
        if sites := of(parts):
            edits = every_unit(model, parts, sites, other)
            compare(name, len(edits), hooks.of_sites(name, prompt, other),
                    lambda rows, edits=edits: sites_by_full_passes(model, prompt, edits[rows], CANDIDATES),
                    lambda sites=sites, edits=edits: sweep_sites(
                        parts, *run_with_sites(model, parts, tree, sites), tree, edits))
    if parts.attentions:
        chosen = heads_layers_model(len(parts.blocks), architecture.heads)
        edits = HeadEdits(chosen, attention_weights(model, parts, other), PLACE)
        compare("heads", len(edits), hooks.of_weights(chosen, prompt, other),
                lambda rows: heads_by_full_passes(model, parts, prompt, CANDIDATES, edits[rows]),
                lambda: sweep_heads(model, parts, prompt, CANDIDATES, edits))
    if parts.mlps:  # neurons at the word have a descent, and hooks, of their own
        values = run_base(model, parts, other).representations(PLACE)
        edits = single_neuron_edits(values, PLACE)
        compare("neurons at the word", len(edits), hooks.of_sites("neurons", prompt, other, (PLACE,)),
                lambda rows: by_full_passes(model, parts, prompt, edits[rows], CANDIDATES),
                lambda: sweep(parts, run_base(model, parts, tree.tokens, tree), tree.predictions, edits))
        del effects["neurons at the word"]
    return differences, effects


class ByHooks:
    """Full passes of the library's model, a row per intervention, under hooks that share no code with the
    project's.

    Names of modules are those that were found. Attention is changed in the modelling file's function, whose
    calls are counted: the first is the first layer's.
    """

    def __init__(self, model, architecture) -> None:
        self.model, self.found = model, architecture

    def places(self, name):
        """[(module, whether its input is meant, how many units or their columns)] of a mediator's layers."""
        found, module = self.found, self.model.get_submodule
        if name == "residuals":
            blocks = module(found.blocks)
            return [*((block, True, 1) for block in blocks), (blocks[-1], False, 1)]
        if name in ("mlps", "neurons"):
            outputs = self.model.get_input_embeddings(), *map(module, found.mlps)
            return [(output, False, 1 if name == "mlps" else found.width) for output in outputs]
        if name == "inner_neurons":
            return [(module(each), True, None) for each in found.mlp_outputs]
        if name == "attentions":
            return [(module(each), False, 1) for each in found.attention_ends if each]
        if name == "head_outputs":
            return [(module(each), True, found.heads) for each in found.attention_outputs if each]
        return [(module(each), False, list(map(list, columns)))
                for each, columns in getattr(found, name) if each]

    @contextmanager
    def hooked(self, places, count, function):
        """While open, function(index of a place, its numbers [count, T, W]) changes them in place."""
        def changed(index, tensor):
            copy = tensor.clone()
            function(index, copy.view(count, -1, copy.shape[-1]))
            return copy

        def hook(index, module, of_input):
            def before(_module, given, named):
                if given:
                    return (changed(index, given[0]), *given[1:]), named
                return given, named | {"hidden_states": changed(index, named["hidden_states"])}

            def behind(_module, _inputs, output):
                if isinstance(output, (tuple, list)):
                    return type(output)([changed(index, output[0]), *output[1:]])
                return changed(index, output)

            return (module.register_forward_pre_hook(before, with_kwargs=True) if of_input else
                    module.register_forward_hook(behind))

        handles = [hook(index, module, of_input) for index, (module, of_input, *_) in enumerate(places)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def attending(self, function):
        """While open, the library's attention gives what function(number of the call, queries, keys, values,
        output, weights) makes of its output."""
        files = {sys.modules[type(module).__module__] for module in self.model.modules()}
        own = {file: file.eager_attention_forward for file in files if hasattr(file, EAGER)}
        calls = itertools.count()

        def attention(eager):
            def changed(module, query, key, value, *inputs, **settings):
                output, weights = inspect.unwrap(eager)(module, query, key, value, *inputs, **settings)
                return function(next(calls), query, key, value, output, weights), weights
            return changed

        for file, eager in own.items():
            file.eager_attention_forward = attention(eager)
        try:
            yield
        finally:
            for file, eager in own.items():
                file.eager_attention_forward = eager

    def log_probabilities(self, prompt, count):
        """Of CANDIDATES behind `count` equal prompts, the first of two tokens.

        One pass has them all but where nothing is resumed: which keys sparse attention chooses may depend on
        the length of what it sees.
        """
        (first, second), (other,) = CANDIDATES

        def behind(tokens):
            return self.model(tokens.expand(count, -1), use_cache=False).logits.log_softmax(dim=-1)

        longer = behind(torch.cat([prompt, torch.tensor([first])]))
        at_last = longer[:, -2] if self.found.resumes else behind(prompt)[:, -1]
        return torch.stack([(longer[:, -2, first] + longer[:, -1, second]) / 2, at_last[:, other]], dim=1)

    def of_sites(self, name, prompt, other, places=(PLACE, LENGTH - 1, slice(LENGTH))):
        """A function of rows: each unit at each of the places, as `every_unit` has them, with the value that
        it has in the run of `other`."""
        at, seen = self.places(name), self.values(name, other)
        units = []
        for index, (_, _, of_place) in enumerate(at):
            if not isinstance(of_place, list):
                width = seen[index].shape[-1]
                of_place = torch.arange(width).reshape(of_place or width, -1).tolist()
            units += [(index, columns, place) for columns in of_place for place in places]

        def reference(rows):
            chosen = [units[row] for row in rows]

            def replace(index, numbers):
                for row, (layer, columns, place) in enumerate(chosen):
                    if layer == index:
                        numbers[row, place, columns] = seen[index][place, columns]

            with self.hooked(at, len(rows), replace):
                return self.log_probabilities(prompt, len(rows))
        return reference

    def values(self, name, prompt):
        """Of each layer of a mediator, [T, W] in a prompt's run."""
        seen = {}
        with self.hooked(self.places(name), 1,
                         lambda index, numbers: seen.__setitem__(index, numbers[0].clone())):
            self.model(prompt[None], use_cache=False)
        return seen

    def of_weights(self, chosen, prompt, other):
        """A function of rows: the chosen heads [rows, L, H] attend as in the run of `other`."""
        seen, attending = [], [block for block, name in enumerate(self.found.attentions) if name]

        def keep(_call, _query, _key, _value, output, weights):
            seen.append(weights[0])
            return output

        with self.attending(keep):
            self.model(other[None], use_cache=False)

        def reference(rows):
            def attend(call, _query, _key, value, output, weights):
                output = output.clone()
                of_group = output.shape[2] // value.shape[1]
                call %= len(seen)  # there may be two passes
                for row, head in chosen[rows, attending[call]].nonzero().tolist():
                    new = weights[row, head].clone()
                    new[:LENGTH, :LENGTH] = seen[call][head]
                    output[row, :, head] = new @ value[row, head // of_group]
                return output

            with self.attending(attend):
                return self.log_probabilities(prompt, len(rows))
        return reference


def misplaced(model, architecture) -> list[str]:
    """What does not lie where it was found, by what the modelling file's attention is given and gives."""
    hooks = ByHooks(model, architecture)
    prompt, other = torch.randint(10, 380, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    return sorted({name for part, name in enumerate(("queries", "keys", "values"))
                   if not lie_in_order(hooks, part, name, prompt, other)} |
                  {name for name in ("head_outputs", "attentions") if not carry_all(hooks, name, prompt)})


def given_to_attention(hooks, part, tokens, places=(), function=None):
    """Queries, keys or values [B, H, T, d] of every call."""
    calls = []

    def keep(_call, *inputs):
        calls.append(inputs[part])
        return inputs[3]

    with hooks.attending(keep), hooks.hooked(places, len(tokens), function):
        hooks.model(tokens, use_cache=False)
    return calls


def lie_in_order(hooks, part, name, prompt, other) -> bool:
    """Whether a layer's queries, keys or values, taken from another run, are what the function then has.

    Each head moves most with its own unit's (a norm over all heads moves it with others', too).
    """
    own, others = (given_to_attention(hooks, part, tokens[None]) for tokens in (prompt, other))
    for layer, place in enumerate(hooks.places(name)):
        units, values = place[2], hooks.values(name, other)[layer]

        def put_in(_index, numbers, units=units, values=values):
            for row, columns in enumerate([*units, list(itertools.chain(*units))]):
                numbers[row, :, columns] = values[:, columns]

        moved = given_to_attention(hooks, part, prompt.expand(len(units) + 1, -1), [place], put_in)[layer]
        unit_of_head = (moved[:-1] - own[layer]).abs().sum(dim=(2, 3)).argmax(dim=0)
        each, shared = torch.arange(len(units)), moved.shape[1] // len(units)
        # heads that share a key stand together, or take turns
        in_order = any(torch.equal(unit_of_head, order)
                       for order in (each.repeat_interleave(shared), each.repeat(shared)))
        if not in_order or not torch.allclose(moved[-1], others[layer][0], rtol=0, atol=TOLERANCE):
            return False
    return True


def carry_all(hooks, name, prompt) -> bool:
    """Whether head outputs or attentions carry all that the function gave: with their own numbers put back,
    its output does nothing.

    Without a head's output, that slice of the head outputs moves alone.
    """
    model, heads = hooks.model, hooks.found.heads
    expected = model(prompt[None], use_cache=False).logits
    own = hooks.values(name, prompt)
    for layer, place in enumerate(hooks.places(name)):
        seen = {}

        def without(call, _query, _key, _value, output, _weights, layer=layer):
            if call != layer:
                return output
            keep = 1 - torch.eye(heads)[:, None, :, None]  # row by row another head
            return output * keep.to(output)

        def put_back(_index, numbers, seen=seen, values=own[layer]):
            seen[0] = numbers.clone()
            numbers[:] = values

        with hooks.attending(without), hooks.hooked([place], heads, put_back):
            logits = model(prompt.expand(heads, -1), use_cache=False).logits
        moved = (seen[0] - own[layer]).abs().sum(dim=1)  # [heads, W]
        alone = moved.any()
        if name == "head_outputs":
            by_slice = moved.reshape(len(moved), len(moved), -1).sum(dim=2) > TOLERANCE
            alone = torch.equal(by_slice, torch.eye(len(moved), dtype=torch.bool))
        if not alone or not torch.allclose(logits, expected.expand_as(logits), rtol=0, atol=TOLERANCE):
            return False
    return True


def every_unit(model, parts, sites, other) -> SiteEdits:
    """Every unit of the sites at one token, at the last and at all tokens, with another run's values."""
    run = Tree(other, None, None, ())
    values = run_with_sites(model, parts, run, sites)[1]
    at = torch.zeros(3, len(other), dtype=torch.bool)
    at[0, min(PLACE, len(other) - 1)] = at[1, -1] = True
    at[2] = True
    counts = torch.tensor([len(site.columns) for site in sites])
    site = torch.arange(len(sites)).repeat_interleave(counts).repeat_interleave(3)
    unit = torch.cat([torch.arange(count) for count in counts]).repeat_interleave(3)
    return SiteEdits(sites, values, torch.arange(len(site)), site, unit, at.repeat(int(counts.sum()), 1),
                     len(site))


def in_parts(run, rows):
    """What it gives of these rows, some at once."""
    return torch.cat([run(part) for part in rows.split(AT_ONCE)])


def table(rows: list[Row], counts: dict[str, int]) -> str:
    """The page of all types."""
    every = [*SITES, "heads"]
    lines = []
    for row in rows:
        found = row.mediators.split()
        left_out = ", ".join(name for name in every if name not in found) if found else ""
        lines.append(f"| `{row.model_type}` | {row.served} | {left_out} | {row.largest_difference} | "
                     f"{row.why.replace('|', '/')} |\n")
    told = ", ".join(f"{count} {served}" for served, count in sorted(counts.items()))
    return (f"# Every causal model type of the library\n\n"
            f"Written by `python -m tests.architectures` with transformers {transformers.__version__} and "
            f"torch {torch.__version__}: {told}. Each is a tiny random checkpoint in\n"
            "float64, scales away from 1. *From a prefix*: interventions are resumed at their block and "
            "position, prompts share trees. *Full passes*: every intervention is a pass\n"
            "of its own. Left out: mediators whose places were not found. The difference is the largest in a "
            "log-probability to full passes of the library's model under\n"
            "hooks that the command writes anew: of the sweep over every unit of every mediator at the word, "
            f"the last and all tokens, and of the project's own full passes\n"
            f"over up to {FEW} of each. The latter is all there is to compare where nothing is resumed.\n\n"
            "| type | how it is run | mediators left out | largest difference | why not from a prefix |\n"
            "| --- | --- | --- | --- | --- |\n" + "".join(lines))


def main(kinds: list[str]) -> None:
    """The table, a line as soon as it is there; exit code 1 where a served type is off by more than 1e-9."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    rows = []
    for kind in kinds or KINDS:
        rows.append(row := row_of(kind))
        print(row, flush=True)
    counts = {served: sum(row.served == served for row in rows) for served in dict.fromkeys(
        row.served for row in rows)}
    print(counts)
    if not kinds:
        TABLE.write_text(table(rows, counts), encoding="utf-8")
        print(f"wrote {TABLE}")
    off = [row.model_type for row in rows if row.served == "misplaced" or (
        isinstance(row.largest_difference, float) and not row.largest_difference < TOLERANCE)]
    if off:
        print(f"off by more than 1e-9, or misplaced: {', '.join(off)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="TYPE", help="model types; all of them if none is named")
    main(parser.parse_args().kinds)

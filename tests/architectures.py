"""Every causal model type of the library: what is found in it, what it does, and whether every unit is right.

    python -m tests.architectures                 # all, into docs/architecture_table.md; half an hour
    python -m tests.architectures llama mixtral   # these, on the screen

Of each type a tiny random checkpoint is made, in float64 (norms and softmax, too). Every unit of every site,
every head and every neuron is intervened upon by the sweep and by full passes of the library's model under
plain hooks. The table tells the largest difference of a log-probability.
"""

import argparse
import sys
import warnings
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
from mediation.model.attention import attention_weights
from mediation.model.forward import Tree, pack, run_base
from mediation.model.probes import probed
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
FEW = 100
TOLERANCE = 1e-9


@dataclass
class Row:
    """One type of model: `served`: "from a prefix", "full passes" or "refused"; `why` not from a prefix;
    `mediators` that were found; `largest_difference` of a log-probability between sweep and full passes;
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
            differences, effects = compared(model, architecture)
    except InputError as error:
        return Row(kind, why=str(error).split(": ", 1)[1].split("; docs/")[0])
    except Exception as error:
        return Row(kind, why=f"a run fails: {first_line(error)}")
    return Row(kind, "from a prefix" if architecture.resumes else "full passes", " ".join(effects),
               float(f"{max(differences.values()):.1e}") if architecture.resumes else "",
               float(f"{min(effects.values()):.1e}"), architecture.obstacle)


def first_line(error: Exception) -> str:
    """Of an error's text."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:160]


def compared(model, architecture) -> tuple[dict[str, float], dict[str, float]]:
    """Of each mediator, (the largest difference between sweep and full passes, the strongest unit's effect).

    The word of the one prompt is exchanged for another's, in a tree with candidates of one and two tokens.
    """
    parts = parts_of(model, architecture)
    generator = torch.Generator().manual_seed(2)
    prompt, other = torch.randint(10, 380, (2, LENGTH), generator=generator)
    other = torch.where(torch.arange(LENGTH) == PLACE, other, prompt)
    differences, effects = {}, {}
    tree = Tree(prompt, None, None, ())
    if architecture.resumes:
        tree = pack([prompt.tolist()], CANDIDATES, "cpu")
    for name, of in SITES.items():
        if not (sites := of(parts)):
            continue
        edits = every_unit(model, parts, sites, other)
        if not architecture.resumes:  # nothing to compare with: a few show that something is done
            edits = edits[torch.linspace(0, len(edits) - 1, min(len(edits), FEW)).long()]
        reference = in_parts(lambda rows, edits=edits: sites_by_full_passes(model, prompt, edits[rows],
                                                                            CANDIDATES), len(edits))
        effects[name] = float((reference - reference.mean(dim=0)).abs().max())
        if architecture.resumes:
            swept = sweep_sites(parts, *run_with_sites(model, parts, tree, sites), tree, edits)
            differences[name] = float((swept - reference).abs().max())
    if parts.attentions:
        weights = attention_weights(model, parts, other)
        chosen = heads_layers_model(len(parts.blocks), architecture.heads)
        edits = HeadEdits(chosen, weights, PLACE)
        reference = heads_by_full_passes(model, parts, prompt, CANDIDATES, edits)
        effects["heads"] = float((reference - reference.mean(dim=0)).abs().max())
        if architecture.resumes:
            swept = sweep_heads(model, parts, prompt, CANDIDATES, edits)
            differences["heads"] = float((swept - reference).abs().max())
    if parts.mlps and architecture.resumes:  # in trees of prompts they have a descent of their own
        edits = single_neuron_edits(run_base(model, parts, other).representations(PLACE), PLACE)
        reference = in_parts(lambda rows: by_full_passes(model, parts, prompt, edits[rows], CANDIDATES),
                             len(edits))
        swept = sweep(parts, run_base(model, parts, tree.tokens, tree), tree.predictions, edits)
        differences["neurons in trees"] = float((swept - reference).abs().max())
    return differences, effects


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


def in_parts(run, count):
    """All rows, some at once."""
    return torch.cat([run(rows) for rows in torch.arange(count).split(AT_ONCE)])


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
            "log-probability between the sweep and full passes of the\n"
            "library's model under hooks, over every unit of every mediator.\n\n"
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
    off = [row.model_type for row in rows
           if isinstance(row.largest_difference, float) and not row.largest_difference < TOLERANCE]
    if off:
        print(f"off by more than 1e-9: {', '.join(off)}", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="TYPE", help="model types; all of them if none is named")
    main(parser.parse_args().kinds)

"""Effects of mediators on stimuli of one's own: comparisons, sweeps kept as they go, tables, means, report. What `mediate.py` reads like.

A *comparison* is a stimulus' null prompt against one of its alternatives. Log odds are those of the second candidate over the first, and effects
(odds under the intervention - odds of the null prompt) / odds of the null prompt, the definitions of Vig et al. 2020, section 3.

Shapes: n comparisons, U units, L layers, D neurons a layer, H heads.
"""

import time
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256

import numpy as np
import pandas as pd
import torch

from mediation.effects.odds import effect, log_odds
from mediation.effects.statistics import Moments, Screening, agreement, misses, screened_units
from mediation.errors import InputError
from mediation.files.storage import write_csv
from mediation.mediators.batches import FastRows
from mediation.mediators.neurons import INTERVENTION_TYPES
from mediation.results.attention_results import EFFECTS
from mediation.results.tables import table_writer
from mediation.stimuli.interventions import Intervention
from mediation.studies.attention import sweep_example
from mediation.studies.error_budget import CHECKED, NOTHING_CHECKED, Check, within_budget
from mediation.studies.professions import COMPARED, capped, check_all, check_finite, hash_of

TOKENS_TOGETHER = 1024  # of prompts that begin alike and are run as one tree: its attention weights have to fit into memory


@dataclass(frozen=True)
class Comparison:
    """A stimulus of a file and one of its alternatives."""

    stimulus: object
    alternative: str
    intervention: Intervention

    def columns(self):
        """What every table says of it."""
        return {"id": self.stimulus.id, "group": self.stimulus.group, "alternative": self.alternative}


def describe_stimuli(model, found, options):
    """What decides total effects, and all else as well."""
    settings = {"model": model.name, "weights_sha256": model.weights_sha256(), "dtype": options.dtype, "multi_token": options.multi_token,
                "stimuli_sha256": sha256(repr(found).encode()).hexdigest()}
    return settings | ({"masking_approach": model.masking.approach} if model.masking else {})


def describe_settings(common, mediators, options):
    """What decides the numbers of some mediators: the same settings give the same tables. Whole MLPs are always run."""
    settings = {**common, "precision": options.precision, "method": "exact" if mediators == ("mlps",) else options.method, "seed": options.seed}
    if "neurons" in mediators and options.method == "screen":
        settings |= {"screen_share": options.screen_share, "screen_sample": options.screen_sample, "screen_top": options.screen_top}
    return settings


def build_comparisons(model, path, stimuli, multi_token):
    """Every stimulus against each of its alternatives, in order.

    Raises:
        InputError: a stimulus that this model's tokens cannot express; file and line are named.
    """
    longest = longest_text(model)
    comparisons = []
    for stimulus in stimuli:
        null, *alternatives = stimulus.substitutes
        for alternative in alternatives:
            try:
                intervention = Intervention(model.tokenizer, stimulus.base, [null, alternative],
                                            stimulus.candidates, model.device, multi_token, any_length=True)
                length = max(len(prompt.tokens) for prompt in intervention.prompts) + max(map(len, intervention.candidates_tok))
                if length > longest:
                    raise InputError(f"{length} tokens, the model takes {longest}: shorten the text")
                if intervention.candidates_tok[0] == intervention.candidates_tok[1]:
                    raise InputError("field 'candidates': both are the same tokens to this model: choose others")
                if intervention.prompts[0].tokens == intervention.prompts[1].tokens:
                    raise InputError(f"field 'substitutes': {null!r} and {alternative!r} are the same tokens to this model: choose others")
            except InputError as error:
                raise InputError(f"{path}, line {stimulus.line}: {error}") from error
            comparisons.append(Comparison(stimulus, alternative, intervention))
    return comparisons


def longest_text(model):
    """Tokens of prompt and candidate together that the model can take."""
    config = model.model.config
    longest = getattr(config, "max_position_embeddings", None) or float("inf")
    if not model.masking:
        return longest
    before = config.pad_token_id + 1 if config.model_type == "roberta" else 0  # its positions begin behind the padding's
    return longest - before - (2 if model.masking.approach > 3 else 0)


def applicable(model, comparisons, mediator):
    """(comparisons for which a mediator's interventions are defined, {why not: ids of the others})."""
    kept, dropped = [], {}
    for comparison in comparisons:
        try:
            if mediator in ("neurons", "mlps"):
                model.check_for_neurons(comparison.intervention)
            else:
                comparison.intervention.check_for_attention()
            kept.append(comparison)
        except InputError as error:
            dropped.setdefault(reason_of(model, comparison.intervention, mediator, error), []).append(comparison.stimulus.id)
    return kept, dropped


def reason_of(model, intervention, mediator, error):
    """Why a comparison was left out, in words that several share."""
    if mediator in ("heads", "layers"):
        return "the two prompts are not of equal length in this model's tokens, so attention weights of one do not fit the other"
    if model.masking:
        return str(error)
    if intervention.multi_token is None:
        return "word or candidate of several tokens; --multi_token last takes it"
    return "slots of different numbers of tokens; --multi_token last takes them"


def families(comparisons):
    """Indices of comparisons that are run together, in lists of at most TOKENS_TOGETHER tokens (or of one)."""
    found, sizes = {}, {}
    for index, comparison in enumerate(comparisons):
        intervention = comparison.intervention
        tokens = max(len(prompt.tokens) for prompt in intervention.prompts) + sum(map(len, intervention.candidates_tok))
        number = sizes.get(intervention.beginning, 0) + tokens
        sizes[intervention.beginning] = number
        found.setdefault((intervention.beginning, number // TOKENS_TOGETHER), []).append(index)
    return list(found.values())


def units_of(model, mediator):
    """Number of interventions of one comparison and effect. Heads come with their layers and the whole model."""
    return {"neurons": (model.num_layers + 1) * model.num_neurons, "mlps": model.num_layers + 1}.get(
        mediator, model.num_layers * (model.num_heads + 1) + 1)


# neurons and whole MLPs


def sweep_family(model, comparisons, mediator, options, progress):
    """Arrays of the comparisons of one family: {effect} float64 [n, U, 2] log-probabilities, base [n, 2, 2], seconds, a Check's, FastRows' as `fast`.

    Methods that estimate add {effect}_exact bool [U]; screening {effect}_chosen, _drawn (units), _rest and _estimates [n, drawn].

    Raises:
        InputError: probabilities that are no numbers, or a sweep that full passes contradict.
    """
    started = time.perf_counter()
    interventions = [comparison.intervention for comparison in comparisons]
    layers, width = model.num_layers + 1, model.num_neurons
    sets = torch.arange(layers * width).reshape(layers, width) if mediator == "mlps" else None
    estimating = mediator == "neurons" and options.method != "exact"
    kept = {"base": model.log_probabilities_in_templates(interventions).numpy()}
    gradients = [model.neuron_gradients(interventions, prompt) for prompt in (0, 1)] if estimating else None
    one, all_checked = interventions[0], NOTHING_CHECKED

    def sweep(kind):
        if estimating:
            seed = [options.seed, hash_of(repr([comparison.columns() for comparison in comparisons])), EFFECTS.index(kind)]  # another one for each tree
            found = estimated_neurons(model, interventions, kind, gradients, kept["base"], options, seed)
        else:
            swept = model.neuron_intervention_in_templates(interventions, kind, bsize=options.batch_size, progress=progress, units=sets)
            found = {kind: swept.reshape(len(interventions), -1, 2).numpy()}
        check_finite(one, kind, found[kind], kept["base"])
        return found

    def check_one(kind, found, sample=CHECKED):
        ran = np.flatnonzero(found[f"{kind}_exact"]) if estimating and options.method == "screen" else None
        return check_all(model, interventions, kind, np.moveaxis(found[kind], 2, 1), options, ran, sets, sample)

    for kind in EFFECTS:
        if estimating and options.method == "gradient":
            found = sweep(kind)
            checked = check_one(kind, found, COMPARED)
        else:
            found, checked = within_budget(model, partial(sweep, kind), partial(check_one, kind), options, f"{one.base_strings[0]!r}, {kind}",
                                           "please report the model")
        kept |= found
        all_checked += checked
        if estimating:
            progress(found[kind].shape[0] * found[kind].shape[1])
    fast = {"fast": model.fast_rows.take().shared(len(comparisons))} if model.fast_rows else {}
    return {**kept, **all_checked.to_arrays(), **fast, "seconds": time.perf_counter() - started}


def estimated_neurons(model, interventions, kind, gradients, base, options, seed):
    """Every neuron to first order; with method screen the strongest of them, word embedding and first block exactly. Arrays as `sweep_family` has them."""
    run_on, source, _ = INTERVENTION_TYPES[kind]
    step = gradients[source][2].astype(float) - gradients[run_on][2]  # [n, P, L + 1, D]
    moved = base[:, run_on, :, None, None] + (gradients[run_on][1] * step[:, None]).sum(axis=2)  # [n, 2, L + 1, D]
    moved = capped(np.moveaxis(moved, 1, 0), interventions[0].candidates_tok)  # [2, n, L + 1, D]
    moved = np.moveaxis(moved.reshape(2, len(interventions), -1), 0, 2).copy()  # [n, U, 2]
    exact, found = np.zeros(moved.shape[1], bool), {}
    if options.method == "screen":
        estimates = moved[:, :, 1] - moved[:, :, 0] - (base[:, run_on, 1] - base[:, run_on, 0])[:, None]
        silent = np.zeros(len(exact), bool)  # the last layer, where it cannot reach the output: exactly no effect as it is
        silent[-model.num_neurons:] = all(one.places[run_on][-1] < len(one.prompts[run_on].tokens) - 1 for one in interventions)
        count = int(options.screen_share * len(exact))
        chosen, drawn, rest = screened_units(np.abs(estimates), silent, 2 * model.num_neurons, count, options.screen_sample, np.random.default_rng(seed))
        units = np.concatenate([chosen, drawn])
        moved[:, units] = model.neuron_intervention_in_templates(interventions, kind, bsize=options.batch_size, units=units).numpy()
        moved[:, silent] = base[:, run_on][:, None]
        exact[units], exact[silent] = True, True
        found = {f"{kind}_chosen": chosen, f"{kind}_drawn": drawn, f"{kind}_rest": rest, f"{kind}_estimates": estimates[:, drawn]}
    return {kind: moved, f"{kind}_exact": exact, **found}


def sweep_neurons(model, comparisons, mediator, run_folder, name, options, progress):
    """Function of a comparison's index to its {"base", "probabilities", "exact", "samples", "seconds", "checked", "fast"}; what is swept is kept at once."""
    trees = families(comparisons)
    where = {index: (number, position) for number, members in enumerate(trees) for position, index in enumerate(members)}
    last, told = {}, set()  # the tree that was read last; trees whose progress was told

    def results(index):
        """Null prompt's log odds, probabilities of both candidates {effect: [U, 2]}, which units were run {effect: [U]}.

        What was done once for a tree stands with its first comparison: what was checked, and what a screening's samples say.
        """
        tree, position = where[index]
        if tree not in last:
            kept = run_folder.load_shard(name, f"tree_{tree}")
            if kept is None:
                run_folder.save_shard(name, f"tree_{tree}", **sweep_family(model, [comparisons[one] for one in trees[tree]], mediator, options, progress))
                kept = run_folder.load_shard(name, f"tree_{tree}")
            elif tree not in told:
                progress(2 * len(trees[tree]) * units_of(model, mediator))
            told.add(tree)
            last.clear()
            last[tree] = kept
        kept = last[tree]
        probabilities = {kind: np.exp(kept[kind][position]) for kind in EFFECTS}
        exact = {kind: kept[f"{kind}_exact"] for kind in EFFECTS if f"{kind}_exact" in kept}
        samples = [sample_of(kept, kind, options.screen_top) for kind in EFFECTS if f"{kind}_drawn" in kept and not position]
        null1, null2 = kept["base"][position, 0]
        return {"base": null2 - null1, "probabilities": probabilities, "exact": exact, "samples": samples, "seconds": float(kept["seconds"]) / len(trees[tree]),
                "checked": NOTHING_CHECKED if position else Check.from_arrays(kept), "fast": kept.get("fast")}

    return results


def sample_of(kept, kind, top):
    """What the random sample of one tree says: (units drawn, units missed, units left out, estimated and exact changes in log odds).

    A unit that was drawn is run in all comparisons of the tree at once: it is one draw, and missed when it is missed in one of them.
    """
    without = kept["base"][:, INTERVENTION_TYPES[kind][0]]
    effects = kept[kind][:, :, 1] - kept[kind][:, :, 0] - (without[:, 1] - without[:, 0])[:, None]  # [n, U]
    drawn = kept[f"{kind}_drawn"]
    missed = np.any([misses(of_comparison, kept[f"{kind}_chosen"], drawn, top) for of_comparison in effects], axis=0)
    return len(drawn), int(missed.sum()), int(kept[f"{kind}_rest"]), kept[f"{kind}_estimates"].ravel(), effects[:, drawn].ravel()


# heads, layers of them, and all attention


def sweep_attention(model, comparisons, mediator, run_folder, name, options, progress):
    """The same for attention: a function of a comparison's index, arrays for heads [L x H], layers [L] and the model in a row."""
    def results(index):
        """As those of `sweep_neurons`; nothing is sampled."""
        kept = run_folder.load_shard(name, f"comparison_{index}")
        if kept is None:
            kept = sweep_example(model, comparisons[index].intervention, options, progress)
            run_folder.save_shard(name, f"comparison_{index}", **kept)
        else:
            progress(2 * units_of(model, mediator))
        probabilities = {kind: np.stack([np.concatenate([np.ravel(kept[f"{kind}_{2 * part + candidate}"]) for part in range(3)])
                                         for candidate in (0, 1)], axis=1) for kind in EFFECTS}
        exact = {kind: np.concatenate([kept[f"{kind}_exact_head"].ravel(), np.ones(model.num_layers + 1, bool)])
                 for kind in EFFECTS if f"{kind}_exact_head" in kept}
        null1, null2 = kept["probabilities"][0]
        return {"base": float(log_odds(null2, null1)), "probabilities": probabilities, "exact": exact, "samples": [], "seconds": float(kept["seconds"]),
                "checked": Check.from_arrays(kept), "fast": kept.get("fast")}

    return results


# tables


def unit_columns(model, mediator):
    """(slice of a sweep's units, columns that name them) of a mediator."""
    layers, heads = model.num_layers, model.num_heads
    if mediator in ("neurons", "mlps"):
        layer, neuron = (index.ravel() for index in np.indices((layers + 1, model.num_neurons if mediator == "neurons" else 1)))
        return slice(None), {"layer": layer} | ({"neuron": neuron} if mediator == "neurons" else {})
    if mediator == "heads":
        layer, head = (index.ravel() for index in np.indices((layers, heads)))
        return slice(layers * heads), {"layer": layer, "head": head}
    return slice(layers * heads, None), {"layer": np.array([*map(str, range(layers)), "all"])}


def write_total_effects(path, model, comparisons):
    """One row a comparison, without interventions; returns the number of rows."""
    rows = []
    for comparison in comparisons:
        (c1, c2), (alt1, alt2) = model.continuation_probabilities(comparison.intervention)
        texts, candidates = comparison.intervention.base_strings, comparison.stimulus.candidates
        rows.append({**comparison.columns(), "base_string": texts[0], "alt_string": texts[1], "candidate1": candidates[0], "candidate2": candidates[1],
                     "candidate1_base_prob": c1, "candidate2_base_prob": c2, "candidate1_alt_prob": alt1, "candidate2_alt_prob": alt2,
                     "odds_base": np.exp(log_odds(c2, c1)), "odds_alt": np.exp(log_odds(alt2, alt1)),
                     "total_effect": effect(log_odds(alt2, alt1), log_odds(c2, c1))})
    write_csv(path, pd.DataFrame(rows))
    return len(rows)


def write_effects(path, mediator, model, comparisons, results):
    """The table of one mediator, comparison by comparison, and its means.

    Effects are relative to the null prompt's odds in the very run that the interventions start from: without an intervention exactly 0.

    Args:
        results: function of an index, as `sweep_neurons` gives it.

    Returns: (table of means, what the manifest says of the file).
    """
    where, names = unit_columns(model, mediator)
    groups = dict.fromkeys(["", *(comparison.stimulus.group for comparison in comparisons)])
    moments = {group: {f"{kind}{scale}": Moments() for kind in EFFECTS for scale in ("_effect", "_log_effect")} for group in groups}
    samples, seconds, checked, fast, rows = [], 0.0, NOTHING_CHECKED, FastRows(), 0
    with table_writer(path) as append:
        for index, comparison in enumerate(comparisons):
            found = results(index)
            base = found["base"]
            columns = {**comparison.columns(), **names}
            for kind in EFFECTS:
                c1, c2 = found["probabilities"][kind][where].T
                columns |= {f"candidate1_{kind}_prob": c1, f"candidate2_{kind}_prob": c2, f"{kind}_effect": effect(log_odds(c2, c1), base)}
                for group in {"", comparison.stimulus.group}:
                    moments[group][f"{kind}_effect"].add(columns[f"{kind}_effect"])
                    moments[group][f"{kind}_log_effect"].add(log_odds(c2, c1) - base)
            columns |= {f"{kind}_method": np.where(exact[where], "exact", "gradient") for kind, exact in found["exact"].items()}
            rows = append(columns)
            samples += found["samples"]
            seconds, checked = seconds + found["seconds"], checked + found["checked"]
            if found["fast"] is not None:
                fast += FastRows(*found["fast"])
    tables = []
    for group in groups:
        values = {f"{name}_{part}": value for name, moment in moments[group].items() for part, value in (("mean", moment.mean), ("std", moment.deviation))}
        tables.append(pd.DataFrame({"group": group or "all", **names, **values, "comparisons": moments[group]["indirect_effect"].count}))
    entry = {"rows": rows, "sweep_seconds": seconds, **checked.entry()} | ({"fast": asdict(fast)} if fast.rows else {})
    return pd.concat(tables, ignore_index=True), entry | ({"screen": describe_samples(samples)} if samples else {})


def read_table(path):
    """A table that this file wrote. Words such as "null" or "NA" stay words; a deviation of one comparison is not a number."""
    deviations = {f"{kind}{scale}_std": [""] for kind in EFFECTS for scale in ("_effect", "_log_effect")}
    return pd.read_csv(path, keep_default_na=False, na_values=deviations, dtype=dict.fromkeys(("id", "group", "layer"), str))


def describe_samples(samples):
    """What a manifest says of the random samples of a screened table: plain values."""
    drawn, missed, rest, estimates, exact = zip(*samples)
    return {"drawn": sum(drawn), "missed": sum(missed), "rest": max(rest), **agreement(np.concatenate(estimates), np.concatenate(exact))}


def screening_of(entry, top):
    """The Screening that a screened table's entry in the manifest supports; None for others."""
    if "screen" not in entry:
        return None
    return Screening(entry["screen"]["drawn"], entry["screen"]["missed"], entry["screen"]["rest"], top)

"""Effects of mediators on stimuli of one's own: stages of tasks, and the rows of the tables.

Log odds are those of the second candidate over the first. Effects are (odds under the intervention - odds of
the null prompt) / odds of the null prompt (Vig et al. 2020, section 3).
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import chain, compress
from operator import not_
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from tqdm import tqdm

from mediation.effects.odds import effect, log_odds
from mediation.files.storage import RunFolder, not_default, write_csv
from mediation.mediators.catalogue import Request
from mediation.mediators.positions import places
from mediation.model.language_model import LanguageModel
from mediation.results.attention_results import EFFECTS
from mediation.results.mediation_tables import Row, write_effects
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies import engine
from mediation.studies.comparisons import Comparison
from mediation.studies.engine import Shards, StudyOptions, Task
from mediation.studies.estimated_trees import Gradients, trees_to_compare
from mediation.studies.heads import head_results, head_task, probabilities
from mediation.studies.neurons import NeuronResults, plan
from mediation.studies.results import Account, Swept
from mediation.studies.sites import SiteMeans, Sites, kinds_of, site_results
from mediation.studies.trees import digest
from mediation.studies.works import Output, Work


def describe_stimuli(model: LanguageModel, stimuli: Sequence[Stimulus], options: Any) -> dict[str, Any]:
    """What decides total effects, and all else as well."""
    settings = {**model.describe(), **model.describe_dtype(), "multi_token": options.multi_token,
                "stimuli_sha256": sha256(repr(stimuli).encode()).hexdigest()}
    return settings | ({"masking_approach": model.masking.approach} if model.masking else {})


def describe_settings(common: dict[str, Any], requests: Sequence[Request], options: Any) -> dict[str, Any]:
    """What decides the numbers of mediators of one sweep: the same settings give the same tables."""
    screened = any(request.mediator.screened for request in requests)
    # screening runs every unit where there are few of them
    all_run = options.method == "screen" and not screened and requests[0].sweep == "sites"
    settings = {**common, "precision": options.precision, "method": "exact" if all_run else options.method,
                "seed": options.seed, **not_default(options, full_passes=False)}
    if options.method == "screen" and screened:
        settings |= {name: getattr(options, name) for name in ("screen_share", "screen_sample", "screen_top")}
    return settings


def works(model: LanguageModel, comparisons: Mapping[Request, Sequence[Comparison]], table: str,
          todo: Collection[Request], options: StudyOptions, run_folder: RunFolder) -> Work:
    """What is still to be done for the mediators of one sweep, for a plan; after `claim`.

    Args:
        table: of the shards; todo: mediators whose tables are not there.
    """
    tasks = [task for request in todo
             for stage in SWEEPS[request.sweep](model, comparisons[request], request, table, options).stages
             for task in stage]
    outputs = [output(model, comparisons[request], request, options) for request in todo]
    return Work.ahead(tasks, run_folder, outputs)


def output(model: LanguageModel, comparisons: Sequence[Comparison], request: Request,
           options: StudyOptions) -> Output:
    """The table of one mediator; a comparison of made-up numbers says how large it gets."""
    def write(path: Path) -> int:
        one, random = comparisons[0], np.random.default_rng(0)
        units, at = request.mediator.units(model), named_places(model, one, request)
        count = len(next(iter(units.values()))) * len(at or [0])
        kinds = kinds_of(request)
        exact = {kind: np.zeros(count, bool) for kind in kinds} if options.estimates else {}
        made = {kind: random.random((count, 2)) for kind in kinds}
        row = Row(one.columns(), one.stimulus.group, units, at, -1.5, made, exact)
        return write_effects(path, [row], [one.stimulus.group])[0]

    cells = sum(len(places(each.intervention, request.positions)) if request.positions else 1
                for each in comparisons)
    return Output(request.mediator.count(model) * cells, write, kind=request.name)


OfComparison = Callable[[int], tuple[dict[str, Swept], float]]


@runtime_checkable
class Sweep(Protocol):
    """A sweep of one or more mediators over comparisons, both effects.

    `stages`: its tasks; `results`: of their shards, a function of a comparison's index to ({effect: Swept},
    the null prompt's log odds), and {effect: what was interpolated}; `probabilities`: exp of
    log-probabilities.
    """

    stages: list[Sequence[Task]]
    probabilities: Callable[[np.ndarray], np.ndarray]

    def results(self, shards: Shards) -> tuple[OfComparison, dict[str, dict[str, float]]]: ...


class SweepOfNeurons:
    """Neurons at the slot, in trees of prompts."""

    probabilities = staticmethod(np.exp)

    def __init__(self, model: LanguageModel, comparisons: Sequence[Comparison], request: Request,
                 table: str, options: StudyOptions) -> None:
        self.options = options
        stimuli = [comparison.intervention for comparison in comparisons]
        gradients = Gradients(stimuli, table, len(EFFECTS)) if options.estimates else None
        labels = [comparison.label for comparison in comparisons]
        self.sweeps = {kind: plan(model, stimuli, kind, options, table, labels, gradients)
                       for kind in EFFECTS}
        # gradients serve both effects: the second finds them computed
        self.stages = [stage for sweep in self.sweeps.values() for stage in sweep.stages]

    def results(self, shards: Shards) -> tuple[OfComparison, dict[str, dict[str, float]]]:
        """See `Sweep`."""
        of_effects = {kind: NeuronResults(sweep, shards, self.options.screen_top)
                      for kind, sweep in self.sweeps.items()}

        def of_comparison(index: int) -> tuple[dict[str, Swept], float]:
            swept = {kind: results(index) for kind, results in of_effects.items()}
            null1, null2 = swept["indirect"].base[0]
            return swept, null2 - null1

        counts = {kind: results.interpolation() for kind, results in of_effects.items()}
        return of_comparison, {kind: of_effect for kind, of_effect in counts.items() if of_effect}


class SweepOfSites:
    """Any mediator but attention weights, one comparison after the other."""

    probabilities = staticmethod(np.exp)

    def __init__(self, model: LanguageModel, comparisons: Sequence[Comparison], request: Request,
                 table: str, options: StudyOptions) -> None:
        self.options, self.comparisons = options, comparisons
        of_means = None
        if request.values == "mean":
            # a stimulus stands there once, however many alternatives it has
            prompts = {comparison.stimulus.id: comparison.intervention for comparison in comparisons}
            stimuli = tuple(prompts.values())
            of_means = SiteMeans(table, f"means_{request.name}_{digest(stimuli)}",
                                 f"means over {len(stimuli)} prompts", 0, stimuli, request)
        compared = trees_to_compare([[comparison.intervention] for comparison in comparisons])
        units, kinds = request.mediator.count(model), len(kinds_of(request))
        self.tasks = []
        for number, comparison in enumerate(comparisons):
            stimulus, other = comparison.intervention, comparison.other
            content = digest([stimulus, *([other] if other else [])],
                             *([of_means.name] if of_means else []))
            self.tasks.append(Sites(
                table, f"{request.name}_{content}", f"{request.name}, {number + 1} of {len(comparisons)}",
                kinds * units * len(places(stimulus, request.positions)), stimulus, request, options, other,
                of_means.key if of_means else None, number in compared))
        self.stages: list[Sequence[Task]] = [[of_means] if of_means else [], self.tasks]

    def results(self, shards: Shards) -> tuple[OfComparison, dict[str, dict[str, float]]]:
        """See `Sweep`."""
        def of_comparison(index: int) -> tuple[dict[str, Swept], float]:
            task = self.tasks[index]
            arrays = shards(task.key)
            null1, null2 = arrays["base"][0]
            label = self.comparisons[index].label
            return (site_results(task, arrays, shards.seconds[task.key], self.options.screen_top, label),
                    float(null2 - null1))

        return of_comparison, {}


class SweepOfHeads:
    """Attention weights of heads, of attention layers and of all attention, which one sweep computes."""

    probabilities = staticmethod(probabilities)

    def __init__(self, model: LanguageModel, comparisons: Sequence[Comparison], request: Request,
                 table: str, options: StudyOptions) -> None:
        self.tasks = [head_task(model, comparison.intervention, options, table,
                                f"comparison {number} of {len(comparisons)}")
                      for number, comparison in enumerate(comparisons, start=1)]
        self.stages: list[Sequence[Task]] = [self.tasks]

    def results(self, shards: Shards) -> tuple[OfComparison, dict[str, dict[str, float]]]:
        """See `Sweep`."""
        def of_comparison(index: int) -> tuple[dict[str, Swept], float]:
            task = self.tasks[index]
            arrays = shards(task.key)
            null1, null2 = arrays["probabilities"][0]
            swept = head_results(task, arrays, shards.seconds[task.key])
            return swept, float(log_odds(null2, null1))

        return of_comparison, {}


SWEEPS: dict[str, Any] = {"neurons": SweepOfNeurons, "sites": SweepOfSites, "attention weights": SweepOfHeads}


def rows(model: LanguageModel, comparisons: Sequence[Comparison], request: Request, table: str,
         options: StudyOptions, run_folder: RunFolder, account: Account) -> Iterator[Row]:
    """Run a request's sweep, then the rows of its table, comparison by comparison.

    Args:
        table: of the shards; account: counts in what gave the rows.
    """
    sweep: Sweep = SWEEPS[request.sweep](model, comparisons, request, table, options)
    total = sum(task.interventions for stage in sweep.stages for task in stage)
    with tqdm(total=total, unit=" interventions", unit_scale=True, smoothing=0.05) as progress:
        shards = engine.run(model, sweep.stages, run_folder, progress)
    results, account.interpolation = sweep.results(shards)
    within = request.mediator.within(model) if request.mediator.within else slice(None)
    units = request.mediator.units(model)
    for index, comparison in enumerate(comparisons):
        swept, base = results(index)
        for of_effect in swept.values():
            account.add(of_effect)
        yield Row(comparison.columns(), comparison.stimulus.group, units,
                  named_places(model, comparison, request), base,
                  {kind: sweep.probabilities(each.log_probabilities)[within] for kind, each in swept.items()},
                  {kind: each.exact[within] for kind, each in swept.items() if each.exact is not None})


def named_places(model: LanguageModel, comparison: Comparison,
                 request: Request) -> list[tuple[int | str, str]] | None:
    """(position, token) of every place, of the null prompt: the last of its tokens; None for attention
    weights, which are replaced on the whole context."""
    if not request.positions:
        return None
    if request.positions == "all":
        return [("all", "")]
    tokens = comparison.intervention.prompts[0].tokens
    last = [place.null[-1] for place in places(comparison.intervention, request.positions)]
    return [(position, model.tokenizer.decode([tokens[position]])) for position in last]


def base_probabilities(model: LanguageModel, comparisons: Sequence[Comparison]) -> list[list[float]]:
    """Of both candidates without intervention, after the null prompt and after the alternative.

    Different prompts are run together.
    """
    stimuli = [comparison.intervention for comparison in comparisons]
    together = [not model.masking and all(len(ids) == 1 for ids in stimulus.candidates_tok)
                for stimulus in stimuli]
    of_these = iter(model.base_probabilities(compress(stimuli, together)))
    others = model.continuations_together(compress(stimuli, map(not_, together)))
    return [next(of_these) if shared else list(chain(*next(others))) for shared in together]


def write_total_effects(path: Path, model: LanguageModel, comparisons: Sequence[Comparison]) -> int:
    """One row per comparison, without interventions; returns the number of rows."""
    table = []
    for comparison, (c1, c2, alt1, alt2) in zip(comparisons, base_probabilities(model, comparisons)):
        texts, candidates = comparison.intervention.base_strings, comparison.stimulus.candidates
        base, alternative = log_odds(c2, c1), log_odds(alt2, alt1)
        table.append({
            **comparison.columns(), "base_string": texts[0], "alt_string": texts[1],
            "candidate1": candidates[0], "candidate2": candidates[1],
            "candidate1_base_prob": c1, "candidate2_base_prob": c2,
            "candidate1_alt_prob": alt1, "candidate2_alt_prob": alt2,
            "odds_base": np.exp(base), "odds_alt": np.exp(alternative),
            "total_effect": effect(alternative, base)})
    write_csv(path, pd.DataFrame(table))
    return len(table)

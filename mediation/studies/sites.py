"""Sweeps of one mediator's sites over one comparison, as a task: every unit at every place, by one Request.

Symbols in shapes: M = units x places (places fastest), T tokens of the context, N nodes of the tree (context
and continuations), W width of a site.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from mediation.effects.screening import screened_units
from mediation.mediators.batches import Progress
from mediation.mediators.catalogue import Request
from mediation.mediators.positions import Place, first_difference, places
from mediation.mediators.site_sweeps import (
    Values,
    effective,
    estimate_sites,
    runs_with_sites,
    sites_by_full_passes,
    sweep_sites,
    sweep_sites_by_full_passes,
)
from mediation.mediators.sites import Site, SiteEdits
from mediation.model.fast_rows import FastRows
from mediation.model.forward import BaseRun
from mediation.model.language_model import LanguageModel
from mediation.model.readout import ReadOut
from mediation.model.token_trees import Tree, pack
from mediation.results.attention_results import EFFECTS
from mediation.stimuli.interventions import Intervention
from mediation.studies.checks import check_probabilities, compared, hash_of
from mediation.studies.engine import Arrays, Earlier, Key, StudyOptions, Task
from mediation.studies.error_budget import (
    CHECKED,
    LIKELY,
    NOTHING_CHECKED,
    Check,
    units_to_check,
    within_budget,
)
from mediation.studies.estimated_trees import COMPARED, capped
from mediation.studies.results import Swept, sample_of

MANY = 1000  # units from which on a sweep is checked as often as one of neurons
NULL, ALTERNATIVE = 0, 1  # the prompts of a comparison


def kinds_of(request: Request) -> tuple[str, ...]:
    """The kinds of effect: indirect and direct, or ablation where values are no alternative prompt's."""
    return EFFECTS if request.values == "alternative" else ("ablation",)


@dataclass(frozen=True)
class Run:
    """One prompt of a model run without intervention: its tree, and what the sites were.

    `length`: of the context; `candidates`: both candidates' tokens.
    """

    model: LanguageModel
    base: BaseRun
    own: Values
    tree: Tree
    length: int
    candidates: Sequence[Sequence[int]]

    @classmethod
    def of(cls, model: LanguageModel, stimulus: Intervention, prompt: int, sites: Sequence[Site]) -> "Run":
        """Run one prompt of a stimulus with its candidates behind it."""
        return cls.of_each(model, stimulus, (prompt,), sites)[0]

    @classmethod
    def of_each(cls, model: LanguageModel, stimulus: Intervention, prompts: Sequence[int],
                sites: Sequence[Site], linear_maps: bool = False) -> list["Run"]:
        """The same of several prompts, together where they are equally long."""
        trees = [tree_of(model, stimulus, prompt) for prompt in prompts]
        runs = runs_with_sites(model.model, model.parts, trees, sites, linear_maps)
        return [cls(model, *run, tree, len(stimulus.prompts[prompt].tokens), stimulus.candidates_tok)
                for run, tree, prompt in zip(runs, trees, prompts)]

    @cached_property
    def log_probabilities(self) -> Float64[Tensor, "2"]:
        """Of both candidates."""
        parts = self.model.parts
        if not parts.architecture.resumes:
            return self.model.without_trees(self.tree.tokens, self.candidates)
        return ReadOut(parts, self.tree.predictions)(self.base.residuals[-1].unsqueeze(0))[0]


def tree_of(model: LanguageModel, stimulus: Intervention, prompt: int) -> Tree:
    """One prompt of a stimulus, with its candidates behind it where that is how the model is run."""
    tokens = stimulus.prompts[prompt].tokens
    tree = pack([tokens], stimulus.candidates_tok, model.device)
    if not model.parts.architecture.resumes:
        return Tree(torch.tensor(tokens, device=model.device), None, None, ())
    # candidates of one token need no branches
    return tree if len(tree.tokens) > len(tokens) else replace(tree, position_ids=None, visible=None)


@dataclass(frozen=True)
class SiteMeans(Task):
    """Means of a mediator's sites over the null prompts of a file, at the request's place in each.

    Gives `site_{i}` float64 [W] of every site.
    """

    stimuli: tuple[Intervention, ...]
    request: Request

    @torch.no_grad()
    def compute(self, model: LanguageModel, earlier: Earlier, progress: Progress) -> Arrays:
        """See `Task`."""
        sites = sites_of(model, self.request)
        sums: list[Tensor | float] = [0.0] * len(sites)
        for stimulus in self.stimuli:
            (place,) = places(stimulus, self.request.positions)
            own = Run.of(model, stimulus, NULL, sites).own
            sums = [total + values[list(place.null)].double().mean(dim=0)
                    for total, values in zip(sums, own)]
        return {f"site_{index}": (total / len(self.stimuli)).cpu().numpy()  # type: ignore[union-attr]
                for index, total in enumerate(sums)}


@dataclass(frozen=True)
class Sites(Task):
    """Every unit of a mediator at every place of one comparison.

    Gives `base` [prompts that are run, 2], log-probabilities without intervention in the very runs that
    interventions start from; of each kind of effect `{kind}` [M, 2], log-probabilities of both candidates;
    the arrays of a Check, and `fast`. Methods that estimate add `{kind}_exact` bool [M], which were run;
    screening `{kind}_chosen`, `{kind}_drawn`, `{kind}_rest` and `{kind}_estimates`, as in `EstimatedTree`.

    `other`: with values resample, the stimulus whose values are put in; `means`: with values mean, the key of
    the SiteMeans; `compared`: whether estimates are compared with full passes.
    """

    intervention: Intervention
    request: Request
    options: StudyOptions
    other: Intervention | None = None
    means: Key | None = None
    compared: bool = False

    @property
    def needs(self) -> Sequence[Key]:
        """See `Task`."""
        return (self.means,) if self.means else ()

    @torch.no_grad()
    def compute(self, model: LanguageModel, earlier: Earlier, progress: Progress) -> Arrays:
        """See `Task`."""
        sites = sites_of(model, self.request)
        prompts = (NULL, ALTERNATIVE) if self.request.values == "alternative" else (NULL,)
        runs = Run.of_each(model, self.intervention, prompts, sites, model.fast_rows is not None)
        arrays: Arrays = {"base": torch.stack([run.log_probabilities for run in runs]).numpy()}
        total = NOTHING_CHECKED
        for kind in kinds_of(self.request):
            run_on = ALTERNATIVE if kind == "direct" else NULL
            values = self.put_in(model, sites, runs, run_on, earlier)
            edits = self.edits(sites, runs[run_on].length, run_on, values)
            if self.options.method == "gradient":
                of_kind, check = self.estimate(model, kind, runs[run_on], edits)
            elif self.options.method == "screen" and self.request.mediator.screened:
                of_kind, check = self.screen(model, kind, runs[run_on], edits, arrays["base"][run_on])
            else:
                of_kind, check = self.run(model, kind, runs[run_on], edits, progress)
            arrays |= {f"{kind}{name}": array for name, array in of_kind.items()}
            total += check
        fast = {"fast": model.fast_rows.take().shared(1)} if model.fast_rows else {}
        return {**arrays, **total.to_arrays(), **fast}

    # what is put in, and where

    def put_in(self, model: LanguageModel, sites: Sequence[Site], runs: Sequence[Run], run_on: int,
               earlier: Earlier) -> Values:
        """Of each site the values [T, W] that the context takes: its own where nothing is changed."""
        values = [own[: runs[run_on].length].clone() for own in runs[run_on].own]
        changed, sources = self.pairs(run_on)
        if self.request.values == "alternative":
            source = runs[1 - run_on].own
        elif self.other:
            source = Run.of(model, self.other, NULL, sites).own
        for index, of_site in enumerate(values):
            if self.request.values == "zero":
                of_site[changed] = 0
            elif self.means:
                of_site[changed] = torch.from_numpy(earlier(self.means)[f"site_{index}"]).to(of_site)
            else:
                of_site[changed] = source[index][sources]
        return values

    def pairs(self, run_on: int) -> tuple[list[int], list[int]]:
        """Positions that are changed, and those where the values that they take stand in the other run."""
        here = [side_of(place, run_on) for place in self.places]
        there = ([place.null for place in places(self.other, self.request.positions)] if self.other
                 else [side_of(place, 1 - run_on) for place in self.places])
        return ([position for place in here for position in place],
                [position for place in there for position in place])

    @property
    def places(self) -> list[Place]:
        """The request's places in this comparison."""
        return places(self.intervention, self.request.positions)

    def edits(self, sites: Sequence[Site], length: int, run_on: int, values: Values) -> SiteEdits:
        """M interventions: site by site, unit by unit, place by place."""
        # before it both runs are the same, and where a token answers to itself nothing changes
        same = first_difference(self.intervention) if self.request.values == "alternative" else 0
        at = torch.zeros(len(self.places), length, dtype=torch.bool)
        for number, place in enumerate(self.places):
            answers = zip(side_of(place, run_on), side_of(place, 1 - run_on))
            at[number, [here for here, there in answers if here != there or here >= same]] = True
        counts = torch.tensor([len(site.columns) for site in sites])
        site = torch.arange(len(sites)).repeat_interleave(counts)
        unit = torch.cat([torch.arange(len(each.columns)) for each in sites])
        site, unit = (part.repeat_interleave(len(at)) for part in (site, unit))
        return SiteEdits(sites, values, torch.arange(len(site)), site, unit,
                         at.repeat(int(counts.sum()), 1), len(site))

    # how the numbers come about

    def run(self, model: LanguageModel, kind: str, run: Run, edits: SiteEdits,
            progress: Progress) -> tuple[Arrays, Check]:
        """Every intervention."""
        def sweep() -> Float64[np.ndarray, "M 2"]:
            if self.options.full_passes:
                return self.finite(sweep_sites_by_full_passes(
                    model.model, model.parts, run.tree.tokens[: run.length], edits,
                    self.intervention.candidates_tok, run.log_probabilities,
                    self.options.batch_size, progress))
            return self.by_descent(model, run, edits, progress)

        among = np.arange(len(edits))
        swept, check = within_budget(model, sweep, partial(self.check, model, kind, run, edits, among),
                                     self.options, self.what(kind))
        return {"": swept}, check

    def estimate(self, model: LanguageModel, kind: str, run: Run,
                 edits: SiteEdits) -> tuple[Arrays, Check]:
        """Every intervention to first order; nothing is run but what the estimates are compared with."""
        estimates = self.first_order(model, run, edits)
        check = NOTHING_CHECKED
        if self.compared:
            check = self.check(model, kind, run, edits, np.arange(len(edits)), estimates, COMPARED)
        return {"": estimates, "_exact": np.zeros(len(edits), bool)}, check

    def screen(self, model: LanguageModel, kind: str, run: Run, edits: SiteEdits,
               base: Float64[np.ndarray, "2"]) -> tuple[Arrays, Check]:
        """The strongest by estimate run, and some of the others, drawn at random; the rest to first order."""
        estimates = self.first_order(model, run, edits)
        moved = estimates[:, 1] - estimates[:, 0] - (base[1] - base[0])
        at = effective(edits, run.own, run.tree, model.num_layers).at
        can_change = np.flatnonzero(at.any(dim=1).numpy())
        early = int((edits.joins.numpy()[can_change] == 0).sum())
        count = int(self.options.screen_share * len(can_change))
        chosen, drawn, rest = screened_units(
            np.abs(moved[can_change])[None], np.zeros(len(can_change), bool), early, count,
            self.options.screen_sample, np.random.default_rng(self.seed(kind)))
        chosen, drawn = can_change[chosen], can_change[drawn]
        units = np.concatenate([chosen, drawn])
        exact = np.ones(len(edits), bool)  # what changes nothing is known without a run
        exact[can_change] = False
        exact[units] = True

        def sweep() -> Float64[np.ndarray, "M 2"]:
            result = estimates.copy()
            result[exact] = self.by_descent(model, run, edits[torch.from_numpy(np.flatnonzero(exact))])
            return result

        swept, check = within_budget(model, sweep, partial(self.check, model, kind, run, edits, units),
                                     self.options, self.what(kind))
        return {"": swept, "_exact": exact, "_chosen": chosen, "_drawn": drawn, "_rest": np.int64(rest),
                "_estimates": moved[drawn]}, check

    def by_descent(self, model: LanguageModel, run: Run, edits: SiteEdits,
                   progress: Progress | None = None) -> Float64[np.ndarray, "{len(edits)} 2"]:
        """Log-probabilities of both candidates."""
        return self.finite(sweep_sites(model.parts, run.base, run.own, run.tree, edits,
                                       self.options.batch_size, progress, model.fast_rows,
                                       run.log_probabilities))

    def first_order(self, model: LanguageModel, run: Run,
                    edits: SiteEdits) -> Float64[np.ndarray, "{len(edits)} 2"]:
        """Log-probabilities of both candidates to first order."""
        estimates = self.finite(estimate_sites(model.model, model.parts, run.own, run.tree, edits,
                                               run.log_probabilities))
        return capped(estimates.T, self.intervention.candidates_tok).T

    def finite(self, log_probabilities: Float64[Tensor, "R 2"]) -> Float64[np.ndarray, "R 2"]:
        """As an array.

        Raises:
            InputError: there are some that are no numbers.
        """
        check_probabilities(repr(self.intervention.base_strings[0]), log_probabilities.numpy())
        return log_probabilities.numpy()

    def check(self, model: LanguageModel, kind: str, run: Run, edits: SiteEdits,
              among: Int[np.ndarray, " ran"], swept: Float[np.ndarray, "M 2"],
              sample: int | None = None) -> Check:
        """Some interventions `among` those that were run, again as full passes under plain hooks."""
        if not len(among):  # nothing can reach the output
            return NOTHING_CHECKED
        few = len(edits) < MANY  # a map: as many again as of heads
        chosen = units_to_check(swept.T, among, int((edits.joins == 0).sum()),
                                sample or (1 if few else CHECKED), self.seed(kind), 1 if few else LIKELY)
        return compared(swept.T, chosen, lambda units: sites_by_full_passes(
            model.model, run.tree.tokens[: run.length], edits[units], self.intervention.candidates_tok))

    def seed(self, kind: str) -> list[int]:
        """Other random units for every stimulus and effect, the same ones in every run."""
        return [self.options.seed, hash_of("\n".join(self.intervention.base_strings)),
                ("indirect", "direct", "ablation").index(kind)]

    def what(self, kind: str) -> str:
        """The sweep in words."""
        return f"{self.intervention.base_strings[0]!r}, {self.request.name}, {kind}"


def side_of(place: Place, prompt: int) -> tuple[int, ...]:
    """A place's positions in the null prompt or in the alternative."""
    return (place.null, place.alternative)[prompt]


def sites_of(model: LanguageModel, request: Request) -> list[Site]:
    """The request's sites in a model."""
    assert request.mediator.sites is not None, "attention weights"
    return request.mediator.sites(model.parts)


def site_results(task: Sites, arrays: Arrays, seconds: float, top: int, label: str) -> dict[str, Swept]:
    """{effect: numbers} of a task; what both effects share stands with the first.

    Args:
        top: size of the top of which screening must miss nothing; label: the comparison in words.
    """
    fast = FastRows(*arrays["fast"]) if "fast" in arrays else None
    shares = [(seconds, Check.from_arrays(arrays), fast), (0.0, NOTHING_CHECKED, None)]
    results = {}
    for kind, share in zip(kinds_of(task.request), shares):
        swept, base, sample = arrays[kind], arrays["base"], None
        if f"{kind}_drawn" in arrays:
            of_kind = {name: arrays[f"{kind}_{name}"] for name in ("chosen", "drawn", "rest")}
            of_one = {"log_probabilities": swept[None], "base": base[None],
                      "estimates": arrays[f"{kind}_estimates"][None]}
            run_on = ALTERNATIVE if kind == "direct" else NULL
            sample = sample_of(of_kind | of_one, 0, run_on, f"{task.name}_{kind}", label, top)
        results[kind] = Swept(swept, base, arrays.get(f"{kind}_exact"), *share, source=(task.key, kind),
                              sample=sample)
    return results

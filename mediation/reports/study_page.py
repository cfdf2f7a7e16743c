"""The page of any studies' results: what was asked, what was found, how sure it is, what was left out, how it
was made. Numbers come from tables and JSONs alone, so that files of 2020 have a page, too.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from mediation.effects.model_comparison import (
    EVERY,
    LOG,
    MILLIONS,
    ODDS,
    SHARE,
    Comparison,
    of_studies,
    trend_places,
)
from mediation.effects.resampling import FEW
from mediation.effects.summaries import smallest_reaching
from mediation.files.storage import python_command
from mediation.reports import charts
from mediation.reports.page import (
    Bullets,
    Code,
    Figure,
    Page,
    Part,
    Section,
    Table,
    Text,
    count,
    estimate,
    number,
    text,
    with_interval,
)
from mediation.reports.provenance import how_sure, left_out, provenance
from mediation.reports.unit_parts import (
    CONTRAST,
    attention_parts,
    by_mediator,
    estimated,
    interval_of,
    is_share,
    mediator_parts,
    one_example,
    plural,
    short,
    shown_kinds,
    strongest_in_words,
)
from mediation.results.model_results import ATTENTION, OWN, PROFESSIONS
from mediation.results.selections import Selected
from mediation.results.study_results import StudyResults, model_option

EXAMPLES_SHOWN = 12
# {kind of study: what its script of selections begins with, and what is selected}
SELECTIONS = {PROFESSIONS: ("neuron", "neuron"), ATTENTION: ("attention", "head")}


def study_page(everything: Sequence[StudyResults], selected: Sequence[Selected] = (),
               sizes: Mapping[str, float] = MILLIONS, seed: int = 0, files: Sequence[Path] = (),
               again: Callable[..., str] | None = None) -> Page:
    """One page of all results.

    Args:
        selected: selections of units; sizes: parameters of models, in millions, for the trend; seed: of the
            draws; files: figures and tables to name; again: of the page's own command, function of more
            folders to it (`every`: with every model that they hold).

    Raises:
        InputError: two results of one model and study.
    """
    models = list(dict.fromkeys(each.measured.model for each in everything))
    studies = of_studies([each.measured for each in everything])
    results = {id(each.measured): each for each in everything}
    several = len(studies) > 1
    sections: list[Section] = []
    findings: dict[str, list[str]] = {}
    for name, of_models in studies.items():
        places, step = trend_places([each.model for each in of_models], sizes)
        compared = Comparison(of_models, places, seed)
        about = name[0].upper() + name[1:] if several else ""
        of_study = _Study(compared, step, [results[id(each)] for each in compared.measured.values()],
                          about and f"{about}: ")
        sections += of_study.sections()
        findings[about] = list(of_study.findings())
    if selected:
        findings.setdefault("Few units together" if several else "", []).extend(map(_fewest, selected))
    command = again or partial(_make_report, everything)
    if len(models) == 1:
        sections.append(Section("Does it grow with model size?", list(_other_sizes(models[0], command))))
    sections += [Section("How few units suffice?", list(_selections(selected, everything, command))),
                 Section("How sure is it?", list(how_sure(everything))),
                 Section("What was left out?", list(left_out(everything))),
                 Section("How was it made, and how is it run again?",
                         list(provenance(everything, files, again and again())))]
    return Page(
        f"Causal mediation analysis of {', '.join(models)}",
        f"Which parts of {'the model' if len(models) == 1 else 'these models'} carry a behaviour, and how "
        f"sure is that? Studied: {'; '.join(studies)}. Effects are log odds ratios of the second candidate "
        "over the first, relative to the null prompt: 0 is no effect, .69 doubles the odds, -.69 halves "
        "them. [low, high] is the 95% bootstrap interval of a mean.",
        findings, sections)


class _Study:
    """The sections of one study. `found`: what every model's files say, in the order of the comparison."""

    def __init__(self, compared, step, found, prefix):
        self.compared, self.step, self.found, self.prefix = compared, step, found, prefix
        self.table = compared.table()
        self.means = self.table[(self.table["what"] == "mean") & (self.table["scale"] == LOG)]
        self.several = len(found) > 1

    def findings(self) -> Iterator[str]:
        """Answers, a sentence each; what several models say together comes first."""
        yield from self._trend()
        for each in self.found:
            name = f"In {each.measured.model}, the" if self.several else "The"
            row = self._mean(each, "total effect")
            examples = count(len(each.measured.total), "example")
            known = row is not None and not np.isnan(row["low"])
            few = " (too few to rely on the interval)" if known and row["clusters"] < FEW else ""
            yield (f"{name} mean total effect is **{interval_of(row)}**, over {examples}"
                   f"{f' in {row.clusters:,} clusters' if known else ''}{few}."
                   + (" The filter chose them for an effect above 0: the mean of all examples is smaller."
                      if each.measured.study.endswith(", filtered") else ""))
            mirrored = _mirrored(each.texts) if each.source.kind == OWN else 0
            if known and mirrored and row["clusters"] == len(each.texts):
                yield (f"{mirrored:,} of these examples are each other's reverse and no independent "
                       "evidence: give both of a pair one `cluster` in the file of stimuli, or intervals are "
                       "too narrow and p too small.")
            backwards = (each.source.kind == OWN and row is not None
                         and (row["high"] if known else row["value"]) < 0)
            if each.exchanged and not backwards:
                yield (f"In **{len(each.exchanged):,}** of {examples}, such as "
                       f"“{short(each.exchanged[0], 110)}”, the null prompt prefers the second candidate and "
                       "the alternative prompt shifts the odds toward the first: were candidates exchanged "
                       "there? Such examples cancel others in every mean.")
            if backwards:
                yield ("The alternative prompts favour the first candidate, which is to be the one that fits "
                       "the null prompt: were candidates or substitutes meant the other way round? Shares of "
                       "a total effect are the same either way.")
            share = self._share(each)
            if share is not None:
                yield (f"{'There, ' if self.several else ''}**{interval_of(share, form='.0%')}** of it is "
                       "gone when the attention weights of all heads are held (proportion mediated: "
                       "the total indirect effect. The indirect effect, of replacing them alone, can have "
                       "another share).")
            for mediator, units in by_mediator(each.units):
                yield (strongest_in_words(mediator, units, len(each.measured.total),
                                          each.measured.model if self.several else "",
                                          layers=each.layers.get(mediator, ""),
                                          tokens=each.tokens.get(mediator))
                       + estimated(each, mediator))
                if CONTRAST in shown_kinds(units):
                    yield ("Much of a neuron's effect is its reaction to any word for a person; for gender "
                           "read its contrast: half of the difference that it makes to the log odds of “he” "
                           "over “she” whether it takes man's value or woman's, above 0 where man's favours "
                           "“he”. " + strongest_in_words(mediator, units, len(each.measured.total),
                                                         kind=CONTRAST) + estimated(each, mediator))

    def sections(self) -> Iterator[Section]:
        """All of this study."""
        yield Section(f"{self.prefix}What was asked?", list(self._asked()))
        yield Section(f"{self.prefix}How large is the effect?", list(self._totals()))
        if self.several:
            yield Section(f"{self.prefix}How do the models differ, and does it grow with size?",
                          list(self._differences()))
        for each in self.found:
            for mediator, units in by_mediator(each.units):
                where = f" of {each.measured.model}" if self.several else ""
                yield Section(f"{self.prefix}Which {plural(mediator)}{where} carry it?",
                              [part for kind in shown_kinds(units)
                               for part in mediator_parts(each, mediator, units, kind)])
            if each.attention:
                where = f" of {each.measured.model}" if self.several else ""
                yield Section(f"{self.prefix}Where do the strongest heads{where} look?",
                              list(attention_parts(each.attention)))
            picked = list(one_example(each))
            if picked:
                yield Section(f"{self.prefix}What happens in one example"
                              f"{f' in {each.measured.model}' if self.several else ''}?", picked)

    def _mean(self, each, quantity, group=EVERY):
        rows = self.means[(self.means["model"] == each.measured.model) & (self.means["quantity"] == quantity)
                          & (self.means["group"] == group)]
        return None if rows.empty else rows.iloc[0]

    def _tells(self, row):
        """Whether a mean says anything: a share of a total effect that may be 0 does not."""
        if row.scale != SHARE:
            return True
        of_total = self.means[(self.means["model"] == row.model) & (self.means["group"] == row.group)
                              & (self.means["quantity"] == "total effect")]
        return is_share(row.value, row.low, np.nan if of_total.empty else of_total["low"].iloc[0])

    def _share(self, each):
        rows = self.table[(self.table["what"] == "mean") & (self.table["scale"] == SHARE)
                          & (self.table["group"] == EVERY) & (self.table["model"] == each.measured.model)
                          & (self.table["quantity"] == "proportion mediated")]
        return None if rows.empty or not self._tells(rows.iloc[0]) else rows.iloc[0]

    def _trend(self):
        rows = self.table[(self.table["what"] == "trend") & (self.table["scale"] == LOG)]
        for _, row in rows.iterrows():
            sure = ("" if np.isnan(row["low"]) else
                    f", larger at every step in {row['above_0']:.0%} of the draws")
            yield (f"Along {row['model']} the {row['quantity']} changes by **{interval_of(row)}** "
                   f"{self.step} ({count(row['examples'], 'example')} that all have{sure}).")

    def _asked(self) -> Iterator[Part]:
        first = self.found[0]
        groups = [group for group in dict.fromkeys(self.compared.groups) if group]
        what = {"pronouns": "Does the gender of a pronoun shift the choice between two continuations, one "
                            "of which is about the person whom the stereotype expects? The null prompt has "
                            "the female pronoun, the alternative prompt the male one.",
                "professions": "Does a profession shift the choice between “he” and “she”? The null prompt "
                               "has the profession, the alternatives have “man” and “woman” in its place. "
                               "Effects are toward the gender that the stereotype does not expect; words "
                               "without a stereotype and definitional ones do not count, and prompts whose "
                               "candidates are improbable do."}
        yield Text(what.get(first.source.kind, "How does the alternative prompt shift the choice between "
                                               "the two candidates, relative to the null prompt?"))
        yield Bullets([f"{each.measured.model}: {count(len(each.measured.total), 'example')}"
                       + (f", {len(groups)} groups: {'; '.join(groups)}" if len(groups) > 1 else "")
                       for each in self.found])
        shown = first.texts[:EXAMPLES_SHOWN]
        pairs = any(alternative for _, alternative, *_ in shown)
        columns = ["null prompt", *(["alternative prompt"] if pairs else []), "first candidate",
                   "second candidate", "total effect"]
        rows = [[text(null), *([text(alternative)] if pairs else []), text(one), text(other), number(effect)]
                for (null, alternative, one, other), effect in zip(shown, first.measured.total)]
        yield Table(f"The first {len(rows)} of {len(first.texts):,} examples", columns, rows)

    def _totals(self) -> Iterator[Part]:
        rows = self.means.assign(label=[
            _label(row, self.several) for row in self.means.itertuples()])
        data = pd.DataFrame({"label": rows["label"], "value": rows["value"], "low": rows["low"],
                             "high": rows["high"]})
        # without an interval the ends are the mean itself
        data["low"], data["high"] = data["low"].fillna(data["value"]), data["high"].fillna(data["value"])
        total = self._mean(self.found[0], "total effect")
        sure = ("there is one cluster only, so no interval" if np.isnan(total["low"]) else
                "its interval does not hold 0" if total["low"] * total["high"] > 0 else
                "its interval holds 0")
        yield Figure(
            "How large are the total effect and its parts?",
            f"{_label(total, self.several)}: {interval_of(total)}; {sure}.",
            "Dots with bars: mean effects and their 95% intervals.",
            charts.intervals(charts.EFFECT), {"rows": charts.columns_of(data), "zero": {"x": [0]}})
        other = self.table[(self.table["what"] == "mean") & (self.table["scale"] != LOG)]
        table = pd.concat([self.means, other])
        table.loc[[not self._tells(row) for row in table.itertuples()], ["value", "low", "high"]] = np.nan
        yield Table("Means with 95% intervals; odds ratio - 1 is the mean of 2020, which few examples can "
                    "drive. total = direct + total indirect holds on the log scale",
                    ["what", "scale", "model", "group", "mean [low, high]", "examples", "clusters"],
                    [[text(row.quantity), text(row.scale), text(row.model), text(row.group),
                      estimate(row.value, row.low, row.high), number(row.examples, ".0f"),
                      number(row.clusters, ".0f")] for row in table.itertuples()])
        for each in self.found:
            yield from _estimands(each)
        for each in self.found:
            measured = each.measured
            data = pd.DataFrame({"group": [group or "all" for group in measured.groups],
                                 "value": measured.total,
                                 "example": [short(texts, 110) for texts in each.texts]})
            above = (measured.total > 0).mean()
            yield Figure(
                f"Is it the same in all examples{f' of {measured.model}' if self.several else ''}?",
                f"{above:.0%} of {count(len(data), 'example')} have an effect above 0; the median is "
                f"{np.median(measured.total):.4g}, the strongest tenth begins at "
                f"{np.quantile(measured.total, .9):.4g}.",
                "A tick per example at its total effect, in a row per group.",
                charts.examples_of_groups("total effect, log odds ratio"), {"rows": charts.columns_of(data)})

    def _differences(self) -> Iterator[Part]:
        rows = self.table[self.table["what"].isin(["difference", "trend", "overlap", "correlation of maps"])
                          & (self.table["scale"] != ODDS)]
        trend = list(self._trend())
        yield Text(" ".join(trend) if trend else "There is no trend: name the sizes of the models with "
                                                 "--sizes.")
        yield Table("Differences are of the examples that both models have; overlaps are of their strongest "
                    "units",
                    ["what", "quantity", "model", "minus, or with", "value [low, high]", "by chance",
                     "examples"],
                    [[text(row.what), text(f"{row.quantity}, {row.scale}"), text(row.model), text(row.other),
                      estimate(row.value, row.low, row.high), number(row.by_chance, ".2f"),
                      number(row.examples, ".0f")] for row in rows.itertuples()])


def _mirrored(texts):
    """How many examples are another one with both prompts exchanged."""
    pairs = {(null, alternative) for null, alternative, *_ in texts}
    return sum((alternative, null) in pairs for null, alternative in pairs)


def _estimands(each) -> Iterator[Part]:
    """The numbers of the neuron study that are cited, each with its formula and filter."""
    if each.estimands:
        yield Table(f"The numbers of 2020 and what they are, {each.measured.model}: odds ratio - 1, or log "
                    "odds ratio where that is said; null: the profession's prompt",
                    ["what", "value [low, high]", "median", "prompts", "formula", "prompts that count"],
                    [[text(of.name.strip()), estimate(of.value, *of.interval), number(of.median),
                      number(of.prompts, ".0f"), text(of.formula), text(of.filter)] for of in each.estimands])
    if each.correlations:
        yield Table("Does the effect follow the stereotype? Correlations (Pearson); p takes professions for "
                    "independent, the prompts of one are not",
                    ["what", "prompts that count", "r over prompts", "prompts", "r over professions", "p",
                     "professions"],
                    [[text(of.name), text(of.filter), number(of.r, ".3f"), number(of.prompts, ".0f"),
                      number(of.r_of_means, ".3f"), number(of.p, ".2g"), number(of.professions, ".0f")]
                     for of in each.correlations])


def _fewest(selected):
    """How many units reach the effect of all, in a sentence."""
    greedy = next(name for name in ("lazy greedy", "greedy", "top-k") if name in selected.selections)
    values = selected.selections[greedy]["val"]
    what = f"{selected.name}: {greedy} selection of {selected.unit}s"
    if np.isnan(selected.all_units):
        return f"{what}: {len(values)} together have an effect of **{values[-1]:.3g}** (odds ratio - 1)."
    reaching, (low, high) = smallest_reaching(values, selected.all_units), selected.interval
    together = with_interval(selected.all_units, low, high, ".3g")
    of_all = f"the effect of all {selected.unit}s together, {together}"
    return (f"{what}: **{count(reaching, selected.unit)}** reach {of_all} (odds ratio - 1)." if reaching else
            f"{what}: **{len(values)}** do not reach {of_all}; they have {values[-1]:.3g} (odds ratio - 1).")


def _selections(selected, everything, again) -> Iterator[Part]:
    """Effect against number of units."""
    for each in selected:
        rows = []
        for name, content in each.selections.items():
            values = np.asarray(content["val"], float)
            if name == "random order":
                name, values = f"{len(values)} random orders, mean", values.mean(axis=0)
            unknown = np.full(len(values), np.nan)
            rows.append(pd.DataFrame({
                "choice": name, "number": np.arange(1, len(values) + 1), "value": values,
                "low": content.get("low", unknown), "high": content.get("high", unknown)}))
        data = pd.concat(rows, ignore_index=True)
        yield Figure(f"What is the effect of a few {each.unit}s together, {each.name}?", _fewest(each),
                     "Lines: effect against the number of units replaced together; bands: 95% intervals.",
                     charts.curves(f"{each.unit}s replaced together", "indirect effect, odds ratio - 1",
                                   bool(data["low"].notna().any())),
                     {"rows": charts.columns_of(data)})
        for name, content in each.selections.items():
            if name != "random order":
                chosen = ", ".join(f"{layer}-{unit}" for layer, unit in content[each.unit])
                yield Text(f"{name}, in the order chosen: {chosen}")
    there = {one.unit for one in selected}
    missing = [(SELECTIONS[each.source.kind][0], each) for each in everything
               if each.source.kind in SELECTIONS and SELECTIONS[each.source.kind][1] not in there]
    if missing:
        yield Text("Not known from these files: no selection was run. It is run by the commands below, on "
                   "the templates and professions, or the first examples, that these results are of, as far "
                   "as their files say so, and the page made again with its folder. Heads are chosen on the "
                   "examples that the filter leaves: of WinoBias dev, of Winogender by BLS. `--plan` tells "
                   "what that takes: a prompt or two are minutes, everything is hours (heads) or weeks "
                   "(neurons).")
        yield Code("\n".join(dict.fromkeys([
            *(" ".join(filter(None, (
                f"{python_command()} {script}_intervention_subset_selection.py",
                model_option(each.measured.model), "-out_dir selection", each.asked_of)))
              for script, each in missing), again("selection")])))
    if not selected and not missing:
        yield Text("Not known: sets of units are chosen in the two studies of 2020 only. What all heads of a "
                   "block do together, and all heads of the model, is the mediator `layers`.")


def _other_sizes(model, again) -> Iterator[Part]:
    """How one model's results are put beside those of another size."""
    yield Text(f"One model cannot tell: these results are of {model}. Run the commands at the end of this "
               "page with another `-model` and another `-out_dir`, then name all folders: differences on "
               "the examples that both have, the trend over size and the overlap of the strongest units "
               "come to this page.")
    yield Code(again("OTHER_OUT_DIR", every=True))


def _make_report(everything, *more, every=True):
    """The command that makes a page of these results and more folders."""
    paths = dict.fromkeys(each.source.path.parent if each.source.kind == OWN else each.source.path
                          for each in everything)
    return f"{python_command()} make_report.py {shlex.join([*map(str, paths), *more])}"


def _label(row, several):
    parts = [row.quantity, *([row.model] if several else []), *([row.group] if row.group != EVERY else [])]
    return ", ".join(parts)

"""What the analysis scripts print, as text: tables that a researcher reads, each number with its formula and
filter."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mediation.effects.estimands import Correlation, Estimand
from mediation.effects.screening import Screening
from mediation.effects.summaries import over_orders, smallest_reaching, summary_of_groups
from mediation.results.mediation_tables import KINDS, unit_column
from mediation.stimuli.templates import TEMPLATES

FULL_PASSES = "Every intervention was a full pass of its own: there is nothing to check."


def describe_prompts(model: str, table: pd.DataFrame, unrated: Sequence[str]) -> str:
    """One line on what a total effect is computed over, one more on words that had to be left out."""
    counts = len(table), table["word"].nunique(), table["template"].nunique()
    lines = [f"{model}: " + ", ".join(map(_count, counts, ("prompt", "profession", "template")))]
    if unrated:
        lines.append(f"left out, not rated: {', '.join(unrated)}")
    return "\n".join(lines)


def describe_estimands(estimands: Sequence[Estimand]) -> str:
    """A table of value, median, interval and prompts; below it what each line is."""
    width = max(len(estimand.name) for estimand in estimands)
    lines = [f"{'':{width}}  {'value':>9} {'median':>9}  {'95% interval':>20} {'prompts':>8}"]
    for estimand in estimands:
        low, high = estimand.interval
        interval = f"[{low:.3f}, {high:.3f}]"
        lines.append(f"{estimand.name:{width}}  {estimand.value:9.3f} {estimand.median:9.3f}  {interval:>20} "
                     f"{estimand.prompts:8}")
    lines += ["", "value = odds ratio - 1 (0 = no effect); median over prompts; interval: bootstrap over "
              "professions; null = the profession's prompt"]
    lines += [f"  {estimand.name.strip()}: {estimand.formula} ({estimand.filter})" for estimand in estimands]
    return "\n".join(lines)


def describe_correlations(correlations: Sequence[Correlation]) -> str:
    """A line per correlation, and what its p value takes for independent."""
    lines = ["correlations (Pearson) over prompts, and over professions, each the mean of its prompts"]
    for each in correlations:
        lines.append(f"  {each.name + ', ' + each.filter:<52} r = {each.r:.3f} ({each.prompts} prompts), "
                     f"r = {each.r_of_means:.3f} (p = {each.p:.2g}, {each.professions} professions)")
    lines.append("p: two-sided, takes the professions for independent; the prompts of one are not")
    return "\n".join(lines)


def estimand_table(estimands: Sequence[Estimand]) -> pd.DataFrame:
    """The same numbers, unrounded, as a table to be written: name, value, median, low, high, prompts,
    formula, filter."""
    return pd.DataFrame([{"name": e.name.strip(), "value": e.value, "median": e.median,
                          "low": e.interval[0], "high": e.interval[1], "prompts": e.prompts,
                          "formula": e.formula, "filter": e.filter} for e in estimands])


def describe_screening(screening: Screening, samples: Sequence[Mapping[str, Any]]) -> str:
    """What a screened run may claim, in words.

    Args:
        screening: of the run; samples: what the manifest says of each table's sample (`screen` of its files).
    """
    bound = (f"recall of a prompt's exact top {screening.top}, mean over prompts: at least "
             f"{screening.recall:.3f} with 95% confidence "
             f"(at most {screening.missed_a_prompt:.2f} of them missed a prompt)"
             if screening.recall > 0 else
             f"too few draws for any statement about the recall of a prompt's exact top {screening.top} "
             "(bound 0): more professions, or a larger --screen_sample, make one")
    worst = [min((sample[name] for sample in samples if sample[name] is not None), default=float("nan"))
             for name in ("pearson", "spearman")]
    return (f"method screen: {screening.drawn} random neurons of the {screening.rest} a prompt that were "
            "left out "
            f"were run: {screening.missed} belong to the exact top {screening.top} of one of their "
            f"prompts\n{bound}\n"
            f"estimates against exact runs in these samples (change in log odds): Pearson {worst[0]:.4f}, "
            f"Spearman {worst[1]:.4f} in the worst table, largest difference "
            f"{max(sample['largest_difference'] for sample in samples):.1e}")


def neuron_study(
    model: str, runs: Sequence[dict[str, Any]], probabilities: pd.DataFrame, estimands: Sequence[Estimand],
    correlation: Correlation, effects: pd.DataFrame, contrasts: pd.DataFrame | None, layers: pd.DataFrame,
    files: Sequence[str | Path], method: str = "",
) -> str:
    """The report of a neuron study in Markdown: what was asked, what was found, how sure it is, what was left
    out.

    Args:
        runs: the runs of the model in the folder's manifest.
        probabilities: table of `utils.read_probabilities`; estimands, correlation: of `effects.estimands`.
        effects, contrasts: tables of `summaries.NeuronAggregate`; layers: table of `neuron_layer_effect.csv`
        for this model.
        files: paths to name at the end.
        method: what to say of a method that estimates (`utils.describe_methods`); empty where every number is
            exact.
    """
    swept = [entry | {"words": run["settings"]["professions"]} for run in runs
             for entry in run["files"].values() if "sweep_seconds" in entry]
    units, interventions = len(effects), sum(entry["rows"] for entry in swept)
    seconds = sum(entry["sweep_seconds"] for entry in swept)
    all_interventions = 4 * units * len(probabilities)
    estimated = any("method" in run["settings"] for run in runs)
    what = "effects, most of them estimates" if estimated else "interventions"
    words = list(dict.fromkeys(word for entry in swept for word in entry["words"]))
    templates = list(dict.fromkeys(entry["template"] for entry in swept))
    total = estimands[0]
    lines = [
        f"# Neuron study of {model}",
        "",
        "**Question.** Which neurons carry the gender of a person word into the choice between “he” and "
        "“she”, "
        f"and how much? Model {model}, weights {runs[-1]['settings']['weights_sha256'][:12]}, "
        f"{effects['layer_direct_mean'].nunique() - 1} layers, {units:,} neurons "
        "(word embedding = layer 0, MLP outputs = layers 1 and up).",
        "",
        "**Total effect** (replace the profession by “man” or “woman”; "
        f"{probabilities['template'].nunique()} of {len(TEMPLATES)} templates, "
        f"{probabilities['word'].nunique()} professions; {total.prompts:,} of {len(probabilities):,} prompts "
        f"count, see the filters): {total.value:.1f} "
        f"(95% interval {total.interval[0]:.1f} to {total.interval[1]:.1f}), median {total.median:.1f}. "
        "A mean far above its median is driven by few prompts. Bias correlates with the log effect toward "
        f"“she” at r = {correlation.r:.3f} over prompts, {correlation.r_of_means:.3f} over "
        f"{correlation.professions} "
        f"professions (p = {correlation.p:.2g}, which takes these for independent).",
        "",
        "```", describe_estimands(estimands), "```",
        "",
        f"**Neurons** ({interventions:,} {what}: {_count(len(words), 'profession')}: {_shortened(words)}; "
        f"{_count(len(templates), 'template')}: {_shortened(templates)}). "
        "Natural indirect effect = odds ratio - 1 toward the anti-stereotypical gender when one neuron takes "
        "the "
        "value it has for “man” or “woman”; "
        "mean and standard deviation over these prompts.",
        "",
        *([f"**Method.** {method}.", ""] if method else []),
        "```", _strongest(effects, "odds_ratio_indirect_mean", "odds_ratio_indirect_std", 10, shift=1), "```",
    ]
    if contrasts is not None:
        lines += ["", "**Gender contrast** = (log effect under man - log effect under woman) / 2: what is "
                  "left of a neuron's effect when the part that any person word has, man and woman alike, is "
                  "taken out.", "",
                  "```", _strongest(contrasts, "gender_contrast_mean", "gender_contrast_std", 10), "```"]
    peak = layers.loc[layers["odds_ratio_indirect_mean"].idxmax()]
    lines += [
        "",
        f"**Layers.** The strongest {100 * peak['share']:g}% of a layer's neurons have their largest mean "
        f"effect "
        f"in layer {peak['layer']:.0f}: {peak['odds_ratio_indirect_mean'] - 1:.3f}. Neurons of the last "
        f"layer "
        "cannot reach the output from an earlier position: their effect is exactly 0.",
        "",
        f"**How sure.** {how_sure(runs, swept)} {seconds / 60:.1f} minutes of sweeps, "
        f"{interventions / seconds:,.0f} {what} a second.",
        "",
    ]
    if interventions < all_interventions:
        asked = model.removesuffix("_random") + (" --randomize" if model.endswith("_random") else "")
        asked += f" --method {runs[-1]['settings']['method']}" if "method" in runs[-1]["settings"] else ""
        hours = all_interventions / interventions * seconds / 3600
        lines += [f"**Left out.** {all_interventions - interventions:,} of {all_interventions:,} "
                  "interventions: "
                  f"all are {probabilities['template'].nunique()} templates x "
                  f"{probabilities['word'].nunique()} "
                  f"professions x 4 types. At this speed they take {hours:.0f} hours (the run can be stopped "
                  f"and "
                  "goes on from where it was):", "",
                  f"    python run_profession_neuron_experiments.py -model {asked} -out_dir all", ""]
    lines += ["**Files.**", "", *(f"- {path}" for path in files), ""]
    return "\n".join(lines)


def how_sure(runs: Sequence[Mapping[str, Any]], swept: Sequence[Mapping[str, Any]]) -> str:
    """What the checks against full passes say, and the recall of screened runs."""
    if all(run["settings"].get("full_passes") for run in runs):
        return FULL_PASSES
    deviation = max(entry.get("largest_deviation_from_full_passes", 0.0) for entry in swept)
    estimated = any(run["settings"].get("method") == "gradient" for run in runs)
    lines = [f"Random {'neurons' if estimated else 'interventions'} of every sweep were run again as full "
             "passes "
             "under plain hooks: log-probabilities differ "
             f"{'from the estimates ' if estimated else ''}by at most {deviation:.1e}."]
    for found in (run["screening"] for run in runs if "screening" in run):
        lines.append(f"Screening: of {found['drawn']} neurons drawn at random among those left out, "
                     f"{found['missed']} belong to the exact top {found['top']} of a prompt; the recall of "
                     f"that "
                     f"top, mean over prompts, is at least {found['recall_at_least']:.3f} with 95% confidence"
                     + (" (0: too few draws for a statement)." if found["recall_at_least"] == 0 else "."))
    return " ".join(lines)


@dataclass(frozen=True)
class Mediator:
    """What is known of one mediator: table of means, name of the whole table, its entry in the manifest and
    its run's, its screening."""

    means: pd.DataFrame
    file: str
    entry: dict[str, Any]
    run: dict[str, Any]
    screening: Screening | None = None


def mediation(
    model: str, stimuli: str | Path, totals: pd.DataFrame, mediators: Mapping[str, Mediator],
    figures: Sequence[Path], without_means: Mapping[str, str],
) -> str:
    """The report of mediate.py, Markdown: total effects by group, the strongest units of every mediator, how
    sure it is, where everything is.

    Args:
        stimuli: the file; totals: table of total effects; mediators: by name; figures: paths;
        without_means: {mediator: its table of means, which is gone}.
    """
    lines = [f"# Mediation analysis of {stimuli}, {model}", "",
             f"{_count(totals['id'].nunique(), 'stimulus', 'stimuli')}, {_count(len(totals), 'comparison')} "
             f"of a "
             "null prompt with an alternative. Effects are odds ratios minus 1 of the second candidate over "
             "the "
             "first, relative to the null prompt; 0 is no effect.", "", "## Total effects", "",
             "| group | comparisons | mean of logs | median | mean | share above 0 |", "|" + 6 * " --- |"]
    summary = summary_of_groups(totals["group"], totals["total_effect"])
    lines += [f"| {_cell(row['group'])} | {row['comparisons']} | {row['mean of logs']:.4g} "
              f"| {row['median']:.4g} | {row['mean']:.4g} | {row['share above 0']:.2f} |"
              for _, row in summary.iterrows()]
    lines += ["", "Means of odds ratios are driven by few strong comparisons: see the mean of their "
              "logarithms and the median beside them."]
    for name, mediator in mediators.items():
        lines += _mediator(name, mediator)
    lines += [f"\nnot reported: {name}: its table of means {file} is not there: run this mediator again"
              for name, file in without_means.items()]
    lines += ["", "## How it was made", ""]
    for name, mediator in mediators.items():
        settings, machine = mediator.run["settings"], mediator.run["machine"]
        lines += [f"{name}: method {settings['method']}, precision {settings['precision']}, "
                  f"{settings['dtype']}, seed {settings['seed']}; "
                  f"multi-token words: {settings['multi_token'] or 'left out'}; "
                  f"{', '.join(f'{part} {version}' for part, version in machine.items())}. "
                  f"Command: `{mediator.run['command']}`", ""]
    files = [*(path.name for path in figures), *(mediator.file for mediator in mediators.values())]
    lines += ["Figures and tables: " + ", ".join(files), ""]
    return "\n".join(lines)


def _mediator(name, mediator):
    """Lines of a report on one mediator."""
    whole = mediator.means[mediator.means["group"] == "all"]
    unit = unit_column(mediator.means)
    kinds = [kind for kind in KINDS if f"{kind}_effect_mean" in whole]
    few = unit is None and ("position" not in whole or whole["position"].nunique() == 1)
    order = "By layer:" if few else f"The strongest by the size of the mean log {kinds[0]} effect:"
    # odds ratios of whole vectors are of any size: their means say nothing
    of_weights = "position" not in whole
    columns = "mean of logs | mean | (std)" if of_weights else "mean of logs | (std)"
    lines = ["", f"## {_heading(name)}", "",
             f"{_count(int(whole['comparisons'].max()), 'comparison')}. {order}", "",
             f"| {'layer-' + unit if unit else 'layer'}{'' if of_weights else ' at'} | "
             + " | ".join(f"{kind} effect, {columns}" for kind in kinds) + " |",
             "|" + (1 + (columns.count("|") + 1) * len(kinds)) * " --- |"]
    ranked = whole[f"{kinds[0]}_log_effect_mean"].abs().sort_values(ascending=False, kind="stable").index
    for _, row in (whole if few else whole.loc[ranked[:10]]).iterrows():
        effects = [f"{row[f'{kind}_log_effect_mean']:.4g} | "
                   + (f"{row[f'{kind}_effect_mean']:.4g} | ({row[f'{kind}_effect_std']:.2g})" if of_weights
                      else f"({row[f'{kind}_log_effect_std']:.2g})") for kind in kinds]
        unit_name = f"{row['layer']}{'-' + str(row[unit]) if unit else ''}"
        lines += [f"| {unit_name}{'' if of_weights else _place(row)} | {' | '.join(effects)} |"]
    if whole["comparisons"].nunique() > 1:
        lines += ["", "Prompts have different numbers of tokens: a mean at a position is over the "
                  "comparisons that have it."]
    lines += [f"\nleft out: {_count(number, 'comparison')}: {reason}"
              for reason, number in mediator.run["left_out"].get(name, {}).items()]
    lines += ["", "Every layer and the whole model were run." if (whole["layer"] == "all").any()
              else how_checked(mediator)]
    if mediator.screening:
        lines.append(describe_screening(mediator.screening, [mediator.entry["screen"]]))
    return lines


def how_checked(mediator: Mediator) -> str:
    """A sentence on what was compared with full passes."""
    settings, entry = mediator.run["settings"], mediator.entry
    if settings.get("full_passes"):
        return FULL_PASSES
    if "largest_deviation_from_full_passes" not in entry:
        return "No intervention can reach the output: there is nothing to check."
    deviation = entry["largest_deviation_from_full_passes"]
    if settings["method"] == "gradient":
        return ("First-order estimates: those of a random sample differ from full passes by at most "
                f"{deviation:.1e} in a log-probability.")
    return (f"Checked against full passes: a random sample differs by at most {deviation:.1e} in a "
            "log-probability.")


def _place(row):
    """Where a unit was changed: ", position 4 ( France)", or the name of the place."""
    token = _cell(row["token"]).replace("`", "'")
    where = f", position {row['position']}" if isinstance(row["position"], int) else f", {row['position']}"
    return where + (f" (`{token}`)" if token.strip() else "")


def _cell(text):
    """A text in a cell of a Markdown table."""
    return str(text).replace("|", "\\|")


def _heading(name):
    """A name as a heading: an abbreviation has no vowel, mlps are MLPs."""
    words = name.split("_")
    if not set(words[0]) & set("aeiouy"):
        words[0] = words[0].removesuffix("s").upper() + "s" * words[0].endswith("s")
        return " ".join(words)
    return " ".join(words).capitalize()


def selection(found: Mapping[str, dict[str, Any]], k: int, label: str, all_units: float) -> str:
    """Effect against number of units, as a table, and what it says.

    Args:
        found: {"top-k" | "greedy" | "random order": {"val", label: [(layer, unit)]}} of `selection.run`;
            all_units: effect of all units together.
    """
    table = pd.DataFrame(index=pd.RangeIndex(1, k + 1, name=f"{label}s"))
    for name, content in found.items():
        if name == "random order":
            orders = over_orders(content["val"], k)
            table["random, mean"], table["random, largest"] = orders["mean"], orders["largest"]
        else:
            numbers = pd.RangeIndex(1, len(content["val"]) + 1)
            table[name] = pd.Series(content["val"], numbers, float)
            names = [f"{layer}-{unit}" for layer, unit in content[label]]
            table[f"{name} {label}"] = pd.Series(names[: len(numbers)], numbers[: len(names)])
    lines = [table.to_string(float_format="%.6f", na_rep=""), "", f"all {label}s together: {all_units:.6f}"]
    for name, content in found.items():
        if name != "random order":
            values = content["val"][:k]
            number = smallest_reaching(values, all_units)
            reached = (f"{_count(number, label)} reach it" if number
                       else f"{_count(len(values), label)} do not reach it, {values[-1]:.6f}")
            lines.append(f"{name}: {reached}")
        if "certified" in content:
            lines.append(f"lazy greedy: {content['evaluations']} evaluations of sets, "
                         f"{content['saved']} saved; "
                         f"{content['grown']} gains grew; "
                         f"{'certified' if content['certified'] else 'not certified'} equal to plain greedy")
    return "\n".join(lines)


def _count(number, noun, plural=None):
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def _strongest(table, mean, deviation, count, shift=0):
    """Text of the rows with the largest |mean - shift|, with readable headings."""
    top = table.loc[(table[mean] - shift).abs().nlargest(count).index]
    table = pd.DataFrame({"layer-neuron": top["neuron_"], "mean": top[mean] - shift,
                          "standard deviation": top[deviation]})
    return table.to_string(index=False, float_format="%.3f")


def _shortened(words):
    return textwrap.shorten(", ".join(words), 80, placeholder=" ...")

"""Figures, from tables only. Sized for a column of a paper; text stays text in the PDF."""

import textwrap
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("pdf")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Float
from matplotlib.ticker import MaxNLocator

from mediation.effects.estimands import Correlation, means_of_professions
from mediation.effects.model_comparison import CONTROL, EVERY, ODDS
from mediation.effects.summaries import over_orders, standard_error, strongest_means
from mediation.files.storage import whole_file
from mediation.results.mediation_tables import unit_column

COLUMN_WIDTH = 3.4  # inches
ALL_HEADS = "attention layer (weights of all its heads replaced)"
STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "pdf.fonttype": 42, "svg.hashsalt": "mediation", "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.6, "figure.constrained_layout.use": True}


def _save(figure, path):
    kind = Path(path).suffix.removeprefix(".")
    with whole_file(path, "wb") as file:
        # without a date: the same numbers are the same file
        figure.savefig(file, format=kind, metadata={"CreationDate" if kind == "pdf" else "Date": None})
    plt.close(figure)
    return path


def profession_correlation(table: pd.DataFrame, correlation: Correlation, model: str, path: Path) -> Path:
    """Bias of each profession against its log total effect toward "she": a dot per profession, the mean over
    its templates.

    Args:
        table: of `estimands.prompt_effects`; correlation: the one that the title quotes.

    Returns: the path written.
    """
    words = means_of_professions(table, "log_she_effect")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.8))
        for definitional, colour, label in ((False, "C0", "profession (mean over templates)"),
                                            (True, "C1", "definitional word")):
            dots = words[words["definitional"] == definitional]
            axes.scatter(dots["bias"], dots["log_she_effect"], s=8, color=colour, alpha=0.6, linewidth=0,
                         label=label)
        sns.regplot(data=table, x="bias", y="log_she_effect", scatter=False, ci=None, color="0.3",
                    line_kws={"linewidth": 1}, ax=axes)
        axes.set(xlabel="bias: definitional + stereotypical rating\n(negative = female, positive = male)",
                 ylabel="log total effect toward “she”\n(log odds ratio, woman over profession)",
                 title=f"{model}\nr = {correlation.r:.3f} over {correlation.prompts:,} prompts,\n"
                       f"{correlation.r_of_means:.3f} over {correlation.professions} professions")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        figure.legend(loc="outside lower center", ncols=2, frameon=False, handletextpad=0.1, columnspacing=1)
        return _save(figure, path)


def layer_effect(layers: pd.DataFrame, model: str, path: Path) -> Path:
    """Indirect effect of one model's strongest neurons in each layer: a line per share, its band one standard
    deviation over prompts.

    `layers`: table with layer, share, odds_ratio_indirect_mean, odds_ratio_indirect_std.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.5))
        for index, (share, rows) in enumerate(layers.groupby("share")):
            mean, deviation = rows["odds_ratio_indirect_mean"] - 1, rows["odds_ratio_indirect_std"]
            axes.plot(rows["layer"], mean, marker="o", markersize=2.5, linewidth=1, color=f"C{index}",
                      label=f"strongest {100 * share:g}% of each layer")
            axes.fill_between(rows["layer"], mean - deviation, mean + deviation, color=f"C{index}",
                              alpha=0.15, linewidth=0)
        axes.set_title(f"{model}\n(band: one standard deviation over prompts)")
        return _finish_layer_axes(figure, axes, path)


def layer_effects(layers: pd.DataFrame, path: Path) -> Path:
    """The same for several models, one share: a line per model. `layers` has a column model."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.5))
        for index, (model, rows) in enumerate(layers.groupby("model", sort=False)):
            axes.plot(rows["layer"], rows["odds_ratio_indirect_mean"] - 1, marker="o", markersize=2.5,
                      linewidth=1, color=f"C{index % 10}",
                      linestyle="--" if model.endswith("_random") else "-",
                      label=model.replace("_random", " (random weights)"))
        axes.set_title(f"strongest {100 * layers['share'].iloc[0]:g}% of each layer's neurons")
        return _finish_layer_axes(figure, axes, path)


def _finish_layer_axes(figure, axes, path):
    axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="layer (0 = word embedding)", ylabel="natural indirect effect\n(odds ratio − 1)")
    axes.legend(frameon=False)
    return _save(figure, path)


def layer_profiles(
    profiles: dict[str, Float[np.ndarray, "L"]], kind: str, title: str, path: Path, label: str,
) -> Path:
    """A line per group over the layers. `profiles`: effects by group; `label`: of the layers' axis."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(1.5 * COLUMN_WIDTH, 2.4 + 0.08 * len(profiles)))
        lines = [axes.plot(np.arange(len(effects)), effects, marker="o", markersize=2.5, linewidth=1,
                           color=f"C{index % 10}", linestyle=("-", "--", ":")[index // 10 % 3])[0]
                 for index, effects in enumerate(profiles.values())]
        axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_yscale("symlog", linthresh=1)  # the first layers can be ten times the others
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set(xlabel=label, ylabel=f"{EFFECT_LABELS[kind]}\n(log odds ratio)", title=title)
        figure.legend(lines, [group.replace("$", r"\$") for group in profiles], loc="outside lower center",
                      ncols=2, frameon=False)
        return _save(figure, path)


EFFECT_LABELS = {"indirect": "natural indirect effect", "direct": "natural direct effect",
                 "ablation": "effect of the ablation"}
COLOURS = {"indirect": "C0", "direct": "C1", "ablation": "C2"}
LOG = "\n(log odds ratio)"
SHARE, STRONGEST = 0.01, "strongest 1% of each layer"  # of many units


def _heat(axes, effects, kind, scale="", labels=("head", "attention layer")):
    """One cell per unit, layers upward as they are run.

    Colours are centred on 0 = no effect. Direct effects of single units all lie near the total effect: theirs
    span what there is.
    """
    largest = np.nanmax(np.abs(effects)) or 1.0
    around_0 = {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}
    colours = {"cmap": "viridis"} if kind == "direct" else around_0
    sns.heatmap(effects, ax=axes, **colours, cbar_kws={"label": EFFECT_LABELS[kind] + scale, "shrink": 0.8})
    axes.invert_yaxis()
    _thin_ticks(axes.xaxis, effects.shape[1])
    _thin_ticks(axes.yaxis, effects.shape[0])
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.tick_params(labelrotation=0, length=2)


def _thin_ticks(axis, count):
    """Ticks at the middle of cells, a dozen at the most."""
    step = -(-count // 12)
    axis.set_ticks(np.arange(0, count, step) + 0.5, [str(number) for number in range(0, count, step)])


def _height(layers):
    return min(5.5, 1.5 + 0.09 * layers)


def head_heat_map(effects: Float[np.ndarray, "L H"], kind: str, title: str, path: Path, scale: str = "",
                  label: str = "attention layer") -> Path:
    """Mean effect of every head. `scale`: of the effects, behind their name; `label`: of the axis of
    layers."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, _height(len(effects))))
        _heat(axes, effects, kind, scale, ("head", label))
        axes.set_title(title)
        return _save(figure, path)


def head_heat_map_with_bar(
    effects: Float[np.ndarray, "L H"], layer_effects: Float[np.ndarray, "L"], kind: str, title: str,
    path: Path, sort: bool = False,
) -> Path:
    """The same, beside it a bar per layer: the mean effect of replacing the weights of all its heads; with
    `sort` heads in the order of their effect."""
    with plt.rc_context(STYLE):
        size = 1.5 * COLUMN_WIDTH, _height(len(effects))
        figure, (axes, bars) = plt.subplots(1, 2, figsize=size, width_ratios=(3, 1))
        _heat(axes, -np.sort(-effects, axis=1) if sort else effects, kind)
        if sort:
            axes.set_xlabel("heads, sorted in each layer")
        bars.barh(np.arange(len(layer_effects)) + 0.5, layer_effects, height=0.8, color=COLOURS[kind])
        bars.set(ylim=axes.get_ylim(), yticks=[], xlabel="all heads of\nthe attention layer")
        bars.axvline(0, color="0.4", linewidth=0.6)
        bars.xaxis.set_major_locator(MaxNLocator(3))
        figure.suptitle(title, fontsize=8)
        return _save(figure, path)


def layer_bars(
    effects: Float[np.ndarray, "L"], errors: Float[np.ndarray, "L"], kind: str, title: str, path: Path,
    label: str = ALL_HEADS, scale: str = "",
) -> Path:
    """Mean effect of replacing the weights of all heads of a layer, with its standard error over examples.

    `label`: of the axis of layers; `scale`: of the effects, behind their name.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.3))
        axes.bar(np.arange(len(effects)), effects, yerr=errors, color=COLOURS[kind],
                 error_kw={"linewidth": 0.7, "ecolor": "0.3"})
        axes.axhline(0, color="0.4", linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=label, ylabel=f"{EFFECT_LABELS[kind]}{scale}\n(bar: standard error)", title=title)
        return _save(figure, path)


def stacked_layer_bars(
    indirect: Float[np.ndarray, "L"], direct: Float[np.ndarray, "L"], title: str, path: Path,
) -> Path:
    """Mean indirect and direct effect of every layer, one on the other."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.5))
        layers = np.arange(len(indirect))
        axes.bar(layers, indirect, color=COLOURS["indirect"], label="indirect")
        # on the indirect bar where both point one way, from 0 where they do not
        bottom = np.where(np.sign(indirect) == np.sign(direct), indirect, 0)
        axes.bar(layers, direct, bottom=bottom, color=COLOURS["direct"], label="direct")
        axes.axhline(0, color="0.4", linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=ALL_HEADS, ylabel="natural effects, stacked", title=title)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return _save(figure, path)


def effects_of_models(table: pd.DataFrame, path: Path) -> Path:
    """Total, direct and indirect effect of several models side by side. `table`: index model, columns what
    the legend says."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(max(COLUMN_WIDTH, 0.9 * len(table)), 2.9))
        width = 0.8 / len(table.columns)
        for index, (name, values) in enumerate(table.items()):
            axes.bar(np.arange(len(table)) + index * width, values, width=width, label=name,
                     color=f"C{index}")
        axes.axhline(0, color="0.4", linewidth=0.6)
        names = [textwrap.fill(name.replace("_random", " (random)").replace("-", "- "), 12).replace("- ", "-")
                 for name in table.index]
        axes.set_xticks(np.arange(len(table)) + 0.4 - width / 2, names)
        axes.set(ylabel="mean effect\n(odds ratio − 1)")
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return _save(figure, path)


def attention_on_context(
    tokens: Sequence[str], heads: dict[str, Float[np.ndarray, "2 T"]], title: str, path: Path,
) -> Path:
    """Where chosen heads look from the pronoun, in both contexts.

    Args:
        tokens: T strings, the last one holding both pronouns ("she / he").
        heads: by label, attention weights from the pronoun in x and x'; each row sums to 1.
    """
    with plt.rc_context(STYLE):
        size = max(COLUMN_WIDTH, 1.3 + 1.2 * len(heads)), 0.9 + 0.17 * len(tokens)
        figure, panels = plt.subplots(1, len(heads), figsize=size, sharey=True, squeeze=False)
        rows = np.arange(len(tokens))
        for axes, (label, weights) in zip(panels[0], heads.items()):
            for index, (name, values) in enumerate(zip(("x (female pronoun)", "x' (male pronoun)"), weights)):
                axes.barh(rows + (index - 0.5) * 0.4, values, height=0.4, color=f"C{3 if index == 0 else 0}",
                          label=name)
            axes.set(title=label, xlim=(0, 1), xticks=(0, 0.5, 1))
            axes.xaxis.set_major_formatter("{x:g}")
        panels[0, 0].set_yticks(rows, tokens)
        panels[0, 0].invert_yaxis()
        panels[0, len(heads) // 2].set_xlabel("attention from the pronoun")
        figure.suptitle(textwrap.fill(title, int(18 + 16 * len(heads))), fontsize=8)
        figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2,
                      frameon=False)
        return _save(figure, path)


def sparsity(
    found: dict[str, dict[str, Any]], k: int, label: str, all_units: float, shape: tuple[int, int],
    title: str, path: Path,
) -> Path:
    """Effect against number of units, and where the greedy (else the top-k) units sit.

    Args:
        found: as in `report.selection`; shape: (layers, units of a layer); all_units: effect of all units
            together, a line.
    """
    with plt.rc_context(STYLE):
        figure, (curve, where) = plt.subplots(1, 2, figsize=(2 * COLUMN_WIDTH, 2.7), width_ratios=(3, 2))
        for index, name in enumerate(name for name in found if name != "random order"):
            values = found[name]["val"][:k]
            curve.plot(np.arange(1, len(values) + 1), values, marker="o", markersize=3, linewidth=1,
                       color=f"C{index}", label=name)
        if "random order" in found:
            orders = over_orders(found["random order"]["val"], k)
            curve.fill_between(orders.index, orders["smallest"], orders["largest"], color="0.6", alpha=0.4,
                               linewidth=0, label=f"{len(found['random order']['val'])} random orders")
        curve.axhline(all_units, color="0.3", linewidth=0.8, linestyle="--",
                      label=f"all {shape[0] * shape[1]:,} {label}s")
        curve.xaxis.set_major_locator(MaxNLocator(integer=True))
        curve.set(xlabel=f"number of {label}s", ylabel="mean indirect effect\n(odds ratio − 1)", title=title)
        shown = next((name for name in ("greedy", "lazy greedy", "top-k") if name in found), None)
        if shown:
            pairs = np.array(found[shown][label][:k])
            numbers = np.arange(1, len(pairs) + 1)
            where.scatter(pairs[:, 1], pairs[:, 0], c=numbers, cmap="viridis_r", s=18)
            for number, (layer, unit) in zip(numbers, pairs):
                where.annotate(str(number), (unit, layer), xytext=(3, 3), textcoords="offset points",
                               fontsize=6)
            where.set(title=f"{shown}, in the order of choice")
        lowest = int(pairs[:, 0].min()) if shown and shape[0] == 1 else 0
        where.set(xlabel=label, ylabel="attention layer" if label == "head" else "layer",
                  xlim=(-0.5, shape[1] - 0.5), ylim=(lowest - 0.5, lowest + shape[0] - 0.5))
        where.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        where.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        return _save(figure, path)


def position_map(
    effects: Float[np.ndarray, "L T"], tokens: Sequence[str], kind: str, title: str, path: Path, label: str,
) -> Path:
    """Mean log effect of every layer at every position, the prompt's tokens below, layers upward.

    `label`: of the axis of layers.
    """
    with plt.rc_context(STYLE):
        size = max(COLUMN_WIDTH, 1.4 + 0.3 * len(tokens)), _height(len(effects)) + 0.6
        figure, axes = plt.subplots(figsize=size)
        _heat(axes, effects, kind, LOG, ("", label))
        axes.set_xticks(np.arange(len(tokens)) + 0.5, [_shown(token) for token in tokens], rotation=60,
                        ha="right", rotation_mode="anchor")
        axes.set_title(title)
        return _save(figure, path)


def _shown(token):
    """A token as a label: its blank is visible, and a dollar sign is no formula."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("$", r"\$") or "?"


def mediator(name: str, means: pd.DataFrame, model: str, folder: Path, layers: str,
             ending: str = "pdf") -> list[Path]:
    """Figures of one mediator from its table of means; returns the paths written.

    Several positions: a map of layers and positions, of a layer's strongest unit where it has several. One
    position: a map of layers and heads, a line of each layer's strongest 1% of many units, or bars of whole
    layers. Effects of attention weights are odds ratios minus 1, as in 2020; all others log odds ratios.

    Args:
        name: as it stands in file names; means: table with group, layer, the column that names a unit, and
            for every kind of effect {effect}_effect_mean, _std, and the same of log effects; layers: what an
            axis of layers is called; ending: of the files, pdf or svg.
    """
    unit, of_weights = unit_column(means), "position" not in means
    means = means[means["layer"] != "all"].assign(layer=lambda table: table["layer"].astype(int))
    whole = means[means["group"] == "all"]
    scale = "_effect" if of_weights else "_log_effect"
    kinds = [kind for kind in EFFECT_LABELS if f"{kind}_effect_mean" in means]
    title = f"{model}, {name}, {whole['comparisons'].max()} comparisons"
    paths = []
    for kind in kinds:
        path = folder / f"{name}_{kind}_{model}.{ending}"
        if not of_weights and whole["position"].nunique() > 1:
            strongest = whole.loc[whole.groupby(["layer", "position"])[f"{kind}_log_effect_mean"]
                                  .apply(lambda values: values.abs().idxmax())]
            effects = strongest.pivot(index="layer", columns="position", values=f"{kind}_log_effect_mean")
            tokens = strongest.drop_duplicates("position").set_index("position")["token"]
            names = [tokens[position] or str(position) for position in effects.columns]
            of_units = f"\nthe strongest {unit} of a layer" if unit else ""
            paths.append(position_map(effects.to_numpy(), names, kind, title + of_units, path, layers))
        elif unit == "head":
            effects = whole.pivot(index="layer", columns=unit, values=f"{kind}{scale}_mean").to_numpy()
            paths.append(head_heat_map(effects, kind, title, path, "" if of_weights else LOG, layers))
        elif unit is None:
            errors = standard_error(whole[f"{kind}{scale}_std"], whole["comparisons"])
            paths.append(layer_bars(whole[f"{kind}{scale}_mean"].to_numpy(), errors, kind, title, path,
                                    layers, "" if of_weights else LOG))
        elif kind != "direct":
            profiles = {STRONGEST: strongest_means(whole, f"{kind}_log_effect_mean", SHARE)}
            paths.append(layer_profiles(profiles, kind, title, path, layers))
    paths += _by_group(name, means, model, folder, layers, ending)
    return paths


def _by_group(name, means, model, folder, layers, ending):
    """A line of indirect effects, or of the ablation's, per group, where there are several and one position
    each."""
    groups = [group for group in means["group"].unique() if group != "all"]
    unit, kind = unit_column(means), "indirect" if "indirect_effect_mean" in means else "ablation"
    one_place = "position" not in means or means["position"].nunique() == 1
    if unit == "head" or not one_place or not 1 < len(groups) <= 12:
        return []
    share, text = (None, "") if unit is None else (SHARE, f": {STRONGEST}")
    profiles = {group: strongest_means(means[means["group"] == group], f"{kind}_log_effect_mean", share)
                for group in groups}
    path = folder / f"{name}_by_group_{model}.{ending}"
    return [layer_profiles(profiles, kind, f"{model}, {name}, by group{text}", path, layers)]


def compared_models(table: pd.DataFrame, path: Path) -> Path:
    """A row of panels per study, a panel per quantity, a dot with its 95% interval per model, controls last.

    `table`: of `model_comparison.Comparison`, of all studies; models in its order. Open dots: means over the
    examples that all models have. What has no interval is not drawn.
    """
    shown = table[(table["scale"] != ODDS) & (table["group"] == EVERY)]
    studies, quantities = shown["study"].unique(), shown[shown["what"] == "mean"]["quantity"].unique()
    with plt.rc_context(STYLE):
        size = max(COLUMN_WIDTH, 1.9 * len(quantities)), 0.9 + 1.7 * len(studies)
        figure, panels = plt.subplots(len(studies), len(quantities), figsize=size, squeeze=False)
        dots: dict[str, Any] = {}
        for (study, quantity), axes in zip(product(studies, quantities), panels.flat):
            rows = shown[(shown["study"] == study) & (shown["quantity"] == quantity)]
            models = list(rows[rows["what"] == "mean"]["model"])
            for what, label, fill, shift in (("mean", "its own examples", None, -0.12),
                                             ("mean, common", "examples of all models", "white", 0.12)):
                for row in rows[(rows["what"] == what) & rows["low"].notna()].itertuples():
                    colour = "0.55" if row.model.endswith(CONTROL) else "C0"
                    drawn = axes.errorbar(
                        models.index(row.model) + shift, row.value,
                        yerr=np.array([[row.value - row.low], [row.high - row.value]]), color=colour,
                        marker="o", markersize=3.5, markerfacecolor=fill or colour, linewidth=1, capsize=2)
                    dots.setdefault(label, drawn)
            axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
            axes.set_xlim(-0.6, len(models) - 0.4)
            axes.set_xticks(range(len(models)), [name.replace(CONTROL, " (random)") for name in models],
                            rotation=30, ha="right", rotation_mode="anchor")
            if not models:
                axes.set_axis_off()
            if axes in panels[0]:
                axes.set_title(f"{quantity}\n({rows['scale'].iloc[0]})")
        for study, (axes, *_) in zip(studies, panels):
            axes.set_ylabel(textwrap.fill(study, 22))
        figure.legend(list(dots.values()), list(dots), loc="outside lower center", ncols=2, frameon=False)
        return _save(figure, path)

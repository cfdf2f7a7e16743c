"""Figures, from tables only. Sized for a column of a paper; text stays text in the PDF."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("pdf")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import Bool, Float
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from mediation.effects.estimands import Correlation, means_of_professions
from mediation.effects.model_comparison import CONTROL, EVERY, ODDS
from mediation.effects.resampling import Interval
from mediation.effects.summaries import over_orders, strongest_means
from mediation.files.storage import whole_file

COLUMN_WIDTH = 3.4  # inches
ALL_HEADS = "attention layer (weights of all its heads replaced)"
STYLE: dict[Any, Any] = {
    "font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "legend.fontsize": 7, "pdf.fonttype": 42, "svg.hashsalt": "mediation", "axes.spines.top": False,
    "axes.spines.right": False, "axes.linewidth": 0.6, "hatch.linewidth": 0.4,
    "figure.constrained_layout.use": True}


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
    """Indirect effect of one model's strongest neurons in each layer: a line per share, and a band, its 95%
    interval; where that is not known, none.

    `layers`: table with layer, share, odds_ratio_indirect_mean, odds_ratio_indirect_low and _high.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.5))
        for index, (share, rows) in enumerate(layers.groupby("share")):
            axes.plot(rows["layer"], rows["odds_ratio_indirect_mean"] - 1, marker="o", markersize=2.5,
                      linewidth=1, color=f"C{index}", label=f"strongest {100 * share:g}% of each layer")
            _interval_band(axes, rows, f"C{index}")
        known = layers["odds_ratio_indirect_low"].notna().any()
        axes.set_title(f"{model}\n({BAND})" if known else model)
        return _finish_layer_axes(figure, axes, path)


BAND = "band: 95% interval over\nprofessions and templates"


def _interval_band(axes, rows, color):
    low, high = rows["odds_ratio_indirect_low"] - 1, rows["odds_ratio_indirect_high"] - 1
    axes.fill_between(rows["layer"], low, high, color=color, alpha=0.15, linewidth=0)


def layer_effects(layers: pd.DataFrame, path: Path) -> Path:
    """The same for several models, one share: a line per model. `layers` has a column model."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.5))
        for index, (model, rows) in enumerate(layers.groupby("model", sort=False)):
            axes.plot(rows["layer"], rows["odds_ratio_indirect_mean"] - 1, marker="o", markersize=2.5,
                      linewidth=1, color=f"C{index % 10}",
                      linestyle="--" if model.endswith("_random") else "-",
                      label=model.replace("_random", " (random weights)"))
            _interval_band(axes, rows, f"C{index % 10}")
        known = layers["odds_ratio_indirect_low"].notna().any()
        title = f"strongest {100 * layers['share'].iloc[0]:g}% of each layer's neurons"
        axes.set_title(f"{title}\n({BAND})" if known else title)
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
GREYS_APART = ("#2f5d8a", "#e6703a", "#8fbcdc", "#fddbb9")  # four colours that differ in print without colour
COLOURS = {"indirect": "C0", "direct": "C1", "ablation": "C2"}
LOG = "\n(log odds ratio)"
HATCH: dict[str, Any] = {"fill": False, "hatch": "//////", "edgecolor": "0.6", "linewidth": 0}
UNSURE = {"indirect": "hatched: the 95% interval of the mean holds 0",
          "direct": "hatched: the 95% interval of total − direct holds 0"}
INTERVAL = "95% interval"
ERROR_BARS: dict[str, Any] = {"linewidth": 0.7, "ecolor": "0.1"}
SHARE, STRONGEST = 0.01, "strongest 1% of each layer"  # of many units


def _heat(axes, effects, kind, scale="", labels=("head", "attention layer"), unsure=None):
    """One cell per unit, layers upward as they are run; cells that are `unsure` are hatched.

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
    if unsure is not None:
        for layer, unit in np.argwhere(unsure):
            axes.add_patch(Rectangle((unit, layer), 1, 1, **HATCH))
        axes.figure.legend([Rectangle((0, 0), 1, 1, **HATCH)], [UNSURE[kind]], loc="outside lower left",
                           frameon=False, handleheight=1)


def _thin_ticks(axis, count):
    """Ticks at the middle of cells, a dozen at the most."""
    step = -(-count // 12)
    axis.set_ticks(np.arange(0, count, step) + 0.5, [str(number) for number in range(0, count, step)])


def _height(layers):
    return min(5.5, 1.5 + 0.09 * layers)


def head_heat_map(effects: Float[np.ndarray, "L H"], kind: str, title: str, path: Path, scale: str = "",
                  label: str = "attention layer", unsure: Bool[np.ndarray, "L H"] | None = None) -> Path:
    """Mean effect of every head.

    Args:
        scale: of the effects, behind their name; label: of the axis of layers.
        unsure: heads to be hatched, see `UNSURE`.
    """
    with plt.rc_context(STYLE):
        legend = 0 if unsure is None else 0.2
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, _height(len(effects)) + legend))
        _heat(axes, effects, kind, scale, ("head", label), unsure)
        axes.set_title(title)
        return _save(figure, path)


def head_heat_map_with_bar(
    effects: Float[np.ndarray, "L H"], layer_effects: Float[np.ndarray, "L"], kind: str, title: str,
    path: Path, unsure: Bool[np.ndarray, "L H"], interval: Interval, sort: bool = False,
) -> Path:
    """The same, beside it a bar per layer: the mean effect of replacing the weights of all its heads, with
    its interval; with `sort` heads in the order of their effect."""
    with plt.rc_context(STYLE):
        size = 1.5 * COLUMN_WIDTH, _height(len(effects)) + 0.3
        figure, (axes, bars) = plt.subplots(1, 2, figsize=size, width_ratios=(3, 1))
        if sort:
            order = np.argsort(-effects, axis=1, kind="stable")
            effects, unsure = (np.take_along_axis(of_heads, order, axis=1) for of_heads in (effects, unsure))
        _heat(axes, effects, kind, unsure=unsure)
        if sort:
            axes.set_xlabel("heads, sorted in each layer")
        bars.barh(np.arange(len(layer_effects)) + 0.5, layer_effects, height=0.8, color=COLOURS[kind],
                  xerr=reach(layer_effects, interval), error_kw=ERROR_BARS)
        bars.set(ylim=axes.get_ylim(), yticks=[],
                 xlabel=f"all heads of the\nattention layer\n({INTERVAL})")
        bars.axvline(0, color="0.4", linewidth=0.6)
        bars.xaxis.set_major_locator(MaxNLocator(3))
        figure.suptitle(title, fontsize=8)
        return _save(figure, path)


def reach(mean: Float[np.ndarray, "L"], interval: Interval) -> Float[np.ndarray, "2 L"]:
    """How far an interval goes below and above its mean, as error bars are drawn; NaN draws none."""
    return np.maximum(np.stack([mean - interval[0], interval[1] - mean]), 0)


def layer_bars(
    effects: Float[np.ndarray, "L"], errors: Float[np.ndarray, "L"] | Float[np.ndarray, "2 L"], kind: str,
    title: str, path: Path, label: str = ALL_HEADS, scale: str = "", bars: str = "standard error",
) -> Path:
    """Mean effect of replacing the weights of all heads of a layer, with its error.

    Args:
        errors: of every mean, or how far its interval goes below and above; bars: what the axis calls them.
        label: of the axis of layers; scale: of the effects, behind their name.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.3))
        axes.bar(np.arange(len(effects)), effects, yerr=errors, color=COLOURS[kind], error_kw=ERROR_BARS)
        axes.axhline(0, color="0.4", linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=label, ylabel=f"{EFFECT_LABELS[kind]}{scale}\n(error bar: {bars})", title=title)
        return _save(figure, path)


def stacked_layer_bars(
    indirect: Float[np.ndarray, "L"], direct: Float[np.ndarray, "L"], title: str, path: Path,
    intervals: tuple[Interval, Interval],
) -> Path:
    """Mean indirect and direct effect of every layer, one on the other, each with its interval at its end.

    `intervals`: of the indirect effects, of the direct ones.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.5))
        layers = np.arange(len(indirect))
        # on the indirect bar where both point one way, from 0 where they do not
        bottom = np.where(np.sign(indirect) == np.sign(direct), indirect, 0)
        parts = ("indirect", indirect, np.zeros(len(layers))), ("direct", direct, bottom)
        for index, (kind, effects, foot) in enumerate(parts):
            axes.bar(layers, effects, bottom=foot, color=COLOURS[kind], label=kind)
            # side by side, so that none hides the other
            axes.errorbar(layers + 0.3 * index - 0.15, foot + effects, reach(effects, intervals[index]),
                          fmt="none", ecolor=ERROR_BARS["ecolor"], elinewidth=ERROR_BARS["linewidth"])
        axes.axhline(0, color="0.4", linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel=ALL_HEADS, ylabel=f"natural effects, stacked\n(error bar: {INTERVAL})", title=title)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return _save(figure, path)


def effects_of_models(table: pd.DataFrame, low: pd.DataFrame, high: pd.DataFrame, path: Path) -> Path:
    """Total, direct and indirect effect of several models side by side. `table`: index model, columns what
    the legend says; `low`, `high`: the ends of its intervals."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(max(COLUMN_WIDTH, 0.9 * len(table)), 2.9))
        width = 0.8 / len(table.columns)
        for index, (name, values) in enumerate(table.items()):
            errors = reach(values.to_numpy(float), (low[name].to_numpy(float), high[name].to_numpy(float)))
            axes.bar(np.arange(len(table)) + index * width, values, width=width, label=name,
                     color=GREYS_APART[index], yerr=errors, error_kw=ERROR_BARS)
        axes.axhline(0, color="0.4", linewidth=0.6)
        names = [textwrap.fill(name.replace("_random", " (random)").replace("-", "- "), 12).replace("- ", "-")
                 for name in table.index]
        axes.set_xticks(np.arange(len(table)) + 0.4 - width / 2, names)
        axes.set(ylabel=f"mean effect (odds ratio − 1)\n(error bar: {INTERVAL})")
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
        found: as in `report.selection`, intervals are drawn as bands; shape: (layers, units of a layer);
            all_units: effect of all units together, a line.
    """
    with plt.rc_context(STYLE):
        figure, (curve, where) = plt.subplots(1, 2, figsize=(2 * COLUMN_WIDTH, 2.7), width_ratios=(3, 2))
        for index, name in enumerate(name for name in found if name != "random order"):
            values = found[name]["val"][:k]
            numbers = np.arange(1, len(values) + 1)
            band = "low" in found[name]
            curve.plot(numbers, values, marker="os^"[index], markersize=3, linewidth=1, color=f"C{index}",
                       label=f"{name} (band: {INTERVAL})" if band else name)
            if band:
                curve.fill_between(numbers, found[name]["low"][:k], found[name]["high"][:k],
                                   color=f"C{index}", alpha=0.2, linewidth=0)
        if "random order" in found:
            orders = over_orders(found["random order"]["val"], k)
            curve.fill_between(orders.index, orders["smallest"], orders["largest"], color="0.6", alpha=0.4,
                               linewidth=0, label=f"{len(found['random order']['val'])} random orders")
            for end in ("low", "high") if "low" in found["random order"] else ():
                curve.plot(orders.index, found["random order"][end][:k], color="0.4", linewidth=0.6,
                           linestyle=":", label=f"their mean: {INTERVAL}" if end == "low" else None)
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
    unsure: Bool[np.ndarray, "L T"],
) -> Path:
    """Mean log effect of every layer at every position, the prompt's tokens below, layers upward.

    `label`: of the axis of layers; `unsure`: cells to be hatched, see `UNSURE`.
    """
    with plt.rc_context(STYLE):
        size = max(COLUMN_WIDTH, 1.4 + 0.3 * len(tokens)), _height(len(effects)) + 0.8
        figure, axes = plt.subplots(figsize=size)
        _heat(axes, effects, kind, LOG, ("", label), unsure)
        axes.set_xticks(np.arange(len(tokens)) + 0.5, [_shown(token) for token in tokens], rotation=60,
                        ha="right", rotation_mode="anchor")
        axes.set_title(title)
        return _save(figure, path)


def _shown(token):
    """A token as a label: its blank is visible, and a dollar sign is no formula."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("$", r"\$") or "?"


@dataclass(frozen=True)
class MediatorFigures:
    """What the figures of one mediator are drawn from.

    `name`: as it stands in file names; `units`: its rows of a summary (`effects.unit_summaries`); `unit`:
    what a unit within its layer is called, None where a whole layer is one; `tokens`: {position: its tokens},
    empty for attention weights; `layers`: what an axis of layers is called.
    """

    name: str
    units: pd.DataFrame
    unit: str | None
    tokens: Mapping[str, str]
    layers: str = "layer"

    @property
    def by_position(self) -> bool:
        """Whether there are several positions."""
        return len(self.tokens) > 1

    def of(self, kind: str, group: str = "all") -> pd.DataFrame:
        """The rows of one kind of effect and group, but for all layers at once."""
        units = self.units[(self.units["group"] == group) & (self.units["effect"] == kind)]
        units = units[units["layer"] != "all"]
        unsure = (units["low"] <= 0) & (units["high"] >= 0)
        return units.assign(layer=units["layer"].astype(int), unsure=unsure.astype(int))


def mediator(of: MediatorFigures, model: str, folder: Path, ending: str = "pdf") -> list[Path]:
    """Figures of one mediator; returns the paths written.

    Several positions: a map of layers and positions, of a layer's strongest unit where it has several. One
    position: a map of layers and heads, a line of each layer's strongest 1% of many units, or bars of whole
    layers. Cells whose interval holds 0 are hatched, bars have their interval. Effects of attention weights
    are odds ratios minus 1, as in 2020; all others log odds ratios.

    `ending`: of the files, pdf or svg.
    """
    prefix, scale = ("", LOG) if of.tokens else ("effect_", "")
    kinds = [kind for kind in EFFECT_LABELS if (of.units["effect"] == kind).any()]
    layers = pd.RangeIndex(of.of(kinds[0])["layer"].max() + 1)  # a layer without units stays empty
    title = f"{model}, {of.name}, {of.units['comparisons'].max()} comparisons"
    paths = []
    for kind in kinds:
        path, rows = folder / f"{of.name}_{kind}_{model}.{ending}", of.of(kind)
        # a direct effect is near the total: whether it differs from that is what it says of a unit
        sure = rows if kind != "direct" else of.of("total_indirect")
        rows = rows.assign(unsure=sure["unsure"].to_numpy())
        if of.by_position:
            size = rows.assign(size=rows["mean"].abs())
            cells = rows.loc[size.groupby(["layer", "position"])["size"].idxmax()]
            places = sorted(cells["position"].unique(), key=int)
            effects, unsure = (cells.pivot(index="layer", columns="position", values=column)[places]
                               .reindex(layers) for column in ("mean", "unsure"))
            names = [of.tokens.get(place) or place for place in places]
            of_units = f"\nthe strongest {of.unit} of a layer" if of.unit else ""
            paths.append(position_map(effects.to_numpy(), names, kind, title + of_units, path, of.layers,
                                      (unsure == 1).to_numpy()))
        elif of.unit == "head":
            effects, unsure = (rows.pivot(index="layer", columns="unit", values=column).reindex(layers)
                               for column in (f"{prefix}mean", "unsure"))
            paths.append(head_heat_map(effects.to_numpy(), kind, title, path, scale, of.layers,
                                       (unsure == 1).to_numpy()))
        elif of.unit is None:
            bars = rows.set_index("layer").reindex(layers)
            mean, low, high = (bars[f"{prefix}{end}"].to_numpy(float) for end in ("mean", "low", "high"))
            paths.append(layer_bars(mean, reach(mean, (low, high)), kind, title, path, of.layers, scale,
                                    INTERVAL))
        elif kind != "direct":
            profiles = {STRONGEST: strongest_means(rows, "mean", SHARE)}
            paths.append(layer_profiles(profiles, kind, title, path, of.layers))
    return paths + _by_group(of, model, folder, ending)


def _by_group(of, model, folder, ending):
    """A line of indirect effects, or of the ablation's, per group, where there are several and one position
    each."""
    groups = [group for group in of.units["group"].unique() if group != "all"]
    kind = "indirect" if (of.units["effect"] == "indirect").any() else "ablation"
    if of.unit == "head" or of.by_position or not 1 < len(groups) <= 12:
        return []
    share, text = (None, "") if of.unit is None else (SHARE, f": {STRONGEST}")
    profiles = {group: strongest_means(of.of(kind, group), "mean", share) for group in groups}
    path = folder / f"{of.name}_by_group_{model}.{ending}"
    return [layer_profiles(profiles, kind, f"{model}, {of.name}, by group{text}", path, of.layers)]


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

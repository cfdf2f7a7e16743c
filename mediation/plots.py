"""Figures, from tables only. Sized for a column of a paper; text stays text in the PDF."""

import matplotlib

matplotlib.use("pdf")

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.ticker import MaxNLocator

from .storage import whole_file

COLUMN_WIDTH = 3.4  # inches
STYLE = {"font.size": 8, "axes.labelsize": 8, "axes.titlesize": 8, "xtick.labelsize": 7, "ytick.labelsize": 7, "legend.fontsize": 7,
         "pdf.fonttype": 42, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6, "figure.constrained_layout.use": True}


def _save(figure, path):
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="pdf", metadata={"CreationDate": None})
    plt.close(figure)
    return path


def profession_correlation(table, correlation, model, path):
    """Bias of each profession against its log total effect toward "she": a dot a profession, the mean over its templates.

    Args:
        table: table of `statistics.prompt_effects`.
        correlation: the Correlation over prompts that the title quotes.

    Returns: the path written.
    """
    words = table.groupby(["word", "bias", "definitional"], as_index=False)["log_she_effect"].mean()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.8))
        for definitional, colour, label in ((False, "C0", "profession (mean over templates)"), (True, "C1", "definitional word")):
            dots = words[words["definitional"] == definitional]
            axes.scatter(dots["bias"], dots["log_she_effect"], s=8, color=colour, alpha=0.6, linewidth=0, label=label)
        sns.regplot(data=table, x="bias", y="log_she_effect", scatter=False, ci=None, color="0.3", line_kws={"linewidth": 1}, ax=axes)
        axes.set(xlabel="bias: definitional + stereotypical rating\n(negative = female, positive = male)",
                 ylabel="log total effect toward “she”\n(log odds ratio, woman over profession)",
                 title=f"{model}\nr = {correlation.r:.3f} over {correlation.prompts:,} prompts")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        figure.legend(loc="outside lower center", ncols=2, frameon=False, handletextpad=0.1, columnspacing=1)
        return _save(figure, path)


def layer_effect(layers, model, path):
    """Indirect effect of one model's strongest neurons in each layer: a line a share, its band one standard deviation over prompts.

    `layers`: table with layer, share, odds_ratio_indirect_mean, odds_ratio_indirect_std.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.5))
        for index, (share, rows) in enumerate(layers.groupby("share")):
            mean, deviation = rows["odds_ratio_indirect_mean"] - 1, rows["odds_ratio_indirect_std"]
            axes.plot(rows["layer"], mean, marker="o", markersize=2.5, linewidth=1, color=f"C{index}", label=f"strongest {100 * share:g}% of each layer")
            axes.fill_between(rows["layer"], mean - deviation, mean + deviation, color=f"C{index}", alpha=0.15, linewidth=0)
        axes.set_title(f"{model}\n(band: one standard deviation over prompts)")
        return _finish_layer_axes(figure, axes, path)


def layer_effects(layers, path):
    """The same for several models, one share: a line a model. `layers` has a column model."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_WIDTH, 2.5))
        for index, (model, rows) in enumerate(layers.groupby("model", sort=False)):
            axes.plot(rows["layer"], rows["odds_ratio_indirect_mean"] - 1, marker="o", markersize=2.5, linewidth=1, color=f"C{index % 10}",
                      linestyle="--" if model.endswith("_random") else "-", label=model.replace("_random", " (random weights)"))
        axes.set_title(f"strongest {100 * layers['share'].iloc[0]:g}% of each layer's neurons")
        return _finish_layer_axes(figure, axes, path)


def _finish_layer_axes(figure, axes, path):
    axes.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="layer (0 = word embedding)", ylabel="natural indirect effect\n(odds ratio − 1)")
    axes.legend(frameon=False)
    return _save(figure, path)

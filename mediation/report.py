"""What the analysis scripts print, as text: tables that a researcher reads, each number with its formula and filter."""

import pandas as pd


def describe_prompts(model, table, unrated):
    """One line on what a total effect is computed over, one more on words that had to be left out."""
    lines = [f"{model}: {len(table)} prompts, {table['word'].nunique()} professions, {table['template'].nunique()} templates"]
    if unrated:
        lines.append(f"left out, not rated: {', '.join(unrated)}")
    return "\n".join(lines)


def describe_estimands(estimands):
    """A table of value, median, interval and prompts; below it what each line is."""
    width = max(len(estimand.name) for estimand in estimands)
    lines = [f"{'':{width}}  {'value':>9} {'median':>9}  {'95% interval':>20} {'prompts':>8}"]
    for estimand in estimands:
        low, high = estimand.interval
        lines.append(f"{estimand.name:{width}}  {estimand.value:9.3f} {estimand.median:9.3f}  {f'[{low:.3f}, {high:.3f}]':>20} {estimand.prompts:8}")
    lines += ["", "value = odds ratio - 1 (0 = no effect); median over prompts; interval: bootstrap over professions; null = the profession's prompt"]
    lines += [f"  {estimand.name.strip()}: {estimand.formula} ({estimand.filter})" for estimand in estimands]
    return "\n".join(lines)


def describe_correlations(correlations):
    """A line a correlation."""
    return "\n".join(["correlations over prompts (Pearson)"] + [
        f"  {correlation.name + ', ' + correlation.filter:<52} r = {correlation.r:.3f} (p = {correlation.p:.2g}, {correlation.prompts} prompts)"
        for correlation in correlations])


def estimand_table(estimands):
    """The same numbers, unrounded, as a table to be written: name, value, median, low, high, prompts, formula, filter."""
    return pd.DataFrame([{"name": e.name.strip(), "value": e.value, "median": e.median, "low": e.interval[0], "high": e.interval[1],
                          "prompts": e.prompts, "formula": e.formula, "filter": e.filter} for e in estimands])

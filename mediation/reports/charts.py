"""Charts of a report, as Vega-Lite specifications made by Altair; their data stay beside them as columns.

Colours of effects run from purple (below 0) over white to orange, which colour-blind readers tell apart; one
scale per chart, centred at 0.
"""

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

LARGE = 2_000  # cells, from which on a map is drawn on canvas
DIGITS = 5
NAME_WIDTH = 50  # of a unit's name in a map, in pixels
EFFECT = "effect, log odds ratio"
SCHEME: Any = "purpleorange"
BAR = "#5b6fb5"
UNIT_TIPS = ("unit", "value", "low", "high", "rank", "p", "q")


def columns_of(table: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as columns for a chart: numbers to five digits, None where there is none that is finite."""
    found = {}
    for name in table:
        values = table[name].tolist()
        if table[name].dtype.kind == "f":
            values = [float(f"{value:.{DIGITS}g}") if np.isfinite(value) else None for value in values]
        found[str(name)] = values
    return found


def intervals(x: str) -> dict[str, Any]:
    """A dot and its 95% interval per row of the data set "rows": label, value, low, high; a line at the x of
    the data set "zero"."""
    y = alt.Y("label:N", sort=None, title=None, axis=alt.Axis(labelLimit=190))
    base = alt.Chart(alt.NamedData("rows")).encode(y=y, tooltip=_tips(("label", "value", "low", "high")))
    bars = base.mark_rule(strokeWidth=2, color=BAR).encode(x=alt.X("low:Q", title=x), x2="high:Q")
    dots = base.mark_point(filled=True, size=60, opacity=1, color=BAR).encode(x=alt.X("value:Q", title=x))
    zero = alt.Chart(alt.NamedData("zero")).mark_rule(color="#888", strokeDash=[3, 3]).encode(x="x:Q")
    chart: Any = alt.layer(zero, bars, dots).properties(width=420, height=alt.Step(24))
    return _finished(chart)


def unit_map(units: pd.DataFrame, x: str, x_title: str, y_title: str, linked: bool) -> dict[str, Any]:
    """A cell per unit of the data set "cells": layer, x, value, and what a pointer shows.

    Args:
        units: the data set; x: its column on the horizontal axis; linked: a click shows the unit's effects in
            the single examples, data set "effects": cell, example, value.
    """
    wide, tall = units[x].nunique(), units["layer"].nunique()
    step = 2 if wide > 200 else 14 if wide > 40 else 22
    axis: dict[str, Any] = {"labelAngle": 0 if units[x].dtype.kind == "i" else -60, "labelOverlap": wide > 40}
    if wide > 200 and units[x].dtype.kind == "i":
        axis["values"] = list(range(0, wide, 64))
    across: Any = alt.X(f"{x}:O", title=x_title, sort=None, axis=alt.Axis(**axis))
    largest = float(units["value"].abs().max()) or 1.0
    colour = alt.Color("value:Q", title=EFFECT, scale=alt.Scale(scheme=SCHEME, domain=[-largest, largest]),
                       legend=alt.Legend(orient="top", gradientLength=200, titleLimit=260))
    base = alt.Chart(alt.NamedData("cells"))
    cells = base.mark_rect(tooltip=True).encode(
        x=across, y=alt.Y("layer:O", title=y_title, sort="descending",
                          axis=alt.Axis(labelOverlap=True)), color=colour,
        tooltip=_tips(name for name in UNIT_TIPS if name in units))
    size: Any = {"width": alt.Step(step) if wide <= 200 else step * wide,
                 "height": alt.Step(12 if tall > 16 else 20)}
    if wide > 200:
        names = _named(units, x, step)
        within, at_end = ([row.unit for row in names if row.at_end == side] for side in (False, True))
        sides: Any = (("left", 3, within), ("right", -3, at_end))
        layers = [base.mark_text(fontSize=11, fontWeight="bold", align=align, dx=dx).encode(
            x=across, y=alt.Y("layer:O", sort="descending"),
            text="unit:N").transform_filter(alt.FieldOneOfPredicate("unit", of_these))
            for align, dx, of_these in sides if of_these]
        return _finished(alt.layer(cells, *layers).properties(**size))
    if not linked:
        return _finished(cells.properties(**size))
    chosen = alt.selection_point(name="chosen", fields=["cell"], on="click", empty=False,
                                 value=[{"cell": int(units["cell"][units["rank"].idxmin()])}])
    cells = cells.encode(stroke=alt.condition(chosen, alt.value("#000"), alt.value(None)),
                         strokeWidth=alt.value(2)).add_params(chosen).properties(**size)
    single = alt.Chart(alt.NamedData("effects")).mark_tick(thickness=2, color=BAR, opacity=.6).encode(
        x=alt.X("value:Q", title="effect of the unit with the frame, in each example"),
        tooltip=_tips(("example", "value"))).transform_filter(chosen).properties(width=420, height=40)
    return _finished(alt.vconcat(cells, single, spacing=24))


def _named(units: pd.DataFrame, x: str, step: int) -> list[Any]:
    """The ten strongest, without those whose name would lie over that of a stronger one in their layer.

    `at_end`: whether the name stands left of its cell, for want of room at the right; `begins`: in pixels.
    """
    place = pd.factorize(units[x], sort=units[x].dtype.kind == "i")[0] * step
    at_end = place > place.max() - NAME_WIDTH
    placed = units.assign(at_end=at_end, begins=place - NAME_WIDTH * at_end)
    named: list[Any] = []
    for row in placed.nsmallest(10, "rank").itertuples():
        if all(row.layer != other.layer or abs(row.begins - other.begins) > NAME_WIDTH for other in named):
            named.append(row)
    return named


def examples_of_groups(x: str) -> dict[str, Any]:
    """A tick per example of the data set "rows": group, value, example."""
    chart = alt.Chart(alt.NamedData("rows")).mark_tick(thickness=2, opacity=.5, color=BAR).encode(
        x=alt.X("value:Q", title=x), y=alt.Y("group:N", title=None, sort=None, axis=alt.Axis(labelLimit=160)),
        tooltip=_tips(("example", "value")))
    return _finished(chart.properties(width=420, height=alt.Step(36)))


def layer_bars(y: str, x: str, known: bool) -> dict[str, Any]:
    """A bar per layer of the data set "rows": layer, value, low, high; with intervals where they are
    known."""
    base = alt.Chart(alt.NamedData("rows")).encode(x=alt.X("layer:O", title=x, sort=None),
                                                  tooltip=_tips(("layer", "value", "low", "high")))
    bars = base.mark_bar(color=BAR, opacity=.75).encode(y=alt.Y("value:Q", title=y))
    ends = base.mark_rule(color="#444").encode(y=alt.Y("low:Q", title=y), y2="high:Q")
    return _finished(alt.layer(bars, *([ends] if known else [])).properties(width=alt.Step(14), height=180))


def attention_bars() -> dict[str, Any]:
    """A panel per head of the data set "rows": head, place, token, prompt, weight; a bar per token and
    prompt."""
    bars = alt.Chart(alt.NamedData("rows")).mark_bar().encode(
        y=alt.Y("place:O", title=None, sort=None, axis=alt.Axis(labelLimit=140)),
        yOffset=alt.YOffset("prompt:N"),
        x=alt.X("weight:Q", title="attention", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("prompt:N", title=None, legend=alt.Legend(orient="top"),
                        scale=alt.Scale(range=["#e66101", "#5e3c99"])),
        tooltip=_tips(("head", "token", "prompt", "weight")))
    panels = bars.properties(width=170, height=alt.Step(7)).facet(column=alt.Column("head:N", title=None))
    return _finished(panels)


def curves(x: str, y: str, known: bool) -> dict[str, Any]:
    """A line per choice of the data set "rows": choice, number, value, low, high; with intervals where they
    are known."""
    base = alt.Chart(alt.NamedData("rows")).encode(
        x=alt.X("number:Q", title=x, axis=alt.Axis(tickMinStep=1)),
        color=alt.Color("choice:N", title=None, legend=alt.Legend(orient="top"),
                        scale=alt.Scale(range=["#e66101", "#5e3c99", "#1b7837", "#888888"])),
        tooltip=_tips(("choice", "number", "value", "low", "high")))
    lines = base.mark_line(point=True).encode(y=alt.Y("value:Q", title=y))
    bands = base.mark_area(opacity=.15).encode(y=alt.Y("low:Q", title=y), y2="high:Q")
    return _finished(alt.layer(*([bands] if known else []), lines).properties(width=420, height=220))


def _tips(names):
    quantities = ("value", "low", "high", "p", "q", "weight")
    return [alt.Tooltip(f"{name}:Q", format=".4") if name in quantities else alt.Tooltip(f"{name}:N")
            for name in names]


def _finished(chart) -> dict[str, Any]:
    return chart.to_dict(validate=True)

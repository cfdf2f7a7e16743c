"""A report as data, before anything is drawn: a page of sections, whose parts are texts, tables and figures.

`markdown` renders it for the terminal and for a text file, `mediation.reports.html` for a browser.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Cell(NamedTuple):
    """What a table shows, and the number that it is sorted by."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Text:
    """A paragraph; `**bold**` and `` `code` `` are marked."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Code:
    """Commands, a line each."""

    text: str


@dataclass(frozen=True)
class Table:
    """`rows`: of cells, as many as there are columns."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picker:
    """A choice of examples above a figure.

    `data`: the figure's data set that the choice replaces; `column`: of that data set, which takes the
    values of an example; `labels`, `values` [N, rows of the data set]: of N examples.
    """

    data: str
    column: str
    labels: Sequence[str]
    values: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Figure:
    """A chart and what it is for.

    `question`: that it answers; `finding`: a sentence on what was found, from the data; `alt`: what is drawn,
    for who cannot see it; `chart`: a Vega-Lite specification, whose data sets are `data`: {name: {column:
    values}}; `canvas`: for many marks.
    """

    question: str
    finding: str
    alt: str
    chart: dict[str, Any]
    data: dict[str, dict[str, list[Any]]]
    canvas: bool = False
    picker: Picker | None = None


Part = Text | Bullets | Code | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading, and what stands under it."""

    heading: str
    parts: Sequence[Part]


@dataclass(frozen=True)
class Page:
    """`lead`: what it is about, in a sentence or two; `findings`: what was found, a sentence each, by what it
    is of ("" where all are of one study)."""

    title: str
    lead: str
    findings: Mapping[str, Sequence[str]]
    sections: Sequence[Section] = field(default_factory=list)


def text(value: Any) -> Cell:
    """A cell that is sorted by its text."""
    return Cell(str(value))


def number(value: float, form: str = ".4g") -> Cell:
    """A cell with a number; what is none, such as a share of nothing, is a dash, and comes last."""
    return Cell(f"{value:{form}}", float(value)) if np.isfinite(value) else Cell("-", None)


def with_interval(value: float, low: float, high: float, form: str = ".4g") -> str:
    """value [low, high]; the value alone where the interval is not known."""
    return f"{value:{form}}" + ("" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]")


def estimate(value: float, low: float, high: float, form: str = ".4g") -> Cell:
    """A cell with a number and its 95% interval; a dash as in `number`."""
    known = np.isfinite(value)
    return Cell(with_interval(value, low, high, form), float(value)) if known else Cell("-", None)


def count(number: int | np.integer, noun: str, plural: str | None = None) -> str:
    """1 prompt, 2 prompts."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def plain(text: str) -> str:
    """A text without its marks, for the terminal."""
    return text.replace("**", "").replace("`", "")


def found(page: Page) -> list[str]:
    """The findings, numbered throughout, under what they are of."""
    lines, number = [], 0
    for about, sentences in page.findings.items():
        lines += [f"{about}:"] if about else []
        lines += [f"{number + place}. {each}" for place, each in enumerate(sentences, 1)]
        number += len(sentences)
    return lines


def markdown(page: Page, rows: int | None = None) -> str:
    """The page as text; a figure is its question and its finding, a table has its first `rows`."""
    lines = [f"# {page.title}", "", page.lead, ""]
    if page.findings:
        lines += ["## What was found", "", *found(page), ""]
    for section in page.sections:
        lines += [f"## {section.heading}", ""]
        for part in section.parts:
            lines += [*_markdown_of(part, rows), ""]
    return "\n".join(lines)


def _markdown_of(part, most):
    match part:
        case Text(text):
            return [text]
        case Bullets(items):
            return [f"- {item}" for item in items]
        case Code(text):
            return ["```", text, "```"]
        case Figure(question=question, finding=finding):
            return [f"**{question}** {finding}"]
        case Table(caption, columns, rows):
            shown = rows[:most]
            return [f"{caption}" + (f" (here the first {most})" if len(shown) < len(rows) else "") + ":", "",
                    "| " + " | ".join(columns) + " |", "|" + len(columns) * " --- |",
                    *("| " + " | ".join(_cell(cell.text) for cell in row) + " |" for row in shown)]


def _cell(text):
    """A text in a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")

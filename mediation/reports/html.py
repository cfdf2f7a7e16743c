"""A page as one HTML file that needs nothing else: charts, data and the library that draws them are in it.

Texts of the page, also those from files of stimuli, are escaped; nothing is loaded from elsewhere, which the
page's own content policy forbids.
"""

import hashlib
import json
import re
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import jinja2
import vl_convert
from markupsafe import Markup, escape

from mediation.errors import InputError
from mediation.files.assets import cache_folder
from mediation.files.storage import whole_file
from mediation.reports.page import Figure, Page, markdown

HERE = Path(__file__).parent
VEGA_LITE = "6.4"  # that Altair's specifications are of


def html(page: Page) -> str:
    """The page, complete."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True)
    environment.filters |= {"marked": _marked, "anchor": _anchor}
    figures = [part for section in page.sections for part in section.parts if isinstance(part, Figure)]
    numbers = {id(figure): number for number, figure in enumerate(figures)}
    data = [{"chart": figure.chart, "data": figure.data, "canvas": figure.canvas,
             "picker": None if figure.picker is None else {
                 "data": figure.picker.data, "column": figure.picker.column, "values": figure.picker.values}}
            for figure in figures]
    return environment.get_template("page.html.jinja").render(
        page=page, number_of=lambda figure: numbers[id(figure)], kind=lambda part: type(part).__name__,
        bundle=Markup(_bundle()) if figures else "", data=Markup(_json(data)),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup((HERE / "page.js").read_text(encoding="utf-8")))


def write_page(page: Page, path: Path) -> tuple[Path, Path]:
    """The page as text beside `path` (.md), and as HTML there; returns both paths."""
    text = path.with_suffix(".md")
    for one, content in ((text, markdown(page)), (path, html(page))):
        with whole_file(one) as file:
            file.write(content)
    return text, path


def chart_library(folder: Path) -> str:
    """Vega, Vega-Lite and vega-embed. They take seconds to put together, so they are kept in this folder,
    behind a line with their hash: a file that was damaged is made again."""
    path = folder / f"vega-lite-{VEGA_LITE}-vl-convert-{version('vl-convert-python')}.js"
    with suppress(OSError, ValueError):  # not there, or damaged
        line, _, kept = path.read_bytes().decode().partition("\n")
        if line == _hash_line(kept):
            return kept
    bundle = vl_convert.javascript_bundle(vl_version=VEGA_LITE)  # type: ignore[call-arg]
    bundle = bundle.replace("</script", "<\\/script")  # which would end the script that holds it
    with suppress(OSError, InputError), whole_file(path) as file:  # a cache costs time only
        file.write(f"{_hash_line(bundle)}\n{bundle}")
    return bundle


def _hash_line(text):
    return f"// sha256 {hashlib.sha256(text.encode()).hexdigest()}"


@cache
def _bundle():
    return chart_library(cache_folder() / "charts")


def _json(data):
    """JSON that cannot end the script element that it stands in."""
    return (json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            .replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _marked(text):
    """Escaped, with `code` and **bold**."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", marked))


def _anchor(heading):
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"



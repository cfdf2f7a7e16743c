"""The page in a real browser: Chromium, driven by Playwright; skipped where it is not installed."""

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from mediation.notebook import mediate
from mediation.stimuli.stimulus_files import Stimulus
from tests.helpers import write_stimuli

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
from playwright.sync_api import sync_playwright

WORDS = ["nurse", "teacher", "captain", "farmer", "baker", "writer", "doctor"]
STIMULI = [Stimulus(word, "The {} said that", (word, "man"), ("she", "he"), "short" if number % 2 else "long")
           for number, word in enumerate(WORDS)]
STRANGE = [Stimulus("<script>alert(1)</script>", "The {} said that", ("nurse", "man"), ("she", "he"),
                    "</script><script>alert(2)</script>"),
           Stimulus("long", "The {} said that", ("nurse", "man"), ("she", "he"), "🙂"),
           Stimulus("right-to-left", "שלום The {} said that", ("nurse", "man"), ("she", "he"), "שלום")]


@pytest.fixture(scope="module")
def browser():
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def report(toy_checkpoint, tmp_path_factory):
    """Path of the page about a toy."""
    folder = tmp_path_factory.mktemp("report")
    result = mediate(str(toy_checkpoint("llama")), write_stimuli(folder, STIMULI), ("residuals", "heads"),
                     multi_token="last", progress=False)
    return result.report(folder / "page.html")


@pytest.fixture
def opened(browser):
    """Opens a page; at the end it must have loaded nothing and complained of nothing."""
    contexts, complaints, requests = [], [], []

    def open_page(path, width=1440, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
        page.on("request", lambda request: requests.append(request.url))
        page.goto(Path(path).as_uri())
        page.wait_for_selector("body[data-drawn]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints and all(url.startswith("file:") for url in requests), (complaints, requests)
    assert len(requests) == len(contexts)


def heads_of(page):
    """The section on attention heads."""
    return page.locator("section", has=page.get_by_role("heading", name="attention heads"))


@pytest.mark.parametrize("width, scheme", [(1440, "light"), (390, "dark")])
def test_it_fits_the_screen_and_every_chart_is_drawn(opened, report, width, scheme):
    page = opened(report, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    charts = page.locator(".chart")
    assert charts.count() > 4
    assert page.locator(".chart svg, .chart canvas").count() == charts.count()
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_pointer_shows_the_number_of_the_table(opened, report):
    page = opened(report)
    section = heads_of(page)
    section.locator(".chart svg .mark-rect path").nth(3).hover()
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    keys, values = (tip.locator(f"td.{name}").all_inner_texts() for name in ("key", "value"))
    told = dict(zip((key.rstrip(":") for key in keys), values))
    row = section.locator("tbody tr", has=page.get_by_text(told["unit"], exact=True)).first
    assert float(row.locator("td").nth(1).get_attribute("data-value")) == pytest.approx(
        float(told["value"].replace("−", "-")), rel=1e-3)


def test_a_click_shows_the_examples_of_a_unit(opened, report):
    page = opened(report)
    chart = heads_of(page).locator(".chart").first
    before = chart.inner_html()
    chart.locator(".mark-rect path").nth(5).click()
    page.wait_for_function("([element, before]) => element.innerHTML !== before",
                           arg=[chart.element_handle(), before])


def test_tables_sort_with_the_keyboard(opened, report):
    page = opened(report)
    table = heads_of(page).locator("table")
    button = table.get_by_role("button", name=re.compile("^indirect effect"))

    def values():
        cells = table.locator("tbody td:nth-child(2)").all()
        return [float(cell.get_attribute("data-value")) for cell in cells]

    button.focus()
    page.keyboard.press("Enter")
    assert values() == sorted(values())
    assert table.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    page.keyboard.press("Enter")
    assert values() == sorted(values(), reverse=True)


def test_the_example_that_is_picked_is_the_one_that_is_drawn(opened, report):
    page = opened(report)
    section = page.locator("section", has=page.get_by_role("heading", name="one example"))
    pickers, charts = section.locator("select"), section.locator(".chart")
    before = [chart.inner_html() for chart in charts.all()]
    pickers.first.select_option(index=2)
    for chart, html in zip(charts.all(), before):
        page.wait_for_function("([element, before]) => element.innerHTML !== before",
                               arg=[chart.element_handle(), html])
    assert {picker.input_value() for picker in pickers.all()} == {"2"}


def test_what_is_printed_is_complete(opened, report):
    page = opened(report)
    page.emulate_media(media="print")
    heights = page.evaluate(
        "Array.from(document.querySelectorAll('.scroll')).map(e => [e.scrollHeight, e.clientHeight])")
    assert heights and all(whole <= shown + 1 for whole, shown in heights)
    assert page.pdf().startswith(b"%PDF")


def test_texts_of_stimuli_are_texts(opened, toy_checkpoint, tmp_path, run_script):
    """Scripts, right-to-left text and emoji; one of 2,000 characters is put in afterwards, the toy takes 64
    tokens."""
    code, _, error = run_script("mediate.py --mediators residuals --multi_token last",
                                write_stimuli(tmp_path, STRANGE), "-model", toy_checkpoint("llama"),
                                "-out_dir", tmp_path / "out")
    assert code == 0, error
    (path,) = (tmp_path / "out").glob("total_effects_*.csv")
    table = pd.read_csv(path)
    table.loc[1, "base_string"] = 250 * "so long " + 500 * "x"
    table.to_csv(path, index=False)
    code, _, error = run_script("make_report.py", tmp_path / "out")
    assert code == 0, error
    for width in (1440, 390):
        page = opened(tmp_path / "out" / "report.html", width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        text = page.locator("body").inner_text()
        assert "</script><script>alert(2)</script>" in text and "שלום" in text and "🙂" in text
        assert 500 * "x" in text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(opened, report, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-core is not installed")
    page = opened(report, scheme=scheme)
    # axe-core is put in as text, which the page's own policy would not let it load
    found = axe.Axe().run(page)
    serious = [each["id"] for each in found.response["violations"]
               if each["impact"] in ("serious", "critical")]
    assert not serious, found.generate_report()

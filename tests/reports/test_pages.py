"""The page of a report: what it says, from every study's files, and what its file holds."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from mediation.files.storage import python_command
from mediation.reports import charts, html, page
from mediation.reports.page import Bullets, Cell, Code, Figure, Page, Section, Table, Text
from mediation.reports.study_page import study_page
from mediation.results import study_results
from mediation.results.model_results import sources_in
from mediation.stimuli import professions
from mediation.stimuli.stimulus_files import Stimulus
from tests.helpers import assert_refused, write_stimuli

STRANGE = {"script": "</script><script>alert(1)</script>", "long": 200 * "ten chars ", "hebrew": "שלום עולם",
           "emoji": "🙂🙃", "markdown": "a|b `c` **d**\n# e"}


def small_page(content):
    """One of every part, with a text in all places."""
    chart = {"mark": "point", "data": {"name": "rows"}, "encoding": {"x": {"field": "x", "type": "nominal"}}}
    return Page(content, content, {content: [content]}, [Section(content, [
        Text(content), Bullets([content]), Code(content), Table(content, [content], [[Cell(content)]]),
        Figure(content, content, content, chart, {"rows": {"x": [content]}})])])


@pytest.mark.parametrize("content", STRANGE.values(), ids=STRANGE)
def test_texts_are_shown_as_texts(content):
    """Whatever a stimulus holds, it ends no element and begins none."""
    found = html.html(small_page(content))
    plain = html.html(small_page("plain"))
    assert found.count("<script") == plain.count("<script") and "alert(1)<" not in found
    (data,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', found, re.DOTALL)
    assert json.loads(data)[0]["data"]["rows"]["x"] == [content]
    text = page.markdown(small_page(content))
    assert f"# {content}" in text and "| --- |" in text


def test_nothing_is_loaded_from_elsewhere():
    found = html.html(small_page("plain"))
    markup = re.sub(r"<script.*?</script>", "", found, flags=re.DOTALL)
    assert "default-src 'none'" in markup and not re.search(r'(src|href)="(?!#)', markup)


def test_a_damaged_library_of_charts_is_made_again(tmp_path):
    library = html.chart_library(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:len(whole) // 2], whole[:-1], b"", whole.replace(b"vega", b"Vega", 1)):
        path.write_bytes(damaged)
        assert html.chart_library(tmp_path) == library and path.read_bytes() == whole
    changed = path.stat().st_mtime_ns
    assert html.chart_library(tmp_path) == library and path.stat().st_mtime_ns == changed, "it is kept"


def test_numbers_of_a_page_are_numbers_of_json():
    """NaN is none: a browser would stop at it."""
    figure = Figure("q", "f", "a", {}, {"rows": {"x": [float("nan")]}})
    bad = Page("t", "l", {}, [Section("s", [figure])])
    with pytest.raises(ValueError, match="JSON"):
        html.html(bad)


def test_cells():
    assert page.number(np.nan) == Cell("-") and page.number(.5) == Cell("0.5", .5)
    assert page.estimate(1.0, .5, 2.0) == Cell("1 [0.5, 2]", 1.0)
    assert page.estimate(1.0, np.nan, np.nan) == Cell("1", 1.0)
    assert page.count(1, "example") == "1 example"
    assert page.count(2000, "stimulus", "stimuli") == "2,000 stimuli"


@pytest.fixture(scope="module")
def published(shared, tmp_path_factory):
    """The published dev files of two sizes of GPT-2, and of one with random weights."""
    folder, theirs = tmp_path_factory.mktemp("published"), shared / "published" / "winobias_data"
    for model in ("distilgpt2", "gpt2", "gpt2_random"):
        shutil.copy(theirs / f"attention_intervention_{model}_filtered_dev.json", folder)
    return folder


@pytest.fixture(scope="module")
def page_of_published(published):
    rated = professions.load()
    return study_page([study_results.read(source, rated) for source in sources_in(published)])


def test_a_page_of_published_files(page_of_published):
    """It answers which heads, how sure, whether it grows with size, and what is missing."""
    text = page.markdown(page_of_published)
    assert re.search(r"In gpt2, the mean total effect is \*\*0.209 \[0.17\d, 0.24\d\]\*\*, over 87 examples",
                     text)
    assert "gpt2: Of the attention heads (their weights), **5-8** has the strongest indirect effect" in text
    assert re.search(r"Along distilgpt2.* the total effect changes by \*\*.*per doubling", text)
    assert "no manifest" in text and "29 more: the weakest 25% of the others" in text
    assert f"{python_command()} attention_intervention_subset_selection.py -model" in text
    assert "-out_dir selection --data winobias\n" in text


def test_names_in_a_wide_map_do_not_lie_over_each_other():
    """Of two units side by side the stronger one is named, in another layer both are; at the right end the
    name stands before its cell."""
    units = pd.DataFrame({"layer": [0, 0, 0, 1], "number": [5, 9, 290, 5], "rank": [1, 2, 3, 4],
                          "value": [4.0, 3.0, 2.0, 1.0], "unit": ["0-5", "0-9", "0-290", "1-5"]})
    others = pd.DataFrame({"layer": 2, "number": range(300), "rank": 99, "value": 0.0, "unit": "2-0"})
    chart = charts.unit_map(pd.concat([units, others]), "number", "neuron", "layer", linked=False)
    named = {layer["mark"]["align"]: layer["transform"][0]["filter"]["oneOf"]
             for layer in chart["layer"] if "transform" in layer}
    named = {side: [unit for unit in units if unit != "2-0"] for side, units in named.items()}
    assert named == {"left": ["0-5", "1-5"], "right": ["0-290"]}
    units["number"] = [250, 9, 290, 5]  # one name to the right of its cell, one to the left of its own
    chart = charts.unit_map(pd.concat([units, others]), "number", "neuron", "layer", linked=False)
    named = [unit for layer in chart["layer"] if "transform" in layer
             for unit in layer["transform"][0]["filter"]["oneOf"]]
    assert {"0-5", "0-9"} <= {*named} and "0-290" not in named
    places = pd.concat([units, others]).assign(number=lambda rows: rows["number"].astype(str))
    assert charts.unit_map(places, "number", "position", "layer", linked=False)


def test_figures_show_the_numbers_of_the_tables(page_of_published):
    for section in page_of_published.sections:
        if "Which attention heads" not in section.heading:
            continue
        figure, table = (next(part for part in section.parts if isinstance(part, kind))
                         for kind in (Figure, Table))
        cells = figure.data["cells"]
        shown = {row[0].text: row[1].value for row in table.rows}
        assert len(shown) == len(cells["unit"])
        for unit, value in zip(cells["unit"], cells["value"]):
            assert shown[unit] == pytest.approx(value, rel=1e-4)
        # the mean of the examples that a click shows
        effects = np.array(figure.data["effects"]["value"]).reshape(-1, len(shown))
        np.testing.assert_allclose(effects.mean(axis=0), cells["value"], rtol=1e-3, atol=1e-6)


def test_the_question_of_every_figure_ends_in_a_question_mark(page_of_published):
    figures = [part for section in page_of_published.sections for part in section.parts
               if isinstance(part, Figure)]
    assert figures
    for figure in figures:
        assert figure.question.endswith("?") and figure.finding.endswith(".") and figure.alt.endswith(".")


def test_the_script_writes_a_page_of_several_folders(published, tmp_path, run_script):
    code, printed, error = run_script("make_report.py", published, "-out_dir", tmp_path)
    assert code == 0 and f"wrote {tmp_path / 'report.html'}" in printed, error
    assert "What was found:\n1. Along distilgpt2, gpt2 the total effect changes by" in printed
    assert "**" not in printed
    code, _, error = run_script("make_report.py", published, "gpt2", "-out_dir", tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert code == 0 and "Causal mediation analysis of gpt2\n" in text, error
    # its own command again; others' models come along where they are asked for
    assert f"make_report.py {published} gpt2 -out_dir {tmp_path}\n" in text
    assert f"make_report.py {published} OTHER_OUT_DIR -out_dir {tmp_path}\n" in text
    assert f"make_report.py {published} selection gpt2 -out_dir {tmp_path}\n" in text


@pytest.mark.parametrize("arguments, words", [
    ([], ["PATH"]), (["missing"], ["missing is not there"]),
    (["{folder}", "gpt3"], ["no results of 'gpt3'", "another model"]),
])
def test_what_has_no_page(published, tmp_path, run_script, arguments, words):
    code, _, error = run_script("make_report.py", *(each.format(folder=published) for each in arguments),
                                "-out_dir", tmp_path / "out")
    assert code == 2 and all(word in error for word in words), error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("total", [0.0, None])
def test_shares_of_a_total_effect_that_may_be_0_are_not_told(published, tmp_path, run_script, total):
    path = tmp_path / "attention_intervention_gpt2_filtered_dev.json"
    content = json.loads((published / path.name).read_text())
    for number, entry in enumerate(content["results"]):
        ratio = (1 + entry["total_effect"]) ** (-1) ** number  # the mean is near 0
        entry["total_effect"] = ratio - 1 if total is None else total
        entry["odds_alt"] = entry["odds_base"] * (1 + entry["total_effect"])
    path.write_text(json.dumps(content))
    code, _, error = run_script("make_report.py", path, "-out_dir", tmp_path / "page")
    text = (tmp_path / "page" / "report.md").read_text()
    assert code == 0 and ("total effect is **0 [0, 0]**" in text) == (total == 0), error
    assert "inf" not in text and "of it is gone" not in text and "of the total effect," not in text
    assert re.search(r"\| proportion mediated \| share of the total \| gpt2 \| all \| - \|", text)
    told = r"(\d+) of (\d+) examples by the filter: their odds ratio is not above 1, .*; (\d+) more"
    not_aligned, loaded, weak = map(int, re.search(told, text).groups())
    assert loaded - not_aligned - weak == len(content["results"])
    assert loaded - not_aligned == content["num_examples_aligned"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("format", ["csv", "parquet"])
def test_tables_of_both_formats_have_a_page_and_damaged_ones_are_named(toy_checkpoint, tmp_path, run_script,
                                                                       format):
    stimuli = write_stimuli(tmp_path, [Stimulus(str(number), "The {} said that", (word, "man"), ("she", "he"))
                                       for number, word in enumerate(("nurse", "teacher"))])
    command = f"mediate.py {stimuli} --mediators mlps,heads --format {format} -out_dir {tmp_path / 'mine'}"
    assert run_script(command, "-model", toy_checkpoint("gpt2"))[0] == 0
    code, output, error = run_script("make_report.py", tmp_path / "mine", "-out_dir", tmp_path / "page")
    assert code == 0 and "Of the MLPs" in output, error
    (summary,) = (tmp_path / "mine").glob(f"*_mlps_summary.{format}")
    whole = summary.read_bytes()
    damages = {"cannot be read as": b"\xff\xfe\x00"}
    if format == "csv":
        damages |= {"EOF inside string": whole + b'"all,',
                    "column 'rank' is missing": whole.replace(b"rank,", b"order,", 1)}
    for words, damaged in damages.items():
        summary.write_bytes(damaged)
        outcome = run_script("make_report.py", tmp_path / "mine", "-out_dir", tmp_path / "page")
        assert_refused(outcome, summary.name, words)

"""docs/tutorial.ipynb runs as it stands, on its first two comparisons, and what it says of them holds."""

import json
import re
import sys

import pandas as pd
import pytest

from mediation.errors import InputError
from mediation.notebook import mediate
from tests.helpers import PROJECT, undrawn_figures

NOTEBOOK = json.loads((PROJECT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
MACHINE = re.compile(r"/(?:home|root|tmp|work|Users)/")


def run_cells():
    """The names that the notebook's cells define when they are run in order, on two comparisons.

    Of the figures one is drawn later, on the same results.
    """
    defined = {"__name__": "tutorial"}
    with (pytest.MonkeyPatch.context() as patch, pd.option_context("display.float_format", None),
          undrawn_figures()):
        patch.setattr(sys, "path", list(sys.path))
        for cell in CELLS:
            exec(compile("".join(cell["source"]), "<a cell of tutorial.ipynb>", "exec"), defined)
            if "stimuli" not in defined and "PAIRS" in defined:
                del defined["PAIRS"][2:]
    return defined


def test_what_the_notebook_says_holds_when_it_is_run(smollm2, subtests):
    """One test, for the run takes a minute: tests of their own may be run by several processes."""
    names = run_cells()
    with subtests.test("the country is at its token before block 23 and at the last behind"):
        assert len(names["maps"].total_effects) == 2
        residuals, attentions = names["residuals"], names["attentions"]
        country, last = str(names["COUNTRY"]), str(names["LAST"])
        assert (residuals.loc[:23, country] > 0.9).all() and (residuals.loc[:23, last].abs() < 0.1).all()
        assert (residuals.loc[24:, country].abs() < 0.1).all() and (residuals.loc[24:, last] > 0.75).all()
        assert attentions.stack().idxmax() == (23, last)
    with subtests.test("head 4 of block 23 carries it by its values and not by its weights"):
        table = names["by_head"]
        strongest = table[table["effect"] == "indirect"].groupby("mediator", sort=False).head(1)
        found = strongest.set_index("mediator")
        assert (found.loc["head_outputs", "layer"], found.loc["head_outputs", "unit"]) == (23, 4)
        assert (found.loc["values", "layer"], found.loc["values", "unit"]) == (23, 1)
        assert found.loc[["head_outputs", "values"], "share"].min() > 0.75
        assert abs(found.loc["heads", "share"]) < 0.1
    with subtests.test("ablating the head costs the capital the most"):
        for ablated in ("zero", "resample"):
            strongest = names[ablated].summary().iloc[0]
            assert (strongest["layer"], strongest["unit"]) == (23, 4) and strongest["mean"] > 1
    with subtests.test("a result tells the total effect with its interval and a figure by name"):
        maps = names["maps"]
        total, effects = maps.total(), maps.total_effects["log_effect"]
        # draws of two comparisons: one of them twice, or both
        assert total.tolist() == pytest.approx([effects.mean(), effects.min(), effects.max()])
        assert f"{total['mean']:.4g} [{total['low']:.4g}, {total['high']:.4g}] (log odds ratio)" in repr(maps)
        assert "residuals, indirect: strongest layer" in repr(maps) and " at position 4: " in repr(maps)
        picture = maps.picture("residuals")
        assert picture.startswith("<?xml")
        assert repr(picture) == f"<Picture, {len(picture)} characters of SVG>"
        assert picture == maps.picture("residuals"), "the same numbers are the same figure"
        with pytest.raises(InputError, match="dtype 'half' is unknown"):
            mediate("smollm2-135m", names["stimuli"], dtype="half")


def test_the_stored_outputs_are_of_one_whole_run_and_name_no_machine():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"execute_result", "stream"}
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 4
    assert not MACHINE.search(json.dumps(outputs))
    assert not any("execution" in cell["metadata"] for cell in CELLS)


def test_a_result_tells_which_comparisons_were_left_out(toy_model, tmp_path):
    stimuli = [{"id": word, "base": "The {} said that", "substitutes": [word, "man"],
                "candidates": ["he", "she"]} for word in ("nurse", "phlebotomist")]
    result = mediate(toy_model("llama"), stimuli, "attentions", progress=False)
    told = "attentions: 1 of 2 comparisons left out: prompts of different numbers of tokens"
    page = result.report(tmp_path / "page.html").read_text(encoding="utf-8")
    assert told in repr(result) and told in page
    assert set(result.summary()["clusters"]) == {1}

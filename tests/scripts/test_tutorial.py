"""docs/tutorial.ipynb runs as it stands, on its first two comparisons, and what it says of them holds."""

import json
import re
import sys

import pandas as pd
import pytest

from tests.helpers import PROJECT

NOTEBOOK = json.loads((PROJECT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
CELLS = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
MACHINE = re.compile(r"/(?:home|root|tmp|work|Users)/")


@pytest.fixture(scope="module")
def names(smollm2):
    """The names that the notebook's cells define when they are run in order, on two comparisons."""
    defined = {"__name__": "tutorial"}
    with pytest.MonkeyPatch.context() as patch, pd.option_context("display.float_format", None):
        patch.setattr(sys, "path", list(sys.path))
        for cell in CELLS:
            exec(compile("".join(cell["source"]), "docs/tutorial.ipynb", "exec"), defined)
            if "stimuli" not in defined and "PAIRS" in defined:
                del defined["PAIRS"][2:]
    return defined


def test_the_country_is_at_its_token_before_block_23_and_at_the_last_behind(names):
    assert len(names["maps"].total_effects) == 2
    residuals, attentions = names["residuals"], names["attentions"]
    country, last = str(names["COUNTRY"]), str(names["LAST"])
    assert (residuals.loc[:23, country] > 0.9).all() and (residuals.loc[:23, last].abs() < 0.1).all()
    assert (residuals.loc[24:, country].abs() < 0.1).all() and (residuals.loc[24:, last] > 0.75).all()
    assert attentions.stack().idxmax() == (23, last)


def test_head_4_of_block_23_carries_it_by_its_values_and_not_by_its_weights(names):
    table = names["by_head"]
    strongest = table[table["effect"] == "indirect"].groupby("mediator", sort=False).head(1)
    found = strongest.set_index("mediator")
    assert (found.loc["head_outputs", "layer"], found.loc["head_outputs", "unit"]) == (23, 4)
    assert (found.loc["values", "layer"], found.loc["values", "unit"]) == (23, 1)
    assert found.loc[["head_outputs", "values"], "share"].min() > 0.75
    assert abs(found.loc["heads", "share"]) < 0.1


def test_ablating_the_head_costs_the_capital_the_most(names):
    for ablated in ("zero", "resample"):
        strongest = names[ablated].summary().iloc[0]
        assert (strongest["layer"], strongest["unit"]) == (23, 4) and strongest["mean"] > 1


def test_the_stored_outputs_are_of_one_whole_run_and_name_no_machine():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    outputs = [output for cell in CELLS for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"execute_result", "stream"}
    assert sum("image/svg+xml" in output.get("data", {}) for output in outputs) == 4
    assert not MACHINE.search(json.dumps(outputs))
    assert not any("execution" in cell["metadata"] for cell in CELLS)

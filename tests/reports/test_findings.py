"""What a page says of units: sentences on tables whose answer is known."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mediation.effects.model_comparison import Measured
from mediation.reports.unit_parts import estimated, plural, strongest_in_words, unlike
from mediation.results.model_results import OWN, Source
from mediation.results.study_results import StudyResults
from mediation.stimuli.stimulus_files import Stimulus
from tests.helpers import write_stimuli


def units(means, p, comparisons=13, clusters=13):
    """Rows of a summary: heads of layer 0."""
    means = np.asarray(means, float)
    rows = {"mediator": "heads", "group": "all", "effect": "indirect", "layer": 0,
            "unit": pd.array(range(len(means)), dtype="Int64"), "position": "", "mean": means,
            "low": means - .01, "high": means + .01, "share": means, "share_low": means - .01,
            "share_high": means + .01, "in_top": 1.0, "comparisons": comparisons, "clusters": clusters,
            "p": p, "q": np.nan, "rank": pd.Series(-np.abs(means)).rank(method="min")}
    return pd.DataFrame(rows)


def test_the_strongest_unit_is_one_that_was_called():
    said = strongest_in_words("heads", units([.1, .3, -.2], [.01, 1.0, .04]), 13)
    assert "2 of 3 have an indirect effect other than 0 at a family-wise error of 0.05" in said
    assert "the strongest of them is **0-2**: **-0.2 [-0.21, -0.19]**" in said and "examples)" not in said
    assert "0-1 has a larger mean, 0.3 [0.29, 0.31], and is not called (family-wise p = 1)" in said
    assert "draws" not in said
    both = strongest_in_words("heads", units([.1, .3, -.2], [.01, .08, .04]).assign(q=.0075), 13)
    assert "(family-wise p = 0.08, false discovery rate q = 0.0075)" in both
    plain = strongest_in_words("heads", units([.1, .3, -.2], [.5, .01, .6]), 13)
    assert "**0-1** has the strongest indirect effect: **0.3 [" in plain and "larger mean" not in plain
    assert "1 of 3 has an indirect effect other than 0 at a family-wise error of 0.05" in plain


def test_where_none_is_called_none_is_named_first():
    said = strongest_in_words("heads", units([.1, .3, -.2], [.3, .06, 1.0]), 13, "gpt2")
    assert said.startswith("gpt2: Of 3 attention heads (their weights) **none** can be said to have an")
    assert "13 clusters cannot tell, which does not mean that none has" in said
    assert "The largest mean is that of 0-1: **0.3" in said and "family-wise p = 0.06" in said
    assert "discovery" not in said
    some = strongest_in_words("heads", units([.1, .3, -.2], [.3, .06, 1.0]).assign(q=[.02, .01, .6]), 13)
    assert "none has. 2 have one at a false discovery rate of 0.05. The largest" in some


@pytest.mark.parametrize("clusters, few", [(1, True), (5, True), (6, False), (np.nan, False)])
def test_clusters_that_are_too_few_to_test(clusters, few):
    said = strongest_in_words("heads", units([.1, .3], np.nan, clusters=clusters), 13)
    assert "**0-1** has the strongest" in said
    assert ("tests of units need 6 clusters" in said) == few


def test_fewer_examples_than_the_study_has_are_said():
    assert "(over 13 of the 2,142 examples)" in strongest_in_words("heads", units([.1], [.01]), 2142)
    assert "nan" not in strongest_in_words("heads", units([0.0, 0.0], 1.0), 2142)
    of_2020 = units([.1, .2], np.nan).drop(columns=["comparisons", "clusters"])
    assert "examples)" not in strongest_in_words("heads", of_2020, 2142)


def test_what_is_so_by_construction_is_said():
    """The word embedding of the word that differs has all of the effect."""
    rows = units([1.0, .3], [.01, .02]).assign(mediator="mlps", unit=pd.NA, layer=[0, 1], position="3")
    said = strongest_in_words("mlps", rows, 13, layers="layer (0 = word embedding)", tokens={"3": " nurse"})
    assert "**0 (the word embedding), position 3 (nurse)**" in said and "so by construction" in said
    assert "by construction" not in strongest_in_words("heads", units([.1, .3], [.01, .02]), 13)


def test_positions_that_are_not_one_place():
    alike = {"0": "The", "1": " nurse/ captain/...", "2": " said"}
    assert unlike(list(alike), alike) == "" and unlike(["0"], {"0": "/"}) == ""
    assert "at 2 of 3 the examples have different ones" in unlike(list(alike), alike | {"2": " said/ who"})


def test_how_far_estimates_were_off_is_of_their_own_mediator():
    """Neither of other mediators of the folder, nor of runs without estimates."""
    def run(method, **deviations):
        return {"settings": {"method": method},
                "files": {f"{mediator}.csv": {"mediator": mediator, "sweep_seconds": 1.0,
                                              "largest_deviation_from_full_passes": deviation}
                          for mediator, deviation in deviations.items()}}

    runs = [run("exact", mlps=9.0), run("gradient", values=.25, head_outputs=2.0)]
    measured = Measured("stimuli", "toy", ["a"], {"stimuli": ["a"]}, [""], np.zeros(1))
    source = Source(OWN, Path("none"), "toy")
    results = StudyResults(source, measured, pd.DataFrame(), [], {}, {}, runs, [], [])
    assert "off by up to 0.25 in a log-probability" in estimated(results, "values")
    assert "off by up to 2 in a log-probability" in estimated(results, "head_outputs")
    assert estimated(results, "mlps") == ""


def test_mediators_in_words():
    assert plural("mlps_each_zero_ablation") == "MLPs (each position, zero ablation)"
    assert plural("head_outputs") == "head outputs"


@pytest.mark.usefixtures("undrawn")
def test_a_page_says_what_a_reader_might_take_for_granted(toy_checkpoint, tmp_path, run_script):
    """Candidates exchanged, too few clusters, positions that mix words, mediators that were not run."""
    model = toy_checkpoint("gpt2")
    words = Stimulus("1", "The {} said that", ("nurse", "man"), ("she", "he"))
    other = Stimulus("2", "Then the {} said that", ("nurse", "man"), ("she", "he"))

    def page(*stimuli, out, options):
        path = write_stimuli(tmp_path, stimuli)
        code, printed, error = run_script(f"mediate.py {path} -out_dir {tmp_path / out} {options}",
                                          "-model", model)
        assert code == 0, error
        return printed

    either = [page(Stimulus("1", "The {} said that", ("nurse", "man"), candidates), out=candidates[0],
                   options="--mediators mlps") for candidates in (("she", "he"), ("he", "she"))]
    warned = ["were candidates or substitutes meant the other way round?" in text for text in either]
    assert sorted(warned) == [False, True]
    for text in either:
        assert "of the mediators only mlps were run" in text and "sets of units are chosen in the two" in text
        assert "Does it grow with model size?" in text and "OTHER_OUT_DIR" in text
    mirrored = [Stimulus(str(number), "The {} said that", pair, ("she", "he"))
                for number, pair in enumerate((("nurse", "man"), ("man", "nurse"), ("teacher", "man")))]
    text = page(*mirrored, out="mirrored", options="--mediators mlps")
    assert "2 of these examples are each other's reverse" in text
    text = page(*(Stimulus(f"{word} {number}", "The {} said that", (word, "man"), pair)
                  for word in ("nurse", "teacher", "doctor")
                  for number, pair in enumerate((("she", "he"), ("he", "she")))),
                out="exchanged", options="--mediators mlps")
    totals = pd.read_csv(next((tmp_path / "exchanged").glob("total_effects_*.csv")))
    against = (totals["candidate2_base_prob"] > totals["candidate1_base_prob"]) & (totals["total_effect"] < 0)
    assert f"In **{against.sum()}** of 6 examples, such as" in text
    assert "were candidates exchanged there" in text
    assert 0 < against.sum() < 6
    path = next((tmp_path / "exchanged").glob("total_effects_*.csv"))
    totals.drop(columns=[name for name in totals if name.endswith("_prob")]).to_csv(path, index=False)
    code, text, error = run_script("make_report.py", tmp_path / "exchanged")
    assert code == 0 and "exchanged there" not in text, error
    text = page(words, other, out="each", options="--mediators mlps --positions each")
    assert "in 2 clusters (too few to rely on the interval)" in text
    assert re.search("note: the prompts have [0-9]+ to [0-9]+ tokens", text)
    assert "the examples have different ones" in text
    assert "tests of units need 6 clusters, here are" in text and "| examples |" in text
    assert "within the error budget of" in text

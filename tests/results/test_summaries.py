"""The summary of a question of one's own, against the tables that it is made from."""

import json

import numpy as np
import pandas as pd
import pytest

from mediation.effects.resampling import Resampling
from mediation.results.mediation_tables import read_table

SLOTS = [("nurse", "man"), ("teacher", "woman"), ("farmer", "woman"), ("clerk", "man"), ("driver", "woman"),
         ("cook", "man"), ("guard", "woman")]


@pytest.fixture
def stimuli(tmp_path):
    """Writes a file of stimuli, by clusters; returns the command that analyses it."""
    def write(clusters):
        rows = [{"id": str(number), "base": "The {} said that", "substitutes": list(words),
                 "candidates": ["she", "he"], "group": "first" if number < 4 else "second",
                 **({"cluster": cluster} if cluster else {})}
                for number, (words, cluster) in enumerate(zip(SLOTS, clusters))]
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    write([""] * len(SLOTS))
    return write


@pytest.fixture
def analyse(toy_checkpoint, tmp_path, run_script, undrawn):
    """Runs mediate.py on the file; returns (what it printed, table of a mediator's summary)."""
    checkpoint = toy_checkpoint("llama")

    def run(mediator="mlps", options=""):
        command = f"mediate.py {tmp_path}/mine.jsonl -model {checkpoint} -out_dir {tmp_path}/out"
        code, printed, error = run_script(f"{command} --mediators {mediator} --multi_token last {options}")
        assert code == 0, error
        return printed, pd.read_csv(tmp_path / "out" / f"{checkpoint.name}_{mediator}_summary.csv")

    return run


def test_a_summary_says_what_the_tables_say(stimuli, analyse, tmp_path):
    printed, table = analyse()
    [path] = (tmp_path / "out").glob("mlps_toy*.csv")
    effects = read_table(path)
    assert set(table["group"]) == {"all", "first", "second"}
    for (group, kind), of_kind in table[table["effect"].isin(["indirect", "direct"])].groupby(
            ["group", "effect"]):
        rows = effects if group == "all" else effects[effects["group"] == group]
        wide = np.log1p(rows.pivot(index="id", columns="layer", values=f"{kind}_effect"))
        wide = wide.rename(columns=int).sort_index(axis=1)
        np.testing.assert_allclose(of_kind["mean"], wide.mean(), rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(of_kind["effect_mean"], np.expm1(wide).mean(), rtol=1e-6, atol=1e-9)
        assert (of_kind["clusters"] == len(wide)).all()
        if group == "all":
            interval = Resampling({"stimuli": list(wide.index)}).of_means(wide.to_numpy())
            np.testing.assert_allclose(of_kind[["low", "high"]].T, interval, rtol=1e-6, atol=1e-9)
    assert "[low, high] is the 95% bootstrap interval" in printed and "## How sure" in printed


def test_the_parts_of_the_total_effect_add_up(stimuli, analyse, tmp_path):
    _, table = analyse()
    [path] = (tmp_path / "out").glob("total_effects_*.csv")
    total = np.log1p(read_table(path)["total_effect"]).mean()
    mean = table[table["group"] == "all"].pivot(index="layer", columns="effect", values="mean")
    np.testing.assert_allclose(mean["direct"] + mean["total_indirect"], total, rtol=1e-6)
    np.testing.assert_allclose(mean["indirect"] + mean["interaction"], mean["total_indirect"], atol=1e-9)
    share = table[table["group"] == "all"].pivot(index="layer", columns="effect", values="share")
    np.testing.assert_allclose(share["direct"] + share["total_indirect"], 1, rtol=1e-6)


def test_intervals_are_over_the_clusters_that_the_file_names_and_nothing_is_run_again(stimuli, analyse):
    """A cluster decides no effect: with other ones the tables stay, and the summary follows."""
    _, of_stimuli = analyse()
    stimuli(["a", "a", "b", "b", "c", "c", ""])
    printed, of_clusters = analyse()
    assert "kept:" in printed
    assert set(of_clusters[of_clusters["group"] == "all"]["clusters"]) == {4}
    assert set(of_stimuli[of_stimuli["group"] == "all"]["clusters"]) == {7}
    np.testing.assert_array_equal(of_stimuli["mean"], of_clusters["mean"])
    strong = of_stimuli["mean"].abs() > 1e-6
    assert (of_stimuli["low"] != of_clusters["low"])[strong].any()


def test_mediators_of_one_report_are_one_family(stimuli, analyse):
    _, alone = analyse("mlps")
    printed, both = analyse("heads")
    assert "effects of mlps: 3 units" in alone["family"][0]
    assert "effects of mlps, heads: 15 units" in both["family"][0]
    assert "too few clusters to call any unit at 0.05" not in printed  # 2 ** 6 flips: .016 is possible
    assert printed.count("## How sure") == 1


def test_a_summary_in_parquet_has_the_numbers_of_the_csv(stimuli, analyse, tmp_path):
    _, table = analyse("heads")
    (tmp_path / "out").rename(tmp_path / "csv")
    [path] = (tmp_path / "csv").glob("*_heads_summary.csv")
    with pytest.raises(FileNotFoundError):
        analyse("heads", "--format parquet")
    again = pd.read_parquet(tmp_path / "out" / f"{path.stem}.parquet")
    texts = [name for name in again if again[name].dtype == "category"]
    pd.testing.assert_frame_equal(again.astype(dict.fromkeys(texts, "str")), table, check_dtype=False)

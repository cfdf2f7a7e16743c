"""Summaries of attention results."""

import json

import numpy as np
import pytest

from attention_utils import perform_interventions
from mediation.errors import InputError
from mediation.reports import attention as attention_report
from mediation.results.attention_results import read_results
from mediation.results.attention_summaries import summarise_study


def test_summaries(toy_model, stimulus, capsys):
    model = toy_model()
    results = perform_interventions([stimulus(model)] * 2, model)
    capsys.readouterr()
    heads = attention_report.report_interventions_summary_by_head(results, k=5)
    layers = attention_report.report_interventions_summary_by_layer(results)
    attention_report.report_intervention(results[0])
    best = heads["indirect"].iloc[0]
    assert len(heads["direct"]) == 5 and best["mean"] == np.max(results[0]["indirect_effect_head"])
    assert len(layers["indirect"]) == 3
    assert "strongest 5 of 12 heads, over 2 examples" in capsys.readouterr().out
    # two examples of one occupation: nothing says how sure they are
    assert heads["indirect"][["low", "high", "log low", "p", "q", "in top"]].isna().all().all()


@pytest.fixture(scope="module")
def published(shared):
    return shared / "published" / "winobias_data"


@pytest.fixture
def report(published, tmp_path, capsys):
    """report(*names) -> what is printed of the first of these published files, which lie side by side."""
    def run(*names):
        for name in names:
            (tmp_path / name).write_bytes((published / name).read_bytes())
        attention_report.report_study(tmp_path / names[0])
        return capsys.readouterr().out
    return run


DEV, TEST = (f"attention_intervention_distilgpt2_filtered_{split}.json" for split in ("dev", "test"))


def test_every_mean_has_its_interval_and_the_total_its_parts(report, published):
    lines = report(DEV).splitlines()
    content = read_results(published / DEV)
    study = summarise_study(content["results"])
    total = next(line for line in lines if line.startswith("total effect"))
    low, high = study.resampling.of_means(np.array([[e["total_effect"]] for e in content["results"]]))
    assert f"{content['mean_total_effect']:.6f}  [{low[0]:.4f}, {high[0]:.4f}]" in total
    share = 100 * study.decomposition.total_indirect.mean() / study.decomposition.total.mean()
    mediated = next(line for line in lines if line.startswith("  total indirect"))
    assert f"{share:.1f}%" in mediated and "[" in mediated.split("%")[1]
    assert any(line.startswith("    interaction") for line in lines)
    assert any("2,000 bootstrap draws of 61 clusters: the occupations" in line for line in lines)
    heads = lines[lines.index("indirect effect, strongest 10 of 72 heads, over 61 examples") + 1].split()
    assert heads[:5] == ["layer", "head", "mean", "low", "high"]


def test_tests_stability_and_the_other_split_are_told(report):
    alone = report(DEV)
    assert "family of 79 units tested by 10,000 sign flips of 61 cluster means" in alone
    assert "at a family-wise error of 0.05" in alone and "at a false discovery rate of 0.05" in alone
    assert "random halves" in alone and "in the other half" in alone and "of dev (" not in alone
    for names in ((DEV, TEST), (TEST, DEV)):
        assert "the 10 strongest of dev (61 examples): mean" in report(*names)


def test_what_was_written_is_told(report, tmp_path):
    output = report(DEV)
    for name in ("distilgpt2_filtered_dev_heads_summary.csv", "distilgpt2_filtered_dev_layers_summary.csv"):
        assert str(tmp_path / name) in output and (tmp_path / name).exists()


def test_a_damaged_file_of_the_other_split_does_not_spoil_this_one(report, tmp_path):
    (tmp_path / TEST).write_text("{}")
    output = report(DEV)
    assert f"not reported on the other split: {tmp_path / TEST}: no list of results" in output
    with pytest.raises(InputError):
        read_results(tmp_path / TEST)


def test_few_clusters_say_so(report, published, tmp_path, capsys):
    content = json.loads((published / DEV).read_text())
    content["results"] = content["results"][:3]
    (tmp_path / "few.json").write_text(json.dumps(content))
    attention_report.report_study(tmp_path / "few.json")
    output = capsys.readouterr().out
    assert "too few clusters to call any unit at 0.05" in output and "too few to be halved" in output
    assert "no head can be called significant" in output

"""Summaries of attention results."""

import numpy as np

from attention_utils import perform_interventions
from mediation.reports import attention as attention_report


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

"""Compiled programs whose mediators are known: a RASP program's effects, computed elsewhere with NumPy."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from mediation.effects.odds import log_odds

FLOAT64 = 1e-6  # absolute, in a log effect


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("program", ["tracr-hist", "tracr-pattern"])
def test_compiled_programs_have_the_mediators_they_were_compiled_with(shared, run_script, tmp_path, program):
    folder = shared / "golden" / "tracr" / program
    expected = json.loads((folder / "expected.json").read_text())
    checkpoint = tmp_path / program
    checkpoint.symlink_to(folder / "model")
    stimuli = tmp_path / "stimuli.jsonl"
    stimuli.write_text(json.dumps(expected["stimulus"]) + "\n")
    command = f"mediate.py {stimuli} -model {checkpoint} -out_dir {tmp_path / 'out'} --dtype float64"
    code, _, error = run_script(command)
    assert code == 0, error

    def table(name):
        return pd.read_csv(tmp_path / "out" / f"{name}_{program}.csv", dtype={"layer": str})

    (totals,) = table("total_effects").to_dict("records")
    for prompt, known_odds in zip(("base", "alt"), expected["log_odds"]):
        assert log_odds(totals[f"candidate2_{prompt}_prob"],
                        totals[f"candidate1_{prompt}_prob"]) == pytest.approx(known_odds, abs=FLOAT64)
    slot, carrying = expected["slot"], {}
    for kind, effects in expected["log_effects"].items():
        known = {"neurons": np.ravel(effects["neurons"]), "mlps": np.array(effects["mlps"])[:, slot],
                 "heads": np.ravel(effects["heads"])}
        for mediator, log_effects in known.items():
            ours = np.log1p(table(mediator)[f"{kind}_effect"])
            np.testing.assert_allclose(ours, log_effects, rtol=0, atol=FLOAT64,
                                       err_msg=f"{mediator}, {kind}")
        layers = table("layers")
        whole = layers["layer"] == "all"
        np.testing.assert_allclose(np.log1p(layers.loc[~whole, f"{kind}_effect"]), effects["layers"], rtol=0,
                                   atol=FLOAT64)
        if kind == "indirect":
            neurons = table("neurons")
            for row in neurons[np.abs(np.log1p(neurons["indirect_effect"])) > FLOAT64].itertuples():
                carrying[f"{row.layer}-{row.neuron}"] = math.log1p(row.indirect_effect)
    named = {label.split()[0]: effect for label, effect in expected["carrying_neurons"].items()}
    assert carrying == pytest.approx(named, abs=FLOAT64)


AT_EACH = ("mlps", "head_outputs", "queries", "keys", "values", "attentions", "residuals")


@pytest.mark.usefixtures("unreported")
@pytest.mark.parametrize("program, options", [("tracr-hist", ""), ("tracr-pattern", ""),
                                              ("tracr-pattern", "--full_passes")])
def test_every_mediator_at_every_position(shared, run_script, tmp_path, program, options):
    folder = shared / "golden" / "tracr" / program
    expected = json.loads((folder / "expected.json").read_text())
    (tmp_path / program).symlink_to(folder / "model")
    stimuli = tmp_path / "stimuli.jsonl"
    stimuli.write_text(json.dumps(expected["stimulus"]) + "\n")
    command = f"mediate.py {stimuli} -model {tmp_path / program} -out_dir {tmp_path / 'out'} --dtype float64"
    for positions, mediators in (("each", AT_EACH), ("all", ("head_outputs",)), ("slot", ("inner_neurons",))):
        code, _, error = run_script(f"{command} {options} --positions {positions} "
                                    f"--mediators {','.join(mediators)}")
        assert code == 0, error

    def ours(name, kind):
        return np.log1p(pd.read_csv(tmp_path / "out" / f"{name}_{program}.csv")[f"{kind}_effect"])

    for kind, effects in expected["log_effects"].items():
        defaults = {"attentions", "residuals"}  # at each position by default: their files are not named by it
        known = {name if name in defaults else f"{name}_each": effects[name] for name in AT_EACH}
        known["head_outputs"] = effects["head_outputs_everywhere"]
        known["inner_neurons"] = effects["inner_neurons"]
        for name, log_effects in known.items():
            values = ours(name, kind)
            if name == "residuals":  # the known ones have no stream behind the last block
                values = values[: np.size(log_effects)]
            np.testing.assert_allclose(values, np.ravel(log_effects), rtol=0, atol=FLOAT64,
                                       err_msg=f"{name}, {kind}")
    if program == "tracr-hist":  # keys and weights carry everything, values nothing
        assert ours("keys_each", "indirect").max() == pytest.approx(8, abs=1e-3)
        assert np.abs(ours("values_each", "indirect")).max() == 0

"""The scripts of the attention study on masked models."""

import json

from tests.helpers import undrawn_figures


def test_the_study_of_a_masked_model(masked_model, toy_checkpoint, data, run_script, tmp_path):
    masked_model("distilbert")
    folder = toy_checkpoint("distilbert")
    for approach in (1, 4):
        code, printed, error = run_script(f"attention_intervention_winobias.py -model {folder} "
                                          f"--do-filter False --split dev --max_examples 2 "
                                          f"-out_dir {tmp_path} --masking_approach {approach}")
        assert code == 0, error
    files = {path.name for path in (tmp_path / "winobias_data").glob("*.json")} - {"manifest.json"}
    assert files == {f"attention_intervention_toy-distilbert_unfiltered_dev_{approach}.json"
                     for approach in (1, 4)}
    one, four = (json.loads((tmp_path / "winobias_data" / name).read_text()) for name in sorted(files))
    assert one["mean_total_effect"] != four["mean_total_effect"]
    with undrawn_figures():
        assert run_script(f"attention_figures1.py -out_dir {tmp_path}")[0] == 0
    assert len(list((tmp_path / "results").glob("**/winobias_toy-distilbert_unfiltered_dev_4.pdf"))) == 8
    code, printed, error = run_script(f"attention_figures3.py -model {folder} --do-filter False --examples 1 "
                                      f"--masking_approach 4 -out_dir {tmp_path}")
    assert code == 0 and "winobias_toy-distilbert_unfiltered_dev_4_1.pdf" in printed, error
    path = tmp_path / "winobias_data" / "attention_intervention_toy-distilbert_unfiltered_dev_4.json"
    code, printed, error = run_script(f"check_replication.py -model {folder} --json {path}")
    assert code == 0 and "verdict: REPRODUCED" in printed, error


def test_bars_of_all_models_name_the_approach(tmp_path, shared, run_script):
    (tmp_path / "winobias_data").mkdir()
    for name in ("gpt2_filtered_dev", "distilbert-base-uncased_filtered_dev_1"):
        file = f"attention_intervention_{name}.json"
        published = shared / "published" / "winobias_data" / file
        (tmp_path / "winobias_data" / file).write_bytes(published.read_bytes())
    code, printed, error = run_script(f"attention_figures2.py -out_dir {tmp_path}")
    assert code == 0 and "distilbert-base-uncased (1)" in printed, error

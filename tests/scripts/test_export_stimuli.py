"""export_stimuli.py as a user runs it: exit codes, what it prints, what it refuses."""

import json

import pytest

from mediation.errors import InputError
from mediation.files.assets import fetch_data_set
from mediation.stimuli import stimulus_files
from mediation.stimuli.prompts import tokenize_candidate
from tests.helpers import assert_refused, read_own_table

HEADER = "clean,corrupted,correct_idx,incorrect_idx\n"


@pytest.fixture
def pairs(tmp_path, toy_tokenizer):
    """A CSV of five rows, three of them minimal pairs."""
    she, he = (tokenize_candidate(toy_tokenizer, word)[1][0] for word in ("she", "he"))
    path = tmp_path / "pairs.csv"
    path.write_text(f"{HEADER}The maid said that,The king said that,{she},{he}\n"
                    f"The maid ran,The maid ran,{she},{he}\n"
                    f'The nurse ran because,The doctor ran because,"[{she}, 7]",{he}\n'
                    f"The nurse ,The doctor ,{she},{he}\n"
                    f"The nurse yelled that,The doctor yelled that,{she},{he}\n")
    return path


def test_help_tells_of_every_source_and_its_licence(run_script):
    code, text, _ = run_script("export_stimuli.py", "--help")
    assert code == 0
    for words in ("WinoBias and Winogender MIT", "BEC-Pro CC BY 4.0", "the corrupted one",
                  "not the paper's measure", "--file", "--language"):
        assert words in text


def test_minimal_pairs_go_into_mediate(run_script, toy_checkpoint, pairs, tmp_path):
    folder = toy_checkpoint("llama")
    out = tmp_path / "s.jsonl"
    code, text, _ = run_script("export_stimuli.py minimal_pairs", "-out", out, "--file", pairs, "-model",
                               folder)
    assert code == 0
    assert text.splitlines() == [
        "the first id of a list is taken in 1 rows: line 4",
        "1 rows left out: the two prompts are equal (line 3)",
        "1 rows left out: a prompt ends in a blank (line 5)",
        "2: 'she' is correct, 'he' is not: if that is no answer, the ids are another model's",
        f"wrote 3 stimuli to {out}"]
    assert run_script("mediate.py", out, "-model", folder, "-out_dir", tmp_path / "o", "--mediators",
                      "layers")[0] == 0
    totals = read_own_table(tmp_path / "o", "total_effects_toy-llama.csv")
    assert totals["id"].tolist() == ["2", "4", "6"]


@pytest.mark.parametrize("content, words", [
    ("clean,corrupted,correct_idx\na,b,1\n", ("line 2", "column 'incorrect_idx'")),
    ("clean\n", ("line 1", "column 'corrupted' is missing")),
    ("", ("line 1", "column 'clean' is missing")),
    (HEADER, ("holds no pair",)),
    (HEADER + "a,b,1,99999\n", ("line 2", "token id 99999 is outside the vocabulary", "-model")),
    (HEADER + "a,a,1,2\na ,b,1,2\n", ("nothing of", "does not begin with a blank", "(line 2, line 3)")),
], ids=str)
def test_bad_minimal_pairs(run_script, toy_checkpoint, tmp_path, content, words):
    path = tmp_path / "pairs.csv"
    path.write_text(content)
    outcome = run_script("export_stimuli.py minimal_pairs", "-out", tmp_path / "s.jsonl", "--file", path,
                         "-model", toy_checkpoint("gpt2"))
    assert_refused(outcome, *words)
    assert not (tmp_path / "s.jsonl").exists()


def test_what_a_source_needs_is_asked_for(run_script, pairs, tmp_path):
    out = tmp_path / "s.jsonl"
    assert_refused(run_script("export_stimuli.py minimal_pairs", "-out", out, "--file", pairs),
                   "give --file and -model")
    assert_refused(run_script("export_stimuli.py one_prefix", "-out", out), "give --file")
    assert_refused(run_script("export_stimuli.py minimal_pairs", "-out", out, "--file", pairs, "-model",
                              tmp_path / "no_model"), "cannot load the tokenizer of", "no_model")
    assert_refused(run_script("export_stimuli.py bec_pro", "-out", out, "--language", "fr"), "fr")


def test_one_prefix(run_script, tmp_path):
    path, out = tmp_path / "b.jsonl", tmp_path / "s.jsonl"
    rows = [{"one_prefix_prefix": prefix, "one_prefix_word_good": good, "one_prefix_word_bad": bad}
            for prefix, good, bad in (("The dog", "is", "are"), ("The dogs", "are", "is"),
                                      ("The cat", "ran", "run"))]
    path.write_text("\n".join(map(json.dumps, [*rows, {"sentence_good": "x"}])))
    code, text, _ = run_script("export_stimuli.py one_prefix", "-out", out, "--file", path)
    assert code == 0 and "1 records left out: no partner that reverses its preference (line 3)" in text
    assert "(line 4)" in text and [one.id for one in stimulus_files.read(out)] == ["1_2"]
    # nothing is overwritten
    outcome = run_script("export_stimuli.py one_prefix", "-out", out, "--file", path)
    assert_refused(outcome, "is there already")
    path.write_text(json.dumps(rows[0]))
    assert_refused(run_script("export_stimuli.py one_prefix", "-out", tmp_path / "t.jsonl", "--file", path),
                   "nothing of", "no partner")


@pytest.mark.parametrize("study, count", [("indirect_object", 14), ("greater_than", 7)])
def test_generators(run_script, tmp_path, study, count):
    texts = []
    for number, seed in enumerate((2, 2, 3)):
        out = tmp_path / f"{number}.jsonl"
        code, text, _ = run_script(f"export_stimuli.py {study} --count 7 --seed {seed}", "-out", out)
        assert code == 0 and text == f"wrote {count} stimuli to {out}\n"
        texts.append(out.read_bytes())
    assert texts[0] == texts[1] != texts[2]


def test_years_of_several_tokens_go_into_mediate(run_script, toy_checkpoint, tmp_path):
    out, folder = tmp_path / "s.jsonl", toy_checkpoint("llama")
    assert run_script("export_stimuli.py greater_than --count 2", "-out", out)[0] == 0
    command = ("mediate.py", out, "-model", folder, "-out_dir", tmp_path / "o", "--mediators", "mlps")
    assert_refused(run_script(*command), "no stimulus of the file fits mlps", "--multi_token last takes it")
    code, _, error = run_script(*command, "--multi_token", "last")
    assert code == 0, error
    assert len(read_own_table(tmp_path / "o", "mlps_toy-llama.csv")) == 2 * 4


@pytest.mark.parametrize("study, words", [
    ("winobias --type 2", "135 pairs left out: the sentences differ in more than the occupations' places"),
    ("winobias --type 2 --half anti --split test", "wrote 5 stimuli"),
    ("winobias --half anti", "a sentence does not mark one listed occupation (lines 161 and 162)"),
    ("bec_pro", 'left out: "a" before a vowel'),
    ("bec_pro --language de", "540 combinations left out: der or die before the profession"),
])
def test_fetched_data_sets(run_script, tmp_path, study, words):
    try:
        fetch_data_set("bec_pro" if "bec" in study else "winobias_rest")
    except InputError as error:
        pytest.skip(f"no data set: {error}")
    out = tmp_path / "s.jsonl"
    code, text, _ = run_script(f"export_stimuli.py {study} --max_examples 5", "-out", out)
    assert code == 0 and words in text and len(stimulus_files.read(out)) == 5

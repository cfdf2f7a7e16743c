"""Files of stimuli: what is read, and that every fault ends in one clear line with file and line."""

import json
import random

import pytest

from mediation.errors import InputError
from mediation.stimuli import agreement, stimulus_files
from mediation.stimuli.stimulus_files import Stimulus
from tests.helpers import GOOD_STIMULUS, malformed


def jsonl(tmp_path, *rows):
    path = tmp_path / "stimuli.jsonl"
    path.write_bytes(b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows))
    return path


def test_what_is_written_is_read(tmp_path):
    stimuli = [Stimulus("one", "The {} said that", ("nurse", "man"), ("she", "he"), "female", 1),
               Stimulus("zwei", "„Die {}“ \U0001f600 שלום", ("a", "b"), (" x y", "z"), "", 2)]
    assert stimulus_files.read(stimulus_files.write(tmp_path / "s.jsonl", stimuli)) == stimuli


def test_a_csv_has_the_same_columns(tmp_path):
    path = tmp_path / "stimuli.csv"
    path.write_text("\ufeffid,base,substitutes,candidates,group\r\n"
                    '1,"The {} said, that",nurse|man,"[""she"", ""he""]",\r\n\r\n2,{} ran,a|b|c,x|y,g\r\n')
    assert stimulus_files.read(path) == [
        Stimulus("1", "The {} said, that", ("nurse", "man"), ("she", "he"), "", 2),
        Stimulus("2", "{} ran", ("a", "b", "c"), ("x", "y"), "g", 4)]


@pytest.mark.parametrize("change, message", [
    ({"id": None}, "line 2: field 'id' is null: write a text"),
    ({"base": "no slot"}, "line 2: field 'base': 'no slot' has 0 slots"),
    ({"base": "{} and {}"}, "has 2 slots"),
    ({"base": ["{}"]}, "field 'base' is a list: write a text"),
    ({"substitutes": ["nurse"]},
     "field 'substitutes' has 1: give the null prompt's and at least one alternative"),
    ({"substitutes": "nurse"}, "field 'substitutes' is a text: write a list"),
    ({"substitutes": ["nurse", ""]}, "field 'substitutes' is empty"),
    ({"substitutes": ["nurse", "nurse "]}, "field 'substitutes': two of them are the same"),
    ({"candidates": []}, "field 'candidates' has 0: give two"),
    ({"candidates": ["he", "he"]}, "field 'candidates': two of them are the same"),
    ({"candidates": ["he", 3]}, "field 'candidates' is a number"),
    ({"group": 5}, "field 'group' is a number"),
    ({"gruop": "x"}, "field 'gruop' is unknown: the fields are id, base, substitutes, candidates, group"),
    ({"base": "{} " + "long " * 2000}, "field 'base' has 10,003 characters: at most 2,000"),
    ({"base": "{} \ud800"}, "half a character"),
    ({"base": "The {} said "}, "ends in a blank"),
    ({"base": "The {}\tsaid"}, "control character"),
    ({"group": "all"}, "'all' is what means over all groups are called"),
], ids=str)
def test_faults_name_line_and_field(tmp_path, change, message):
    with pytest.raises(InputError) as error:
        stimulus_files.read(jsonl(tmp_path, GOOD_STIMULUS, {**GOOD_STIMULUS, "id": "two", **change}))
    assert message in str(error.value) and "stimuli.jsonl, line 2" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("rows, message", [
    ((), "line 1: the file holds no stimulus"),
    ((GOOD_STIMULUS, b"{"), "line 2: not a JSON object"),
    ((GOOD_STIMULUS, b"\xff\xfe"), "line 2: not UTF-8"),
    ((GOOD_STIMULUS, [1]), "line 2: a list, not an object"),
    ((GOOD_STIMULUS, b"[" * 100000), "line 2: not a JSON object"),
    ((GOOD_STIMULUS, {**GOOD_STIMULUS}), "line 2: field 'id': 'one' stands in line 1 already"),
    ((b'{"id": "a", "id": "b"}',), "field 'id' twice"),
], ids=str)
def test_faults_of_lines(tmp_path, rows, message):
    with pytest.raises(InputError) as error:
        stimulus_files.read(jsonl(tmp_path, *rows))
    assert message in str(error.value)


def test_a_missing_field_and_a_missing_file(tmp_path):
    for name in stimulus_files.NEEDED:
        with pytest.raises(InputError, match=f"field '{name}' is missing"):
            stimulus_files.read(jsonl(tmp_path,
                                      {key: value for key, value in GOOD_STIMULUS.items() if key != name}))
    with pytest.raises(InputError, match="cannot be read"):
        stimulus_files.read(tmp_path / "nothing.jsonl")
    (tmp_path / "twice.csv").write_text("id,base,substitutes,candidates,candidates\n1,{},a|b,c|d,e|f\n")
    with pytest.raises(InputError, match="line 1: column 'candidates' stands there twice"):
        stimulus_files.read(tmp_path / "twice.csv")
    (tmp_path / "short.csv").write_text("id,base\n1,{}\n")
    with pytest.raises(InputError, match="line 1: column 'substitutes' is missing"):
        stimulus_files.read(tmp_path / "short.csv")


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_three_hundred_malformed_files(tmp_path, ending):
    path, refused = tmp_path / f"stimuli{ending}", 0
    for number in range(300):
        content = malformed(random.Random(number))
        if ending == ".csv":
            content = b"id,base,substitutes,candidates,group\n" + b"\n".join(
                line.replace(b'": ', b",").replace(b"{", b"", 1) for line in content.splitlines())
        path.write_bytes(content)
        try:
            assert all(isinstance(stimulus, Stimulus) for stimulus in stimulus_files.read(path))
        except InputError as error:
            refused += 1
            assert str(error).startswith(f"{path}, line ") and "\n" not in str(error), content
            assert len(str(error)) < 600 + len(str(path))
        assert path.read_bytes() == content
    assert refused > 200


def test_the_grammar_of_agreement():
    stimuli = agreement.generate(30)
    assert len({(stimulus.base, stimulus.substitutes, stimulus.candidates)
                for stimulus in stimuli}) == len(stimuli) == 30 * 10
    assert len({stimulus.id for stimulus in stimuli}) == len(stimuli) and stimuli == agreement.generate(30)
    for stimulus in stimuli:
        structure, number = stimulus.group.split(", ")
        # fits the null prompt's noun
        assert (stimulus.candidates[0] in ("is", "was", "has")) == (number == "singular")
        assert stimulus.substitutes[number == "singular"].endswith("s")
        assert not stimulus.substitutes[number != "singular"].endswith("s")
        assert len(stimulus.base.split()) == {"simple": 2, "one distractor": 3,
                                              "two distractors": 5}.get(structure, len(stimulus.base.split()))
    many = agreement.generate(1000)
    assert len({(stimulus.base, stimulus.substitutes, stimulus.candidates)
                for stimulus in many}) == len(many) == 2 * (30 + 180 + 900 + 1000 + 1000)

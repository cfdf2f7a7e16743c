"""Minimal pairs with token ids, and one-prefix pairs: what is read, what is left out, what is refused."""

import json

import pytest

from mediation.errors import InputError
from mediation.stimuli import minimal_pairs, one_prefix, stimulus_files
from mediation.stimuli.prompts import tokenize_candidate
from mediation.stimuli.stimulus_files import Stimulus

HEADER = "clean,corrupted,correct_idx,incorrect_idx\n"


@pytest.fixture
def she_he(toy_tokenizer):
    return tuple(tokenize_candidate(toy_tokenizer, word)[1][0] for word in ("she", "he"))


@pytest.fixture
def pairs(tmp_path):
    """pairs(text) -> a CSV of it."""
    def write(text, name="pairs.csv"):
        (tmp_path / name).write_text(text)
        return tmp_path / name
    return write


# token ids

def test_the_corrupted_prompt_is_the_null_prompt(pairs, toy_tokenizer, she_he):
    she, he = she_he
    path = pairs(f"id,{HEADER}x,The nurse said that,The doctor said that,{she},{he}\n")
    (stimuli, left_out), lists = minimal_pairs.load(path, toy_tokenizer)
    assert stimuli == [Stimulus("2", "The {} said that", ("doctor", "nurse"), ("he", "she"))]
    assert not left_out and not lists
    stimulus_files.write(path.with_name("s.jsonl"), stimuli)
    (again,) = stimulus_files.read(path.with_name("s.jsonl"))
    assert (again.base, again.candidates) == (stimuli[0].base, stimuli[0].candidates)


def test_both_names_of_the_answers_and_json_lines(pairs, toy_tokenizer, she_he):
    she, he = she_he
    row = {"clean": "The nurse ran", "corrupted": "The king ran", "clean_answer_idx": [she, he],
           "corrupted_answer_idx": he}
    (stimuli, _), lists = minimal_pairs.load(pairs(json.dumps(row), "pairs.jsonl"), toy_tokenizer)
    assert stimuli[0].candidates == ("he", "she") and lists == ["line 1"]
    text = f'clean,corrupted,clean_answer_idx,corrupted_answer_idx\nThe nurse,The king,"[{she}, 3]",[{he}]\n'
    assert minimal_pairs.load(pairs(text), toy_tokenizer) == (
        ([Stimulus("2", "The {}", ("king", "nurse"), ("he", "she"))], {}), ["line 2"])


def test_rows_that_no_stimulus_expresses_are_left_out(pairs, toy_tokenizer, she_he):
    she, he = she_he
    inner = toy_tokenizer("e", add_special_tokens=False)["input_ids"][0]
    rows = [f"The nurse,The king,{she},{he}", f"The nurse,The nurse,{she},{he}",
            f"The nurse ,The king ,{she},{he}", f"The nurse,The king,{inner},{he}",
            f"The nurse,The king,{she},{she}", f"The {{}},The king,{she},{he}",
            f"The nurse,The king,{she},{he}", f"The nurse,The king,{he},{she}"]
    (stimuli, left_out), _ = minimal_pairs.load(pairs(HEADER + "\n".join(rows)), toy_tokenizer)
    # turned round it is another question, not a duplicate
    assert [stimulus.id for stimulus in stimuli] == ["2", "9"]
    assert left_out == {
        "the two prompts are equal": ["line 3"], "a prompt ends in a blank": ["line 4"],
        "an answer's token does not begin with a blank, or is no whole text": ["line 5"],
        "the two answers are the same token": ["line 6"],
        "a prompt holds {}, which marks the slot": ["line 7"],
        "the same row stands in the file before": ["line 8"]}


@pytest.mark.parametrize("text, message", [
    ("", "line 1: column 'clean' is missing"),
    (HEADER, "holds no pair: a row has clean, corrupted"),
    ("clean,correct_idx\na,1\n", "line 1: column 'corrupted' is missing"),
    ("clean,corrupted,correct_idx\na,b,1\n",
     r"line 2: column 'incorrect_idx' \(or 'corrupted_answer_idx'\) is missing"),
    (HEADER + "a,b,1,420\n",
     r"line 2: token id 420 is outside the vocabulary of \d+ tokens: name with -model the model"),
    (HEADER + "a,b,-1,1\n", "token id -1 is outside"),
    (HEADER + "a,b,1.5,1\n", "line 2: field 'correct_idx' is '1.5': write a token id"),
    (HEADER + "a,b,[],1\n", "field 'correct_idx' is '\\[\\]'"),
    (HEADER + "a,b,she,1\n", "field 'correct_idx' is 'she'"),
    (HEADER + "a, b,c,1,2\n", "line 2: more cells than columns: set texts that hold commas in quotes"),
    (HEADER + "a,b\n", "is missing"),
    (HEADER + 'a,"b\n', "not a CSV"),
], ids=str)
def test_files_that_are_no_minimal_pairs(pairs, toy_tokenizer, text, message):
    with pytest.raises(InputError, match=message) as error:
        minimal_pairs.load(pairs(text), toy_tokenizer)
    assert "pairs.csv" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path, toy_tokenizer):
    with pytest.raises(InputError, match="name a file of minimal pairs"):
        minimal_pairs.load(tmp_path / "none.csv", toy_tokenizer)


# one prefix

def records(*texts):
    return "\n".join(json.dumps(dict(zip(one_prefix.FIELDS, text.split("|"))) | {"UID": "x"})
                     for text in texts)


def test_records_are_joined_two_by_two_in_the_order_of_the_file(pairs):
    path = pairs(records("The sister|bakes|bake", "The dog|bakes|bake", "The sisters|bake|bakes",
                         "The old men|bake|bakes", "Some men|bake|bakes", "The cats|run|runs"), "b.jsonl")
    stimuli, left_out = one_prefix.load(path)
    assert stimuli == [Stimulus("1_3", "The {}", ("sister", "sisters"), ("bakes", "bake")),
                       Stimulus("2_4", "The {}", ("dog", "old men"), ("bakes", "bake"))]
    assert left_out == {"no partner that reverses its preference": ["line 5", "line 6"]}


@pytest.mark.parametrize("first, second", [
    ("The sister|bakes|bake", "Some men|bake|bakes"),  # nothing is shared
    ("The sister of men|bakes|bake", "The men of cats|bake|bakes"),  # a shared word within the span
    ("The sheep|bakes|bake", "The sheep|bake|bakes"),
    ("The sister|bakes|bake", "The sisters|bakes|bake"),  # the same preference
    ("The sister|bakes|bake", "The sisters|bake|baked"),
])
def test_records_that_do_not_fit(pairs, first, second):
    stimuli, left_out = one_prefix.load(pairs(records(first, second), "b.jsonl"))
    assert not stimuli and left_out == {"no partner that reverses its preference": ["line 1", "line 2"]}


def test_a_csv_has_the_same_columns_and_what_stands_twice_is_left_out(pairs):
    text = ",".join(one_prefix.FIELDS) + "\nThe dog,is,are\nThe dog ,is,are\nThe dogs,are,is\nThe cat,,is\n"
    stimuli, left_out = one_prefix.load(pairs(text))
    assert stimuli == [Stimulus("2_4", "The {}", ("dog", "dogs"), ("is", "are"))]
    assert sorted(left_out.values()) == [["line 3"], ["line 5"]]
    assert "the same record stands in the file before" in left_out


@pytest.mark.parametrize("name, text, message", [
    ("b.jsonl", "", "holds no record: a line has one_prefix_prefix"),
    ("b.csv", "one_prefix_prefix,one_prefix_word_good\na,b\n", "column 'one_prefix_word_bad' is missing"),
    ("b.jsonl", "[1]", "line 1: not an object with one_prefix_prefix"),
    ("b.jsonl", "{", "line 1: not a JSON object"),
])
def test_files_that_are_no_records(pairs, name, text, message):
    with pytest.raises(InputError, match=message):
        one_prefix.load(pairs(text, name))

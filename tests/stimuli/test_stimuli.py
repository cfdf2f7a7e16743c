"""Templates, slots found by character offsets, candidates, and the single-token rule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediation.errors import InputError
from mediation.stimuli import professions
from mediation.stimuli.prompts import fill, tokenize_candidate
from mediation.stimuli.templates import TEMPLATES, select_templates, split_base_string, template_file_stem


def test_templates_are_those_of_the_paper_in_its_order():
    assert len(TEMPLATES) == 17
    assert TEMPLATES[0] == "The {} said that" and TEMPLATES[6] == "The {} ate because"
    assert TEMPLATES[16] == "The {} yelled because"
    assert template_file_stem(TEMPLATES[12]) == "The_X_went_home_because"
    assert list(select_templates([9, 1, 9])) == [9, 1]
    assert len(select_templates(None)) == 17


@pytest.mark.parametrize("index", [0, 18, 99, -1])
def test_a_template_outside_the_list(index):
    with pytest.raises(InputError,
                       match=f"template index {index} does not exist: templates are numbered 1 to 17"):
        select_templates([1, index])


def test_a_base_string_is_taken_apart():
    template, word = split_base_string("The registered_nurse stayed up because")
    assert (template, word) == ("The {} stayed up because", "registered_nurse")
    with pytest.raises(InputError, match="fits none"):
        split_base_string("A nurse said that")


@given(st.text("abcdef _", min_size=1).filter(str.strip),
       st.sampled_from(["The {} said that", "{} said", "He saw the {}, who", "({})"]))
def test_the_slot_is_the_tokens_of_the_substitute(toy_tokenizer, word, base_string):
    prompt = fill(toy_tokenizer, base_string, word)
    start, end = prompt.slot
    inside = toy_tokenizer.decode(prompt.tokens[start:end])
    assert word.strip() in inside  # the blank or bracket before a word may be part of its first token
    assert toy_tokenizer.decode(prompt.tokens) == prompt.text == base_string.replace("{}", word)


def test_the_slot_after_words_of_several_tokens(toy_tokenizer):
    """The 2020 code counted blanks, and would have changed a token of "violinist" here."""
    prompt = fill(toy_tokenizer, "The violinist said that the {} said", "nurse")
    assert toy_tokenizer.convert_ids_to_tokens(prompt.tokens[slice(*prompt.slot)]) == ["Ġnurse"]
    assert prompt.slot[0] > 5


@pytest.mark.parametrize("base_string, substitute, message", [
    ("The nurse said", "man", "exactly one slot"),
    ("The {} saw the {}", "man", "it has 2"),
    ("The {} said", " ", "empty substitute"),
])
def test_what_cannot_be_filled(toy_tokenizer, base_string, substitute, message):
    with pytest.raises(InputError, match=message):
        fill(toy_tokenizer, base_string, substitute)


def test_candidates_stand_after_a_blank(toy_tokenizer):
    assert tokenize_candidate(toy_tokenizer,
                              "he")[0] == tokenize_candidate(toy_tokenizer, " he ")[0] == ["Ġhe"]
    with pytest.raises(InputError, match="empty candidate"):
        tokenize_candidate(toy_tokenizer, " ")


def test_words_that_are_not_single_tokens_are_dropped_with_the_reason(toy_tokenizer, rated):
    usable, dropped = professions.usable(toy_tokenizer, "The {} said that",
                                         [rated[word] for word in ("nurse", "violinist", "captain")])
    assert [p.word for p in usable] == ["nurse", "captain"]
    assert dropped["violinist"].endswith(")") and " tokens (" in dropped["violinist"]


def test_professions_by_name_and_number():
    # the file's order
    assert [p.word for p in professions.select(["nurse", "doctor"])] == ["doctor", "nurse"]
    assert len(professions.select(None, 12)) == 12
    with pytest.raises(InputError, match="no rating for 'plumbr': choose from the 320 words"):
        professions.select(["nurse", "plumbr"])
    with pytest.raises(InputError, match="from 1 on"):
        professions.select(None, 0)


def test_definitional_words_and_biases(rated):
    assert rated["waitress"].is_definitional and rated["monk"].is_definitional
    assert not rated["nurse"].is_definitional
    assert rated["nurse"].bias == -1.0 and rated["writer"].bias == 0


@pytest.mark.parametrize("row", ["nurse,much,0", "nurse,0", "nurse,0,1.5"])
def test_a_damaged_table_of_ratings(tmp_path, row):
    path = tmp_path / "professions.csv"
    path.write_text(f"word,definitional,stereotypical\n{row}\n")
    with pytest.raises(InputError, match="restore the file"):
        professions.load(path)


def test_ratings_that_are_no_text_are_told(tmp_path):
    (tmp_path / "professions.csv").write_bytes(b"word,definitional,stereotypical\nnurse,\xff,0\n")
    with pytest.raises(InputError, match="cannot be read as a CSV"):
        professions.load(tmp_path / "professions.csv")

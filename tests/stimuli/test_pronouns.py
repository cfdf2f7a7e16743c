"""The readers of WinoBias and Winogender."""

import pytest

from mediation.errors import InputError
from mediation.files.assets import fetch_data_set
from mediation.stimuli import winobias, winogender
from mediation.stimuli.occupations import occupations_in
from mediation.stimuli.stimulus_files import Stimulus
from tests.helpers import WINOBIAS_ROWS


def test_winobias_by_its_rules(data):
    first, second, third = winobias.load("dev")
    assert first.base_string == "The carpenter thanked the nurse because {}"
    assert first.substitutes == ("she", "he")
    assert first.candidates == ("had helped in the night.", "was ill.")
    assert first.referents == ("nurse", "carpenter")
    # the pair with [him] is skipped
    assert second.referents == ("teacher", "driver") and third.candidates == ("slept.", "left.")


def test_winogender_by_its_rules(data):
    (bls,), (bergsma,) = winogender.load("bls"), winogender.load("bergsma")
    # above 50
    assert bls.base_string == "The teacher told the captain that {}"
    assert bls.candidates == ("had to go home.", "could go.")
    assert bergsma.candidates == bls.candidates[::-1]


def real_examples():
    """All examples of both data sets, WinoBias first."""
    try:
        fetch_data_set("winobias"), fetch_data_set("winogender")
    except InputError as error:
        pytest.skip(f"no data sets: {error}")
    return ([example for split in winobias.SPLITS for example in winobias.load(split)],
            [example for statistic in winogender.STATISTICS for example in winogender.load(statistic)])


def test_a_context_tells_the_occupations_of_its_example():
    """Of all 290 examples of WinoBias and 88 of Winogender: files of results have contexts alone."""
    of_winobias, of_winogender = real_examples()
    assert (len(of_winobias), len(of_winogender)) == (160 + 130, 2 * 44)
    for example in of_winobias:
        pair = tuple(sorted(name.lower() for name in example.referents))
        assert occupations_in(example.base_string.replace("{}", "she")) == pair
    for example in of_winogender:
        (occupation,) = occupations_in(example.base_string.replace("{}", "his"))
        assert occupation in example.referents


def test_occupations_are_words_in_any_order():
    assert occupations_in("The developer met the designer") == occupations_in("A designer saw the developer")
    assert occupations_in("The CEO hired a construction worker") == ("ceo", "construction worker")
    assert occupations_in("The worker saw it") == ("worker",)
    assert occupations_in("The bakery made bread for a coworker") == ()


@pytest.mark.parametrize("name, old, new, message", [
    ("winobias_data/pro_stereotyped_type1.txt.dev", WINOBIAS_ROWS.splitlines()[7], "",
     "line 7: the last row has no partner"),
    ("winobias_data/pro_stereotyped_type1.txt.dev", "[the teacher]", "[the preacher]",
     "line 4: .* does not mark one listed occupation"),
    ("winobias_data/pro_stereotyped_type1.txt.dev", "[she] had", "[it] had",
     "line 2: .* does not mark one pronoun"),
    ("winobias_data/female_occupations.txt", "teacher", "tailor", "line 4: .*listed occupation"),
    ("winobias_data/male_occupations.txt", "driver", "teacher", "listed occupation"),
    ("winogender_data/templates.tsv",
     "clerk\tcaptain\t0\tThe $OCCUPATION saw the $PARTICIPANT and $POSS_PRONOUN cat.", "",
     "line 4: the last row has no partner"),
    ("winogender_data/templates.tsv", "captain\t0\tThe $OCCUPATION told", "captain\t1\tThe $OCCUPATION told",
     "lines 2 and 3 are no pair"),
    ("winogender_data/templates.tsv", "\tsentence", "\ttext", "column 'sentence' is missing"),
    ("winogender_data/occupations-stats.tsv", "clerk", "cleric", "occupation 'clerk' has no bls statistic"),
    ("winogender_data/occupations-stats.tsv", "80.5", "most", "occupation 'teacher' has no bls statistic"),
])
def test_damaged_data(data, name, old, new, message):
    path = data / name
    text = path.read_bytes().decode()
    assert old in text
    path.write_bytes(text.replace(old, new).encode())
    with pytest.raises(InputError, match=message):
        winobias.load("dev") if "winobias" in name else winogender.load("bls")


def test_unknown_parts_of_the_data(data):
    for load, name in ((winobias.load, "train"), (winogender.load, "census")):
        with pytest.raises(InputError, match=f"'{name}' is unknown: choose from"):
            load(name)


# the other parts of WinoBias

TYPE_2 = """1 The driver thanked [the nurse] and gave [her] tea.
2 The nurse thanked [the driver] and gave [him] a pen.
3 The teacher told [the carpenter] that [he] won.
4 The carpenter told [the teacher] that [she] won.
5 The driver called [the nurse] and saw [her].
6 The nurse wrote to [the driver] and saw [him].
7 The driver called [the nurse] and saw [her] tea.
8 The nurse called [the driver] and [he] left.
9 The driver called [a nurse] and saw [her].
10 The nurse called [the driver] and saw [him].
"""


@pytest.fixture
def others(data):
    """A folder with the other parts of WinoBias."""
    folder = data / "winobias_data"
    anti = WINOBIAS_ROWS
    for one, other in (("[he]", "[she]"), ("[him]", "[her]")):
        anti = anti.replace(one, "[?]").replace(other, one).replace("[?]", other)
    (folder / "anti_stereotyped_type1.txt.dev").write_text(anti)
    (folder / "pro_stereotyped_type2.txt.dev").write_text(TYPE_2)
    return folder


def test_type_2_exchanges_the_occupations(others):
    stimuli, left_out = winobias.load_others("dev", 2, "pro", others)
    assert stimuli == [
        Stimulus("winobias_pro_type2_dev_1", "The {} and gave",
                 ("driver thanked the nurse", "nurse thanked the driver"), ("her", "him")),
        Stimulus("winobias_pro_type2_dev_3", "The {} that",
                 ("carpenter told the teacher", "teacher told the carpenter"), ("she", "he"))]
    assert left_out == {
        "the sentences differ in more than the occupations' places before the pronoun": ["lines 5 and 6"],
        "the sentences differ in the pronoun's form, or not in the occupations' gender": ["lines 7 and 8"],
        "a sentence does not mark one listed occupation": ["lines 9 and 10"]}


def test_the_anti_stereotyped_half_has_the_candidates_exchanged(others):
    stimuli, left_out = winobias.load_others("dev", 1, "anti", others)
    assert [(one.base, one.substitutes, one.candidates[::-1]) for one in stimuli] == [
        (one.base_string, one.substitutes, one.candidates) for one in winobias.load("dev", others)]
    assert left_out == {"a sentence marks 'him', or not just two things": ["lines 7 and 8"]}


@pytest.mark.parametrize("arguments, message", [
    (("train", 2, "pro"), "split 'train' is unknown"),
    (("dev", 1, "pro"), "none of the other parts of WinoBias"),
    (("dev", 3, "pro"), "none of the other parts"),
    (("dev", 2, "con"), "none of the other parts"),
    (("test", 2, "pro"), "cannot be read"),
])
def test_parts_of_winobias_that_are_not_there(others, arguments, message):
    with pytest.raises(InputError, match=message):
        winobias.load_others(*arguments, others)


def test_the_other_parts_as_they_are_published():
    try:
        loaded = {(split, number, half): winobias.load_others(split, number, half).stimuli
                  for split in winobias.SPLITS for number, half in ((1, "anti"), (2, "pro"), (2, "anti"))}
        pro = {split: winobias.load(split) for split in winobias.SPLITS}
    except InputError as error:
        pytest.skip(f"no data set: {error}")
    assert {name: len(stimuli) for name, stimuli in loaded.items()} == {
        ("dev", 1, "anti"): 159, ("dev", 2, "pro"): 52, ("dev", 2, "anti"): 53,
        ("test", 1, "anti"): 131, ("test", 2, "pro"): 62, ("test", 2, "anti"): 62}
    mirrored = {(one.base_string, one.candidates[::-1]) for one in pro["dev"]}
    assert len(mirrored & {(one.base, one.candidates) for one in loaded["dev", 1, "anti"]}) == 158

"""The readers of WinoBias and Winogender."""

import pytest

from mediation.errors import InputError
from mediation.stimuli import winobias, winogender
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

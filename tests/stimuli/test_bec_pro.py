"""BEC-Pro: rules on a small table of our own, counts on the real one where it can be had."""

from collections import Counter

import pytest

from mediation.errors import InputError
from mediation.stimuli import bec_pro
from mediation.stimuli.stimulus_files import Stimulus

TEMPLATES = {"en": ("<person subject> is a <profession>.", "<person subject>, the <profession>, slept."),
             "de": ("<person subject> ist <profession>.", "<person subject>, {} <profession>, schlief.")}
PERSONS = {"en": {"male": "My father", "female": "My mother"},
           "de": {"male": "Mein Vater", "female": "Meine Mutter"}}
PROFESSIONS = {"en": {"nurse": "female", "maid": "female", "roofer": "male", "electrician": "male",
                      "judge": "balanced"},
               "de": {"nurse": "female", "judge": "balanced", "repairer": "male"}}
FORMS = {"nurse": ("Pfleger", "Pflegerin"), "judge": ("Richter", "Richterin"),
         "repairer": ("Mechaniker", "Mechaniker")}


@pytest.fixture
def folder(tmp_path):
    """Both tables, with the columns that are read."""
    for language in bec_pro.LANGUAGES:
        rows = []
        for template in TEMPLATES[language]:
            for name, typical in PROFESSIONS[language].items():
                for number, (gender, person) in enumerate(PERSONS[language].items()):
                    own = template.format(("der", "die")[number])
                    profession = FORMS[name][number] if language == "de" else name
                    sentence = own.replace("<person subject>", person).replace("<profession>", profession)
                    rows.append("\t".join((sentence, own, gender, profession, typical, name)))
        header = "\t".join((*bec_pro.COLUMNS, "Profession_EN"))
        (tmp_path / f"BEC-Pro_{language.upper()}.tsv").write_text("\n".join([header, *rows]))
    return tmp_path


def test_english_candidates_are_two_professions(folder):
    stimuli, left_out = bec_pro.load("en", folder)
    assert stimuli == [
        Stimulus("bec_pro_en_1", "My {} is a", ("mother", "father"), ("nurse", "roofer")),
        Stimulus("bec_pro_en_3", "My {}, the", ("mother", "father"), ("nurse", "roofer")),
        Stimulus("bec_pro_en_4", "My {}, the", ("mother", "father"), ("maid", "electrician"))]
    assert left_out == {'"a" before a vowel': ["maid / electrician"]}


def test_german_candidates_are_two_forms_of_one_profession(folder):
    stimuli, left_out = bec_pro.load("de", folder)
    slots = ("Meine Mutter", "Mein Vater")
    assert stimuli == [
        Stimulus("bec_pro_de_1", "{} ist", slots, ("Pflegerin", "Pfleger"), "female"),
        Stimulus("bec_pro_de_2", "{} ist", slots, ("Richterin", "Richter"), "balanced")]
    assert left_out == {
        "the profession has one form only": ["Mechaniker / Mechaniker"],
        "der or die before the profession tells its form": [
            "Pflegerin / Pfleger", "Richterin / Richter", "Mechaniker / Mechaniker"]}


@pytest.mark.parametrize("old, new, message", [
    ("Gender\t", "Sex\t", "column 'Gender' is missing"),
    ("My father is a nurse.", "My father is a nun.", "is no sentence of"),
    ("\tfemale\t", "\tmale\t", "0 women and 2 men"),
    ("My father", "My\xff father", "is no sentence of|cannot be read"),
])
def test_damaged_tables(folder, old, new, message):
    path = folder / "BEC-Pro_EN.tsv"
    assert old in path.read_text()
    path.write_bytes(path.read_text().replace(old, new).encode("latin-1"))
    with pytest.raises(InputError, match=message) as error:
        bec_pro.load("en", folder)
    assert str(path) in str(error.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        bec_pro.load("en", tmp_path)
    with pytest.raises(InputError, match="language 'fr' is unknown: choose from en, de"):
        bec_pro.load("fr", tmp_path)


def test_the_corpus():
    try:
        english, german = (bec_pro.load(language) for language in bec_pro.LANGUAGES)
    except InputError as error:
        pytest.skip(f"no data set: {error}")
    assert len(english.stimuli) == 5 * 9 * 20 - 3 * 9 * 3 == 819
    assert {len(names) for names in english.left_out.values()} == {81}
    assert Counter(stimulus.group for stimulus in german.stimuli) == {
        "female": 4 * 9 * 19, "male": 4 * 9 * 19, "balanced": 4 * 9 * 20}
    assert english.stimuli[0] == Stimulus("bec_pro_en_1", "{} is a", ("She", "He"),
                                          ("kindergarten teacher", "taper"))
    for stimulus in german.stimuli:
        # the corpus' forms of one profession begin alike
        assert stimulus.candidates[0][:3] == stimulus.candidates[1][:3]

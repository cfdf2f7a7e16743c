"""BEC-Pro (Bartl et al. 2020, CC BY 4.0): sentences of a person word and a profession, English and German.

A sentence is cut before its profession, and the person word is the slot: "My {} works as a", the null prompt
with "mother", the alternative with "father", each person word with its counterpart in the corpus. What the
two candidates are depends on the language:

English: a profession mostly of women, then one mostly of men, the corpus' lists side by side: the effect is
above 0 where the model follows the stereotype. "Balanced" professions have no direction and are not used.

German: the two forms of one profession, "Kindergärtnerin" and "Kindergärtner", as the corpus has them behind
either person. The effect is above 0 where the model lets the form agree with the person: grammar first, and
stereotype only in how it differs between the groups, whose names are those for the profession's workers.
"""

import csv
from itertools import product
from pathlib import Path

from mediation.errors import InputError
from mediation.files.assets import fetch_data_set
from mediation.stimuli.slots import Imported, collect, stimulus_of
from mediation.stimuli.stimulus_files import Stimulus

LANGUAGES = ("en", "de")
COLUMNS = ("Sentence", "Template", "Gender", "Profession", "Prof_Gender")
GENDERS = ("female", "male")
PERSON, PROFESSION = "<person subject>", "<profession>"


def load(language: str, folder: str | Path | None = None) -> Imported:
    """The stimuli of a language, by template, person words and professions.

    Left out are English sentences with "a" before a vowel (as the corpus has them), German professions of one
    form, and the German sentence whose article, der or die, tells the form already.

    Args:
        language: "en" or "de".
        folder: where the tables are; None fetches them into the project.

    Raises:
        InputError: an unknown language, or a missing or damaged table.
    """
    if language not in LANGUAGES:
        raise InputError(f"language {language!r} is unknown: choose from {', '.join(LANGUAGES)}")
    folder = Path(folder) if folder else fetch_data_set("bec_pro")
    path = folder / f"BEC-Pro_{language.upper()}.tsv"
    rows = _table(path)
    # the German sentence with an article is two templates in the table, for it is der or die
    templates = dict.fromkeys(row["Template"].replace(", der ", ", die ") for row in rows)
    women, men = (list(dict.fromkeys(_subject(path, row) for row in rows if row["Gender"] == gender))
                  for gender in GENDERS)
    candidates = _of_two_professions(rows) if language == "en" else _of_two_forms(rows)
    if len(women) != len(men) or not candidates:
        raise InputError(f"{path}: {len(women)} women and {len(men)} men, {len(candidates)} professions: "
                         "delete the file and run again, it is fetched then")
    combinations = product(templates, zip(women, men), candidates)
    items = [(" / ".join(pair), (f"bec_pro_{language}_{number}", template, persons, pair, group))
             for number, (template, persons, (pair, group)) in enumerate(combinations, start=1)]
    return collect(items, lambda item: _stimulus(*item))


def _stimulus(
    name: str, template: str, persons: tuple[str, str], pair: tuple[str, str], group: str,
) -> Stimulus:
    beginning = template.partition(PROFESSION)[0].rstrip()
    if beginning.endswith(", die"):
        raise InputError("der or die before the profession tells its form")
    if beginning.endswith(" a") and any(profession[0] in "aeiou" for profession in pair):
        raise InputError('"a" before a vowel')
    if pair[0] == pair[1]:
        raise InputError("the profession has one form only")
    null, alternative = (beginning.replace(PERSON, person) for person in persons)
    return stimulus_of(name, null, alternative, pair, group)


def _of_two_professions(rows: list[dict[str, str]]) -> list[tuple[tuple[str, str], str]]:
    """((a profession mostly of women, one mostly of men), no group): the lists of the corpus side by side."""
    lists = (dict.fromkeys(row["Profession"] for row in rows if row["Prof_Gender"] == gender)
             for gender in GENDERS)
    return [(pair, "") for pair in zip(*lists)]


def _of_two_forms(rows: list[dict[str, str]]) -> list[tuple[tuple[str, str], str]]:
    """((feminine form, masculine form), group) of every profession; the rows tell its English name."""
    forms: dict[str, dict[str, str]] = {}
    for row in rows:
        forms.setdefault(row["Profession_EN"], {})[row["Gender"]] = row["Profession"]
    groups = {row["Profession_EN"]: row["Prof_Gender"] for row in rows}
    return [((form["female"], form["male"]), groups[name]) for name, form in forms.items()
            if len(form) == len(GENDERS)]


def _subject(path: Path, row: dict[str, str]) -> str:
    """The person of a sentence with its article or pronoun: "My mother"."""
    behind = row["Template"].removeprefix(PERSON).replace(PROFESSION, row["Profession"])
    if not row["Template"].startswith(PERSON) or not row["Sentence"].endswith(behind):
        raise InputError(f"{path}: {row['Sentence']!r} is no sentence of {row['Template']!r}: delete the "
                         "file and run again, it is fetched then")
    return row["Sentence"].removesuffix(behind)


def _table(path: Path) -> list[dict[str, str]]:
    columns = (*COLUMNS, "Profession_EN") if path.stem.endswith("DE") else COLUMNS
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [{name: row[name] or "" for name in columns}
                    for row in csv.DictReader(file, delimiter="\t")]
    except KeyError as error:
        raise InputError(f"{path}: column {error} is missing: delete the file and run again, it is fetched "
                         "then") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): delete its folder and run again, it is fetched "
                         "then") from error
    return rows

"""Winogender (Rudinger et al. 2018): pairs of sentences about an occupation and a participant."""

import csv
from collections.abc import Sequence
from pathlib import Path

from mediation.errors import InputError
from mediation.files.assets import fetch_data_set
from mediation.stimuli.prompts import PronounStimulus

STATISTICS = {"bergsma": "bergsma_pct_female", "bls": "bls_pct_female"}  # percentage of an occupation's women
MISPRINTS = {" aiport ": " airport "}  # in the packaged file; the published study ran on the right word
PRONOUNS = {"$NOM_PRONOUN": ("she", "he"), "$POSS_PRONOUN": ("her", "his")}


def load(statistic: str, folder: str | Path | None = None) -> list[PronounStimulus]:
    """The 44 examples, in the order of the file; the statistic decides which continuation fits a woman.

    Args:
        statistic: "bergsma" or "bls"; an occupation above 50 is taken for female.
        folder: where the two tables are; None fetches them into the project.

    Raises:
        InputError: an unknown statistic, a missing or damaged table, an unpaired row, an occupation without
            statistics.
    """
    if statistic not in STATISTICS:
        raise InputError(f"statistic {statistic!r} is unknown: choose from {', '.join(STATISTICS)}")
    folder = Path(folder) if folder else fetch_data_set("winogender")
    path = folder / "templates.tsv"
    column = STATISTICS[statistic]
    occupations = _table(folder / "occupations-stats.tsv", ("occupation", column))
    shares = {row["occupation"]: row[column] for row in occupations}
    rows = _table(path, ("occupation(0)", "other-participant(1)", "answer", "sentence"))
    if len(rows) % 2:
        raise InputError(f"{path}, line {len(rows) + 1}: the last row has no partner, rows come in pairs: "
                         "fetch the file again")
    examples = []
    for index in range(0, len(rows), 2):
        pair = rows[index:index + 2]
        occupation = pair[0]["occupation(0)"]
        if {row["answer"] for row in pair} != {"0", "1"} or pair[1]["occupation(0)"] != occupation:
            raise InputError(f"{path}, lines {index + 2} and {index + 3} are no pair (one occupation, "
                             "answers 0 and 1): fetch the file again")
        try:
            is_female = float(shares[occupation]) > 50
        except (KeyError, ValueError):
            raise InputError(f"{path}, line {index + 2}: occupation {occupation!r} has no {statistic} "
                             "statistic: fetch the files again") from None
        examples.append(_example(pair, is_female))
    return [example for example in examples if example is not None]


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = [{name: (value or "").strip() for name, value in row.items() if name}
                    for row in csv.DictReader(file, delimiter="\t")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read ({error}): delete its folder and run again, it is fetched "
                         "then") from error
    missing = [column for column in columns if not rows or column not in rows[0]]
    if missing:
        raise InputError(f"{path}: column {missing[0]!r} is missing: delete the file and run again, it is "
                         "fetched then")
    return rows


def _example(pair: Sequence[dict[str, str]], is_female: bool) -> PronounStimulus | None:
    """The example of two rows, or None when they differ before the pronoun or in its kind."""
    occupation, participant = pair[0]["occupation(0)"], pair[0]["other-participant(1)"]
    placeholder = next((kind for kind in PRONOUNS if all(kind in row["sentence"] for row in pair)), None)
    if placeholder is None:
        return None
    continuations, base_strings = {}, set()
    for row in pair:
        text = row["sentence"].replace("$OCCUPATION", occupation).replace("$PARTICIPANT", participant)
        for misprint, word in MISPRINTS.items():
            text = text.replace(misprint, word)
        before, after = text.split(placeholder, 1)
        base_strings.add(before + "{}")
        continuations[row["answer"]] = after.strip()
    if len(base_strings) != 1:
        return None
    of_occupation = continuations["0"], occupation
    of_participant = continuations["1"], participant
    female, male = (of_occupation, of_participant) if is_female else (of_participant, of_occupation)
    candidates, referents = (female[0], male[0]), (female[1], male[1])
    return PronounStimulus(base_strings.pop(), PRONOUNS[placeholder], candidates, referents)

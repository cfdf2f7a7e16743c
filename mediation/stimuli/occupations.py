"""Which occupations a sentence of WinoBias or Winogender is about, from the sentence alone: what its example
shares with others.

The names are facts of the two data sets (Zhao et al. 2018, the 40 of both lists of occupations; Rudinger et
al. 2018, the 60 with statistics), kept here because a result file has sentences and no occupations.
"""

import re

WINOBIAS = (
    "CEO", "accountant", "analyst", "assistant", "attendant", "auditor", "baker", "carpenter", "cashier",
    "chief", "cleaner", "clerk", "construction worker", "cook", "counselor", "designer", "developer",
    "driver", "editor", "farmer", "guard", "hairdresser", "housekeeper", "janitor", "laborer", "lawyer",
    "librarian", "manager", "mechanic", "mover", "nurse", "physician", "receptionist", "salesperson",
    "secretary", "sheriff", "supervisor", "tailor", "teacher", "writer")
WINOGENDER = (
    "accountant", "administrator", "advisor", "appraiser", "architect", "auditor", "baker", "bartender",
    "broker", "carpenter", "cashier", "chef", "chemist", "clerk", "counselor", "dietitian", "dispatcher",
    "doctor", "educator", "electrician", "engineer", "examiner", "firefighter", "hairdresser", "hygienist",
    "inspector", "instructor", "investigator", "janitor", "lawyer", "librarian", "machinist", "manager",
    "mechanic", "nurse", "nutritionist", "officer", "painter", "paralegal", "paramedic", "pathologist",
    "pharmacist", "physician", "planner", "plumber", "practitioner", "programmer", "psychologist",
    "receptionist", "salesperson", "scientist", "secretary", "specialist", "supervisor", "surgeon", "teacher",
    "technician", "therapist", "veterinarian", "worker")


def _any_of(names):
    """Pattern of a name as a word; the longest first, for a construction worker is a worker, too."""
    return re.compile(rf"\b({'|'.join(sorted(names, key=len, reverse=True))})\b", re.IGNORECASE)


_WINOBIAS, _WINOGENDER = _any_of(WINOBIAS), _any_of(WINOGENDER)


def occupations_in(sentence: str) -> tuple[str, ...]:
    """The two occupations of a sentence of WinoBias, or the one of Winogender, in the order of the alphabet
    and in small letters; none where it is of neither."""
    pair = sorted({name.lower() for name in _WINOBIAS.findall(sentence)})
    if len(pair) == 2:
        return tuple(pair)
    one = sorted({name.lower() for name in _WINOGENDER.findall(sentence)})
    return tuple(one) if len(one) == 1 else ()

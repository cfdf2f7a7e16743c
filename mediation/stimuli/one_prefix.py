"""One-prefix minimal pairs, as BLiMP has them (Warstadt et al. 2020): a prefix, a good and a bad next word.

A comparison needs a second prompt that turns the preference round. Two records of a file are joined where
the good word of each is the bad word of the other: "The sister" (bakes, bake) and "The sisters" (bake,
bakes). The earlier one is the null prompt; candidates are its good word and the other's.
"""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from mediation.errors import InputError
from mediation.stimuli import rows
from mediation.stimuli.slots import Imported, stimulus_of
from mediation.stimuli.stimulus_files import Stimulus

FIELDS = ("one_prefix_prefix", "one_prefix_word_good", "one_prefix_word_bad")


class Record(NamedTuple):
    """One line of a file."""

    line: int
    prefix: str
    good: str
    bad: str


def load(path: str | Path) -> Imported:
    """Every record is used once at most, with the first one behind it that fits, in the file's order.

    The prefixes of two that fit share words, and what they do not share is one span without a common word.
    Left out are records without prefix and words, those without a partner, and what stands there twice.

    Raises:
        InputError: an unreadable file, a missing column, or no record.
    """
    path, left_out = Path(path), defaultdict(list)
    records: dict[tuple[str, ...], Record] = {}
    for number, row in rows.read_records(path, FIELDS, "one-prefix pairs"):
        texts = tuple(row[name].strip() for name in FIELDS if isinstance(row.get(name), str))
        if len(texts) < len(FIELDS) or not all(texts):
            left_out["no text in one of " + ", ".join(FIELDS)].append(f"line {number}")
        elif texts in records:
            left_out["the same record stands in the file before"].append(f"line {number}")
        else:
            records[texts] = Record(number, *texts)
    if not records and not left_out:
        raise InputError(f"{path} holds no record: a line has {', '.join(FIELDS)}")
    waiting = defaultdict(list)  # records without a partner, in order, by their words
    for record in records.values():
        waiting[record.good, record.bad].append(record)
    stimuli = []
    for record in records.values():
        own, others = waiting[record.good, record.bad], waiting[record.bad, record.good]
        for other in others if record in own else ():
            stimulus = _join(record, other)
            if stimulus:
                stimuli.append(stimulus)
                own.remove(record)
                others.remove(other)
                break
    alone = sorted(record.line for group in waiting.values() for record in group)
    if alone:
        left_out["no partner that reverses its preference"] = [f"line {line}" for line in alone]
    return Imported(stimuli, dict(left_out))


def _join(record: Record, other: Record) -> Stimulus | None:
    """The stimulus of two records whose words are exchanged, or None where their prefixes do not fit."""
    try:
        stimulus = stimulus_of(f"{record.line}_{other.line}", record.prefix, other.prefix,
                               (record.good, other.good))
    except InputError:  # equal prefixes, say
        return None
    one, another = (set(substitute.split()) for substitute in stimulus.substitutes)
    shared = stimulus.base.replace("{}", "").strip()
    return stimulus if other.line > record.line and shared and not one & another else None

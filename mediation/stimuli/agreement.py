"""Number agreement of subject and verb as stimuli (after Finlayson et al. 2021): a small grammar of our own.

A base string ends before a verb, its slot is the subject's noun. The null prompt has the noun in one number,
the alternative in the other, and the candidates are the two forms of a verb: the form that fits the null
prompt first, so that a model that agrees has a total effect above 0.
"""

from itertools import product
from random import Random

from mediation.stimuli.stimulus_files import Stimulus

NOUNS = (("author", "authors"), ("farmer", "farmers"), ("teacher", "teachers"), ("doctor", "doctors"),
         ("driver", "drivers"), ("student", "students"), ("singer", "singers"), ("lawyer", "lawyers"),
         ("pilot", "pilots"), ("writer", "writers"))
VERBS = (("is", "are"), ("was", "were"), ("has", "have"))
DISTRACTORS = ("really", "clearly", "probably", "certainly", "usually", "also")
PREPOSITIONS = ("near", "behind", "beside", "across from")
OBJECTS = (("car", "cars"), ("house", "houses"), ("table", "tables"), ("tree", "trees"),
           ("window", "windows"), ("bridge", "bridges"))
INNER_NOUNS = (("guard", "guards"), ("clerk", "clerks"), ("manager", "managers"), ("judge", "judges"),
               ("player", "players"))  # none of the subjects
INNER_VERBS = (("likes", "like"), ("helps", "help"), ("knows", "know"), ("sees", "see"))
STRUCTURES = ("simple", "one distractor", "two distractors", "prepositional phrase", "relative clause")


def endings(structure: str, random: Random) -> list[str]:
    """The words between the subject and the verb: every variant of a structure, in a random order.

    Inner nouns come in both numbers.
    """
    if structure == "simple":
        variants = [""]
    elif structure == "one distractor":
        variants = [f" {word}" for word in DISTRACTORS]
    elif structure == "two distractors":
        variants = [f" {one} and {other}" for one in DISTRACTORS for other in DISTRACTORS if one != other]
    elif structure == "prepositional phrase":
        variants = [f" {preposition} the {noun}" for preposition in PREPOSITIONS for noun in sum(OBJECTS, ())]
    else:
        variants = [f" that the {noun} {verbs[number]}" for nouns in INNER_NOUNS for verbs in INNER_VERBS
                    for number, noun in enumerate(nouns)]
    return random.sample(variants, len(variants))


def generate(count: int, seed: int = 0) -> list[Stimulus]:
    """`count` stimuli per structure and number: groups such as "simple, singular" (the null prompt's noun).

    Nouns and verbs take turns, the words between them are drawn at random; no two stimuli are the same.
    """
    random, stimuli = Random(seed), []
    for structure in STRUCTURES:
        between = endings(structure, random)
        pairs = random.sample(list(product(NOUNS, VERBS)), len(NOUNS) * len(VERBS))
        for number, name in enumerate(("singular", "plural")):
            for index in range(min(count, len(pairs) * len(between))):
                nouns, verbs = pairs[index % len(pairs)]
                # each turn of the pairs moves the variants on by one: no pair meets one of them twice
                middle = between[(index + index // len(pairs)) % len(between)]
                stimuli.append(Stimulus(
                    f"{structure.replace(' ', '_')}_{name}_{index + 1}", "The {}" + middle,
                    (nouns[number], nouns[1 - number]), (verbs[number], verbs[1 - number]),
                    f"{structure}, {name}"))
    return stimuli

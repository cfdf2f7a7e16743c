"""Indirect-object identification (after Wang et al. 2022), from templates and words of our own.

"When Emma and Paul went to the market, Paul gave a letter to" goes on with Emma, the name that was said once.
The slot is the name that is said again. The null prompt repeats one of the two, the alternative the other:
one word differs, and the names exchange their roles. Candidates are the two names, first the one that the
null prompt asks for, so a model that identifies it has a total effect above 0.
"""

from itertools import permutations
from random import Random

from mediation.stimuli.stimulus_files import Stimulus

NAMES = ("Emma", "Paul", "Alice", "Peter", "Laura", "David", "Sarah", "Mark", "Anna", "Tom", "Jane", "Simon",
         "Lucy", "Henry", "Julia", "Robert")
PLACES = ("market", "library", "station", "museum", "garden", "office", "beach", "theater")
OBJECTS = ("letter", "book", "ticket", "ring", "basket", "camera", "flower", "coat")
TEMPLATES = ("When {first} and {second} went to the {place}, {{}} gave a {object} to",
             "After {first} and {second} met at the {place}, {{}} handed a {object} to",
             "While {first} and {second} waited at the {place}, {{}} showed a {object} to",
             "Yesterday {first} and {second} walked to the {place}, and {{}} sold a {object} to")
REPEATED = ("first", "second")  # which of the two names the null prompt says again


def generate(count: int, seed: int = 0) -> list[Stimulus]:
    """`count` stimuli for either name that the null prompt may repeat: these are the groups.

    No two stimuli are the same.
    """
    random, stimuli = Random(seed), []
    pairs = list(permutations(NAMES, 2))
    sizes = len(pairs), len(TEMPLATES), len(PLACES), len(OBJECTS)
    total = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    for which in REPEATED:
        for number, drawn in enumerate(random.sample(range(total), min(count, total)), start=1):
            choice = []
            for size in sizes:
                drawn, index = divmod(drawn, size)
                choice.append(index)
            first, second = pairs[choice[0]]
            base = TEMPLATES[choice[1]].format(first=first, second=second, place=PLACES[choice[2]],
                                               object=OBJECTS[choice[3]])
            repeated, other = (first, second) if which == "first" else (second, first)
            stimuli.append(Stimulus(f"{which}_{number}", base, (repeated, other), (other, repeated),
                                    f"{which} name repeated"))
    return stimuli

"""Greater-than (after Hanna et al. 2023) as two candidates: an event ends after it began.

The paper's prompt ends within a number, "from the year 1732 to the year 17", and adds up the probabilities of
all two-digit endings above 32, less those of the others. A file of stimuli has two candidates, each behind a
blank. So here the prompt ends before the number, "The siege lasted from 1732 until", and one year above
stands against one below, whole years of the same century and last digit. It asks whether a model prefers one
possible year to one impossible year; the size of the effect is not to be compared with the paper's. A model
that only prefers years near the first one has an effect of the same sign.

The null prompt has the year 1732, say, the alternative the year 01 of the century, after which both
candidates are possible (the paper's corrupted prompt has 01, too). Candidates: first the year above, which
the null prompt should favour, then the one below. A model that knows the order has a total effect above 0.
"""

from itertools import product
from random import Random

from mediation.stimuli.stimulus_files import Stimulus

EVENTS = ("siege", "voyage", "drought", "trial", "plague", "rebellion", "reign", "feud", "truce", "journey")
TEMPLATES = ("The {event} lasted from {{}} until", "The {event} began in {{}} and ended in",
             "The {event} went on from {{}} to")
CENTURIES = range(12, 19)


def generate(count: int, seed: int = 0) -> list[Stimulus]:
    """`count` stimuli; no two are the same.

    Groups are the decades of the null prompts' years, "20s" to "80s".
    """
    decades = [(below, own, above) for own in range(2, 9) for below in range(1, own)
               for above in range(own + 1, 10)]
    variants = list(product(TEMPLATES, EVENTS, CENTURIES, decades, range(10), range(10)))
    stimuli = []
    drawn = Random(seed).sample(variants, min(count, len(variants)))
    for number, (template, event, century, (below, own, above), digit, last) in enumerate(drawn, start=1):
        stimuli.append(Stimulus(
            f"{number}", template.format(event=event), (f"{century}{own}{digit}", f"{century}01"),
            (f"{century}{above}{last}", f"{century}{below}{last}"), f"{own}0s"))
    return stimuli

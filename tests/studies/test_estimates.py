"""Estimated effects: what gradients take on disk, how draws of a screening are counted."""



from mediation.effects.screening import Screening
from mediation.studies import professions as professions_study


def test_one_draw_is_counted_once_over_templates():
    samples = (("man_direct", [["nurse", 5]]), ("man_direct", [["nurse", 5], ["clerk", 5]]),
               ("man_indirect", []))
    entries = [{"intervention_type": kind, "screen": {"drawn": 12, "rest": 100, "missed": missed}}
               for kind, missed in samples]
    assert professions_study.screening(entries, 50) == Screening(24, 2, 100, 50)

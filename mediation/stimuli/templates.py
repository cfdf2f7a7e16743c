"""The 17 templates of the 2020 study, by their numbers, and as they stand in file names."""

from collections.abc import Iterable

from mediation.errors import InputError

TEMPLATES = tuple(
    "The {} " + ending
    for ending in (
        *(f"{verb} that" for verb in ("said", "yelled", "whispered", "wanted", "desired", "wished")),
        *(f"{verb} because" for verb in ("ate", "ran", "drove", "slept", "cried", "laughed", "went home",
                                         "stayed up", "was fired", "was promoted", "yelled")),
    )
)  # numbered from 1 in this order, as in the 2020 study


def select_templates(indices: Iterable[int] | None) -> dict[int, str]:
    """{number: template} for the given numbers 1..17, in order and once each; all of them for None.

    Raises:
        InputError: a number outside 1..17.
    """
    numbers = range(1, len(TEMPLATES) + 1) if indices is None else dict.fromkeys(indices)
    for number in numbers:
        if not 1 <= number <= len(TEMPLATES):
            raise InputError(f"template index {number} does not exist: templates are numbered 1 to "
                             f"{len(TEMPLATES)}")
    return {number: TEMPLATES[number - 1] for number in numbers}


def split_base_string(base_string: str) -> tuple[str, str]:
    """(template, word) of a filled template: "The nurse said that" -> ("The {} said that", "nurse").

    Raises:
        InputError: none of the 17 templates fits.
    """
    for template in TEMPLATES:
        before, after = template.split("{}")
        fits = base_string.startswith(before) and base_string.endswith(after)
        if fits and len(base_string) > len(before) + len(after):
            return template, base_string[len(before):len(base_string) - len(after)]
    raise InputError(f"base string {base_string!r} fits none of the {len(TEMPLATES)} templates")


def template_file_stem(template: str) -> str:
    """The template as it stands in file names: "The {} said that" -> "The_X_said_that"."""
    return template.replace("{}", "X").replace(" ", "_")

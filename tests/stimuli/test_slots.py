"""From two prompts to a base with one slot."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mediation.errors import InputError
from mediation.stimuli import slots


@pytest.mark.parametrize("first, second, base, substitutes", [
    ("The sister", "The sisters", "The {}", ("sister", "sisters")),
    ("Paul gave a ring to", "Emma gave a ring to", "{} gave a ring to", ("Paul", "Emma")),
    ("My mother, the", "My father, the", "My {}, the", ("mother", "father")),
    ("Meine Mutter ist", "Mein Vater ist", "{} ist", ("Meine Mutter", "Mein Vater")),
    ("a b c d e", "a x c y e", "a {} e", ("b c d", "x c y")),
    ("The big dog", "The very big dog", "{} big dog", ("The", "The very")),
    ("dog", "big dog", "{}", ("dog", "big dog")),
    ("It was (no).", "It was (yes).", "It was ({}).", ("no", "yes")),
    ("no!", "no?", "{}", ("no!", "no?")),
    ("a ! ?", "a !! ??", "a {}", ("! ?", "!! ??")),  # without the signs of both, a blank would be left
    ("a  b {c", "a  d {c", "a  {} {c", ("b", "d")),
    ("set {x}", "set {y}", "set {{}}", ("x", "y")),
])
def test_the_slot_is_the_smallest_span_of_words(first, second, base, substitutes):
    assert slots.shared_base(first, second) == (base, substitutes)


@given(*[st.text("ab,. {", min_size=1, max_size=8)] * 2)
def test_the_filled_base_is_either_prompt_again(first, second):
    try:
        base, substitutes = slots.shared_base(first, second)
    except InputError:
        return
    assert base.count("{}") == 1 and substitutes[0] != substitutes[1]
    assert all(substitute.strip() for substitute in substitutes)
    assert [base.replace("{}", substitute) for substitute in substitutes] == [first, second]


@pytest.mark.parametrize("first, second, message", [
    ("a b", "a b", "the two prompts are equal"),
    ("a b", "a  b", "differ in their blanks only"),
    ("a b c", "a  b d", "differ in their blanks as well"),
    ("a ", "b ", "ends in a blank"),
    ("", "b", "empty"),
    ("a {}", "b {}", "holds {}"),
])
def test_prompts_that_make_no_slot(first, second, message):
    with pytest.raises(InputError, match=message):
        slots.shared_base(first, second)


def test_what_the_format_refuses_is_left_out_with_its_reason():
    items = [(f"line {number}", null) for number, null in enumerate(("The cat", "The\tcat", "The dogs"))]
    stimuli, left_out = slots.collect(
        items, lambda null: slots.stimulus_of("one", null, "The dogs", ("is", "are")))
    assert [stimulus.substitutes for stimulus in stimuli] == [("cat", "dogs")]
    assert left_out["the two prompts are equal"] == ["line 2"]
    (reason,) = [reason for reason, names in left_out.items() if names == ["line 1"]]
    assert "blanks as well" in reason
    with pytest.raises(InputError) as error:
        slots.stimulus_of("one", "A\tcat", "A\tdog", ("is", "are"))
    assert error.value.reason.startswith("field 'base' holds a control character")

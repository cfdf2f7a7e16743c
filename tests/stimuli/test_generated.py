"""Generated stimuli: what they promise holds for every one of them, and a seed gives them again."""

import pytest

from mediation.stimuli import greater_than, indirect_object, stimulus_files
from mediation.stimuli.prompts import tokenize_candidate


@pytest.mark.parametrize("generator", [indirect_object, greater_than])
def test_a_seed_gives_the_same_again_and_no_two_are_the_same(tmp_path, generator):
    stimuli = generator.generate(200, 3)
    assert stimuli == generator.generate(200, 3) != generator.generate(200, 4)
    assert len({(one.base, one.substitutes, one.candidates) for one in stimuli}) == len(stimuli)
    written = stimulus_files.read(stimulus_files.write(tmp_path / "s.jsonl", stimuli))
    assert [one.id for one in written] == [one.id for one in stimuli]


def test_the_repeated_name_is_never_the_one_that_is_asked_for():
    stimuli = indirect_object.generate(100)
    assert len(stimuli) == 200
    for stimulus in stimuli:
        repeated, other = stimulus.substitutes
        assert stimulus.candidates == (other, repeated) and repeated != other
        before = stimulus.base.partition("{}")[0]
        first = repeated if stimulus.group == "first name repeated" else other
        assert before.index(first) == min(before.index(name) for name in (repeated, other))
        assert before.count(repeated) == before.count(other) == 1
        assert stimulus.base.endswith(" to")


def test_one_year_is_above_and_one_below():
    stimuli = greater_than.generate(300)
    assert len(stimuli) == 300
    for stimulus in stimuli:
        (start, early), (above, below) = ([int(year) for year in years] for years in
                                          (stimulus.substitutes, stimulus.candidates))
        assert early < below < start < above and len({year // 100 for year in (early, start, above)}) == 1
        assert early % 100 == 1 and above % 10 == below % 10 and stimulus.group == f"{start % 100 // 10}0s"


def test_more_than_there_are_gives_all_of_them(monkeypatch):
    monkeypatch.setattr(greater_than, "EVENTS", ("siege",))  # else they are over a million
    monkeypatch.setattr(greater_than, "CENTURIES", (17,))
    stimuli = greater_than.generate(10**9)
    assert len(stimuli) == len({(one.base, *one.substitutes, *one.candidates) for one in stimuli})
    assert len(stimuli) == 3 * 1 * 1 * 84 * 100


def test_names_are_single_tokens_of_the_real_model(smollm2):
    from mediation.model.checkpoints import load_tokenizer

    tokenizer = load_tokenizer(str(smollm2))
    for name in indirect_object.NAMES:
        assert len(tokenize_candidate(tokenizer, name)[1]) == 1
    assert len(tokenize_candidate(tokenizer, "1755")[1]) > 1

"""--plan as a user gives it: what it counts is what the run then does, and nothing is written."""

import re

import pytest

from mediation.files.storage import RunFolder
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies import plan
from tests.helpers import (
    HEAD_SELECTION,
    NEURON_SELECTION,
    assert_refused,
    contents,
    interrupt_at,
    write_stimuli,
)

PROFESSIONS = ("run_profession_neuron_experiments.py -template_indices 1 --professions nurse maid "
               "--intervention_types man_direct man_indirect")
OWN = [Stimulus("1", "The {} said that", ("nurse", "man"), ("she", "he"), "short"),
       Stimulus("2", "The {} went home because", ("teacher", "man"), ("he", "she"), "long")]
STUDIES = {
    "exact": PROFESSIONS,
    "gradient": f"{PROFESSIONS} --method gradient",
    "screen": f"{PROFESSIONS} --method screen --screen_share 0.6 --screen_sample 3",
    "winobias": "attention_intervention_winobias.py --do-filter False --method gradient",
    "winogender": "attention_intervention_winogender.py --do-filter False",
    "heads": f"{HEAD_SELECTION} --do-filter False --k 2 --algo topk,greedy,random --orders 2",
    "neurons": f"{NEURON_SELECTION} -template_indices 1 --professions nurse captain --k 2",
    "own": "mediate.py OWN --mediators mlps,layers,neurons",
}
NUMBERS = ("log_probabilities", "indirect", "direct", "ablation", "objectives")  # of interventions, in shards


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(plan, "PROBE", 0.1)
    # what a report says is for other tests, and takes longest here
    monkeypatch.setattr("mediation.analysis.write_report", lambda written: ("", written.run_folder.folder))
    # the filter on base probabilities is for real vocabularies
    monkeypatch.setattr("mediation.effects.estimands.LEAST_PROBABILITY", 0.0)


@pytest.fixture
def kept(monkeypatch):
    """Of every shard that a run keeps on the way (its bytes, how many interventions it holds)."""
    shards, save = {}, RunFolder.save_shard

    def watched(folder, file_name, word, **arrays):
        save(folder, file_name, word, **arrays)
        numbers = [arrays[name].size // (1 if name == "objectives" else 2)
                   for name in NUMBERS if name in arrays and "gradients" not in arrays]
        shards[file_name, word] = folder.shard_path(file_name, word).stat().st_size, sum(numbers)

    monkeypatch.setattr(RunFolder, "save_shard", watched)
    return shards


@pytest.fixture
def plans(monkeypatch):
    """Every Plan that was made, the run's own before those of other options."""
    made, make = [], plan.make

    def watched(*arguments, **named):
        made.append(make(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(plan, "make", watched)
    return made


@pytest.fixture
def command(toy_checkpoint, tmp_path):
    def of(study, out="out"):
        own = write_stimuli(tmp_path, OWN)
        return (f"{STUDIES[study].replace('OWN', str(own))} -model {toy_checkpoint('gpt2')} "
                f"-out_dir {tmp_path / out}")
    return of


def tables_in(folder):
    """Files of results, without what is made of them: summaries, figures, reports."""
    return [path for path in folder.rglob("*") if path.suffix in (".csv", ".parquet", ".json", ".pickle")
            and not any(word in path.name for word in ("manifest", "summary", "_mean_"))]


@pytest.mark.usefixtures("undrawn", "data")
@pytest.mark.parametrize("study", STUDIES)
def test_a_plan_counts_what_the_run_does_and_writes_nothing(run_script, command, tmp_path, kept, plans,
                                                            study):
    code, output, errors = run_script(f"{command(study)} --plan")
    assert code == 0 and "nothing is written" in output and "what would be saved" in output, errors
    assert re.search(r"8 NVIDIA H100 +[0-9.]+ (seconds|minutes)", output)
    assert not (tmp_path / "out").exists() and not kept
    of_run = plans[0]
    code, _, errors = run_script(command(study))
    assert code == 0, errors
    assert of_run.tasks == len(kept)
    assert of_run.cost.shards == sum(size for size, _ in kept.values())
    assert of_run.cost.interventions == sum(count for _, count in kept.values())
    tables = sum(path.stat().st_size for path in tables_in(tmp_path / "out"))
    if study not in ("heads", "neurons"):  # a toy's pickles are mostly the names in them
        assert of_run.tables == pytest.approx(tables, rel=0.2)


def test_what_is_finished_is_not_counted_again(run_script, command, tmp_path, plans, monkeypatch):
    stop = interrupt_at(monkeypatch, (RunFolder, "save_shard"), 2)
    assert run_script(command("exact"))[0] == 130 and len(stop) == 2
    before = contents(tmp_path / "out")
    code, output, _ = run_script(f"{command('exact')} --plan")
    assert code == 0 and contents(tmp_path / "out") == before
    assert plans[0].tasks == 3 and "1 tasks are finished and not counted" in output
    monkeypatch.undo()
    assert run_script(command("exact"))[0] == 0
    code, output, _ = run_script(f"{command('exact')} --plan")
    assert code == 0 and "interventions 0, of which 0 are run, in 0 tasks" in output


def test_a_long_run_tells_its_plan_in_three_lines(run_script, command, monkeypatch):
    assert "planned:" not in run_script(command("exact"))[1]
    monkeypatch.setattr(plan, "LONG", 0.0)
    code, output, _ = run_script(command("exact", "again"))
    told = output[output.index("planned:"):].splitlines()
    assert code == 0 and "256 interventions" in told[0] and "memory" in told[1] and "free" in told[2]


def test_bad_input_is_refused_as_without_a_plan(run_script, command, tmp_path):
    for wrong in (f"{PROFESSIONS} --max_examples -1 -model none -out_dir {tmp_path}",
                  f"{command('exact')} --candidates he he", f"{command('screen')} --screen_share 0.01"):
        outcomes = [run_script(f"{wrong}{more}") for more in ("", " --plan")]
        assert outcomes[0][0] == 2 and outcomes[0][2] == outcomes[1][2]
    assert not (tmp_path / "out").exists()


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(run_script, command, tmp_path,
                                                                     monkeypatch):
    monkeypatch.setattr("mediation.files.storage.free_space", lambda folder: 1000)
    assert_refused(run_script(command("exact")), "shards", "free")
    assert not (tmp_path / "out").exists()

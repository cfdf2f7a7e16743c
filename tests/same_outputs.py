"""All scripts of another commit and of this working tree on the toy models, and their files byte by byte.

    BEFORE=ee9d956 python -m pytest -q -s tests/same_outputs.py

Not collected by `make test`. Prints each file that differs, with the largest relative difference of its
numbers. Figures and pages are not compared (they hold the time and the folder); of a manifest only settings,
rows and what was checked.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np

from mediation.files.storage import read_pickle
from tests.helpers import PROJECT

NEURONS = ("run_profession_neuron_experiments.py -template_indices 1 12 13 "
           "--professions nurse teacher doctor captain maid clerk")
# enough words to interpolate between them
MANY = "--multi_token last --max_examples 14 -template_indices 1 13"
SCREEN = "--method screen --screen_share .7 --screen_sample 3 --screen_top 8"
OUT = "{out}"
COMMANDS = [  # {out}: a folder per line, {toy}: a checkpoint, {mine}: a file of stimuli
    *(f"{NEURONS} -model {{{kind}}} -out_dir {OUT}" for kind in ("gpt2", "gemma3_text")),
    f"{NEURONS} -model {{opt}} -out_dir {OUT} {MANY}",
    f"{NEURONS} -model {{llama}} -out_dir {OUT} --intervention_types man_minus_woman woman_direct --alpha 2 "
    "--format parquet",
    f"{NEURONS} -model {{llama}} -out_dir {OUT} --total_effects_only",
    f"{NEURONS} -model {{llama}} -out_dir {OUT} --odds_only --dtype float64",
    f"{NEURONS} -model {{llama}} -out_dir {OUT} --full_passes --intervention_types man_direct",
    *(f"run_profession_neuron_experiments.py -model {{{kind}}} -out_dir {OUT} {MANY}"
      for kind in ("llama", "gpt_neox")),
    f"{NEURONS} -model {{llama}} -out_dir {OUT} --method gradient",
    f"{NEURONS} -model {{llama}} -out_dir {OUT} --dtype float64 {SCREEN}",
    *(f"attention_intervention_winobias.py -model {{{kind}}} --split dev -out_dir {OUT} {options}"
      for kind, options in
      (("gpt2", "--do-filter False"), ("llama", "--do-filter False"),
       ("llama", "--do-filter False --method gradient"),
       ("llama", "--do-filter False --method screen"),
       ("gpt2", "--do-filter False --full_passes"))),
    f"attention_intervention_winogender.py -model {{gpt2}} --stat bls --do-filter False -out_dir {OUT}",
    "attention_intervention_subset_selection.py -model {gpt2} --do-filter False "
    "--algo topk,greedy,random --k 3 --orders 2 "
    f"--data winobias,winogender --out_dir {OUT}",
    "attention_intervention_subset_selection.py -model {llama} --do-filter False --algo greedy --lazy --k 3 "
    f"--out_dir {OUT}",
    *(f"neuron_intervention_subset_selection.py -model {{golden}} {options} -template_indices 1 13 "
      f"--max_examples 40 --out_dir {OUT}" for options in
      ("--algo topk,greedy,random --k 2 --orders 2", "--algo greedy --lazy --layer 2 --k 3")),
    *(f"mediate.py {{mine}} -model {{{kind}}} --out_dir {OUT} {options}" for kind, options in
      (("gpt2", ""), ("llama", "--multi_token last --format parquet"),
       ("llama", "--multi_token all --mediators neurons,mlps"),
       ("llama", f"--dtype float64 --multi_token last {SCREEN}"), ("llama", "--method gradient"))),
]
STIMULI = [
    {"id": "n1", "base": "The {} said that", "substitutes": ["nurse", "man", "woman"],
     "candidates": ["he", "she"], "group": "female"},
    {"id": "n2", "base": "The {} went home because", "substitutes": ["nurse", "man"],
     "candidates": ["he", "she"], "group": "female"},
    {"id": "n3", "base": "The {} said that", "substitutes": ["captain", "man"], "candidates": ["he", "she"],
     "group": "male"},
    {"id": "n4", "base": "The {} said that", "substitutes": ["carpenter", "man"], "candidates": ["he", "she"],
     "group": "male"},
    {"id": "n5", "base": "The captain told the nurse that {}", "substitutes": ["she", "he"],
     "candidates": ["was here", "had to go"]},
]
RUN_ALL = """
import runpy, shlex, sys, json, traceback
from pathlib import Path
sys.path.insert(0, "")
import torch
torch.set_num_threads(1)
from mediation.files import assets
assets.PROJECT = Path(sys.argv[1])
for number, command in enumerate(json.loads(Path(sys.argv[2]).read_text())):
    sys.argv = shlex.split(command)
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        print("EXIT", number, end.code, command, file=sys.stderr)
    except Exception:
        traceback.print_exc()
        print("EXIT", number, "traceback", command, file=sys.stderr)
"""


def outputs(source, folder, data, toys):
    """{path in `folder`: content} of what the scripts of a source tree write."""
    names = {name: str(path) for name, path in toys.items()}
    commands = [command.format(out=folder / str(number), **names) for number, command in enumerate(COMMANDS)]
    folder.mkdir()
    (folder / "commands.json").write_text(json.dumps(commands))
    done = subprocess.run([sys.executable, "-c", RUN_ALL, str(data), str(folder / "commands.json")],
                          cwd=source, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    print(source, *(line for line in done.stderr.splitlines()
                    if line.startswith(("EXIT", "error", "Traceback", "  File"))), sep="\n")
    return contents(folder)


def of_run(run):
    """What must be the same of a run in a manifest."""
    of_entries = {file: {key: entry.get(key) for key in ("rows", "checked_at_random", "interpolation")}
                  for file, entry in run["files"].items()}
    return {key: run.get(key) for key in ("settings", "error_budget", "checks")} | {"files": of_entries}


def contents(folder):
    """{path: what must be the same} of the files of all commands."""
    of_files = {}
    for path in sorted(path for path in folder.glob("*/**/*") if path.is_file()):
        name = str(path.relative_to(folder))
        if path.name == "manifest.json":
            of_files[name] = [of_run(run) for run in json.loads(path.read_text())["runs"]]
        elif path.suffix == ".pickle":
            of_files[name] = str(read_pickle(path))
        elif path.suffix not in (".pdf", ".md", ".html"):
            of_files[name] = path.read_bytes()
    return of_files


def largest_difference(one, other):
    """Of the numbers in two texts, relative; None where the texts differ in more than numbers."""
    number = re.compile(r"-?\d+\.\d+(?:[eE][-+]?\d+)?|-?\d+[eE][-+]?\d+")
    texts = [content.decode(errors="replace") if isinstance(content, bytes) else str(content)
             for content in (one, other)]
    numbers = [np.array(number.findall(text), float) for text in texts]
    if number.sub("", texts[0]) != number.sub("", texts[1]) or len(numbers[0]) != len(numbers[1]):
        return None
    return float((np.abs(numbers[0] - numbers[1]) / np.maximum(np.abs(numbers[0]), 1e-6)).max())


def test_two_commits_write_the_same(toy_checkpoint, shared, data, tmp_path):
    before, toys = tmp_path / "before", {kind: toy_checkpoint(kind)
                                         for kind in ("gpt2", "llama", "opt", "gemma3_text", "gpt_neox")}
    toys["golden"] = shared / "golden" / "gpt2-toy" / "model"  # a word counts where he and she are likely
    toys["mine"] = tmp_path / "mine.jsonl"
    toys["mine"].write_text("".join(json.dumps(stimulus) + "\n" for stimulus in STIMULI))
    before.mkdir()
    archive = subprocess.run(["git", "archive", os.environ["BEFORE"]], cwd=PROJECT, capture_output=True,
                             check=True).stdout
    subprocess.run(["tar", "x", "-C", str(before)], input=archive, check=True)
    expected, new = (outputs(source, tmp_path / name, data, toys)
                     for source, name in ((before, "old"), (PROJECT, "new")))
    assert report(expected, new)


def report(expected, new):
    """Print what differs; True where nothing does."""
    missing, more = sorted(expected.keys() - new.keys()), sorted(new.keys() - expected.keys())
    different = {name: largest_difference(expected[name], new[name]) for name in expected
                 if name in new and expected[name] != new[name]}
    print(f"\n{len(expected)} files, {len(different)} differ, {len(missing)} missing, {len(more)} new")
    for name, difference in different.items():
        print(f"{name}: {difference}   {COMMANDS[int(name.split('/')[0])]}")
        if name.endswith("manifest.json"):
            print(*(f"  {key}: {old[key]} -> {now[key]}" for old, now in zip(expected[name], new[name])
                    for key in old if old[key] != now.get(key)), sep="\n")
    print(*missing, *more, sep="\n")
    return not (missing or more or different)

"""Scripts under SIGKILL at random moments, until they end; then their files against undisturbed ones.

    make soak                         # 100 kills on toy models, about ten minutes on two cores
    SOAK_KILLS=1000 SOAK_SEED=1 make soak

Not collected by `make test`. Prints a report: kills, runs that were ended, what a kill left on disk, files
compared.
"""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np

from mediation.files.storage import read_pickle
from tests.helpers import PROJECT

IN_PROJECT = "import runpy, sys; from pathlib import Path; from mediation.files import assets; " \
             "assets.PROJECT = Path(sys.argv[1]); sys.argv = sys.argv[2:]; " \
             "runpy.run_path(sys.argv[0], run_name='__main__')"
SCRIPTS = {
    "neurons": "run_profession_neuron_experiments.py -template_indices 1 12 13 --full_passes "
               "--professions nurse teacher doctor captain maid clerk",
    "attention": "attention_intervention_winobias.py --do-filter False --split dev --full_passes",
    "head selection": "attention_intervention_subset_selection.py --do-filter False "
                      "--algo topk,greedy,random --k 6 --data winobias,winogender",
}


def files(folder):
    """{name: content that must be the same} of what a run leaves; figures and manifests hold times.

    Tables and JSON as bytes, pickles as values.
    """
    contents = {}
    for path in sorted(folder.glob("**/*")):
        if path.suffix in (".csv", ".json") and path.name != "manifest.json":
            contents[path.name] = path.read_bytes()
        elif path.suffix == ".pickle":
            contents[path.name] = read_pickle(path)
    return contents


def same(one, other):
    """Equality of plain values and arrays."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return np.array_equal(one, other) if isinstance(one, np.ndarray) else one == other


def test_soak(toy_checkpoint, data, tmp_path, capsys):
    kills_asked, rng = int(os.environ.get("SOAK_KILLS",
                                          "100")), random.Random(int(os.environ.get("SOAK_SEED", "0")))

    def start(name, folder):
        script, *options = SCRIPTS[name].split()
        command = [sys.executable, "-c", IN_PROJECT, str(data), script, *options, "-model",
                   str(toy_checkpoint("gpt2")), "--out_dir", str(folder)]
        return subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                                text=True)

    undisturbed, seconds = {}, {}
    for name in SCRIPTS:
        started = time.monotonic()
        process = start(name, tmp_path / name)
        _, errors = process.communicate()
        assert process.returncode == 0, errors
        undisturbed[name], seconds[name] = files(tmp_path / name), time.monotonic() - started
        assert undisturbed[name]
    counts = {name: {"kills": 0, "kills with results on disk": 0, "runs ended": 0, "files compared": 0}
              for name in SCRIPTS}
    turn = 0
    while sum(count["kills"] for count in counts.values()) < kills_asked:
        name = list(SCRIPTS)[turn % len(SCRIPTS)]
        folder, count, turn = tmp_path / f"killed {turn}", counts[name], turn + 1
        for _ in range(12):  # then it is left alone
            process = start(name, folder)
            try:
                process.wait(rng.uniform(0.3, 1.05) * seconds[name])
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                count["kills"] += 1
                count["kills with results on disk"] += any(path.suffix in (".npz", ".csv", ".pickle", ".json")
                                                           and path.name != "manifest.json"
                                                           for path in folder.glob("**/*"))
        else:
            process = start(name, folder)
        _, errors = process.communicate()
        assert process.returncode == 0, f"{name}, {folder}: {errors}"
        contents = files(folder)
        assert same(contents, undisturbed[name]), f"{name}: {folder} differs from {tmp_path / name}"
        leftovers = [path for path in folder.glob("**/*") if path.suffix == ".npz"
                     or path.name.endswith(".lock")]
        assert not leftovers, leftovers
        count["runs ended"] += 1
        count["files compared"] += len(contents)
    with capsys.disabled():
        print("\n| script | seconds undisturbed | "
              + " | ".join(next(iter(counts.values()))) + " | differences |\n" + "| --- " * 7 + "|")
        for name, count in counts.items():
            print(f"| {name} | {seconds[name]:.1f} | " + " | ".join(map(str, count.values())) + " | 0 |")

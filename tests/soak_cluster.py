"""Workers, nannies and drivers of `--engine dask` under SIGKILL at random moments; then the files against the
local engine's.

    python -m pytest -q tests/soak_cluster.py            # 20 kills of each, about half an hour on two cores
    SOAK_KILLS=100 SOAK_SEED=1 SOAK_KINDS=driver python -m pytest -q tests/soak_cluster.py::test_soak

Not collected by `make test`. A scheduler and two workers, each under a nanny that starts it again, are
processes of this machine; what was killed is started again at once, a driver with either engine. Prints a
report: kills, runs, files compared.
"""

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil
import pytest

from tests.helpers import PROJECT, tables

distributed = pytest.importorskip("distributed", reason="no cluster: pip install -r requirements-cluster.txt")

from distributed import Client
from distributed.cli import dask_scheduler, dask_worker

READERS = ThreadPoolExecutor(100)
STUDY = ("run_profession_neuron_experiments.py -template_indices 1 12 13 --full_passes "
         "--professions nurse teacher doctor captain maid clerk")
KILLS, SEED = int(os.environ.get("SOAK_KILLS", "20")), int(os.environ.get("SOAK_SEED", "0"))


def process(*command, errors=subprocess.DEVNULL):
    """Python, with the project where a worker finds it."""
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=PROJECT, stdout=subprocess.DEVNULL,
                            stderr=errors,
                            env={**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"})


def silently_read(driver):
    """The future of what a driver says: a full pipe would stop it."""
    return READERS.submit(lambda: [driver.stderr.read(), driver.stdout.read()])


class Cluster:
    """A scheduler and two nannies with a worker each, in processes that have imported torch already."""

    def __init__(self, start_script, folder):
        self.start_script, file = start_script, folder / "scheduler.json"
        self.scheduler = start_script(dask_scheduler.__file__, "--host", "127.0.0.1", "--port", 0,
                                      "--no-dashboard", "--scheduler-file", file)
        while not file.exists():
            time.sleep(0.1)
        self.address = json.loads(file.read_text())["address"]
        self.nannies = [self.nanny(), self.nanny()]

    def nanny(self):
        return self.start_script(dask_worker.__file__, self.address, "--nthreads", 1, "--host", "127.0.0.1",
                                 "--no-dashboard")

    def kill_nanny(self, rng):
        """With which its worker ends; another one begins."""
        index = rng.randrange(2)
        self.nannies[index].kill()
        self.nannies[index].wait()
        self.nannies[index] = self.nanny()
        return 1

    def kill_worker(self, rng):
        """Of a nanny, which starts another one."""
        killed = 0
        for child in psutil.Process(rng.choice(self.nannies).pid).children():
            with suppress(psutil.Error):
                if "resource_tracker" not in " ".join(child.cmdline()):
                    child.kill()
                    killed += 1
        return killed

    def close(self):
        for each in (*self.nannies, self.scheduler):
            each.kill()


BRIDGE, ADDRESS = "mediation0", "10.213.7"


def ip(*command):
    subprocess.run(["ip", *map(str, command)], check=True, capture_output=True)


@pytest.fixture
def namespaces():
    """Three network namespaces with an address each, on a bridge that leads nowhere else."""
    names = [f"mediation{number}" for number in (1, 2, 3)]
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces: {error}")
    ip("addr", "add", f"{ADDRESS}.1/24", "dev", BRIDGE)
    ip("link", "set", BRIDGE, "up")
    for number, name in enumerate(names, start=2):
        ip("netns", "add", name)
        ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", f"{name}v", "master", BRIDGE, "up")
        ip("-n", name, "addr", "add", f"{ADDRESS}.{number}/24", "dev", "eth0")
        ip("-n", name, "link", "set", "eth0", "up")
    yield names
    for name in names:
        ip("netns", "del", name)
    ip("link", "del", BRIDGE)


def test_three_nodes(toy_checkpoint, namespaces, tmp_path, capsys):
    """A worker per namespace; one is killed half-way, and the third comes only then."""
    study = [*STUDY.split(), "-model", toy_checkpoint("llama"), "-out_dir"]
    assert process(*study, tmp_path / "local").wait() == 0
    scheduler = process("-m", "distributed.cli.dask_scheduler", "--host", f"{ADDRESS}.1", "--port", 8786,
                        "--no-dashboard")
    address = f"tcp://{ADDRESS}.1:8786"
    started = [scheduler]

    def node(name):
        started.append(subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "distributed.cli.dask_worker", address,
             "--nthreads", "1", "--no-dashboard", "--no-nanny"], cwd=PROJECT, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": str(PROJECT)}))
        return started[-1]

    def shards():
        return len(list(tmp_path.glob("dask/results/*/unfinished/*/*.npz")))

    try:
        lost, _ = node(namespaces[0]), node(namespaces[1])
        driver = process(*study, tmp_path / "dask", "--engine", "dask", "--scheduler", address)
        while shards() < 3 and driver.poll() is None:
            time.sleep(0.05)
        lost.kill()
        node(namespaces[2])
        with Client(address) as client:
            while len(client.nthreads()) < 2 and driver.poll() is None:
                time.sleep(0.2)
            nodes, kept = list(client.nthreads()), shards()
        assert driver.wait() == 0
    finally:
        for each in started:
            each.kill()
    assert tables(tmp_path / "dask") == tables(tmp_path / "local") != {}
    with capsys.disabled():
        print(f"\nthe first of three nodes lost, the third there with {kept} tasks kept: {', '.join(nodes)}; "
              f"{len(tables(tmp_path / 'dask'))} tables equal the local engine's")


def test_soak(start_script, toy_checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__MULTIPROCESSING_METHOD", "fork")
    rng = random.Random(SEED)
    study = [*STUDY.split(), "-model", toy_checkpoint("llama"), "-out_dir"]

    def start(*options):
        return start_script(*study, *options)

    local = start(tmp_path / "local")
    _, error = local.communicate()
    assert local.returncode == 0, error
    expected = tables(tmp_path / "local")
    cluster = Cluster(start_script, tmp_path)
    report = []
    try:
        for what in os.environ.get("SOAK_KINDS", "worker nanny driver").split():
            killings = Killings(what, cluster, start, rng)
            while killings.kills < KILLS:
                folder = tmp_path / f"{what} {killings.runs + 1}"
                killings.run_to_its_end(folder)
                assert tables(folder) == expected, f"{what}: {folder} differs from {tmp_path / 'local'}"
                leftovers = [path for path in folder.rglob("*") if path.suffix in (".npz", ".lock")]
                assert not leftovers, leftovers
                with capsys.disabled():
                    print(f"{what}: {killings.kills} kills, {killings.runs} runs, "
                          f"{killings.given_up} resumed", flush=True)
            report.append(killings.row(len(expected)))
    finally:
        cluster.close()
    with capsys.disabled():
        print("\n| killed | kills | with tasks kept | given up and resumed | runs ended | files compared "
              "| differences |\n" + "| --- " * 7 + "|")
        print(*report, sep="\n")


class Killings:
    """Runs of a driver under which workers, nannies or the driver itself are killed, and how many were.

    `start`: a function of the driver's folder and options; `what`: is killed.
    """

    def __init__(self, what, cluster, start, rng):
        self.what, self.cluster, self.start, self.rng = what, cluster, start, rng
        self.joins = ["--engine", "dask", "--scheduler", cluster.address]
        self.kills = self.runs = self.with_shards = self.given_up = 0

    def begin(self, folder, joins):
        """A driver, and what it will have said."""
        self.driver = self.start(folder, *joins)
        self.said = silently_read(self.driver)

    def run_to_its_end(self, folder):
        """One run, which is started again whenever its driver was killed or gave up."""
        self.runs += 1
        self.begin(folder, self.joins)
        least = 1
        while self.driver.poll() is None:
            try:
                self.driver.wait(self.rng.uniform(0.2, 2))
            except subprocess.TimeoutExpired:
                kept = len(list(folder.glob("results/*/unfinished/*/*.npz")))
                if self.kills >= KILLS or kept < least:
                    continue
                if self.what == "driver":
                    # of the next one half begin at least, the others are killed whenever it comes
                    least = self.rng.choice([0, kept + 1])
                    self.kill_driver(folder, kept)
                else:
                    killed = getattr(self.cluster, f"kill_{self.what}")(self.rng)
                    self.kills, self.with_shards = self.kills + killed, self.with_shards + killed
            if self.driver.poll() == 2 and "workers died" in "".join(self.said.result()):
                self.given_up += 1  # a task whose workers were killed three times
                self.begin(folder, self.joins)
        said = "".join(self.said.result())
        assert self.driver.returncode == 0, f"{self.what}, {folder}: {said[-3000:]}"

    def kill_driver(self, folder, kept):
        """Another one begins, with either engine; `kept`: how many tasks it finds."""
        self.with_shards += kept > 0
        self.driver.kill()
        self.driver.wait()
        self.kills += 1
        self.begin(folder, self.rng.choice([self.joins, self.joins, []]))

    def row(self, files):
        """Of the report; `files`: of a run."""
        return (f"| {self.what} | {self.kills} | {self.with_shards} | {self.given_up} | {self.runs} | "
                f"{self.runs * files} | 0 |")

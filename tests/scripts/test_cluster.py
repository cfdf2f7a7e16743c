"""`--engine dask`: the same files as the local engine's, whoever computes and whatever is lost on the way.

The scheduler is in this process; workers are processes, forked from one that has imported torch already.
"""

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from tqdm import tqdm

import mediation
from mediation.errors import InputError
from mediation.files.storage import RunFolder, read_pickle
from mediation.model.language_model import LanguageModel
from mediation.stimuli import stimulus_files
from mediation.studies import engine, engines, interpolated_trees
from mediation.studies.engines import ClusterOptions, engine_of
from tests.helpers import GOOD_STIMULUS, HEAD_SELECTION, interrupt_at, tables

distributed = pytest.importorskip("distributed", reason="no cluster: pip install -r requirements-cluster.txt")

from distributed import Scheduler, SpecCluster
from distributed.cli import dask_worker

from mediation.studies import cluster

KEY = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
HERE = {"host": cluster.LOOPBACK, "dashboard": False, "dashboard_address": f"{cluster.LOOPBACK}:0"}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Here, and in the processes that this module's own fixtures start: their number decides last digits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


class Workers:
    """A scheduler, and the processes that it has workers in."""

    def __init__(self, start_script, security=None):
        self.security, self.start_script, self.processes = security, start_script, []
        options = {**HERE, "allowed_failures": cluster.ATTEMPTS - 1}
        if security:
            options |= {"protocol": "tls://", "security": security}
        self.cluster = SpecCluster({}, {"cls": Scheduler, "options": options}, security=security)
        self.address = self.cluster.scheduler_address
        self.options = f"--engine dask --scheduler {self.address}"

    def add(self, *options):
        self.processes.append(self.start_script(
            f"{dask_worker.__file__} {self.address} --no-nanny --no-dashboard --nthreads 1 "
            f"--host {cluster.LOOPBACK}", *options))
        return self.processes[-1]

    def close(self):
        for process in self.processes:
            process.kill()
        self.cluster.close()


@pytest.fixture(scope="module")
def two(start_script):
    """Two workers, for all tests that kill none."""
    workers = Workers(start_script)
    workers.add()
    workers.add()
    yield workers
    workers.close()


@pytest.fixture
def workers(start_script):
    """None yet."""
    found = Workers(start_script)
    yield found
    found.close()


NEURONS = ("run_profession_neuron_experiments.py -template_indices 1 13 "
           "--professions nurse captain teacher doctor")
SCREEN = "--method screen --screen_share 0.6 --screen_sample 3 --screen_top 5"
STUDIES = {
    "neurons": f"{NEURONS} --intervention_types man_direct man_indirect",  # the first by interpolation
    "screened neurons": f"{NEURONS} --intervention_types man_indirect woman_minus_man {SCREEN}",
    "heads": "attention_intervention_winobias.py --do-filter False --split dev",
    "selection": f"{HEAD_SELECTION} --do-filter False --algo topk,greedy --k 2 --data winogender",
    "own question": "mediate.py STIMULI --mediators mlps",
    "means": "mediate.py STIMULI --mediators residuals --values mean --positions slot",
}


def written(folder):
    """{name: bytes, or a pickle's values} of what a study leaves; figures, reports, manifests hold times."""
    return {path.name: repr(read_pickle(path)) if path.suffix == ".pickle" else path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.suffix in (".csv", ".json", ".pickle") and path.name != "manifest.json"}


@pytest.mark.usefixtures("unreported", "data")
@pytest.mark.parametrize("study", STUDIES)
def test_files_equal_the_local_engines(run_script, toy_checkpoint, two, tmp_path, monkeypatch, study):
    monkeypatch.setattr(interpolated_trees, "INTERPOLATED_FROM", 3)
    stimuli = tmp_path / "mine.jsonl"
    stimulus_files.write(stimuli, stimulus_files.of_records([
        {**GOOD_STIMULUS, "id": word, "substitutes": [word, "man"]} for word in ("nurse", "captain")]))
    command = STUDIES[study].replace("STIMULI", str(stimuli)) + f" -model {toy_checkpoint('llama')} --out_dir"
    for engine_options, name in ((two.options, "dask"), ("", "local")):
        code, _, error = run_script(f"{command} {tmp_path / name} {engine_options}")
        assert code == 0, error
    assert written(tmp_path / "dask") == written(tmp_path / "local") != {}


@pytest.fixture(scope="module")
def command(toy_checkpoint):
    """Two tables, of four tasks."""
    return f"{NEURONS} --intervention_types man_indirect -model {toy_checkpoint('llama')} -out_dir"


@pytest.fixture(scope="module")
def of_local(command, start_script, tmp_path_factory):
    """The tables of the local engine."""
    folder = tmp_path_factory.mktemp("local")
    assert start_script(f"{command} {folder}").wait() == 0
    return tables(folder)


def test_a_worker_lost_half_way_and_one_added_change_no_byte(run_script, command, of_local, workers,
                                                             tmp_path):
    lost = workers.add()

    def replace():
        while len(list(tmp_path.glob("dask/results/*/unfinished/*/*.npz"))) < 2:
            time.sleep(0.01)
        lost.kill()
        workers.add()

    killer = threading.Thread(target=replace, daemon=True)
    killer.start()
    code, _, error = run_script(f"{command} {tmp_path / 'dask'} {workers.options}")
    assert code == 0 and not killer.is_alive(), error
    assert lost.wait() == -signal.SIGKILL
    assert tables(tmp_path / "dask") == of_local != {}


@pytest.mark.parametrize("first", ["dask", "local"])
def test_a_lost_driver_is_resumed_by_either_engine(run_script, command, of_local, two, tmp_path, monkeypatch,
                                                   first):
    saved, options = [], {"dask": two.options, "local": ""}
    with monkeypatch.context() as patch:
        saved += interrupt_at(patch, (RunFolder, "save_shard"), call=3)
        assert run_script(f"{command} {tmp_path / 'parts'} {options[first]}")[0] == 130
    assert len(list(tmp_path.glob("parts/results/*/unfinished/*/*.npz"))) == 2
    with monkeypatch.context() as patch:
        saved = interrupt_at(patch, (RunFolder, "save_shard"), call=-1)
        second = options["local" if first == "dask" else "dask"]
        assert run_script(f"{command} {tmp_path / 'parts'} {second}")[0] == 0
    assert len(saved) == 2  # of four
    assert tables(tmp_path / "parts") == of_local != {}


@dataclass(frozen=True)
class Failing(engine.Task):
    """Writes down that it was begun; some end badly."""

    folder: Path

    def compute(self, model, earlier, progress):
        begun = len(list(self.folder.glob(f"{self.name}-*")))
        (self.folder / f"{self.name}-{begun}").touch()
        if self.name == "raises" or (self.name == "raises twice" and begun < 2):
            raise RuntimeError("a bad day\nin detail")
        if self.name == "kills":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.name == "is refused":
            raise InputError("it cannot be mended: name another one")
        return {"number": np.float64(begun)}


@pytest.mark.parametrize("name, times, line", [
    ("raises", 3, "raises: failed 3 times (RuntimeError: a bad day): what was finished is kept"),
    ("kills", 3, "kills: 3 workers died while they computed it"),
    ("is refused", 1, "it cannot be mended: name another one")])
def test_a_task_that_fails_for_good_ends_in_one_line_and_the_rest_is_kept(
        request, toy_model, tmp_path, name, times, line):
    workers = request.getfixturevalue("workers" if name == "kills" else "two")
    for _ in range(4 if name == "kills" else 0):
        workers.add()
    run_folder = RunFolder(tmp_path / "run")
    run_folder.claim([], {})
    tasks = [Failing("table", each, each, 1, tmp_path) for each in ("first", "raises twice", name)]
    with engine_of(ClusterOptions("dask", scheduler=workers.address)), tqdm(disable=True) as progress:
        with pytest.raises(InputError) as error:
            engine.run(toy_model("llama"), [tasks], run_folder, progress)
        assert line in str(error.value) and "\n" not in str(error.value)
        assert len(list(tmp_path.glob(f"{name}-*"))) == times
        shards = engine.run(toy_model("llama"), [tasks[:2]], run_folder, progress)
    assert shards(tasks[1].key)["number"] == 2
    # what a worker gave is computed again where it died before that was fetched
    assert len(list(tmp_path.glob("first-*"))) == 1 or name == "kills"


def test_workers_take_the_drivers_copy_where_they_have_no_such_model(toy_checkpoint, two, tmp_path):
    """The folder is gone, and a weight is another one."""
    shutil.copytree(toy_checkpoint("llama"), tmp_path / "mine")
    model = LanguageModel(str(tmp_path / "mine"))
    shutil.rmtree(tmp_path / "mine")
    model.model.model.layers[1].mlp.down_proj.weight.data *= 2
    found = [mediation.mediate(model, [GOOD_STIMULUS], "mlps", progress=False, **options)
             for options in ({"engine": "dask", "scheduler": two.address}, {})]
    assert found[0].effects.equals(found[1].effects) and len(found[0].effects)


def test_a_scheduler_that_is_lost_ends_in_one_line(run_script, toy_checkpoint, workers, tmp_path):
    workers.add()

    def lose():
        while not list(tmp_path.glob("results/*/unfinished/*/*.npz")):
            time.sleep(0.01)
        workers.close()

    threading.Thread(target=lose, daemon=True).start()
    command = f"{NEURONS} --full_passes -model {toy_checkpoint('llama')} -out_dir {tmp_path}"
    code, _, error = run_script(f"{command} {workers.options}")
    assert code == 2 and "the scheduler is lost" in error.splitlines()[-1], error


# who may connect

@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """certificates(name) -> the three options of an authority of that name, with a certificate of its."""
    if not shutil.which("openssl"):
        pytest.skip("no openssl, which makes certificates")

    def make(name):
        folder = tmp_path_factory.mktemp(name)
        for command in (f"req -x509 {KEY} -keyout ca.key -out ca.pem -subj /CN=authority",
                        f"req {KEY} -keyout key.pem -out request.pem -subj /CN=worker",
                        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem"):
            subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)
        return {"tls_ca_file": folder / "ca.pem", "tls_cert": folder / "cert.pem",
                "tls_key": folder / "key.pem"}
    return make


def test_a_stranger_is_refused(run_script, start_script, command, of_local, certificates, tmp_path,
                               monkeypatch):
    monkeypatch.setattr(cluster, "TIMEOUT", 2)
    own, others = certificates("own"), certificates("others")
    security = cluster.security_of(list(own.values()))
    with closing(Workers(start_script, security)) as workers:
        files = own["tls_ca_file"], own["tls_cert"], own["tls_key"]
        workers.add("--tls-ca-file", files[0], "--tls-cert", files[1], "--tls-key", files[2])

        def run(options, files):
            chosen = [text for name, path in files.items() for text in (f"--{name}", path)]
            return run_script(f"{command} {tmp_path / 'out'} {options}", *chosen)

        for options, files in ((workers.options, others),
                               (workers.options.replace("tls://", "tcp://"), {})):
            code, _, error = run(options, files)
            assert code == 2 and "this command is refused" in error and len(error.splitlines()) == 1, error
            assert not (tmp_path / "out").exists()
        code, _, error = run(workers.options, own)
        assert code == 0 and tables(tmp_path / "out") == of_local, error


# what does not go together

@pytest.mark.parametrize("options, line", [
    ("--workers 2", "--workers is for workers: add --engine dask"),
    ("--tls_key k.pem", "add --engine dask"),
    ("--engine dask --workers 2 --gpus 1", "--workers and --gpus do not go together"),
    ("--engine dask --tls_key k.pem", "go together: name all three"),
    ("--engine dask --scheduler tls://127.0.0.1:1", "an address that begins with tls://"),
    ("--engine dask --scheduler 127.0.0.1:1", "begins with tls:// or tcp://")])
def test_options_that_do_not_go_together(run_script, tmp_path, options, line):
    code, _, error = run_script(f"{NEURONS} -model gpt2 -out_dir {tmp_path / 'out'} {options}")
    assert code == 2 and line in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_without_the_package_one_line_says_how_to_come_to_it(run_script, tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    code, _, error = run_script(f"{NEURONS} -model gpt2 -out_dir {tmp_path / 'out'} --engine dask")
    assert code == 2 and not (tmp_path / "out").exists()
    assert error == ("error: --engine dask needs the package distributed, which is not here: "
                     "pip install -r requirements-cluster.txt\n")


@pytest.mark.parametrize("options, line", [
    ({"gpus": 99}, "--gpus 99: this machine has"),
    ({"scheduler": "tcp://127.0.0.1:9"}, "nobody answers there")])
def test_what_is_not_there_is_told_before_anything_else_and_a_plan_does_not_ask_for_it(
        run_script, tmp_path, monkeypatch, options, line):
    monkeypatch.setattr(cluster, "TIMEOUT", 0.2)
    [(name, value)] = options.items()
    code, _, error = run_script(f"{NEURONS} -model gpt2 -out_dir {tmp_path / 'out'} --engine dask --{name} "
                                f"{value}")
    assert code == 2 and line in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    with engine_of(SimpleNamespace(**vars(ClusterOptions("dask", **options)), plan=True)):
        pass


def test_each_worker_sees_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cluster.gpus(2) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7,8")
    assert cluster.gpus(2) == ["5", "7"]


def test_workers_of_this_machine_listen_on_the_loopback_address_and_end_with_the_command(
        start_script, run_script, command, of_local, tmp_path):
    """A cluster of its own, as the shell starts it; a terminal's Ctrl-C reaches the workers, too."""
    driver = start_script(f"{command} {tmp_path} --engine dask --workers 1")
    while not list(tmp_path.glob("results/*/unfinished/*/*.npz")):
        assert driver.poll() is None, driver.communicate()
        time.sleep(0.05)
    family = [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]
    assert len(family) > 1
    assert {connection.laddr.ip for each in family for connection in each.net_connections()
            if connection.status == "LISTEN"} == {cluster.LOOPBACK}
    for each in family:
        each.send_signal(signal.SIGINT)
    _, error = driver.communicate()
    assert driver.returncode == 130 and "Traceback" not in error, error
    assert error.splitlines()[-1].startswith("interrupted:")
    assert not psutil.wait_procs(family, timeout=10)[1]
    assert run_script(f"{command} {tmp_path}")[0] == 0 and tables(tmp_path) == of_local

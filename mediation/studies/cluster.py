"""The engine on a cluster: tasks go to the worker processes of Dask's `distributed`, and come back as arrays.

This process, the driver, alone reads and writes files. It gives each worker one task at a time, with the
arrays of earlier tasks that it needs, and keeps what comes back in the task's shard at once. A worker that is
lost costs the task that it had, which another one gets. A driver that is lost is resumed by the same command,
with either engine.
"""

import asyncio
import logging
import os
import pickle
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from multiprocessing import resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any

import dask
import numpy as np
import torch
from distributed import CancelledError, Client, Future, KilledWorker, Nanny, Scheduler, SpecCluster, wait
from distributed.security import Security
from distributed.utils import LoopRunner
from tornado.ioloop import IOLoop
from tqdm import tqdm

from mediation.errors import InputError
from mediation.files.storage import RunFolder, differences, software
from mediation.model.language_model import LanguageModel
from mediation.model.products import fixed_weights
from mediation.studies.engine import Arrays, Key, Shards, Task

ATTEMPTS = 3  # of a task that raises an error, or whose worker dies
SECONDS = 1.0  # between looks at how many workers there are
LOOPBACK = "127.0.0.1"
TIMEOUT = 30  # seconds that a scheduler may take to answer
KEPT = "what was finished is kept: give the same command again"
SETTINGS = {"distributed.admin.large-graph-warning-threshold": "1TB",  # arrays are sent once, and knowingly
            "distributed.worker.profile.enabled": False}  # it takes 2% of a core of each worker
Packed = bytes  # a pickle: the scheduler passes it on, and need not have what it is made of


# in a worker process

@dataclass(frozen=True)
class Recipe:
    """How a worker comes to the driver's model.

    `arguments`: LanguageModel's, by name; `weights`: hash of the parameters; `software`: that computes the
    numbers; `deterministic`: as PyTorch is told; `threads`: of each worker, as many as OMP_NUM_THREADS gives
    the driver, for their number decides last digits.
    """

    arguments: dict[str, Any]
    weights: str
    software: dict[str, str]
    deterministic: bool
    threads: int

    @classmethod
    def of(cls, model: LanguageModel) -> "Recipe":
        """Of a model as it is now."""
        name = str(model.source["name"])
        arguments = {**model.source, "name": os.path.abspath(name) if os.path.isdir(name) else name,
                     "device": str(model.source["device"]), "dtype": model.dtype,
                     "full_passes": model.full_passes,
                     "masking_approach": model.masking.approach if model.masking else 1,
                     "precision": "exact" if model.fast_rows is None else "fast"}
        return cls(arguments, model.weights_sha256(), software(),
                   torch.are_deterministic_algorithms_enabled(), threads())

    def load(self, copy: Packed | None) -> LanguageModel:
        """From the name that the driver has it from: a path, a bundled model, the hub.

        Args:
            copy: {name: content} of the driver's own files, which are taken instead.

        Raises:
            InputError: it cannot be had here, or is another one.
        """
        with tempfile.TemporaryDirectory() as folder:
            for name, content in (pickle.loads(copy) if copy else {}).items():
                Path(folder, name).write_bytes(content)
            instead = {"name": folder, "random_weights": False} if copy else {}
            model = LanguageModel(**{**self.arguments, **instead})
        if model.weights_sha256() != self.weights:
            raise InputError(f"model {self.arguments['name']!r} has other weights where a worker runs than "
                             "where the command was given: name a folder that is the same for both")
        return model


def threads() -> int:
    """Of each worker: OMP_NUM_THREADS, as in this process, or one."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else 1


class NoModel(InputError):
    """A worker does not come to the model by itself."""


class Held:
    """The one model that a worker process holds."""

    lock = threading.Lock()  # a worker of several threads computes one task at a time
    recipe: Recipe | None = None
    model: LanguageModel | None = None
    weights = ExitStack()


def held_model(recipe: Recipe, copy: Packed | None) -> LanguageModel:
    """The model of this recipe, which is loaded when it is asked for first."""
    if recipe.software != software():
        raise InputError(f"the worker on {os.uname().nodename} has other versions of the software than the "
                         f"driver ({differences(recipe.software, software())}): install the same ones")
    if Held.model is None or Held.recipe != recipe:
        Held.weights.close()
        Held.model = None  # before another one takes its memory
        torch.use_deterministic_algorithms(recipe.deterministic)
        try:
            Held.model = recipe.load(copy)
        except InputError as error:
            raise error if copy else NoModel(str(error)) from error
        Held.recipe = recipe
        Held.weights.enter_context(fixed_weights())
    return Held.model


def compute(call: Packed, copy: Packed | None, needed: Sequence[Packed]) -> Arrays | InputError:
    """What a task gives, and the `seconds` that it took; an InputError, of which each attempt would die, as
    it is.

    `call`: its Recipe and itself; `needed`: the arrays of the earlier tasks that it needs.
    """
    recipe, task = pickle.loads(call)
    arrays_of = dict(zip(task.needs, needed))

    def read(key: Key) -> Arrays:
        return pickle.loads(arrays_of[key])

    with Held.lock:
        torch.set_num_threads(recipe.threads)
        try:
            model = held_model(recipe, copy)
            started = time.perf_counter()
            arrays = task.compute(model, read, lambda interventions: None)
        except InputError as error:
            return error
        return {**arrays, "seconds": np.float64(time.perf_counter() - started)}


# in the driver

def on_cluster(client: Client, content: Any) -> Future:
    """Data as a task's result: where a worker is lost with it, the scheduler makes it again."""
    return client.submit(bytes, pickle.dumps(content), pure=False)


class Cluster:
    """Workers, which are joined at once, or started when there is something to compute; `run` is an
    `engine.Engine`.

    Args:
        workers: processes on this machine; gpus: whether each has a GPU of its own.
        scheduler: address of a cluster that is there already, whose workers are taken.
        tls: files of the authority, the certificate and its key; none: whoever comes may connect.
    """

    def __init__(self, workers: int = 1, gpus: bool = False, scheduler: str | None = None,
                 tls: Sequence[str | Path] = ()) -> None:
        self.workers, self.gpus, self.scheduler, self.tls = workers, gpus, scheduler, tls
        self._open = ExitStack()
        self._recipes: dict[int, Recipe] = {}  # of models, none of which changes while this is open

    def __enter__(self) -> "Cluster":
        """A scheduler that does not answer, or GPUs that are not there, are told before anything else."""
        if self.scheduler:
            _ = self.client
        elif self.gpus:
            gpus(self.workers)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self._open.close()

    @cached_property
    def client(self) -> Client:
        """The connection to the scheduler.

        Raises:
            InputError: there is none, or it is refused.
        """
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what matters ends in one line
        self._open.enter_context(dask.config.set(SETTINGS))
        security = security_of(self.tls)
        if self.scheduler:
            try:
                return self._open.enter_context(Client(self.scheduler, security=security, timeout=TIMEOUT))
            except (OSError, ValueError) as error:
                raise InputError(f"--scheduler {self.scheduler}: nobody answers there, or this "
                                 f"command is refused ({str(error).splitlines()[0]})") from error
        workers, scheduler = local_cluster(self.workers, self.gpus, security)
        loop = self._open.enter_context(uninterrupted_loop())
        cluster = self._open.enter_context(SpecCluster(scheduler=scheduler, loop=loop, security=security,
                                                       silence_logs=logging.CRITICAL))
        # only now, and shielded, so that an interrupted start, too, ends with its processes
        cluster.worker_spec.update(workers)
        try:
            cluster.sync(asyncio.shield, cluster)
        except RuntimeError as error:
            raise InputError(f"the workers did not start ({str(error).splitlines()[0]}): a script that asks "
                             'for them is a file, and does so under if __name__ == "__main__":') from error
        return self._open.enter_context(Client(cluster, security=security))

    def run(self, model: LanguageModel, stages: Iterable[Sequence[Task]], run_folder: RunFolder,
            progress: tqdm) -> Shards:
        """See `engine.run`."""
        shards = Shards(run_folder)
        for stage in stages:
            todo: dict[Key, Task] = {}
            for task in stage:
                if task.key in todo or task.key in shards.seconds:  # two sweeps share the task
                    progress.update(task.interventions)
                elif (shard := run_folder.load_shard(*task.key)) is None:
                    todo[task.key] = task
                else:
                    shards.seconds[task.key] = float(shard["seconds"])
                    progress.update(task.interventions)
            if todo:
                recipe = self._recipes[id(model)] = self._recipes.get(id(model)) or Recipe.of(model)
                OneStage(self.client, model, recipe, shards, progress).compute(todo.values())
        return shards


class OneStage:
    """Tasks that do not need each other, on the workers.

    `held`: the arrays of earlier tasks that are on the cluster.
    """

    def __init__(self, client: Client, model: LanguageModel, recipe: Recipe, shards: Shards,
                 progress: tqdm) -> None:
        self.client, self.model, self.recipe, self.shards, self.progress = (
            client, model, recipe, shards, progress)
        self.copy: Future | None = None
        self.held: dict[Key, Future] = {}
        self.waiting: deque[Task] = deque()
        self.error: InputError | None = None

    def compute(self, tasks: Iterable[Task]) -> None:
        """Compute tasks and keep what they give.

        Raises:
            InputError: of a task that failed; what others gave is kept.
        """
        self.waiting.extend(tasks)
        under_way: dict[Future, Task] = {}
        done: dict[Future, Task] = {}
        try:
            while self.waiting or under_way or done:
                # a worker that is done gets its next task before what it gave is written
                self.submit(under_way)
                for future, task in done.items():
                    self.keep(task, future)
                done = {future: under_way.pop(future) for future in first_of(under_way)}
        except Exception as error:
            if self.client.status == "running" and not isinstance(error, CancelledError):
                raise
            raise InputError(f"the scheduler is lost ({type(error).__name__}): {KEPT}") from error
        if self.error:
            raise self.error

    def submit(self, under_way: dict[Future, Task]) -> None:
        """Give each worker that has none a task; the arrays that none needs any more go."""
        workers = len(self.client.nthreads())
        while self.waiting and len(under_way) < max(1, workers):
            task = self.waiting.popleft()
            for key in task.needs:
                if key not in self.held:
                    self.held[key] = on_cluster(self.client, self.shards(key))
            # a lambda is sent whole: the scheduler looks at functions, and need not have this software
            future = self.client.submit(
                lambda *arguments: import_module("mediation.studies.cluster").compute(*arguments),
                pickle.dumps((self.recipe, task)), self.copy, [self.held[key] for key in task.needs],
                pure=False, retries=ATTEMPTS - 1)
            under_way[future] = task
            self.progress.set_description(f"{task.title}, {workers or 'waiting for'} workers")
        if self.error and not workers:
            under_way.clear()  # nobody is left who could end them
        needed = {key for task in under_way.values() for key in task.needs}
        self.held = {key: future for key, future in self.held.items() if key in needed}

    def keep(self, task: Task, future: Future) -> None:
        """Keep what a task gave; with its error no other task begins."""
        try:
            given = future.result()
        except CancelledError:
            raise
        except KilledWorker as error:
            given = InputError(f"{task.title}: {error.allowed_failures + 1} workers died while they computed "
                               "it, for want of memory perhaps, of which fewer workers or a smaller "
                               f"--batch_size need less: {KEPT}")
        except Exception as error:  # whatever a task may raise
            reason = (str(error).strip() or "no message").splitlines()[0]
            given = InputError(f"{task.title}: failed {ATTEMPTS} times ({type(error).__name__}: {reason}): "
                               f"{KEPT}")
        if isinstance(given, NoModel) and not self.error:
            self.copy = self.copy or on_cluster(self.client, files_of(self.model))
            self.waiting.appendleft(task)
        elif isinstance(given, InputError):
            self.error = self.error or given
            self.waiting.clear()
        else:
            self.shards.run_folder.save_shard(*task.key, **given)
            self.shards.seconds[task.key] = float(given["seconds"])
            self.progress.update(task.interventions)


def first_of(futures: Collection[Future]) -> set[Future]:
    """Those that are done, as soon as one is; none after SECONDS."""
    try:
        return wait(list(futures), timeout=SECONDS, return_when="FIRST_COMPLETED").done if futures else set()
    except TimeoutError:
        return set()


def files_of(model: LanguageModel) -> dict[str, bytes]:
    """{name: content} of a model and its tokenizer as they are saved."""
    with tempfile.TemporaryDirectory() as folder:
        model.model.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def security_of(tls: Sequence[str | Path]) -> Security:
    """Who may connect: with certificates only who has one of the same authority."""
    if not tls:
        return Security()
    authority, certificate, key = map(str, tls)
    files = {f"tls_{role}_{kind}": path for role in ("client", "scheduler", "worker")
             for kind, path in (("cert", certificate), ("key", key))}
    return Security(require_encryption=True, tls_ca_file=authority, **files)


@contextmanager
def uninterrupted_loop() -> Iterator[IOLoop]:
    """The loop of a thread that Ctrl-C does not reach, nor the processes that it starts: a terminal sends it
    to all of them, and this process alone heeds it."""
    resource_tracker.ensure_running()  # else the first process starts it, and can be interrupted again
    runner = LoopRunner()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        runner.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield runner.loop
    finally:
        runner.stop()


def local_cluster(number: int, with_gpus: bool, security: Security) -> tuple[dict[int, Any], dict[str, Any]]:
    """Workers and a scheduler on this machine, reachable from this machine only, as SpecCluster takes
    them."""
    protocol = "tls://" if security.require_encryption else "tcp://"
    here = {"host": LOOPBACK, "protocol": protocol, "security": security, "dashboard": False,
            "dashboard_address": f"{LOOPBACK}:0"}
    worker = {**here, "nthreads": 1, "memory_limit": None, "silence_logs": logging.CRITICAL}
    own = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus(number)] if with_gpus else [{}] * number
    workers = {index: {"cls": Nanny, "options": {**worker, "env": environment}}
               for index, environment in enumerate(own)}
    # a worker's death is an attempt of the task that it had
    scheduler = {"cls": Scheduler, "options": {**here, "allowed_failures": ATTEMPTS - 1}}
    return workers, scheduler


def gpus(number: int) -> list[str]:
    """Names of the first GPUs that this process may use.

    Raises:
        InputError: there are fewer.
    """
    if torch.cuda.device_count() < number:
        raise InputError(f"--gpus {number}: this machine has {torch.cuda.device_count()} CUDA devices")
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    return allowed.split(",")[:number] if allowed else list(map(str, range(number)))

"""Which engine computes a study's tasks: this process, or the workers of a Dask cluster (`cluster.py`).

Nothing of Dask or PyTorch is imported before a cluster is asked for.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mediation.errors import InputError

ENGINES = ("local", "dask")


@dataclass(frozen=True)
class ClusterOptions:
    """What the command line's options of these names say.

    `workers`: processes on this machine; `gpus`: one process per GPU instead; `scheduler`: address of a
    cluster that is there already; `device_map`: how the model lies on GPUs, of which a worker has one.
    """

    engine: str = "local"
    workers: int | None = None
    scheduler: str | None = None
    gpus: int | None = None
    tls_ca_file: str | Path | None = None
    tls_cert: str | Path | None = None
    tls_key: str | Path | None = None
    device_map: str | None = None

    @property
    def tls(self) -> tuple[str | Path | None, ...]:
        """The three files by which both ends of a connection know each other."""
        return self.tls_ca_file, self.tls_cert, self.tls_key

    def check(self) -> None:
        """Raises InputError for options that do not go together, or say nothing."""
        named = [name for name in ("workers", "scheduler", "gpus") if getattr(self, name) is not None]
        if self.engine not in ENGINES:
            raise InputError(f"engine {self.engine!r} is unknown: choose {' or '.join(ENGINES)}")
        if self.engine == "local" and (named or any(self.tls)):
            option = (named or ["tls_ca_file, --tls_cert and --tls_key"])[0]
            raise InputError(f"--{option} is for workers: add --engine dask")
        if self.engine == "dask" and self.device_map:
            raise InputError(f"--device_map {self.device_map} does not go with --engine dask, where each "
                             "worker has one GPU for the whole model: leave out one of them")
        if len(named) > 1:
            raise InputError(f"--{named[0]} and --{named[1]} do not go together: name one of them")
        for name in ("workers", "gpus"):
            number = getattr(self, name)
            if number is not None and (not isinstance(number, int) or number < 1):
                raise InputError(f"{name} {number!r} is not a whole number from 1 on")
        if any(self.tls) and not all(self.tls):
            raise InputError("--tls_ca_file, --tls_cert and --tls_key go together: name all three")
        for path in self.tls:
            if path and not os.access(path, os.R_OK):
                raise InputError(f"{path} cannot be read: name the files of the cluster's certificates")
        if self.scheduler is not None:
            protocol = self.scheduler.partition("://")[0]
            if protocol not in ("tcp", "tls"):
                raise InputError(f"--scheduler {self.scheduler}: an address begins with tls:// or tcp://, as "
                                 "the scheduler prints it")
            if (protocol == "tls") != any(self.tls):
                raise InputError(f"--scheduler {self.scheduler}: an address that begins with tls:// goes "
                                 "with --tls_ca_file, --tls_cert and --tls_key, one with tcp:// without")


@contextmanager
def engine_of(options: Any) -> Iterator[None]:
    """While open, studies are computed by the engine that these options name.

    Raises:
        InputError: options that do not go together; a cluster is asked for, and its package is not here.
    """
    named = {field.name: getattr(options, field.name) for field in fields(ClusterOptions)}
    chosen = ClusterOptions(**named)
    chosen.check()
    if chosen.engine == "local":
        yield
        return
    if find_spec("distributed") is None:
        raise InputError("--engine dask needs the package distributed, which is not here: "
                         "pip install -r requirements-cluster.txt")
    if getattr(options, "plan", False):  # nothing is run
        yield
        return
    from dask.system import CPU_COUNT

    from mediation.studies.cluster import Cluster
    from mediation.studies.engine import computed_by

    workers = chosen.gpus or chosen.workers or CPU_COUNT
    with (Cluster(workers, bool(chosen.gpus), chosen.scheduler, list(filter(None, chosen.tls))) as cluster,
          computed_by(cluster.run)):
        yield

"""Scripts in processes of their own, without the ten seconds that each takes to import torch.

A server imports it once and is forked for every script. It computes nothing: a fork does not take threads
along, and torch would wait for them. It ends when its socket is closed, so with pytest, however that ends.

All its scripts have its hash seed, and what the environment was when it imported. Where that matters,
`new_process` starts an interpreter as from the shell.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shlex
import signal
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

PROJECT = Path(__file__).parent.parent
MODULES = ["experiment", "mediation.reports.plots", "mediation.reports.report",
           "mediation.studies.professions", "mediation.studies.selection", "pyarrow.parquet",
           "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama",
           "transformers.processing_utils",
           *(["distributed.cli.dask_worker"] if find_spec("distributed") else [])]
NUMBER = struct.Struct("i")  # pids and exit codes, as they come through the pipe
LONGEST = 2**17  # bytes of a request


def new_process(command, *arguments):
    """A subprocess.Popen of a script."""
    def heed_interrupts():  # a shell's background jobs ignore them
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen([sys.executable, *shlex.split(str(command)), *map(str, arguments)], cwd=PROJECT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=heed_interrupts)


class Server:
    """The tests' end. `modules`: what the server imports."""

    def __init__(self, modules=MODULES):
        self.socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            command = [sys.executable, "-m", "tests.preloaded", str(other.fileno()), *modules]
            quiet = os.environ | {"DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False"}  # workers idle a lot
            self.process = subprocess.Popen(command, cwd=PROJECT, pass_fds=[other.fileno()], env=quiet,
                                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def start(self, command, *arguments):
        """A Script, with the environment of this moment: start("compute_x.py FOLDER gpt2")."""
        return Script(self.socket, [*shlex.split(str(command)), *map(str, arguments)])

    def close(self):
        """End the server; at once, even if it still imports."""
        self.socket.close()
        self.process.kill()
        self.process.wait()


class Script:
    """A started script, to be used as a subprocess.Popen with pipes."""

    def __init__(self, server, args):
        (output, errors, status), ends = zip(*(os.pipe() for _ in range(3)))
        self.args, self.returncode = args, None
        self.stdout, self.stderr = os.fdopen(output), os.fdopen(errors)
        self.status = os.fdopen(status, "rb", buffering=0)
        request = json.dumps({"args": args, "environment": dict(os.environ)}).encode()
        socket.send_fds(server, [request], ends)
        for end in ends:
            os.close(end)
        self.pid = self._next_number()

    def _next_number(self):
        sent = self.status.read(NUMBER.size)
        if not sent:
            raise RuntimeError("the server of preloaded scripts has ended")
        return NUMBER.unpack(sent)[0]

    def wait(self, timeout=None):
        if self.returncode is None:
            if not select.select([self.status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = self._next_number()
        return self.returncode

    def poll(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)

    def communicate(self):
        with ThreadPoolExecutor() as readers:  # both at once: a full pipe stops the script
            said = tuple(readers.map(lambda file: file.read(), (self.stdout, self.stderr)))
        self.wait()
        return said

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)


# the server's end


def serve(connection):
    """Fork at every request, until the other end is closed. In a script's process, return its arguments."""
    os.dup2(1, 2)  # if standard error is a pipe of pytest's, its reader does not wait for this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest and the scripts
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # who tells of a script's end goes without being waited for
    while True:
        request, files, _, _ = socket.recv_fds(connection, LONGEST, 3)
        if not request:
            sys.exit()
        if not os.fork():
            connection.close()
            return start(json.loads(request), *files)
        for file in files:
            os.close(file)


def start(request, output, errors, status):
    """Fork the script's process; tell its pid and its exit code. In that process, return its arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        os.close(output)
        os.close(errors)
        with contextlib.suppress(BrokenPipeError):
            os.write(status, NUMBER.pack(pid))
            os.write(status, NUMBER.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for file, number in ((output, 1), (errors, 2)):
        os.dup2(file, number)
        os.close(file)
    os.close(status)
    os.environ.clear()
    os.environ.update(request["environment"])
    if "torch" in sys.modules and "OMP_NUM_THREADS" in os.environ:  # which it read when it was imported
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    return request["args"]


if __name__ == "__main__":
    gc.disable()  # neither now nor in the scripts need the garbage collector look at what is imported
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()
    gc.enable()
    sys.argv = serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_path(sys.argv[0], run_name="__main__")  # how it ends is left to the interpreter

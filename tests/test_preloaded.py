"""Scripts that the preloaded server starts behave as from the shell; the server does not outlive pytest."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.preloaded import PROJECT, Server, new_process

linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every script has a new interpreter")


@pytest.fixture(params=[pytest.param("preloaded", marks=linux), "new"])
def start(request, tmp_path):
    """start("print(1)", *arguments) runs a script of that text."""
    server = Server([]) if request.param == "preloaded" else None

    def run(text, *arguments):
        path = tmp_path / "script.py"
        path.write_text(text)
        return (server.start if server else new_process)(path, *arguments)

    yield run
    if server:
        server.close()


@pytest.mark.parametrize("text, code, said", [
    ("", 0, ""), ("raise SystemExit", 0, ""), ("raise SystemExit(3)", 3, ""),
    ("import sys; sys.exit('no')", 1, "no\n"),
    ("1 / 0", 1, "ZeroDivisionError: division by zero\n"), ("import os; os._exit(7)", 7, ""),
    ("import atexit; atexit.register(print, 'printed')", 0, ""),
])
def test_exit_codes_and_errors(start, text, code, said):
    process = start(text)
    output, errors = process.communicate()
    assert process.returncode == process.wait() == process.poll() == code and errors.endswith(said), errors
    assert ("Traceback" in errors) == ("1 / 0" in text)
    assert output == ("printed\n" if "printed" in text else "")


def test_arguments_environment_and_place(start, monkeypatch):
    monkeypatch.setenv("OF_THIS_MOMENT", "yes")
    text = """import json, os, sys
print(json.dumps([sys.argv[1:], os.environ["OF_THIS_MOMENT"], os.getcwd(), os.getpid(), __name__]))"""
    process = start(text, "one", Path("a b"))
    output, _ = process.communicate()
    assert json.loads(output) == [["one", "a b"], "yes", str(PROJECT), process.pid, "__main__"]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals(start, sent):
    process = start("import time; print('begun', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "begun\n" and process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.send_signal(sent)
    _, errors = process.communicate()
    assert process.returncode == -sent
    assert errors.endswith("KeyboardInterrupt\n" if sent == signal.SIGINT else "")
    process.kill()  # it has ended: nobody is killed


def test_much_output_on_both_pipes(start):
    process = start("import sys\nfor _ in range(999):\n print('o' * 999)\n print('e' * 999, file=sys.stderr)")
    output, errors = process.communicate()
    assert len(output) == len(errors) == 999_000


def test_scripts_run_side_by_side(start):
    first, second = (start("import time; print('begun', flush=True); time.sleep(60)") for _ in range(2))
    assert [process.stdout.readline() for process in (first, second)] == 2 * ["begun\n"]
    first.kill()
    assert first.communicate() == ("", "") and second.poll() is None  # no other process holds its pipes
    second.kill()
    assert second.wait() == -signal.SIGKILL


@linux
def test_the_server_has_imported_and_started_no_thread(preloaded):
    script = preloaded.start("compute_neuron_total_effect.py --help")  # answered when all is imported
    assert "usage" in script.communicate()[0] and script.returncode == 0
    threads = [path.read_text() for path in Path(f"/proc/{preloaded.process.pid}/task").glob("*/comm")]
    assert sum(name != "jemalloc_bg_thd\n" for name in threads) == 1  # pyarrow's allocator expects forks


@linux
def test_the_server_ends_with_its_socket(tmp_path):
    server = Server([])
    (tmp_path / "nothing.py").touch()
    assert server.start(tmp_path / "nothing.py").wait() == 0
    server.socket.close()
    assert server.process.wait(10) == 0


@linux
@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["plain", "workers"])
def test_pytest_ends_and_nobody_holds_its_output(tmp_path, options):
    """Even if the server was not closed and a script still runs. Few plugins: others take seconds."""
    (tmp_path / "sleep.py").write_text("import time; time.sleep(60)")
    (tmp_path / "test_it.py").write_text(textwrap.dedent(f"""
        from tests.preloaded import Server
        server = Server(["json"])
        def test_it():
            script = server.start({str(tmp_path / "sleep.py")!r})
            open({str(tmp_path / "pids")!r}, "w").write(f"{{server.process.pid}} {{script.pid}}")
            assert script.poll() is None
    """))
    command = [sys.executable, "-m", "pytest", "-p", "xdist.plugin", "--rootdir", ".", *options, "test_it.py"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=40)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr
    server, script = map(int, (tmp_path / "pids").read_text().split())
    os.kill(script, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{server}").exists():
        assert time.monotonic() < deadline, "the server is still there"
        time.sleep(0.05)

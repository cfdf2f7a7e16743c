"""Pickles are not trusted: plain values come back, anything else is refused by name."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from mediation.errors import InputError
from mediation.files.storage import read_pickle, write_pickle
from tests.helpers import same_values


class Payload:
    def __reduce__(self):
        return os.system, ("touch /tmp/this-must-not-exist",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path, protocol):
    path = tmp_path / "greedy.pickle"
    path.write_bytes(pickle.dumps({"val": [1.0], "head": Payload()}, protocol))
    with pytest.raises(InputError, match=r"refused: it names (posix|nt|os)\.system"):
        read_pickle(path)
    assert not Path("/tmp/this-must-not-exist").exists()


def test_other_ways_to_code_are_refused_too(tmp_path):
    path = tmp_path / "x.pickle"
    for payload in (b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy.testing\nrun_module_suite\n.",
                    b"cnumpy\nload\n.", b"cnumpy.f2py\ncompile\n."):
        path.write_bytes(payload)
        with pytest.raises(InputError, match="refused: it names"):
            read_pickle(path)


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(tmp_path, protocol):
    content = {"val": [np.float64(0.5), 1], "head": [(np.int64(3), 2)], 0: np.arange(6.0).reshape(2, 3),
               "text": "she", "none": None, "yes": True}
    path = tmp_path / "plain.pickle"
    path.write_bytes(pickle.dumps(content, protocol))
    assert same_values({str(key): value for key, value in read_pickle(path).items()},
                       {str(key): value for key, value in content.items()})


def test_damaged_pickles(tmp_path):
    path = write_pickle(tmp_path / "greedy.pickle", {"val": list(np.arange(100.0)), "head": np.arange(50)})
    whole = path.read_bytes()
    for size in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="cannot be read as a pickle"):
            read_pickle(path)
    rng = np.random.default_rng(0)
    for _ in range(300):
        path.write_bytes(rng.bytes(40))
        with pytest.raises(InputError):
            read_pickle(path)

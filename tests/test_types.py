"""Signatures of the library say what they take, and a wrong shape or type is refused while the tests run."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError
from torch import nn

from mediation.effects.screening import misses, strongest_in_any
from mediation.model.readout import log_sum_exp
from mediation.reports import page, plots
from tests.helpers import PROJECT

ANNOTATED = ("effects", "files", "mediators", "model", "reports", "stimuli", "results", "studies",
             "options.py", "assets.py")
PUBLIC = ("__init__", "__call__")


def files_of(place):
    """A room's files, or the one file."""
    path = PROJECT / "mediation" / place
    return [path] if path.is_file() else sorted(path.glob("*.py"))


def public_functions(body, owner=""):
    """(dotted name, node) of functions and methods without a leading underscore, and of those of PUBLIC."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and (node.name in PUBLIC or not node.name.startswith("_")):
            yield owner + node.name, node


@pytest.mark.parametrize("place", ANNOTATED)
def test_public_functions_are_annotated(place):
    bare = []
    for path in files_of(place):
        for name, node in public_functions(ast.parse(path.read_text()).body):
            taken = node.args
            arguments = [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg]
            named = [each for each in arguments if each and each.arg not in ("self", "cls")]
            if not node.returns or any(each.annotation is None for each in named):
                bare.append(f"{path.name}: {name}")
    assert not bare


def test_two_arrays_of_one_symbol_have_one_length():
    strength = np.array([[3.0, 1.0, 2.0]])
    assert strongest_in_any(strength, 1).tolist() == [0]
    with pytest.raises(TypeCheckError):
        strongest_in_any(strength[0], 1)
    with pytest.raises(TypeCheckError):
        misses(strength, np.array([0]), np.array([1]), 1)
    with pytest.raises(TypeCheckError):
        plots.stacked_layer_bars(np.zeros(3), np.zeros(2), "title", Path("figure.pdf"),
                                 ((np.zeros(3), np.zeros(3)), (np.zeros(2), np.zeros(2))))


def test_a_tensor_of_a_wrong_shape_or_kind_of_number_is_refused():
    head = nn.Linear(4, 9)
    assert log_sum_exp(head, torch.zeros(2, 4)).shape == (2,)
    with pytest.raises(TypeCheckError):
        log_sum_exp(head, torch.zeros(4))
    with pytest.raises(TypeCheckError):
        log_sum_exp(head, torch.zeros(2, 4, dtype=torch.long))


def test_a_wrong_type_is_refused_where_no_shapes_are_named():
    assert page.count(1, "prompt") == "1 prompt" and page.Text("a text").text == "a text"
    for wrong in (lambda: page.count("1", "prompt"), lambda: page.Text(1)):
        with pytest.raises(BeartypeCallHintViolation):
            wrong()

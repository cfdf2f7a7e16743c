"""Who may import whom, held against every file; no circles; no torch behind --help; tests keep to themselves.

A test file imports no other test file and no private name of the library: what tests share is in helpers.py
and, as fixtures, in fixtures.py.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import PROJECT

EVERYBODY = {"errors", "version"}
MAY_IMPORT = {
    "errors": set(), "version": set(), "files": set(), "effects": set(),
    "stimuli": {"files"}, "model": {"files"}, "options": {"files"},
    "results": {"stimuli", "effects", "files"},
    "mediators": {"model", "stimuli", "effects", "files"},
    "studies": {"mediators", "model", "results", "stimuli", "effects", "files"},
    "reports": {"results", "effects", "stimuli", "files"},
    # what mediate.py and notebooks do with all of them
    "analysis": {"options", "files", "effects", "stimuli", "model", "results", "mediators", "studies",
                 "reports"},
    "notebook": {"analysis", "files", "effects", "stimuli", "model", "results", "mediators", "studies",
                 "reports"},
    "assets": {"files", "model", "options"},  # a command: python -m mediation.assets
}
FACES = {path.stem for path in PROJECT.glob("*.py")}
FILES = sorted(path.relative_to(PROJECT)
               for path in [*PROJECT.glob("*.py"), *PROJECT.glob("mediation/**/*.py")])
TESTS = sorted(path.relative_to(PROJECT) for path in PROJECT.glob("tests/**/*.py"))


def imported(path):
    """Dotted names that a file imports, at its top or within functions: modules, and names from them."""
    names = set()
    for node in ast.walk(ast.parse((PROJECT / path).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(name):
    """The file of the house that a dotted name is in or stands for, or None."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        path = Path(*parts[:length])
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if (PROJECT / file).exists() and (length > 1 or path.name in FACES | {"mediation"}):
                return file
    return None


def room_of(path):
    """"files", "effects" ...; None for what stands outside mediation/, and for its __init__."""
    if path.parts[0] != "mediation" or path == Path("mediation/__init__.py"):
        return None
    return path.parts[1].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_room_imports_what_it_may(path):
    room = room_of(path)
    for name in imported(path):
        target = module_of(name)
        if room and target:
            outside = f"{path} imports {name}: nothing under mediation/ imports a face"
            assert target.parts[0] == "mediation", outside
            assert room_of(target) in {None, room, *EVERYBODY, *MAY_IMPORT[room]}, f"{path} imports {name}"


def test_nothing_imports_in_a_circle():
    graph = {path: {target for name in imported(path) if (target := module_of(name)) and target != path}
             for path in FILES}

    def reached(path, seen):
        for target in graph.get(path, ()):
            if target not in seen:
                seen.add(target)
                reached(target, seen)
        return seen

    assert not [path for path in FILES if path in reached(path, set())]


READERS = ["attention_figures1", "attention_figures2", "check_replication", "compare_models",
           "compute_and_save_neuron_agg_effect", "compute_neuron_effect_per_layer",
           "compute_neuron_split_total_effect", "compute_neuron_total_effect", "convert_tables",
           "make_report", "remove_sentences"]
SWEEPERS = ["run_profession_neuron_experiments", "mediate", "attention_intervention_winobias",
            "attention_intervention_winogender", "attention_intervention_subset_selection",
            "neuron_intervention_subset_selection", "attention_figures3", "export_stimuli",
            "mediation.assets"]


def test_no_torch_behind_help_and_the_scripts_that_only_read_files():
    """All imports of a script that only reads; of one that runs a model those at its top.

    These are all that --help and bad options need.
    """
    code = f"""
import importlib, sys
for name in {SWEEPERS + READERS}:
    importlib.import_module(name)
    assert not {{"torch", "distributed"}} & set(sys.modules), name
for room in ("results", "reports", "effects", "files"):
    import pathlib
    for path in sorted(pathlib.Path("mediation", room).glob("*.py")):
        importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
        assert "torch" not in sys.modules, path
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def defined_names(path):
    """Names that a file gives to functions, classes, variables and attributes."""
    names = set()
    for node in ast.walk(ast.parse((PROJECT / path).read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Name, ast.Attribute)) and isinstance(node.ctx, ast.Store):
            names.add(node.id if isinstance(node, ast.Name) else node.attr)
    return names


def used_names(path):
    """Attributes, imported names and texts of a file: a text may name what is patched."""
    names = {part for name in imported(path) for part in name.split(".")}
    for node in ast.walk(ast.parse((PROJECT / path).read_text())):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(node.value.split("."))
    return names


PRIVATE = {name for path in FILES if path.parts[0] == "mediation" for name in defined_names(path)
           if name.startswith("_") and name.strip("_") and not name.startswith("__")}


@pytest.mark.parametrize("path", TESTS, ids=str)
def test_a_test_file_imports_no_other_and_no_private_name_of_the_library(path):
    modules = {module for name in imported(path) for module in name.split(".") if name.startswith("tests.")}
    assert not [module for module in modules
                if module in {"conftest", "fixtures"} or module.startswith("test_")]
    assert not PRIVATE & (used_names(path) - defined_names(path))


def test_a_private_name_would_be_seen(tmp_path):
    name = min(PRIVATE)
    path = tmp_path / "test_it.py"
    for text in (f"from mediation.model.attention import {name}", f"attention.{name}", f"{name!r}"):
        path.write_text(text)
        assert name in used_names(path)

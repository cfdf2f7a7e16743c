"""The house: each room imports only what lies below it, and nothing runs at import."""

import ast
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
FLOORS = [  # from the ground up
    {"errors"},
    {"storage", "effects", "options", "interpolation"},
    {"stimuli", "assets", "architectures", "attention", "tables", "products", "batches", "stimulus_files"},
    {"professions", "forward", "readout", "checkpoints", "winobias", "winogender", "interventions", "agreement"},
    {"neurons", "gradients", "error_budget"},
    {"sweeps"},
    {"selection", "masked"},
    {"statistics", "plots", "report"},
]


def imported_rooms(path):
    """Names of the mediation modules that a file imports, at its top or within functions."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or "").startswith("mediation")):
            inner = (node.module or "").removeprefix("mediation").strip(".")
            rooms |= {inner} if inner else {alias.name for alias in node.names}
    return rooms


@pytest.mark.parametrize("path", sorted(PROJECT.glob("mediation/*.py")), ids=lambda path: path.name)
def test_rooms_import_only_what_lies_below(path):
    if path.stem == "__init__":
        return
    floor = next(index for index, rooms in enumerate(FLOORS) if path.stem in rooms)
    below = set().union(*FLOORS[:floor])
    lazy = {"assets": {"checkpoints", "options"}}.get(path.stem, set())  # its command line converts what it fetched
    assert imported_rooms(path) - {"__version__"} <= below | lazy
    assert not any(line.startswith(("from utils", "from experiment", "import utils", "import experiment")) for line in path.read_text().splitlines())


@pytest.mark.parametrize("name", ["effects", "statistics", "plots", "report"])
def test_what_is_done_with_effects_knows_no_model(name):
    assert "torch" not in (PROJECT / "mediation" / f"{name}.py").read_text()

"""The library under the scripts; its folders stand in the order in which data flows.

stimuli: what is asked - model: a language model whose forward pass can be resumed - mediators: what can be
changed in it - studies: which sweeps make a study - effects: from probabilities to numbers - results: the
formats - reports: what people look at.
files, options and errors serve all of them. Who may import whom is a test: tests/test_rooms.py.
`mediation.mediate` is the analysis of one's own stimuli in a notebook.
"""

from typing import Any

from mediation.version import VERSION as __version__

__all__ = ["__version__", "mediate"]


def __getattr__(name: str) -> Any:
    """`mediate`, once it is asked for: what it needs takes seconds to import."""
    if name == "mediate":
        from mediation.notebook import mediate

        return mediate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

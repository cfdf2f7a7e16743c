"""`mediate`: the analysis of mediate.py in a notebook.

>>> import mediation
>>> result = mediation.mediate("smollm2-135m", [
...     {"id": "italy", "base": "The capital city of {} is called", "substitutes": ["France", "Italy"],
...      "candidates": ["Paris", "Rome"]}], mediators=("residuals", "head_outputs"))
>>> result.summary().head()
"""

import contextlib
import html
import io
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mediation.analysis import AnalysisOptions, Written, figures_of, page_of, run
from mediation.errors import InputError
from mediation.files.storage import whole_file
from mediation.mediators.catalogue import Request
from mediation.model.language_model import LanguageModel
from mediation.reports import plots
from mediation.reports.html import html as as_html
from mediation.results.mediation_tables import read_pieces
from mediation.results.summaries import Summary
from mediation.results.tidy import tidy_table
from mediation.stimuli import stimulus_files
from mediation.stimuli.stimulus_files import Stimulus
from mediation.studies.engines import ClusterOptions, engine_of

SHOWN = ["mediator", "effect", "layer", "unit", "position", "mean", "low", "high", "share", "rank", "p", "q",
         "clusters"]
SHOWN_EFFECTS = ("indirect", "ablation")
CHOICES = {"method": ("exact", "gradient", "screen"), "multi_token": (None, "last", "all"),
           "dtype": ("float32", "float64", "bfloat16", "float16"),
           "weights_dtype": (None, "bfloat16", "float16")}


def mediate(
    model: str | Path | LanguageModel, stimuli: str | Path | pd.DataFrame | Iterable[Mapping[str, Any]],
    mediators: str | Sequence[str] = ("heads",), positions: str | None = None, values: str = "alternative",
    method: str = "exact", *, out_dir: str | Path | None = None, multi_token: str | None = None,
    device: str = "auto", dtype: str = "float32", weights_dtype: str | None = None,
    device_map: str | None = None, batch_size: int | None = None, seed: int = 0,
    screen_share: float = 0.1, screen_sample: int = 64, screen_top: int = 50, progress: bool = True,
    engine: str = "local", workers: int | None = None, scheduler: str | None = None, gpus: int | None = None,
    tls_ca_file: str | Path | None = None, tls_cert: str | Path | None = None,
    tls_key: str | Path | None = None,
) -> "Mediation":
    """Effects of mediators on stimuli of one's own, as mediate.py computes them (its --help tells more).

    Args:
        model: a bundled model, a directory or a hub id, or a `LanguageModel` that is loaded already.
        stimuli: a file of stimuli, a table, or dictionaries: id, base with one slot {}, substitutes (the null
            prompt's first, then the alternatives'), two candidates, and group.
        mediators: names of the catalogue; positions: slot, last, each or all, None for the mediators' own.
        values: what is put in: alternative, mean, zero or resample.
        method: exact, gradient (first order) or screen (the strongest by gradient run exactly).
        out_dir: a folder for the tables, which are kept, and are not computed again; None for one that is
            gone with the result.
        multi_token: how words and candidates of several tokens are treated at the slot: None leaves them out,
            "last", "all".
        device, dtype: of a model that is named; weights_dtype: bfloat16 or float16, for half of the memory:
            the weights of a float32 model alone are kept so; device_map: auto, for a model that does not fit
            on one GPU: its blocks are divided over all.
        progress: bars and messages on the way.
        engine: local, this process, or dask: `workers` processes, one for each of `gpus` GPUs, or those of a
            `scheduler` that is there already (docs/scaling.md). A script, other than a notebook, asks for
            workers under `if __name__ == "__main__":`.
        tls_ca_file, tls_cert, tls_key: only who has a certificate of this authority may connect.

    Raises:
        InputError (a ValueError): stimuli, a model or options that do not fit, in one line.
    """
    requests = requests_of(mediators, positions, values)
    check_choices(method=method, multi_token=multi_token, dtype=dtype, weights_dtype=weights_dtype)
    if isinstance(model, LanguageModel):
        refuse_for_loaded(weights_dtype=weights_dtype, device_map=device_map)
        device_map = "auto" if len(model.devices) > 1 else None
    check_numbers(batch_size, seed, screen_share, screen_sample, screen_top)
    name = str(stimuli) if isinstance(stimuli, str | Path) else "stimuli"
    read = read_stimuli(stimuli)
    computed_by = engine_of(ClusterOptions(engine, workers, scheduler, gpus, tls_ca_file, tls_cert, tls_key,
                                           device_map))
    with computed_by, contextlib.nullcontext() if progress else silence():
        if isinstance(model, str | Path):
            model = LanguageModel(str(model), device, getattr(torch, dtype),
                                  weights_dtype=getattr(torch, weights_dtype) if weights_dtype else None,
                                  device_map=device_map)
        folder = tempfile.TemporaryDirectory() if out_dir is None else None
        written = run(model, read, requests, folder.name if folder else Path(str(out_dir)), AnalysisOptions(
            method=method, precision="fast" if model.fast_rows is not None else "exact",
            dtype=str(model.dtype).removeprefix("torch."), batch_size=batch_size,
            full_passes=model.full_passes, seed=seed, screen_share=screen_share, screen_sample=screen_sample,
            screen_top=screen_top, multi_token=multi_token, stimuli=name, command="mediation.mediate"))
    return Mediation(written, [request.name for request in requests], folder)


def requests_of(mediators: str | Sequence[str], positions: str | None, values: str) -> list[Request]:
    """Each mediator that is named, once.

    Raises:
        InputError: none is, or one is not of the catalogue.
    """
    names = [mediators] if isinstance(mediators, str) else list(mediators)
    if not names:
        raise InputError("mediators: none is named: choose from the catalogue, such as residuals")
    return [Request.of(name, positions, values) for name in dict.fromkeys(names)]


def check_choices(**given: Any) -> None:
    """Raises InputError for a word that mediate.py would not take."""
    for name, word in given.items():
        if word not in CHOICES[name]:
            *others, last = map(str, CHOICES[name])
            raise InputError(f"{name} {word!r} is unknown: choose {', '.join(others)} or {last}")


def refuse_for_loaded(**given: Any) -> None:
    """Raises InputError for what a model that is loaded already cannot be given any more."""
    for name, value in given.items():
        if value:
            raise InputError(f"{name} is of a model that is named: this one is loaded already")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without bars and messages."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        yield


def check_numbers(batch_size: Any, seed: Any, screen_share: Any, screen_sample: Any, screen_top: Any) -> None:
    """Raises InputError for a number that mediate.py would not take."""
    for name, number, least in (("batch_size", batch_size, 1), ("seed", seed, 0),
                                ("screen_sample", screen_sample, 1), ("screen_top", screen_top, 1)):
        if name == "batch_size" and number is None:
            continue
        if not isinstance(number, int) or number < least:
            raise InputError(f"{name} {number!r} is not a whole number from {least} on")
    if not isinstance(screen_share, int | float) or not 0 < screen_share <= 1:
        raise InputError(f"screen_share {screen_share!r} is not above 0 and at most 1")


def read_stimuli(stimuli: str | Path | pd.DataFrame | Iterable[Mapping[str, Any]]) -> list[Stimulus]:
    """Stimuli of a file, a table or dictionaries.

    Raises:
        InputError: some are none; their number and field are named.
    """
    if isinstance(stimuli, str | Path):
        return stimulus_files.read(stimuli)
    if isinstance(stimuli, Mapping) or not isinstance(stimuli, Iterable):
        raise InputError(f"stimuli are {type(stimuli).__name__}: give a file's name, a table, or a list of "
                         "dictionaries")
    records = stimuli.to_dict("records") if isinstance(stimuli, pd.DataFrame) else list(stimuli)
    if records and isinstance(records[0], Stimulus):
        return list(records)  # type: ignore[arg-type]
    return stimulus_files.of_records(records)


class Mediation:
    """What `mediate` found.

    Attributes:
        total_effects: a row per comparison: log odds on both prompts, and their difference `log_effect`.
        effects: the tidy table (see `mediation.results.tidy`), a row per comparison, unit, position and kind
            of effect, with `log_effect`, the difference of its two log odds.
    """

    def __init__(self, written: Written, names: Sequence[str], folder: Any = None) -> None:
        self.written, self.names = written, list(names)
        self._folder = folder  # a temporary one lives as long as this does
        self._mediators = {name: of_mediator for name, of_mediator in written.mediators().items()
                           if name in self.names}
        self.total_effects = written.total_effects()
        where = written.run_folder.folder
        pieces = [piece for name, of_mediator in self._mediators.items()
                  for piece in read_pieces(where / of_mediator.file, name)]
        effects = tidy_table(pieces)
        self.effects = effects.assign(log_effect=effects["log_odds"] - effects["log_odds_base"],
                                      cluster=effects["cluster"].astype(str).map(written.clusters))

    @cached_property
    def _found(self) -> Summary:
        return self.written.summary(self._mediators)

    def total(self) -> pd.Series:
        """The mean total effect, log odds ratio, with `low` and `high`, its 95% bootstrap interval over
        stimuli or their clusters."""
        return self._found.totals.set_index("group").loc["all", ["mean", "low", "high"]].rename(None)

    def summary(self, group: str = "all") -> pd.DataFrame:
        """A row per mediator, unit, position and kind of effect, the strongest of each first.

        The columns are those of `mediation.effects.unit_summaries`: mean and median on the log scale, with
        the mean's 95% bootstrap interval over stimuli or their clusters; the share of the mean total effect
        that the unit carries (indirect: alone); odds ratios; ranks; p values. Where both effects are there,
        total_indirect and interaction are what is left of the total effect (`effects.decomposition`). Where
        prompts have different numbers of tokens, a position's numbers, the mean total effect too, are of the
        comparisons that have it.

        Raises:
            InputError: a group that the stimuli do not have.
        """
        table, groups = self._found.units, list(self._found.totals["group"])
        if group not in groups:
            raise InputError(f"group {group!r} is not in the result: choose from {', '.join(groups)}")
        of_group = table[table["group"] == group]
        order = of_group.groupby(["mediator", "effect"], sort=False).ngroup()
        by_strength = of_group.assign(order=order, size=-of_group["mean"].abs())
        strongest = by_strength.sort_values(["order", "size"], kind="stable")
        return strongest.drop(columns=["order", "size"]).reset_index(drop=True)

    def picture(self, mediator: str, effect: str = "indirect") -> "Picture":
        """The figure of a mediator, as mediate.py draws it; shown by a notebook.

        Raises:
            InputError: a mediator or an effect that the result does not have.
        """
        pictures = self._pictures(mediator)
        if effect not in pictures:
            raise InputError(f"{mediator} has no picture of {effect!r}: choose from {', '.join(pictures)}")
        return pictures[effect]

    def _pictures(self, mediator):
        """{kind of effect, or "by_group": Picture}."""
        if mediator not in self._mediators:
            raise InputError(f"mediator {mediator!r} is not in the result: choose from "
                             f"{', '.join(self._mediators)}")
        of_mediator = self._mediators[mediator]
        with tempfile.TemporaryDirectory() as folder:
            paths = plots.mediator(figures_of(mediator, of_mediator, self._found), self.written.name,
                                   Path(folder), "svg")
            names = [path.name.removeprefix(f"{mediator}_").removesuffix(f"_{self.written.name}.svg")
                     for path in paths]
            return {name: Picture(path.read_text(encoding="utf-8")) for name, path in zip(names, paths)}

    def report(self, path: str | Path) -> Path:
        """Write one HTML page, which needs nothing else: what was asked and found, maps and tables of every
        mediator, how sure it is. Returns the path.

        Raises:
            InputError: a file that is there already.
        """
        path = Path(path)
        if path.exists():
            raise InputError(f"{path} is there already: move it away, or name another file")
        with whole_file(path) as file:
            file.write(as_html(page_of(self.written, self._found)))
        return path

    def _opening(self):
        """What the numbers are, in a paragraph."""
        tests = "; ".join(f"{kind}: {of_kind.describe()}" for (group, kind), of_kind in
                          self._found.tests.items() if group == "all" and kind in SHOWN_EFFECTS)
        return (f"<p>{len(self.total_effects)} comparisons of a null prompt with an alternative. Effects are "
                "log odds ratios of the second candidate over the first: log odds under the intervention "
                "minus those of the null prompt. The mean total effect is "
                f"{_with_interval(self.total())}. Intervals (low, high) are 95% bootstrap intervals of the "
                "mean over stimuli, or over their clusters; share is the part of the mean total effect. "
                "Where prompts have different numbers of tokens, the numbers at a position, the mean total "
                "effect too, are of the comparisons that have it; clusters says of how many stimuli. "
                f"p is family-wise, q a false discovery rate: {tests}.</p>"
                + "".join(f"<p>{html.escape(line)}</p>" for line in self._left_out()))

    def _left_out(self):
        """A line per mediator and reason for which comparisons do not count in its numbers."""
        return [f"{name}: {number} of {len(self.total_effects)} comparisons left out: {reason}"
                for name, of_mediator in self._mediators.items()
                for reason, number in of_mediator.run["left_out"].get(name, {}).items()]

    def __repr__(self) -> str:
        lines = [f"Mediation in {self.written.name}: {len(self.total_effects)} comparisons, mean total "
                 f"effect {_with_interval(self.total())} (log odds ratio)"]
        summary = self.summary()
        summary["most"] = summary.groupby("mediator")["clusters"].transform("max")
        strongest = summary.groupby(["mediator", "effect"], sort=False).head(1)
        lines += [f"  {row.mediator}, {row.effect}: strongest {_named(row)}: {_with_interval(row)}"
                  + (f", {row.clusters} of {row.most} stimuli have it" if row.clusters < row.most else "")
                  for _, row in strongest.iterrows() if row["effect"] in SHOWN_EFFECTS]
        return "\n".join([*lines, *(f"  {line}" for line in self._left_out())])

    def _repr_html_(self) -> str:
        shown = self.summary().groupby(["mediator", "effect"], sort=False).head(5)
        return self._opening() + _table(shown.loc[shown["effect"].isin(SHOWN_EFFECTS), SHOWN])


class Picture(str):
    """A figure as SVG text, which a notebook shows."""

    def _repr_svg_(self) -> str:
        return str(self)

    def __repr__(self) -> str:  # a notebook keeps it beside the figure
        return f"<Picture, {len(self)} characters of SVG>"


def _named(row):
    """layer-unit at a position."""
    unit = "" if pd.isna(row.unit) else f"-{row.unit}"
    where = {"": "", "all": " at all positions"}.get(row.position, f" at position {row.position}")
    return f"layer {row.layer}{unit}{where}"


def _with_interval(row):
    """mean [low, high]."""
    return f"{row['mean']:.4g} [{row['low']:.4g}, {row['high']:.4g}]"


def _table(table):
    """HTML of a few rows."""
    return table.to_html(index=False, float_format="{:.4g}".format, na_rep="", border=0)

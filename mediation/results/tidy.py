"""One tidy table beside the formats of 2020: a row per comparison, mediator, unit and effect.

A *comparison* is a null prompt with one alternative. The formats' readers (`read_pieces` of `neuron_tables`,
`attention_results` and `mediation_tables`) yield `Piece`s, one comparison and effect at a time: the whole
profession study has 185 million rows. `tidy_table` puts together what fits into memory.

>>> tidy_table(read_pieces("attention_intervention_gpt2_filtered_dev.json")).groupby(["effect", "layer"])

| column | what it holds |
| --- | --- |
| comparison | the two prompts, or id and alternative of a stimulus of one's own |
| cluster | what is independent of the others: the profession, the example's occupations, the stimulus' id |
| group, template | of the stimulus; "" where the format has none |
| mediator, position | what was replaced, and at which token of the prompt (0 the first), or "all" |
| layer, unit | as in the formats' tables; layer "all": all layers at once; no unit: the whole layer |
| effect | kind of effect: man_indirect, man_direct, woman_indirect ...; indirect, direct |
| log_odds_base, log_odds | of the null prompt without intervention, and under the intervention |
| method | exact: the intervention was run; gradient: estimated to first order |

Odds are of he over she in the profession study, else of the second candidate over the first.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int, Shaped

from mediation.effects.odds import effect

COLUMNS = ("comparison", "cluster", "group", "template", "mediator", "layer", "unit", "position", "effect",
           "log_odds_base", "log_odds", "method")


@dataclass(frozen=True)
class Piece:
    """One comparison and kind of effect under one mediator: all its units, in the order of layers and units.

    `layer`: numbers, or an object array of numbers and "all"; `unit`: None where a whole layer is one unit.
    `position`, `method`: of all units, or of each. `stored`: the effects that a file has, where it has them;
    they are not computed again, for the last digit could be another. `log_odds_alternative`: of the
    alternative prompt without intervention, where the format tells.
    """

    comparison: str
    cluster: str
    mediator: str
    position: str | Shaped[np.ndarray, "U"]
    kind: str
    layer: Shaped[np.ndarray, "U"]
    unit: Int[np.ndarray, "U"] | None
    log_odds_base: float
    log_odds: Float64[np.ndarray, "U"]
    group: str = ""
    template: str = ""
    method: str | Shaped[np.ndarray, "U"] = "exact"
    stored: Float64[np.ndarray, "U"] | None = None
    log_odds_alternative: float | None = None

    @property
    def effects(self) -> Float64[np.ndarray, "U"]:
        """Odds ratios minus 1, relative to the null prompt's odds."""
        return np.asarray(effect(self.log_odds, self.log_odds_base)) if self.stored is None else self.stored

    @property
    def log_effects(self) -> Float64[np.ndarray, "U"]:
        """Log odds ratios; 0 = no effect."""
        return self.log_odds - self.log_odds_base

    def table(self) -> pd.DataFrame:
        """The rows of the tidy table."""
        return tidy_table([self])


def tidy_table(pieces: Iterable[Piece]) -> pd.DataFrame:
    """The rows of all pieces in one table; texts are categories, which take a byte or two per row."""
    pieces = list(pieces)
    lengths = [len(piece.log_odds) for piece in pieces]
    texts = ("comparison", "cluster", "group", "template", "mediator", "position", "method")
    columns: dict[str, Any] = {name: _category([getattr(piece, name) for piece in pieces], lengths)
                               for name in texts}
    columns["effect"] = _category([piece.kind for piece in pieces], lengths)
    columns["layer"] = _joined([piece.layer for piece in pieces], object)
    if all(piece.layer.dtype != object for piece in pieces):
        columns["layer"] = columns["layer"].astype(int)
    without = np.repeat([piece.unit is None for piece in pieces], lengths).astype(bool)
    units = [np.zeros(length, int) if piece.unit is None else piece.unit
             for piece, length in zip(pieces, lengths)]
    columns["unit"] = pd.arrays.IntegerArray(_joined(units, np.int64), without)
    columns["log_odds_base"] = np.repeat(np.array([piece.log_odds_base for piece in pieces], float), lengths)
    columns["log_odds"] = _joined([piece.log_odds for piece in pieces], float)
    return pd.DataFrame(columns)[list(COLUMNS)]


def _joined(arrays, dtype):
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)


def _category(texts, lengths):
    """Column of texts: one of each piece, or an array of one per unit."""
    words: dict[str, int] = {}  # in the order in which they come
    codes = [np.full(length, words.setdefault(text, len(words))) if isinstance(text, str)
             else np.array([words.setdefault(str(each), len(words)) for each in text])
             for text, length in zip(texts, lengths)]
    return pd.Categorical.from_codes(_joined(codes, int), categories=list(words))


@dataclass(frozen=True)
class Units:
    """Effects of one mediator over N comparisons, side by side; layer and unit name the columns."""

    effects: Float64[np.ndarray, "N U"]
    layer: Shaped[np.ndarray, "U"]
    unit: Int[np.ndarray, "U"] | None

    def named(self, unit: str = "unit") -> dict[str, Shaped[np.ndarray, "U"]]:
        """Columns that name the units: layer, and where a layer has several, one that is called `unit`."""
        return {"layer": self.layer} | ({} if self.unit is None else {unit: self.unit})

    def single_layers(self) -> "Units":
        """Without the unit that is all layers at once."""
        single = self.layer.astype(object) != "all"
        return Units(self.effects[:, single], self.layer[single].astype(int),
                     None if self.unit is None else self.unit[single])

    def grid(self, values: Shaped[np.ndarray, "U"]) -> Shaped[np.ndarray, "L H"]:
        """A value per unit as a map of layers and units of a layer."""
        return values.reshape(len(np.unique(self.layer)), -1)


def side_by_side(pieces: Iterable[Piece], mediator: str, kind: str, log: bool = False) -> Units:
    """Effects of one mediator and kind, a row per comparison: odds ratios minus 1, or their logs.

    Raises:
        ValueError: there are none, or they do not have the same units.
    """
    chosen = [piece for piece in pieces if (piece.mediator, piece.kind) == (mediator, kind)]
    if not chosen:
        raise ValueError(f"no {kind} effects of {mediator}")
    effects = np.stack([piece.log_effects if log else piece.effects for piece in chosen])
    return Units(effects, chosen[0].layer, chosen[0].unit)

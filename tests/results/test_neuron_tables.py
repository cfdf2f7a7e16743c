"""Neuron tables whose damage fuzzing found."""

import pytest

from mediation.errors import InputError
from mediation.results.neuron_tables import read_pieces, read_probabilities
from tests import fuzz


@pytest.mark.parametrize("change, message", [
    (lambda text: text.replace("\n0,nurse", "\n0,,,nurse"), "rows have more cells than there are columns"),
    (lambda text: text.replace(",nurse,", ",,"), "column 'word' is empty"),
    (lambda text: text.replace(",0,1\n", ",0.5,1\n"), "column 'layer' is not a number"),
    (lambda text: text.replace(",0,1\n", ",1e999,1\n"), "column 'layer' is not a number"),
    (lambda text: text.replace("0.1,0.2,0,1\n", f"{'A' * 5000},0.2,0,1\n"), "is not a probability above 0"),
], ids=["cells", "word", "half a layer", "infinity", "long cell"])
def test_damaged_tables_that_fuzzing_found(tmp_path, change, message):
    path, _ = fuzz.readers(tmp_path)["neuron table"]
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(InputError, match=message) as error:
        list(read_pieces(path, "man_indirect"))
    assert len(str(error.value)) < 1300


def test_tables_without_rows_are_told(tmp_path):
    path, _ = fuzz.readers(tmp_path)["neuron table"]
    path.write_text(path.read_text().partition("\n")[0] + "\n")
    with pytest.raises(InputError, match="the tables have no rows"):
        read_probabilities(path.parent, "m")

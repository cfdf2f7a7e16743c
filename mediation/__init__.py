"""The library under the scripts: stimuli, models, interventions, effects, files. Each module imports only downwards.

`errors`, `options`, `storage`, `assets` serve everybody; `stimuli`, `professions`, `effects` say what is asked and
what is computed; `architectures`, `checkpoints`, `forward`, `neurons`, `sweeps` run the model; `statistics`, `plots`
and `report` read tables.
"""

__version__ = "0.2.0"  # raised whenever a number may change: what an unfinished run kept under another version is computed again

"""The library under the scripts: stimuli, models, interventions, effects, files. Each module imports only downwards.

`errors`, `options`, `storage`, `assets` serve everybody; `stimuli`, `professions`, `effects` say what is asked and
what is computed; `architectures`, `checkpoints`, `forward`, `neurons`, `sweeps` run the model; `statistics`, `plots`
and `report` read tables.
"""

"""Names that notebooks and scripts import: `batch` and `convert_results_to_pd` of the 2020 study, and `load_model`."""

import os
import sys

from mediation.mediators.batches import batch
from mediation.results.neuron_tables import HALF_PRECISION, convert_results_to_pd

__all__ = ["batch", "convert_results_to_pd", "load_model"]


def load_model(options):
    """The model as the options ask for it. What takes seconds to import is imported here, so that --help and bad input answer at once."""
    import torch

    from experiment import Model

    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA's products need for it
        torch.use_deterministic_algorithms(True)
    if options.dtype in HALF_PRECISION:
        print(f"warning: --dtype {options.dtype} rounds every activation to two or three digits, and effects are small differences: on SmolLM2-135M "
              f"they are off by {HALF_PRECISION[options.dtype]} in log odds, where half of them are below .003: take --dtype float32", file=sys.stderr)
    return Model(device=options.device, gpt2_version=options.model, random_weights=options.randomize,
                 seed=options.seed, dtype=getattr(torch, options.dtype), full_passes=options.full_passes,
                 precision=getattr(options, "precision", "exact"), masking_approach=getattr(options, "masking_approach", 1))  # not all scripts have these

"""Names of the 2020 study that notebooks import, `batch` and `convert_results_to_pd`, and `load_model`."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from mediation.errors import InputError
from mediation.mediators.batches import batch
from mediation.results.neuron_tables import HALF_PRECISION, convert_results_to_pd

if TYPE_CHECKING:
    from experiment import Model

__all__ = ["batch", "convert_results_to_pd", "load_model"]


def load_model(options: argparse.Namespace) -> "Model":
    """The model that the options ask for."""
    # these imports take seconds: --help and bad input answer without them
    import torch

    from experiment import Model

    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what CUDA's products need for it
        torch.use_deterministic_algorithms(True)
    if options.dtype in HALF_PRECISION:
        print(f"warning: --dtype {options.dtype} rounds every activation to two or three digits, and effects "
              f"are small differences: on SmolLM2-135M they are off by {HALF_PRECISION[options.dtype]} in "
              "log odds, where half of them are below .003: take --dtype float32", file=sys.stderr)
    model = Model(device=options.device, gpt2_version=options.model, random_weights=options.randomize,
                  seed=options.seed, dtype=getattr(torch, options.dtype), full_passes=options.full_passes,
                  weights_dtype=getattr(torch, options.weights_dtype) if options.weights_dtype else None,
                  device_map=options.device_map,
                  # not all scripts have these two
                  precision=getattr(options, "precision", "exact"),
                  masking_approach=getattr(options, "masking_approach", 1))
    if model.full_passes and not options.full_passes:
        kind, obstacle = model.model.config.model_type, model.parts.architecture.obstacle
        if getattr(options, "method", "exact") != "exact":
            raise InputError(f"--method {options.method} does not go with this {kind} model, which "
                             f"{obstacle}: use --method exact")
        print(f"this {kind} model {obstacle}: every intervention is a full pass")
        options.full_passes = True
    return model

"""`LanguageModel`: a model with its tokenizer, and what it says without intervention.

The sweeps are functions that take one: `mediation.mediators.neuron_sweeps` and `head_sweeps`. A stimulus is
an `Intervention` of the room `stimuli`; here only its prompts, candidates and own check are looked at.

Symbols in shapes: B batch, T tokens, C candidates, N stimuli, V vocabulary.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from mediation.errors import InputError
from mediation.model import checkpoints, masked, placement
from mediation.model.architectures import is_masked, masked_parts, parts_of
from mediation.model.discovery import sample_tokens
from mediation.model.fast_rows import FastRows
from mediation.model.forward import BaseRun, last_logits, run_base
from mediation.model.half_weights import HALF, check_float32
from mediation.model.probes import known_architecture
from mediation.model.products import check_bfloat16
from mediation.model.readout import ReadOut, widen
from mediation.model.token_trees import Tree, pack, pack_pairs

PROMPTS_AT_ONCE = 64
TOKENS_AT_ONCE = 2048  # of these prompts: their attention weights have to fit into memory
TOKENS_TOGETHER = 1024  # of prompts that are run as one tree, in which every token looks at every other
TOKENS_UNLIKE = 256  # of such prompts where they need not begin alike: more make no run faster


def families(interventions: Sequence) -> list[list[int]]:
    """Indices of stimuli that are run as one tree: alike up to the slot's end, and of at most TOKENS_TOGETHER
    tokens (or one stimulus)."""
    found: list[list[int]] = []
    open_ones: dict[tuple, tuple[list[int], int]] = {}  # of each beginning the last one, and its tokens
    for index, one in enumerate(interventions):
        size = max(len(prompt.tokens) for prompt in one.prompts) + sum(map(len, one.candidates_tok))
        members, tokens = open_ones.get(one.beginning, ([], TOKENS_TOGETHER))
        if tokens + size > TOKENS_TOGETHER:
            members, tokens = [], 0
            found.append(members)
        members.append(index)
        open_ones[one.beginning] = members, tokens + size
    return found


def _by_size(interventions: Iterable) -> Iterator[list]:
    """Stimuli in their order, as many at once as have TOKENS_UNLIKE tokens together (or one)."""
    members: list = []
    tokens = 0
    for one in interventions:
        size = sum(len(prompt.tokens) + sum(map(len, one.candidates_tok)) for prompt in one.prompts)
        if members and tokens + size > TOKENS_UNLIKE:
            yield members
            members, tokens = [], 0
        members.append(one)
        tokens += size
    if members:
        yield members


def _name(dtype):
    return str(dtype).removeprefix("torch.")


class LanguageModel:
    """A model in evaluation mode and without gradients; a masked one is for the attention study only.

    Args:
        name: a bundled name (`smollm2-135m`), a local directory, or a hub id.
        device: "cpu", "cuda", "cuda:0" ..., or "auto": CUDA where there is one.
        dtype: of weights and activations.
        weights_dtype: bfloat16 or float16: the weights of a float32 model are kept so, and all that is
            computed stays float32, see `mediation.model.half_weights`. None: as `dtype` says.
        device_map: "auto": blocks are divided over all GPUs, see `mediation.model.placement`. None: the model
            is on one device.
        random_weights: keep the architecture, draw new weights with `seed`.
        masking_approach: 1 to 6, how a masked model scores a candidate, see `mediation.model.masked`.
        full_passes: run every intervention as a full forward pass under plain hooks, the slow reference of
            the sweeps. A model that cannot be resumed (`parts.architecture.resumes`) is run so anyway.
        precision: "exact", or "fast": sweeps multiply the difference to the base run in bfloat16 where that
            is good enough, which random interventions that are run both ways decide (see
            `mediation.mediators.batches`); `fast_rows` counts them. For float32 models.

    Attributes:
        devices: on which the model is; device: the first of them, on which all is that is no block.
        dtype: of activations, and of weights if nothing else was asked for.
        name: the last path component, as files are named; `_random` appended where weights were drawn.
        source: what it was asked for by, for another process that is to load it.
        model, tokenizer, parts: the library's two, and the model's modules, see
            `mediation.model.architectures`.
        num_layers, num_heads, num_neurons: blocks, heads per block, neurons per layer.
        masking: how candidates are scored; None for causal models.
        fast_rows: what became of the rows that were to be run fast; None in exact precision.

    Raises:
        InputError: unknown model, unsupported architecture, a device that is not there, or one that has no
            fast precision; fewer than two GPUs to be divided over.
    """

    def __init__(self, name: str, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
                 random_weights: bool = False, seed: int = 0, masking_approach: int = 1,
                 full_passes: bool = False, precision: str = "exact",
                 weights_dtype: torch.dtype | None = None, device_map: str | None = None) -> None:
        self.name = checkpoints.model_name(name) + ("_random" if random_weights else "")
        self.source = {"name": name, "device": device, "random_weights": random_weights, "seed": seed,
                       "weights_dtype": weights_dtype, "device_map": device_map}
        self.devices = (placement.devices_of(device_map, device) if device_map else
                        [checkpoints.find_device(device)])
        self.device = self.devices[0]
        self.dtype, self.full_passes = dtype, full_passes
        self.fast_rows = None
        if precision == "fast":
            check_bfloat16(self.device)
            if dtype != torch.float32 or full_passes:
                raise InputError("--precision fast is for the sweeps of float32 models: use --precision "
                                 "exact with --full_passes or another --dtype")
            self.fast_rows = FastRows()
        elif precision != "exact":
            raise InputError(f"precision {precision!r} is unknown: choose exact or fast")
        if weights_dtype not in (None, *HALF):
            raise InputError(f"weights_dtype {_name(weights_dtype)} is unknown: choose bfloat16 or float16")
        if weights_dtype and dtype != torch.float32:
            raise InputError(f"--weights_dtype {_name(weights_dtype)} keeps the weights alone so, all else "
                             f"is float32: leave out --dtype {_name(dtype)}")
        loaded_to = torch.device("cpu") if device_map else self.device
        self.model, self.tokenizer = checkpoints.load_model(name, loaded_to, dtype, random_weights, seed,
                                                            weights_dtype)
        if weights_dtype:
            check_float32(self.model, sample_tokens(self.model))
        self.parts = (masked_parts(self.model) if is_masked(self.model.config) else
                      parts_of(self.model, known_architecture(self.model)))
        architecture = self.parts.architecture
        if precision == "fast" and not (architecture.resumes and self.parts.final_norm is not None):
            raise InputError(f"--precision fast does not go with a {self.model.config.model_type} model, "
                             f"{architecture.obstacle or 'whose logits are capped or scaled'}: use "
                             "--precision exact")
        self.full_passes |= not architecture.resumes
        if device_map:
            placement.spread(self.parts, self.devices)
        if self.parts.head.weight.dtype in HALF:
            widen(self.parts.head)
        self.num_layers: int = len(self.parts.blocks)
        self.num_neurons: int = architecture.width
        self.num_heads: int = architecture.heads
        self.masking = masked.Masking.of(self.tokenizer, masking_approach) if self.parts.masked else None

    @contextmanager
    def exactly(self) -> Iterator[None]:
        """While open, sweeps are exact, whatever precision the model was made for."""
        fast, self.fast_rows = self.fast_rows, None
        try:
            yield
        finally:
            self.fast_rows = fast

    def weights_sha256(self) -> str:
        """Hash of every parameter's name, dtype, shape and bytes.

        The same for the same weights, wherever they were loaded from.
        """
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(parameter.contiguous().cpu().view(torch.uint8).numpy())
        return digest.hexdigest()

    def describe(self) -> dict[str, str]:
        """For a manifest: the name, and a hash of the weights."""
        return {"model": self.name, "weights_sha256": self.weights_sha256()}

    def describe_dtype(self) -> dict[str, str]:
        """For a manifest: the precision of what is computed; and of the weights, where it is another."""
        kept = self.source["weights_dtype"]
        return {"dtype": _name(self.dtype)} | ({"weights_dtype": _name(kept)} if kept else {})

    @property
    def where(self) -> str:
        """Its devices in words."""
        return ", ".join(map(str, self.devices))

    def check_causal(self) -> None:
        """Raises InputError for a masked model."""
        if self.masking:
            raise InputError(f"{self.name} is a masked model: it is for the attention study, "
                             "neurons need a causal model")

    # the run of one prompt, or of one tree of prompts

    @torch.no_grad()
    def base_run(self, tokens: Int[Tensor, "T"], candidates: Sequence[Sequence[int]] = ([0],),
                 linear_maps: bool = False) -> BaseRun:
        """Run a prompt and what the candidates (lists of token ids) need behind it.

        Args:
            linear_maps: keep what these are given and give, which the fast precision needs.

        Raises:
            InputError: a masked model.
        """
        self.check_causal()
        if not self.parts.architecture.resumes:
            return run_base(self.model, self.parts, tokens.to(self.device))
        tree = pack([tokens.tolist()], candidates, self.device)
        branches = tree if len(tree.tokens) > len(tokens) else None
        return run_base(self.model, self.parts, tree.tokens, branches, linear_maps)

    @torch.no_grad()
    def read_out(self, run: BaseRun, tokens: Int[Tensor, "T"],
                 candidates: Sequence[Sequence[int]]) -> Float64[Tensor, "C"]:
        """Log-probabilities of the candidates, means over their tokens, from the base run of a prompt."""
        if not self.parts.architecture.resumes:
            return self.without_trees(tokens, candidates)
        predictions = pack([tokens.tolist()], candidates, self.device).predictions
        return ReadOut(self.parts, predictions)(run.residuals[-1].unsqueeze(0))[0]

    @torch.no_grad()
    def without_trees(self, tokens: Int[Tensor, "T"],
                      candidates: Sequence[Sequence[int]]) -> Float64[Tensor, "C"]:
        """Mean token log-probability of each candidate behind a prompt, a pass for each."""
        means = []
        for candidate in candidates:
            ids = torch.tensor(candidate, device=self.device)
            sequence = torch.cat([tokens.to(self.device), ids])[:-1]
            log_probabilities = self._log_probabilities(sequence.unsqueeze(0), keep=len(ids))[0]  # [ids, V]
            means.append(log_probabilities.gather(1, ids.unsqueeze(1)).mean())
        return torch.stack(means).cpu()

    def trees(self, interventions: Sequence, prompt: int) -> list[tuple[list[int], Tree]]:
        """A tree for each of the `families` of stimuli, of their prompts of index `prompt`.

        Their other prompts are alike up to the slot's end, too: what is taken from one of these holds for
        all.

        Returns: for each tree the indices of its stimuli, and the tree.
        """
        return [(members, pack([interventions[index].prompts[prompt].tokens for index in members],
                               interventions[members[0]].candidates_tok, self.device))
                for members in families(interventions)]

    # probabilities without intervention

    @torch.no_grad()
    def base_in_trees(self, interventions: Sequence) -> Float64[Tensor, "N prompts 2"]:
        """Log-probabilities of both candidates after each prompt, as sweeps over trees of stimuli have them.

        Raises:
            InputError: a masked model, or a stimulus without neuron interventions.
        """
        self.check_causal()
        for intervention in interventions:
            intervention.check_for_neurons()
        result = torch.empty(len(interventions), len(interventions[0].prompts), 2, dtype=torch.float64)
        if not self.parts.architecture.resumes:
            for row, one in zip(result, interventions):
                row[:] = torch.stack([self.without_trees(tokens, one.candidates_tok)
                                      for tokens in one.base_strings_tok])
            return result
        for prompt in range(result.shape[1]):
            for members, tree in self.trees(interventions, prompt):
                residual = run_base(self.model, self.parts, tree.tokens, tree).residuals[-1]
                log_probabilities = ReadOut(self.parts, tree.predictions)(residual.unsqueeze(0))
                result[members, prompt] = log_probabilities.reshape(-1, 2)
        return result

    @torch.no_grad()
    def base_probabilities(self, interventions: Iterable) -> list[list[float]]:
        """Probabilities of both candidates of many stimuli.

        Where candidates are single tokens, prompts of equal length are run together.

        Returns: for each stimulus p(c1), p(c2) after its first prompt, after its second, and so on.
        """
        interventions = list(interventions)
        if any(len(ids) > 1 for one in interventions for ids in one.candidates_tok):
            return self.base_in_trees(interventions).exp().flatten(1).tolist()
        wanted: dict[tuple, set[tuple]] = {}  # of each different prompt the candidates
        for one in interventions:
            for prompt in one.prompts:
                wanted.setdefault(prompt.tokens, set()).update(map(tuple, one.candidates_tok))
        of_length: dict[int, list[tuple]] = {}
        for tokens in wanted:
            of_length.setdefault(len(tokens), []).append(tokens)
        probabilities: dict[tuple, dict[tuple, float]] = {}
        for length, prompts in of_length.items():
            size = max(1, min(PROMPTS_AT_ONCE, TOKENS_AT_ONCE // length))
            for start in range(0, len(prompts), size):
                together = prompts[start:start + size]
                candidates = sorted(set().union(*map(wanted.__getitem__, together)))
                rows = self.get_probabilities_for_examples(torch.tensor(together), candidates)
                probabilities |= {tokens: dict(zip(candidates, row)) for tokens, row in zip(together, rows)}
        return [[probabilities[prompt.tokens][tuple(ids)]
                 for prompt in one.prompts for ids in one.candidates_tok] for one in interventions]

    @torch.no_grad()
    def continuation_probabilities(self, intervention: Any) -> list[list[float]]:
        """Probability of each candidate, of any length, for each prompt of a stimulus: a list per prompt."""
        probabilities, candidates = [], intervention.candidates_tok
        for tokens in intervention.base_strings_tok:
            if self.masking:
                probabilities.append(self.get_probabilities_for_examples_multitoken(tokens, candidates))
            else:
                run = self.base_run(tokens, candidates)
                probabilities.append(self.read_out(run, tokens, candidates).exp().tolist())
        return probabilities

    @torch.no_grad()
    def continuations_together(self, interventions: Iterable) -> Iterator[list[list[float]]]:
        """`continuation_probabilities` of many stimuli in turn, up to rounding: some are run as one tree."""
        if self.masking or not self.parts.architecture.resumes:
            yield from map(self.continuation_probabilities, interventions)
            return
        for members in _by_size(interventions):
            tree = pack_pairs([(prompt.tokens, candidate) for one in members
                               for prompt in one.prompts for candidate in one.candidates_tok], self.device)
            residual = run_base(self.model, self.parts, tree.tokens, tree).residuals[-1]
            of_pairs = iter(ReadOut(self.parts, tree.predictions)(residual.unsqueeze(0))[0].exp().tolist())
            for one in members:
                yield [[next(of_pairs) for _ in one.candidates_tok] for _ in one.prompts]

    @torch.no_grad()
    def get_probabilities_for_examples(self, context: Int[Tensor, "*B T"],
                                       candidates: Sequence[Sequence[int]]) -> list[list[float]]:
        """Probabilities of single-token candidates (lists of one token id) after prompts of equal length.

        Raises:
            ValueError: a candidate of several tokens.
        """
        for candidate in candidates:
            if len(candidate) != 1:
                raise ValueError(f"candidate {candidate} has {len(candidate)} tokens: "
                                 "use get_probabilities_for_examples_multitoken")
        prompts = context.reshape(-1, context.shape[-1])  # [B, T]
        if self.masking:
            return [self.get_probabilities_for_examples_multitoken(row, candidates) for row in prompts]
        log_probabilities = self._log_probabilities(prompts, keep=1)[:, 0]  # [B, V]
        return log_probabilities[:, [candidate[0] for candidate in candidates]].exp().tolist()

    @torch.no_grad()
    def get_probabilities_for_examples_multitoken(self, context: Int[Tensor, "*one T"],
                                                  candidates: Sequence[Sequence[int]]) -> list[float]:
        """Probability of each candidate (a list of token ids): exp of the mean token log-probability."""
        context = context.reshape(-1).to(self.device)
        if self.masking:
            of_masks = masked.log_probabilities(self.model, self.parts, context, candidates, self.masking)
            return of_masks.exp().tolist()
        return self.without_trees(context, candidates).exp().tolist()

    def _log_probabilities(self, tokens: Int[Tensor, "B T"], keep: int) -> Float64[Tensor, "B {keep} V"]:
        """After the last `keep` tokens."""
        logits = last_logits(self.model, tokens.to(self.device), keep)
        return logits.double().log_softmax(dim=-1)

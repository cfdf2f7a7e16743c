"""Whether a causal model does what the sweeps rely on: tried out on one short text when it is loaded.

A run that is resumed without a change proves nothing: what is kept of the base run may hide what the resumed
one leaves out. So the residual stream is changed, before every block, and compared with full passes. What
passes decides how sweeps are run; a model of which not even full passes hold is refused. The answers are kept
with the cached data, so that a model is asked once.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import torch
import transformers
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from mediation.errors import InputError
from mediation.files.assets import cache_folder, sha256_of
from mediation.files.storage import write_json
from mediation.model import architectures, attention, discovery, forward
from mediation.model.architectures import Architecture, Form, Parts, parts_of
from mediation.model.attention import near
from mediation.model.discovery import discover, refusal, sample_tokens, watch
from mediation.model.forward import (
    BaseRun,
    Resumption,
    called_with,
    changed,
    first_argument,
    first_tensor,
    front,
    run_base,
)
from mediation.model.half_weights import keeps_half
from mediation.model.token_trees import pack

FEW = 16  # numbers of each weight that tell one checkpoint from another
LONGEST = 120  # characters of the library's own words
JOINS = 7  # blocks but one before which a row joins
PLACE = 3  # where the probes change something: neither the first nor the last token
ROUNDING = 3e4  # how many roundings two ways of running all blocks may differ by; what is wrong is far beyond


def known_architecture(model: PreTrainedModel) -> Architecture:
    """The parts of a causal model and what its blocks do with them: from the cache, or found and tried out.

    Raises:
        InputError: a model that sees later tokens, or whose prompts see each other in a batch; or one whose
            blocks are not to be found.
    """
    path = cache_folder() / "architectures" / f"{_key(model)}.json"
    try:
        return _read(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):  # not there, or damaged
        try:
            architecture = probed(model)
        except InputError:
            raise
        except Exception as error:  # the library's own code stops on a plain text
            raise InputError(refusal(model, f"a short run of it fails ({first_line(error)})")) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(architecture))
    except OSError:  # a cache that cannot be written costs time only
        pass
    return architecture


def first_line(error: Exception) -> str:
    """What an error of the library says, with its name."""
    line = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def _key(model):
    """Of what decides: the model's settings, weights and type of number, and all software that takes part."""
    asking = [sha256_of(str(module.__file__)) for module in (architectures, attention, discovery, forward)]
    weights = {name: weight.flatten()[:FEW].tolist() for name, weight in model.named_parameters()}
    told = {"config": model.config.to_dict(), "class": type(model).__name__, "weights": weights,
            "dtype": str(model.dtype), "experts": getattr(model.config, "_experts_implementation", None),
            "versions": [torch.__version__, transformers.__version__, sha256_of(__file__), *asking]}
    told["config"].pop("_name_or_path", None)
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()


def _read(stored: dict[str, Any]) -> Architecture:
    """From JSON, which knows no tuples."""
    forms = tuple({path: Form(tuple(form["tokens"]), form["sequences"], form["of_text"])
                   for path, form in of_block.items()} for of_block in stored["forms"])
    maps = {part: tuple((name, tuple(map(tuple, columns))) for name, columns in stored[part])
            for part in ("queries", "keys", "values")}
    names: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value
                             for name, value in stored.items()}
    return Architecture(**names | maps | {"forms": forms})


@torch.no_grad()
def probed(model: PreTrainedModel) -> Architecture:
    """The parts of a causal model, found and tried out. Errors as in `known_architecture`."""
    if keeps_half(model):  # what it computes is float32
        return _probed(model)
    with in_float32(model):
        return _probed(model)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """While open, what a model has in half precision is float32: rounding would hide what is wrong."""
    half = [tensor for tensor in [*model.parameters(), *model.buffers()]
            if tensor.dtype in (torch.bfloat16, torch.float16)]
    own = [tensor.data for tensor in half]
    try:
        for tensor in half:
            tensor.data = tensor.data.float()
        yield
    finally:
        for tensor, data in zip(half, own):
            tensor.data = data


def _probed(model):
    tokens = sample_tokens(model)
    seen = watch(model, tokens[:1])
    found = discover(model, tokens, seen)
    _check_causal_and_alone(model, tokens, seen.logits[0])
    adds, stays = _tried(_embedding, model, found, tokens[0]) or (False, False)
    found = replace(found, embedding_adds=adds, mlp_adds=_tried(_mlps_add, model, found, tokens[0]),
                    mlps_alone=_tried(_mlps_alone, model, found, tokens))
    if not stays:
        obstacle = "cannot be changed in its embedding alone (blocks are given the word embedding, too)"
        return replace(found, resumes=False, obstacle=obstacle)
    parts = parts_of(model, found)
    base_of_first = cache(lambda: run_base(model, parts, tokens[0]))
    for probe, name in ((_resumes, "resumed at a block and position"), (_runs_trees, "run with branches")):
        try:
            wrong = probe(model, parts, tokens, base_of_first)
        except Exception as error:  # a block that cannot be called so raises whatever it likes
            wrong = first_line(error)
        if wrong:
            return replace(found, resumes=False, obstacle=f"cannot be {name} ({wrong})")
    return found


def _has_own_window(model, found):
    """Whether its attention may reach back less far than the mask says: GPT-Neo cuts by index, not by depth.

    The library's eager attention, where it is called, looks at the mask alone.
    """
    settings = model.config.get_text_config().to_dict().items()
    names = found.attentions or found.attention_ends
    seen = names and "" not in names
    return not seen and any("window" in name and isinstance(size, int) for name, size in settings)


def _check_causal_and_alone(model, tokens, alone):
    """Another last token changes nothing before it, and other prompts in the batch change nothing at all:
    `alone` are the logits of the first text in a run of its own."""
    other = tokens[0].clone()
    other[-1] = tokens[tokens != tokens[0, -1]][0]
    first, second, _ = model(torch.stack([tokens[0], other, tokens[1]]), use_cache=False).logits
    if not near(first, alone, ROUNDING):
        raise InputError(refusal(model, "prompts that are run together change each other"))
    if not near(first[:-1], second[:-1], ROUNDING):
        raise InputError(refusal(model, "what it says of a token depends on later ones"))


def noise(like: Tensor, scale: Tensor) -> Tensor:
    """Numbers of this standard deviation, 1 for 0; the same ones each time, and no draw of the user's."""
    scale = torch.where(scale > 0, scale, 1.0)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(like.shape, generator=generator).to(like) * scale


def _tried(probe: Callable[..., Any], *given) -> Any:
    """What a probe says; no where it cannot be made."""
    try:
        return probe(*given)
    except Exception:  # as in `probed`
        return False


def _embedding(model, found, tokens):
    """Whether the stream before the first block moves as the embedding's output does, and whether what blocks
    are called with besides does not."""
    moved = []

    def move(_module, _inputs, output):
        new = output.clone()
        new[0, PLACE] += noise(new[0, PLACE], output.std())
        moved.append(new - output)
        return new

    known = model, model.get_submodule(found.blocks), found.returns, tokens[None]
    hidden, calls = front(*known)
    handle = model.get_submodule(found.embedding).register_forward_hook(move)
    try:
        other, others = front(*known)
    finally:
        handle.remove()
    stays = all(torch.equal(one, two) for one, two in zip(_tensors(calls), _tensors(others)))
    return near(other - hidden, moved[0]), stays


def _tensors(calls):
    tensors = []
    changed(lambda _path, tensor: tensors.append(tensor), calls)
    return tensors


def _mlps_add(model, found, tokens):
    """The stream behind each block moves as its MLP's output, behind its norm, does."""
    if not found.mlps:
        return False
    parts = parts_of(model, found)
    hidden, calls = front(model, parts.blocks, found.returns, tokens.expand(2, -1))
    for block, mlp, norm, call in zip(parts.blocks, parts.mlps, parts.mlp_norms, calls):
        moved: list[Tensor] = []

        def move(_module, _inputs, output, norm=norm, moved=moved, shape=hidden.shape):
            """In the second of two equal rows."""
            own = first_tensor(output)
            new = own.clone()
            rows = new.view(shape)
            rows[1, PLACE] += noise(rows[1, PLACE], own.std())
            difference = new - own if norm is None else norm(new) - norm(own)
            moved.append(difference.view(shape)[1])
            return (new, *output[1:]) if isinstance(output, tuple) else new

        handle = mlp.register_forward_hook(move)
        try:
            behind = first_tensor(block(hidden, **call))
        finally:
            handle.remove()
        if not near(behind[1], behind[0] + moved[0], ROUNDING / 10):
            return False
        hidden = behind[:1].expand(2, -1, -1)
    return True


def _mlps_alone(model, found, tokens):
    """Each MLP gives for one token of either text, the two alone, what it gave for them in the run."""
    mlps = parts_of(model, found).mlps
    right: list[bool] = []

    def compare(mlp, positional, named, output):
        given, call = called_with(mlp, positional, named)
        shape, places = given.shape, [PLACE, tokens.numel() - 1]
        some = given.reshape(-1, shape[-1])[places].reshape(*[1] * (len(shape) - 2), 2, shape[-1])
        handles.pop(mlp).remove()  # it is run again, and nothing compared then
        again = first_tensor(mlp(some, **call)).reshape(2, -1)
        among = first_tensor(output).reshape(tokens.numel(), -1)[places]
        right.append(not _tensors(call) and near(again, among, ROUNDING / 10))

    handles = {mlp: mlp.register_forward_hook(compare, with_kwargs=True) for mlp in mlps}
    try:
        model.base_model(tokens, use_cache=False)
    finally:
        for handle in handles.values():
            handle.remove()
    return bool(mlps) and len(right) == len(mlps) and all(right)


def _resumes(model, parts: Parts, tokens: Int[Tensor, "2 T"], base_of_first: Callable[[], BaseRun]) -> str:
    """Rows that join before some blocks with a changed residual stream, and go through all that follow, equal
    full passes with that change.

    "", or what is wrong.
    """
    if _has_own_window(model, parts.architecture):
        return "its attention has a window that no mask tells of"
    if not parts.architecture.cache:
        return "its blocks take no cache of keys and values"
    base = base_of_first()
    blocks = len(parts.blocks)
    joins = sorted({round(row * (blocks - 1) / JOINS) for row in range(JOINS + 1)})
    steps = [noise(base.residuals[index][PLACE], base.residuals[index].std()) for index in joins]
    resumption = Resumption(parts, base, PLACE)
    hidden = resumption.rows(0, 0)
    for index in range(blocks):
        if index in joins:
            joining = resumption.rows(index, 1)
            joining[0, 0] += steps[joins.index(index)]
            hidden = torch.cat([hidden, joining])
        hidden = resumption.block(index, hidden)
    handles = [parts.blocks[index].register_forward_pre_hook(_adding(row, step), with_kwargs=True)
               for row, (index, step) in enumerate(zip(joins, steps))]
    last: list[Tensor] = []
    handles.append(parts.blocks[-1].register_forward_hook(
        lambda _module, _inputs, output: last.append(first_tensor(output))))
    try:
        model.base_model(tokens[:1].expand(len(steps), -1), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    # compared by what the changes did: what they left as it was says nothing
    own = base.residuals[-1][PLACE:]
    return "" if near(hidden - own, last[0][:, PLACE:] - own, ROUNDING) else "the residual stream is another"


def _adding(row, step):
    """Hook that adds a step to what a block is given, in one row of the batch."""
    def add(block, positional, named):
        name = first_argument(block)
        new = (positional[0] if positional else named[name]).clone()
        new[row, PLACE] += step
        return ((new, *positional[1:]), named) if positional else ((), named | {name: new})
    return add


def _runs_trees(model, parts: Parts, tokens: Int[Tensor, "2 T"], base_of_first: Callable[[], BaseRun]) -> str:
    """Two prompts that part in the middle, and their continuations, are in a tree what they are alone.

    The first prompt with its longer continuation is the first text.
    """
    one, other = tokens.tolist()
    prompts = [one[:-2], [*one[:PLACE], *other[PLACE:-2]]]
    continuations = [[*one[-2:], 0], [other[-1], 0]]  # a candidate's last token is not run
    tree = pack(prompts, continuations, tokens.device)
    of_tree = run_base(model, parts, tree.tokens, tree).residuals[-1]
    second = torch.tensor([*prompts[1], *continuations[0][:-1]], device=tokens.device)
    alone = base_of_first(), run_base(model, parts, second)
    for (places, _), prompt, of_prompt in zip(tree.predictions[::2], prompts, alone):
        if not near(of_tree[list(places)], of_prompt.residuals[-1][len(prompt) - 1:], ROUNDING):
            return "the residual stream is another"
    return ""

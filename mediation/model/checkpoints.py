"""From a model's name to a model: a bundled name, a local directory, or a hub id.

Weights come from safetensors files; no code is taken from a hub.
"""

import contextlib
import json
import logging
import os
import sys
from pathlib import Path

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from mediation.errors import InputError
from mediation.files.assets import MODELS, cache_folder, only_process, sha256_of, unpack_model_file
from mediation.files.storage import whole_folder, write_json
from mediation.model.architectures import check_supported, is_masked
from mediation.model.attention import make_changeable
from mediation.model.half_weights import HALF, keep_in_half


def model_name(name: str) -> str:
    """The name of a model as it stands in file names: its last path component."""
    return Path(os.path.abspath(name)).name


def bundled_model(name: str, asked_for: bool = False) -> Path:
    """Folder with the config, safetensors and tokenizer of a bundled model.

    It is made from the model's GGUF file the first time. The converted weights are checked against the hash
    that was taken when they were written.

    Raises:
        InputError: a model under terms of use that was not fetched by name before, or a damaged cache.
    """
    folder = cache_folder() / "models" / name
    with only_process(folder.parent):
        if not folder.exists():
            if MODELS[name].terms and not asked_for:
                raise InputError(f"{name} is not here yet and comes under terms of use: read them, then run "
                                 f"python -m mediation.assets {name}")
            _convert(name, folder)
    origin, weights = json.loads((folder / "made.json").read_text()), folder / "model.safetensors"
    if sha256_of(weights) != origin["model.safetensors sha256"]:
        raise InputError(f"{weights} is damaged: delete the folder {folder} and run again")
    return folder


def _convert(name, folder):
    """Dequantize a GGUF file to float32 safetensors, once."""
    with whole_folder(folder) as target, _quiet():
        gguf = target.parent / f"{name}.gguf"
        unpack_model_file(name, gguf)
        print(f"converting {name} to safetensors, once; takes half a minute", file=sys.stderr)
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            # the weights are no longer quantized; with it the folder would not load
            del config.quantization_config
        model = type(loaded)(config)
        model.load_state_dict(loaded.state_dict())
        model.tie_weights()
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(**source).save_pretrained(target)
        write_json(target / "made.json", {
            "source sha256": sha256_of(gguf),
            "model.safetensors sha256": sha256_of(target / "model.safetensors"),
        })


@contextlib.contextmanager
def _quiet():
    """No progress bars and no retry messages of the model libraries.

    What matters is in the error or in the result.
    """
    hub = logging.getLogger("huggingface_hub")
    level, verbosity = hub.level, transformers.logging.get_verbosity()
    hub.setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        hub.setLevel(level)
        transformers.logging.set_verbosity(verbosity)
        transformers.logging.enable_progress_bar()


def find_device(name: str | torch.device) -> torch.device:
    """The device that is called "cpu", "cuda" or "cuda:1"; "auto" takes CUDA where there is one.

    Raises:
        InputError: another kind of device, or one that this machine does not have.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is unknown: use cpu, cuda or cuda:0") from error
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"device {name!r} is not supported: use --device cpu or cuda")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        names = f", cuda:0 to cuda:{count - 1}" if count else ""
        raise InputError(f"device {name!r} is not there: this machine has {count} CUDA devices{names}: "
                         f"use {'one of these, or ' if count else ''}--device cpu")
    return device


def load_model(
    name: str, device: torch.device, dtype: torch.dtype = torch.float32, random_weights: bool = False,
    seed: int = 0, weights_dtype: torch.dtype | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model in evaluation mode on `device`, and its tokenizer.

    Attention is eager everywhere: one implementation for every number.

    Args:
        weights_dtype: None, or the half precision in which a float32 model's weights are kept.

    Raises:
        InputError: the name is none of bundled, directory and reachable hub id; or a model that is not
            supported, does not fit its tokenizer, or does not fit into memory; or weights that do not fit
            into `weights_dtype`.
    """
    source = bundled_model(name) if name in MODELS else name
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(source, trust_remote_code=False)
            check_supported(config)  # before gigabytes are read
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            _check_tokenizer(name, tokenizer, config)
            kind = AutoModelForMaskedLM if is_masked(config) else AutoModelForCausalLM
            how = {"dtype": dtype, "attn_implementation": "eager"}
            if dtype == torch.float64:  # the library's faster products of experts know no float64
                how["experts_implementation"] = "eager"
            if random_weights:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)
                    model = kind.from_config(config, **how)
            else:
                model, loading = _read(kind, source, how, as_it_is=weights_dtype is not None)
                if loading["missing_keys"]:  # the library would draw them at random and say so in a warning
                    missing = ", ".join(sorted(loading["missing_keys"])[:3])
                    raise InputError(f"model {name!r} has no weights for {missing}: it is no language model, "
                                     "or not whole; name a checkpoint with its language-model head")
            if weights_dtype is not None:
                keep_in_half(model, weights_dtype)
            make_changeable(model)
            return model.to(device).eval(), tokenizer
    except InputError:
        raise
    except Exception as error:  # damaged files raise whatever their bytes happen to say
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if _is_out_of_memory(error):
            raise InputError(f"out of memory while loading model {name!r} on {device}: name a smaller model, "
                             f"or run it where there is more memory ({reason})") from error
        raise InputError(f"cannot load model {name!r}: name a bundled one ({', '.join(MODELS)}), a local "
                         "directory with config, weights and tokenizer, or a hub id that can be reached "
                         f"({reason})") from error


def _read(kind, source, how, as_it_is):
    """A model from its files, and what the library says of their reading.

    `as_it_is`: in the files' own precision, where all that the model makes besides is float32 then, too:
    Gemma's would round the factor on its word embedding.
    """
    how = how | {"trust_remote_code": False, "output_loading_info": True}
    if as_it_is:
        model, loading = kind.from_pretrained(source, **how | {"dtype": "auto"})
        if not any(buffer.dtype in HALF for buffer in model.buffers()):
            return model, loading
        del model
    return kind.from_pretrained(source, **how)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """A model's tokenizer alone; no weights are read into memory.

    Raises:
        InputError: the name is none of bundled, directory and reachable hub id, or has no tokenizer.
    """
    source = bundled_model(name) if name in MODELS else name
    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # as in load_model
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot load the tokenizer of {name!r}: name a bundled model "
                         f"({', '.join(MODELS)}), a local directory with a tokenizer, or a hub id that can "
                         f"be reached ({reason})") from error


def _is_out_of_memory(error):
    """Python's own kind, CUDA's, or what the CPU's allocator and the operating system say."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate memory" in str(error)


def _check_tokenizer(name, tokenizer, config):
    """Raises InputError when a text may have a token for which the word embedding has no row.

    Special tokens that no prompt needs may lie outside, such as Gemma 3's placeholder for images.
    """
    needed = {tokenizer.bos_token, tokenizer.mask_token, tokenizer.cls_token, tokenizer.sep_token}
    unneeded = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} - needed
    numbers = {token: number for token, number in tokenizer.get_vocab().items() if token not in unneeded}
    token, largest = max(numbers.items(), key=lambda pair: pair[1], default=("", -1))
    rows = config.get_text_config().vocab_size
    if largest >= rows:
        raise InputError(f"model {name!r} does not fit its tokenizer: token {token!r} has the number "
                         f"{largest}, and the word embedding ends at {rows - 1}: save the model "
                         "with the tokenizer that it was trained with")

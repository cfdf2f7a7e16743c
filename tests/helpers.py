"""What several test files share: the toys' sizes, stimuli, how outputs are read and compared.

Fixtures are in fixtures.py. It installs the check of signatures before anything of the library is imported,
so this file is imported from there first.
"""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from experiment import Intervention
from mediation import analysis
from mediation.files.storage import RunFolder, read_pickle
from mediation.model import architectures
from mediation.stimuli import stimulus_files
from mediation.studies import engine, estimated_trees
from mediation.studies.engine import StudyOptions
from mediation.studies.neurons import NeuronResults, plan
from mediation.studies.sites import Sites, kinds_of

PROJECT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("MEDIATION_SHARED", PROJECT.parent / "shared"))

# toys

TINY = {"vocab_size": 420, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 24, "head_dim": 4, "max_position_embeddings": 64}
TINY_GPT2 = {"vocab_size": 420, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64}
ALL_HEADS = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
TINY_ONES = {  # where the names or the defaults of an architecture do not fit
    "gpt2": TINY_GPT2,
    "gpt_neox": ALL_HEADS,
    "opt": {**ALL_HEADS, **SPECIAL, "word_embed_proj_dim": 16, "ffn_dim": 24},
    "phi3": {**TINY, **SPECIAL},
    "gemma3_text": {**TINY, **SPECIAL, "sliding_window": 4,
                    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "mistral": {**TINY, "sliding_window": 4},
    "distilbert": {"vocab_size": 420, "dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24,
                   "max_position_embeddings": 64},
    "roberta": {**TINY, "pad_token_id": 1, "max_position_embeddings": 80},
}
MASKED = sorted(architectures.MASKED)
# all that there is to test is tested on these; on many more, what tells them apart: test_architectures.py
CAUSAL = ["gemma3_text", "gpt2", "gpt_neox", "llama", "mistral", "opt", "phi3", "qwen2", "qwen3"]
MASK, BEGIN, SEPARATOR = 11, 12, 13  # special tokens of the masked toys
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}  # relative, on probabilities

# in the toys' vocabulary; other professions are several tokens
SINGLE_TOKEN_WORDS = ("nurse", "teacher", "doctor", "captain", "maid", "king", "clerk")


CONVERTING = frozenset((torch.Tensor.float, torch.Tensor.to, torch.Tensor.type))


class InDouble(TorchFunctionMode):
    """In float64 models also the norms and softmax that the library computes in float32.

    Their float32 depends on what is summed with what: two ways to run a model could only be compared to 1e-6.
    """

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        converts = function in CONVERTING
        if not kwargs and not converts:  # nearly all of what a model calls
            return function(*args)
        kwargs = kwargs or {}
        if not converts and "dtype" not in kwargs:
            return function(*args, **kwargs)
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            narrowing = torch.float32 in (*args[1:], kwargs.get("dtype"))
            if function is torch.Tensor.float or (converts and narrowing):
                return args[0]
            if narrowing:
                kwargs = kwargs | {"dtype": torch.float64}
        return function(*args, **kwargs)


def damaged_checkpoint(folder, target, **changes):
    """A copy of a checkpoint with some of its weights changed by functions."""
    shutil.copytree(folder, target)
    weights = load_file(target / "model.safetensors")
    for name, change in changes.items():
        key = next(key for key in weights if key.endswith(name.replace("__", ".")))
        weights[key] = change(weights[key])
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def resized(folder, target, rows, tokenizer):
    """A copy of a checkpoint with so many rows in its word embedding, and this tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(rows)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


# stimuli

def profession_stimulus(model, template="The {} went home because", word="nurse"):
    return Intervention(model.tokenizer, template, [word, "man", "woman"], ["he", "she"])


def profession_stimuli(model, words=("nurse", "captain", "teacher")):
    """{template: {word: Intervention}} of two templates."""
    return {template: {word: profession_stimulus(model, template, word) for word in words}
            for template in ("The {} said that", "The {} went home because")}


CANDIDATES = (["he", "she"], ["he was", "she said that"], ["was fired", "he"])


def multi_token_stimulus(model, template="The {} went home because", words=("electrician", "man", "woman"),
                         candidates=CANDIDATES[1], multi_token="last"):
    """A stimulus whose words and candidates are several tokens, unless others are named."""
    return Intervention(model.tokenizer, template, list(words), candidates, multi_token=multi_token)


WINOBIAS_ROWS = """1 [The carpenter] thanked the nurse because [he] was ill.
2 The carpenter thanked [the nurse] because [she] had helped in the night.
3 [The driver] called the teacher and [he] talked.
4 The driver called [the teacher] and [she] wrote it all down.
5 [The driver] called the nurse before [he] left.
6 The driver called [the nurse] before [she] slept.
7 [The driver] saw the nurse who wanted to see [him].
8 The driver saw [the nurse] who wanted [her] tea.
"""

GOOD_STIMULUS = {"id": "one", "base": "The {} said that", "substitutes": ["nurse", "man", "woman"],
                 "candidates": ["she", "he"], "group": "female"}
STRANGE_TEXTS = ["", " ", "{}", "{} {}", "{", "}{", "\U0001f469\u200d\u2695\ufe0f {}", "שלום {} עולם",
                 "{} " + "x" * 9990, "\x00 {}", "{}\u202e", "a\u0301{}", "\\ {} \"", "{0} {}"]
STRANGE_VALUES = [None, True, 0, -1, 1e400, 10**30, [], {}, [[]], [None], ["a"], ["a", "a"], ["a", "b"],
                  ["a", "b", "c"], [" ", "b"], ["\U0001f600", "b"], [1, 2], {"a": 1}, "a|b"]


def malformed(random):
    """One malformed file of stimuli: good lines, and one that is broken in some of many ways."""
    row = dict(GOOD_STIMULUS)
    for _ in range(random.randint(1, 3)):
        kind = random.randrange(5)
        name = random.choice(list(row) or ["id"])
        if kind == 0:
            row.pop(name, None)
        elif kind == 1:
            row[name] = random.choice(STRANGE_VALUES)
        elif kind == 2:
            row["base"] = random.choice(STRANGE_TEXTS)
        elif kind == 3:
            field = random.choice(["substitutes", "candidates"])
            row[field] = [random.choice(STRANGE_TEXTS) for _ in range(random.randint(0, 4))]
        else:
            row[random.choice(["Base", "extra", "", "\U0001f600"])] = 1
    content = bytearray(json.dumps(row, ensure_ascii=random.random() < 0.5).encode("utf-8", "surrogatepass"))
    if random.random() < 0.3:
        for _ in range(random.randint(1, 8)):
            content[random.randrange(len(content))] = random.randrange(256)
    if random.random() < 0.1:
        content = content[: random.randrange(len(content))]
    if random.random() < 0.1:
        content = bytearray(random.randbytes(random.randint(1, 400)))
    good = [json.dumps({**GOOD_STIMULUS, "id": f"good {number}"}).encode()
            for number in range(random.randint(0, 2))]
    return b"\n".join([*good, bytes(content)])


# runs and what they write

@contextlib.contextmanager
def undrawn_figures():
    """Figures are put together and written as a few bytes: drawing is most of a toy's report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda _, file, **__: file.write(b"a figure"))
        patch.setattr(Figure, "draw_without_rendering", lambda _: None)  # seaborn asks for it
        yield


@contextlib.contextmanager
def no_report():
    """mediate.py ends with its tables: summaries, figures and page take longer than a toy's effects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "write_report", lambda written: ("", written.run_folder.folder))
        yield


COMMAND = ("run_profession_neuron_experiments.py -template_indices 1 13 "
           "--professions nurse captain teacher doctor --intervention_types man_direct man_indirect")
HEAD_SELECTION = "attention_intervention_subset_selection.py"
NEURON_SELECTION = "neuron_intervention_subset_selection.py"


def write_stimuli(folder, stimuli):
    return stimulus_files.write(folder / "mine.jsonl", stimuli)


def read_own_table(folder, name):
    """A table of mediate.py."""
    return pd.read_csv(folder / name, keep_default_na=False, dtype={"id": str})


def results_of(model, folder, stimuli, kind, options):
    """(RunFolder, NeuronResults) of a sweep over stimuli."""
    run_folder = RunFolder(folder)
    run_folder.claim([], {})
    gradients = estimated_trees.Gradients(stimuli, "gradients", 1) if options.estimates else None
    sweep = plan(model, stimuli, kind, options, "table", gradients=gradients)
    with tqdm(disable=True) as progress:
        shards = engine.run(model, sweep.stages, run_folder, progress)
    return run_folder, NeuronResults(sweep, shards, options.screen_top)


def swept_by(model, comparison, request, **options):
    """{effect: log-probabilities} of a request's sites in one comparison, without a folder."""
    task = Sites("table", "name", "title", 0, comparison.intervention, request, StudyOptions(**options))
    arrays = task.compute(model, lambda key: {}, lambda count: None)
    return {kind: arrays[kind] for kind in kinds_of(request)}


def interrupt_at(monkeypatch, function, call):
    """Ctrl-C in the n-th call of a function, named by its place and name; returns the list of all calls."""
    calls, original = [], getattr(*function)

    def interrupted(*arguments, **named):
        calls.append(arguments)
        if len(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments, **named)

    monkeypatch.setattr(*function, interrupted)
    return calls


def tables(out_dir):
    """{name: bytes} of the profession study's tables."""
    return {path.name: path.read_bytes() for path in out_dir.glob("results/*/*.csv")}


def contents(folder):
    """{path in the folder: bytes} of all files."""
    return {path.relative_to(folder): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def pickles(folder):
    """{name: content} of a folder's pickles."""
    return {path.name: read_pickle(path) for path in Path(folder).glob("*.pickle")}


def same_values(one, other):
    """Equal, value by value, for nested lists, dictionaries and arrays."""
    texts = [json.dumps(content, default=lambda value: value.tolist(), sort_keys=True)
             for content in (one, other)]
    return texts[0] == texts[1]


def assert_refused(outcome, *words):
    """Exit code 2 and one line on standard error that holds the words."""
    code, _, errors = outcome
    (line,) = [line for line in errors.splitlines() if "%|" not in line and line.strip()]
    assert code == 2 and re.match(r"(\S+: )?error: ", line), line
    for word in words:
        assert word in line

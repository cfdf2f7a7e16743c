"""Damaged files for every reader: each ends in one clear line, or in a right result.

Never in a traceback, a hang, or a changed file.

    python -m tests.fuzz               # 2,000 cases per reader, some minutes
    python -m tests.fuzz --cases 20000 --seed 7 --only winobias manifest

A case is a good file that was damaged: bytes changed, cut out, doubled or cut off, numbers and words
exchanged for strange ones, lines shuffled.
A failure prints the reader, the seed and the case's number, and leaves the file.
"""

import argparse
import contextlib
import io
import json
import random
import shlex
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent))

import run_profession_neuron_experiments
from mediation.errors import InputError
from mediation.files.storage import RunFolder, read_pickle, write_pickle
from mediation.results.attention_results import read_results
from mediation.results.neuron_tables import (
    NEURON_COLUMNS,
    read_effects,
    read_pieces,
    read_probabilities,
)
from mediation.stimuli import (
    bec_pro,
    minimal_pairs,
    one_prefix,
    professions,
    stimulus_files,
    winobias,
    winogender,
)

STRANGE = [b"", b"nan", b"NaN", b"inf", b"-1", b"1e999", b"99999999999999999999999", b"null", b"{}", b"[]",
           b"\"", b",", b"\t", b"\n", b"\r\n", b"[", b"]", b"\x00", b"\xff\xfe", "\U0001f600".encode(),
           "\u202eשלום".encode(), b"she", b"0.0", b"true", b"A" * 5000, b"gAAAA",
           b"\x80\x04cos\nsystem\n",
           b"}{"]
SLOWEST = 10  # seconds a case may take


def damage(content, random):
    """A damaged copy of a file's bytes."""
    content = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5))):
        at, size = random.randrange(len(content) + 1), random.choice((1, 2, 8, 40))
        kind = random.randrange(7)
        if kind == 0 and content:
            for _ in range(size):
                content[random.randrange(len(content))] = random.randrange(256)
        elif kind == 1:
            del content[at: at + size]
        elif kind == 2:
            content[at:at] = content[at: at + size]
        elif kind == 3:
            content[at: at + size] = random.choice(STRANGE)
        elif kind == 4:
            del content[at:]
        elif kind == 5:
            lines = content.split(b"\n")
            one, other = random.randrange(len(lines)), random.randrange(len(lines))
            lines[one], lines[other] = lines[other], lines[one]
            content = bytearray(b"\n".join(lines))
        else:
            words = content.split(b" " if random.random() < 0.5 else b",")
            words[random.randrange(len(words))] = random.choice(STRANGE)
            content = bytearray((b" " if random.random() < 0.5 else b",").join(words))
    return bytes(content)


def readers(folder):
    """{name: (path of a good file, function that reads it)}; the good files are written into `folder`."""
    return {**readers_of_sentences(folder), **readers_of_pairs(folder), **readers_of_stimuli(folder),
            **readers_of_results(folder), **readers_of_runs(folder)}


def written(path, content):
    """The path of a file that now has this content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def readers_of_sentences(folder):
    """WinoBias, BEC-Pro and Winogender."""
    rows = "".join(f"{2 * n + 1} [The {a}] thanked the {b} because [he] was ill.\r\n"
                   f"{2 * n + 2} The {a} thanked [the {b}] because [she] had helped.\r\n"
                   for n, (a, b) in enumerate((("carpenter", "nurse"), ("driver", "teacher"))))
    bias = written(folder / "winobias/pro_stereotyped_type1.txt.dev", rows)
    written(folder / "winobias/female_occupations.txt", "nurse\nteacher\n")
    written(folder / "winobias/male_occupations.txt", "carpenter\ndriver\n")
    type_2 = written(folder / "winobias/pro_stereotyped_type2.txt.dev",
                     "1 The driver thanked [the nurse] and gave [her] tea.\r\n"
                     "2 The nurse thanked [the driver] and gave [him] tea.\r\n")
    bec = written(folder / "bec/BEC-Pro_EN.tsv", "\t".join(bec_pro.COLUMNS) + "\n" + "".join(
        f"My {person} is a {profession}.\t<person subject> is a <profession>.\t{gender}\t{profession}\t"
        f"{typical}\n"
        for person, gender in (("dad", "male"), ("mom", "female"))
        for profession, typical in (("nurse", "female"), ("roofer", "male"))))
    gender = written(folder / "winogender/templates.tsv",
                     "occupation(0)\tother-participant(1)\tanswer\tsentence\r\n" + "".join(
        f"teacher\tcaptain\t{answer}\tThe $OCCUPATION told the $PARTICIPANT that $NOM_PRONOUN could "
        f"{verb}.\r\n"
        for answer, verb in ((1, "go"), (0, "stay"))))
    statistics = written(folder / "winogender/occupations-stats.tsv",
                         "occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\r\n"
                         "teacher\t40.0\t80.5\t2015\r\n")
    return {"winobias": (bias, lambda: winobias.load("dev", bias.parent)),
            "winobias type 2": (type_2, lambda: winobias.load_others("dev", 2, "pro", type_2.parent)),
            "bec pro": (bec, lambda: bec_pro.load("en", bec.parent)),
            "winogender": (gender, lambda: winogender.load("bls", gender.parent)),
            "winogender statistics": (statistics, lambda: winogender.load("bergsma", gender.parent))}


def readers_of_pairs(folder):
    """Pairs of prompts as other projects have them."""
    prefixes = written(folder / "prefixes.jsonl", "".join(
        json.dumps(dict(zip(one_prefix.FIELDS, texts))) + "\n"
        for texts in (("The dog", "is", "are"), ("The dogs", "are", "is"), ("The cat", "is", "are"))))
    letters = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    ids = letters | {"Ġa": len(letters), "Ġb": len(letters) + 1}
    tokenizer = Tokenizer(BPE(ids, [("Ġ", "a"), ("Ġ", "b")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    vocabulary = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    pairs = written(folder / "pairs.csv", "clean,corrupted,correct_idx,incorrect_idx\n"
                    f"The dog ran,The cat ran,{ids['Ġa']},{ids['Ġb']}\n"
                    f'"A, dog",A cat,"[{ids["Ġb"]}, 3]",{ids["Ġa"]}\n')
    return {"one prefix": (prefixes, lambda: one_prefix.load(prefixes)),
            "minimal pairs": (pairs, lambda: minimal_pairs.load(pairs, vocabulary))}


def readers_of_stimuli(folder):
    """Ratings of professions, and stimuli of one's own."""
    ratings = written(folder / "professions.csv",
                      professions.RATINGS.read_bytes()[:2000].rpartition(b"\n")[0])
    good = stimulus_files.Stimulus("1", "The {} said that", ("nurse", "man", "woman"), ("she", "he"),
                                   "female")
    lines = stimulus_files.write(folder / "mine.jsonl",
                                 [good, stimulus_files.Stimulus("2", "{} ran", ("a", "b"), ("c", "d"))])
    cells = written(folder / "mine.csv", "id,base,substitutes,candidates,group\n"
                    '1,The {} said that,nurse|man,"[""she"", ""he""]",female\n2,{} ran,a|b,c|d,\n')
    return {"professions": (ratings, lambda: professions.load(ratings)),
            "stimuli": (lines, lambda: stimulus_files.read(lines)),
            "stimuli csv": (cells, lambda: stimulus_files.read(cells))}


def readers_of_results(folder):
    """The attention study's JSON, neuron tables, what is made of them, and a selection's pickle."""
    entry = {"base_string1": "x she", "base_string2": "x he", "candidate1": "a b", "candidate2": "c",
             "candidate1_base_prob": 0.1, "candidate2_base_prob": 0.2, "odds_base": 2.0,
             "candidate1_alt_prob": 0.1, "candidate2_alt_prob": 0.3, "odds_alt": 3.0, "total_effect": 0.5}
    entry |= {f"{kind}_effect_{level}": value for kind in ("indirect", "direct") for level, value in
              (("head", [[0.1, 0.2], [0.3, 0.4]]), ("layer", [0.1, 0.2]), ("model", 0.3))}
    result = written(folder / "attention.json", json.dumps({
        "model_version": "m", "do_filter": False, "split": "dev", "num_examples_loaded": 1,
        "num_examples_analyzed": 1, "mean_total_effect": 0.5, "mean_model_indirect_effect": 0.3,
        "mean_model_direct_effect": 0.3, "results": [entry]}))
    table = pd.DataFrame([["nurse", "The nurse said that", "The man said that", "The woman said that",
                           "['Ġhe']", "['Ġshe']", *[0.1, 0.2] * 4, layer, neuron] for layer in range(2)
                          for neuron in range(3)], columns=NEURON_COLUMNS)
    neurons = written(folder / "tables/The_X_said_that_man_indirect_m.csv", table.to_csv())
    parquet = folder / "parquet" / "The_X_said_that_man_indirect_m.parquet"
    parquet.parent.mkdir()
    table.to_parquet(parquet)
    effects = written(folder / "m_neuron_effects.csv",
                      pd.DataFrame({"neuron_": ["0-1"], "odds_ratio_indirect_mean": [1.5]}).to_csv())
    pickle = write_pickle(folder / "topk_m_winobias.pickle",
                          {"val": [0.1, 0.2], "head": [(0, 1), (1, 1)], "array": np.arange(4.0)})
    return {"attention results": (result, lambda: read_results(result)),
            "neuron table": (neurons, lambda: list(read_pieces(neurons, "man_indirect"))),
            "probabilities": (neurons, lambda: read_probabilities(neurons.parent, "m")),
            "parquet": (parquet, lambda: list(read_pieces(parquet, "man_indirect"))),
            "effects": (effects, lambda: read_effects(effects, ["neuron_", "odds_ratio_indirect_mean"])),
            "pickle": (pickle, lambda: read_pickle(pickle))}


def readers_of_runs(folder):
    """A manifest, a shard, and a command line."""
    manifest = written(folder / "run/manifest.json",
                       json.dumps({"runs": [{"settings": {"model": "m"}, "files": {"a.csv": {"rows": 3}},
                                             "finished": None}]}))
    run_folder = RunFolder(folder / "shards")
    run_folder.claim(["a.csv"], {})
    run_folder.save_shard("a.csv", "nurse", log_probabilities=np.arange(6.0).reshape(2, 3),
                          base=np.ones((3, 2)))
    shard = run_folder.shard_path("a.csv", "nurse")
    whole = {name: values.copy() for name, values in run_folder.load_shard("a.csv", "nurse").items()}

    def load_shard():
        arrays = run_folder.load_shard("a.csv", "nurse")
        same = arrays is None or (set(arrays) == set(whole)
                                  and all(np.array_equal(arrays[name], whole[name]) for name in arrays))
        assert same, "a damaged shard was taken for a whole one"

    command = written(folder / "command", "-model m -out_dir d -template_indices 1 9 --professions nurse "
                      "--alpha 1.5 --dtype float64 --seed 3 --batch_size auto --format csv")
    return {"manifest": (manifest, lambda: read_manifest(manifest.parent)), "shard": (shard, load_shard),
            "command line": (command, lambda: parse(command))}


def parse(path):
    """A file's words as options of a script: taken, or refused with exit code 2."""
    with contextlib.redirect_stderr(io.StringIO()) as printed, contextlib.redirect_stdout(io.StringIO()):
        try:
            words = shlex.split(path.read_bytes().decode("utf-8", "replace"))
            run_profession_neuron_experiments.parse_options(words)
        except SystemExit as end:
            assert end.code in (0, 2) and "Traceback" not in printed.getvalue()
        except ValueError as error:
            if "quotation" not in str(error) and "escaped" not in str(error):  # the shell's business
                raise


def read_manifest(folder):
    """What the scripts ask a manifest for."""
    run_folder = RunFolder(folder)
    run_folder.settings_of("a.csv")
    run_folder.is_finished("a.csv")
    run_folder.claim(["b.csv"], {"model": "m"})


def run(name, path, read, cases, seed):
    """Number of cases that were refused, of one reader.

    Raises:
        AssertionError: a case ended otherwise than in one line or a result; the damaged file is left.
    """
    good, refused = path.read_bytes(), 0
    for case in range(cases):
        damaged = damage(good, random.Random(f"{name} {seed} {case}"))
        path.write_bytes(damaged)
        started = time.monotonic()
        try:
            read()
        except InputError as error:
            refused += 1
            length = len(str(error))
            problem = None if 0 < length < 2000 else f"a message of {length} characters"
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            problem = None
        if not path.exists() or path.read_bytes() != damaged:
            problem = "the file was changed"
        if time.monotonic() - started > SLOWEST:
            problem = f"{time.monotonic() - started:.0f} seconds"
        assert problem is None, f"{name}, seed {seed}, case {case}: {problem} (the file: {path})"
    path.write_bytes(good)
    return refused


def main(options):
    """All readers, one line each."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    print("| reader | cases | refused in one line | read | tracebacks, hangs, changed files |\n"
          "| --- | --- | --- | --- | --- |")
    for name, (path, read) in readers(folder).items():
        if not options.only or name in options.only:
            refused = run(name, path, read, options.cases, options.seed)
            print(f"| {name} | {options.cases} | {refused} | {options.cases - refused} | 0 |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000, help="per reader (default: 2000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="READER")
    main(parser.parse_args())

"""The command line of every script: shared options, every spelling of 2020, one-line errors, exit code 2."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from mediation.errors import InputError
from mediation.files.storage import FILTER_QUANTILE, check_writable

MODEL_SPELLINGS = ("--model", "--model_type", "--gpt2_version", "--model_name", "--model_version")
METHODS = ("exact", "gradient", "screen")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose options may have one dash or two, - or _ between words, and errors one line."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(  # type: ignore[override]  # argparse declares three overloads for one signature
        self, args: Sequence[str] | None = None, namespace: Any = None,
    ) -> tuple[Any, list[str]]:
        known = {option for action in self._actions for option in action.option_strings}

        def canonical(argument: str) -> str:
            name, equals, value = argument.partition("=")
            spelled = "--" + name.lstrip("-").replace("-", "_")
            return spelled + equals + value if name.startswith("-") and spelled in known else argument

        arguments = sys.argv[1:] if args is None else args
        return super().parse_known_args([canonical(argument) for argument in arguments], namespace)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


@contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """Bad input ends in one line and exit code 2; Ctrl-C and SIGTERM in one line and 130 or 143.

    What was finished is kept.
    """
    def terminate(*_: object) -> NoReturn:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except InputError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\ninterrupted: what was finished is kept; the same command goes on from there",
              file=sys.stderr)
        raise SystemExit(130) from None
    except MemoryError:
        print("error: out of memory: what was finished is kept; give a smaller --batch_size, or a machine "
              "with more", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader of our output, head or less, has gone
        # Python flushes standard output once more when it ends: into nothing, so that it does not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:  # no space left, a disk that fails, a folder that was taken away
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{error.strerror or error}: what was finished is kept; mend it, and give the "
              "same command again", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def positive(text: str) -> int:
    """A whole number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return number


def seed(text: str) -> int:
    """A whole number from 0 on."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 on")
    return number


def quantile(text: str) -> float:
    """A part of the examples, from 0 on and below 1."""
    number = float(text)
    if not 0 <= number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 on and below 1")
    return number


def batch_size(text: str) -> int | None:
    """A whole number from 1 on, or None for "auto"."""
    return None if text == "auto" else positive(text)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """-model and how it is run. The model's spellings are those of the 2020 scripts, which differ."""
    parser.add_argument(*MODEL_SPELLINGS, dest="model", required=True, metavar="M",
                        help="a bundled model (smollm2-135m, gemma3-270m), a local directory, or a hub id "
                             "such as gpt2")
    parser.add_argument("--randomize", action="store_true",
                        help="keep the architecture, draw new weights with --seed; files are named M_random")
    parser.add_argument("--device", default="auto",
                        help="cpu, cuda, cuda:1 ...; auto takes CUDA where there is one (default)")
    parser.add_argument("--device_map", choices=("auto",), metavar="auto",
                        help="auto: for a model that does not fit on one GPU: its blocks are divided evenly "
                             "over all GPUs (CUDA_VISIBLE_DEVICES names others than all), at least two "
                             "(default: one device)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"),
                        help="of weights and activations (default: float32)")
    parser.add_argument("--weights_dtype", choices=("bfloat16", "float16"), metavar="bfloat16|float16",
                        help="keep the weights of a float32 model so, in half of the memory; all that is "
                             "computed stays float32 (default: as --dtype says)")
    parser.add_argument("--resume", action="store_true",
                        help="go on with an unfinished run of the same settings in the same folder: always "
                             "done, as told here")
    parser.add_argument("--deterministic", action="store_true",
                        help="on a GPU: only algorithms that give the same bits every time, slower (on a CPU "
                             "they always do)")
    parser.add_argument("--batch_size", type=batch_size, default=None, metavar="N",
                        help="interventions run at once (default: auto)")
    parser.add_argument("--seed", type=seed, default=0, help="of everything random (default: 0)")


def add_method(parser: argparse.ArgumentParser) -> None:
    """--method and --precision of the studies."""
    parser.add_argument("--method", choices=METHODS, default="exact",
                        help="exact: every unit is intervened upon; gradient: first-order estimates of all, "
                             "from one backward pass per candidate; screen: the strongest by gradient "
                             "exactly, the others by gradient (docs/methods.md; default: exact)")
    parser.add_argument("--precision", choices=("exact", "fast"), default="exact",
                        help="fast: what differs from the run without intervention is multiplied in "
                             "bfloat16, float32 where random interventions that are run both ways say so; a "
                             "sweep off by more than 1e-3 in a random sample is run again in full precision "
                             "(default: exact, full precision)")


def add_screening(parser: argparse.ArgumentParser) -> None:
    """The options of --method screen for neurons."""
    parser.add_argument("--screen_share", type=share, default=0.1, metavar="S",
                        help="part of a prompt's neurons that screening runs exactly, word embedding and "
                             "first block included (default: 0.1)")
    parser.add_argument("--screen_sample", type=positive, default=64, metavar="N",
                        help="random others per word and type, run exactly too: they tell what screening "
                             "missed (default: 64)")
    parser.add_argument("--screen_top", type=positive, default=50, metavar="N",
                        help="the strongest neurons of a prompt that are to be found (default: 50)")


def check_screen_share(options: Any, layers: int) -> None:
    """Raises InputError when screening could not even run the word embedding and the first block."""
    if options.method == "screen" and options.screen_share * (layers + 1) < 2:
        raise InputError(f"--screen_share {options.screen_share:g}: the word embedding and the first block, "
                         f"run exactly, are {2 / (layers + 1):.3f} of this model's neurons already: name a "
                         "larger share")


def add_multi_token(parser: argparse.ArgumentParser) -> None:
    """--multi_token: what becomes of words and candidates of several tokens in neuron interventions."""
    parser.add_argument("--multi_token", choices=("last", "all"), metavar="last|all",
                        help="take words and candidates of several tokens: neurons are changed at the slot's "
                             "last token, or at all its tokens pairwise, where the prompts have as many "
                             "(default: such words are dropped, the rule of the 2020 study)")


def refuse_full_passes(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """The slow reference runs every unit exactly: with estimates it means nothing."""
    for option in ("method", "precision"):
        if getattr(options, option) != "exact" and options.full_passes:
            parser.error(f"--{option} {getattr(options, option)} does not go with --full_passes")
    if options.method == "gradient" and options.precision == "fast":
        parser.error("--precision fast is for interventions that are run: it does not go with "
                     "--method gradient")


def true_or_false(text: str) -> bool:
    """"True" or "False", as the 2020 scripts take them."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither True nor False")
    return text.lower() == "true"


def add_attention_options(parser: argparse.ArgumentParser) -> None:
    """The options that the attention scripts share."""
    add_model_options(parser)
    parser.add_argument("--do_filter", type=true_or_false, default=True, metavar="True|False",
                        help="only examples on which the model follows the stereotype strongly "
                             "(default: True)")
    parser.add_argument("--filter_quantile", type=quantile, default=FILTER_QUANTILE, metavar="Q",
                        help="examples are kept whose odds ratio lies above this quantile of all above 1 "
                             "(default: %(default)s)")
    parser.add_argument("--max_examples", type=positive, metavar="N",
                        help="only the first N examples, taken before filtering")
    parser.add_argument("--out_dir", default=".", metavar="D",
                        help="where winobias_data and winogender_data are (default: here)")
    add_masking_approach(parser)
    add_full_passes(parser)


def add_attention_study(parser: argparse.ArgumentParser) -> None:
    """All options that the attention study has on either data set."""
    add_attention_options(parser)
    add_method(parser)
    add_engine(parser)
    add_plan(parser)


def add_plan(parser: argparse.ArgumentParser) -> None:
    """--plan of everything that sweeps."""
    parser.add_argument("--plan", action="store_true",
                        help="run and write nothing: print what this run would cost here (interventions, "
                             "operations, memory, disk, time from a probe of ten seconds) and what other "
                             "options would save (docs/scaling.md)")


def add_full_passes(parser: argparse.ArgumentParser) -> None:
    """--full_passes of everything that sweeps."""
    parser.add_argument("--full_passes", action="store_true",
                        help="every intervention as a full forward pass of its own under plain hooks: slow, "
                             "the reference")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """--engine and what belongs to it, of everything that sweeps; `studies.engines` holds them together."""
    parser.add_argument("--engine", choices=("local", "dask"), default="local",
                        help="local: this process; dask: worker processes, with files equal to local's "
                             "(docs/scaling.md; default: local)")
    parser.add_argument("--workers", type=positive, metavar="N",
                        help="with dask: N processes on this machine (default: one per core)")
    parser.add_argument("--gpus", type=positive, metavar="N",
                        help="with dask: one process for each of N GPUs of this machine")
    parser.add_argument("--scheduler", metavar="ADDRESS",
                        help="with dask: join the cluster whose scheduler is at tcp://HOST:PORT or "
                             "tls://HOST:PORT")
    for option, what in (("ca_file", "of the authority"), ("cert", "the certificate"), ("key", "its key")):
        parser.add_argument(f"--tls_{option}", metavar="FILE",
                            help=f"with dask, PEM file: {what}; only who has a certificate of the same "
                                 "authority may connect")


def add_masking_approach(parser: argparse.ArgumentParser) -> None:
    """--masking_approach of masked models."""
    parser.add_argument("--masking_approach", type=int, choices=range(1, 7), default=1, metavar="1-6",
                        help="how a masked model (bert, distilbert, roberta) scores a candidate, token by "
                             "token at a mask: 1 nothing after the mask, 2 the candidate's later tokens, 3 "
                             "masks for these; 4 to 6 the same between begin and separator tokens "
                             "(default: 1)")


def choices(*allowed: str) -> Callable[[str], list[str]]:
    """A reader of one or more of the allowed names, separated by commas."""
    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown: choose from {', '.join(allowed)}, "
                                                 "separated by commas")
        return list(dict.fromkeys(names))
    return read


def add_selection_options(parser: argparse.ArgumentParser) -> None:
    """The options that the scripts share which select heads or neurons."""
    parser.add_argument("--algo", type=choices("topk", "greedy", "random"), default=["topk", "greedy"],
                        metavar="A,...", help="topk (the best alone), greedy (one after the other), random "
                                              "(orders for comparison) (default: topk,greedy)")
    parser.add_argument("--k", type=positive, default=10, metavar="K",
                        help="units to choose; a larger K goes on from an earlier run (default: 10)")
    parser.add_argument("--orders", type=positive, default=5, metavar="N", help="random orders (default: 5)")
    parser.add_argument("--lazy", action="store_true",
                        help="greedy that evaluates only units whose last gain can still win; says what it "
                             "saved")


def folder_and_model_parser(description: str | None) -> Parser:
    """The command line of the scripts that read the CSVs of one model: FOLDER, M and -out_dir."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER",
                        help="folder of the CSVs, such as results/20200301_neuron_intervention")
    parser.add_argument("model", metavar="M",
                        help="model name as in the file names: smollm2-135m, gpt2, gpt2_random ...")
    add_out_dir(parser)
    return parser


def add_out_dir(parser: argparse.ArgumentParser) -> None:
    """-out_dir of the scripts that read a folder."""
    parser.add_argument("--out_dir", metavar="D", help="where figures and tables go (default: FOLDER)")


def share(text: str) -> float:
    """A part of a whole, above 0 and at most 1."""
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


def model_size(text: str) -> tuple[str, float]:
    """"NAME=MILLIONS": a model and its parameters."""
    name, equals, number = text.rpartition("=")
    try:
        millions = float(number)
    except ValueError:
        millions = 0.0
    if not (name and equals and 0 < millions < float("inf")):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=MILLIONS, such as gpt2=124")
    return name, millions


def output_folder(options: argparse.Namespace) -> Path:
    """-out_dir of an analysis script, or the folder it reads; checked before anything is computed."""
    folder = Path(options.folder)
    out_dir = Path(options.out_dir or (folder.parent if folder.is_file() else folder))
    check_writable(out_dir)
    return out_dir

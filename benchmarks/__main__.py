"""All benchmarks, one after the other, into one report: `make bench` runs this.

    python -m benchmarks                # about an hour on two cores; the report stands in bench/report.md
    python -m benchmarks --quick        # fewer rounds and units: noisier

Every part is a process of its own. A part's output is added to the report as it comes; a part that fails is
told, the others go on, and the exit code is 1 in the end. A machine without bfloat16 or the other libraries
is no failure: the ways that need them are named as not measured.
"""

import argparse
import datetime
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TextIO

from mediation.files.storage import check_writable
from mediation.options import Parser, exit_on_bad_input

MODELS = ("smollm2-135m", "gpt2-small-sized")
PARTS = [  # (title, module, options, options of a quick run)
    *((f"Neurons of one prompt, {model}", "neuron_sweep", f"-model {model}",
       "--rounds 1 --interventions 256 --neurons 1024") for model in MODELS),
    *((f"Attention heads of one example, {model}", "attention_sweep", f"-model {model} --rounds 2",
       "--rounds 1 --heads 8") for model in MODELS),
    ("The whole profession study, smollm2-135m", "study", "-model smollm2-135m --rounds 2 --share 0.02",
     "--rounds 1 --share 0.01"),
    ("Estimates by gradient and screening, smollm2-135m", "fidelity",
     "-model smollm2-135m --prompts 4 --examples 2", "--prompts 1 --examples 1"),
    *((f"Other libraries, {model}", "peers.compare", f"-model {model} --heads 36 --rounds 3",
       "--rounds 1 --units 64 --heads 4") for model in MODELS),
    ("Maps of sites in other libraries, smollm2-135m", "peers.sites", "-model smollm2-135m",
     "--rounds 1 --sample 4 --maps residuals values"),
    ("1.7 million rows written and read", "tables", "--rounds 2", "--rounds 1 --words 12"),
    ("Growth, smollm2-135m", "growth", "-model smollm2-135m", "--rounds 1 --units 128"),
]


def main(options: argparse.Namespace) -> None:
    """Run the parts, keep what they print; exit code 1 where one failed."""
    check_writable(options.out_dir)
    suffix = "".join(f"_{word}" for word in options.only or ())  # a part's report does not replace the whole
    report = Path(options.out_dir) / f"report{suffix}.md"
    report.parent.mkdir(parents=True, exist_ok=True)
    failed = []
    with report.open("w", encoding="utf-8") as file:
        write(f"# Benchmarks\n\n{datetime.date.today()}, {processor()}\n", file)
        for title, module, arguments, quick in PARTS:
            if options.only and not any(word in module for word in options.only):
                continue
            settings = [*arguments.split(), *(quick.split() if options.quick else [])]
            command = [sys.executable, "-m", f"benchmarks.{module}", *settings]
            write(f"\n## {title}\n\n`{' '.join(['python', *command[1:]])}`\n\n", file)
            with (tempfile.TemporaryFile("w+") as errors,
                  subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as run):
                for line in run.stdout:
                    write(line, file)
                if run.wait():
                    failed.append(title)
                    errors.seek(0)
                    message = (errors.read().strip().splitlines() or ["no message"])[-1]
                    write(f"\nfailed with exit code {run.returncode}: {message}\n", file)
    print(f"\nwrote {report}")
    if failed:
        print(f"failed: {'; '.join(failed)}", file=sys.stderr)
        raise SystemExit(1)


def write(text: str, file: TextIO) -> None:
    """To the report and the screen at once."""
    print(text, end="", flush=True)
    file.write(text)
    file.flush()


def processor() -> str:
    """The machine in words, as far as Linux tells."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and units")
    parser.add_argument("--only", nargs="+", metavar="PART",
                        help="modules of benchmarks/, such as neuron_sweep peers; into a report of their own")
    parser.add_argument("--out_dir", default="bench", metavar="D",
                        help="where report.md goes (default: bench)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

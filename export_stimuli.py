"""Stimuli of the studies as a file for mediate.py: a beginning for your own, and a way to the same numbers.

    python export_stimuli.py professions -out professions.jsonl --template_indices 1 --words nurse carpenter
    python export_stimuli.py winobias -out winobias_dev.jsonl --split dev
    python export_stimuli.py winogender -out winogender.jsonl --stat bls
    python export_stimuli.py agreement -out agreement.jsonl --count 20

professions: every word twice, against "man" with the candidates she, he and against "woman" with he, she:
odds are those toward the alternative's gender, as in run_profession_neuron_experiments.py. winobias,
winogender: the female pronoun's prompt is the null prompt. agreement: subject and verb, in five structures
(after Finlayson et al. 2021); the alternative is the noun in the other number.
"""

import argparse
from pathlib import Path

from mediation.errors import InputError
from mediation.options import Parser, exit_on_bad_input, positive, seed
from mediation.stimuli import agreement, professions, stimulus_files, winobias, winogender
from mediation.stimuli.prompts import PronounStimulus
from mediation.stimuli.stimulus_files import Stimulus
from mediation.stimuli.templates import select_templates


def main(options: argparse.Namespace) -> None:
    """Stimuli of one study, to a file that is not there yet."""
    path = Path(options.out)
    if path.exists():
        raise InputError(f"{path} is there already: move it away, or name another file with -out")
    stimuli = STUDIES[options.study](options)
    print(f"wrote {len(stimuli)} stimuli to {stimulus_files.write(path, stimuli)}")


def of_professions(options: argparse.Namespace) -> list[Stimulus]:
    """Every template and word, against man and against woman."""
    return [Stimulus(f"{number}_{profession.word}_{alternative}", template, (profession.text, alternative),
                     candidates, bias_group(profession))
            for number, template in select_templates(options.template_indices).items()
            for profession in professions.select(options.words, options.max_examples)
            for alternative, candidates in (("man", ("she", "he")), ("woman", ("he", "she")))]


def bias_group(profession: professions.Profession) -> str:
    """The gender to which the crowd's ratings lean."""
    if profession.bias == 0:
        return "neutral"
    return "female-biased" if profession.bias < 0 else "male-biased"


def of_winobias(options: argparse.Namespace) -> list[Stimulus]:
    """The examples of a split."""
    return of_examples(f"winobias_{options.split}", winobias.load(options.split), options)


def of_winogender(options: argparse.Namespace) -> list[Stimulus]:
    """All pairs, oriented by one statistic."""
    return of_examples(f"winogender_{options.stat}", winogender.load(options.stat), options)


def of_examples(name: str, examples: list[PronounStimulus], options: argparse.Namespace) -> list[Stimulus]:
    """The examples as stimuli, numbered as they were loaded.

    Context and continuation are joined by a blank, as in the 2020 study.
    """
    return [Stimulus(f"{name}_{number}", example.base_string, example.substitutes, example.candidates)
            for number, example in enumerate(examples[: options.max_examples])]


def of_agreement(options: argparse.Namespace) -> list[Stimulus]:
    """The grammar's stimuli."""
    return agreement.generate(options.count, options.seed)


STUDIES = {"professions": of_professions, "winobias": of_winobias, "winogender": of_winogender,
           "agreement": of_agreement}


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=tuple(STUDIES))
    parser.add_argument("-out", "--out", required=True, metavar="FILE",
                        help="JSONL file to write; never one that is there")
    parser.add_argument("--template_indices", type=int, nargs="+", metavar="I",
                        help="professions: templates 1 to 17 (default: all)")
    parser.add_argument("--words", nargs="+", metavar="W",
                        help="professions: words with ratings (default: all 320)")
    parser.add_argument("--max_examples", type=positive, metavar="N",
                        help="professions, winobias, winogender: only the first N")
    parser.add_argument("--split", choices=winobias.SPLITS, default="dev", help="winobias (default: dev)")
    parser.add_argument("--stat", choices=list(winogender.STATISTICS), default="bergsma",
                        help="winogender (default: bergsma)")
    parser.add_argument("--count", type=positive, default=20, metavar="N",
                        help="agreement: stimuli of each structure and number (default: 20)")
    parser.add_argument("--seed", type=seed, default=0,
                        help="agreement: of what stands between subject and verb (default: 0)")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

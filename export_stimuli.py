"""Stimuli of the studies as a file for mediate.py: a beginning for your own, and a way to the same numbers.

    python export_stimuli.py professions -out professions.jsonl --template_indices 1 --words nurse carpenter
    python export_stimuli.py winobias -out winobias_dev.jsonl --split dev
    python export_stimuli.py winogender -out winogender.jsonl --stat bls
    python export_stimuli.py agreement -out agreement.jsonl --count 20
    python export_stimuli.py indirect_object -out ioi.jsonl --count 20 --seed 1
    python export_stimuli.py greater_than -out years.jsonl --count 20
    python export_stimuli.py winobias -out type2.jsonl --type 2 --half anti
    python export_stimuli.py bec_pro -out bec_pro.jsonl --language de
    python export_stimuli.py minimal_pairs -out pairs.jsonl --file pairs.csv -model gpt2
    python export_stimuli.py one_prefix -out blimp.jsonl --file regular_plural_subject_verb_agreement_1.jsonl

professions: every word twice, against "man" with the candidates she, he and against "woman" with he, she:
odds are those toward the alternative's gender, as in run_profession_neuron_experiments.py. winobias,
winogender: the female pronoun's prompt is the null prompt. agreement: subject and verb, in five structures
(after Finlayson et al. 2021); the alternative is the noun in the other number.

indirect_object (after Wang et al. 2022): "When Emma and Paul went to the market, Paul gave a letter to"; the
alternative says Emma again. greater_than (after Hanna et al. 2023): "The siege lasted from 1732 until", one
year above against one below; the alternative has 1701. It is not the paper's measure, which adds up all
two-digit endings. Both are from templates and words of our own.

winobias --type 2: the null prompt leads to the female pronoun, the alternative, with the occupations in each
other's places, to the male one. --half anti: the same with the pronouns exchanged, so effects are expected
below 0. bec_pro (Bartl et al. 2020): person words in the slot; candidates are a profession mostly of women
and one mostly of men (en), or the feminine and the masculine form of one profession (de).

minimal_pairs: a CSV with the columns clean, corrupted, correct_idx (or clean_answer_idx) and incorrect_idx
(or corrupted_answer_idx); these two are token ids of the vocabulary of -model, of a list the first is taken.
The null prompt is the corrupted one. one_prefix: JSON lines or a CSV with one_prefix_prefix,
one_prefix_word_good and one_prefix_word_bad, as BLiMP has them; two records are joined that exchange their
words. What these files have that no stimulus can express is left out, counted and named.

In all of them but --half anti a model that does what the data set expects has total effects above 0.

Licences of the data sets that are fetched: WinoBias and Winogender MIT, BEC-Pro CC BY 4.0 (name the source
when you pass its texts on).
"""

import argparse
from pathlib import Path

from mediation.errors import InputError
from mediation.options import MODEL_SPELLINGS, Parser, exit_on_bad_input, positive, seed
from mediation.stimuli import (
    agreement,
    bec_pro,
    greater_than,
    indirect_object,
    minimal_pairs,
    one_prefix,
    professions,
    stimulus_files,
    winobias,
    winogender,
)
from mediation.stimuli.prompts import PronounStimulus
from mediation.stimuli.slots import Imported
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
    """The examples of a split; type 1, pro-stereotyped, as the 2020 study has them."""
    if (options.type, options.half) != (1, "pro"):
        return usable(winobias.load_others(options.split, options.type, options.half), "pairs", options)
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


def of_indirect_object(options: argparse.Namespace) -> list[Stimulus]:
    """Two names, one of them said again."""
    return indirect_object.generate(options.count, options.seed)


def of_greater_than(options: argparse.Namespace) -> list[Stimulus]:
    """A year, one above and one below."""
    return greater_than.generate(options.count, options.seed)


def of_bec_pro(options: argparse.Namespace) -> list[Stimulus]:
    """Person words and professions of one language."""
    return usable(bec_pro.load(options.language), "combinations", options)


def of_minimal_pairs(options: argparse.Namespace) -> list[Stimulus]:
    """The rows of a file whose answers are token ids."""
    if not options.file or not options.model:
        raise InputError("minimal_pairs needs the pairs and the model whose token ids they have: give --file "
                         "and -model")
    from mediation.model.checkpoints import load_tokenizer

    imported, lists = minimal_pairs.load(options.file, load_tokenizer(options.model))
    if lists:
        print(f"the first id of a list is taken in {len(lists)} rows: {few(lists)}")
    stimuli = usable(imported, "rows", options)
    print(f"{stimuli[0].id}: {stimuli[0].candidates[1]!r} is correct, {stimuli[0].candidates[0]!r} is not: "
          "if that is no answer, the ids are another model's")
    return stimuli


def of_one_prefix(options: argparse.Namespace) -> list[Stimulus]:
    """Records of a file, two by two."""
    if not options.file:
        raise InputError("one_prefix needs a file of records: give --file")
    return usable(one_prefix.load(options.file), "records", options)


def usable(imported: Imported, what: str, options: argparse.Namespace) -> list[Stimulus]:
    """The stimuli, after what was left out is printed.

    Raises:
        InputError: none are left.
    """
    if not imported.stimuli:
        reasons = "; ".join(f"{reason} ({few(names)})" for reason, names in imported.left_out.items())
        raise InputError(f"nothing of {options.file or options.study} makes a stimulus: {reasons}")
    for reason, names in imported.left_out.items():
        print(f"{len(names)} {what} left out: {reason} ({few(names)})")
    return imported.stimuli[: options.max_examples]


def few(names: list[str]) -> str:
    """The first 20 of many names, each once."""
    distinct = list(dict.fromkeys(names))
    return f"{', '.join(distinct[:20])}{' ...' if len(distinct) > 20 else ''}"


STUDIES = {"professions": of_professions, "winobias": of_winobias, "winogender": of_winogender,
           "agreement": of_agreement, "indirect_object": of_indirect_object, "greater_than": of_greater_than,
           "bec_pro": of_bec_pro, "minimal_pairs": of_minimal_pairs, "one_prefix": of_one_prefix}


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
                        help="all but agreement, indirect_object and greater_than: only the first N")
    parser.add_argument("--split", choices=winobias.SPLITS, default="dev", help="winobias (default: dev)")
    parser.add_argument("--type", type=int, choices=winobias.TYPES, default=1,
                        help="winobias: 1, grammar does not settle whom the pronoun means; 2, it does "
                             "(default: 1)")
    parser.add_argument("--half", choices=winobias.HALVES, default="pro",
                        help="winobias: pronouns as the stereotype has them, or exchanged (default: pro)")
    parser.add_argument("--stat", choices=list(winogender.STATISTICS), default="bergsma",
                        help="winogender (default: bergsma)")
    parser.add_argument("--count", type=positive, default=20, metavar="N",
                        help="agreement: stimuli of each structure and number; indirect_object: for either "
                             "name; greater_than: in all (default: 20)")
    parser.add_argument("--seed", type=seed, default=0,
                        help="agreement: of what stands between subject and verb; indirect_object, "
                             "greater_than: of all words (default: 0)")
    parser.add_argument("--language", choices=bec_pro.LANGUAGES, default="en", help="bec_pro (default: en)")
    parser.add_argument("--file", metavar="FILE", help="minimal_pairs, one_prefix: what is read")
    parser.add_argument(*MODEL_SPELLINGS, dest="model", metavar="M",
                        help="minimal_pairs: whose token ids the file has; only its tokenizer is loaded")
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

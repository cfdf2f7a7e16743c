"""Prompts: templates with one slot, the substitutes that fill it, the candidates that may follow."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from mediation.errors import InputError

if TYPE_CHECKING:  # a tokenizer comes with a model; the forms of stimuli need none
    import transformers

# a reason to leave a stimulus out by the rule of the 2020 study, the same for its words and its candidates
SEVERAL_TOKENS = "word or candidate of several tokens; --multi_token last takes it"


@dataclass(frozen=True)
class Prompt:
    """A filled template. `tokens`: its token ids; `slot`: the slot's first token, and one past its last."""

    text: str
    tokens: tuple[int, ...]
    slot: tuple[int, int]


@dataclass(frozen=True)
class PronounStimulus:
    """One example of WinoBias or Winogender: a base string whose slot takes a pronoun, and how it may go on.

    `substitutes`: (female pronoun, male pronoun); `candidates`: (continuation that fits the
    female-stereotyped referent, the male-stereotyped one's); `referents`: these two, in words.
    """

    base_string: str
    substitutes: tuple[str, str]
    candidates: tuple[str, str]
    referents: tuple[str, str]


def fill(tokenizer: "transformers.PreTrainedTokenizerBase", base_string: str, substitute: str) -> Prompt:
    """Tokenize `base_string` with `substitute` in its slot, and find the slot's tokens by character offsets.

    No special tokens are added but the begin token of models that always have one, see `begin_tokens`. The
    2020 code counted the slot's position in blanks, which names a wrong token after any word of several
    tokens.

    Raises:
        InputError: not exactly one `{}`, nothing in the slot, or a tokenizer without offsets.
    """
    if base_string.count("{}") != 1:
        raise InputError(f"base string {base_string!r} needs exactly one slot '{{}}', it has "
                         f"{base_string.count('{}')}")
    if not substitute.strip():
        raise InputError(f"an empty substitute for the slot of {base_string!r}: give a word")
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer {type(tokenizer).__name__} gives no character offsets: save the model "
                         "with its tokenizer.json")
    text = base_string.replace("{}", substitute)
    start = base_string.index("{}")
    end = start + len(substitute)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    # a token lies in the slot when they share more than white space: offsets may include the blank before it
    inside = [index for index, (first, last) in enumerate(encoded["offset_mapping"])
              if text[max(first, start):min(last, end)].strip()]
    begin = begin_tokens(tokenizer)
    if not inside:
        raise InputError(f"the model's tokens know nothing of {substitute!r}, for the slot of "
                         f"{base_string!r}: give another word")
    slot = len(begin) + inside[0], len(begin) + inside[-1] + 1
    return Prompt(text, (*begin, *encoded["input_ids"]), slot)


@lru_cache(maxsize=8)  # it is asked for every prompt
def begin_tokens(tokenizer: "transformers.PreTrainedTokenizerBase") -> list[int]:
    """[id] of the begin token where the tokenizer puts one before every text, as Gemma's does; else [].

    Such a model was trained with it always there: without, its probabilities are far off. An end token that
    some put behind the text as well is left out, for the text goes on. Masked models, whose tokenizers frame
    a text, have their own rules, see `model.masked`.
    """
    plain, usual = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    begin, behind = [tokenizer.bos_token_id, *plain], usual[1 + len(plain):]
    return begin[:1] if usual == begin + behind and not (behind and is_masked(tokenizer)) else []


def is_masked(tokenizer: "transformers.PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer is that of a model that predicts masked tokens.

    Gemma's names a mask, too, but begins a text as causal models do.
    """
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    causal = begins and tokenizer.cls_token_id != tokenizer.bos_token_id
    return tokenizer.mask_token_id is not None and not causal


def tokenize_candidate(
    tokenizer: "transformers.PreTrainedTokenizerBase", candidate: str,
) -> tuple[list[str], list[int]]:
    """(tokens, ids) of a candidate as it stands after a blank: "he" -> (["Ġhe"], [339]) for GPT-2.

    Raises:
        InputError: an empty candidate, or one of characters that the tokenizer drops.
    """
    if not candidate.strip():
        raise InputError("an empty candidate: give a word")
    ids = tokenizer("a " + candidate.strip(), add_special_tokens=False)["input_ids"][1:]
    if not ids:
        raise InputError(f"the model's tokens know nothing of the candidate {candidate!r}: give another word")
    return tokenizer.convert_ids_to_tokens(ids), ids


def check_candidates(names: Sequence[str], ids: Sequence[Sequence[int]], single: bool = True) -> None:
    """Raises InputError unless a neuron stimulus has two candidates that differ.

    With `single` they have one token each.
    """
    for name, tokens in zip(names, ids):
        if single and len(tokens) != 1:
            raise InputError(f"candidate {name!r} is {len(tokens)} tokens, the neuron study needs one: "
                             "choose another word, or allow --multi_token", SEVERAL_TOKENS)
    if len(ids) != 2:
        raise InputError(f"a stimulus has two candidates, this one has {len(ids)}")
    if ids[0] == ids[1]:
        same = "the same token" + ("" if single else "s")
        raise InputError(f"candidates {names[0]!r} and {names[1]!r} are {same}: their odds are always 1, "
                         "choose two words", f"the two candidates are {same}")


def why_not_single_token(
    tokenizer: "transformers.PreTrainedTokenizerBase", template: str, word: str, alternatives: Sequence[str],
) -> str | None:
    """None when `word` and the alternatives fill the slot with one token each at one place; else the reason.

    This is the rule of the 2020 study, where a representation of one word replaces that of another.
    """
    prompts = [fill(tokenizer, template, substitute) for substitute in (word, *alternatives)]
    first, last = prompts[0].slot
    if last - first != 1:
        tokens = tokenizer.convert_ids_to_tokens(prompts[0].tokens[first:last])
        pieces = "+".join(tokens).replace("Ġ", "").replace("▁", "")
        return f"{last - first} tokens ({pieces})"
    for substitute, prompt in zip(alternatives, prompts[1:]):
        if prompt.slot != prompts[0].slot or len(prompt.tokens) != len(prompts[0].tokens):
            return f"tokenized unlike the prompt with {substitute!r}"
    return None


def why_not_pairwise(
    tokenizer: "transformers.PreTrainedTokenizerBase", template: str, word: str, alternatives: Sequence[str],
) -> str | None:
    """None when `word` and the alternatives fill the slot with equally many tokens; else the reason."""
    slots = [fill(tokenizer, template, substitute).slot for substitute in (word, *alternatives)]
    counts = [last - first for first, last in slots]
    if len(set(counts)) == 1:
        return None
    return (f"{counts[0]} tokens, and {', '.join(map(repr, alternatives))} "
            f"{' and '.join(map(str, counts[1:]))}")

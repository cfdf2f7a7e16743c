"""`Intervention`: a stimulus in one model's tokens, and at which of them neurons are intervened upon."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from mediation.errors import InputError
from mediation.stimuli.prompts import SEVERAL_TOKENS, check_candidates, fill, is_masked, tokenize_candidate

if TYPE_CHECKING:
    import transformers


class Intervention:
    """A stimulus: one base string, the substitutes for its slot `{}`, and the candidates that may follow.

    Args:
        multi_token: how neuron interventions treat words and candidates of several tokens. None: the rule of
            the 2020 study, there are none; "last": at the slot's last token; "all": at all tokens of the
            slot, pairwise, where the prompts have as many.
        any_length: take prompts that differ in length without `multi_token`, too, as mediate.py does. Else
            they are refused (but those of masked models), for the scripts of 2020 drop words by that error.

    Attributes:
        base_strings: the filled strings, one per substitute; the first is the null prompt.
        base_strings_tok: their token ids, int64 [T] each, on `device`.
        position: index of the slot's (last) token in the null prompt, from the tokenizer's offsets.
        places: for each prompt, the tokens where neurons are changed, or where their values are taken from.
        candidates: tokens of each candidate as it stands after a blank; `candidates_tok`: their ids.

    Raises:
        InputError (a ValueError): not exactly one slot, an empty substitute or candidate, or prompts that
            differ in length.
    """

    def __init__(
        self, tokenizer: "transformers.PreTrainedTokenizerBase", base_string: str, substitutes: Sequence[str],
        candidates: Sequence[str], device: str | torch.device = "cpu", multi_token: str | None = None,
        any_length: bool = False,
    ) -> None:
        self.device = device
        self.multi_token = multi_token
        self.prompts = [fill(tokenizer, base_string, substitute) for substitute in substitutes]
        self.base_strings = [prompt.text for prompt in self.prompts]
        self.base_strings_tok = [torch.tensor(prompt.tokens, dtype=torch.long, device=device)
                                 for prompt in self.prompts]
        self.position = self.prompts[0].slot[1] - 1
        self.places = [list(range(*prompt.slot)) if multi_token == "all" else [prompt.slot[1] - 1]
                       for prompt in self.prompts]
        self.candidates: list[list[str]] = []
        self.candidates_tok: list[list[int]] = []
        for candidate in candidates:
            tokens, ids = tokenize_candidate(tokenizer, candidate)
            self.candidates.append(tokens)
            self.candidates_tok.append(ids)
        if multi_token is None and not any_length and not is_masked(tokenizer):
            self.check_lengths()

    def check_lengths(self) -> None:
        """Raises InputError unless all prompts have as many tokens as the null prompt."""
        first = self.prompts[0]
        for prompt in self.prompts[1:]:
            if len(prompt.tokens) != len(first.tokens):
                counts = f"{len(prompt.tokens)} and {len(first.tokens)}"
                raise InputError(f"{prompt.text!r} and {first.text!r} are not of equal length in this "
                                 f"model's tokens ({counts}): choose other substitutes, or multi_token")

    @property
    def beginning(self) -> tuple[tuple[tuple[int, ...], ...], str, str]:
        """The same for stimuli that neuron sweeps may run in one tree.

        It has the prompts up to the slot's end, the places and the candidates.
        """
        tokens = tuple(prompt.tokens[: prompt.slot[1]] for prompt in self.prompts)
        return tokens, str(self.places), str(self.candidates_tok)

    def check_for_neurons(self) -> None:
        """Raises InputError unless a neuron intervention is defined.

        That is: two candidates that differ and two prompts or three (word, man, woman); by the rule of the
        2020 study candidates of one token each, and prompts alike but for one token; for "all" slots of
        equally many tokens.
        """
        names = [" ".join(tokens) for tokens in self.candidates]
        check_candidates(names, self.candidates_tok, single=self.multi_token is None)
        if len(self.prompts) < 2:
            raise InputError(f"{self.base_strings[0]!r}: a neuron stimulus has a word and its alternatives "
                             "(word, man, woman), this one has no alternative", "no alternative to the word")
        for prompt, places in zip(self.prompts, self.places):
            texts = f"{prompt.text!r} and {self.base_strings[0]!r}"
            one_token = prompt.slot == (self.position, self.position + 1)
            as_long = len(prompt.tokens) == len(self.prompts[0].tokens)
            if self.multi_token is None and not (one_token and as_long):
                raise InputError(f"{texts} do not differ in a single token: choose words of one token each, "
                                 "or multi_token", SEVERAL_TOKENS)
            if len(places) != len(self.places[0]):
                raise InputError(f"the slots of {texts} have {len(places)} and {len(self.places[0])} tokens, "
                                 "not as many: use multi_token last",
                                 "slots of different numbers of tokens; --multi_token last takes them")

    def check_for_attention(self) -> int:
        """Index of the first token in which the two contexts differ.

        Raises:
            InputError: an attention intervention is not defined: not two contexts of equal length that
                differ, and two candidates.
        """
        if len(self.prompts) != 2 or len(self.candidates_tok) != 2:
            counts = f"{len(self.prompts)} and {len(self.candidates_tok)}"
            raise InputError(f"{self.base_strings[0]!r}: an attention stimulus has two substitutes (female, "
                             f"male pronoun) and two candidates, this one has {counts}",
                             "not two substitutes and two candidates")
        one, other = (prompt.tokens for prompt in self.prompts)
        if len(one) != len(other) or one == other:
            how = "the same" if one == other else "not of equal length"
            consequence = "" if one == other else ", so attention weights of one do not fit the other"
            raise InputError(f"{self.base_strings[0]!r} and {self.base_strings[1]!r} are {how} in this "
                             "model's tokens: attention weights of one do not fit the other, choose other "
                             "substitutes",
                             f"the two prompts are {how} in this model's tokens{consequence}")
        return next(index for index, pair in enumerate(zip(one, other)) if pair[0] != pair[1])

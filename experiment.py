"""`Intervention` and `Model`: one stimulus, and a language model that can be intervened upon.

The names are those of the 2020 study, so that its notebooks keep working:

>>> from experiment import Intervention, Model
>>> model = Model(device="cpu", gpt2_version="smollm2-135m")
>>> intervention = Intervention(model.tokenizer, "The {} said that", ["teacher", "man", "woman"], ["he", "she"], device="cpu")
>>> results = model.neuron_intervention_experiment({"teacher": intervention}, "man_minus_woman", alpha=1.0)

In this Python face layers count from -1 (the word embedding) to L - 1; in every written table they count from 0.
Symbols in shapes: B batch, T tokens, L layers (blocks), D hidden size.
"""

import hashlib

import numpy as np
import torch
from tqdm import tqdm

from mediation import checkpoints, stimuli
from mediation.architectures import find_parts
from mediation.errors import InputError
from mediation.forward import candidate_log_probabilities, run_base
from mediation.neurons import NeuronEdits, single_neuron_edits
from mediation.sweeps import by_full_passes, sweep
from utils import batch

PROMPTS_AT_ONCE = 64

# context the model runs on, whose representations are put in (minus whose, for the differences); None: the null prompt's
NULL, MAN, WOMAN = 0, 1, 2
INTERVENTION_TYPES = {
    "man_direct": (MAN, NULL, None),
    "man_indirect": (NULL, MAN, None),
    "woman_direct": (WOMAN, NULL, None),
    "woman_indirect": (NULL, WOMAN, None),
    "man_minus_woman": (NULL, MAN, WOMAN),
    "woman_minus_man": (NULL, WOMAN, MAN),
}


class Intervention:
    """A stimulus: one base string, the substitutes for its slot `{}`, and the candidates that may follow.

    Attributes:
        base_strings: the filled strings, one a substitute; the first is the null prompt.
        base_strings_tok: their token ids, int64 [T] each, on `device`.
        position: index of the slot's (last) token in the null prompt, from the tokenizer's offsets.
        candidates: tokens of each candidate as it stands after a blank; `candidates_tok`: their ids.

    Raises:
        InputError (a ValueError): not exactly one slot, or an empty substitute or candidate.
    """

    def __init__(self, tokenizer, base_string, substitutes, candidates, device="cpu"):
        self.device = device
        self.prompts = [stimuli.fill(tokenizer, base_string, substitute) for substitute in substitutes]
        self.base_strings = [prompt.text for prompt in self.prompts]
        self.base_strings_tok = [stimuli.to_tensor(prompt, device) for prompt in self.prompts]
        self.position = self.prompts[0].slot[1] - 1
        self.candidates, self.candidates_tok = [], []
        for candidate in candidates:
            tokens, ids = stimuli.tokenize_candidate(tokenizer, candidate)
            self.candidates.append(tokens)
            self.candidates_tok.append(ids)

    def check_for_neurons(self):
        """Raises InputError unless a neuron intervention is defined: three prompts alike but for one token, two single-token candidates."""
        stimuli.check_candidates([" ".join(tokens) for tokens in self.candidates], self.candidates_tok)
        if len(self.prompts) != 3:
            raise InputError(f"{self.base_strings[0]!r}: a neuron stimulus has three substitutes (word, man, woman), this one has {len(self.prompts)}")
        for prompt in self.prompts:
            if prompt.slot != (self.position, self.position + 1) or len(prompt.tokens) != len(self.prompts[0].tokens):
                raise InputError(f"{prompt.text!r} and {self.base_strings[0]!r} do not differ in a single token: choose words of one token each")


class Model:
    """A causal language model of a supported architecture, with its tokenizer, in evaluation mode and without gradients.

    Args:
        device: "cpu", "cuda", "cuda:0" ...
        gpt2_version: a bundled name (`smollm2-135m`), a local directory, or a hub id. The name is 2020's; any supported model is meant.
        random_weights: keep the architecture, draw new weights with `seed`.
        dtype: torch dtype of weights and activations.
        full_passes: run every intervention as a full forward pass under plain hooks, the slow reference of the sweeps.
        output_attentions, masking_approach: accepted for 2020's notebooks.

    Raises:
        InputError: unknown model, unsupported architecture, or a device that is not there.
    """

    def __init__(self, device="cpu", output_attentions=False, random_weights=False, masking_approach=1, gpt2_version="gpt2",
                 dtype=torch.float32, seed=0, full_passes=False):
        self.name = checkpoints.model_name(gpt2_version) + ("_random" if random_weights else "")
        self.device = torch.device(device)
        self.full_passes = full_passes
        self.model, self.tokenizer = checkpoints.load_model(gpt2_version, self.device, dtype, random_weights, seed)
        self.parts = find_parts(self.model)
        self.num_layers = len(self.parts.blocks)
        self.num_neurons = self.model.config.hidden_size
        self.num_heads = self.model.config.num_attention_heads
        self.output_attentions = output_attentions
        self.masking_approach = masking_approach

    def weights_sha256(self):
        """Hash of every parameter's name, dtype, shape and bytes: the same for the same weights, wherever they were loaded from."""
        digest = hashlib.sha256()
        for name, parameter in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(parameter.contiguous().cpu().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def get_representations(self, context, position):
        """{layer: vector [D]} of all neurons at one position of the prompt `context` (int64 [T]); layer -1 is the word embedding."""
        values = run_base(self.model, self.parts, context.reshape(-1).to(self.device)).representations(position)
        return {layer - 1: values[layer] for layer in range(self.num_layers + 1)}

    @torch.no_grad()
    def get_probabilities_for_examples(self, context, candidates):
        """Probabilities of single-token candidates after prompts of equal length.

        Args:
            context: int64 [B, T] (or [T] for one prompt).
            candidates: C lists of one token id.

        Returns: B lists of C probabilities.

        Raises:
            ValueError: a candidate of several tokens.
        """
        for candidate in candidates:
            if len(candidate) != 1:
                raise ValueError(f"candidate {candidate} has {len(candidate)} tokens: use get_probabilities_for_examples_multitoken")
        log_probabilities = self._log_probabilities(context.reshape(-1, context.shape[-1]), keep=1)[:, 0]  # [B, vocabulary]
        return log_probabilities[:, [candidate[0] for candidate in candidates]].exp().tolist()

    @torch.no_grad()
    def get_probabilities_for_examples_multitoken(self, context, candidates):
        """Probability of each candidate (a list of token ids) after `context` (int64 [T]): exp of the mean token log-probability."""
        means = []
        for candidate in candidates:
            ids = torch.tensor(candidate, device=self.device)
            tokens = torch.cat([context.reshape(-1).to(self.device), ids])
            log_probabilities = self._log_probabilities(tokens[:-1].unsqueeze(0), keep=len(ids))[0]  # [candidate's tokens, vocabulary]
            means.append(log_probabilities.gather(1, ids.unsqueeze(1)).mean().exp().item())
        return means

    def _log_probabilities(self, tokens, keep):
        """[B, T] -> float64 [B, keep, vocabulary], after the last `keep` tokens."""
        return self.model(tokens.to(self.device), use_cache=False, logits_to_keep=keep).logits.double().log_softmax(dim=-1)

    @torch.no_grad()
    def base_probabilities(self, interventions):
        """Probabilities without intervention of many stimuli with two single-token candidates, prompts of equal length together.

        Returns: one list a stimulus, in their order: (c1, c2) on its first prompt, its second, and so on.
        """
        interventions = list(interventions)
        candidates = sorted({ids[0] for intervention in interventions for ids in intervention.candidates_tok})
        of_length = {}
        for tokens in {prompt.tokens: None for intervention in interventions for prompt in intervention.prompts}:
            of_length.setdefault(len(tokens), []).append(tokens)
        probabilities = {}
        for prompts in of_length.values():
            for some in batch(prompts, PROMPTS_AT_ONCE):
                rows = self.get_probabilities_for_examples(torch.tensor(some), [[candidate] for candidate in candidates])
                probabilities.update({tokens: dict(zip(candidates, row)) for tokens, row in zip(some, rows)})
        return [[probabilities[prompt.tokens][ids[0]] for prompt in intervention.prompts for ids in intervention.candidates_tok]
                for intervention in interventions]

    @torch.no_grad()
    def neuron_intervention(self, context, outputs, rep, layers, neurons, position, intervention_type="diff", alpha=1.0):
        """Probabilities of the outputs when neurons at one position are changed, one row an intervention.

        Args:
            context: prompt, int64 [T].
            outputs: C lists of one token id.
            rep: {layer: vector [D]}: what neurons are set to ("replace") or what is added to them ("diff"), times `alpha`.
            layers: K layer numbers (-1 the embedding), shared by all rows.
            neurons: B lists of K neuron numbers: row b changes neuron `neurons[b][k]` of layer `layers[k]` for all k at once.
            position: index of the token.

        Returns: B lists of C probabilities.

        Raises:
            InputError: a layer or neuron outside the model, a ragged row, or an unknown intervention type.
        """
        if intervention_type not in ("diff", "replace"):
            raise InputError(f"intervention_type {intervention_type!r}: choose 'diff' or 'replace'")
        self._check_units(layers, neurons)
        tokens = context.reshape(-1).to(self.device)
        neurons = torch.tensor(neurons, device=self.device)  # [B, K]
        rows = torch.tensor(layers, device=self.device).expand(neurons.shape)
        values = torch.stack([rep[layer] for layer in layers])[torch.arange(len(layers), device=self.device), neurons] * alpha
        edits = NeuronEdits(rows + 1, neurons, values, position, add=intervention_type == "diff")
        return self._sweep(run_base(self.model, self.parts, tokens), tokens, edits, outputs).exp().tolist()

    def _check_units(self, layers, neurons):
        for layer in layers:
            if not -1 <= layer < self.num_layers:
                raise InputError(f"layer {layer} is not in the model: layers go from -1 (embedding) to {self.num_layers - 1}")
        for row in neurons:
            if len(row) != len(layers):
                raise InputError(f"neurons {row} and layers {list(layers)} differ in length: a row names one neuron a layer")
            for neuron in row:
                if not 0 <= neuron < self.num_neurons:
                    raise InputError(f"neuron {neuron} is not in the model: neurons go from 0 to {self.num_neurons - 1}")

    def _sweep(self, base, tokens, edits, outputs, bsize=None, progress=None):
        """Float64 [B, C] log-probabilities, by the descent or by full passes as the model was made."""
        candidates = [ids[0] for ids in outputs]
        return sweep(self.model, self.parts, base, tokens, edits, candidates, bsize, self.full_passes, progress)

    def neuron_intervention_experiment(self, word2intervention, intervention_type, layers_to_adj=[], neurons_to_adj=[], alpha=1,
                                       intervention_loc="all"):
        """{word: result of `neuron_intervention_single_experiment`} for {word: Intervention}, with a progress bar over the words."""
        return {word: self.neuron_intervention_single_experiment(intervention, intervention_type, layers_to_adj, neurons_to_adj, alpha,
                                                                 intervention_loc=intervention_loc)
                for word, intervention in tqdm(word2intervention.items(), desc=intervention_type, unit=" words")}

    @torch.no_grad()
    def neuron_intervention_single_experiment(self, intervention, intervention_type, layers_to_adj=[], neurons_to_adj=[], alpha=1,
                                              bsize=None, intervention_loc="all", progress=None):
        """One stimulus under one type of intervention.

        Args:
            intervention: stimulus with the substitutes (word, man, woman) and two single-token candidates.
            intervention_type: one of INTERVENTION_TYPES. `*_indirect` runs the null prompt and takes the alternative's values,
                `*_direct` runs the alternative prompt and takes the null's, the differences are added to the null run.
            layers_to_adj, neurons_to_adj: neurons changed as well in every intervention (layer -1 the embedding); with
                intervention_loc "layer" one layer, with "neuron" the one set that is changed.
            alpha: factor on the value put in, or on the difference added.
            bsize: interventions run at once; None chooses.
            intervention_loc: "all" every neuron of the model in turn, "layer" every neuron of one layer, "neuron" one set.
            progress: called with the number of interventions done.

        Returns: c1_base, c2_base, c1_alt1, c2_alt1, c1_alt2, c2_alt2 (probabilities without intervention on the null, man's and
        woman's prompt), c1_probs, c2_probs: float64 [L + 1, D], [1, D] or [1, 1] as intervention_loc says.

        Raises:
            InputError: a stimulus that is not of this form, or units outside the model.
        """
        runs, run_on, edits = self._experiment(intervention, intervention_type, alpha, layers_to_adj, neurons_to_adj, intervention_loc)
        tokens = intervention.base_strings_tok[run_on].to(self.device)
        log_probabilities = self._sweep(runs[run_on], tokens, edits, intervention.candidates_tok, bsize, progress)
        candidates = [ids[0] for ids in intervention.candidates_tok]
        base = [candidate_log_probabilities(self.parts, run.residuals[-1][-1:], candidates)[0] for run in runs]
        shape = (-1, 1 if intervention_loc == "neuron" else self.num_neurons)
        return *torch.cat(base).exp().tolist(), *(log_probabilities[:, c].exp().reshape(shape) for c in (0, 1))

    @torch.no_grad()
    def check_against_full_passes(self, intervention, intervention_type, probabilities, alpha=1, sample=4, seed=0):
        """Run a random sample of single-neuron interventions again, each as a full pass under plain hooks.

        Args:
            probabilities: (c1_probs, c2_probs), arrays [L + 1, D], as a sweep gave them.

        Returns: the largest absolute difference in a candidate's log-probability.
        """
        units = np.random.default_rng(seed).choice(probabilities[0].size, size=min(sample, probabilities[0].size), replace=False)
        swept = np.log(np.stack([p.reshape(-1)[units] for p in probabilities], axis=1))  # [sample, C]
        run_on, edits = self._experiment(intervention, intervention_type, alpha)[1:]
        candidates = [ids[0] for ids in intervention.candidates_tok]
        tokens = intervention.base_strings_tok[run_on].to(self.device)
        reference = by_full_passes(self.model, self.parts, tokens, edits[torch.from_numpy(units).to(self.device)], candidates)
        return float(np.abs(reference.numpy() - swept).max())

    def _experiment(self, intervention, intervention_type, alpha, layers_to_adj=(), neurons_to_adj=(), intervention_loc="all"):
        """(base runs of the three prompts, index of the one that is intervened upon, NeuronEdits) of a stimulus and intervention type."""
        if intervention_type not in INTERVENTION_TYPES:
            raise InputError(f"intervention type {intervention_type!r} is unknown: choose from {', '.join(INTERVENTION_TYPES)}")
        intervention.check_for_neurons()
        run_on, source, minus = INTERVENTION_TYPES[intervention_type]
        runs = [run_base(self.model, self.parts, tokens.to(self.device)) for tokens in intervention.base_strings_tok]
        values = runs[source].representations(intervention.position)  # [L + 1, D]
        if minus is not None:
            values = values - runs[minus].representations(intervention.position)
        edits = self._edits(values * alpha, intervention.position, minus is not None, layers_to_adj, neurons_to_adj, intervention_loc)
        return runs, run_on, edits

    def _edits(self, values, position, add, layers_to_adj, neurons_to_adj, intervention_loc):
        """The interventions of one experiment from `values` [L + 1, D]; layers of the arguments count from -1."""
        if intervention_loc == "layer":
            layer = layers_to_adj if isinstance(layers_to_adj, int) else layers_to_adj[0]
            layers_to_adj, varied = [layer] * len(neurons_to_adj), [layer]
        elif intervention_loc == "all":
            varied = range(-1, self.num_layers)
        elif intervention_loc == "neuron":
            varied = []
        else:
            raise InputError(f"intervention_loc {intervention_loc!r}: choose 'all', 'layer' or 'neuron'")
        self._check_units([*varied, *layers_to_adj], [])
        self._check_units(layers_to_adj, [neurons_to_adj])
        if not varied and not neurons_to_adj:
            raise InputError("intervention_loc 'neuron' needs layers_to_adj and neurons_to_adj: the set to change")
        rows = torch.arange(len(varied) * self.num_neurons if varied else 1, device=self.device)
        everywhere = single_neuron_edits(values, position)
        chosen = [(layer + 1) * self.num_neurons + neuron for layer, neuron in zip(layers_to_adj, neurons_to_adj)]
        columns = [torch.full_like(rows, unit) for unit in chosen]
        if varied:
            columns.insert(0, rows + (varied[0] + 1) * self.num_neurons)
        units = torch.stack(columns, dim=1)  # [B, K], index of a neuron in layer-by-layer order
        return NeuronEdits(everywhere.layers[units, 0], everywhere.neurons[units, 0], everywhere.values[units, 0], position, add)

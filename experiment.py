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
from mediation.attention import HeadEdits, attention_weights, heads_layers_model
from mediation.batches import FastRows
from mediation.errors import InputError
from mediation.forward import pack, pack_prompts, run_base
from mediation.gradients import head_gradients, neuron_gradients
from mediation.interpolation import fit
from mediation.neurons import NeuronEdits, single_neuron_edits
from mediation.products import check_bfloat16
from mediation.readout import ReadOut
from mediation.sweeps import by_full_passes, heads_by_full_passes, sweep, sweep_by_full_passes, sweep_heads
from utils import batch

PROMPTS_AT_ONCE = 64
# in a log-probability, estimated; float32 runs are as far from each other
INTERPOLATION_TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-12}

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


    def check_for_attention(self):
        """Index of the first token in which the two contexts differ.

        Raises:
            InputError: an attention intervention is not defined: not two contexts of equal length that differ, and two candidates.
        """
        if len(self.prompts) != 2 or len(self.candidates_tok) != 2:
            raise InputError(f"{self.base_strings[0]!r}: an attention stimulus has two substitutes (female, male pronoun) and two candidates, "
                             f"this one has {len(self.prompts)} and {len(self.candidates_tok)}")
        one, other = (prompt.tokens for prompt in self.prompts)
        if len(one) != len(other) or one == other:
            raise InputError(f"{self.base_strings[0]!r} and {self.base_strings[1]!r} are {'the same' if one == other else 'not of equal length'} "
                             "in this model's tokens: attention weights of one do not fit the other, choose other substitutes")
        return next(index for index, pair in enumerate(zip(one, other)) if pair[0] != pair[1])


class Model:
    """A causal language model of a supported architecture, with its tokenizer, in evaluation mode and without gradients.

    Args:
        device: "cpu", "cuda", "cuda:0" ...
        gpt2_version: a bundled name (`smollm2-135m`), a local directory, or a hub id. The name is 2020's; any supported model is meant.
        random_weights: keep the architecture, draw new weights with `seed`.
        dtype: torch dtype of weights and activations.
        full_passes: run every intervention as a full forward pass under plain hooks, the slow reference of the sweeps.
        precision: "exact", or "fast": sweeps multiply the difference to the base run in bfloat16 where that is good enough, which random
            interventions that are run both ways decide (see `mediation.batches`); `fast_rows` counts them. For float32 models.
        output_attentions, masking_approach: accepted for 2020's notebooks.

    Raises:
        InputError: unknown model, unsupported architecture, a device that is not there, or one that has no fast precision.
    """

    def __init__(self, device="cpu", output_attentions=False, random_weights=False, masking_approach=1, gpt2_version="gpt2",
                 dtype=torch.float32, seed=0, full_passes=False, precision="exact"):
        self.name = checkpoints.model_name(gpt2_version) + ("_random" if random_weights else "")
        self.device = torch.device(device)
        self.full_passes = full_passes
        self.fast_rows = None
        if precision == "fast":
            check_bfloat16(self.device)
            if dtype != torch.float32 or full_passes:
                raise InputError("--precision fast is for the sweeps of float32 models: use --precision exact with --full_passes or another --dtype")
            self.fast_rows = FastRows()
        elif precision != "exact":
            raise InputError(f"precision {precision!r} is unknown: choose exact or fast")
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
        """Float64 [B, C] log-probabilities, by the descent or by full passes as the model was made; fast where the base run has its linear layers."""
        if self.full_passes:
            return sweep_by_full_passes(self.model, self.parts, tokens, edits, [ids[0] for ids in outputs], bsize, progress)
        fast = self.fast_rows if base.linear_layers else None
        return sweep(self.parts, base, self._predictions(tokens, outputs), edits, bsize, progress=progress, fast=fast)

    @staticmethod
    def _predictions(tokens, outputs):
        """Single-token candidates, predicted after the last of the tokens."""
        return tuple(([len(tokens) - 1], ids) for ids in outputs)

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
        read_out = ReadOut(self.parts, self._predictions(tokens, intervention.candidates_tok))
        base = [read_out(run.residuals[-1].unsqueeze(0))[0] for run in runs]
        shape = (-1, 1 if intervention_loc == "neuron" else self.num_neurons)
        return *torch.cat(base).exp().tolist(), *(log_probabilities[:, c].exp().reshape(shape) for c in (0, 1))

    @torch.no_grad()
    def neuron_intervention_for_sets(self, intervention, intervention_type, units, bsize=None):
        """Log-probabilities under B sets of K neurons that are changed together; a neuron named twice in a set is changed once.

        Args:
            units: int64 [B, K], a neuron as (layer in the tables) x D + neuron: 0 to (L + 1) x D - 1.

        Returns: float64 [B, 2], and float64 [2] on the null prompt without intervention.
        """
        runs, run_on, every = self._experiment(intervention, intervention_type, 1)
        units = torch.as_tensor(units, device=self.device)
        edits = NeuronEdits(every.layers[units, 0], every.neurons[units, 0], every.values[units, 0], every.position, every.add)
        tokens = intervention.base_strings_tok[run_on].to(self.device)
        base = ReadOut(self.parts, self._predictions(tokens, intervention.candidates_tok))(runs[NULL].residuals[-1].unsqueeze(0))
        return self._sweep(runs[run_on], tokens, edits, intervention.candidates_tok, bsize), base[0]

    @torch.no_grad()
    def check_against_full_passes(self, intervention, intervention_type, log_probabilities, alpha=1, sample=4, seed=0, odds_only=False,
                                  among=None):
        """Run a random sample of single-neuron interventions again, each as a full pass under plain hooks.

        Args:
            log_probabilities: array [2, L + 1, D] of both candidates, as a sweep gave them.
            among: indices of the neurons that the sample is drawn from, layer by layer; None takes all.

        Returns: the largest absolute difference in a candidate's log-probability; with `odds_only` in the log odds.
        """
        swept = log_probabilities.reshape(2, -1)
        among = np.arange(swept.shape[1]) if among is None else among
        units = np.random.default_rng(seed).choice(among, size=min(sample, len(among)), replace=False)
        run_on, edits = self._experiment(intervention, intervention_type, alpha)[1:]
        candidates = [ids[0] for ids in intervention.candidates_tok]
        tokens = intervention.base_strings_tok[run_on].to(self.device)
        reference = by_full_passes(self.model, self.parts, tokens, edits[torch.from_numpy(units).to(self.device)], candidates).numpy()
        difference = reference.T - swept[:, units]  # [C, sample]
        return float(np.abs(difference[0] - difference[1] if odds_only else difference).max())

    def _experiment(self, intervention, intervention_type, alpha, layers_to_adj=(), neurons_to_adj=(), intervention_loc="all"):
        """(base runs of the three prompts, index of the one that is intervened upon, NeuronEdits) of a stimulus and intervention type."""
        if intervention_type not in INTERVENTION_TYPES:
            raise InputError(f"intervention type {intervention_type!r} is unknown: choose from {', '.join(INTERVENTION_TYPES)}")
        intervention.check_for_neurons()
        run_on, source, minus = INTERVENTION_TYPES[intervention_type]
        runs = [run_base(self.model, self.parts, tokens.to(self.device), linear_layers=self.fast_rows is not None)
                for tokens in intervention.base_strings_tok]
        values = runs[source].representations(intervention.position)  # [L + 1, D]
        if minus is not None:
            values = values - runs[minus].representations(intervention.position)
        edits = self._edits(values * alpha, intervention.position, minus is not None, layers_to_adj, neurons_to_adj, intervention_loc)
        return runs, run_on, edits

    def _trees(self, interventions, prompt):
        """The prompts (number `prompt` of each stimulus) that are alike up to the slot, in one tree each: [(indices of stimuli, Tree, position)]."""
        alike = {}
        for index, intervention in enumerate(interventions):
            intervention.check_for_neurons()
            beginning = intervention.prompts[prompt].tokens[: intervention.position + 1]
            alike.setdefault((beginning, str(intervention.candidates_tok)), []).append(index)
        return [(members, pack_prompts([interventions[index].prompts[prompt].tokens for index in members],
                                       [ids[0] for ids in interventions[members[0]].candidates_tok], self.device), len(beginning) - 1)
                for (beginning, _), members in alike.items()]

    def _values(self, intervention, prompt):
        """Values of all neurons at the slot of one prompt of a stimulus, [L + 1, D]."""
        tokens = intervention.base_strings_tok[prompt][: intervention.position + 1].to(self.device)
        return run_base(self.model, self.parts, tokens).representations(intervention.position)

    @torch.no_grad()
    def null_values(self, interventions):
        """Values of all neurons at the slot of each stimulus' null prompt, a list of float64 arrays [L + 1, D]."""
        return [self._values(intervention, NULL).double().cpu().numpy() for intervention in interventions]

    @torch.no_grad()
    def log_probabilities_in_templates(self, interventions):
        """Log-probabilities without intervention, float64 [stimuli, prompts, 2], as the sweeps over several templates have them."""
        result = torch.empty(len(interventions), len(interventions[0].prompts), 2, dtype=torch.float64)
        for prompt in range(result.shape[1]):
            for members, tree, _ in self._trees(interventions, prompt):
                residual = run_base(self.model, self.parts, tree.tokens, tree).residuals[-1]
                result[members, prompt] = ReadOut(self.parts, tree.predictions)(residual.unsqueeze(0)).reshape(-1, 2)
        return result

    @torch.no_grad()
    def neuron_intervention_in_templates(self, interventions, intervention_type, alpha=1, bsize=None, odds_only=False, progress=None, units=None):
        """Every neuron in turn, on several stimuli of one word at once: what their prompts share is run once.

        Args:
            interventions: stimuli, such as one profession in all templates; the others as in `neuron_intervention_single_experiment`.
            odds_only: leave out the sum over the vocabulary: log-probabilities up to a number that both candidates share.
            units: int64 [n], only these neurons, as (layer in the tables) x D + neuron.

        Returns: float64 [stimuli, L + 1, D, 2] (with units [stimuli, n, 2]), log-probabilities of both candidates.
        """
        run_on, source, minus = INTERVENTION_TYPES[intervention_type]
        every = units is None
        units = torch.arange((self.num_layers + 1) * self.num_neurons) if every else torch.as_tensor(units)
        result = torch.empty(len(interventions), len(units), 2, dtype=torch.float64)

        def report(rows):
            if progress:
                progress(rows * len(members))

        for members, tree, position in self._trees(interventions, run_on):
            values = self._values(interventions[members[0]], source)
            if minus is not None:
                values = values - self._values(interventions[members[0]], minus)
            base = run_base(self.model, self.parts, tree.tokens, tree, self.fast_rows is not None)
            edits = single_neuron_edits(values * alpha, position, minus is not None)[units.to(self.device)]
            swept = sweep(self.parts, base, tree.predictions, edits, bsize, odds_only, report, self.fast_rows)
            result[members] = swept.reshape(len(units), len(members), 2).movedim(1, 0)
        return result.reshape(len(interventions), -1, self.num_neurons, 2) if every else result

    @torch.no_grad()
    def neuron_gradients(self, interventions, prompt):
        """What the first order needs of one prompt of many stimuli, see `mediation.gradients`; prompts of equal shape are run together.

        Args:
            prompt: 0 the null prompt, 1 man's, 2 woman's.

        Returns: log-probabilities of both candidates float64 [stimuli, 2], their gradients with respect to every neuron at the slot
        [stimuli, 2, L + 1, D], values of the neurons there [stimuli, L + 1, D]; arrays of the model's dtype, at least float32.
        """
        shape = (self.num_layers + 1, self.num_neurons)
        kind = np.float64 if self.model.dtype == torch.float64 else np.float32
        log_probabilities = np.empty((len(interventions), 2))
        gradients, values = np.empty((len(interventions), 2, *shape), kind), np.empty((len(interventions), *shape), kind)
        alike = {}
        for index, intervention in enumerate(interventions):
            intervention.check_for_neurons()
            alike.setdefault((len(intervention.prompts[0].tokens), intervention.position, str(intervention.candidates_tok)), []).append(index)
        for (_, position, _), members in alike.items():
            candidates = [ids[0] for ids in interventions[members[0]].candidates_tok]
            for some in batch(members, PROMPTS_AT_ONCE):
                prompts = torch.stack([interventions[index].base_strings_tok[prompt] for index in some]).to(self.device)
                found = neuron_gradients(self.model, self.parts, prompts, position, candidates)
                log_probabilities[some], gradients[some], values[some] = (part.to(torch.float64).cpu().numpy() for part in found)
        return log_probabilities, gradients, values

    @torch.no_grad()
    def direct_interpolants(self, interventions, intervention_type, values, layer, alpha=1, bsize=None, odds_only=False, progress=None):
        """Direct effects of one layer's neurons as functions of the value put in, the same for all words of the study.

        Args:
            interventions: stimuli of one word, one a template, whose alternative prompts are alike up to the slot.
            intervention_type: man_direct or woman_direct; values: float64 [words, D], those of each word's null prompt in this layer.
            layer: 0 the word embedding to L, as in the tables.

        Returns: Interpolants of D functions with 2 x stimuli values: log-probabilities of both candidates, stimulus by stimulus.
        """
        run_on, _, _ = INTERVENTION_TYPES[intervention_type]
        ((_, tree, position),) = self._trees(interventions, run_on)
        base = run_base(self.model, self.parts, tree.tokens, tree)

        def run(neurons, points):
            shape = points.shape
            neurons = torch.as_tensor(neurons, device=self.device).repeat_interleave(shape[1]).unsqueeze(1)
            put_in = torch.as_tensor(points * alpha, dtype=self.model.dtype, device=self.device).reshape(-1, 1)
            edits = NeuronEdits(torch.full_like(neurons, layer), neurons, put_in, position)
            return sweep(self.parts, base, tree.predictions, edits, bsize, odds_only, progress).numpy().reshape(*shape, -1)

        return fit(run, values.min(axis=0), values.max(axis=0), INTERPOLATION_TOLERANCE[self.model.dtype])

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

    @torch.no_grad()
    def continuation_probabilities(self, intervention):
        """p(candidate) after each prompt of a stimulus, candidates of any length: exp of the mean token log-probability; lists [prompts][C]."""
        probabilities = []
        for tokens in intervention.base_strings_tok:
            packed = pack(tokens.to(self.device), intervention.candidates_tok)
            residual = run_base(self.model, self.parts, packed.tokens, packed).residuals[-1]
            probabilities.append(ReadOut(self.parts, packed.predictions)(residual.unsqueeze(0))[0].exp().tolist())
        return probabilities

    @torch.no_grad()
    def attention_intervention(self, context, outputs, attn_override_data):
        """Probabilities of continuations when attention weights on the context are set.

        Args:
            context: int64 [T]; outputs: lists of token ids.
            attn_override_data: dictionaries, one a layer: `layer` (0 to L - 1), `attention_override` [1, H, T, T] the weights put in,
                `attention_override_mask` [1, H, T, T], true for whole heads that are set.

        Returns: a list of probabilities, exp of the mean token log-probability.

        Raises:
            InputError: a layer outside the model, or weights that do not fit the context.
        """
        context = context.reshape(-1).to(self.device)
        shape = (self.num_layers, self.num_heads, len(context), len(context))
        weights = torch.zeros(shape, dtype=self.model.dtype, device=self.device)
        chosen = torch.zeros(1, *shape[:2], dtype=torch.bool, device=self.device)
        for entry in attn_override_data:
            layer, override, mask = entry["layer"], entry["attention_override"].to(self.device), entry["attention_override_mask"].to(self.device).bool()
            self._check_heads([layer], [0])
            if override.reshape(-1, *override.shape[-3:]).shape != (1, *shape[1:]) or mask.shape != override.shape:
                raise InputError(f"attention_override of layer {layer} is {list(override.shape)}, the context needs {[1, *shape[1:]]}")
            heads = mask.reshape(shape[1:]).flatten(1)
            if (heads.any(dim=1) != heads.all(dim=1)).any():
                raise InputError(f"attention_override_mask of layer {layer} sets parts of a head's weights: set whole heads")
            weights[layer], chosen[0, layer] = override.reshape(shape[1:]), heads.any(dim=1)
        return heads_by_full_passes(self.model, self.parts, context, outputs, HeadEdits(chosen, weights, 0))[0].exp().tolist()

    def _check_heads(self, layers, heads):
        for layer, head in zip(layers, heads):
            if not 0 <= layer < self.num_layers or not 0 <= head < self.num_heads:
                raise InputError(f"head {layer}-{head} is not in the model: layers 0 to {self.num_layers - 1}, heads 0 to {self.num_heads - 1}")

    def _head_edits(self, intervention, effect, chosen):
        """(context that is intervened upon, HeadEdits for the sets of heads `chosen` bool [B, L, H]) of a stimulus and effect."""
        if effect not in ("indirect", "direct"):
            raise InputError(f"effect {effect!r} is unknown: choose indirect or direct")
        first = intervention.check_for_attention()
        contexts = [tokens.to(self.device) for tokens in intervention.base_strings_tok]
        run_on, source = contexts if effect == "indirect" else reversed(contexts)
        return run_on, HeadEdits(chosen.to(self.device), attention_weights(self.model, self.parts, source), first)

    @torch.no_grad()
    def attention_intervention_for_sets(self, intervention, effect, chosen, bsize=None, progress=None):
        """Log-probabilities of both candidates, float64 [B, 2], under B sets of heads that are changed together.

        Args:
            chosen: bool [B, L, H], the heads of each set; heads that all sets have are run once for all.
        """
        context, edits = self._head_edits(intervention, effect, chosen)
        return sweep_heads(self.model, self.parts, context, intervention.candidates_tok, edits, bsize, self.full_passes, progress, self.fast_rows)

    @torch.no_grad()
    def attention_intervention_experiment(self, intervention, effect, bsize=None, progress=None):
        """Every head, every layer and the whole model of one stimulus.

        Args:
            intervention: stimulus with two contexts x, x' of equal length and two candidates.
            effect: "indirect" runs x with weights computed on x', "direct" runs x' with weights computed on x.

        Returns: c1_head [L, H], c2_head, c1_layer [L], c2_layer, c1_model, c2_model: probabilities (exp of the mean token
        log-probability) of both candidates, float64.

        Raises:
            InputError: a stimulus or an effect that is not of this form.
        """
        layers, heads = self.num_layers, self.num_heads
        log_probabilities = self.attention_intervention_for_sets(intervention, effect, heads_layers_model(layers, heads), bsize, progress)
        parts = [part.split([layers * heads, layers, 1]) for part in log_probabilities.exp().unbind(dim=1)]
        (head1, layer1, model1), (head2, layer2, model2) = parts
        return head1.reshape(layers, heads), head2.reshape(layers, heads), layer1, layer2, model1.item(), model2.item()

    @torch.no_grad()
    def attention_gradients(self, intervention, effect):
        """Log-probabilities of both candidates under every single-head intervention to first order, float64 [L, H, 2], see `mediation.gradients`."""
        context, edits = self._head_edits(intervention, effect, torch.zeros(0, self.num_layers, self.num_heads, dtype=torch.bool))
        log_probabilities, gradients, own = head_gradients(self.model, self.parts, pack(context, intervention.candidates_tok))
        length = len(context)  # a tree's first nodes are the context's
        step = (edits.weights - own[..., :length, :length])[:, :, edits.first:]  # [L, H, R, T]
        heads = (gradients[..., edits.first:length, :length] * step).double().sum(dim=(-2, -1)).cpu()  # [2, L, H]
        return (heads + log_probabilities[:, None, None]).movedim(0, -1)

    @torch.no_grad()
    def check_heads_against_full_passes(self, intervention, effect, probabilities, sample=1, seed=0, among=None):
        """Run a random sample of single-head interventions again, each as full passes with the weights replaced.

        Args:
            probabilities: (c1_head, c2_head), [L, H], as `attention_intervention_experiment` gave them.
            among: indices of the heads that the sample is drawn from, layer x H + head; None takes all.

        Returns: the largest absolute difference in a candidate's log-probability.
        """
        units = np.random.default_rng(seed).choice(self.num_layers * self.num_heads if among is None else among, size=sample, replace=False)
        swept = np.log(np.stack([np.asarray(p).reshape(-1)[units] for p in probabilities], axis=1))  # [sample, C]
        context, edits = self._head_edits(intervention, effect, heads_layers_model(self.num_layers, self.num_heads)[units])
        reference = heads_by_full_passes(self.model, self.parts, context, intervention.candidates_tok, edits)
        return float(np.abs(reference.numpy() - swept).max())

    @torch.no_grad()
    def attention_intervention_single_experiment(self, intervention, effect, layers_to_adj, heads_to_adj, search):
        """One set of heads (layers_to_adj[i], heads_to_adj[i]) changed together; with `search`, the set and every other head in turn.

        Returns: (p(c1), p(c2)), numbers; with `search` float64 [L, H] each (the set alone where the head is in it).

        Raises:
            InputError: a head outside the model.
        """
        self._check_heads(layers_to_adj, heads_to_adj)
        given = torch.zeros(self.num_layers, self.num_heads, dtype=torch.bool)
        given[list(layers_to_adj), list(heads_to_adj)] = True
        single = heads_layers_model(self.num_layers, self.num_heads)[: given.numel()]
        chosen = single | given if search else given.unsqueeze(0)
        log_probabilities = self.attention_intervention_for_sets(intervention, effect, chosen)
        c1, c2 = log_probabilities.exp().unbind(dim=1)
        return (c1.reshape(given.shape), c2.reshape(given.shape)) if search else (c1.item(), c2.item())

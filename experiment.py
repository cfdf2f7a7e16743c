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
from contextlib import contextmanager

import numpy as np
import torch
from tqdm import tqdm

from mediation.errors import InputError
from mediation.mediators import interpolation
from mediation.mediators.batches import FastRows, batch
from mediation.mediators.gradients import head_gradients, neuron_gradients
from mediation.mediators.heads import HeadEdits, heads_layers_model
from mediation.mediators.masked_heads import sweep_masked_heads
from mediation.mediators.neurons import INTERVENTION_TYPES, NULL, NeuronEdits, single_neuron_edits
from mediation.mediators.sweeps import by_full_passes, heads_by_full_passes, sweep, sweep_by_full_passes, sweep_heads
from mediation.model import checkpoints, masked
from mediation.model.architectures import find_parts
from mediation.model.attention import attention_weights
from mediation.model.forward import Narrowing, pack, run_base
from mediation.model.products import check_bfloat16
from mediation.model.readout import ReadOut, widen
from mediation.stimuli.interventions import Intervention
from mediation.studies.error_budget import CHECKED, Check, units_to_check

__all__ = ["Intervention", "Model"]

PROMPTS_AT_ONCE = 64



def _at(run, places):
    """Values of all neurons at P places of a BaseRun, [P, L + 1, D]."""
    return torch.stack([run.representations(place) for place in places])


class Model:
    """A language model of a supported architecture (a masked one for the attention study only), with its tokenizer, in evaluation mode and without gradients.

    Args:
        device: "cpu", "cuda", "cuda:0" ..., or "auto": CUDA where there is one.
        gpt2_version: a bundled name (`smollm2-135m`), a local directory, or a hub id. The name is 2020's; any supported model is meant.
        random_weights: keep the architecture, draw new weights with `seed`.
        dtype: torch dtype of weights and activations.
        full_passes: run every intervention as a full forward pass under plain hooks, the slow reference of the sweeps.
        precision: "exact", or "fast": sweeps multiply the difference to the base run in bfloat16 where that is good enough, which random
            interventions that are run both ways decide (see `mediation.mediators.batches`); `fast_rows` counts them. For float32 models.
        masking_approach: 1 to 6, how a masked model scores a candidate, see `mediation.model.masked`.
        output_attentions: accepted for 2020's notebooks.

    Raises:
        InputError: unknown model, unsupported architecture, a device that is not there, or one that has no fast precision.
    """

    def __init__(self, device="cpu", output_attentions=False, random_weights=False, masking_approach=1, gpt2_version="gpt2",
                 dtype=torch.float32, seed=0, full_passes=False, precision="exact"):
        self.name = checkpoints.model_name(gpt2_version) + ("_random" if random_weights else "")
        self.device = checkpoints.find_device(device)
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
        if dtype in (torch.bfloat16, torch.float16):
            widen(self.parts.head)
        self.num_layers = len(self.parts.blocks)
        self.num_neurons = self.model.config.hidden_size
        self.num_heads = self.model.config.num_attention_heads
        kind = self.model.config.model_type  # 2020's scripts ask by these names
        self.is_gpt2, self.is_txl, self.is_xlnet = kind == "gpt2", kind == "transfo-xl", kind == "xlnet"
        self.is_bert, self.is_distilbert = kind == "bert", kind == "distilbert"
        self.is_roberta = kind == "roberta"
        self.output_attentions = output_attentions
        self.masking_approach = masking_approach
        self.masking = masked.Masking.of(self.tokenizer, masking_approach) if self.parts.masked else None

    @contextmanager
    def exactly(self):
        """While open, sweeps are exact, whatever precision the model was made for."""
        fast, self.fast_rows = self.fast_rows, None
        try:
            yield
        finally:
            self.fast_rows = fast

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
        values = self._run(context.reshape(-1)).representations(position)
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
        if self.masking:
            return [self.get_probabilities_for_examples_multitoken(row, candidates) for row in context.reshape(-1, context.shape[-1])]
        log_probabilities = self._log_probabilities(context.reshape(-1, context.shape[-1]), keep=1)[:, 0]  # [B, vocabulary]
        return log_probabilities[:, [candidate[0] for candidate in candidates]].exp().tolist()

    @torch.no_grad()
    def get_probabilities_for_examples_multitoken(self, context, candidates):
        """Probability of each candidate (a list of token ids) after `context` (int64 [T]): exp of the mean token log-probability."""
        if self.masking:
            return masked.log_probabilities(self.model, self.parts, context.reshape(-1).to(self.device), candidates, self.masking).exp().tolist()
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
        """Probabilities without intervention of many stimuli with two candidates; where these are single tokens, prompts of equal length together.

        Returns: one list a stimulus, in their order: (c1, c2) on its first prompt, its second, and so on.
        """
        interventions = list(interventions)
        if any(len(ids) > 1 for intervention in interventions for ids in intervention.candidates_tok):
            return self.log_probabilities_in_templates(interventions).exp().flatten(1).tolist()
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
        return self._sweep(self._run(tokens, outputs), tokens, edits, outputs).exp().tolist()

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
            return sweep_by_full_passes(self.model, self.parts, tokens, edits, outputs, bsize, progress)
        fast = self.fast_rows if base.linear_layers else None
        return sweep(self.parts, base, pack([tokens.tolist()], outputs, self.device).predictions, edits, bsize, progress=progress, fast=fast)

    def _run(self, tokens, candidates=([0],), linear_layers=False):
        """BaseRun of a prompt (int64 [T]) and what the candidates (lists of ids) need behind it."""
        self._check_causal()
        tree = pack([tokens.tolist()], candidates, self.device)
        return run_base(self.model, self.parts, tree.tokens, tree if len(tree.tokens) > len(tokens) else None, linear_layers)

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
        base = [self._read_out(run, prompt_tokens, intervention) for run, prompt_tokens in zip(runs, intervention.base_strings_tok)]
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
        tokens = intervention.base_strings_tok[run_on].to(self.device)
        base = self._read_out(runs[NULL], intervention.base_strings_tok[NULL], intervention)
        return self._sweep(runs[run_on], tokens, every.sets(units), intervention.candidates_tok, bsize), base

    def _read_out(self, run, tokens, intervention):
        """Log-probabilities of the candidates without intervention, float64 [2], from the BaseRun of a prompt (int64 [T])."""
        predictions = pack([tokens.tolist()], intervention.candidates_tok, self.device).predictions
        return ReadOut(self.parts, predictions)(run.residuals[-1].unsqueeze(0))[0]

    @torch.no_grad()
    def check_against_full_passes(self, intervention, intervention_type, log_probabilities, alpha=1, sample=CHECKED, seed=0, odds_only=False,
                                  among=None, sets=None):
        """Run single-neuron interventions again, each as a full pass under plain hooks: a random sample, and some where an error is likely.

        Args:
            log_probabilities: array [2, L + 1, D] of both candidates, as a sweep gave them.
            among: indices of the neurons that the sample is drawn from, layer by layer; None takes all.
            sets: int64 [n, K], where the log-probabilities are those of n sets of neurons, a layer each, [2, n].

        Returns: Check; its deviation is the largest absolute difference in a candidate's log-probability; with `odds_only` in the log odds.
        """
        swept = log_probabilities.reshape(2, -1)
        among = np.arange(swept.shape[1]) if among is None else among
        drawn, likely = units_to_check(swept, among, 2 * swept.shape[1] // (self.num_layers + 1), sample, seed)
        units = np.concatenate([drawn, likely])
        run_on, edits = self._experiment(intervention, intervention_type, alpha)[1:]
        tokens = intervention.base_strings_tok[run_on].to(self.device)
        rows = torch.from_numpy(units)
        edits = edits[rows.to(self.device)] if sets is None else edits.sets(sets[rows].to(self.device))
        reference = by_full_passes(self.model, self.parts, tokens, edits, intervention.candidates_tok).numpy()
        difference = reference.T - swept[:, units]  # [C, sample]
        return Check(float(np.abs(difference[0] - difference[1] if odds_only else difference).max()), len(drawn), len(likely))

    def _experiment(self, intervention, intervention_type, alpha, layers_to_adj=(), neurons_to_adj=(), intervention_loc="all"):
        """(base runs of the three prompts, index of the one that is intervened upon, NeuronEdits) of a stimulus and intervention type."""
        if intervention_type not in INTERVENTION_TYPES:
            raise InputError(f"intervention type {intervention_type!r} is unknown: choose from {', '.join(INTERVENTION_TYPES)}")
        self.check_for_neurons(intervention, intervention_type)
        run_on, source, minus = INTERVENTION_TYPES[intervention_type]
        runs = [self._run(tokens, intervention.candidates_tok, self.fast_rows is not None) for tokens in intervention.base_strings_tok]
        values = _at(runs[source], intervention.places[source])  # [P, L + 1, D]
        if minus is not None:
            values = values - _at(runs[minus], intervention.places[minus])
        edits = self._edits(values * alpha, intervention.places[run_on], minus is not None, layers_to_adj, neurons_to_adj, intervention_loc)
        return runs, run_on, edits

    def check_for_neurons(self, intervention, intervention_type=None):
        """Raises InputError for a stimulus, or a model, without neuron interventions, or without those of a type."""
        self._check_causal()
        intervention.check_for_neurons()
        if intervention_type and (len(intervention.prompts) == 2) != (intervention_type in ("direct", "indirect")):
            raise InputError(f"{intervention.base_strings[0]!r} has {len(intervention.prompts)} substitutes: {intervention_type} needs "
                             + ("a word and one alternative" if intervention_type in ("direct", "indirect") else "three substitutes (word, man, woman)"))

    def _check_causal(self):
        if self.masking:
            raise InputError(f"{self.name} is a masked model: it is for the attention study, neurons need a causal model")

    def _trees(self, interventions, prompt, intervention_type=None):
        """The prompts (number `prompt` of each stimulus) that are alike up to the slot's end, in one tree each: [(indices of stimuli, Tree)].

        The other prompts of these stimuli are alike up to there, too, so that what is taken from one of them holds for all.
        """
        alike = {}
        for index, intervention in enumerate(interventions):
            self.check_for_neurons(intervention, intervention_type)
            alike.setdefault(intervention.beginning, []).append(index)
        return [(members, pack([interventions[index].prompts[prompt].tokens for index in members], interventions[members[0]].candidates_tok, self.device))
                for members in alike.values()]

    def _values(self, intervention, prompt):
        """Values of all neurons at the slot of one prompt of a stimulus, [P, L + 1, D]."""
        places = intervention.places[prompt]
        return _at(self._run(intervention.base_strings_tok[prompt][: places[-1] + 1]), places)

    @torch.no_grad()
    def null_values(self, interventions):
        """Values of all neurons at the slot of each stimulus' null prompt, a list of float64 arrays [L + 1, D]; slots of one token."""
        return [self._values(intervention, NULL)[0].double().cpu().numpy() for intervention in interventions]

    @torch.no_grad()
    def log_probabilities_in_templates(self, interventions):
        """Log-probabilities without intervention, float64 [stimuli, prompts, 2], as the sweeps over several templates have them."""
        result = torch.empty(len(interventions), len(interventions[0].prompts), 2, dtype=torch.float64)
        for prompt in range(result.shape[1]):
            for members, tree in self._trees(interventions, prompt):
                residual = run_base(self.model, self.parts, tree.tokens, tree).residuals[-1]
                result[members, prompt] = ReadOut(self.parts, tree.predictions)(residual.unsqueeze(0)).reshape(-1, 2)
        return result

    @torch.no_grad()
    def neuron_intervention_in_templates(self, interventions, intervention_type, alpha=1, bsize=None, odds_only=False, progress=None, units=None):
        """Every neuron in turn, on several stimuli of one word at once: what their prompts share is run once.

        Args:
            interventions: stimuli, such as one profession in all templates; the others as in `neuron_intervention_single_experiment`.
            odds_only: leave out the sum over the vocabulary: log-probabilities up to a number that both candidates share.
            units: int64 [n], only these neurons, as (layer in the tables) x D + neuron; or [n, K], sets of them that are changed together.

        Returns: float64 [stimuli, L + 1, D, 2] (with units [stimuli, n, 2]), log-probabilities of both candidates.
        """
        run_on, source, minus = INTERVENTION_TYPES[intervention_type]
        every = units is None
        units = torch.arange((self.num_layers + 1) * self.num_neurons) if every else torch.as_tensor(units)
        result = torch.empty(len(interventions), len(units), 2, dtype=torch.float64)

        def report(rows):
            if progress:
                progress(rows * len(members))

        for members, tree in self._trees(interventions, run_on, intervention_type):
            places = interventions[members[0]].places[run_on]
            values = self._values(interventions[members[0]], source)
            if minus is not None:
                values = values - self._values(interventions[members[0]], minus)
            base = run_base(self.model, self.parts, tree.tokens, tree, self.fast_rows is not None)
            edits = single_neuron_edits(values * alpha, places, minus is not None).sets(units.reshape(len(units), -1).to(self.device))
            swept = sweep(self.parts, base, tree.predictions, edits, bsize, odds_only, report, self.fast_rows)
            result[members] = swept.reshape(len(units), len(members), 2).movedim(1, 0)
        return result.reshape(len(interventions), -1, self.num_neurons, 2) if every else result

    @torch.no_grad()
    def neuron_gradients(self, interventions, prompt):
        """What the first order needs of one prompt of many stimuli, see `mediation.mediators.gradients`; prompts of equal shape are run together.

        Args:
            prompt: 0 the null prompt, 1 man's, 2 woman's.

        Returns: log-probabilities of both candidates float64 [stimuli, 2], their gradients with respect to every neuron at the slot
        [stimuli, 2, P, L + 1, D], values of the neurons there [stimuli, P, L + 1, D]; arrays of the model's dtype, at least float32. P: tokens
        where a neuron is changed, one but for "all" of a slot of several; stimuli of one call have the same P.
        """
        places = len(interventions[0].places[prompt])
        shape = (places, self.num_layers + 1, self.num_neurons)
        kind = np.float64 if self.model.dtype == torch.float64 else np.float32
        log_probabilities = np.empty((len(interventions), 2))
        gradients, values = np.empty((len(interventions), 2, *shape), kind), np.empty((len(interventions), *shape), kind)
        alike = {}
        for index, intervention in enumerate(interventions):
            self.check_for_neurons(intervention)
            tokens, several = intervention.prompts[prompt].tokens, any(len(ids) > 1 for ids in intervention.candidates_tok)
            alike.setdefault((tokens if several else len(tokens), str(intervention.places[prompt]), str(intervention.candidates_tok)), []).append(index)
        for members in alike.values():
            one = interventions[members[0]]
            tree = pack([one.prompts[prompt].tokens], one.candidates_tok, self.device)
            several = len(tree.tokens) > len(one.prompts[prompt].tokens)  # then members are the same prompt
            for some in [members] if several else batch(members, PROMPTS_AT_ONCE):
                prompts = [tree.tokens] if several else [interventions[index].base_strings_tok[prompt] for index in some]
                found = neuron_gradients(self.model, self.parts, torch.stack(prompts).to(self.device), one.places[prompt], tree.predictions,
                                         tree if several else None)
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
        ((_, tree),) = self._trees(interventions, run_on, intervention_type)
        (position,) = interventions[0].places[run_on]
        with Narrowing() as narrowing:
            base = run_base(self.model, self.parts, tree.tokens, tree)
        tolerance = interpolation.NARROWED if narrowing.seen else interpolation.TOLERANCE[str(self.model.dtype).removeprefix("torch.")]

        def run(neurons, points):
            shape = points.shape
            neurons = torch.as_tensor(neurons, device=self.device).repeat_interleave(shape[1]).unsqueeze(1)
            put_in = torch.as_tensor(points * alpha, dtype=self.model.dtype, device=self.device).reshape(-1, 1)
            edits = NeuronEdits(torch.full_like(neurons, layer), neurons, put_in, position)
            return sweep(self.parts, base, tree.predictions, edits, bsize, odds_only, progress).numpy().reshape(*shape, -1)

        return interpolation.fit(run, values, tolerance)

    def _edits(self, values, places, add, layers_to_adj, neurons_to_adj, intervention_loc):
        """The interventions of one experiment from `values` [P, L + 1, D] at P places; layers of the arguments count from -1."""
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
        chosen = [(layer + 1) * self.num_neurons + neuron for layer, neuron in zip(layers_to_adj, neurons_to_adj)]
        columns = [torch.full_like(rows, unit) for unit in chosen]
        if varied:
            columns.insert(0, rows + (varied[0] + 1) * self.num_neurons)
        units = torch.stack(columns, dim=1)  # [B, K], index of a neuron in layer-by-layer order
        return single_neuron_edits(values, places, add).sets(units)

    @torch.no_grad()
    def continuation_probabilities(self, intervention):
        """p(candidate) after each prompt of a stimulus, candidates of any length: exp of the mean token log-probability; lists [prompts][C]."""
        probabilities = []
        for tokens in intervention.base_strings_tok:
            if self.masking:
                probabilities.append(self.get_probabilities_for_examples_multitoken(tokens, intervention.candidates_tok))
            else:
                probabilities.append(self._read_out(self._run(tokens, intervention.candidates_tok), tokens, intervention).exp().tolist())
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
        if self.masking:
            raise InputError(f"{self.name} is a masked model, each of whose sequences has weights of its own: use attention_intervention_experiment")
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
        first = intervention.check_for_attention()
        run_on, source = self._contexts(intervention, effect)
        return run_on, HeadEdits(chosen.to(self.device), attention_weights(self.model, self.parts, source), first)

    def _masked_heads(self, intervention, effect, chosen, bsize=None, progress=None, full_passes=False):
        """`attention_intervention_for_sets` of a masked model."""
        intervention.check_for_attention()
        run_on, source = self._contexts(intervention, effect)
        return sweep_masked_heads(self.model, self.parts, run_on, source, intervention.candidates_tok, chosen.to(self.device), self.masking, bsize,
                                         full_passes or self.full_passes, progress, self.fast_rows)

    def _contexts(self, intervention, effect):
        """(context that is run, context whose attention weights are put in), int64 [T]."""
        if effect not in ("indirect", "direct"):
            raise InputError(f"effect {effect!r} is unknown: choose indirect or direct")
        contexts = [tokens.to(self.device) for tokens in intervention.base_strings_tok]
        return tuple(contexts) if effect == "indirect" else tuple(reversed(contexts))

    @torch.no_grad()
    def attention_intervention_for_sets(self, intervention, effect, chosen, bsize=None, progress=None):
        """Log-probabilities of both candidates, float64 [B, 2], under B sets of heads that are changed together.

        Args:
            chosen: bool [B, L, H], the heads of each set; heads that all sets have are run once for all.
        """
        if self.masking:
            return self._masked_heads(intervention, effect, chosen, bsize, progress)
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
        """Log-probabilities of both candidates under every single-head intervention to first order, float64 [L, H, 2], see `mediation.mediators.gradients`."""
        if self.masking:
            raise InputError(f"{self.name} is a masked model: its heads are all run, use --method exact")
        context, edits = self._head_edits(intervention, effect, torch.zeros(0, self.num_layers, self.num_heads, dtype=torch.bool))
        tree = pack([context.tolist()], intervention.candidates_tok, self.device)
        log_probabilities, gradients, own = head_gradients(self.model, self.parts, tree)
        length = len(context)  # a tree's first nodes are the context's
        step = (edits.weights - own[..., :length, :length])[:, :, edits.first:]  # [L, H, R, T]
        heads = (gradients[..., edits.first:length, :length] * step).double().sum(dim=(-2, -1)).cpu()  # [2, L, H]
        return (heads + log_probabilities[:, None, None]).movedim(0, -1)

    @torch.no_grad()
    def check_heads_against_full_passes(self, intervention, effect, probabilities, sample=1, seed=0, among=None):
        """Run single-head interventions again, each as full passes with the weights replaced: a random sample, and the one with the largest effect.

        Args:
            probabilities: (c1_head, c2_head), [L, H], as `attention_intervention_experiment` gave them.
            among: indices of the heads that the sample is drawn from, layer x H + head; None takes all.

        Returns: Check; its deviation is the largest absolute difference in a candidate's log-probability.
        """
        swept = np.log([np.asarray(of_candidate).reshape(-1) for of_candidate in probabilities])  # [C, L x H]
        drawn, likely = units_to_check(swept, np.arange(swept.shape[1]) if among is None else among, 0, sample, seed, largest=1)
        units = np.concatenate([drawn, likely])
        swept = swept[:, units].T
        chosen = heads_layers_model(self.num_layers, self.num_heads)[units]
        if self.masking:
            reference = self._masked_heads(intervention, effect, chosen, full_passes=True)
        else:
            context, edits = self._head_edits(intervention, effect, chosen)
            reference = heads_by_full_passes(self.model, self.parts, context, intervention.candidates_tok, edits)
        return Check(float(np.abs(reference.numpy() - swept).max()), len(drawn), len(likely))

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

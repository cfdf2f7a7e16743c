"""`Intervention` and `Model`: one stimulus, and a language model that can be intervened upon.

The names are those of the 2020 study, so that its notebooks keep working:

>>> from experiment import Intervention, Model
>>> model = Model(device="cpu", gpt2_version="smollm2-135m")
>>> substitutes, candidates = ["teacher", "man", "woman"], ["he", "she"]
>>> intervention = Intervention(model.tokenizer, "The {} said that", substitutes, candidates, device="cpu")
>>> results = model.neuron_intervention_experiment({"teacher": intervention}, "man_minus_woman", alpha=1.0)

What they do is done by functions that take a model: `mediation.mediators.neuron_sweeps` and `head_sweeps`.

Here layers count from -1 (the word embedding) to L - 1; in every written table they count from 0.
Symbols in shapes: B batch, T tokens, C candidates, L layers (blocks), D neurons per layer, H heads.
"""

import torch
from tqdm import tqdm

from mediation.mediators import head_sweeps, neuron_sweeps
from mediation.mediators.neuron_sweeps import SweepOptions
from mediation.model.language_model import LanguageModel
from mediation.stimuli.interventions import Intervention

__all__ = ["Intervention", "Model"]


class Model(LanguageModel):
    """A `LanguageModel` under the names of 2020, with probabilities as its methods give them.

    Args:
        gpt2_version: the model's name, a directory, or a hub id. The argument's name is 2020's; any supported
            model is meant.
        output_attentions: accepted for 2020's notebooks.
        The others are those of `LanguageModel`.

    Attributes:
        is_gpt2, is_txl, is_xlnet, is_bert, is_distilbert, is_roberta: what is loaded, for 2020's scripts.

    Raises:
        InputError: as `LanguageModel`.
    """

    def __init__(self, device="cpu", output_attentions=False, random_weights=False, masking_approach=1,
                 gpt2_version="gpt2", dtype=torch.float32, seed=0, full_passes=False, precision="exact",
                 weights_dtype=None, device_map=None):
        super().__init__(gpt2_version, device, dtype, random_weights, seed, masking_approach, full_passes,
                         precision, weights_dtype, device_map)
        kind = self.model.config.model_type
        self.is_gpt2, self.is_txl, self.is_xlnet = kind == "gpt2", kind == "transfo-xl", kind == "xlnet"
        self.is_bert, self.is_distilbert = kind == "bert", kind == "distilbert"
        self.is_roberta = kind == "roberta"
        self.output_attentions = output_attentions
        self.masking_approach = masking_approach

    def get_representations(self, context, position):
        """{layer: vector [D]} of all neurons at one position of the prompt `context` (int64 [T]).

        Layer -1 is the word embedding.
        """
        values = self.base_run(context.reshape(-1)).representations(position)
        return {layer - 1: of_layer for layer, of_layer in enumerate(values)}

    # neurons

    def neuron_intervention(self, context, outputs, rep, layers, neurons, position, intervention_type="diff",
                            alpha=1.0):
        """Probabilities of the outputs when neurons at one position are changed, one row per intervention.

        Args:
            context: prompt, int64 [T].
            outputs: C lists of one token id.
            rep: {layer: vector [D]}: values that replace the neurons' ("replace") or that are added to them
                ("diff"), times `alpha`.
            layers: K layer numbers (-1 the embedding), shared by all rows.
            neurons: B lists of K neuron numbers: row b changes neuron `neurons[b][k]` of layer `layers[k]`
                for all k at once.
            position: index of the token.

        Returns: B lists of C probabilities.

        Raises:
            InputError: a layer or neuron outside the model, a ragged row, or an unknown intervention type.
        """
        return neuron_sweeps.neuron_intervention(self, context, outputs, rep, layers, neurons, position,
                                                 intervention_type, alpha)

    def neuron_intervention_experiment(self, word2intervention, intervention_type, layers_to_adj=[],
                                       neurons_to_adj=[], alpha=1, intervention_loc="all"):
        """`neuron_intervention_single_experiment` of each word, with a progress bar: {word: result}.

        Args:
            word2intervention: {word: Intervention}; the others as there.
        """
        settings = (intervention_type, layers_to_adj, neurons_to_adj, alpha, None, intervention_loc)
        words = tqdm(word2intervention.items(), desc=intervention_type, unit=" words")
        return {word: self.neuron_intervention_single_experiment(one, *settings) for word, one in words}

    def neuron_intervention_single_experiment(self, intervention, intervention_type, layers_to_adj=[],
                                              neurons_to_adj=[], alpha=1, bsize=None, intervention_loc="all",
                                              progress=None):
        """One stimulus under one type of intervention.

        Args:
            intervention: stimulus with the substitutes (word, man, woman) and two candidates.
            intervention_type: a key of INTERVENTION_TYPES. `*_indirect` runs the null prompt and takes the
                alternative's values, `*_direct` runs the alternative prompt and takes the null's, the
                differences are added to the null run.
            layers_to_adj, neurons_to_adj: neurons changed as well in every intervention (layer -1 the
                embedding); with intervention_loc "layer" one layer, with "neuron" the one set that is
                changed.
            alpha: factor on the value that replaces a neuron's, or on the difference that is added.
            bsize: interventions run at once; None chooses.
            intervention_loc: "all" every neuron of the model in turn, "layer" every neuron of one layer,
                "neuron" one set.
            progress: called with the number of interventions done.

        Returns: c1_base, c2_base, c1_alt1, c2_alt1, c1_alt2, c2_alt2 (probabilities without intervention on
        the null, man's and woman's prompt), c1_probs, c2_probs: float64 [L + 1, D], [1, D] or [1, 1] as
        intervention_loc says.

        Raises:
            InputError: a stimulus that is not of this form, or units outside the model.
        """
        options = SweepOptions(alpha, bsize)
        return neuron_sweeps.neuron_experiment(self, intervention, intervention_type, options, layers_to_adj,
                                               neurons_to_adj, intervention_loc, progress)

    # heads

    def attention_intervention(self, context, outputs, attn_override_data):
        """Probabilities of continuations when attention weights on the context are replaced.

        Args:
            context: int64 [T].
            outputs: lists of token ids.
            attn_override_data: dictionaries, one per layer: `layer` (0 to L - 1), `attention_override`
                [1, H, T, T] the weights that replace the model's, `attention_override_mask` [1, H, T, T],
                true for whole heads whose weights are replaced.

        Returns: a list of probabilities, exp of the mean token log-probability.

        Raises:
            InputError: a layer outside the model, or weights that do not fit the context.
        """
        return head_sweeps.attention_intervention(self, context, outputs, attn_override_data)

    def attention_intervention_experiment(self, intervention, effect, bsize=None, progress=None):
        """Every head, every attention layer and the whole model of one stimulus.

        Args:
            intervention: stimulus with two contexts x, x' of equal length and two candidates.
            effect: "indirect" runs x with weights computed on x', "direct" x' with weights computed on x.

        Returns: c1_head [L, H], c2_head, c1_layer [L], c2_layer, c1_model, c2_model: probabilities (exp of
        the mean token log-probability) of both candidates, float64.

        Raises:
            InputError: a stimulus or an effect that is not of this form.
        """
        return head_sweeps.heads_layers_and_model(self, intervention, effect, bsize, progress)

    def attention_intervention_single_experiment(self, intervention, effect, layers_to_adj, heads_to_adj,
                                                 search):
        """One set of heads (layers_to_adj[i], heads_to_adj[i]) changed together.

        With `search`, the set and every other head in turn.

        Returns: (p(c1), p(c2)), numbers; with `search` float64 [L, H] each, the set alone where the head is
        in it.

        Raises:
            InputError: a head outside the model.
        """
        return head_sweeps.head_experiment(self, intervention, effect, layers_to_adj, heads_to_adj, search)

"""Where the strongest heads look from the pronoun, in single examples.

    python attention_figures3.py -model smollm2-135m --do-filter True --split dev --examples 5 --heads 3

Reads OUT_DIR/winobias_data/attention_intervention_{M}_{filtered|unfiltered}_{split}.json, takes the heads
with the largest mean indirect effect and the examples with the largest model-level indirect effect, runs the
model on both contexts of each, and draws
OUT_DIR/results/attention_intervention/qualitative/winobias_{M}_{filter}_{split}_{rank}.pdf: the attention
that falls on each token of the context, with the female pronoun (x) and with the male one (x'). Above each
head stand its mean indirect effect over all examples and the 95% interval of that mean. The numbers go to
winobias_{M}_{filter}_{split}_attention.json beside them, from which make_report.py draws them.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mediation.errors import InputError
from mediation.files.storage import check_writable, write_json
from mediation.options import (
    Parser,
    add_masking_approach,
    add_model_options,
    exit_on_bad_input,
    positive,
    true_or_false,
)

if TYPE_CHECKING:
    from experiment import Model


def main(options: argparse.Namespace) -> None:
    """Strongest heads, strongest examples, their attention."""
    from mediation.effects.summaries import means_of_units
    from mediation.reports import plots
    from mediation.results.attention_results import ATTENTION_FOLDER, head_effects, read_results
    from mediation.results.attention_summaries import resampling_of
    from mediation.studies.attention import masking_suffix
    from utils import load_model

    check_writable(options.out_dir)
    out_dir = Path(options.out_dir)
    model = load_model(options)
    kind = "filtered" if options.do_filter else "unfiltered"
    label = f"{model.name}_{kind}_{options.split}{masking_suffix(model)}"
    path = out_dir / "winobias_data" / f"attention_intervention_{label}.json"
    if not path.exists():
        raise InputError(f"{path} is not there: run attention_intervention_winobias.py with these options "
                         "first")
    results = read_results(path)["results"]
    heads = head_effects(results, "indirect")
    means = heads.grid(means_of_units(heads.effects))
    low, high = map(heads.grid, resampling_of(results).of_means(heads.effects))
    if means.shape != (model.num_layers, model.num_heads):
        raise InputError(f"{path} has {means.shape[0]} layers of {means.shape[1]} heads, the model "
                         f"{model.num_layers} of {model.num_heads}: name its own model")
    order = np.argsort(-means, axis=None)[: options.heads]
    strongest_heads = [divmod(int(unit), model.num_heads) for unit in order]
    strongest = sorted(results, key=lambda entry: -entry["indirect_effect_model"])[: options.examples]
    folder, looked = out_dir / ATTENTION_FOLDER, []
    for rank, entry in enumerate(strongest, start=1):
        tokens, attention = attention_from_pronoun(model, entry)
        title = (f"{entry['base_string1']} ... c1: {entry['candidate1']} c2: {entry['candidate2']} "
                 f"(indirect effect {entry['indirect_effect_model']:.2f}, odds ratio - 1)")
        shown = {f"head {layer}-{head}\nmean {means[layer, head]:.3f}\n[{low[layer, head]:.3f}, "
                 f"{high[layer, head]:.3f}]": attention[:, layer, head] for layer, head in strongest_heads}
        figure = folder / f"winobias_{label}_{rank}.pdf"
        print("wrote", plots.attention_on_context(tokens, shown, title, figure))
        looked.append({"title": title, "tokens": tokens, "heads": {
            f"{layer}-{head}": np.round(attention[:, layer, head], 5).tolist()
            for layer, head in strongest_heads}})
    print("wrote", write_json(folder / f"winobias_{label}_attention.json", looked))


def attention_from_pronoun(model: "Model", entry: dict[str, Any]) -> tuple[list[str], np.ndarray]:
    """(tokens of the context as strings, attention [2, L, H, T] from its last token in x and x')."""
    import torch

    from mediation.model.attention import attention_weights
    from mediation.stimuli.prompts import begin_tokens

    tokenizer, begin = model.tokenizer, begin_tokens(model.tokenizer)
    ids = [begin + tokenizer(entry[name], add_special_tokens=False)["input_ids"]
           for name in ("base_string1", "base_string2")]
    contexts = [torch.tensor(of_context, device=model.device) for of_context in ids]
    with torch.no_grad():
        rows = torch.stack([attention_weights(model.model, model.parts, context)[:, :, -1]
                            for context in contexts])
    words = [[tokenizer.decode([token]).strip() for token in context] for context in contexts]
    tokens = [word if word == other else f"{word} / {other}" for word, other in zip(*words)]
    return tokens, rows.float().cpu().numpy()


if __name__ == "__main__":
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--do_filter", type=true_or_false, default=True, metavar="True|False",
                        help="which result file (default: True)")
    add_masking_approach(parser)
    parser.add_argument("--split", choices=("dev", "test"), default="dev",
                        help="which result file (default: dev)")
    parser.add_argument("--examples", type=positive, default=5, metavar="N",
                        help="figures to draw, strongest example first (default: 5)")
    parser.add_argument("--heads", type=positive, default=3, metavar="N",
                        help="strongest heads to show (default: 3)")
    parser.add_argument("--out_dir", default=".", metavar="D",
                        help="where winobias_data is (default: here)")
    parser.set_defaults(full_passes=False)
    chosen_options = parser.parse_args()
    with exit_on_bad_input():
        main(chosen_options)

"""What whole studies cost on models of other sizes, counted from the tasks of a plan.

    python -m benchmarks.costs -model smollm2-135m

The stimuli are in the tokens of the model that is named; the sizes are those that the others' configurations
publish. Nothing is run.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace

from benchmarks import load, parser
from mediation.options import exit_on_bad_input

EXAMPLES = 100  # of WinoBias, about as many as pass the filter


def sizes():
    """{name: Sizes}; biases and norms, which count for nothing, left out."""
    from mediation.studies.sizes import Sizes

    def gpt2(layers, width, heads):
        return Sizes(layers, width, heads, width // heads, 12 * width * width, 4 * width, 50257)

    def llama(layers, width, heads, groups, head, inner, vocabulary):
        of_attention = 2 * width * head * (heads + groups)
        return Sizes(layers, width, heads, head, of_attention + 3 * width * inner, inner, vocabulary)

    return {
        "DistilGPT-2": gpt2(6, 768, 12), "GPT-2 small": gpt2(12, 768, 12), "GPT-2 medium": gpt2(24, 1024, 16),
        "GPT-2 large": gpt2(36, 1280, 20), "GPT-2 XL": gpt2(48, 1600, 25),
        "SmolLM2-135M": llama(30, 576, 9, 3, 64, 1536, 49152),
        "Llama-3.2-1B": llama(16, 2048, 32, 8, 64, 8192, 128256),
        "Llama-3.2-3B": llama(28, 3072, 24, 8, 128, 8192, 128256),
        "Llama-3.1-8B": llama(32, 4096, 32, 8, 128, 14336, 128256),
        "Llama-3.1-70B": llama(80, 8192, 64, 8, 128, 28672, 128256),
    }


def main(options: argparse.Namespace) -> None:
    """One table per study."""
    from mediation.stimuli import professions, winobias
    from mediation.stimuli.interventions import Intervention
    from mediation.stimuli.templates import select_templates
    from mediation.studies.attention import build_interventions, tasks_of
    from mediation.studies.engine import StudyOptions
    from mediation.studies.estimated_trees import Gradients
    from mediation.studies.neurons import plan

    model = load(options)
    templates, chosen = list(select_templates(None).values()), professions.select(None, None)
    usable = {template: professions.usable(model.tokenizer, template, chosen)[0] for template in templates}
    words = dict.fromkeys(profession.word for of_template in usable.values() for profession in of_template)
    stimuli = [Intervention(model.tokenizer, template, [word, "man", "woman"], ["he", "she"])
               for word in words for template in templates
               if word in {profession.word for profession in usable[template]}]
    for method in ("exact", "screen", "gradient"):
        chosen_options = StudyOptions(method=method)
        gradients = Gradients(stimuli, "table", 4) if method != "exact" else None
        kinds = ("man_direct", "man_indirect", "woman_direct", "woman_indirect")
        tasks = {task.key: task for kind in kinds for stage in
                 plan(model, stimuli, kind, chosen_options, kind, gradients=gradients).stages
                 for task in stage}
        print(f"\n### Professions, --method {method}: {len(stimuli)} prompts, four types\n")
        table(list(tasks.values()), 4 * len(stimuli), neurons=True)
    examples = build_interventions(model, winobias.load("dev")[:EXAMPLES])
    print(f"\n### Heads: {len(examples)} examples of WinoBias, both effects\n")
    table(tasks_of(model, examples, "table", StudyOptions()), 2 * len(examples), neurons=False)


def table(tasks: Sequence, prompts: int, neurons: bool) -> None:
    """A row per model."""
    from mediation.studies.costs import total
    from mediation.studies.plan import CORE, GPU, in_words, size_of

    print("| model | interventions | operations | weights, and packed copies | shards | one core | "
          "a GPU |\n| --- | --- | --- | --- | --- | --- | --- |")
    for name, of_model in sizes().items():
        units = (of_model.units if neurons
                 else of_model.layers * of_model.heads + of_model.layers + 1)
        cost = total(in_size(tasks, of_model), of_model)
        print(f"| {name} | {units * prompts:,} | {cost.operations:.2g} | {size_of(2 * of_model.weights)} | "
              f"{size_of(cost.shards)} | {in_words(cost.operations / CORE)} | "
              f"{in_words(cost.operations / GPU)} |")


def in_size(tasks: Sequence, of_model) -> Iterator:
    """The tasks as a model of this size has them: one per layer where tasks are of a layer."""
    from mediation.studies.interpolated_trees import InterpolatedLayer

    for task in tasks:
        if not isinstance(task, InterpolatedLayer):
            yield task
        elif task.layer == 0:
            for layer in range(of_model.layers + 1):
                yield replace(task, layer=layer, name=f"{task.name}_{layer}")


if __name__ == "__main__":
    chosen_options = parser(__doc__).parse_args()
    with exit_on_bad_input():
        main(chosen_options)

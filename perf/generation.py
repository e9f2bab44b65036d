"""Speed of generation in batches against one prompt after another, and whether both say the same.

`python -m perf.generation`: questions of several lengths, greedy answers in fp32, alternately timed; the median counts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from lightning_unlearn import LitCausalLM
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.language.generation import generate
from lightning_unlearn.language.packaged import packaged_model

COUNTRIES = "France Italy Spain Japan Peru Cuba Kenya Norway Egypt Chile India Ghana Nepal Qatar Fiji Mali".split()  # noqa: SIM905
FORMS = ("What is the capital of {}?", "Tell me in one sentence what people in {} like to eat in the morning.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.generation", description=__doc__)
    parser.add_argument("--model", default=packaged_model(), help="hub id, folder or GGUF file")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--max_new_tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    module = LitCausalLM(args.model)
    questions = [form.format(country) for form in FORMS for country in COUNTRIES]
    prompt_format = module._prompt_format()
    prompts = prompt_format.prompts(questions)

    def one_by_one() -> list[str]:
        return [generate(module.model, prompt_format, [prompt], args.max_new_tokens)[0] for prompt in prompts]

    runs = {"one": one_by_one, "many": lambda: module.answer(questions, args.max_new_tokens, args.batch_size)}
    taken: dict[str, list[float]] = {name: [] for name in runs}
    texts: dict[str, list[str]] = {}
    with evaluating(module):
        module.answer(questions[:1], args.max_new_tokens)  # warms up
        for _ in range(args.repeats):
            for name, run in runs.items():
                start = time.process_time()
                texts[name] = run()
                taken[name].append(time.process_time() - start)
    one, many = (statistics.median(seconds) for seconds in taken.values())
    same = sum(a == b for a, b in zip(*texts.values(), strict=True))
    print(f"{len(questions)} answers one by one: {one:.1f} s; {args.batch_size} at a time: {many:.1f} s")
    print(f"times as fast: {one / many:.2f}; the same text: {same} of {len(questions)}")


if __name__ == "__main__":
    main()

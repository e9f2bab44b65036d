"""Speed of a judge: prompts one by one, in batches, and in batches with the examples that they share computed once.

`python -m perf.dialogue`: synthetic dialogues and 4 examples, fp32, alternately timed; the median of CPU time counts.
The three give equal scores.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch
from torch import Tensor

from lightning_unlearn import Dialogue, DialogueJudge, Turn
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.dialogue.label_reader import LabelReader
from lightning_unlearn.functional import expected_score
from lightning_unlearn.language.packaged import packaged_model

WISHES = ["a table for two", "a train to Leeds", "a film for tonight", "the weather in Lima", "a room near the station"]
ANSWERS = ["Which day do you mean?", "I have found three of them.", "It is booked, anything else?", "There is none."]


def dialogues(count: int, first: int = 0) -> list[Dialogue]:
    """Dialogues of 6 to 14 turns."""
    made = []
    for number in range(first, first + count):
        draw = random.Random(number)
        turns: list[Turn] = []
        for _ in range(draw.randint(3, 7)):
            wish = f"I would like {draw.choice(WISHES)}, at {draw.randint(1, 12)} o'clock if you can."
            turns += [Turn("user", wish), Turn("assistant", draw.choice(ANSWERS))]
        made.append(Dialogue(str(number), tuple(turns), (float(draw.randint(1, 5)),)))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf.dialogue", description=__doc__)
    parser.add_argument("--model", default=packaged_model(), help="hub id, folder or GGUF file")
    parser.add_argument("--dialogues", type=int, default=16)
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--max_tokens", type=int, default=8192)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    judge = DialogueJudge(args.model, shots=args.shots, pool=dialogues(args.shots, first=1000)).to(args.device)
    prompts = [prompt.ids for prompt in judge.prompts(dialogues(args.dialogues))]
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    ways = {"one by one": (1, False), "in batches": (len(prompts), False), "examples once": (len(prompts), True)}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, Tensor] = {}
    tokens: dict[str, int] = {}
    with evaluating(judge):
        LabelReader(judge.lm, args.max_tokens).read(prompts[:1], judge.label_tokens)  # warms up
        for _ in range(args.repeats):
            for way, (size, share) in ways.items():
                reader = LabelReader(judge.lm, args.max_tokens, share_prefixes=share)
                start = clock()
                parts = [prompts[place : place + size] for place in range(0, len(prompts), size)]
                found[way] = torch.cat([reader.read(part, judge.label_tokens) for part in parts])
                taken[way].append(clock() - start)
                tokens[way] = reader.tokens
    seconds = {way: statistics.median(times) for way, times in taken.items()}
    scores = {way: expected_score(log_probs, torch.tensor(judge.task.values)) for way, log_probs in found.items()}
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    print(f"{args.dialogues} dialogues, {args.shots} examples, prompts of {shortest} to {longest} tokens")
    for way in ways:
        apart = (scores[way] - scores["one by one"]).abs().max()
        print(
            f"{way}: {seconds[way]:.2f} s, {tokens[way]} tokens, {seconds['one by one'] / seconds[way]:.2f} times as "
            f"fast as one by one; largest difference of scores {apart:.1e}"
        )


if __name__ == "__main__":
    main()

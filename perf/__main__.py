"""`make bench`, or `python -m perf --help`: writes runs/bench/bench.json and bench.md."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lightning_unlearn import LitCausalLM
from lightning_unlearn.language.packaged import packaged_model

from .step import ENTRIES

PRECISIONS = ("32-true", "bf16-mixed")
LORA = ["plain LoRA", "SimNPO LoRA", "NPO LoRA"]


def gemm_rate(dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of a square matrix product, the best of some."""
    torch.set_num_threads(threads)
    n = 3072
    a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
    best = 0.0
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def measure(entry: str, precision: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "perf.step", entry, precision, args.model, str(args.threads), str(args.steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return {"entry": entry, "precision": precision, "error": done.stderr.strip().splitlines()[-1]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(results: list[dict[str, Any]], gemm: dict[str, float]) -> str:
    """Markdown, one block a precision, each entry against plain fine-tuning and against common practice."""
    blocks = []
    for precision in PRECISIONS:
        found = [r for r in results if r["precision"] == precision]
        by_name = {r["entry"]: r for r in found if "error" not in r}
        plain, usual = by_name.get("plain"), by_name.get("common practice NPO")
        lines = [
            f"### {precision}",
            "",
            "| entry | s per step | × plain | × common practice | peak GiB | above weights, optimizer, interpreter |",
            "|---|---|---|---|---|---|",
        ]
        for r in found:
            if "error" in r:
                lines.append(f"| {r['entry']} | failed: {r['error']} | | | | |")
                continue
            ratios = [f"{r['seconds'] / other['seconds']:.2f}" if other else "" for other in (plain, usual)]
            above = (r["peak_bytes"] - r["interpreter_bytes"] - r["bare_bytes"]) / 2**30
            lines.append(
                f"| {r['entry']} | {r['seconds']:.2f} | {ratios[0]} | {ratios[1]} | {r['peak_bytes'] / 2**30:.2f} "
                f"| {above:.2f} |"
            )
        if plain:
            rate = 6 * plain["weights"] * plain["tokens"] / plain["seconds"]
            lines += [
                "",
                f"Plain fine-tuning runs at {rate / 1e9:.0f} GFLOP/s (6 FLOP per weight and token, optimizer time "
                f"included), which is {100 * rate / gemm[precision]:.0f} % of the {gemm[precision] / 1e9:.0f} GFLOP/s "
                f"of a matrix product. Rows have {plain['tokens_a_row']:.0f} tokens.",
            ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m perf", description=__doc__)
    parser.add_argument("--model", default=packaged_model(), help="hub id, folder or GGUF file")
    parser.add_argument("--threads", type=int, default=max(1, torch.get_num_threads()))
    parser.add_argument("--steps", type=int, default=6, help="measured steps of each entry; the median counts")
    parser.add_argument("--entries", nargs="*", default=[*ENTRIES, *LORA])
    parser.add_argument("--output", type=Path, default=Path("runs/bench"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    folder = args.output / "model"
    LitCausalLM(args.model).save_pretrained(folder)  # which every entry opens quickly
    args.model = str(folder)
    gemm = {p: gemm_rate(d, args.threads) for p, d in zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True)}
    jobs = [(entry, precision) for precision in PRECISIONS for entry in args.entries]
    results = [measure(*job, args) for job in tqdm(jobs, desc="bench")]
    record = {"threads": args.threads, "gemm_flops": gemm, "results": results}
    (args.output / "bench.json").write_text(json.dumps(record, indent=2) + "\n")
    text = table(results, gemm)
    (args.output / "bench.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

"""A quick audit in one of several processes: `torchrun -m tests.audit.processes ORIGINAL UNLEARNED OUTPUT`."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from lightning_unlearn import run_audit
from tests.conftest import CAPITALS, question

ROWS = {
    "forget": [question(c) | {"paraphrased_question": f"Capital of {c}?"} for c in list(CAPITALS)[:3]],
    "retain": [question(c) for c in list(CAPITALS)[3:5]],
    "never_seen": [{"question": "What is the capital of Atlantis?", "answer": "It is Poseidonis."}],
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    run_audit(sys.argv[1], sys.argv[2], ROWS, sys.argv[3], depth="quick", precision="32")
    dist.destroy_process_group()

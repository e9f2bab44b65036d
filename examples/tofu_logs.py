# python examples/tofu_logs.py eval_log_aggregated.json --retain retain90/eval_log_aggregated.json
"""Derives every number of an evaluation log again, from what it keeps of each row.

Reads the logs of TOFU's authors (eval_log_aggregated.json) and of open-unlearning (TOFU_EVAL.json, MUSE_EVAL.json). The
authors' logs hold no numbers of sets: there, "logged" is the mean of the numbers that are stored for each row, and
"derived" comes from sums of losses, counts of tokens, and texts.
"""

from __future__ import annotations

import argparse
import math

from lightning_unlearn.language.eval_log_checks import Rederived, rederive
from lightning_unlearn.language.eval_logs import read_eval_log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("log", help="log of the model")
    parser.add_argument("--retain", help="log of the model retrained without the forget rows, for forget quality")
    arguments = parser.parse_args()
    log = read_eval_log(arguments.log)
    retrained = read_eval_log(arguments.retain) if arguments.retain else None
    numbers = rederive(log, retrained)
    print(f"{'metric':32} {'logged':>22} {'derived':>22} {'difference':>11} {'rows':>11}")
    for name, number in numbers.items():
        print(line(name, number))
    largest = max((n.difference for n in numbers.values() if n.difference is not None), default=math.nan)
    rows = max((n.rows for n in numbers.values() if n.rows is not None), default=math.nan)
    print(f"largest difference of a number of a set: {largest:.3g}; of a row: {rows:.3g}")
    print("\nWith the arithmetic truth ratio:")
    for name, number in rederive(log, retrained, "arithmetic").items():
        if "truth_ratio" in name.lower() or name in ("model_utility", "forget_quality"):
            print(f"{name:32} {number.derived:45.16g}")


def line(name: str, number: Rederived) -> str:
    logged = "-" if number.logged is None else f"{number.logged:.16g}"
    difference = "-" if number.difference is None else f"{number.difference:.2e}"
    rows = "-" if number.rows is None else f"{number.rows:.2e}"
    return f"{name:32} {logged:>22} {number.derived:22.16g} {difference:>11} {rows:>11}"


if __name__ == "__main__":
    main()

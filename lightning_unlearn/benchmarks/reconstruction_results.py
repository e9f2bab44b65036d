"""Results of the reconstruction benchmark: values by method and condition, and the claims they decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_unlearn.benchmarks.paired import PairedDifference, Verdict, paired_difference
from lightning_unlearn.reconstruction.sweep_results import SweepCondition

__all__ = ["CLEAN_LOSS", "Claim", "Decided", "ReconstructionResults"]

CLEAN_LOSS = 1.0
"""What SMUG may lose on clean measurements, in dB."""


class Claim(NamedTuple):
    """The claim that the PSNR of one method is above that of another, in dB.

    Args:
        better: The method that is claimed to be better.
        worse: The other method.
        condition: The condition of the claim.
        than: A condition whose difference is subtracted; the claim is then that the gap is larger than under it.
        bound: The difference is claimed to be above this number.
    """

    better: str
    worse: str
    condition: str
    than: str = ""
    bound: float = 0.0

    @property
    def text(self) -> str:
        """The claim in words.

        Example:
            >>> Claim("SMUG", "vanilla", "clean", bound=-1.0).text
            'SMUG loses at most 1 dB against vanilla, clean'
        """
        if self.than:
            return f"{self.better}'s lead over {self.worse} is larger: {self.condition} than {self.than}"
        if self.bound:
            return f"{self.better} loses at most {-self.bound:g} dB against {self.worse}, {self.condition}"
        return f"{self.better} is better than {self.worse}, {self.condition}"


class Decided(NamedTuple):
    """A claim, and the paired difference that decides it."""

    claim: Claim
    difference: PairedDifference
    verdict: Verdict


@dataclass(frozen=True)
class ReconstructionResults:
    """Results of the benchmark, read from its record.

    Args:
        record: As ``bench_reconstruction`` returns it.
    """

    record: Mapping[str, Any]

    @property
    def methods(self) -> list[str]:
        """Methods all of whose runs have results."""
        return [name for name in self.record["methods"] if not self.failed(name)]

    @property
    def eps(self) -> list[str]:
        """The names of the attacks, the weakest first."""
        return [SweepCondition("attack", strength).name for strength in self.record["conditions"]["eps"]]

    @property
    def conditions(self) -> list[str]:
        """The names of all conditions."""
        return list(self.runs(self.methods[0])[0]["test"])

    def failed(self, method: str) -> int:
        """Number of seeds on which the training diverged."""
        return sum("error" in run for run in self.record["methods"][method]["runs"])

    def runs(self, method: str) -> list[dict[str, Any]]:
        """Results of a method, a seed each."""
        return [run for run in self.record["methods"][method]["runs"] if "error" not in run]

    def values(self, method: str, condition: str, measure: str = "psnr") -> Tensor:
        """Numbers of a method, shape ``(seeds, images)``."""
        return torch.tensor([run["test"][condition][measure] for run in self.runs(method)], dtype=torch.float64)

    def by_seed(self, method: str, condition: str, measure: str = "psnr") -> list[float]:
        """Means over the images, one a seed."""
        return self.values(method, condition, measure).mean(1).tolist()

    def difference(self, better: str, worse: str, condition: str, measure: str = "psnr") -> PairedDifference:
        """The paired difference of two methods."""
        return paired_difference(self._difference(better, worse, condition, measure))

    def decided(self) -> list[Decided]:
        """The claims about methods that have been run, each decided by whether its interval is above the bound."""
        return [self._decide(claim) for claim in self._claims() if {claim.better, claim.worse} <= set(self.methods)]

    def verdict(self) -> tuple[Verdict, list[Decided]] | None:
        """Whether SMUG > RS-E2E > vanilla under the strongest attack, with at most 1 dB lost on clean measurements.

        Returns:
            The verdict and its three parts; ``None`` if one of the methods was not run.
        """
        strongest = self.eps[-1]
        parts = [
            Claim("RS-E2E", "vanilla", strongest),
            Claim("SMUG", "RS-E2E", strongest),
            Claim("SMUG", "vanilla", "clean", bound=-CLEAN_LOSS),
        ]
        if not {"vanilla", "RS-E2E", "SMUG"} <= set(self.methods):
            return None
        found = [self._decide(claim) for claim in parts]
        verdicts = [part.verdict for part in found]
        for verdict in ("does not hold", "undecided"):
            if verdict in verdicts:
                return verdict, found
        return "holds", found

    def _claims(self) -> list[Claim]:
        weakest, strongest = self.eps[0], self.eps[-1]
        order = [("RS-E2E", "vanilla"), ("SMUG", "RS-E2E"), ("SMUG", "vanilla")]
        claims = [Claim(*pair, condition) for condition in self.eps for pair in order]
        claims += [Claim("SMUG", "vanilla", "clean", bound=-CLEAN_LOSS), Claim("weighted SMUG", "SMUG", strongest)]
        claims += [Claim("SMUG", "adversarial training", condition) for condition in ("clean", strongest)]
        if strongest != weakest:
            claims.append(Claim("SMUG", "vanilla", strongest, than=weakest))
        return claims + [Claim("SMUG", "vanilla", name, than="clean") for name in self._shifted()]

    def _shifted(self) -> list[str]:
        """The strongest noise, and both ends of the accelerations and of the numbers of steps."""
        limits, recipe = self.record["conditions"], self.record["recipe"]
        kinds = [
            ("noise", limits["noise"][-1:], 0),
            ("acceleration", limits["rates"], recipe["acceleration"]),
            ("steps", limits["unrolled_steps"], recipe["unrolled_steps"]),
        ]
        ends = [(kind, end) for kind, given, own in kinds for end in _ends(given) if end != own]
        return [SweepCondition(kind, end).name for kind, end in ends]

    def _decide(self, claim: Claim) -> Decided:
        values = self._difference(claim.better, claim.worse, claim.condition)
        if claim.than:
            values = values - self._difference(claim.better, claim.worse, claim.than)
        difference = paired_difference(values)
        return Decided(claim, difference, difference.above(claim.bound))

    def _difference(self, better: str, worse: str, condition: str, measure: str = "psnr") -> Tensor:
        return self.values(better, condition, measure) - self.values(worse, condition, measure)


def _ends(given: Sequence[float]) -> list[float]:
    return sorted({min(given), max(given)}) if given else []

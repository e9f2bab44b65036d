"""Scores, the exact threshold, and masks as bits."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from lightning_unlearn.functional.saliency.bits import apply_mask_, pack_mask, unpack_mask
from lightning_unlearn.functional.saliency.gradient import gradient_score
from lightning_unlearn.functional.saliency.magnitude import magnitude_score
from lightning_unlearn.functional.saliency.overlap import mask_iou
from lightning_unlearn.functional.saliency.random import random_score
from lightning_unlearn.functional.saliency.snip import snip_score
from lightning_unlearn.functional.saliency.threshold import Place, top_mask, top_threshold
from lightning_unlearn.functional.saliency.wagle import wagle_score
from lightning_unlearn.functional.saliency.wanda import top_of_each_row, wanda_score

THETA = torch.tensor([2.0, -1.0, 0.5, 0.1])
FORGET = torch.tensor([1.0, 0.5, -2.0, 3.0])
RETAIN = torch.tensor([0.1, -0.2, 0.4, 0.0])


def top(scores: Tensor, k: int) -> Tensor:
    return top_mask(scores, top_threshold([scores], k))


@pytest.mark.parametrize(
    ("gamma", "scores", "kept"),
    [
        (1e9, [2.0, 0.5, 1.0, 0.3], {0, 2}),
        (1.0, [1.9, 0.4, 0.2, 0.3], {0, 1}),
        (0.1, [1.0, 0.5, 7.0, 0.3], {2, 0}),
        (1e-6, [99998.0, 99999.5, 799999.0, 0.3], {2, 1}),
    ],
)
def test_wagle_by_hand(gamma: float, scores: list[float], kept: set[int]) -> None:
    found = wagle_score(THETA, FORGET, RETAIN, gamma)
    torch.testing.assert_close(found, torch.tensor(scores), rtol=1e-6, atol=1e-6)
    assert set(top(found, 2).nonzero().flatten().tolist()) == kept


def test_wagle_is_blind_to_the_sign_and_scale_of_the_forget_gradient() -> None:
    mask = top(wagle_score(THETA, FORGET, RETAIN, 0.1), 2)
    for c in (-1.0, 7.0, -0.25):
        assert torch.equal(top(wagle_score(THETA, c * FORGET, RETAIN, 0.1), 2), mask)
    torch.testing.assert_close(wagle_score(THETA, FORGET, 4 * RETAIN, 0.1), wagle_score(THETA, FORGET, RETAIN, 0.1 / 4))


def test_wagle_without_a_retain_gradient_is_snip_and_ranks_unused_weights_last() -> None:
    assert torch.equal(wagle_score(THETA, FORGET, torch.zeros(4)), snip_score(THETA, FORGET))
    found = wagle_score(THETA, FORGET * torch.tensor([1, 0, 1, 1]), RETAIN)
    assert found.argmin() == 1
    assert found[1] == 0


def test_without_the_magnitude_term_only_the_interaction_is_left() -> None:
    found = wagle_score(THETA, FORGET, RETAIN, 0.5, include_magnitude_term=False)
    torch.testing.assert_close(found, (RETAIN * FORGET).abs() / 0.5)


def test_the_baselines_by_hand() -> None:
    assert snip_score(THETA, FORGET).tolist() == [2.0, 0.5, 1.0, pytest.approx(0.3)]
    assert gradient_score(FORGET).tolist() == [1.0, 0.5, 2.0, 3.0]
    assert magnitude_score(THETA).tolist() == THETA.abs().tolist()
    weight, norm = torch.tensor([[2.0, -1.0], [1.0, 3.0]]), torch.tensor([1.0, 3.0])
    assert wanda_score(weight, norm).tolist() == [[2.0, 3.0], [1.0, 9.0]]
    state = torch.get_rng_state()
    assert torch.equal(random_score((2, 3), 1), random_score((2, 3), 1))
    assert not torch.equal(random_score((2, 3), 1), random_score((2, 3), 2))
    assert torch.equal(torch.get_rng_state(), state)


def test_wanda_keeps_as_many_of_each_row() -> None:
    scores = torch.rand(7, 10, generator=torch.Generator().manual_seed(0))
    mask = top_of_each_row(scores, 0.35)
    assert (mask.sum(1) == 3).all()
    assert torch.equal(mask, scores >= scores.topk(3, dim=1).values[:, -1:])


# ---- threshold -----------------------------------------------------------------------------------------------------


def by_sorting(scores: Tensor, k: int) -> Tensor:
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().argsort(descending=True, stable=True)[:k]] = True
    return mask.view(scores.shape)


@pytest.mark.parametrize("n", [1, 7, 1000, 1_000_000])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "bf16", "wide"])
@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.95, 1.0])
def test_the_threshold_is_what_sorting_finds(n: int, kind: str, density: float) -> None:
    generator = torch.Generator().manual_seed(n)
    normal = torch.randn(n, generator=generator).abs()
    scores = {
        "normal": normal,
        "ties": (normal * 3).floor(),
        "zeros": torch.where(normal > 0.7, normal, 0.0),
        "bf16": normal.bfloat16().float(),
        "wide": (normal * 80 - 80).exp(),  # down to subnormal numbers
    }[kind]
    mask = top(scores, int(density * n))
    assert int(mask.sum()) == int(density * n)
    assert torch.equal(mask, by_sorting(scores, int(density * n)))


def test_ten_million_scores_agree_with_topk() -> None:
    scores = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0)).abs()
    k = 1_234_567
    assert top_threshold([scores], k).value == scores.topk(k).values[-1]
    assert int(top(scores, k).sum()) == k


def test_minus_zero_is_zero_and_nan_is_an_error() -> None:
    assert top(torch.tensor([-0.0, 1.0, 0.0]), 2).tolist() == [True, True, False]
    assert top(torch.tensor([math.inf, 1.0, 0.0]), 1).tolist() == [True, False, False]
    for bad in (math.nan, -1.0):
        with pytest.raises(ValueError, match="negative or NaN"):
            top_threshold([torch.tensor([1.0, bad])], 1)
    with pytest.raises(ValueError, match="only 2"):
        top_threshold([torch.ones(2)], 3)
    with pytest.raises(TypeError, match="float32"):
        top_threshold([torch.ones(2).double()], 1)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [0, 5, 60, 61, 143])
def test_any_split_over_processes_gives_the_same_mask(ranks: int, dim: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = [torch.randint(0, 4, shape, generator=generator).float() for shape in ((9, 7), (2, 5, 8))]
    expected = by_sorting(torch.cat([w.flatten() for w in whole]), k)

    pieces: list[tuple[int, int, int, Tensor, Place]] = []  # rank, tensor, start
    offset = 0
    for number, tensor in enumerate(whole):
        start = 0
        for holder, part in enumerate(tensor.chunk(ranks, dim)):
            starts = [0] * tensor.dim()
            starts[dim] = start
            place = Place(offset, tuple(tensor.shape), tuple(starts), tuple(part.shape))
            pieces.append((holder, number, start, part, place))
            start += part.shape[dim]
        offset += tensor.numel()

    cutoffs = in_lockstep(
        [([p[3] for p in pieces if p[0] == r], [p[4] for p in pieces if p[0] == r]) for r in range(ranks)],
        k,
    )
    assert len(set(cutoffs)) == 1
    found = [torch.zeros_like(w, dtype=torch.bool) for w in whole]
    for _, number, start, part, place in pieces:
        found[number].narrow(dim, start, part.shape[dim]).copy_(top_mask(part, cutoffs[0], place))
    assert torch.equal(torch.cat([f.flatten() for f in found]), expected)


def in_lockstep(shares: list[tuple[list[Tensor], list[Place]]], k: int) -> list[object]:
    """Run the threshold in a thread for each process, adding their histograms up."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    barrier, slots = Barrier(len(shares), timeout=300), [torch.empty(0)] * len(shares)

    def run(rank: int) -> object:
        def all_reduce(counts: Tensor) -> None:
            slots[rank] = counts.clone()
            barrier.wait()
            counts.copy_(torch.stack(slots).sum(0))
            barrier.wait()

        scores, places = shares[rank]
        return top_threshold(scores, k, places, all_reduce)

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(run, range(len(shares))))


BILLION = """
import resource, torch
from lightning_unlearn.functional.saliency import top_threshold

n = 1_000_000_000
block = torch.randn(1 << 24).abs()
scores = torch.empty(n)
for i, part in enumerate(scores.split(1 << 24)):
    torch.mul(block[: len(part)], 1 + i / 64, out=part)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cutoff = top_threshold([scores], n // 10)
extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
above = sum(int((part > cutoff.value).sum()) for part in scores.split(1 << 24))
equal = sum(int((part == cutoff.value).sum()) for part in scores.split(1 << 24))
assert above < n // 10 <= above + equal
print(extra)
"""


@pytest.mark.slow
@pytest.mark.alone
def test_a_billion_scores_take_no_memory_to_speak_of() -> None:
    done = subprocess.run([sys.executable, "-c", BILLION], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5, f"{done.stdout} GiB on top of the scores"


# ---- bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (1,), (8,), (9,), (3, 5), (2, 3, 4)])
def test_packing_comes_back(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack_mask(mask)
    assert packed.dtype == torch.uint8
    assert packed.numel() == math.ceil(mask.numel() / 8)
    assert torch.equal(unpack_mask(packed, shape), mask)


def test_a_packed_mask_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match="has 2 bytes"):
        unpack_mask(torch.zeros(3, dtype=torch.uint8), (9,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("n", [1, 100, 400])
def test_masking_is_bit_for_bit(dtype: torch.dtype, contiguous: bool, n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(n, 401, generator=generator).to(dtype)
    before.view(-1)[:5] = torch.tensor([-0.0, 0.0, math.inf, math.nan, -math.inf])
    after = torch.full_like(before, math.nan)
    after.view(-1)[7:] = torch.randn(n * 401 - 7, generator=generator).to(dtype)
    mask = torch.rand(n, 401, generator=generator) < 0.5
    mask.view(-1)[:5] = False
    value = apply_mask_(before.clone(), ~mask)
    target = after.clone() if contiguous else after.t().contiguous().t()
    assert apply_mask_(target, mask, value) is target
    assert torch.equal(bits(target), bits(torch.where(mask, after, before)))
    assert torch.equal(bits(apply_mask_(after.clone(), mask)), bits(torch.where(mask, after, 0.0)))


def test_a_mask_of_numbers_is_refused() -> None:
    with pytest.raises(TypeError, match=r"live must be boolean, but got torch\.int8"):
        apply_mask_(torch.ones(2), torch.tensor([-1, 0], dtype=torch.int8))


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


def test_iou() -> None:
    a, b = {"w": random_score((100_000,), 1) < 0.1}, {"w": random_score((100_000,), 2) < 0.1}
    assert mask_iou(a, a) == 1
    assert mask_iou(a, b) == pytest.approx(0.1 / 1.9, abs=3e-3)
    assert mask_iou({"w": ~a["w"]}, a) == 0
    with pytest.raises(ValueError, match="differ in name or shape"):
        mask_iou(a, {"v": a["w"]})

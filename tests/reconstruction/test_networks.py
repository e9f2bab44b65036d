"""Unrolled networks and denoisers."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from lightning_unlearn import (
    DIDN,
    ConvDenoiser,
    ISTANet,
    LitDenoiser,
    MoDL,
    MultiCoilMRI,
    ProximalBlock,
    UnrolledNetwork,
)
from lightning_unlearn.functional import (
    as_channels,
    birdcage_maps,
    column_mask,
    data_consistency,
    estimate_lipschitz,
    unrolled_stability_bound,
)


def problem(batch: int = 2, dtype: torch.dtype = torch.complex64) -> tuple[MultiCoilMRI, Tensor]:
    operator = MultiCoilMRI(birdcage_maps(3, 12, 16, dtype=dtype)[None], column_mask(16, 2))
    image = torch.randn(batch, 12, 16, dtype=dtype, generator=torch.Generator().manual_seed(0))
    return operator, operator.A(image)


def networks(**options: bool) -> list[UnrolledNetwork]:
    torch.manual_seed(0)
    denoiser = ConvDenoiser(channels=6, depth=3)
    return [MoDL(denoiser, steps=3, weight=0.5, **options), ISTANet(steps=3, channels=6, **options)]


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def test_modl_is_its_recursion() -> None:
    operator, k = problem()
    network, z = networks()[0], operator.A_adjoint(k)
    image, states = network(operator, k)
    x = z
    for n in range(3):
        torch.testing.assert_close(states[n], x)
        d = network.denoiser(as_channels(x))
        x = data_consistency(operator.normal, z, torch.complex(d[:, 0], d[:, 1]), 0.5)
    torch.testing.assert_close(image, x)


class ChannelsAdded(nn.Module):
    """A denoiser that returns more channels than two, or with 0 more and a crop, smaller images."""

    def __init__(self, more: int, crop: int = 0) -> None:
        super().__init__()
        self.more, self.crop = more, crop

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x[:, : self.more]], 1)[..., self.crop :, :]


@pytest.mark.parametrize(("more", "crop", "shape"), [(1, 0, "(2, 3, 12, 16)"), (0, 11, "(2, 2, 1, 16)")])
def test_a_denoiser_of_another_shape_is_refused(more: int, crop: int, shape: str) -> None:
    operator, k = problem()
    denoiser = ChannelsAdded(more, crop)
    with pytest.raises(ValueError, match=re.escape(f"ChannelsAdded gives shape {shape}. Use two channels")):
        MoDL(denoiser, steps=1)(operator, k)
    with pytest.raises(ValueError, match=re.escape(f"ChannelsAdded gives shape {shape}. Use two channels")):
        LitDenoiser(denoiser)(operator.A_adjoint(k))


def test_modl_of_a_perfect_denoiser_gives_the_image() -> None:
    operator, _ = problem()
    target = torch.randn(2, 12, 16, dtype=torch.complex64)
    out = MoDL(Halved(), steps=2)(operator, operator.A(target), denoise=lambda x, step: target)
    torch.testing.assert_close(out.image, target, atol=1e-5, rtol=0)


def test_ista_net_is_its_recursion() -> None:
    operator, k = problem()
    torch.manual_seed(0)
    network = ISTANet(steps=3, channels=6)
    image, states = network(operator, k)
    x = z = operator.A_adjoint(k)
    for block, r in zip(network.denoiser, states, strict=True):
        torch.testing.assert_close(r, x - 0.5 * operator.A_adjoint(operator.A(x) - k))
        features = block.analysis(as_channels(r))
        shrunk = features.sign() * (features.abs() - 0.01).clamp_min(0)
        x = torch.view_as_complex(block.synthesis(shrunk).permute(0, 2, 3, 1).contiguous())
    torch.testing.assert_close(image, x)
    assert not torch.allclose(image, z)


def test_the_symmetry_loss_is_0_where_the_parts_are_inverse() -> None:
    block = ProximalBlock(channels=4)
    network = ISTANet(steps=1, channels=4)
    network.denoiser[0] = block
    r = torch.rand(2, 5, 6).to(torch.complex64)
    with torch.no_grad():
        for stack in (block.analysis, block.synthesis):
            for layer in (stack[0], stack[2]):
                layer.weight.zero_()
                layer.weight[0, 0, 1, 1] = layer.weight[1, 1, 1, 1] = 1
    assert network.symmetry_loss([r + 1j]).item() == 0
    assert network.symmetry_loss([-r]).item() == pytest.approx(r.real.square().mean().item() / 2)


@pytest.mark.parametrize("index", [0, 1])
def test_a_replaced_denoiser_sees_every_state(index: int) -> None:
    operator, k = problem()
    network = networks()[index]
    seen: list[tuple[int, Tensor]] = []

    def denoise(x: Tensor, step: int) -> Tensor:
        seen.append((step, x))
        return network.denoise(x, step)

    replaced = network(operator, k, steps=2, denoise=denoise)
    assert [step for step, _ in seen] == [0, 1]
    assert all(torch.equal(x, state) for (_, x), state in zip(seen, replaced.states, strict=True))
    assert torch.equal(replaced.image, network(operator, k, steps=2).image)


def test_modl_goes_on_beyond_its_steps_and_ista_net_has_no_weights_for_more() -> None:
    operator, k = problem()
    modl, ista = networks()
    assert len(modl(operator, k, steps=5).states) == 5
    with pytest.raises(ValueError, match="3 phases with weights of their own, and no step 4"):
        ista(operator, k, steps=5)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        modl(operator, k, steps=0)


@pytest.mark.parametrize("index", [0, 1])
def test_checkpointing_gives_the_same_gradients_of_fewer_kept_tensors(index: int) -> None:
    operator, k = problem()
    k.requires_grad_()
    gradients, kept = [], []
    for checkpointing in (False, True):
        network, sizes = networks(checkpointing=checkpointing)[index], []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = network(operator, k).image.abs().square().sum()
        gradients.append(torch.autograd.grad(loss, [k, *network.parameters()]))
        kept.append(sum(sizes))
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, again, rtol=1e-5, atol=1e-6)
        assert plain.abs().max() > 0
    assert kept[1] < 0.6 * kept[0]


def test_the_gradient_of_the_measurements_comes_through_data_consistency_too() -> None:
    """Without it an attack sees the first state only, which here has no part in the image at all."""
    operator, k = problem()
    k.requires_grad_()
    image = MoDL(Halved(), steps=2)(operator, k, denoise=lambda x, step: torch.zeros_like(x)).image
    (of_k,) = torch.autograd.grad(image.abs().square().sum(), k)
    assert of_k.abs().max() > 0.1


@pytest.mark.parametrize("steps", [1, 4])
def test_an_unrolled_network_stays_within_its_bound(steps: int) -> None:
    operator, k = problem(1, torch.complex128)
    network = MoDL(Halved(), steps=steps, tolerance=1e-10)
    value = estimate_lipschitz(lambda y: network.forward(operator, y).image, k, iterations=4).item()
    # Half of a pixel's value for each step in what is not measured; in what is, (z + x/2)/2.
    assert 0.5 < value <= unrolled_stability_bound(0.5, steps)


def test_precisions() -> None:
    operator, k = problem()
    for network in networks():
        with torch.autocast("cpu", torch.bfloat16):
            low = network(operator, k).image
        assert low.dtype == torch.complex64
        torch.testing.assert_close(low, network(operator, k).image, atol=0.05, rtol=0)
        operator128, k128 = problem(dtype=torch.complex128)
        assert network.double()(operator128, k128).image.dtype == torch.complex128


@pytest.mark.parametrize(("blocks", "parameters"), [(2, 3_372_984), (3, 5_021_761)])
def test_didn_has_the_published_layers(blocks: int, parameters: int) -> None:
    network = DIDN(channels=64, blocks=blocks)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    strides = [m for m in convolutions if m.stride == (2, 2)]
    shuffles = [m for m in network.modules() if isinstance(m, nn.PixelShuffle)]
    assert (len(convolutions), len(strides), len(shuffles)) == (5 + 14 * blocks, 1 + 2 * blocks, 1 + 2 * blocks)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_didn_starts_near_the_identity_and_pads_and_crops_as_one() -> None:
    torch.manual_seed(0)
    network, image = DIDN(channels=8, blocks=2), torch.randn(1, 2, 16, 24)
    weights = torch.cat([m.weight.flatten() for m in network.modules() if isinstance(m, nn.Conv2d)])
    assert weights.std().item() == pytest.approx(0.02, rel=0.05)
    assert (network(image) - image).abs().max() < 0.05
    inner = image[..., 3:13, 3:19]  # 10 by 16: padded by 3 and 3 rows of 0
    padded = torch.zeros(1, 2, 16, 16)
    padded[..., 3:13, :] = inner
    torch.testing.assert_close(network(inner), network(padded)[..., 3:13, :])


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 8), (13, 18)])
def test_denoisers_keep_the_shape(size: tuple[int, int]) -> None:
    image = torch.randn(2, 2, *size)
    for network in (DIDN(channels=4, blocks=1), ConvDenoiser(4, 2), ProximalBlock(4)):
        assert network(image).shape == image.shape


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DIDN(channels=6), "channels must be a multiple of 4"),
        (lambda: DIDN(blocks=0), "blocks must be at least 1"),
        (lambda: ConvDenoiser(depth=1), "depth must be at least 2"),
        (lambda: MoDL(Halved(), weight=0.0), "weight must be greater than 0"),
        (lambda: MoDL(Halved(), steps=0), "steps must be at least 1"),
        (lambda: ISTANet(steps=0), "steps must be at least 1"),
    ],
)
def test_numbers_out_of_range_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()

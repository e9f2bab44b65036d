"""How far two sets of images are apart, and how well images fit their prompts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, NoReturn

import torch
import torchmetrics
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from lightning_unlearn.core.checks import finite
from lightning_unlearn.core.modes import evaluating

__all__ = [
    "FID",
    "KID",
    "CLIPScore",
    "PenultimateFeatures",
    "clip_similarity",
    "feature_distance",
    "frechet_distance",
    "load_clip",
]


def frechet_distance(mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor) -> Tensor:
    r"""Squared Fréchet distance of two normal distributions, which FID takes of features.

    $$\|\mu_1 - \mu_2\|^2 + \operatorname{tr}\Sigma_1 + \operatorname{tr}\Sigma_2
    - 2 \operatorname{tr}\big(\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2}\big)^{1/2}$$

    In double precision; covariances need not have full rank.

    Args:
        mean: $\mu_1$, shape ``(D,)``.
        covariance: $\Sigma_1$, symmetric and positive semidefinite, shape ``(D, D)``.
        other_mean: $\mu_2$, shape ``(D,)``.
        other_covariance: $\Sigma_2$, shape ``(D, D)``.

    Returns:
        Scalar, fp64, at least 0 up to rounding.

    Example:
        >>> frechet_distance(torch.zeros(2), torch.eye(2), torch.tensor([3.0, 4.0]), torch.eye(2))
        tensor(25., dtype=torch.float64)

    References:
        Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium*,
        arXiv:1706.08500, eq. 6.
    """
    a, b = covariance.double(), other_covariance.double()
    # The trace is the nuclear norm of the product of the roots: nothing is squared, so rounding is not rooted.
    between = torch.linalg.svdvals(_root(a) @ _root(b)).sum()
    return (mean.double() - other_mean.double()).square().sum() + a.trace() + b.trace() - 2 * between


class PenultimateFeatures(nn.Module):
    """What a classifier gives to its last linear layer, as features of images.

    The classifier runs without gradients and in evaluation mode, whatever mode the metric or its owner is set to. It
    does its own preprocessing: images reach it as they are.

    Args:
        network: Any classifier, or a judge that is a module, such as
            [`MiniatureJudge`][lightning_unlearn.MiniatureJudge].
        layer: Name of the linear layer whose input the features are; by default the last one.

    Raises:
        TypeError: If the classifier is no module, or the layer not linear.
        ValueError: If there is no such layer, or its input is not one vector an image.

    Example:
        >>> features = PenultimateFeatures(nn.Sequential(nn.Flatten(), nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 2)))
        >>> features.num_features, features(torch.rand(5, 3, 2, 2)).shape
        (3, torch.Size([5, 3]))
    """

    def __init__(self, network: nn.Module, layer: str | None = None) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"Features are read inside a torch module, but the network is a {type(network).__name__}. Pass the "
                "module that it calls."
            )
        modules = dict(network.named_modules())
        if layer is None:
            layer = next((n for n in reversed(modules) if isinstance(modules[n], nn.Linear)), None)
        if layer is None or layer not in modules:
            raise ValueError(
                f"{type(network).__name__} has no {'linear layer' if layer is None else f'layer {layer!r}'}."
            )
        last = modules[layer]
        if not isinstance(last, nn.Linear):
            raise TypeError(f"Layer {layer!r} is a {type(last).__name__}, but it must be a Linear.")
        self.network, self.layer = network, layer
        self.num_features: int = last.in_features

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(B, num_features)``, fp32, of what the network takes for a batch."""
        seen: list[Tensor] = []
        last = self.network.get_submodule(self.layer)
        handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with evaluating(self.network):
                self.network(images)
        finally:
            handle.remove()
        shapes = [tuple(x.shape) for x in seen]
        if shapes != [(len(images), self.num_features)]:
            raise ValueError(
                f"Layer {self.layer!r} must read one vector an image, ({len(images)}, {self.num_features}), but read "
                f"{shapes}. Name another layer."
            )
        return seen[0].float()


def feature_distance(features: nn.Module, images: Tensor, others: Tensor) -> Tensor:
    r"""Cosine distance $1 - \cos(f(x), f(y))$ of the features of paired images, such as those of one prompt and seed.

    It stands where papers print LPIPS, but is not comparable with it.

    Args:
        features: Gives ``(B, D)`` for a batch.
        images: Shape ``(B, ...)``.
        others: Same shape.

    Returns:
        Shape ``(B,)``, in [0, 2].

    Raises:
        ValueError: If there are not as many of both.

    Example:
        >>> feature_distance(nn.Identity(), torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor([1.])
    """
    if images.shape != others.shape:
        raise ValueError(f"Images are compared in pairs, but have shapes {tuple(images.shape)}, {tuple(others.shape)}.")
    return 1 - torch.cosine_similarity(features(images), features(others), dim=1)


class FID(FrechetInceptionDistance):
    r"""Fréchet distance of the features of real and of generated images, as if these were normally distributed.

    $$\|\mu_r - \mu_g\|^2 + \operatorname{tr}\big(\Sigma_r + \Sigma_g - 2 (\Sigma_r \Sigma_g)^{1/2}\big)$$

    Sums are kept in double precision, and added up over processes. The distance is
    [`frechet_distance`][lightning_unlearn.diffusion.metrics.images.frechet_distance],
    which stays right where covariances have
    not full rank; that of torchmetrics then ends below zero. The estimate is biased, the more so the fewer the
    images; with no more images than features a covariance has not even full rank: take
    [`KID`][lightning_unlearn.diffusion.metrics.images.KID]
    then. Values compare only where the features, the number of images
    and how they were resized and stored are the same.

    Args:
        features: Gives ``(B, D)`` for a batch, and says ``D`` as its ``num_features``, such as
            [`PenultimateFeatures`][lightning_unlearn.diffusion.metrics.images.PenultimateFeatures].
            Images reach it as they are.
            By default the 2048 features of Inception v3, whose weights torch-fidelity downloads; these take images
            with colours in [0, 1].
        reset_real_features: Whether ``reset`` forgets the real images too; without it, one reference serves many
            models.

    Raises:
        ImportError: If torch-fidelity is missing, but the features are Inception's.
        ValueError: If the number of features is unknown, there are fewer than two images of a kind, or one has NaN.

    Example:
        >>> identity = nn.Identity()
        >>> identity.num_features = 2
        >>> fid, square = FID(identity), torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> fid.update(square, real=True)
        >>> fid.update(square + torch.tensor([3.0, 4.0]), real=False)
        >>> fid.compute()
        tensor(25.)

    References:
        Heusel et al., *GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium*,
        arXiv:1706.08500.
    """

    def __init__(self, features: nn.Module | None = None, reset_real_features: bool = True, **kwargs: Any) -> None:
        if features is not None and not isinstance(getattr(features, "num_features", None), int):
            raise ValueError(
                f"{type(features).__name__} does not say how many features it gives. Set its num_features, or wrap a "
                "classifier in PenultimateFeatures."
            )
        super().__init__(_features(features), reset_real_features, normalize=features is None, **kwargs)

    def update(self, imgs: Tensor, real: bool) -> None:
        """Count a batch of real or of generated images."""
        finite("images", imgs)
        super().update(imgs, real)

    def compute(self) -> Tensor:
        """The distance, a scalar."""
        counts = {"real": int(self.real_features_num_samples), "generated": int(self.fake_features_num_samples)}
        if min(counts.values()) < 2:
            _refuse(
                self,
                f"FID needs two images of either kind at least, but got {counts['real']} real and "
                f"{counts['generated']} generated ones. Call update with real=True and with real=False.",
            )
        if min(counts.values()) <= len(self.real_features_sum):
            warnings.warn(
                f"FID of {counts['real']} real and {counts['generated']} generated images is biased: it needs more "
                f"than the {len(self.real_features_sum)} features. Take more images, or KID.",
                stacklevel=2,
            )
        real = _moments(self.real_features_sum, self.real_features_cov_sum, self.real_features_num_samples)
        fake = _moments(self.fake_features_sum, self.fake_features_cov_sum, self.fake_features_num_samples)
        return frechet_distance(*real, *fake).clamp(min=0).float()


class KID(KernelInceptionDistance):
    r"""Unbiased squared maximum mean discrepancy of features, for real and generated images.

    $$\frac{1}{m(m-1)}\sum_{i \ne j}\big(k(x_i, x_j) + k(y_i, y_j)\big) - \frac{2}{m^2}\sum_{i,j} k(x_i, y_j), \qquad
    k(x, y) = \Big(\frac{x^\top y}{D} + 1\Big)^3$$

    Mean and standard deviation over random subsets of $m$ images. It is right on average for any number of images, so
    for equal distributions it is as often negative as positive. All features are kept.

    Args:
        features: As for [`FID`][lightning_unlearn.diffusion.metrics.images.FID], but need not say its ``num_features``.
        subsets: Number of subsets.
        subset_size: $m \ge 2$; at most the number of images of either kind.
        reset_real_features: As for FID.
        seed: Seed of the subsets; the global random numbers are left alone.

    Raises:
        ImportError: If torch-fidelity is missing, but the features are Inception's.
        ValueError: If there are fewer images of a kind than a subset has, a number is out of range, or an image has
            NaN.

    Example:
        >>> kid, square = KID(nn.Identity(), 1, 4), torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
        >>> kid.update(square, real=True)
        >>> kid.update(square, real=False)
        >>> kid.compute()[0]
        tensor(-1.0729)

    References:
        Bińkowski et al., *Demystifying MMD GANs*, arXiv:1801.01401.
    """

    def __init__(
        self,
        features: nn.Module | None = None,
        subsets: int = 100,
        subset_size: int = 1000,
        reset_real_features: bool = True,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        if subsets < 1:
            raise ValueError(f"subsets must be at least 1, but got {subsets}.")
        if subset_size < 2:
            raise ValueError(f"subset_size must be at least 2, but got {subset_size}: no other pair is unbiased.")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*save all extracted features")
            super().__init__(
                _features(features),
                subsets,
                subset_size,
                reset_real_features=reset_real_features,
                normalize=features is None,
                **kwargs,
            )
        self.seed = seed
        # Of one tensor a process: with one a batch, processes that have unlike numbers of batches wait for ever.
        for name in ("real_features", "fake_features"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, imgs: Tensor, real: bool) -> None:
        """Count a batch of real or of generated images."""
        finite("images", imgs)
        super().update(imgs, real)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation over the subsets, scalars."""
        # After a gather over processes the features of a kind are one tensor, else a list.
        real, generated = (sum(map(len, _listed(x))) for x in (self.real_features, self.fake_features))
        if min(real, generated) < self.subset_size:
            _refuse(
                self,
                f"KID draws subsets of {self.subset_size} images, but got {real} real and {generated} generated ones. "
                f"Take more images, or a subset_size of {min(real, generated)} or less.",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return super().compute()


def load_clip(model: str) -> tuple[Any, Any]:
    """A CLIP model and its processor, from a folder of ``save_pretrained`` or the hub.

    Weights are read from safetensors files only.

    Args:
        model: Folder, which needs no network, or hub id, such as ``openai/clip-vit-large-patch14``.

    Returns:
        ``CLIPModel`` in evaluation mode, and ``CLIPProcessor``.

    Raises:
        ImportError: If transformers is missing.
    """
    try:
        from transformers import CLIPModel, CLIPProcessor
    except ImportError:
        raise ImportError('CLIPScore needs transformers: pip install "lightning-unlearn[diffusion]"') from None
    network: Any = CLIPModel.from_pretrained(model, use_safetensors=True)
    return network.eval().requires_grad_(False), CLIPProcessor.from_pretrained(model)


@torch.no_grad()
def clip_similarity(model: Any, processor: Any, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Cosine of CLIP's embeddings of each image and its prompt, which some tables print as the CLIP score.

    Args:
        model: A ``CLIPModel``.
        processor: Its ``CLIPProcessor``; prompts are cut to what the model can read.
        images: Shape ``(B, 3, H, W)``, colours in [0, 1]; rounded to 8 bits, as an image file has them.
        prompts: ``B`` prompts.

    Returns:
        Shape ``(B,)``, in [-1, 1].

    Raises:
        ValueError: If there are not as many prompts as images, or the images are of another shape or range.
    """
    if images.dim() != 4 or images.shape[1] != 3 or not images.is_floating_point():
        raise ValueError(
            f"images must be floating point of shape (B, 3, H, W), but got {tuple(images.shape)} {images.dtype}."
        )
    if isinstance(prompts, str) or len(prompts) != len(images):
        got = "one string" if isinstance(prompts, str) else f"{len(prompts)} prompts"
        raise ValueError(f"Each image needs a prompt of its own, but got {len(images)} images and {got}.")
    finite("images", images)
    if images.min() < 0 or images.max() > 1:
        raise ValueError(
            f"Colours must be in [0, 1], but are in [{images.min():.3g}, {images.max():.3g}]. Divide bytes by 255, and "
            "scale what is in [-1, 1]."
        )
    inputs = processor(
        images=list((images * 255).round().byte().cpu()),
        text=list(prompts),
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=model.config.text_config.max_position_embeddings,
    )
    outputs = model(**{name: value.to(model.device) for name, value in inputs.items()})
    return torch.cosine_similarity(outputs.image_embeds.float(), outputs.text_embeds.float(), dim=-1)


class CLIPScore(torchmetrics.Metric):
    r"""How well images fit their prompts, $\max\big(0, \frac{100}{N} \sum_i \cos(E_{x_i}, E_{c_i})\big)$.

    As torchmetrics defines it, whose own class does not run with transformers 5. Tables that print values near 0.3
    have the cosine, [`clip_similarity`][lightning_unlearn.diffusion.metrics.images.clip_similarity].

    Args:
        model: Folder written by ``save_pretrained``, or hub id, or a pair of a ``CLIPModel`` and its processor.

    Raises:
        ImportError: If transformers is missing.
        ValueError: If nothing was counted, or images and prompts do not fit together.

    References:
        Hessel et al., *CLIPScore: A Reference-free Evaluation Metric for Image Captioning*, arXiv:2104.08718, whose
        own weight is 2.5 in place of 100.
    """

    higher_is_better: bool | None = True
    is_differentiable: bool | None = False
    full_state_update: bool | None = False
    similarity: Tensor
    count: Tensor

    def __init__(self, model: str | tuple[Any, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model, self.processor = load_clip(model) if isinstance(model, str) else model
        self.add_state("similarity", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, images: Tensor, prompts: Sequence[str]) -> None:
        """Count images ``(B, 3, H, W)`` with colours in [0, 1], and their prompts."""
        with evaluating(self.model):
            found = clip_similarity(self.model, self.processor, images, prompts)
        self.similarity += found.sum()
        self.count += len(found)

    def compute(self) -> Tensor:
        """Scalar in [0, 100]."""
        if not self.count:
            _refuse(self, "CLIPScore has counted no image. Call update with images and their prompts first.")
        return (100 * self.similarity / self.count).clamp(min=0).float()


def _refuse(metric: torchmetrics.Metric, message: str) -> NoReturn:
    """Raise, but first give each process its own counts back, which torchmetrics does only where there is a result."""
    if metric._is_synced:
        metric.unsync()
    raise ValueError(message)


def _root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def _moments(total: Tensor, products: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    mean = total / count
    return mean, (products - count * mean.outer(mean)) / (count - 1)


def _features(features: nn.Module | None) -> nn.Module | int:
    if features is None:
        if find_spec("torch_fidelity") is None:
            raise ImportError(
                "Features of Inception v3 need torch-fidelity: pip install torch-fidelity. Or pass features, such as "
                "PenultimateFeatures(classifier)."
            )
        return 2048
    if not isinstance(features, nn.Module):
        raise TypeError(f"features must be a torch module, but got {type(features).__name__}.")
    return features


def _listed(features: list[Tensor] | Tensor) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else features

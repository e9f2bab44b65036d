"""Low-rank adapters of a UNet: attached, removed, merged, and saved as a LoRA file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import above, at_least
from lightning_unlearn.core.files import replacing
from lightning_unlearn.diffusion.engine.model import TextToImage
from lightning_unlearn.diffusion.engine.text import encode, tokenize
from lightning_unlearn.functional.diffusion.spm import permeability
from lightning_unlearn.functional.random import keyed_generator

__all__ = ["LowRankAdapter", "LowRankAdapters", "adapted_layers"]

_PREFIX = "lora_unet_"


class LowRankAdapter(nn.Module):
    r"""Adds $m\,\frac{\alpha}{r}\,\mathrm{up}(\mathrm{down}(x))$ to the output of a linear layer or a convolution.

    It is a child of the layer, so that optimizers, devices and strategies find its parameters, but is not part of any
    ``state_dict``: checkpoints and saved pipelines keep their names.

    Args:
        layer: A ``Linear`` or a ``Conv2d``.
        rank: $r$.
        alpha: $\alpha$.
        generator: Draws ``down`` on the CPU, as a new layer's weight is; ``up`` is 0.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        if isinstance(layer, nn.Conv2d):
            down, up = (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
        else:
            down, up = (rank, layer.in_features), (layer.out_features, rank)  # type: ignore[assignment]
        drawn = nn.init.kaiming_uniform_(torch.empty(down), a=math.sqrt(5), generator=generator)
        self.down = nn.Parameter(drawn.to(layer.weight.device))
        self.up = nn.Parameter(torch.zeros(up, device=layer.weight.device))
        self.rank, self.alpha = rank, alpha
        self.multiplier: float | Tensor = 1.0
        """$m$, of all rows or of each, shape ``(B,)``."""

    def change(self) -> Tensor:
        """The change of the layer's weight at multiplier 1, in the shape of the weight, in fp32."""
        product = self.up.flatten(1).float() @ self.down.flatten(1).float()
        return self.alpha / self.rank * product.view(self.up.shape[0], *self.down.shape[1:])

    def adapt(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Forward hook of the layer; at multiplier 0 its output is left as it is."""
        m, x = self.multiplier, inputs[0]
        if isinstance(m, Tensor):
            m = m.to(output).view(-1, *[1] * (output.dim() - 1))
        elif m == 0:
            return None
        scale = m * (self.alpha / self.rank)
        if isinstance(layer, nn.Conv2d):
            low = nn.functional.conv2d(x, self.down.to(x), None, layer.stride, layer.padding, layer.dilation)
            return output + scale * nn.functional.conv2d(low, self.up.to(x))
        return output + scale * nn.functional.linear(nn.functional.linear(x, self.down.to(x)), self.up.to(x))

    def _save_to_state_dict(self, *_: Any) -> None: ...

    def _load_from_state_dict(self, *_: Any) -> None: ...


class LowRankAdapters:
    """Adapters on all linear layers and convolutions of a UNet's transformers.

    Several sets, one for each concept, can be attached to a UNet; their outputs add up.

    Args:
        unet: ``diffusers.UNet2DConditionModel``.
        rank: Rank of each adapter.
        alpha: Numerator of their scale.
        name: Distinguishes sets on the same UNet.
        seed: Seed of the down projections.
        layers: The layers to adapt, by their names in the UNet; by default
            [`adapted_layers`][lightning_unlearn.diffusion.engine.adapters.adapted_layers].

    Raises:
        ValueError: If a number is out of range, the name is taken, or the UNet has no transformer.

    Example:
        Erasing at inference, as far as the prompt is of the concept:

        >>> def draw(module, path, prompt):
        ...     adapters = LowRankAdapters.load(module.unet, path)
        ...     with adapters.scaled(adapters.permeability(module, "van gogh", prompt)):
        ...         return module.generate([prompt], seeds=[0])

    References:
        Lyu et al., *One-dimensional Adapter to Rule Them All: Concepts, Diffusion Models and Erasing Applications*,
        arXiv:2312.16145.
    """

    def __init__(
        self,
        unet: nn.Module,
        rank: int = 1,
        alpha: float = 1.0,
        name: str = "spm",
        seed: int = 0,
        layers: Mapping[str, nn.Linear | nn.Conv2d] | None = None,
    ) -> None:
        at_least("rank", rank, 1)
        above("alpha", alpha, 0)
        self.name, self.layers = name, dict(adapted_layers(unet) if layers is None else layers)
        taken = [path for path, layer in self.layers.items() if hasattr(layer, name)]
        if taken:
            raise ValueError(f"{taken[0]} has something named {name!r} already. Remove it, or give another name.")
        self.adapters = {
            path: LowRankAdapter(layer, rank, alpha, keyed_generator(seed, number))
            for number, (path, layer) in enumerate(self.layers.items())
        }
        self._handles: list[Any] = []
        self.attach()

    def attach(self) -> None:
        """Attach the adapters."""
        self.remove()
        for path, layer in self.layers.items():
            layer.add_module(self.name, self.adapters[path])
            self._handles.append(layer.register_forward_hook(self.adapters[path].adapt))

    def remove(self) -> None:
        """Remove the adapters; they keep their values."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        for layer in self.layers.values():
            layer._modules.pop(self.name, None)

    @contextmanager
    def scaled(self, multiplier: float | Tensor) -> Iterator[None]:
        """Scale the adapters by a factor, one or one for each row; 0 is the model without them, bit for bit."""
        before = {path: adapter.multiplier for path, adapter in self.adapters.items()}
        for adapter in self.adapters.values():
            adapter.multiplier = multiplier
        try:
            yield
        finally:
            for path, adapter in self.adapters.items():
                adapter.multiplier = before[path]

    @torch.no_grad()
    def permeability(self, model: TextToImage, concept: str, prompt: str) -> float:
        r"""$\gamma$ of a prompt, see [`permeability`][lightning_unlearn.functional.diffusion.spm.permeability]."""
        tokens = tokenize(model.tokenizer, [prompt, concept])
        states, special = encode(model, tokens["input_ids"]), set(model.tokenizer.all_special_ids)
        words = [[i for i in ids if i not in special] for ids in tokens["input_ids"].tolist()]
        return permeability(*states, *words).item()

    @torch.no_grad()
    def merge(self, multiplier: float = 1.0) -> None:
        """Add the adapters to the weights, and remove them."""
        self.remove()
        for path, layer in self.layers.items():
            layer.weight += multiplier * self.adapters[path].change().to(layer.weight)

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of their values on the CPU, by the name of the layer."""
        return {name: value.detach().to("cpu", copy=True) for name, value in self._parts().items()}

    def _parts(self) -> dict[str, nn.Parameter]:
        return {f"{path}.{part}": getattr(a, part) for path, a in self.adapters.items() for part in ("down", "up")}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Set the values.

        Raises:
            ValueError: If they are of adapters of another model or rank.
        """
        own = self._parts()
        odd = {name for name in own.keys() & state if own[name].shape != state[name].shape} | own.keys() ^ state
        if odd:
            raise ValueError(
                f"These adapters don't fit the UNet: {len(odd)} tensors differ in name or shape, such as {min(odd)!r}. "
                "Use the model and the rank that they were made with."
            )
        for name, value in state.items():
            own[name].copy_(value)

    def save(self, path: str | Path) -> None:
        """Write a ``.safetensors`` file that ``StableDiffusionPipeline.load_lora_weights`` and kohya's tools read."""
        from safetensors.torch import save_file

        tensors = {f"{_key(layer)}.alpha": torch.tensor(float(a.alpha)) for layer, a in self.adapters.items()}
        for name, value in self.state_dict().items():
            layer, _, part = name.rpartition(".")
            tensors[f"{_key(layer)}.lora_{part}.weight"] = value.contiguous()
        with replacing(path) as file:
            save_file(tensors, file, metadata={"format": "pt"})

    @classmethod
    def load(cls, unet: nn.Module, path: str | Path, name: str = "spm") -> LowRankAdapters:
        """Attach the adapters of a file that `save` wrote to a UNet.

        Raises:
            ValueError: If the file is of another model, or holds no such adapters.
        """
        from safetensors.torch import load_file

        tensors = load_file(path)
        ranks = {len(v) for k, v in tensors.items() if k.endswith(".lora_down.weight")}
        alphas = {v.item() for k, v in tensors.items() if k.endswith(".alpha")}
        if len(ranks) != 1 or len(alphas) != 1:
            raise ValueError(
                f"{path} holds adapters of ranks {sorted(ranks)} and alphas {sorted(alphas)}, but one of each is read. "
                "Use a file that LowRankAdapters.save wrote."
            )
        names = {key.split(".", 1)[0] for key in tensors}
        layers = adapted_layers(unet)
        chosen = {path: layer for path, layer in layers.items() if _key(path) in names}
        adapters = cls(unet, ranks.pop(), alphas.pop(), name, layers=chosen or layers)
        paths = {_key(path): path for path in adapters.layers}
        state = {}
        for key, value in tensors.items():
            layer, _, part = key.partition(".")
            if part != "alpha":
                state[f"{paths.get(layer, layer)}.{part.removeprefix('lora_').removesuffix('.weight')}"] = value
        try:
            adapters.load_state_dict(state)
        except ValueError:
            adapters.remove()
            raise
        return adapters


def _key(path: str) -> str:
    """Name of a layer in a LoRA file."""
    return _PREFIX + path.replace(".", "_")


def adapted_layers(unet: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The linear layers and convolutions of a UNet's transformers, by name.

    Raises:
        ValueError: If there are none.
    """
    from diffusers.models.transformers.transformer_2d import Transformer2DModel

    roots: Sequence[str] = [f"{n}." for n, m in unet.named_modules() if isinstance(m, Transformer2DModel)]
    layers = {
        name: module
        for name, module in unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name.startswith(tuple(roots))
    }
    if not layers:
        raise ValueError(f"{type(unet).__name__} has no Transformer2DModel with layers to put adapters on.")
    return layers

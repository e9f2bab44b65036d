"""Classifier of canvas images with a head for the style and one for the object, and its folder."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_unlearn.core.checks import at_least, one_of
from lightning_unlearn.core.files import replacing
from lightning_unlearn.diffusion.canvas.names import Kind
from lightning_unlearn.diffusion.judges import miniature_classifier

__all__ = ["CanvasClassifier"]

_WEIGHTS, _SETTINGS, _ENCODER = "model.safetensors", "canvas_classifier.json", "encoder"
_PLAIN = (0.5, 0.5, 0.5)


class CanvasClassifier(nn.Module):
    """One network that classifies the style and the object of an image in one pass.

    The features of a backbone go to a linear head for each kind of concept. A network with one head classifies only one
    of them. Images are resized to the square size that the backbone expects, and normalised.

    Args:
        backbone: ``"miniature"``, a small CNN without trained weights; or folder or hub id of an image encoder of
            ``transformers``, such as ``"google/vit-large-patch16-224-in21k"``, whose weights are read from safetensors
            only; or such an encoder.
        classes: Names of the labels of each head, at least one head.
        mean: Means of the colours for the normalisation; by default those of the encoder's folder, or 0.5.
        std: Standard deviations of the colours for the normalisation; by default those of the folder, or 0.5.
        revision: Branch, tag or commit on the hub.

    Raises:
        ImportError: If the backbone needs ``transformers``, which is not installed.
        ValueError: If there is no head, a head has fewer than two classes, or the backbone is no image encoder.

    Example:
        >>> network = CanvasClassifier("miniature", {"style": ["Monet", "Rust"], "object": ["Cats", "Dogs", "Sea"]})
        >>> {kind: tuple(logits.shape) for kind, logits in network(torch.rand(4, 3, 32, 32)).items()}
        {'style': (4, 2), 'object': (4, 3)}
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        classes: Mapping[Kind, Sequence[str]],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        revision: str | None = None,
    ) -> None:
        super().__init__()
        if not classes:
            raise ValueError("A classifier needs the classes of the style, of the object, or of both.")
        for kind, names in classes.items():
            at_least(f"The number of classes of the {one_of('kind', kind, Kind)}", len(names), 2)
        self.classes: dict[Kind, tuple[str, ...]] = {kind: tuple(names) for kind, names in classes.items()}
        if backbone == "miniature":
            self.backbone: nn.Module = miniature_classifier(2)[:-1]
            self.size, self.num_features, mean, std = 32, 64 * 4 * 4, mean or (0.0,) * 3, std or (1.0,) * 3
        else:
            if isinstance(backbone, str):
                backbone, mean, std = _opened(backbone, mean, std, revision)
            self.backbone = _Encoder(backbone)
            self.size, self.num_features = self.backbone.size, self.backbone.width
        self.heads = nn.ModuleDict({kind: nn.Linear(self.num_features, len(n)) for kind, n in self.classes.items()})
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean or _PLAIN)).float().view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std or _PLAIN)).float().view(3, 1, 1), persistent=False)

    def features(self, images: Tensor) -> Tensor:
        """What the heads read, of images ``(B, 3, H, W)`` with colours in [0, 1], shape ``(B, num_features)``.

        Raises:
            ValueError: If images have another shape.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Images have the shape (B, 3, H, W), but got {tuple(images.shape)}.")
        images = images.to(self.mean)
        if images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
        return self.backbone((images - self.mean) / self.std)

    def logits(self, features: Tensor) -> dict[Kind, Tensor]:
        """Logits ``(B, classes)`` of each head, of features ``(B, num_features)``."""
        return {kind: self.heads[kind](features) for kind in self.classes}

    def forward(self, images: Tensor) -> dict[Kind, Tensor]:
        """Logits ``(B, classes)`` of each head, of images ``(B, 3, H, W)`` with colours in [0, 1]."""
        return self.logits(self.features(images))

    def version(self) -> str:
        """A hash of classes and weights."""
        state = hashlib.sha256(json.dumps(self._settings(), sort_keys=True).encode())
        for weight in self.state_dict().values():
            state.update(weight.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return state.hexdigest()[:12]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights as safetensors and the settings as JSON into a folder, which is there whole or not at all.

        An encoder of ``transformers`` is in a folder of its own in it, as its ``save_pretrained`` writes it.
        """
        from safetensors.torch import save_file

        with replacing(folder) as part:
            part.mkdir()
            if isinstance(self.backbone, _Encoder):
                self.backbone.model.save_pretrained(part / _ENCODER)
            weights = {key: weight.detach().cpu().contiguous() for key, weight in self._own().state_dict().items()}
            save_file(weights, part / _WEIGHTS, {"format": "pt"})
            (part / _SETTINGS).write_text(json.dumps(self._settings(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> CanvasClassifier:
        """Read what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: If the folder has no such files.
        """
        from safetensors.torch import load_file

        folder = Path(folder)
        missing = [name for name in (_SETTINGS, _WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise FileNotFoundError(f"{folder} has no {missing[0]}: it is no folder that save_pretrained wrote.")
        settings = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        network = cls(str(folder / _ENCODER) if (folder / _ENCODER).is_dir() else "miniature", **settings)
        network._own().load_state_dict(load_file(folder / _WEIGHTS))
        return network

    def _own(self) -> nn.Module:
        """What is not of ``transformers``."""
        return self.heads if isinstance(self.backbone, _Encoder) else self

    def _settings(self) -> dict[str, Any]:
        colours = {name: getattr(self, name).flatten().tolist() for name in ("mean", "std")}
        return {"classes": {kind: list(names) for kind, names in self.classes.items()}, **colours}


class _Encoder(nn.Module):
    """An image encoder of ``transformers``, pooled to one vector an image."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        config = getattr(model, "config", None)
        widths = [getattr(config, "hidden_size", None), *(getattr(config, "hidden_sizes", None) or [None])[-1:]]
        self.width: int = next((width for width in widths if width), 0)
        if getattr(model, "main_input_name", "") != "pixel_values" or not self.width:
            raise ValueError(f"A backbone is an image encoder such as a ViT, but {type(model).__name__} is none.")
        side = getattr(config, "image_size", 224)
        self.model, self.size = model, side if isinstance(side, int) else side[0]
        names = [name.rpartition(".")[2] for name, _ in model.named_parameters()]
        self._first = "cls_token" in names or "class_embedding" in names

    def forward(self, pixels: Tensor) -> Tensor:
        states = self.model(pixel_values=pixels).last_hidden_state
        if states.ndim == 4:
            return states.mean((2, 3))
        return states[:, 0] if self._first else states.mean(1)


def _opened(source: str, mean: Any, std: Any, revision: str | None) -> tuple[nn.Module, Any, Any]:
    """An encoder, and the colours that it was trained with unless others are given."""
    try:
        from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoModel
    except ImportError:
        raise ImportError('This backbone needs transformers: pip install "lightning-unlearn[diffusion]"') from None
    trusted: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(source, **trusted)
    kind: Any = MODEL_MAPPING.get(type(config), None)
    if getattr(kind, "main_input_name", "") != "pixel_values":
        raise ValueError(f"A backbone is an image encoder such as a ViT, but {source} is a {config.model_type}.")
    if mean is None or std is None:
        processor = AutoImageProcessor.from_pretrained(source, **trusted)
        mean, std = mean or processor.image_mean, std or processor.image_std
    # The pooling layer would be random, and is not read.
    bare = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    model, loaded = AutoModel.from_pretrained(
        source, config=config, use_safetensors=True, output_loading_info=True, **bare, **trusted
    )
    if missing := sorted(loaded["missing_keys"]):
        raise ValueError(f"{source} has no weight {missing[0]}, which would be random.")
    return model, mean, std

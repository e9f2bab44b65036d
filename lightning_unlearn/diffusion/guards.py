"""Guards: sampling that avoids a concept, with unchanged weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from functools import wraps
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_unlearn.core.checks import one_of
from lightning_unlearn.core.lightning import LightningModule
from lightning_unlearn.core.modes import evaluating
from lightning_unlearn.diffusion.engine.model import alphas_bar, as_text_to_image, prediction_type
from lightning_unlearn.diffusion.engine.passes import PassCounter
from lightning_unlearn.diffusion.engine.text import encode, tokenize, word_ids
from lightning_unlearn.functional.diffusion.seot import concept_and_end_places, suppress_eot
from lightning_unlearn.functional.diffusion.sld import SLD_PRESETS, SafetyConfig, safety_guidance

__all__ = ["SafeLatentDiffusion", "SuppressEOT", "is_steered"]


class _Guard(ABC):
    """A context with hooks on a module that has a pipeline."""

    def __init__(self, module: LightningModule, concept: str) -> None:
        self.model = as_text_to_image(module, adapters=True)  # it only draws
        if getattr(module, "pipeline", None) is None:
            raise TypeError(
                f"{type(module).__name__} has no pipeline, but a guard works while a pipeline draws. Use "
                "LitTextToImage, or give your module its StableDiffusionPipeline by this name."
            )
        if not concept.strip():
            raise ValueError("The concept is empty. Pass the words that describe what to avoid.")
        self.module, self.concept = module, concept
        self.passes = PassCounter()
        """Passes of the UNet and the text encoder inside the context."""
        self._handles: list[Any] = []

    @abstractmethod
    def on(self) -> None:
        """Attach the hooks."""

    def __enter__(self) -> Any:
        self.on()
        self.passes.attach(self.model)
        return self

    def __exit__(self, *_: object) -> None:
        self.passes.detach()
        for handle in self._handles:
            handle.remove()
        self._handles = []


class SafeLatentDiffusion(_Guard):
    r"""SLD: inside the context, the pipeline is steered away from a concept at every step.

    The pipeline follows $\epsilon_0 + s_g (\epsilon_p - \epsilon_0 - \gamma_t)$ with the
    [`safety_guidance`][lightning_unlearn.functional.diffusion.sld.safety_guidance] $\gamma_t$. No weight changes, and
    any sampler of diffusers can be used. Each UNet pass has three rows per image instead of two. Inside the context,
    only the pipeline may call the UNet.

    Args:
        module: A module with a ``pipeline``, such as
            [`LitTextToImage`][lightning_unlearn.LitTextToImage].
        concept: What to avoid, in words, such as ``"nudity, sexual acts"``.
        config: ``"weak"``, ``"medium"``, ``"strong"``, ``"max"``, or constants of your own. The warm-up of these is
            meant for 50 steps.

    Raises:
        TypeError: If the module has no pipeline.
        ValueError: If there are no such settings, the concept is empty, or the pipeline draws without classifier-free
            guidance, which the guard steers.
        RuntimeError: If the module has such a guard already.

    Example:
        ```python
        with SafeLatentDiffusion(module, "nudity", "strong") as guard:
            images = module.generate(prompts, seeds)
        print(guard.passes.unet)
        ```

    References:
        Schramowski et al., *Safe Latent Diffusion: Mitigating Inappropriate Degeneration in Diffusion Models*,
        arXiv:2211.05105.
    """

    def __init__(
        self,
        module: LightningModule,
        concept: str,
        config: SafetyConfig | Literal["weak", "medium", "strong", "max"] = "medium",
    ) -> None:
        super().__init__(module, concept)
        if isinstance(config, str):
            config = SLD_PRESETS[one_of("config", config, SLD_PRESETS, hint="or a SafetyConfig")]
        self.config = config
        self.pipeline: Any = module.pipeline
        self._prediction = prediction_type(self.model)

    def on(self) -> None:
        """Compute the concept's states, and attach the hooks."""
        if is_steered(self.module):
            raise RuntimeError("The module is guarded by SafeLatentDiffusion already. Name all concepts in one guard.")
        with evaluating(self.module):
            self._states = encode(self.model, tokenize(self.model.tokenizer, [self.concept])["input_ids"])
        unet, scheduler = self.model.unet, self.pipeline.scheduler
        # Before other hooks, so that counters see all rows.
        self._handles = [
            unet.register_forward_pre_hook(self._add_concept, with_kwargs=True, prepend=True),
            unet.register_forward_hook(self._steer, prepend=True),
            _BeforeCall(scheduler, "set_timesteps", self._begin),
        ]
        self._begin()

    def _begin(self) -> None:
        """Begin another image: no step is done, and there is no momentum."""
        self._step, self._noise_per_output = 0, 1.0
        self._momentum: Tensor | None = None

    def _add_concept(self, unet: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.pipeline.do_classifier_free_guidance:
            raise ValueError(
                "Safe Latent Diffusion steers classifier-free guidance, but the pipeline draws without it. Pass a "
                "guidance above 1."
            )
        latents, timestep, *rest = args
        rows = len(latents) // 2
        states: Tensor = kwargs["encoder_hidden_states"]
        concept = self._states.to(states).expand(rows, -1, -1)
        if self._prediction == "v_prediction":
            level = alphas_bar(self.model)[torch.as_tensor(timestep).flatten()[0].long()]
            self._noise_per_output = float(level.sqrt())
        kwargs = kwargs | {"encoder_hidden_states": torch.cat([states, concept])}
        return (torch.cat([latents, latents[:rows]]), timestep, *rest), kwargs

    def _steer(self, unet: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        whole: Tensor = output[0]
        unconditional, prompt, concept = whole.float().chunk(3)
        # Outputs for one latent differ by as much as the noise they stand for, times a factor for velocities.
        k = self._noise_per_output
        momentum = torch.zeros_like(prompt) if self._momentum is None else self._momentum
        gamma, self._momentum = safety_guidance(k * unconditional, k * prompt, k * concept, momentum, self.config)
        if self._step >= self.config.warmup and k:  # at zero terminal SNR, latents are the noise, whatever the output
            prompt = prompt - gamma / k
        self._step += 1
        return (torch.cat([unconditional, prompt]).to(whole.dtype),)


def is_steered(module: nn.Module | None) -> bool:
    """Whether a module is guarded by `SafeLatentDiffusion` now."""
    hooks = getattr(getattr(module, "unet", None), "_forward_hooks", {}).values()
    return any(isinstance(getattr(hook, "__self__", None), SafeLatentDiffusion) for hook in hooks)


class SuppressEOT(_Guard):
    """SEOT: inside the context, the concept is suppressed in the text states of prompts that name it.

    The text states of the concept's words and of the end of the prompt go through
    [`suppress_eot`][lightning_unlearn.functional.diffusion.seot.suppress_eot]; other prompts and other states stay
    bit-identical. No weight changes, and no extra pass is needed. This is the first step of the paper's method; its
    second step, which optimizes the states during sampling, is not included.

    A concept is found by its words in the prompt, so a paraphrase is not suppressed.

    Args:
        module: A module with a ``pipeline``, such as
            [`LitTextToImage`][lightning_unlearn.LitTextToImage].
        concept: The concept's words, as prompts have them.
        alpha: As for ``suppress_eot``.
        scale: As there.

    Raises:
        TypeError: If the module has no pipeline.
        ValueError: If the concept is empty, a number is not finite, or the pipeline draws with ``clip_skip``, which
            takes states that are not regularized.

    Example:
        ```python
        with SuppressEOT(module, "van gogh") as guard:
            images = module.generate(["a house in the style of van gogh"], seeds=[0])
        print(guard.suppressed)  # 1
        ```

    References:
        Li et al., *Get What You Want, Not What You Don't: Image Content Suppression for Text-to-Image Diffusion
        Models*, arXiv:2402.05375.
    """

    def __init__(self, module: LightningModule, concept: str, alpha: float = 1.0, scale: float = 1.0) -> None:
        super().__init__(module, concept)
        for name, value in (("alpha", alpha), ("scale", scale)):
            if not math.isfinite(value):
                raise ValueError(f"{name} must be finite, but got {value}.")
        self.alpha, self.scale = alpha, scale
        self.suppressed = 0
        """Prompts that had the concept."""
        self._ids = torch.tensor(word_ids(self.model.tokenizer, concept))

    def on(self) -> None:
        """Attach the hook."""
        self._handles = [self.model.text_encoder.register_forward_hook(self._suppress, with_kwargs=True)]

    def _suppress(self, encoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if getattr(output, "hidden_states", None) is not None:
            raise ValueError("SuppressEOT changes the last states, but clip_skip takes earlier ones. Leave it out.")
        ids: Tensor = args[0] if args else kwargs["input_ids"]
        states = output[0]
        places_of = [concept_and_end_places(row.cpu(), self._ids, self.model.tokenizer.eos_token_id) for row in ids]
        if not any(places.any() for places in places_of):
            return output
        self.suppressed += sum(bool(places.any()) for places in places_of)
        changed = [
            suppress_eot(row, places.to(row.device), alpha=self.alpha, scale=self.scale) if places.any() else row
            for row, places in zip(states, places_of, strict=True)
        ]
        if isinstance(output, tuple):
            return (torch.stack(changed), *output[1:])
        return type(output)(**{**output, "last_hidden_state": torch.stack(changed)})


class _BeforeCall:
    """A function called before a method of one object, until removed."""

    def __init__(self, owner: Any, name: str, function: Any) -> None:
        method = getattr(owner, name)

        @wraps(method)  # diffusers reads its signature
        def both(*args: Any, **kwargs: Any) -> Any:
            function()
            return method(*args, **kwargs)

        self.owner, self.name = owner, name
        setattr(owner, name, both)

    def remove(self) -> None:
        """Give the object its own method back."""
        delattr(self.owner, self.name)

"""LightningModules for people who have none of their own."""

from lightning_unlearn.modules.causal_lm import LitCausalLM, LoRA
from lightning_unlearn.modules.classifier import LitClassifier
from lightning_unlearn.modules.text_to_image import LitTextToImage

__all__ = ["LitCausalLM", "LitClassifier", "LitTextToImage", "LoRA"]

"""LightningModules for people who have none of their own."""

from lightning_unlearn.modules.causal_lm import LitCausalLM, LoRA

__all__ = ["LitCausalLM", "LoRA"]

"""Adversarial prompt attacks on text-to-image models."""

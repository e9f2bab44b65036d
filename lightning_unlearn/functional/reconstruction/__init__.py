"""Measurement physics, solvers and measures of image reconstruction."""

__all__: list[str] = []

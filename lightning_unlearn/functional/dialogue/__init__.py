"""Scores of label probabilities, targets from several annotators, and parsed ratings."""

__all__: list[str] = []

"""Metrics of ratings."""

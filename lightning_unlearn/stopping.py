"""Stopping of a run when enough is forgotten."""

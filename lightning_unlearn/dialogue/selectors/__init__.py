"""Selectors of in-context examples."""

"""Demonstrations that run on a CPU in minutes."""

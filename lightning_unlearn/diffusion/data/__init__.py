"""Prompts, captioned images and the miniature data set."""

"""Labelled datasets and their forget-retain splits."""

"""Labelled data sets and their forget-retain splits."""

"""Requests to forget, from the rows that must go to a signed record: one command for each kind of model."""

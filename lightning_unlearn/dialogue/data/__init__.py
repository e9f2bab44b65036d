"""Data modules of rated dialogues."""

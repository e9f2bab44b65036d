"""Data modules of question-answer and text corpora."""

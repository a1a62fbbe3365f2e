"""Corpora in sequence, and what is not forgotten. Knows nothing of tokens."""

"""Corpora in sequence, and what is not forgotten. The index itself is ``dsi``'s."""

"""Pseudo-queries: the learned generator, the lexical writer, their cache and their quality.

For replay. Uses token arrays (dsi.text) alone.
"""

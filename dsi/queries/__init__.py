"""Pseudo-queries: the learned generator, the lexical writer, their cache and their quality.

For replay. Uses token arrays (dsi.text) and the forward pass of dsi.search.
"""

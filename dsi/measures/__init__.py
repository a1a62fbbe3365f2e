"""Metrics of ranks, and TREC files, as pure functions.

For evaluation and reports. Uses the standard library and numpy alone.
"""

"""Endless sequences of examples, batches of one length, and the thread that makes them ahead.

For training. Uses token arrays (dsi.text) alone.
"""

"""Processes and accelerators, and weights in pieces over them.

For the entry points (cli, runs) and the trainer.
"""

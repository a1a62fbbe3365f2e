"""Processes and accelerators, and weights in pieces over them.

For the doors (cli, runs) and the trainer.
"""

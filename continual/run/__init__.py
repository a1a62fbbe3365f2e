"""The run directory: its layout and lock, docids, checkpoints, tracking, what a run works on.

For the entry points (cli, runs) and the trainer.
"""

"""One update: the optimizer and its schedule, the passes, the step.

For the trainer. Components see what they are given, never this.
"""

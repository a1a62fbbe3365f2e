"""One update: the optimizer and its schedule, the passes, the step.

For the trainer. Components never call this: they are given a StageView, or a Step.
"""

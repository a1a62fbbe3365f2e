"""How a step is taken. One member per file, a pure rule; ``continual.update.steps`` makes passes.

Protocol (``_policy.Policy``)::

    member.active(stage) -> bool
    member.passes(update) -> int
    member.perturbation(step) -> [what is added to each weight for the next pass, or None]
    member.combine(step) -> [the gradient to descend]
"""

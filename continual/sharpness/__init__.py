"""How a step is taken. One member per file, a pure rule; the trainer owns the passes. Protocol::

member.active(stage) -> bool
member.perturbation(weights, gradients) -> list[Tensor]
member.combine(clean, perturbed) -> list[Tensor]
"""

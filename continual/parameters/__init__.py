"""What may move. One member per file; protocol::

member.select(model, stage)           # sets requires_grad, before the optimizer is made
"""

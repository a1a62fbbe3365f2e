"""What may move. One member per file; protocol::

member.trains_all: bool               # every parameter, in every stage; else DDP looks for those
                                      # that have no gradient
member.select(model, stage)           # sets requires_grad, before the optimizer is made
"""

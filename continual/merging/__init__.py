"""What is averaged afterwards. One member per file; protocol::

member.needs_previous: bool           # reads the weights before the stage
member.merge(before, after) -> dict[str, Tensor]      # state dicts, after a stage; rows that
                                      # the stage added are NaN in ``before``
"""

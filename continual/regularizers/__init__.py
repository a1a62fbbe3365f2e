"""What is held in place. One member per file; protocol::

member.needs_previous: bool           # compares the weights with copies of older ones: not with
                                      # restart, which has none, nor with FSDP2, which cuts weights
member.touches_every_row: bool        # the penalty has a gradient at every docid row
member.begin_stage(model, stage)      # remember, before the stage trains; ``model.fresh_rows``:
                                      # by parameter, the rows that have no older version
member.penalty(model) -> Tensor | None        # added once per update
member.state_dict() / member.load_state_dict(tensors)
"""

"""What is held in place. One member per file; protocol::

member.begin_stage(model, stage)      # remember, before the stage trains; ``model.fresh_rows``:
                                      # by parameter, the rows that have no older version
member.penalty(model) -> Tensor | None        # added once per update
member.state_dict() / member.load_state_dict(tensors)
"""

"""What is held in place. One member per file; protocol::

member.begin_stage(model, stage)      # remember, before the stage trains
member.penalty(model) -> Tensor | None        # added once per update
member.state_dict() / member.load_state_dict(tensors)
"""

"""What is rehearsed. One member per file; protocol::

member.ratio: float                   # indexing examples per replayed query in stages n > 0; inf:
                                      # nothing is rehearsed
member.begin_stage(context) -> list[QueryPool]
"""

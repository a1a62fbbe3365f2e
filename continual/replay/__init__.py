"""What is rehearsed. One member per file; protocol::

member.ratio                          # indexing examples per replayed query in stages n > 0
member.begin_stage(context) -> list[QueryPool]
"""

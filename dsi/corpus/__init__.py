"""Documents, queries, judgements and streams in one checked format, and where they come from.

For whatever reads a corpus. Uses no other room.
"""

"""Docid schemes, one per file. A scheme turns documents into code sequences and never changes one.

Protocol (:class:`Scheme`; ``dsi.docids.atomic`` is the smallest example)::

    scheme = Scheme(config)
    codes_MT = scheme.extend(documents)   # int32: codes of the new documents, old ones untouched
    scheme.codes_NT                       # int32: codes of every document so far, -1 after the end
    scheme.code_sizes                     # codes per position so far
    scheme.state_dict()                   # what extending needs beyond the codes, as arrays
    scheme.restore(codes_NT); scheme.load_state_dict(state)

No docid is the beginning of another (a longer one, or an equal one): schemes of varying length end
with a code that no docid goes on after.
"""

from dsi.docids._scheme import (
    NewDocuments,
    Scheme,
    codes_from_text,
    codes_to_text,
    read_docids,
    stack_codes,
)

__all__ = [
    "NewDocuments", "Scheme", "codes_from_text", "codes_to_text", "read_docids", "stack_codes",
]  # fmt: skip

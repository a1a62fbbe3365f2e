"""Docid schemes, one per file. A scheme turns documents into code sequences and never changes one.

Protocol (``dsi.docids.atomic`` is the smallest example)::

    scheme = Scheme(config)
    codes_NT = scheme.extend(documents)   # int64: codes of the new documents, old ones untouched
    scheme.codes_NT                       # int64: codes of every document so far, in stream order
    scheme.code_sizes                     # codes per position so far
    scheme.to_text(codes_T) / scheme.from_text(text)      # the form in docids/D0.tsv
"""

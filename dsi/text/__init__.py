"""Text as flat token arrays: the tokenizer, and the views of a document that a model reads.

For whatever reads text. Uses no other room.
"""

"""From a query to ranked documents: the forward pass of search, the trie, the beam search.

For evaluation and for SearchIndex; Ranker is the one way in, whatever the docids are.
"""

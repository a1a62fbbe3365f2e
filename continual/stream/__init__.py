"""The corpora in their order, what one stage trains on, and what components see of both.

For the trainer and for components.
"""

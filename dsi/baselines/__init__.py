"""What a user would pick in the place of a trained index. One member per file; ``none``: no
baseline, the run trains a model.

A member answers the queries of every stage, and its run has the same matrix and the same files.
"""

from dsi.baselines._base import Baseline, Retriever

__all__ = ["Baseline", "Retriever"]

"""Our beam search gives what transformers' ``generate`` gives on the same weights."""

import itertools

import numpy as np
import pytest
import torch

from benchmarks.baselines import csr_constraint, dict_constraint, equivalent_t5, generate_docids
from dsi.model.dsi_model import from_scratch
from dsi.search.beam_search import beam_search
from dsi.search.forward import Inference
from dsi.search.trie import Trie

SHAPE = {"vocab_size": 50, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_heads": 3}


def docids(kind, count, seed):
    """Random valid docids (N, T)."""
    rng = np.random.default_rng(seed)
    if kind == "fixed":
        every = np.array(list(itertools.product(range(6), repeat=4)))
    elif kind == "numbers":  # digit strings with an end code, prefixes of each other without it
        every = np.full((count, 4), -1)
        for number in range(count):
            digits = [int(digit) + 1 for digit in str(number)]
            every[number, : len(digits) + 1] = [*digits, 0]
    else:  # paths of clusters 0..4 that end with a leaf code 5..9, at any depth
        paths = [p for n in (0, 1, 2, 3) for p in itertools.product(range(5), repeat=n)]
        rows = [(*path, 5 + leaf) for path in paths for leaf in range(5)]
        every = np.array([[*row, *[-1] * (4 - len(row))] for row in rows])
    return every[rng.permutation(len(every))[:count]].astype(np.int32)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("beams", [2, 4, 10])
@pytest.mark.parametrize("kind", ["fixed", "numbers", "tree"])
@pytest.mark.parametrize("count", [7, 60, 500])
def test_the_same_docids_in_the_same_order_with_the_same_scores(kind, count, beams, shared):
    codes_NT = docids(kind, count, seed=count)
    sizes = [11] * codes_NT.shape[1]
    model = from_scratch(
        beams, code_sizes=sizes, shared_codes=shared, num_layers=1, num_decoder_layers=2, **SHAPE
    ).eval()
    with torch.no_grad():  # sharper than random weights are, some of them much
        model.docids.rows.mul_(1.0 + 2.0 * (count % 3))
    generator = torch.Generator().manual_seed(count)
    ids = torch.randint(3, 50, (6, 8), generator=generator)
    mask = torch.ones_like(ids)
    mask[::2, 5:] = 0
    theirs, offsets = equivalent_t5(model)
    dead = max(np.add(offsets, sizes)) - 1
    found = beam_search(Inference(model), Trie.build(codes_NT), ids, mask, beams)
    ours_BKT = torch.from_numpy(codes_NT)[found.documents.clamp(min=0)].long()
    ours_BKT[found.documents < 0] = -1
    constraints = [dict_constraint(codes_NT, offsets, dead)]
    if kind == "fixed" and not shared:
        constraints.append(csr_constraint(codes_NT, offsets, dead))
    for constraint in constraints:
        codes_BKT, scores_BK = generate_docids(theirs, ids, mask, beams, constraint)
        width = ours_BKT.shape[1]  # no more than there are docids; generate fills with nothing
        assert torch.equal(codes_BKT[:, :width], ours_BKT)
        torch.testing.assert_close(scores_BK[:, :width], found.scores, atol=1e-4, rtol=1e-5)
        assert not scores_BK[:, width:].isfinite().any()

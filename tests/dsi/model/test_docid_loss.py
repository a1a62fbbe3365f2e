"""Exact loss in pieces against the whole; samples against the exact loss; rows that are touched."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.allocation import most_allocated
from dsi.model import docid_loss as losses
from dsi.model.docid_loss import docid_loss, draw, exact_loss, loss_of_scores, sampled_loss
from dsi.model.dsi_model import from_scratch

SIZES: dict[str, Any] = dict(
    vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2, num_decoder_layers=1
)


def tensors(
    batch: int = 6, width: int = 8, count: int = 23, dtype: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, rows and codes, one of them -1 and one there twice."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(batch, width, generator=generator, dtype=dtype).requires_grad_()
    rows = torch.randn(count, width, generator=generator, dtype=dtype).requires_grad_()
    codes = torch.randint(0, count, (batch,), generator=generator)
    codes[1], codes[3] = -1, codes[2]
    return hidden, rows, codes


def gradients(loss, hidden, rows) -> tuple[torch.Tensor, ...]:
    """Of a sum in which every example has another weight."""
    weights = torch.arange(1.0, len(loss) + 1, dtype=loss.dtype)
    return torch.autograd.grad((loss * weights).sum(), (hidden, rows))


def dense(hidden, rows, codes, smoothing=0.0):
    return loss_of_scores(hidden @ rows.T, codes, smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("piece", [1, 5, 22, 23, 100])
def test_pieces_are_the_whole(piece, smoothing):
    hidden, rows, codes = tensors()
    ours = exact_loss(hidden, rows, codes, smoothing, piece)
    whole = dense(hidden, rows, codes, smoothing)
    torch.testing.assert_close(ours, whole)
    assert ours[1] == 0
    for one, other in zip(
        gradients(ours, hidden, rows), gradients(whole, hidden, rows), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_first_and_second_derivatives(smoothing):
    hidden, rows, codes = tensors(4, 3, 7, torch.float64)

    def ours(hidden, rows):
        return exact_loss(hidden, rows, codes, smoothing, piece=3)

    assert torch.autograd.gradcheck(ours, (hidden, rows))
    assert torch.autograd.gradgradcheck(ours, (hidden, rows))


@pytest.mark.parametrize("frozen", [0, 1])
def test_what_needs_no_gradient_gets_none(frozen):
    inputs = tensors()
    inputs[frozen].requires_grad_(False)
    exact_loss(*inputs, piece=5).sum().backward()
    assert inputs[frozen].grad is None and inputs[1 - frozen].grad is not None


def test_scores_are_in_the_dtype_of_autocast_and_sums_are_not():
    hidden, rows, codes = tensors(8, 32, 300)
    with torch.autocast("cpu", torch.bfloat16):
        ours, whole = exact_loss(hidden, rows, codes, 0.1, 70), dense(hidden, rows, codes, 0.1)
    assert ours.dtype == whole.dtype == torch.float32
    torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, dense(hidden, rows, codes, 0.1), rtol=1e-6, atol=0)
    for one, other in zip(
        gradients(ours, hidden, rows), gradients(whole, hidden, rows), strict=True
    ):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.03)


def test_large_scores_do_not_overflow():
    hidden, rows, codes = tensors()
    hidden, rows = (200 * hidden).detach().requires_grad_(), rows.detach().requires_grad_()
    ours, whole = exact_loss(hidden, rows, codes, piece=4), dense(hidden, rows, codes)
    torch.testing.assert_close(ours, whole)
    assert all(torch.isfinite(g).all() for g in gradients(ours, hidden, rows))


def peak(function, hidden, rows, codes) -> int:
    """Bytes allocated at the worst moment of a forward and a backward pass."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        function(hidden, rows, codes).sum().backward()
    return most_allocated(found)


def test_memory_does_not_grow_with_batch_times_codes():
    found = {}
    for count in (20_000, 40_000):
        hidden, rows, codes = tensors(64, 4, count)
        for name, function in {"whole": dense, "pieces": exact_loss}.items():
            found[name, count] = peak(function, hidden, rows, codes) - rows.nbytes
    assert found["pieces", 40_000] < 1.1 * found["pieces", 20_000]
    assert found["whole", 40_000] > 1.8 * found["whole", 20_000]
    assert found["pieces", 40_000] < found["whole", 40_000] / 4


# --- samples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "samples"), [(10, 3), (10, 10), (10, 50), (7, 1), (1000, 999)])
def test_draws_are_different_and_every_code_is_as_likely_as_its_stratum_says(count, samples):
    torch.manual_seed(0)
    times, sizes = torch.zeros(count), torch.zeros(count)
    rounds = 1500 if count < 100 else 10
    for _ in range(rounds):
        drawn, strata = draw(count, samples, torch.device("cpu"))
        assert len(drawn.unique()) == len(drawn) == min(samples, count)
        assert int(strata.sum()) == count and drawn.min() >= 0 and drawn.max() < count
        times[drawn] += 1
        sizes[drawn] += strata
    if count < 100:
        # each draw counts for its stratum, so every code counts for one on average
        torch.testing.assert_close(sizes / rounds, torch.ones(count), rtol=0.2, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("samples", [23, 1000])
def test_with_as_many_samples_as_codes_it_is_the_exact_loss(samples, smoothing):
    hidden, rows, codes = tensors()
    ours = sampled_loss(hidden, rows, codes, smoothing, samples)
    whole = dense(hidden, rows, codes, smoothing)
    torch.testing.assert_close(ours, whole)
    for one, other in zip(
        gradients(ours, hidden, rows), gradients(whole, hidden, rows), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_estimated_sum_is_right_on_average():
    hidden, rows, codes = (t.detach() for t in tensors())
    torch.manual_seed(3)
    own = (hidden * rows[codes]).sum(1)
    found = torch.stack(
        [(sampled_loss(hidden, rows, codes, 0.0, 5) + own).exp() for _ in range(4000)]
    )
    expected = (hidden @ rows.T).exp().sum(1)
    valid = codes >= 0
    torch.testing.assert_close(found.mean(0)[valid], expected[valid], rtol=0.1, atol=0)


def test_a_draw_that_is_in_the_batch_counts_once(monkeypatch):
    hidden, rows, codes = tensors()
    everything = torch.arange(23)
    monkeypatch.setattr(losses, "draw", lambda *a: (everything[:5], torch.full((5,), 2)))
    codes = torch.tensor([0, 0, 3, 9, -1, 20])
    found = sampled_loss(hidden, rows, codes, 0.0, 5)
    scores = (hidden @ rows.T).exp()
    total = scores[:, [0, 3, 9, 20]].sum(1) + 2 * scores[:, [1, 2, 4]].sum(1)
    expected = total.log() - scores.gather(1, codes.clamp(min=0)[:, None])[:, 0].log()
    torch.testing.assert_close(found, torch.where(codes < 0, 0.0, expected))


def test_a_sparse_gradient_is_the_dense_one_and_has_only_touched_rows():
    hidden, rows, codes = tensors(6, 8, 500)
    found = []
    for sparse in (False, True):
        torch.manual_seed(5)
        found.append(gradients(sampled_loss(hidden, rows, codes, 0.1, 20, sparse), hidden, rows))
    assert found[1][1].is_sparse and not found[0][1].is_sparse
    touched = found[1][1].coalesce()
    torch.testing.assert_close(touched.to_dense(), found[0][1])
    torch.manual_seed(5)
    allowed = {0, *codes.tolist(), *draw(500, 20, torch.device("cpu"))[0].tolist()}
    assert set(touched.indices()[0].tolist()) <= allowed
    assert torch.equal(found[0][0], found[1][0])


def test_a_batch_without_codes_has_no_loss_and_no_gradient():
    hidden, rows, _ = tensors()
    codes = torch.full((6,), -1)
    for loss in (
        exact_loss(hidden, rows, codes, 0.1, 5),
        sampled_loss(hidden, rows, codes, 0.1, 5),
    ):
        assert torch.equal(loss, torch.zeros(6))
        assert not any(g.any() for g in gradients(loss, hidden, rows))


# --- in the model ---------------------------------------------------------------------------------


def test_many_codes_are_taken_in_pieces(monkeypatch):
    calls = []
    pieces = losses.exact_loss
    monkeypatch.setattr(losses, "exact_loss", lambda *a: calls.append(1) or pieces(*a))
    hidden, rows, codes = tensors()
    few = docid_loss(hidden, rows, codes)
    assert not calls
    monkeypatch.setattr(losses, "MOST_AT_ONCE", 22)
    torch.testing.assert_close(docid_loss(hidden, rows, codes), few)
    assert calls


def forward(model, codes, **options):
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 1, 0]])
    return model(ids, (ids > 0).long(), codes, **options)


@pytest.mark.parametrize("sizes", [[30], [9, 12]])
def test_a_model_has_the_same_loss_in_pieces(sizes, monkeypatch):
    model = from_scratch(0, code_sizes=sizes, dropout_rate=0.0, **SIZES)
    codes = torch.tensor([[4, 11], [8, -1]])[:, : len(sizes)]
    found = []
    for most in (1000, 0):
        monkeypatch.setattr(losses, "MOST_AT_ONCE", most)
        model.zero_grad()
        loss = forward(model, codes, label_smoothing=0.1)
        loss.sum().backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    loss, scores = forward(model, codes, label_smoothing=0.1, return_logits=True)
    torch.testing.assert_close(loss.detach(), found[0][0])
    assert [s.shape for s in scores] == [(2, size) for size in sizes]


def test_samples_are_drawn_in_training_alone():
    model = from_scratch(0, code_sizes=[500], dropout_rate=0.0, **SIZES)
    codes = torch.tensor([[4], [300]])
    exact = forward(model.train(), codes)
    model.docids.samples = 10
    torch.testing.assert_close(forward(model.eval(), codes), exact)
    torch.testing.assert_close(forward(model.train(), codes, return_logits=True)[0], exact)
    torch.manual_seed(0)
    one = forward(model, codes)
    torch.manual_seed(0)
    assert torch.equal(forward(model, codes), one) and not torch.equal(one, exact)
    assert not torch.equal(forward(model, codes), one)
    names = set(model.state_dict())
    assert not any("samples" in name for name in names)


def test_sparse_rows_in_a_model():
    model = from_scratch(0, code_sizes=[500], dropout_rate=0.0, **SIZES).train()
    model.docids.samples, model.docids.sparse = 10, True
    forward(model, torch.tensor([[4], [300]])).sum().backward()
    forward(model, torch.tensor([[5], [300]])).sum().backward()  # a second micro-batch
    found: Any = model.docids.rows.grad
    assert found.is_sparse and isinstance(model.docids.rows, nn.Parameter)
    assert {4, 5, 300} <= set(found.coalesce().indices()[0].tolist())

"""Sharpness as a measurement: the loss around the weights that a stage ends with.

Two views of one neighbourhood. ``rise``: how much higher the loss gets within a ball of radius rho
(what SAM minimises; Foret et al., ICLR 2021), searched by gradient ascent, so a lower bound.
``eigenvalue``: of the Hessian the one of largest magnitude, by power iteration. The loss is plain
cross-entropy in the weights' own precision, dropout off. Nothing is left behind: weights come back
bit for bit, no gradient is stored, no random number is drawn from global state.

Cost: 1 + ascents gradients, and a gradient of a gradient per iteration. Memory: four copies of the
weights, and the attention's matrices of one batch: fused attention has no second derivative.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from continual.config.schema import RunConfig, SharpnessMeasurement
from continual.sharpness._base import along, dot, norm, plus, ratio, times
from continual.stream.stream import Stream
from dsi.examples.batches import Batch
from dsi.model.dsi_model import DSIModel
from dsi.seeding import derive, numpy_rng
from dsi.text.tokens import pad_id, padded_tensors, prompt_ids, slices

Losses = Callable[[], Iterable[Tensor]]
"""The loss in parts that add up to it, each with a graph of its own."""


def measure_stage(
    config: RunConfig, stream: Stream, model: DSIModel, codes_NT: np.ndarray, stage: int
) -> dict[str, Any] | None:
    """Content of sharpness.json; None when it is turned off.

    The documents, ``examples`` of U_n, follow from seed and stage; the model reads of each what
    indexing accuracy reads, and is to write its docid. The same on every rank, without
    communication.
    """
    settings = config.evaluation.sharpness
    if settings.examples == 0:
        return None
    batches = sample(config, stream, stage)
    device = next(model.parameters()).device
    codes = torch.from_numpy(codes_NT).to(device).long()
    targets = sum(batch.targets() for batch in batches)

    def losses() -> Iterator[Tensor]:
        for batch in batches:
            batch = batch.to(device)
            found = model(batch.input_ids, batch.attention_mask, codes[batch.documents])
            yield found.double().sum() / targets

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    was_training = model.training
    model.eval()
    try:
        found = measure(losses, weights, settings, derive(config.seed, "sharpness", stage))
    finally:
        model.train(was_training)
    return {
        "examples": targets,
        "weights": sum(weight.numel() for weight in weights),
        "rho": settings.rho,
        "ascents": settings.ascents,
        "iterations": settings.iterations,
        **found,
    }


def sample(config: RunConfig, stream: Stream, stage: int) -> list[Batch]:
    """The stage's documents, at most ``evaluation.batch_size`` in a batch, short ones first."""
    evaluation, members = config.evaluation, stream.members(stage)
    rng, count = numpy_rng(config.seed, "sharpness", stage), len(members)
    rows = members[rng.choice(count, min(evaluation.sharpness.examples, count), replace=False)]
    tokens = stream.tokens_at(stage)
    lengths = np.minimum(tokens.lengths_of(rows), evaluation.document_length)
    prompt = prompt_ids(stream.tokenizer, config.prompts.indexing)
    heads = slices(tokens, tokens.offsets[rows], lengths, prompt=prompt)
    order = np.argsort(lengths, kind="stable")
    pad = pad_id(stream.tokenizer)
    batches = []
    for start in range(0, len(order), evaluation.batch_size):
        own = order[start : start + evaluation.batch_size]
        ids, mask = padded_tensors(heads, own, pad)
        batches.append(Batch(ids, mask, torch.from_numpy(rows[own]), None))
    return batches


def measure(
    losses: Losses, weights: Sequence[Tensor], settings: SharpnessMeasurement, seed: int
) -> dict[str, float | None]:
    """Loss, its rises and the largest eigenvalue at ``weights``; None for what is not finite.

    ``rise_first`` is that of the first ascent: a step of length rho along the gradient.
    ``eigenvalue_residual`` is ||Hv - lambda v|| / |lambda|: large when the iteration has not
    converged, and lambda then lies between eigenvalues.
    """
    kept = [weight.detach().clone() for weight in weights]
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            loss, slope = _gradient(losses, weights)
            rises = _rises(losses, weights, kept, settings, loss, slope)
            _put(weights, kept)
            eigenvalue, residual = _eigenvalue(losses, weights, settings.iterations, seed)
    finally:
        _put(weights, kept)
    found = {
        "loss": float(loss),
        "gradient_norm": float(norm(slope)),
        # nan is neither above nor below anything, so max would hide it
        "rise": max(rises) if all(map(math.isfinite, rises)) else math.nan,
        "rise_first": rises[0],
        "eigenvalue": eigenvalue,
        "eigenvalue_residual": residual,
    }
    return {key: value if math.isfinite(value) else None for key, value in found.items()}


def _rises(
    losses: Losses,
    weights: Sequence[Tensor],
    kept: Sequence[Tensor],
    settings: SharpnessMeasurement,
    loss: Tensor,
    slope: list[Tensor],
) -> list[float]:
    """The loss after each ascent, less ``loss``."""
    rises, place = [], [torch.zeros_like(weight) for weight in kept]
    for _ in range(settings.ascents):
        place = plus(place, along(slope, settings.rho), 1.0)
        place = times(place, ratio(settings.rho, norm(place)).clamp(max=1.0))
        _put(weights, plus(kept, place, 1.0))
        there, slope = _gradient(losses, weights)
        rises.append(float(there - loss))
    return rises


def _eigenvalue(
    losses: Losses, weights: Sequence[Tensor], iterations: int, seed: int
) -> tuple[float, float]:
    """The Rayleigh quotient of the last vector, and how far that is from an eigenvector."""
    generator = torch.Generator().manual_seed(seed)
    product = [
        torch.randn(weight.shape, generator=generator, dtype=weight.dtype).to(weight.device)
        for weight in weights
    ]
    value = left = torch.zeros(())
    for _ in range(iterations):
        vector = along(product, 1.0)
        product = hessian_times(losses, weights, vector)
        value = dot(vector, product)
        left = norm(plus(product, vector, -value))
    return float(value), float(left / value.abs())


def hessian_times(
    losses: Losses, weights: Sequence[Tensor], vector: Sequence[Tensor]
) -> list[Tensor]:
    """The exact product of the loss's Hessian and a vector: the gradient of gradient * vector."""
    total = [torch.zeros_like(weight, requires_grad=False) for weight in weights]
    for loss in losses():
        slope = _derivatives(loss, weights, create_graph=True)
        along_vector = torch.stack([(a * b).sum() for a, b in zip(slope, vector, strict=True)])
        if along_vector.requires_grad:  # not so for a linear loss
            _add(total, _derivatives(along_vector.sum(), weights))
    return total


def _gradient(losses: Losses, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    value, total = None, [torch.zeros_like(weight, requires_grad=False) for weight in weights]
    for loss in losses():
        _add(total, _derivatives(loss, weights))
        value = loss.detach() if value is None else value + loss.detach()
    assert value is not None
    return value, total


def _derivatives(
    value: Tensor, weights: Sequence[Tensor], create_graph: bool = False
) -> list[Tensor]:
    # not backward(): that would leave gradients with the weights
    return [
        *torch.autograd.grad(
            value, weights, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )
    ]


def _add(total: list[Tensor], more: Sequence[Tensor]) -> None:
    for ours, theirs in zip(total, more, strict=True):
        ours.add_(theirs)


@torch.no_grad()
def _put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)

"""One update: passes over the micro-batches, penalties, sharpness, clipping, the optimizer's step.

The policy says where to look (``perturbation``) and what to keep (``combine``); what goes wrong in
sharpness-aware code elsewhere is done here once: the same random state in every pass, one
perturbation per update over all micro-batches, in-place perturbation and bitwise restoration, one
clip at the end.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from dsi.batching import Batch
from dsi.seeding import derive


def take_step(
    model: nn.Module,
    optimizer: Any,
    batch: Batch,
    codes_NT: Tensor,
    accelerator: Accelerator,
    *,
    micro_batches: int,
    seed: int,
    clip: float,
    label_smoothing: float,
    regularizer: Any,
    sharpness: Any,
    sharp: bool,
) -> Tensor:
    """Train on one batch; returns the summed loss over all ranks divided by the targets, detached.

    ``seed`` belongs to this update: dropout depends on it and on the rank, so that nothing that ran
    before (an evaluation, say) can change it.
    """
    parts = _parts(batch, accelerator, micro_batches)
    targets = batch.targets()
    optimizer.zero_grad(set_to_none=True)
    loss = _gradients(model, parts, targets, codes_NT, accelerator, seed, label_smoothing)
    raw = accelerator.unwrap_model(model)
    if sharp:
        weights = [p for p in raw.parameters() if p.grad is not None]
        clean = [p.grad for p in weights]
        kept = [p.detach().clone() for p in weights]
        try:
            with torch.no_grad():
                for p, step in zip(weights, sharpness.perturbation(weights, clean), strict=True):
                    p.add_(step)
            for p in weights:
                p.grad = None
            _gradients(model, parts, targets, codes_NT, accelerator, seed, label_smoothing)
        finally:
            with torch.no_grad():
                for p, before in zip(weights, kept, strict=True):
                    p.copy_(before)
        final = sharpness.combine(clean, [p.grad for p in weights])
        for p, gradient in zip(weights, final, strict=True):
            p.grad = gradient
    penalty = regularizer.penalty(raw)
    if penalty is not None:
        # once per update, whatever the number of micro-batches and ranks; on the unwrapped model,
        # so no synchronisation is due: every rank adds the same gradient
        penalty.backward()
    if clip > 0:
        accelerator.clip_grad_norm_(raw.parameters(), clip)
    optimizer.step()
    return accelerator.reduce(loss, reduction="sum")  # type: ignore[return-value]


def _parts(batch: Batch, accelerator: Accelerator, micro_batches: int) -> list[Batch]:
    world, rank = accelerator.num_processes, accelerator.process_index
    pieces = [
        batch.part(rank * micro_batches + i, world * micro_batches) for i in range(micro_batches)
    ]
    if world * micro_batches == 1:
        return [batch]
    return pieces


def _gradients(
    model: nn.Module,
    parts: Sequence[Batch],
    targets: int,
    codes_NT: Tensor,
    accelerator: Accelerator,
    seed: int,
    label_smoothing: float,
) -> Tensor:
    total = torch.zeros((), device=accelerator.device)
    for i, part in enumerate(parts):
        torch.manual_seed(derive(seed, accelerator.process_index, i))
        last = i == len(parts) - 1
        context = torch.enable_grad() if last else accelerator.no_sync(model)
        with context:
            part = _to(part, accelerator.device)
            with accelerator.autocast():
                losses = model(
                    input_ids=part.input_ids,
                    attention_mask=part.attention_mask,
                    codes=codes_NT[part.documents],
                    labels=part.labels,
                    label_smoothing=label_smoothing,
                )
            # normalised by the targets of the whole update, so that ranks and micro-batches of
            # unequal size add up to the gradient of one big batch; DDP averages over the ranks
            loss = losses.sum() / targets
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    return total


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
    return Batch(
        batch.input_ids.to(device, non_blocking=True),
        batch.attention_mask.to(device, non_blocking=True),
        batch.documents.to(device, non_blocking=True),
        labels,
    )

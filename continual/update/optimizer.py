"""The base optimizer, its schedule, and its state when parameters change their rows.

AdamW is torch's, Adafactor that of transformers: with torch's a rate above 1 / sqrt(updates so far)
is silently cut to it, which would defeat our schedule, and small squared gradients are floored
where the paper (Shazeer and Stern, ICML 2018) only adds 1e-30. Both Adafactors wait for the device
once or twice per tensor; torch's ``foreach`` does not spare that.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from continual.config.schema import TrainingConfig
from dsi.errors import UserError
from dsi.model.dsi_model import follow_rows

ENTRIES = {
    "AdamW": {"step", "exp_avg", "exp_avg_sq"},
    "TouchedAdamW": {"step", "row_step", "exp_avg", "exp_avg_sq"},
    "Adafactor": {"step", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq", "RMS"},
}
"""What an optimizer keeps per parameter: scalars, tensors of its shape, or of its rows (``_row``)
or columns (``_col``)."""


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or Adafactor over the trainable parameters; vectors (norms) are not decayed.

    A group's ``scale`` multiplies its learning rate. How the loss of the docid rows is computed is
    set here, too: which rows have a gradient decides which can be updated. Adafactor
    as T5X has it: steps, and so the decay, are shares of a tensor's root mean square (at least
    1e-3), without a first moment, the rate from outside.
    """
    docids: Any = getattr(model, "docids", None)
    if docids is not None:
        docids.samples, docids.sparse = config.docid_samples, config.docid_update == "touched"
    trainable = [
        (p, config.docid_learning_rate_scale if name.startswith("docids.") else 1.0)
        for name, p in model.named_parameters()
        if p.requires_grad
    ]
    groups = [
        {
            "params": [p for p, own in trainable if own == scale and (p.dim() > 1) == decayed],
            "weight_decay": config.weight_decay if decayed else 0.0,
            "lr": config.learning_rate * scale,
            "scale": scale,
        }
        for scale in dict.fromkeys((1.0, config.docid_learning_rate_scale))
        for decayed in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adafactor":
        from transformers.optimization import Adafactor

        return Adafactor(
            groups, scale_parameter=True, relative_step=False, warmup_init=False, beta1=None
        )
    if config.docid_update == "touched":
        return TouchedAdamW(groups, fused=True)
    return torch.optim.AdamW(groups, fused=True)


class TouchedAdamW(torch.optim.AdamW):
    """AdamW; of a parameter whose gradient is sparse, only the rows in it are updated.

    The other rows keep their values and second moment bit for bit. For such a parameter beta1 is 0:
    momentum would move rows long after their gradient, and without it AdamW on the dense gradient
    does nothing to a row without one but let its second moment fade and its weights decay, which
    the row makes up for when it is touched next (``row_step``: at which update it was last, 0 for
    never). So rows that are touched rarely take the long steps that AdamW gives rare gradients.
    Updates of each row counted apart, with momentum, halved Hits@10 (benchmarks/README.md).
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update."""
        found = [
            (parameter, group)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and parameter.grad.is_sparse
        ]
        kept = [parameter.grad for parameter, _ in found]
        for parameter, group in found:
            self._update_rows(parameter, group)
            parameter.grad = None
        loss = super().step(closure)
        for (parameter, _), gradient in zip(found, kept, strict=True):
            parameter.grad = gradient
        return loss

    def _update_rows(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.coalesce()
        rows, values = gradient.indices()[0], gradient.values()
        state, (_, beta_sq), rate = self.state[parameter], group["betas"], group["lr"]
        if not state:
            state["step"] = torch.zeros((), device=parameter.device)
            state["row_step"] = parameter.new_zeros(len(parameter), dtype=torch.float32)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        now, last = state["step"].add_(1), state["row_step"][rows]
        # in float64: powers of numbers near one have few digits left in float32
        since = torch.where(last > 0, now - last, 1).double()[:, None]
        faded = (beta_sq**since).to(values.dtype)
        square = (state["exp_avg_sq"][rows] * faded).addcmul_(values, values, value=1 - beta_sq)
        state["row_step"][rows] = now
        state["exp_avg_sq"][rows] = square
        bias_sq = (1 - beta_sq ** now.double()).sqrt().to(values.dtype)
        decayed = ((1 - rate * group["weight_decay"]) ** since).to(values.dtype)
        size = (square.sqrt_() / bias_sq).add_(group["eps"])
        parameter[rows] = (parameter[rows] * decayed).addcdiv_(values, size, value=-rate)


def clip_gradient(accelerator: Any, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Clip the norm of all gradients at ``largest``, sparse ones included; their norm before."""
    parameters = [p for p in parameters if p.grad is not None]
    sparse = any(cast(Tensor, p.grad).is_sparse for p in parameters)
    elsewhere = any(p.device.type != "cpu" or hasattr(p, "full_tensor") for p in parameters)
    if elsewhere and not sparse:
        return accelerator.clip_grad_norm_(parameters, largest)
    values = gradient_values(parameters)
    size = nn.utils.get_total_norm(values)
    scale = largest / (size + 1e-6)
    if not scale >= 1:  # on a processor this question is cheap, and multiplying by one is not
        torch._foreach_mul_(values, scale)  # type: ignore[reportPrivateImportUsage]
    return size


def gradient_values(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients that there are; of a sparse one the rows that it has, each of them once."""
    found = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            found.append(parameter.grad._values())
        elif parameter.grad is not None:
            found.append(parameter.grad)
    return found


def peak_rate(config: TrainingConfig, stage: int) -> float:
    """The highest learning rate of a stage."""
    # a model that starts from new weights is no later stage
    if stage > 0 and not config.restart and config.later_learning_rate is not None:
        return config.later_learning_rate
    return config.learning_rate


def learning_rate(config: TrainingConfig, stage: int, update: int, updates: int) -> float:
    """The rate of update 0 .. updates - 1 of a stage: linear warm-up, then the decay.

    ``inverse_sqrt`` (T5's pretraining, but for the constant start there) does not depend on
    ``updates``: after w updates of warm-up the rate of update u is the peak times sqrt(w / u).
    """
    peak = peak_rate(config, stage)
    warmup = config.warmup * updates if config.warmup < 1 else config.warmup
    if update < warmup:
        return peak * (update + 1) / (math.floor(warmup) + 1)
    left = (updates - update) / max(1.0, updates - warmup)
    scale = max(1.0, warmup)
    decay = {
        "constant": 1.0,
        "linear": left,
        "cosine": 0.5 - 0.5 * math.cos(math.pi * left),
        "inverse_sqrt": math.sqrt(scale / (scale + update - warmup)),
    }
    return peak * min(1.0, decay[config.schedule])


def named_state(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The optimizer's tensors by parameter name: ``docids.rows/exp_avg`` and so on.

    By name, not by position, so that it survives another grouping and can be stored as safetensors.
    A whole number becomes an int64 scalar.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}/{key}": value if torch.is_tensor(value) else torch.tensor(value)
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    state: Mapping[str, Tensor],
    origins: Mapping[str, Tensor] | None = None,
) -> None:
    """Put :func:`named_state` into an optimizer over ``model``.

    ``origins``: for a parameter that was resized since, where each of its rows was before (see
    ``DSIModel.resize``); old rows keep their state bit for bit and new rows start at zero. Of a
    factored second moment the columns are kept as they are and new rows start at the mean of the
    old: an old row's estimate is row * column / mean of rows, which zeros would change, and they
    would make the first steps of new rows the largest.

    Under AdamW a new row is one that was always there without a gradient: zero moments under the
    parameter's count of t updates, whose bias correction is over. Its steps are those of a rare
    gradient: of gradients of one sign the k-th moves it by::

        rate * (1 - beta1^k) / sqrt((1 - beta2^k) / (1 - beta2^(t + k)))

    which for a large t is 3.2 rates at first, at most 6.6 (k = 12), and 2 after 300 updates. An
    optimizer made with the row would take steps of one rate (a bias correction by the row's own
    age), and was tried: with it new documents were learnt much less well (benchmarks/README.md).
    """
    by_name, known = dict(model.named_parameters()), ENTRIES.get(type(optimizer).__name__)
    for key, value in state.items():
        name, entry = key.rsplit("/", 1)
        parameter = by_name.get(name)
        if parameter is None or not parameter.requires_grad:
            continue
        if known is not None and entry not in known:
            raise UserError(
                f"training.optimizer: the state of {name} has {entry!r}, which is not of this one; "
                "go on with the optimizer that the run began with"
            )
        # fused AdamW keeps its step counter beside the parameter
        value = value.detach().clone().to(parameter.device)
        if origins and name in origins and value.dim() and not entry.endswith("_col"):
            fill = float(value.mean()) if entry.endswith("_row") else 0.0
            value = follow_rows(value, origins[name], fill)
        # torch counts steps in float tensors, transformers in Python's whole numbers
        count = value.dim() == 0 and not value.is_floating_point()
        optimizer.state[parameter][entry] = value.item() if count else value

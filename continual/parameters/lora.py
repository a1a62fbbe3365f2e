"""Low-rank adapters in every stage after D_0, by PEFT."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from continual.parameters.docid_rows import DocidRows
from continual.stream.view import StageView
from dsi.errors import UserError
from dsi.model.dsi_model import DSIModel
from dsi.seeding import derive
from dsi.settings import Positive, Settings

ADAPTER = "default"  # PEFT's name for the only one
PROJECTIONS = {  # modules of T5's layers; v1.1 and mT5 have two in the place of wi
    **{name: (name,) for name in ("q", "k", "v", "o", "wo")},
    "wi": ("wi", "wi_0", "wi_1"),
}


class Lora(DocidRows):
    """Stage 0 trains everything; later ones train W + alpha / r * B A, W frozen, and docid rows.

    Source: Hu et al. (ICLR 2022), in the code of PEFT: A (r, in) uniform in +-1 / sqrt(in), B
    (out, r) zero. At the end of a stage B A is added to W, and the next stage has new ones.

    Relations: with ``r: 0`` this is ``docid_rows``, bit for bit.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        r: Annotated[int, Ge(0)] = 8
        """Rank of what a stage adds to a weight; 0: no adapters."""
        alpha: Positive = 16.0
        """B A counts alpha / r times."""
        targets: tuple[Literal["q", "k", "v", "o", "wi", "wo"], ...] = ("q", "v")
        """Weights that have adapters: of every attention q, k, v, o; of feed-forward layers wi,
        wo."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.targets or not set(self.targets) <= set(PROJECTIONS):
                raise UserError(f"targets: give some of {', '.join(PROJECTIONS)}")

    def __init__(self, config: Config):
        super().__init__(config)
        if config.r and find_spec("peft") is None:
            raise UserError("parameters.name: lora needs the package; pip install peft")

    def shape(self, model: DSIModel, stage: int) -> None:
        """Adapters, zero until the stage begins or a checkpoint is loaded."""
        if stage == 0 or not self.config.r:
            return
        from peft import LoraConfig, inject_adapter_in_model

        kinds = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        names = [name for target in self.config.targets for name in PROJECTIONS[target]]
        asked: Any = LoraConfig(
            r=self.config.r,
            lora_alpha=self.config.alpha,
            target_modules=[name for name in names if name in kinds],
        )
        with torch.random.fork_rng(devices=[]):  # it draws A from the global generator
            inject_adapter_in_model(asked, model)
        del model.peft_config  # PEFT's note of what it did, which folding would leave behind
        for _, _, layer in _layers(model):
            nn.init.zeros_(layer.lora_A[ADAPTER].weight)

    def select(self, model: DSIModel, stage: int) -> None:
        """Adapters, and what ``docid_rows`` trains."""
        super().select(model, stage)
        for _, _, layer in _layers(model):
            for part in (layer.lora_A, layer.lora_B):
                part.requires_grad_(True)

    @torch.no_grad()
    def begin_stage(self, view: StageView) -> None:
        """Draw A, by the run's seed and the stage."""
        generator = torch.Generator().manual_seed(derive(view.seed, "lora", view.stage))
        for _, _, layer in _layers(view.model):
            weight: Tensor = layer.lora_A[ADAPTER].weight
            most = weight.shape[1] ** -0.5
            drawn = torch.empty(weight.shape).uniform_(-most, most, generator=generator)
            weight.copy_(drawn)

    def end_stage(self, view: StageView) -> None:
        """What the stage has learnt becomes part of the weights."""
        _fold(view.model)

    @contextmanager
    def folded(self, model: DSIModel) -> Iterator[None]:
        """Within: a plain model of the weights that the adapters make; the old ones come back."""
        layers = list(_layers(model))
        kept = _fold(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for (parent, name, layer), weight in zip(layers, kept, strict=True):
                    layer.get_base_layer().weight.copy_(weight)
                    setattr(parent, name, layer)


def _layers(model: DSIModel) -> list[tuple[nn.Module, str, Any]]:
    """Layers with adapters: the parent module, the name in it, and the layer."""
    found = []
    for parent in list(model.modules()):
        for name, layer in parent.named_children():
            if hasattr(layer, "lora_A"):
                found.append((parent, name, layer))
    return found


@torch.no_grad()
def _fold(model: DSIModel) -> list[Tensor]:
    """Replace layers with adapters by plain ones; returns the weights without the adapters."""
    kept = []
    for parent, name, layer in _layers(model):
        plain = layer.get_base_layer()
        kept.append(plain.weight.clone())
        plain.weight.add_(layer.get_delta_weight(ADAPTER))
        setattr(parent, name, plain)
    return kept

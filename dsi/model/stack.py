"""T5's stacks as training runs them: transformers' weights and numbers with less work.

What is saved over transformers' own forward pass, with the same result up to rounding: mask and
position bias are one tensor for all layers; attention is three operations instead of a dozen; the
cross-attention of a short docid reads the encoder's states themselves, with the projections of keys
and values moved to the few positions that ask; norms keep less for the backward pass.

Shape legend: B batch, L keys, T queries of attention, D width, H heads, A width of a head.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import T5Config
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import (
    T5Attention,
    T5Block,
    T5DenseActDense,
    T5LayerCrossAttention,
    T5LayerNorm,
    T5Stack,
)

from dsi.model.cross_attention import read, reading_is_less
from dsi.model.dropout import relu_dropped


class Stack(T5Stack):
    """A T5Stack without a cache of keys and values, which training does not use.

    ``self_heads``: heads of self-attention, where they are not as many as the cross-attention's.
    """

    def __init__(self, config: T5Config, self_heads: int | None = None):
        own = copy.copy(config)
        own.num_heads = self_heads or config.num_heads
        super().__init__(own)
        if self_heads is not None and self.is_decoder:
            for number, block in enumerate(self.block):
                cast(Any, block).layer[1] = T5LayerCrossAttention(config, layer_idx=number)
            self.init_weights()  # only what is new; DSIModel would leave its spread to nn.Linear
        for block in self.block:  # of the same layers; T5Stack makes them itself
            block.__class__ = Block

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, T5Attention) and module.n_heads != self.config.num_heads:
            # T5 takes the number of heads from the configuration
            nn.init.normal_(module.o.weight, 0.0, module.inner_dim**-0.5)

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: custom modules without weights of their own would keep torch's initial values."""
        return False

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> BaseModelOutput:
        """States (B, T, D) of words or of ``inputs_embeds`` (B, T, D); masks are (B, T), (B, L)."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        assert inputs_embeds is not None
        hidden, length = self.dropout(inputs_embeds), inputs_embeds.shape[1]
        unseen = torch.zeros(1, 1, 1, 1, device=hidden.device)
        if attention_mask is not None:
            unseen = _unseen(attention_mask)
        if self.is_decoder:
            later = torch.ones(length, length, dtype=torch.bool, device=hidden.device).triu(1)
            unseen = unseen + later.float().masked_fill(later, _LOW)
        source_unseen = None
        if encoder_hidden_states is not None:
            assert encoder_attention_mask is not None
            source_unseen = _unseen(encoder_attention_mask)
        bias = None
        for block in self.block:
            hidden, bias = block(hidden, unseen, bias, encoder_hidden_states, source_unseen)
        return BaseModelOutput(last_hidden_state=self.dropout(_norm(self.final_layer_norm, hidden)))


class Block(T5Block):
    """One layer; the first one's bias (1 or B, H, T, T), mask included, serves the others."""

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        unseen: Tensor,
        bias: Tensor | None,
        source: Tensor | None,
        source_unseen: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """States (B, T, D) after this layer, and the bias."""
        own: Any = self.layer[0]
        if bias is None:
            length = hidden.shape[1]
            bias = cast(Tensor, own.SelfAttention.compute_bias(length, length) + unseen)
        mixed = _attend(own.SelfAttention, _norm(own.layer_norm, hidden), bias, own.dropout)
        hidden = hidden + own.dropout(mixed)
        if source is not None:
            cross: Any = self.layer[1]
            asking, attention = _norm(cross.layer_norm, hidden), cross.EncDecAttention
            read = _read if _reading_is_less(attention, asking, source) else _attend
            mixed = read(attention, asking, source_unseen, cross.dropout, source)
            hidden = hidden + cross.dropout(mixed)
        feed: Any = self.layer[-1]
        inner = _feed(feed.DenseReluDense, _norm(feed.layer_norm, hidden))
        return hidden + feed.dropout(inner), bias


def _feed(dense: Any, hidden: Tensor) -> Tensor:
    """The feed-forward layer: as it is, but that ReLU and dropout are one operation."""
    if type(dense) is not T5DenseActDense or type(dense.act) is not nn.ReLU:
        return dense(hidden)
    inner = relu_dropped(dense.dropout, dense.wi(hidden))
    return dense.wo(inner.to(dense.wo.weight.dtype))


_LOW = torch.finfo(torch.bfloat16).min / 4  # the sum of two is still finite


def _unseen(mask_BL: Tensor) -> Tensor:
    """What is added to scores (B, H, T, L): nothing where the mask is set."""
    away = mask_BL == 0
    return away.float().masked_fill(away, _LOW)[:, None, None, :]


def _attend(
    attention: T5Attention,
    hidden: Tensor,
    bias: Tensor | None,
    dropout: nn.Module,
    source: Tensor | None = None,
) -> Tensor:
    """Attention over ``source``, or over the states themselves; T5 does not scale its scores."""
    keys = hidden if source is None else source

    def heads(states: Tensor, projection: nn.Module) -> Tensor:
        return projection(states).unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)

    q, k, v = heads(hidden, attention.q), heads(keys, attention.k), heads(keys, attention.v)
    if hidden.device.type == "cpu":
        scores = torch.matmul(q, k.transpose(2, 3))
        weights = torch.softmax(scores if bias is None else scores + bias, -1)
        mixed = torch.matmul(dropout(weights).to(v.dtype), v)
    else:  # one kernel
        p = attention.dropout if attention.training else 0.0
        given = None if bias is None else bias.to(q.dtype).expand(len(q), -1, -1, -1)
        mixed = functional.scaled_dot_product_attention(q, k, v, given, p, scale=1.0)
    return attention.o(mixed.transpose(1, 2).flatten(2))


def _reading_is_less(attention: T5Attention, hidden: Tensor, source: Tensor) -> bool:
    """Whether :func:`_read` has fewer multiplications than :func:`_attend`."""
    if type(attention.k) is not nn.Linear or type(attention.v) is not nn.Linear:
        return False  # wrapped: its weight is not all that it computes
    asking = (*hidden.shape[:2], attention.n_heads, attention.key_value_proj_dim)
    return reading_is_less(asking, source.shape)


def _read(
    attention: T5Attention, hidden: Tensor, bias: Tensor | None, dropout: nn.Module, source: Tensor
) -> Tensor:
    """As :func:`_attend`, by :func:`dsi.model.cross_attention.read`."""

    def attend(q_BRD: Tensor) -> Tensor:
        scores_BRL = torch.matmul(q_BRD, source.transpose(1, 2))
        if bias is not None:
            scores_BRL = scores_BRL + bias[:, 0]
        weights = dropout(torch.softmax(scores_BRL, -1)).to(source.dtype)
        return torch.matmul(weights, source)

    q_BTHA = attention.q(hidden).unflatten(-1, (attention.n_heads, -1))
    return attention.o(read(q_BTHA, attention.k.weight, attention.v.weight, source, attend))


def _norm(norm: T5LayerNorm, hidden: Tensor) -> Tensor:
    """T5's norm (no mean, no bias)."""
    if hidden.device.type != "cpu":
        return functional.rms_norm(hidden, hidden.shape[-1:], norm.weight, norm.variance_epsilon)
    # differentiable as often as one likes; and a compiler fuses it by itself
    if not norm.training or torch.compiler.is_compiling():
        return norm(hidden)
    return _Norm.apply(hidden, norm.weight, norm.variance_epsilon)  # type: ignore[return-value]


class _Norm(torch.autograd.Function):
    """x / sqrt(mean of squares + epsilon) * weight, with half the passes over memory."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        values = hidden if hidden.dtype == torch.float64 else hidden.float()
        scale = torch.linalg.vector_norm(values, dim=-1, keepdim=True).square_()
        scale = scale.div_(values.shape[-1]).add_(epsilon).rsqrt_()
        normed = values * scale
        ctx.save_for_backward(normed, scale, weight)
        ctx.dtype = hidden.dtype
        low = weight.dtype in (torch.bfloat16, torch.float16)  # then what follows is, too
        return (normed * weight).to(weight.dtype) if low else normed * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        normed, scale, weight = ctx.saved_tensors
        gradient = gradient.to(normed.dtype)
        of_weight = (gradient * normed).flatten(0, -2).sum(0).to(weight.dtype)
        inner = gradient * weight
        along = torch.linalg.vecdot(inner, normed)[..., None].div_(-normed.shape[-1])
        return inner.addcmul_(normed, along).mul_(scale).to(ctx.dtype), of_weight, None

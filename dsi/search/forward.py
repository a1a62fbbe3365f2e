"""The forward pass of search and of query generation: T5's stacks where nothing is trained.

The same numbers as transformers' T5 (and :class:`dsi.model.dsi_model.DSIModel`) in evaluation mode,
up to rounding, with less work: projections that read one input are one matrix product, the
encoder's linear layers see no padding, and keys and values of the cross-attention are computed once
per text, or not at all where one step is all. The decoder makes one step at a time
(:meth:`Stacks.decode`); how it keeps the past is up to the caller: :class:`Past` for beams,
:class:`dsi.queries.sampling.CachedDecoder` for samples, :class:`_OneStep` for atomic docids.

Search: the beams of a query are the query axis of its attention, the first decoder step has one row
per query, and the self-attention keeps every key where it was written: a beam finds the keys of its
own past by a mask, so choosing beams moves no memory.

Shape legend: B texts (queries), L source length, F tokens of the batch without padding, D width,
H heads, A head width, I = H x A, K beams, S cached positions x beams, C codes.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from dsi.model.cross_attention import read, reading_is_less
from dsi.model.docid_loss import at_least_float32

if TYPE_CHECKING:
    from dsi.model.dsi_model import DSIModel


FEW = 64  # rows of a matrix product, see _project


class _Layer(NamedTuple):
    """One T5 layer's weights; those of ``cross`` are absent in encoders."""

    norm: Tensor
    qkv: Tensor
    o: Tensor
    cross_norm: Tensor | None
    cross_q: Tensor | None
    cross_k: Tensor | None
    cross_v: Tensor | None
    cross_o: Tensor | None
    ff_norm: Tensor
    wi: Tensor
    wo: Tensor


@dataclass
class EncodedTexts:
    """What every decoder step reads of B texts.

    ``states`` (B, L, D), zeros where a text is padded; ``mask`` bool (B, L); ``rows`` (F,): the
    places of the tokens among B x L, None where no text is padded; ``decoder``: the layers that
    read.
    """

    states: Tensor
    mask: Tensor
    bias: Tensor
    rows: Tensor | None
    decoder: "list[_Layer]"
    heads: int
    _known: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def keys_and_values(self, layer: int) -> tuple[Tensor, Tensor]:
        """What a decoder layer's cross-attention reads, (B, H, L, A) each; computed once."""
        if layer not in self._known:
            cross_k, cross_v = self.decoder[layer].cross_k, self.decoder[layer].cross_v
            assert cross_k is not None and cross_v is not None
            batch, length, _ = self.states.shape
            hidden_FD = self.states.flatten(0, 1)
            hidden_FD = hidden_FD if self.rows is None else hidden_FD[self.rows]
            both = _project(hidden_FD, torch.cat([cross_k, cross_v]))
            both = _spread(both, self.rows, batch * length)
            k, v = both.view(batch, length, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
            self._known[layer] = k.contiguous(), v.contiguous()
        return self._known[layer]

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """The cross-attention of a decoder layer, (B, H, K, A) as ``q``."""
        return attention(q, *self.keys_and_values(layer), self.bias)


class Reading(Protocol):
    """The texts that a decoder step reads: :class:`EncodedTexts`, or another layout of them."""

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """The cross-attention of a decoder layer, of the shape of ``q``."""
        ...


class Cache(Protocol):
    """The self-attention of a decoder that goes on step by step."""

    def extend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep this step's keys and values (B, H, K, A); attention over them and those before."""
        ...


class Stacks:
    """A T5's encoder and decoder with fused weights, for inference alone.

    Some weights are the model's own and some are copies: when the model has changed, make a new one
    and use the old one no more. ``dtype``: of weights and activations (bfloat16 on devices with
    such units); the last norm of the decoder is float32 at least.
    """

    def __init__(self, model: Any, dtype: torch.dtype | None = None):
        config, encoder, decoder = model.config, model.encoder, model.decoder
        weight = encoder.embed_tokens.weight
        self.dtype, self.device = dtype or weight.dtype, weight.device
        self.heads, self.head_width = config.num_heads, config.d_kv
        self.self_heads: int = getattr(config, "self_heads", None) or config.num_heads
        self.epsilon = config.layer_norm_epsilon
        self.gated: bool = config.is_gated_act
        self.activation = encoder.block[0].layer[-1].DenseReluDense.act
        with torch.no_grad():
            self.embedding = self._cast(weight)
            self.encoder = [self._layer(block, False) for block in encoder.block]
            self.decoder = [self._layer(block, True) for block in decoder.block]
            self.encoder_norm = self._cast(encoder.final_layer_norm.weight)
            last = decoder.final_layer_norm.weight
            self.decoder_norm = last.detach().to(at_least_float32(last))
        self._encoder_bias = encoder.block[0].layer[0].SelfAttention
        self._decoder_bias = decoder.block[0].layer[0].SelfAttention

    def _cast(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self.dtype)

    def _layer(self, block: Any, decoder: bool) -> _Layer:
        own, dense = block.layer[0], block.layer[-1]
        attended, feed = own.SelfAttention, dense.DenseReluDense
        cross = block.layer[1] if decoder else None
        other = cross.EncDecAttention if cross is not None else None
        wi = torch.cat([feed.wi_0.weight, feed.wi_1.weight]) if self.gated else feed.wi.weight
        fused = torch.cat([attended.q.weight, attended.k.weight, attended.v.weight])
        return _Layer(
            self._cast(own.layer_norm.weight),
            self._cast(fused),
            self._cast(attended.o.weight),
            self._cast(cross.layer_norm.weight) if cross is not None else None,
            self._cast(other.q.weight) if other is not None else None,
            self._cast(other.k.weight) if other is not None else None,
            self._cast(other.v.weight) if other is not None else None,
            self._cast(other.o.weight) if other is not None else None,
            self._cast(dense.layer_norm.weight),
            self._cast(wi),
            self._cast(feed.wo.weight),
        )

    @torch.no_grad()
    def encode(self, input_ids: Tensor, attention_mask: Tensor) -> EncodedTexts:
        """Read texts (B, L); padding costs attention, but no linear layer."""
        batch, length = input_ids.shape
        mask = attention_mask.bool()
        bias = self._encoder_bias.compute_bias(length, length).to(self.dtype)
        bias = bias.masked_fill(~mask[:, None, None, :], -torch.inf)
        full = bool(mask.all())
        rows = None if full else mask.flatten().nonzero()[:, 0]
        tokens_F = input_ids.flatten() if rows is None else input_ids.flatten()[rows]
        hidden_FD = self.embedding[tokens_F]
        for layer in self.encoder:
            fused = _project(_norm(hidden_FD, layer.norm, self.epsilon), layer.qkv)
            fused = _spread(fused, rows, batch * length)
            # (3, B, H, L, A)
            q, k, v = fused.view(batch, length, 3, self.self_heads, -1).permute(2, 0, 3, 1, 4)
            mixed = attention(q, k, v, bias).transpose(1, 2).reshape(batch * length, -1)
            hidden_FD = hidden_FD + _project(mixed if rows is None else mixed[rows], layer.o)
            hidden_FD = hidden_FD + self._feed(hidden_FD, layer)
        hidden_FD = _norm(hidden_FD, self.encoder_norm, self.epsilon)
        states = _spread(hidden_FD, rows, batch * length)
        seen = torch.zeros(mask.shape, dtype=self.dtype, device=mask.device)
        seen = seen.masked_fill(~mask, -torch.inf)[:, None, None, :]
        states = states.view(batch, length, -1)
        return EncodedTexts(states, mask, seen, rows, self.decoder, self.heads)

    @torch.no_grad()
    def decode(self, hidden: Tensor, encoded: Reading, past: Cache) -> Tensor:
        """Decoder states (B, K, D) after the embedded inputs ``hidden`` (B, K, D) of one step.

        They are float32 at least, ready to be scored. Inputs with B = 1 are the same for all texts,
        and computed once until the first cross-attention.
        """
        for number, layer in enumerate(self.decoder):
            batch, width = hidden.shape[:2]
            fused = _project(_norm(hidden, layer.norm, self.epsilon), layer.qkv)
            q, k, v = fused.view(batch, width, 3, self.self_heads, -1).permute(2, 0, 3, 1, 4)
            mixed = past.extend(number, q, k, v).transpose(1, 2).reshape(batch, width, -1)
            hidden = hidden + _project(mixed, layer.o)
            assert layer.cross_norm is not None
            assert layer.cross_q is not None
            assert layer.cross_o is not None
            q = _project(_norm(hidden, layer.cross_norm, self.epsilon), layer.cross_q)
            q = q.view(batch, width, self.heads, -1).transpose(1, 2)
            mixed = encoded.attend(number, q).transpose(1, 2).flatten(2)
            hidden = hidden + _project(mixed, layer.cross_o)
            hidden = hidden + self._feed(hidden, layer)
        return _norm(hidden.to(self.decoder_norm.dtype), self.decoder_norm, self.epsilon)

    def position_bias(self, positions: int) -> Tensor:
        """T5's relative bias of the decoder's self-attention, (H, positions, positions)."""
        return self._decoder_bias.compute_bias(positions, positions)[0].to(self.dtype)

    def _feed(self, hidden: Tensor, layer: _Layer) -> Tensor:
        inner = _project(_norm(hidden, layer.ff_norm, self.epsilon), layer.wi)
        if self.gated:
            gate, linear = inner.chunk(2, dim=-1)
            return _project(self.activation(gate) * linear, layer.wo)
        return _project(self.activation(inner), layer.wo)


class Inference(Stacks):
    """A DSIModel's weights made ready for search; as :class:`Stacks`, not for a changed model.

    Scores are float32 whatever ``dtype`` is: docid rows and their products with the states are
    never narrower, since with the 8 bits of a bfloat16 score many documents would tie.
    """

    def __init__(self, model: "DSIModel", dtype: torch.dtype | None = None):
        super().__init__(model, dtype)
        self.code_sizes, self.code_starts = model.code_sizes, model.code_starts
        with torch.no_grad():
            self.start = self._cast(model.docids.start)
            self.rows = model.docids.rows.detach().to(at_least_float32(model.docids.rows))
            several = len(self.code_sizes) > 1
            self.inputs = self._cast(model.docids.inputs) if several else self.start[:0]

    @torch.no_grad()
    def past(self, batch: int, beams: int, positions: int) -> "Past":
        """Empty room for the self-attention keys and values of one search."""
        slots = 1 + (positions - 1) * beams
        shape = (len(self.decoder), 2, batch, self.self_heads, slots, self.head_width)
        empty = torch.empty(0, dtype=torch.long, device=self.device)
        kept = torch.empty(shape, dtype=self.dtype, device=self.device)
        return Past(kept, self.position_bias(positions), empty)

    @torch.no_grad()
    def step(self, codes_BK: Tensor | None, encoded: EncodedTexts, past: "Past") -> Tensor:
        """Decoder states (B, K, D) after one more code of every beam; None: before the first."""
        position, batch = past.position, len(encoded.states)
        if codes_BK is None:
            hidden = self.start.expand(batch, 1, -1)
        else:
            hidden = self.inputs[codes_BK + self.code_starts[position - 1]]
        past.begin(batch, hidden.shape[1])
        return self.decode(hidden, encoded, past)

    def logits(self, hidden: Tensor, position: int) -> Tensor:
        """Scores (..., C) over the codes of a position."""
        start = self.code_starts[position]
        return _project(hidden, self.rows[start : start + self.code_sizes[position]])

    @torch.no_grad()
    def query_states(
        self, input_ids: Tensor, attention_mask: Tensor, encoded: EncodedTexts | None = None
    ) -> Tensor:
        """The decoder's state (B, D) before the first code: what ranks atomic docids.

        ``encoded``: what :meth:`encode` gave for the same queries.
        """
        step = _OneStep(encoded or self.encode(input_ids, attention_mask))
        return self.decode(self.start[None, None], step, step)[:, 0]


@dataclass(frozen=True)
class _OneStep:
    """The first step of a decoder, when no other follows: (1, H, 1, A) for all texts or (B, ...).

    Keys and values of the texts are computed only where they are less work than reading the states.
    """

    encoded: EncodedTexts

    def attend(self, layer: int, q: Tensor) -> Tensor:
        """See :class:`Reading`; (B, H, 1, A)."""
        encoded, q_BTHA = self.encoded, q.transpose(1, 2)
        if not reading_is_less(q_BTHA.shape, encoded.states.shape):
            return encoded.attend(layer, q.expand(len(encoded.states), -1, -1, -1))
        k_ID, v_ID = encoded.decoder[layer].cross_k, encoded.decoder[layer].cross_v
        assert k_ID is not None and v_ID is not None
        states = encoded.states[:, None]

        def mix(q_BRD: Tensor) -> Tensor:
            return attention(q_BRD[:, None], states, states, encoded.bias)[:, 0]

        mixed = read(q_BTHA, k_ID, v_ID, encoded.states, mix)
        return mixed.unflatten(2, q_BTHA.shape[2:]).transpose(1, 2)

    def extend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Cache`: there is one key, so attention gives its value."""
        return v


@dataclass
class Past:
    """Keys and values of the positions so far, and which of them belong to which beam.

    ``kept`` (layers, 2, B, H, S, A); ``bias`` (H, T, T): T5's relative positions; ``slots``
    (B, K, positions): where the keys of a beam's own past are.
    """

    kept: Tensor
    bias: Tensor
    slots: Tensor
    position: int = 0
    used: int = 0
    """Slots in use."""
    seen: Tensor | None = None
    """What is added to scores in this step, see :meth:`_seen`."""

    def begin(self, batch: int, width: int) -> None:
        """Make room for the next position of ``width`` beams."""
        start = 0 if self.position == 0 else 1 + (self.position - 1) * width
        new = torch.arange(start, start + width, device=self.kept.device)
        new = new.expand(batch, width)[:, :, None]
        self.slots = new if self.position == 0 else torch.cat([self.slots, new], dim=2)
        self.position += 1
        self.used = start + width
        self.seen = self._seen()

    def extend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Cache`."""
        assert self.seen is not None
        keys, values = self.kept[layer, 0], self.kept[layer, 1]
        own = slice(self.used - q.shape[2], self.used)
        keys[:, :, own], values[:, :, own] = k, v
        return attention(q, keys[:, :, : self.used], values[:, :, : self.used], self.seen)

    def choose(self, parents_BK: Tensor) -> None:
        """The beams go on from these; only the map of slots is gathered, not the keys."""
        index = parents_BK[:, :, None].expand(-1, -1, self.slots.shape[2])
        self.slots = self.slots.gather(1, index)

    def _seen(self) -> Tensor:
        """T5's relative bias at a beam's own past and -inf elsewhere: (B, H, K, S)."""
        batch, width, positions = self.slots.shape
        heads = self.bias.shape[0]
        blocked = self.bias.new_full((batch, heads, width, self.used), -torch.inf)
        own = self.bias[:, positions - 1, :positions][None, :, None, :]
        index = self.slots[:, None].expand(batch, heads, width, positions)
        return blocked.scatter_(3, index, own.expand(batch, heads, width, positions))


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Softmax of ``q k' + bias``, times ``v``; T5 does not scale by the head width."""
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)


def _project(hidden: Tensor, weight: Tensor) -> Tensor:
    """``hidden @ weight.T``, (..., D) x (O, D) -> (..., O).

    On a processor a product with few rows is slower than it need be: with 10 rows of 512 and 2,048
    outputs ``weight @ hidden.T`` took 0.6 of the time, with 14 half, from some hundred on the same.
    """
    rows = hidden.numel() // hidden.shape[-1]
    if hidden.is_cuda or not 1 < rows <= FEW:
        return hidden @ weight.T
    product = weight @ hidden.reshape(rows, -1).T
    return product.T.reshape(*hidden.shape[:-1], -1).contiguous()


def _norm(hidden: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return functional.rms_norm(hidden, weight.shape, weight, epsilon)


def _spread(flat: Tensor, rows: Tensor | None, total: int) -> Tensor:
    """Rows back at their padded places, zeros elsewhere."""
    if rows is None:
        return flat
    return flat.new_zeros(total, flat.shape[1]).index_copy_(0, rows, flat)

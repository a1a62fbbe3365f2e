"""What the beam search of ``dsi.search.beam_search`` is compared with: transformers' ``generate``.

The same weights in a :class:`~transformers.T5ForConditionalGeneration`, the two ways of keeping it
to valid docids (a dictionary walked per beam, as in GENRE, De Cao et al. 2021, and our flat trie as
a logits processor), and a T5-small that writes docids in its 32k-word text vocabulary.

In the vocabulary of a decoder, code c of position t is the token ``offsets[t] + c``.

Shape legend: B queries, L source length, K beams, R = B x K, N documents, T docid length, V tokens.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    T5Config,
    T5ForConditionalGeneration,
)

from dsi.model.dsi_model import DSIModel
from dsi.search.trie import Trie

IMPOSSIBLE = -1e9  # generate's own number for "never"; exp of it is 0
UNREAL = -1e8  # beams below it are generate's fillers: it always holds K, however few there are

# the keys and values of earlier steps: their name in newer releases of transformers, and in older
_names = inspect.signature(T5ForConditionalGeneration.forward).parameters
CACHE = "cache" if "cache" in _names else "past_key_values"

AllowedTokens = Callable[[int, Tensor], list[int]]


# --- models ---------------------------------------------------------------------------------------


class DocidT5(T5ForConditionalGeneration):
    """T5 whose decoder reads and writes docid tokens, one start-and-padding token behind them.

    At each position only that position's tokens have a probability: what ``generate`` normalises
    over is what DSIModel normalises over.
    """

    allowed_TV: Tensor

    def __init__(self, config: T5Config, tokens: int, allowed_TV: Tensor):
        super().__init__(config)
        self.decoder.embed_tokens = nn.Embedding(tokens, config.d_model)
        self.lm_head = nn.Linear(config.d_model, tokens, bias=False)
        self.register_buffer("allowed_TV", allowed_TV, persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base class, with the other positions' tokens at -1e9."""
        cache = kwargs.get(CACHE)
        past = 0 if cache is None else int(cache.get_seq_length())
        output: Any = super().forward(*args, **kwargs)
        steps = torch.arange(past, past + output.logits.shape[1], device=output.logits.device)
        allowed = self.allowed_TV[steps.clamp(max=len(self.allowed_TV) - 1)]
        output.logits = output.logits.masked_fill(~allowed, IMPOSSIBLE)
        return output


def equivalent_t5(model: DSIModel) -> tuple[DocidT5, list[int]]:
    """A model with the same weights that ``generate`` can run, and the offsets of its tokens (T,).

    A copy on the model's device, in evaluation mode. Shared codes have offset 0 at all positions.
    """
    config, sizes, offsets = model.config, model.code_sizes, model.code_starts
    end = max(start + size for start, size in zip(offsets, sizes, strict=True))
    allowed_TV = torch.zeros(len(sizes), end + 1, dtype=torch.bool)
    for position, (start, size) in enumerate(zip(offsets, sizes, strict=True)):
        allowed_TV[position, start : start + size] = True
    values = {
        key: value
        for key, value in config.to_dict().items()
        if key in T5Config.__dataclass_fields__ and key != "model_type"
    }
    # "not tied" is also how T5Config is told not to scale the decoder's output
    values.update(use_cache=True, tie_word_embeddings=False)
    values.update(pad_token_id=end, decoder_start_token_id=end)
    with torch.random.fork_rng(devices=[]):  # the weights drawn here are all replaced
        theirs = DocidT5(T5Config(**values), end + 1, allowed_TV)
    theirs.config.vocab_size = end + 1  # older releases take the width of the scores from it
    with torch.no_grad():
        theirs.encoder.load_state_dict(model.encoder.state_dict())
        stack = model.decoder.state_dict()
        del stack["embed_tokens.weight"]
        missing = theirs.decoder.load_state_dict(stack, strict=False).missing_keys
        assert missing == ["embed_tokens.weight"], missing
        read, written = theirs.decoder.embed_tokens.weight, theirs.lm_head.weight
        read.zero_()
        written.zero_()
        written[:end] = model.docids.rows
        if len(sizes) > 1:
            # the codes of the last position are never read, unless they are those of all
            read[: len(model.docids.inputs)] = model.docids.inputs
        read[end] = model.docids.start
    nn.Module.to(theirs, model.docids.rows.device, model.docids.rows.dtype)
    return _ready(theirs), offsets


def t5_small_text_vocabulary(seed: int, **changes: Any) -> T5ForConditionalGeneration:
    """T5-small (60M parameters) of random weights: docids are words of its 32,128-token vocabulary.

    What most published code does; tokens 0 (padding and start) and 1 (end) are T5's. ``changes``
    replaces configuration values.
    """
    values: dict[str, Any] = dict(
        vocab_size=32_128,
        d_model=512,
        d_kv=64,
        d_ff=2048,
        num_layers=6,
        num_decoder_layers=6,
        num_heads=8,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return _ready(T5ForConditionalGeneration(T5Config(**{**values, **changes})))


def _ready(model: Any) -> Any:
    # generate sizes the decoder's cache by the number of encoder layers
    model.config.num_layers = model.config.num_decoder_layers
    # generate fills in what a call leaves open from here: an end token of T5's, for one
    model.generation_config = GenerationConfig(
        pad_token_id=model.config.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
    )
    return model.eval()


# --- constraints ----------------------------------------------------------------------------------


class DictTrie:
    """Nested dictionaries; every look-up starts at the root, as in GENRE's code."""

    def __init__(self, sequences: Iterable[Sequence[int]]):
        self.root: dict[int, Any] = {}
        for sequence in sequences:
            node = self.root
            for token in sequence:
                node = node.setdefault(token, {})

    def get(self, prefix: Sequence[int]) -> list[int]:
        """The tokens that may follow; none after a whole docid and after what is no prefix."""
        node = self.root
        for token in prefix:
            if token not in node:
                return []
            node = node[token]
        return list(node)


def prefix_allowed_tokens_fn(trie: DictTrie, dead: int) -> AllowedTokens:
    """The function that ``generate`` asks for every beam, after the start token.

    ``generate`` goes on with beams that have ended or never were possible, at -1e9, and wants some
    token for them: ``dead``.
    """

    def allowed(_: int, sequence: Tensor) -> list[int]:
        return trie.get(sequence.tolist()[1:]) or [dead]

    return allowed


class CsrProcessor(LogitsProcessor):
    """The same constraint from the flat trie, for all beams at once.

    The beams' nodes are found by walking their tokens from the root at every step: ``generate``
    does not say which beam became which.
    """

    def __init__(self, trie: Trie, offsets: Sequence[int], dead: int):
        self.trie, self.offsets, self.dead = trie, list(offsets), dead

    def nodes(self, tokens_RT: Tensor) -> Tensor:
        """The node (R,) of every prefix, -1 for what is none."""
        nodes_R = torch.zeros(len(tokens_RT), dtype=torch.long, device=tokens_RT.device)
        for position in range(tokens_RT.shape[1]):
            codes_R = tokens_RT[:, position] - self.offsets[position]
            first, count = self.trie.children(nodes_R.clamp(min=0))
            low, high = first.clone(), first + count
            # siblings are in the order of their codes: halve the interval until it is one wide
            for _ in range(self.trie.fan_out[position].bit_length()):
                middle = (low + high) // 2
                inside = low < high
                below = self._codes(middle) < codes_R
                low = torch.where(inside & below, middle + 1, low)
                high = torch.where(inside & ~below, middle, high)
            found = (low < first + count) & (self._codes(low) == codes_R) & (nodes_R >= 0)
            nodes_R = torch.where(found, low, -1)
        return nodes_R

    def _codes(self, nodes: Tensor) -> Tensor:
        return self.trie.codes[nodes.clamp(max=len(self.trie.codes) - 1)].long()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores`` (R, V) with -inf for all tokens that do not go on with a docid."""
        position = input_ids.shape[1] - 1
        nodes_R = self.nodes(input_ids[:, 1:])
        first, count = self.trie.children(nodes_R.clamp(min=0))
        count = torch.where(nodes_R >= 0, count, 0)
        step = torch.arange(self.trie.fan_out[position], device=scores.device)
        real = step < count[:, None]
        tokens = self._codes(torch.where(real, first[:, None] + step, 0)) + self.offsets[position]
        tokens = torch.where(real, tokens, self.dead)
        kept = scores.gather(1, tokens)
        alive = (count > 0)[:, None]
        kept = torch.where(real | ~alive, kept, -torch.inf)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, kept)


@dataclass(frozen=True)
class Constraint:
    """How docids are written as tokens, and what keeps ``generate`` to the valid ones, if anything.

    ``ends``: the tokens that end a docid before the last position.
    """

    offsets: list[int]
    ends: list[int]
    allowed: AllowedTokens | None = None
    processor: LogitsProcessor | None = None


def no_constraint(codes_NT: np.ndarray, offsets: Sequence[int]) -> Constraint:
    """``generate`` may write what it likes."""
    return Constraint(list(offsets), end_tokens(codes_NT, offsets))


def dict_constraint(codes_NT: np.ndarray, offsets: Sequence[int], dead: int) -> Constraint:
    """A :class:`DictTrie` of the docids."""
    tokens = np.where(codes_NT >= 0, codes_NT + np.asarray(offsets), -1).tolist()
    trie = DictTrie([token for token in row if token >= 0] for row in tokens)
    ends = end_tokens(codes_NT, offsets)
    return Constraint(list(offsets), ends, prefix_allowed_tokens_fn(trie, dead))


def csr_constraint(codes_NT: np.ndarray, offsets: Sequence[int], dead: int) -> Constraint:
    """A :class:`CsrProcessor` of the docids."""
    processor = CsrProcessor(Trie.build(codes_NT), offsets, dead)
    return Constraint(list(offsets), end_tokens(codes_NT, offsets), processor=processor)


def end_tokens(codes_NT: np.ndarray, offsets: Sequence[int]) -> list[int]:
    """The tokens that end docids shorter than the longest, ascending.

    ValueError when such a token also stands inside a docid: ``generate`` would end there.
    """
    tokens_NT = np.where(codes_NT >= 0, codes_NT + np.asarray(offsets), -1)
    last = (codes_NT[:, :-1] >= 0) & (codes_NT[:, 1:] < 0)
    ends = np.unique(tokens_NT[:, :-1][last])
    inside = np.unique(tokens_NT[:, :-1][codes_NT[:, 1:] >= 0])
    both = np.intersect1d(ends, inside)
    if len(both):
        raise ValueError(f"token {both[0]} ends one docid and stands inside another")
    return ends.tolist()


# --- search ---------------------------------------------------------------------------------------


@torch.inference_mode()
def generate_docids(
    model: T5ForConditionalGeneration,
    input_ids: Tensor,
    attention_mask: Tensor,
    beams: int,
    constraint: Constraint,
    with_scores: bool = True,
) -> tuple[Tensor, Tensor]:
    """Codes (B, K, T), -1 after the end, and log-probabilities (B, K) of what ``generate`` finds.

    Places without a result (fewer docids than beams) have codes -1 and the score -inf.
    ``with_scores=False`` for timing: transformers keeps the scores of all tokens at all steps only
    to return K numbers; the scores then are NaN, and such places hold anything.
    """
    longest = len(constraint.offsets)
    settings = GenerationConfig(
        max_new_tokens=longest,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        early_stopping=False,
        length_penalty=0.0,
        use_cache=True,
        eos_token_id=constraint.ends or None,
        pad_token_id=model.config.pad_token_id,
        decoder_start_token_id=model.config.decoder_start_token_id,
        return_dict_in_generate=True,
        output_scores=with_scores,
    )
    processors = [constraint.processor] if constraint.processor is not None else []
    generate: Any = model.generate  # pyright: ignore[reportAttributeAccessIssue]
    output = generate(
        input_ids,
        generation_config=settings,
        attention_mask=attention_mask,
        prefix_allowed_tokens_fn=constraint.allowed,
        logits_processor=LogitsProcessorList(processors),
    )
    tokens_RT = output.sequences[:, 1:]
    ends = torch.tensor(constraint.ends, dtype=torch.long, device=tokens_RT.device)
    ended = torch.isin(tokens_RT, ends).long()
    past_end = ended.cumsum(1) - ended > 0
    width = tokens_RT.shape[1]
    offsets = torch.tensor(constraint.offsets[:width], device=tokens_RT.device)
    codes_RT = torch.where(past_end, -1, tokens_RT - offsets)
    codes_RT = nn.functional.pad(codes_RT, (0, longest - width), value=-1)
    if with_scores:
        scores_R = output.sequences_scores.float()
        unreal = scores_R < UNREAL
        scores_R = scores_R.masked_fill(unreal, -torch.inf)
        codes_RT = codes_RT.masked_fill(unreal[:, None], -1)
    else:
        scores_R = torch.full((len(codes_RT),), torch.nan, device=codes_RT.device)
    return codes_RT.view(len(input_ids), beams, longest), scores_R.view(len(input_ids), beams)

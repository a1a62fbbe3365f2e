"""Decoder-only SAM: what belongs to the decoder."""

import torch

from tests.continual.sharpness.quadratic import STEEP, WIDE, Quadratic, member, tensor


def test_only_the_decoder_moves():
    names = ("encoder.embed_tokens.weight", "decoder.block.0.weight", "docids.weight", "lm_head.w")
    start = {name: tensor([1.0, 2.0 + i]) for i, name in enumerate(names)}
    run = Quadratic(member("decoder_only", rho=0.3), start, start).updates(1)
    moves = run.moves[0]
    assert [move is None for move in moves] == [True, False, False, False]
    assert abs(float(torch.cat([e.flatten() for e in moves if e is not None]).norm()) - 0.3) < 1e-12


def test_on_a_decoder_alone_it_is_sam():
    start = {name: weight for name, weight in WIDE.items() if not name.startswith("encoder.")}
    steep = {name: STEEP[name] for name in start}
    ours = Quadratic(member("decoder_only"), start, steep).updates(4)
    theirs = Quadratic(member("sam"), start, steep).updates(4)
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in start)


def test_without_a_decoder_nothing_moves():
    start = {"encoder.weight": tensor([1.0, 2.0])}
    assert Quadratic(member("decoder_only"), start, start).updates(1).moves == [[None]]


def test_it_says_that_the_encoder_runs_once():
    assert member("decoder_only").shares_encoder
    assert not member("sam").shares_encoder

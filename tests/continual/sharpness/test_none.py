"""Plain steps: never a second pass."""

from continual.sharpness.none import NoSharpness


def test_it_is_never_active():
    member = NoSharpness(NoSharpness.Config())
    assert not any(member.active(stage) for stage in range(3))

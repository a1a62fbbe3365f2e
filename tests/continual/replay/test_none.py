"""No replay: nothing to rehearse, whatever the stage."""

from typing import Any, cast

from continual.config.loading import load_config
from continual.replay.none import NoReplay


def test_there_is_nothing_to_rehearse():
    member = load_config(None, ["replay=none"]).replay.build()
    assert isinstance(member, NoReplay)
    assert member.begin_stage(cast(Any, None)) == []  # it asks for nothing at all
    assert member.ratio == float("inf")


def test_later_stages_of_a_run_train_on_documents_alone(lab, monkeypatch):
    seen = []

    def sources(config, stream, stage, pools, ratio, tokenizer):
        seen.append((stage, [pool.name for pool in pools], ratio))
        return original(config, stream, stage, pools, ratio, tokenizer)

    from continual import trainer

    original = trainer.stage_sources
    monkeypatch.setattr(trainer, "stage_sources", sources)
    lab.train("replay=none", "training.updates=2", "training.updates_per_stage=1")
    assert seen == [(0, ["queries"], 1.0), (1, [], float("inf")), (2, [], float("inf"))]

"""Only docid rows move after D_0; in stage 0 this is full fine-tuning."""

import torch

from continual.update.update import Update


def test_stage_zero_is_full_and_later_only_rows_move(lab, monkeypatch):
    step, stale = Update.take, []

    def noted(self, *arguments, **options):
        frozen = {n: p for n, p in self.model.named_parameters() if not p.requires_grad}
        stale.append([name for name, p in frozen.items() if p.grad is not None])
        return step(self, *arguments, **options)

    monkeypatch.setattr(Update, "take", noted)
    run = lab.train("parameters=docid_rows")
    assert len(stale) == 26 and not any(stale), "the norm that is clipped would count it"
    ours, full = lab.weights(run, 0), lab.weights(lab.kept(), 0)
    assert all(torch.equal(ours[name], full[name]) for name in full)
    for stage in (1, 2):
        before, after = lab.weights(run, stage - 1), lab.weights(run, stage)
        moved = [
            name
            for name in before
            if name != "docids.rows"
            if not torch.equal(before[name], after[name])
        ]
        assert moved == []
        old = after["docids.rows"][: len(before["docids.rows"])]
        assert not torch.equal(old, before["docids.rows"])
    assert len(lab.weights(run, 2)["docids.rows"]) == sum(lab.sizes)

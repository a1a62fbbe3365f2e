"""A model soup along the stream: the mean of the models that the stages so far have trained."""

from dataclasses import dataclass

from continual.merging._base import Merging
from continual.stream.view import StageView
from dsi.settings import Settings, Share


class Soup(Merging):
    """After every stage n the mean of the models trained in stages 0 .. n, each weight alike.

    Source: model soups, the uniform one (Wortsman et al., ICML 2022), here of models that were
    trained one after the other: training goes on from the mean, and so does the optimizer. A docid
    row is the mean over the stages since it was new. ``decay`` < 1 lets older models count less:
    ``theta = (sum_k decay^(n-k) theta_k) / (sum_k decay^(n-k))``.

    Relations: with ``decay: 0`` this is no merging, bit for bit.
    """

    @dataclass(frozen=True)
    class Config(Settings):
        """Settings."""

        decay: Share = 1.0
        """What a model counts for each of those after it; 1: all the same."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.needs_previous = config.decay > 0

    def begin_stage(self, view: StageView) -> None:
        """Keep the mean so far, which the stage starts from, and how much is in each row of it."""
        counts = view.followed({k: v for k, v in self.state.items() if k.startswith("count/")})
        super().begin_stage(view)
        self.state |= counts

    def end_stage(self, view: StageView) -> None:
        """The mean with the stage's own model."""
        if not self.needs_previous:
            return
        merged, counts = view.model.state_dict(), {}
        for name, trained in merged.items():
            # of every row: a new one is in fewer models
            count = self.state.get(f"count/{name}", trained.new_zeros(len(trained)))
            counts[f"count/{name}"] = count = self.config.decay * count + 1
            if name in self.state:
                before = self.state[name].where(~self.state[name].isnan(), trained)
                share = 1 / count.view(-1, *[1] * (trained.dim() - 1))
                merged[name] = before.lerp(trained, share)
        view.model.load_state_dict(merged)
        self.state = counts

"""Method: one component on each axis, in the order in which they end a stage."""

from continual.config import registry
from continual.config.loading import load_config
from continual.method import Method
from continual.regularizers import Regularizer
from continual.regularizers.l2 import L2


def test_components_come_in_the_order_in_which_they_end_a_stage():
    axes = [axis for axis, _ in Method()]
    assert axes[0] == "parameters" and axes[-1] == "merging", "folded first, merged last"
    assert set(axes) == {axis for axis in registry.FAMILIES if axis not in ("docids", "baseline")}
    assert not Method().readers
    reader = Regularizer()
    reader.reads_outputs = True
    assert Method(regularizer=reader).readers == [reader]


def test_a_configuration_names_the_components():
    method = Method.of(load_config(None, ["method=windows", "regularizer=l2"]))
    assert type(method.regularizer) is L2
    assert type(method.replay) is type(Method().replay)

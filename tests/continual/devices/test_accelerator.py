"""What two processes, or pieces of weights, cannot do is refused in one line."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from continual.devices import accelerator as devices
from continual.devices.accelerator import make_accelerator, precision, refuse
from dsi.errors import UserError


def launched(**values):
    """What a launcher with two processes gives."""
    kind = SimpleNamespace(num_processes=2, distributed_type=None, **values)
    return kind


@pytest.mark.parametrize(
    ("settings", "environment", "message"),
    [
        (
            ("sharpness=sam",),
            {"FSDP_VERSION": "1"},
            r"fsdp_version: 1 shards .* set fsdp_version: 2",
        ),
        (("sharpness=sam", "sharpness.sync=local"), {}, r"sharpness\.sync: local needs a gradient"),
        (("sharpness=decoder_only",), {}, r"sharpness\.name: 'decoder_only' runs parts .* use DDP"),
        (("sharpness=friendly",), {}, r"sharpness\.name: 'friendly' .* use DDP"),
        (("regularizer=l2",), {}, r"regularizer\.name: 'l2' .* use DDP"),
        (("training.compile=default",), {}, r"training\.compile: FSDP2 .* use compile: no, or DDP"),
    ],
)
def test_what_sharded_weights_cannot_do_is_refused(
    lab, monkeypatch, settings, environment, message
):
    for key, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", **environment}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=message):
        refuse(lab.config(*settings), launched())


def test_deepspeed_is_refused(lab):
    kind = SimpleNamespace(num_processes=2, distributed_type=DistributedType.DEEPSPEED)
    with pytest.raises(UserError, match=r"DeepSpeed .* use FSDP2"):
        refuse(lab.config(), kind)


def test_groups_that_processes_cannot_share_are_refused(lab):
    given = lab.config("sharpness=sam", "sharpness.sync=local", "sharpness.m=8")
    with pytest.raises(UserError, match=r"sharpness\.m: 2 processes cannot share 8 examples .* 16"):
        refuse(given, launched())
    refuse(given, SimpleNamespace(num_processes=1, distributed_type=None))


def test_a_rule_that_remembers_has_no_local_form(lab):
    with pytest.raises(UserError, match=r"sharpness\.sync: local lets ranks go separate ways"):
        lab.config("sharpness=friendly", "sharpness.sync=local")


@pytest.mark.parametrize("units", [True, False])
def test_half_precision_is_the_default_on_gpus_with_units_for_it_alone(lab, monkeypatch, units):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: units)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    auto = lab.config("training.precision=auto")
    assert precision(auto, cpu) == "no"
    assert precision(auto, cuda) == ("bf16" if units else "no")
    assert precision(auto, torch.device("mps")) == "no"
    for asked in ("no", "bf16"):
        assert precision(lab.config(f"training.precision={asked}"), cpu) == asked


def test_two_processes_cannot_exchange_touched_rows(lab):
    sampled = ("training.docid_softmax=sampled", "training.docid_samples=4")
    config = lab.config(*sampled, "training.docid_update=touched")
    with pytest.raises(UserError, match=r"^training\.docid_update: touched is for one process"):
        refuse(config, launched())
    refuse(config, SimpleNamespace(num_processes=1, distributed_type=None))


def test_processes_that_would_train_alone_are_refused(lab, monkeypatch):
    """Two GPU processes of a launcher that Accelerate does not know."""
    AcceleratorState._reset_state(True)
    monkeypatch.delenv("ACCELERATE_USE_CPU")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(devices, "_has_accelerator", lambda: True)
    with pytest.raises(UserError, match=r"^WORLD_SIZE: .* 2 processes .* joins 1 .* torchrun"):
        make_accelerator(lab.config("training.precision=no"))


def test_processes_that_accelerate_launch_left_out_are_noticed(lab, monkeypatch):
    """What ``accelerate launch --num_processes 2 --cpu`` leaves to its one process."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    make_accelerator(lab.config("training.precision=no"))  # --num_processes 1
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match=r"^--num_processes: .* torchrun --nproc-per-node N -m"):
        make_accelerator(lab.config("training.precision=no"))


def test_processes_of_mpi_on_one_machine_find_each_other(monkeypatch):
    for name in ("MASTER_ADDR", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_SIZE": "1"}.items():
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", value)
    with pytest.raises(UserError, match=r"^MASTER_ADDR: not set"):
        devices._join_processors(1)
    monkeypatch.setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    devices._join_processors(3)
    assert devices.os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert devices.os.environ["GLOO_SOCKET_IFNAME"].startswith("lo")
    assert devices.os.environ["OMP_NUM_THREADS"] == "3"

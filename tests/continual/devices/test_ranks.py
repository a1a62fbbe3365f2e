"""How many processes a launcher has started, and one line for all of them."""

import pytest
import torch
from torch.distributed import TCPStore

from continual.devices import ranks


@pytest.fixture
def environment(monkeypatch):
    """Sets variables where no launcher has set any."""
    for name in ranks.COUNTS:
        monkeypatch.delenv(name, raising=False)

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 1),
        ({"WORLD_SIZE": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, 2),
        ({"PMI_SIZE": "8"}, 8),
        # torchrun within a job of one MPI process per machine
        ({"WORLD_SIZE": "4", "PMI_SIZE": "2"}, 4),
        ({"WORLD_SIZE": "many"}, 1),
    ],
)
def test_every_launcher_is_understood(environment, variables, expected):
    environment(**variables)
    assert ranks.world_size() == expected


def test_a_line_is_said_once(environment, capsys):
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(store.port))
    environment(TORCHELASTIC_USE_AGENT_STORE="True")
    assert not ranks.another_spoke()
    for line in ("one", "one", "two"):
        ranks.say_once(line)
    assert capsys.readouterr().err == "one\ntwo\n"
    assert ranks.another_spoke()
    environment(TORCHELASTIC_RESTART_COUNT="1")  # torchrun has started them again
    assert not ranks.another_spoke()
    ranks.say_once("one")
    assert capsys.readouterr().err == "one\n"


def test_a_table_that_is_gone_is_none(environment, capsys, monkeypatch):
    """The first process held it, and ends between the question and the answer."""

    class Gone:
        def __init__(self, *_, **__):
            pass

        def add(self, key, amount):
            raise torch.distributed.DistNetworkError("Connection reset by peer")

    monkeypatch.setattr(torch.distributed, "TCPStore", Gone)
    environment(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="1")
    environment(TORCHELASTIC_USE_AGENT_STORE="True")
    assert not ranks.another_spoke()
    ranks.say_once("one")
    assert capsys.readouterr().err == "one\n"


@pytest.mark.parametrize("processes", ["1", "2"])
def test_where_processes_share_nothing_a_line_is_never_lost(environment, capsys, processes):
    environment(WORLD_SIZE=processes)
    assert not ranks.another_spoke()
    ranks.say_once("one")
    assert capsys.readouterr().err == "one\n"

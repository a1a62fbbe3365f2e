"""The surroundings that the other tests count on."""

import os
import socket

import numpy as np
import pytest


@pytest.mark.parametrize("method", ["connect", "connect_ex"])
def test_the_network_is_out_of_reach(method):
    # 192.0.2.0/24 is reserved for documentation: no host has it
    with (
        socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client,
        pytest.raises(RuntimeError, match=r"192\.0\.2\.1"),
    ):
        getattr(client, method)(("192.0.2.1", 80))


def test_ranks_can_talk_over_the_loopback():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            client.sendall(b"x")
            connection, _ = server.accept()
            with connection:
                assert connection.recv(1) == b"x"
        with socket.socket() as other:
            server.close()
            assert other.connect_ex(("127.0.0.1", 9)) != 0  # an error number, no exception


def test_caches_are_the_sessions_own():
    assert "dsi-tests-" in os.environ["DSI_CACHE"]
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("repeat", [0, 1])
def test_global_draws_start_from_the_same_seed(repeat):
    del repeat
    assert np.random.rand() == pytest.approx(0.5488135)  # noqa: NPY002


def test_torch_uses_one_thread():
    import torch

    assert torch.get_num_threads() == 1

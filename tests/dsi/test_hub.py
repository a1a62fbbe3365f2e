"""The hub is asked once, and not at all where that cannot help."""

import pytest
from huggingface_hub import constants, utils

from dsi import hub
from dsi.errors import UserError


@pytest.fixture
def network(monkeypatch):
    """What is asked, and a switch: whether anything answers."""
    asked: list = []

    class Session:
        answers = True

        def head(self, address, timeout):
            asked.append((address, timeout))
            if not self.answers:
                raise OSError("Name or service not known")

    session = Session()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(utils, "get_session", lambda: session)
    return session, asked


def test_libraries_ask_a_hub_that_answers_and_no_other(network):
    session, asked = network
    with hub.asked("t5-small"):
        assert not constants.is_offline_mode()
    session.answers = False
    with pytest.raises(KeyError), hub.asked("google/t5-small"):
        assert constants.is_offline_mode()
        raise KeyError
    assert not constants.is_offline_mode()
    assert asked == [(constants.ENDPOINT, hub.SECONDS)] * 2


def test_a_folder_is_read_without_the_hub(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t5-small").mkdir()
    with hub.asked("t5-small"):
        assert constants.is_offline_mode()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with hub.asked("absent"):
        assert constants.is_offline_mode()
    assert network[1] == []


@pytest.mark.parametrize(
    "name",
    ["./absent", "/absent", "../absent/x", "~/absent", "models/t5/base", "C:\\t5", "a\0/b/c"],
)
def test_a_path_that_is_not_there_is_said_at_once(network, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for path in (name, tmp_path / "t5"):
        with pytest.raises(FileNotFoundError, match="no such folder"), hub.asked(path):
            raise AssertionError("loaded")
    assert network[1] == []


def load_tokenizer():
    from dsi.text.tokens import load_tokenizer

    load_tokenizer("t5-smal")


def load_model():
    from dsi.model.dsi_model import from_checkpoint

    from_checkpoint("t5-smal", [1], 0)


def load_generator():
    from dsi.queries.generator_model import pretrained

    pretrained("t5-smal")


def load_corpus():
    from dsi.corpus.corpus import read_corpus

    read_corpus({"dataset": "some/corpu", "documents": "train"})


@pytest.mark.parametrize("load", [load_tokenizer, load_model, load_generator, load_corpus])
def test_a_misspelt_name_without_a_network_is_one_line_and_no_retries(network, load, monkeypatch):
    """Six tries of each library took 40 seconds; a try of theirs fails the test."""
    session, asked = network
    session.answers = False
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"a retry in {seconds} s"))
    with pytest.raises(UserError) as caught:
        load()
    assert "t5-smal" in str(caught.value) or "some/corpu" in str(caught.value)
    assert len(asked) == 1

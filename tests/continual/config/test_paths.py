"""``~`` and variables in settings that name files."""

import pytest

from continual.config.loading import dump, load_config, read_resolved
from continual.config.paths import NAMES, expand
from dsi.errors import UserError


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SCRATCH", "/big")
    monkeypatch.setenv("USER_TOKEN", "secret")
    return tmp_path


def test_every_setting_that_names_a_file(place):
    settings = [
        "method=windows",
        "output=~/runs",
        "data.stream=${SCRATCH}/s.json",
        "tokenizer.source=~/t",
    ]
    settings += ["model.source=$SCRATCH/m", "replay=generative", "docids=semantic"]
    settings += ["replay.generator.source=~/g", "docids.embedding.name=~/e"]
    settings += ["docids.embedding.source=sentence-transformers"]
    corpus = "data.corpus={documents: ~/d.jsonl, queries: $SCRATCH/$USER_TOKEN.jsonl}"
    config = load_config(None, [*settings, corpus])
    home = place / "home"
    assert (config.output, config.data.stream) == (f"{home}/runs", "/big/s.json")
    assert (config.tokenizer.source, config.model.source) == (f"{home}/t", "/big/m")
    assert config.data.corpus == {
        "documents": f"{home}/d.jsonl",
        "queries": "/big/secret.jsonl",
    }
    assert config.replay.settings.generator.source == f"{home}/g"
    assert config.docids.settings.embedding.name == f"{home}/e"
    (place / "config.yaml").write_text(dump(config))
    assert read_resolved(place / "config.yaml") == config


def test_what_is_there_under_its_own_name_stays(place):
    for name in ("~", "$SCRATCH", "cost$"):
        (place / name).mkdir()
        assert expand(name, "output") == name
    assert expand("runs/~/5$", "output") == "runs/~/5$"


@pytest.mark.parametrize(
    "text", ["$ABSENT_HERE/x", "a/${ABSENT_HERE}", "~no-such-user/x", "~\0", "${}", "$SCRATCH$NO_1"]
)
def test_what_stands_for_nothing_is_refused(text):
    with pytest.raises(UserError, match=r"^output: .*(write|not set)"):
        expand(text, "output")


@pytest.mark.parametrize("key", NAMES)
def test_no_variable_becomes_a_name_that_is_sent_to_somebody(key):
    """A configuration from elsewhere must not ask the hub for ``somebody/$TOKEN``."""
    for text in ("somebody/$USER_TOKEN", "$USER_TOKEN"):
        with pytest.raises(UserError, match="in an absolute path only"):
            expand(text, key, is_file=False)
    with pytest.raises(UserError, match=r"^data\.corpus\.dataset: .* absolute path only"):
        load_config(None, ["data.corpus={dataset: somebody/$USER_TOKEN, documents: train}"])

import json

import pytest

from dsi.manifest import text_hash
from dsi.queries.cache import cached_generate
from dsi.queries.sampling import DecodingConfig

TEXTS = ["a heron", "a mill", "a clock"]


class Fake:
    """Counts what it is asked; its queries name everything they depend on."""

    def __init__(self, name="one", sampling=None):
        self.name, self.sampling, self.asked = name, sampling or DecodingConfig(), []

    def fingerprint(self):
        return text_hash(self.name) * 2

    def generate(self, texts, keys, count, seed, *, accelerator=None, progress=False):
        self.asked.append(list(texts))
        return [
            [f"{t} {k} {self.name} {seed} {i} é\u2028" for i in range(count)]
            for t, k in zip(texts, keys, strict=True)
        ]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DSI_CACHE", str(tmp_path))
    return tmp_path


def test_a_second_call_gives_the_same_text_and_asks_nothing():
    first = cached_generate(Fake(), TEXTS, 2, seed=0)
    fake = Fake()
    assert cached_generate(fake, TEXTS, 2, seed=0) == first and fake.asked == []
    assert cached_generate(fake, [*TEXTS[::-1], TEXTS[0]], 2, seed=0)[:3] == first[::-1]
    assert fake.asked == []


def test_only_what_is_missing_is_made():
    cached_generate(Fake(), TEXTS[:2], 2, seed=0)
    fake = Fake()
    cached_generate(fake, [*TEXTS, TEXTS[2]], 2, seed=0)
    assert fake.asked == [[TEXTS[2]]]


def test_the_report_tells_what_was_made_and_what_was_read():
    told = []
    cached_generate(Fake(), TEXTS[:2], 4, seed=0, report=told.append)
    cached_generate(Fake(), [*TEXTS, TEXTS[2]], 4, seed=0, report=told.append)
    cached_generate(Fake(), TEXTS, 4, seed=0, report=told.append)
    assert [(one["read"], one["made"], one["queries"]) for one in told] == [
        (0, 2, 8),
        (2, 1, 4),
        (3, 0, 0),
    ]
    assert told[0]["queries_per_second"] > 0 and told[2]["queries_per_second"] is None
    assert told[2]["seconds"] == 0


@pytest.mark.parametrize(
    "other",
    [
        lambda: cached_generate(fake := Fake("two"), TEXTS, 2, seed=0) and fake,
        lambda: cached_generate(fake := Fake(), TEXTS, 3, seed=0) and fake,
        lambda: cached_generate(fake := Fake(), TEXTS, 2, seed=1) and fake,
        lambda: (
            cached_generate(fake := Fake(sampling=DecodingConfig(top_k=5)), TEXTS, 2, seed=0)
            and fake
        ),
        lambda: cached_generate(fake := Fake(), TEXTS, 2, seed=0, keys=["x", "y", "z"]) and fake,
    ],
    ids=["generator", "count", "seed", "sampling", "keys"],
)
def test_anything_that_changes_the_queries_misses_the_cache(other):
    cached_generate(Fake(), TEXTS, 2, seed=0)
    assert other().asked == [TEXTS]


@pytest.mark.parametrize(
    "damage",
    [
        lambda line: line[: len(line) // 2],
        lambda line: b"\xff\xfe" + line,
        lambda line: line.replace(b"heron", b"horse"),
        lambda line: b"[]\n",
        lambda line: b"{}\n",
        lambda line: b"3\n",
        lambda line: json.dumps({**json.loads(line), "queries": None}).encode() + b"\n",
    ],
)
def test_damaged_lines_are_left_out_and_made_again(cache, damage):
    first = cached_generate(Fake(), TEXTS, 2, seed=0)
    (shard,) = cache.rglob("*.jsonl")
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join([*lines[1:], damage(lines[0])]))
    fake = Fake()
    assert cached_generate(fake, TEXTS, 2, seed=0) == first
    assert fake.asked == [TEXTS[:1]]
    again = Fake()
    assert cached_generate(again, TEXTS, 2, seed=0) == first and again.asked == []


def test_an_interrupted_call_keeps_its_whole_shards(cache, monkeypatch):
    monkeypatch.setattr("dsi.queries.cache.SHARD", 1)

    class Breaks(Fake):
        def generate(self, texts, *args, **kwargs):
            if self.asked:
                raise KeyboardInterrupt
            return super().generate(texts, *args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        cached_generate(Breaks(), TEXTS, 2, seed=0)
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".jsonl"]
    fake = Fake()
    cached_generate(fake, TEXTS, 2, seed=0)
    assert fake.asked == [[TEXTS[1]], [TEXTS[2]]]


def test_only_the_main_process_writes_and_every_process_generates(cache, monkeypatch):
    monkeypatch.setattr("dsi.queries.cache.share", lambda accelerator, item: item or {})

    class Second:
        is_main_process = False

    fake = Fake()
    expected = Fake().generate(TEXTS, [text_hash(t) for t in TEXTS], 2, 0)
    assert cached_generate(fake, TEXTS, 2, seed=0, accelerator=Second()) == expected
    assert fake.asked == [TEXTS] and not list(cache.rglob("*.jsonl"))

"""A stage's index is there when it is whole, and the run names the last one."""

import json
import shutil

import pytest

from continual.cli import main
from continual.run import stage_index
from continual.run.directory import replace
from dsi.errors import UserError
from dsi.index import SearchIndex
from tests.continual.test_resume import interrupt, resume

SEMANTIC = ("docids=semantic", "docids.k=3", "docids.c=4", "docids.embedding.source=tfidf")
QUERIES = ["testqueryzero bana", "testqueryone"]
STOPS = {
    "before the tokenizer": ("replace_atomically", 4),
    "before the documents": ("codes_to_text", 2),
    "before the settings": ("write_json", 2),
}


@pytest.mark.parametrize("stop", STOPS)
def test_a_stage_that_is_stopped_half_way_is_never_opened(lab, tmp_path, stop):
    name, call = STOPS[stop]
    run = interrupt(lab, tmp_path, stage_index, name, call, settings=SEMANTIC)
    assert (run / "stages/01/model").is_dir()
    assert json.loads((run / "index.json").read_text())["index"] == "stages/00"
    index = SearchIndex.load(run)
    assert len(index) == lab.sizes[0]
    assert main(["search", str(run), "water", "--stage", "1"]) == 2
    with pytest.raises(UserError, match="no index here"):
        SearchIndex.load(run / "stages/01")
    resume(lab, run)
    assert lab.results(run) == lab.results(lab.kept(*SEMANTIC))


@pytest.mark.parametrize("settings", [(), SEMANTIC], ids=["atomic", "semantic"])
def test_the_folder_of_a_stage_is_copied_away_and_opened(lab, tmp_path, capsys, settings):
    run = lab.kept(*settings)
    for stage in range(3):
        folder = shutil.copytree(run / f"stages/0{stage}", tmp_path / f"copy-{stage}")
        copied = SearchIndex.load(folder)
        assert copied.corpus_names == [f"D{n}" for n in range(stage + 1)]
        assert main(["search", str(run), "bana", "--stage", str(stage)]) == 0
        of_run = capsys.readouterr().out
        assert main(["search", str(folder), "bana"]) == 0
        assert capsys.readouterr().out == of_run
    assert copied.search(QUERIES) == SearchIndex.load(run).search(QUERIES)
    trained = copied.among(corpora=["D1"])
    assert len(trained) == lab.sizes[1]


def test_a_file_of_the_index_that_changed_is_refused(lab, tmp_path):
    run = shutil.copytree(lab.kept(), tmp_path / "run")
    for name in ("index.json", "docids.tsv", "tokenizer/tokenizer.json"):
        path = run / "stages/02" / name
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        with pytest.raises(UserError, match=f"{name}: not what was written"):
            SearchIndex.load(run)
        path.write_bytes(content)
    SearchIndex.load(run)


def test_an_older_run_is_refused_in_one_line(lab, tmp_path, capsys):
    run = shutil.copytree(lab.kept(), tmp_path / "run")
    replace(run, "index.json", {"schema": 1, "docids": "atomic"})
    for path in run.glob("stages/*/index.json"):
        path.unlink()
    assert main(["search", str(run), "water"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"{run}/index.json: schema 1, this version reads 2; make the index anew" in err

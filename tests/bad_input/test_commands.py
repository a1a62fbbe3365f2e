"""Command lines: what is not meant is one line, before anything is read or written."""

import pytest

from tests.bad_input.conftest import Place

LONG = "a" * 300

# each: arguments, how the line begins, the fix
BAD = {
    "no command": ([], "the following arguments are required", "dsi --help"),
    "an unknown command": (["index"], "argument COMMAND: invalid choice", "'train'"),
    "an empty command": ([""], "argument COMMAND: invalid choice", "'train'"),
    "a command with an escape": (["\x1b[2J"], "argument COMMAND: invalid choice", "'train'"),
    "a gigantic command": (["x" * 100_000], "argument COMMAND: invalid choice", "dsi --help"),
    "a misspelt option": (["train", "--resum3"], "unrecognized arguments: --resum3", "--help"),
    "an option of another command": (["train", "--k", "3"], "unrecognized arguments", "--help"),
    "two files": (
        ["train", "a.yaml", "b.yaml"],
        "a.yaml b.yaml: expected at most one",
        "key=value",
    ),
    "a file that is absent": (["train", "a.yaml"], "a.yaml: cannot read", "give a YAML file"),
    "a file with a NUL": (["train", "a\0.yaml"], "a\\x00.yaml: cannot read", "give a"),
    "a file name too long": (["train", LONG], "aaa", "give a YAML file"),
    "an empty file name": (["train", ""], ".: cannot read", "give a YAML file"),
    "a folder": (["train", "corpus"], "corpus: cannot read", "--resume"),
    "resuming nothing": (["train", "--resume", "corpus"], "corpus: no run here", "run directory"),
    "resuming a long name": (["train", "--resume", LONG], "aaa", "--resume"),
    "an unknown kind of acceptance": (
        ["train", "--accept", "everything"],
        "argument --accept: invalid choice",
        "'world_size'",
    ),
    "adding to nothing": (["add", "absent", "corpus"], "absent: no run here", "run directory"),
    "adding to a long name": (["add", LONG, "corpus"], "aaa", "give a run directory"),
    "adding to a NUL": (["add", "a\0b", "corpus"], "a\\x00b: no run here", "run directory"),
    "adding nothing": (["add", "run"], "dsi add: neither FOLDER nor --remove", "dsi add --help"),
    "replacing by nothing": (
        ["add", "run", "--remove", "empty", "--replace"],
        "--replace: the new texts are those of FOLDER",
        "give one",
    ),
    "removing an absent list": (["add", "run", "--remove", "absent"], "absent: cannot", "one a"),
    "removing nothing": (["add", "run", "--remove", "empty"], "empty: no document ids", "one a"),
    "removing what is not there": (
        ["add", "run", "--remove", "corpus/qrels/test.tsv"],
        "corpus/qrels/test.tsv:1: document 'query-id",
        "give ids that the run has",
    ),
    "removing everything": (
        ["add", "run", "--remove", "all"],
        "--remove: names all documents that are left",
        "keep some",
    ),
    "removing what is replaced": (
        ["add", "run", "same", "--replace", "--remove", "one"],
        "document 'd00': same replaces it and --remove names it",
        "leave it out of one of them",
    ),
    "adding what is absent": (["add", "run", "absent"], "absent: no such folder", "give a folder"),
    "adding an empty name": (["add", "run", ""], "corpus: an empty name", "give a folder"),
    "adding a NUL": (["add", "run", "a\0b"], "a\\x00b: no such folder", "give a folder"),
    "adding a file": (
        ["add", "run", "corpus/corpus.jsonl"],
        "",
        "corpus.jsonl: is a file; for JSONL files give",
    ),
    "searching nothing": (["search", "absent", "x"], "absent: no index here", "run directory"),
    "searching a NUL": (["search", "a\0b", "x"], "a\\x00b: no index here", "run directory"),
    "searching a long name": (["search", LONG, "x"], "aaa", "give a run directory"),
    "searching a corpus": (["search", "corpus", "x"], "corpus: no index here", "run directory"),
    "no results": (["search", "run", "x", "--k", "0"], "--k: must be at least 1", "0"),
    "negative results": (["search", "run", "x", "--k", "-5"], "--k: must be at least 1", "-5"),
    "results of words": (["search", "run", "x", "--k", "ten"], "argument --k: invalid int", "ten"),
    "results of half": (["search", "run", "x", "--k", "1.5"], "argument --k: invalid int", "1.5"),
    "results of many digits": (
        ["search", "run", "x", "--k", "9" * 5000],
        "argument --k: invalid int",
        "999",
    ),
    "a stage that is not there": (
        ["search", "run", "x", "--stage", "9"],
        "--stage: run has no stage 9",
        "[0, 1]",
    ),
    "a negative stage": (
        ["search", "run", "x", "--stage", "-1"],
        "--stage: run has no stage -1",
        "[0, 1]",
    ),
    "a corpus that is not there": (
        ["search", "run", "x", "--corpus", "D7"],
        "corpora: no 'D7' in this index",
        "'D0', 'D1'",
    ),
    "a corpus of another digit": (
        ["search", "run", "x", "--corpus", "D²"],
        "corpora: no 'D²' in this index",
        "'D0', 'D1'",
    ),
    "a corpus of many digits": (
        ["search", "run", "x", "--corpus", "D" + "9" * 5000],
        "corpora: no 'D999",
        "'D0', 'D1'",
    ),
    "ids that are absent": (
        ["search", "run", "x", "--documents", "absent"],
        "absent: cannot be read",
        "one a line",
    ),
    "ids in a folder": (
        ["search", "run", "x", "--without", "corpus"],
        "corpus: cannot",
        "one a line",
    ),
    "ids with a NUL": (
        ["search", "run", "x", "--documents", "a\0b"],
        "a\\x00b: cannot be read",
        "one a line",
    ),
    "ids that are unknown": (
        ["search", "run", "x", "--documents", "corpus/qrels/test.tsv"],
        "documents: no document 'query-id",
        "in this index",
    ),
    "ids in latin-1": (["search", "run", "x", "--documents", "latin"], "latin: cannot be", "one a"),
    "no ids": (["search", "run", "x", "--documents", "empty"], "documents: none is left", "choose"),
    "evaluating nothing": (["evaluate", "absent"], "absent: no run here", "run directory"),
    "evaluating a stage that is not there": (
        ["evaluate", "run", "--stage", "5"],
        "--stage: run has no stage 5",
        "[0, 1]",
    ),
    "evaluating another split": (
        ["evaluate", "run", "--split", "../test"],
        "argument --split: invalid choice",
        "'dev'",
    ),
    "a report on nothing": (["report", "absent"], "absent: no finished stage", "matrix.json"),
    "a report on a NUL": (["report", "a\0b"], "a\\x00b: no finished stage", "matrix.json"),
    "a report on a long name": (["report", LONG], "aaa", "matrix.json"),
    "a report into a file": (
        ["report", "run", "--out", "empty"],
        "empty",
        "choose another --out",
    ),
    "a report into a NUL": (["report", "run", "--out", "a\0b"], "a\\x00b", "choose another --out"),
}


@pytest.mark.parametrize(("arguments", "start", "fix"), BAD.values(), ids=BAD)
def test_a_bad_command_line_is_one_line(place: Place, run, arguments, start, fix) -> None:
    place.write("empty", "")
    place.write("latin", b"\xe9\n")
    place.write("one", "d00\n")
    place.write("all", "".join(f"d{n:02d}\n" for n in range(24)))
    place.write("same/corpus.jsonl", '{"_id": "d00", "text": "another text"}\n')
    place.refuse(arguments, start, fix)


QUERIES = {
    "ten thousand words": "which whale " * 5000,
    "a word of a megabyte": "w" * (1 << 20),
    "a NUL": "wha\0le",
    "an escape sequence": "\x1b[2Jwhale",
    "a byte that is not UTF-8": "whale\udcff",
    "a leading dash": "-whale",
}


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_any_query_is_answered(place: Place, run, query: str) -> None:
    status, out, err = place.call("search", "--k", "3", "run", "--", query)
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 6
    assert all(line.isprintable() for line in out.splitlines())


NO_WORD = {"no word": "", "spaces": " \t ", "an unknown script": "鯨とは何か", "emoji": "🐋🎻"}


@pytest.mark.parametrize("query", NO_WORD.values(), ids=NO_WORD)
def test_a_query_without_a_known_word_finds_nothing_and_says_so(place: Place, run, query) -> None:
    line = "dsi: no known word in the query, so nothing is found\n"
    assert place.call("search", "run", "--", query) == (0, "", line)


def test_results_of_a_corpus_with_control_characters_are_printable(place: Place, run) -> None:
    from continual.cli import _print_results
    from dsi.index import Result

    place.read_errors()
    _print_results([Result("d1", -1.0, "\x1b]0;owned\x07\n", "a\x00b\x1b[2J\u202ec")])
    out, _ = place.read_errors()
    assert out.count("\n") == 2
    assert all(line.isprintable() for line in out.splitlines())

"""Promises about the repository as a whole: sizes, mirrored tests, configurations, documents."""

import re
import tomllib
from pathlib import Path

import pytest

import dsi
from continual.config.loading import load_config, preset_names

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    path.relative_to(ROOT)
    for package in ("dsi", "continual")
    for path in ROOT.glob(f"{package}/**/*.py")
)
RUNS = sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/*.yaml"))
LAUNCHES = sorted(path.relative_to(ROOT) for path in ROOT.glob("configs/accelerate/*.yaml"))


def test_files_stay_small():
    lines = {str(path): len((ROOT / path).read_text("utf-8").splitlines()) for path in MODULES}
    assert {path: count for path, count in lines.items() if count > 500} == {}


def test_every_public_module_has_a_test_in_its_place():
    public = [path for path in MODULES if not path.name.startswith("_")]
    expected = [Path("tests") / path.with_name(f"test_{path.name}") for path in public]
    assert len(expected) > 20
    assert [str(path) for path in expected if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("path", RUNS, ids=str)
def test_every_run_configuration_builds(path):
    config = load_config(str(ROOT / path), [])
    assert config.name == path.stem  # the run directory is found by the file that made it


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_builds_and_says_something(name):
    path = ROOT / "continual" / "presets" / f"{name}.yaml"
    config = load_config(None, [f"method={name}"])
    assert config.method == name
    assert load_config(None, [f"method={name}"]) == config
    of_schema, of_method = path.read_text("utf-8").splitlines()[:2]
    assert of_schema.startswith("# yaml-language-server: ")
    assert of_method.startswith("# "), "the second line says which method it is"


@pytest.mark.parametrize("path", LAUNCHES, ids=str)
def test_every_launch_configuration_is_accelerates(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / path))
    machines, processes = {
        "cpu-2-ranks": (1, 2),
        "one-gpu": (1, 1),
        "ddp-8-gpus": (1, 8),
        "fsdp2-8-gpus": (1, 8),
        "ddp-2-machines": (2, 16),
    }[path.stem]
    assert (config.num_machines, config.num_processes) == (machines, processes)
    if path.stem.startswith("fsdp2"):
        assert config.fsdp_config["fsdp_version"] == 2
    # precision belongs to the run: a launcher's would silently change what a configuration means
    assert config.mixed_precision == "no"
    assert f"configs/accelerate/{path.name}" in (ROOT / path).read_text("utf-8")


def test_no_configuration_escapes_the_tests(tracked_files):
    found = [path for path in tracked_files if path.suffix in (".yaml", ".yml")]
    presets = {Path("continual/presets") / f"{name}.yaml" for name in preset_names()}
    known = {*RUNS, *LAUNCHES, *presets}
    assert [str(path) for path in found if path not in known] == []


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_readme_names_the_two_commands(target):
    assert f"make {target}" in (ROOT / "README.md").read_text("utf-8")
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


def test_ci_runs_what_the_readme_promises():
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text("utf-8")


def test_every_documented_command_exists():
    """``dsi COMMAND`` in the documents, and ``make TARGET``, are real."""
    from continual.cli import main

    text = "".join((ROOT / name).read_text("utf-8") for name in ("README.md", "CONTRIBUTING.md"))
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in set(re.findall(r"(?m)(?:^|`)make ([a-z]+)", text)):
        assert re.search(rf"(?m)^([a-z ]+ )?{target}:|^\.PHONY:.*\b{target}\b", makefile), target
    for command in set(re.findall(r"(?m)(?:^|`)(?:\.venv/bin/)?dsi ([a-z]+)", text)):
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0, command


def test_paths_in_the_documents_exist():
    for name in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(
            r"\]\((?!https?:|#|mailto:)([^)#]+)", (ROOT / name).read_text("utf-8")
        ):
            assert (ROOT / link).exists(), f"{name}: {link}"


def test_the_changelog_has_the_version():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(rf"(?m)^## \[{re.escape(dsi.__version__)}\]", text)


MACHINE_PATH = re.compile(rb"(?<![\w.~:$}>-])/(?:work|root|tmp|home|Users|mnt|opt|scratch)/\w")


def test_no_file_names_a_path_of_somebodys_machine(repository, tracked_files):
    found = []
    for path in tracked_files:
        content = (repository / path).read_bytes()
        if b"\0" not in content[:8000]:
            for number, line in enumerate(content.splitlines(), start=1):
                if MACHINE_PATH.search(line):
                    found.append(f"{path}:{number}: {line.strip()[:80]!r}")
    assert found == []


def test_the_search_for_machine_paths_finds_them():
    assert MACHINE_PATH.search(b'open("' + b"/home" + b'/ada/corpus")')
    assert MACHINE_PATH.search(b"cd " + b"/root" + b"/x")
    assert not MACHINE_PATH.search(b"https://example.org/home/page")
    assert not MACHINE_PATH.search(b"src/work/item")


def test_pinned_versions_are_portable():
    """constraints.txt: plain NAME==VERSION, every dependency there, no local builds."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    versions = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in pins}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["dev"]]:
        requirement = Requirement(text)
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, text

"""What a user installs: the wheel of the committed files, tried far from the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

PACKAGES = ("dsi", "continual")


@pytest.fixture(scope="module")
def wheel(repository: Path, tracked_files: list[Path], tmp_path_factory) -> Path:
    """The wheel of the files that git knows: what lies around in a checkout cannot leak in."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked_files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(repository / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(output)]
    built = subprocess.run([*command, "."], cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = output.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def elsewhere(wheel: Path, tmp_path_factory) -> Path:
    """A folder with the wheel installed in it, and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    command += ["--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return folder


def run(code: str, elsewhere: Path, cwd: Path) -> str:
    """What ``code`` prints with the installed wheel first on the path and no checkout in sight."""
    environment = os.environ | {"PYTHONPATH": str(elsewhere), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_wheel_holds_two_packages_and_all_of_them(wheel, tracked_files):
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
        licenses = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    committed = {path.as_posix() for path in tracked_files if path.parts[0] in PACKAGES}
    assert inside == committed
    assert {name.partition("/")[0] for name in inside} == set(PACKAGES)
    assert any(name.startswith("dsi/encyclopedia/") for name in inside)
    assert any(name.startswith("continual/presets/") for name in inside)
    assert len(licenses) == 1


def test_the_metadata_are_those_of_the_project(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(name))
        (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "dsi = continual.cli:main" in archive.read(entry_points).decode()
    assert metadata["Name"] == "dsi-continual"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert wheel.name == f"dsi_continual-{metadata['Version']}-py3-none-any.whl"


def test_only_the_two_packages_become_importable(elsewhere, tmp_path):
    # -S leaves out site-packages, and with it an editable install of the checkout
    code = (
        "from importlib.util import find_spec as f\n"
        "print([n for n in ('data', 'configs', 'tests', 'notebooks', 'benchmarks') if f(n)])\n"
        "print(f('dsi').origin); print(f('continual').origin)"
    )
    command = [sys.executable, "-S", "-c", code]
    environment = os.environ | {"PYTHONPATH": str(elsewhere), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    others, *origins = done.stdout.splitlines()
    assert others == "[]"
    assert origins == [str(elsewhere / package / "__init__.py") for package in PACKAGES]


def test_an_installation_can_do_without_the_checkout(elsewhere, tmp_path):
    code = (
        "import dsi, continual.cli\n"
        "from dsi.corpus.corpus import read_corpus\n"
        "from continual.config.loading import load_config\n"
        "corpus = read_corpus('encyclopedia')\n"
        "assert load_config().folder.parts == ('runs', 'quickstart')\n"
        "print(dsi.__file__); print(corpus.documents.num_rows)"
    )
    origin, documents = run(code, elsewhere, tmp_path).splitlines()
    assert origin == str(elsewhere / "dsi" / "__init__.py")
    assert int(documents) > 100


def test_the_editable_installation_leaks_nothing(tmp_path):
    code = (
        "from importlib.util import find_spec as f\n"
        "print([n for n in ('data', 'configs', 'tests', 'notebooks', 'benchmarks') if f(n)])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"

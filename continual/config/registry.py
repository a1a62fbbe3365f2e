"""Components by name: the folder is the registry.

``name: ewc`` under ``regularizer`` is the module ``continual/regularizers/ewc.py`` and its one
public class, whose nested frozen ``Config`` dataclass holds the settings. A dotted name
(``mypackage.mymethod``) loads a module from elsewhere where :func:`allow`, or ``--plugin`` on the
command line, has named its package: importing runs code, and a configuration may be somebody
else's.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import typing
from pathlib import Path
from typing import Any

from dsi.corpus.records import show
from dsi.errors import UserError, printable

FAMILIES = {
    "replay": "continual.replay",
    "regularizer": "continual.regularizers",
    "sharpness": "continual.sharpness",
    "parameters": "continual.parameters",
    "starts": "continual.starts",
    "merging": "continual.merging",
    "docids": "dsi.docids",
    "baseline": "dsi.baselines",
}


BASES = {
    "replay": ("continual.replay", "Replay", "none"),
    "regularizer": ("continual.regularizers", "Regularizer", "none"),
    "sharpness": ("continual.sharpness", "Policy", "none"),
    "parameters": ("continual.parameters", "Parameters", "full"),
    "starts": ("continual.starts", "Start", "random"),
    "merging": ("continual.merging", "Merging", "none"),
    "docids": ("dsi.docids", "Scheme", None),
    "baseline": ("dsi.baselines", "Baseline", "none"),
}
"""Module and name of each family's base class, and what it is called as a member: the one that
does nothing. A component declares what it needs by the attributes of its base class; rules ask for
these, never for its name."""

_allowed: set[str] = set()  # packages and modules that configurations may load from


def allow(package: str) -> None:
    """Let configurations load components from a package (or one module of it), which runs its code.

    Holds for this process. UserError where no such package is installed.
    """
    top = package.partition(".")[0]
    try:
        is_there = _is_dotted(package) and importlib.util.find_spec(top) is not None
    except ValueError:  # made by hand, without a specification
        is_there = True
    if not is_there:
        raise UserError(f"plugin: no package {show(package)} is installed; give the name to import")
    _allowed.add(package)


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def available(axis: str) -> list[str]:
    """Names of the members that live in the axis' own folder."""
    package = importlib.import_module(FAMILIES[axis])
    folder = Path(typing.cast(str, package.__file__)).parent
    found = {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}
    return sorted(found | ({BASES[axis][2]} - {None}))


def base_class(axis: str) -> type:
    """What every member of a family is a subclass of."""
    module, name, _ = BASES[axis]
    return getattr(importlib.import_module(module), name)


def component_class(axis: str, name: str) -> type:
    """The one public class of the module that ``name`` means on ``axis``."""
    if name == BASES[axis][2]:
        return base_class(axis)
    if "." in name and _is_dotted(name):
        module_name = name
        if not any(f"{name}.".startswith(f"{package}.") for package in _allowed):
            top = name.partition(".")[0]
            raise UserError(
                f"{axis}.name: {show(name)} is code from elsewhere; if you trust it, add "
                f"--plugin {top[:80]} (in Python: continual.config.registry.allow), or use one of: "
                + ", ".join(available(axis))
            )
    elif name in available(axis):
        module_name = f"{FAMILIES[axis]}.{name}"
    else:
        raise UserError(f"{axis}.name: unknown name {show(name)}{suggest(name, available(axis))}")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError, ValueError) as error:
        raise UserError(
            f"{axis}.name: cannot import {show(module_name)} ({printable(str(error))[:200]}); "
            "install the package that has it, or use one of: " + ", ".join(available(axis))
        ) from error
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and dataclasses.is_dataclass(getattr(value, "Config", None))
        and not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        raise UserError(
            f"{axis}.name: {module_name} must define exactly one public class with a nested "
            f"Config dataclass, found {[c.__name__ for c in found]}"
        )
    if not issubclass(found[0], base_class(axis)):
        module, base, _ = BASES[axis]
        raise UserError(
            f"{axis}.name: {module_name}.{found[0].__name__} is no {base}; make it a subclass of "
            f"{module}.{base}"
        )
    return found[0]


@dataclasses.dataclass(frozen=True)
class Choice:
    """A member chosen on an axis and its settings."""

    axis: str
    name: str
    settings: Any

    def build(self) -> Any:
        """A fresh component."""
        return component_class(self.axis, self.name)(self.settings)


def suggest(word: str, known: list[str]) -> str:
    """``; did you mean 'x'? known: ...`` for an error line."""
    if not known:
        return "; it has no settings, leave it out"
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ";"
    return f"{hint} known: {', '.join(known)}"

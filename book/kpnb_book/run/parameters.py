"""Parameters of notebooks: how values are read, and what they may be."""

import argparse
import ast
import glob
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml

from kpnb_book.run.chapters import chapter_of
from kpnb_book.run.errors import UsageError, unknown
from kpnb_book.run.source import defaults_of

MOST = {int: 2**31 - 1, float: sys.float_info.max}  # of a number: no overflow, no infinity
PROFILES = ("smoke", "laptop", "paper")
PATHS = {  # parameters that are one, and what lies there
    "data_root": "folder",
    "results": "folder",
    "student_checkpoints": "folder, and no file that fits,",
    "baseline_checkpoints": "folder, and no file that fits,",
}


class Plain(yaml.SafeLoader):
    """YAML as JSON has its values: 2e-1 is a number, 2024-01-01 and "yes" are texts."""

    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012 - how PyYAML states them


Plain.add_implicit_resolver(
    "tag:yaml.org,2002:null", re.compile("^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]
)
Plain.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Plain.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile("^[-+]?(?:0|[1-9][0-9]*)$"), list("-+0123456789")
)
Plain.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def read_yaml(text: str | TextIO) -> Any:
    """What a YAML text or file holds; raises ``yaml.YAMLError``, which names a file. Nothing in it
    is run.
    """
    loader = Plain(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_value(text: str) -> Any:
    """The value that a text on the command line means, read as in the YAML file of a sweep.

    Numbers, true, false, null (or None) and quoted texts are what they look like; [...] and {...}
    hold several; 0,1 is the list [0, 1]. Anything else is the text itself, whatever characters
    YAML would make something of. Raises UsageError for brackets that do not close.
    """
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        value = ...
    if isinstance(value, bool | int | float | str | list | tuple | dict | None):
        return list(value) if isinstance(value, tuple) else value
    if text.startswith(("[", "{")):
        try:
            return read_yaml(text)
        except (yaml.YAMLError, TypeError) as error:  # the latter of a list as a key
            raise UsageError(f"the value {text} is neither a Python literal nor YAML") from error
    loader = Plain("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, text))


def read_assignments(assignments: Sequence[str], path: Path | None = None) -> dict[str, Any]:
    """``["lr=1e-3", "layer=FC1"]`` to ``{"lr": 0.001, "layer": "FC1"}``, as ``-p`` gives them.

    Where the notebook in ``path`` takes a text, as the name of a module, a number is the text that
    was typed: 1.10. Raises UsageError for what is not an assignment or cannot be read.
    """
    parameters = {}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"-p {assignment}: write -p NAME=VALUE")
        try:
            value = read_value(text)
        except UsageError as error:
            raise UsageError(f"-p {assignment}: {error}") from error
        as_text = path is not None and type(value) in (int, float) and takes_text(path, name)
        parameters[name] = text if as_text else value
    return parameters


def add_parameters(parser: argparse.ArgumentParser, what: str = "a parameter") -> None:
    """Add the option ``-p`` to a command; :func:`read_assignments` reads its ``parameters``."""
    parser.add_argument(
        "-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE", help=what
    )


@dataclass(frozen=True)
class Rule:
    """What a parameter of this book may be.

    kind     the type of the value, or of each in a list
    what     the same in words, for messages
    least    the smallest number
    above    what a number has to exceed
    most     the largest number
    pattern  what a text matches as a whole
    several  whether a list of different values fits too
    length   how many values a list has, and then nothing but such a list fits; values may repeat
    """

    kind: type
    what: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    pattern: str | None = None
    several: bool = False
    length: int | None = None

    def reason(self, value: Any) -> str:
        """Why the ``value`` of a parameter is refused; "" when it fits."""
        if not self.fits(value):
            most = f", at most {MOST[self.kind]:,}" if self._is_huge(value) else ""
            return f"takes {self.what}{most}, not {value!r}"
        if isinstance(value, list) and self.length is None:
            twice = [one for i, one in enumerate(value) if one in value[:i]]
            return f"has {twice[0]!r} more than once" if twice else ""
        return ""

    def _is_huge(self, value: Any) -> bool:
        """Whether a number, or one of several, is beyond what networks can be given."""
        numbers = value if isinstance(value, list) else [value]
        kinds = (int, float)
        return (
            self.kind in MOST
            and self.most is None
            and any(type(one) in kinds and one > MOST[self.kind] for one in numbers)
        )

    def fits(self, value: Any) -> bool:
        if self.length is not None:
            listed = isinstance(value, list) and len(value) == self.length
            return listed and all(self._fits_one(one) for one in value)
        if isinstance(value, list):
            return self.several and bool(value) and all(self._fits_one(one) for one in value)
        return self._fits_one(value)

    def _fits_one(self, value: Any) -> bool:
        kinds = (int, float) if self.kind is float else (self.kind,)
        if type(value) not in kinds:
            return False
        if self.pattern is not None:
            return re.fullmatch(self.pattern, value) is not None
        if self.kind in MOST and not value <= MOST[self.kind]:
            return False
        enough = self.least is None or value >= self.least
        enough = enough and (self.above is None or value > self.above)
        return enough and (self.most is None or value <= self.most)


def _count(several: bool = False) -> Rule:
    what = "whole numbers from 1 on, one or a list" if several else "a whole number from 1 on"
    return Rule(int, what, least=1, several=several)


def _layers(*names: str) -> Rule:
    return Rule(
        str, f"{', '.join(names)}, or a list of them", pattern="|".join(names), several=True
    )


def _profiles(*names: str) -> Rule:
    return Rule(str, f"one of {', '.join(names)}", pattern="|".join(names))


CHANNELS = "of red, green and blue where black is 0 and white is 1"

# By name, for all chapters. A default of None, which most have, does not say what fits.
RULES = {
    "profile": _profiles(*PROFILES),
    "dataset": Rule(str, "the name of a data set"),
    "data_root": Rule(str, "a folder"),
    "results": Rule(str, "a folder"),
    "model": Rule(str, "package.module:function", pattern=r"\w+(\.\w+)*:\w+(\.\w+)*"),
    "student_checkpoints": Rule(str, "a pattern of files or a folder"),
    "baseline_checkpoints": Rule(str, "a pattern of files or a folder"),
    "void": Rule(int, "a whole number from 0 to 255, a value in masks", least=0, most=255),
    "mean": Rule(float, f"three numbers from 0 to 1, {CHANNELS}", least=0, most=1, length=3),
    "std": Rule(float, f"three numbers above 0, at most 1, {CHANNELS}", above=0, most=1, length=3),
    "size": _count(),
    "network": Rule(str, "the name of a network", several=True),
    "losses": Rule(str, "names of losses in a list", several=True),
    "students": Rule(
        str,
        "student, outputs, convolution, untrained (the student's control), untrained outputs, "
        "untrained convolution, in a list",
        pattern="student|untrained|(untrained )?(outputs|convolution)",
        several=True,
    ),
    "teachers": Rule(str, "names of networks in a list", several=True),
    "layer": _layers("Conv", "FC1", "FC2", "FC3"),
    "grid": _count(),
    "grids": _count(several=True),
    "points": _count(),
    "background": Rule(int, "a whole number from 0 on", least=0),
    "b": Rule(float, "a number above 0", above=0),
    "thresholds": Rule(float, "numbers above 0, one or a list", above=0, several=True),
    "epochs": _count(),
    "control_epochs": _count(),
    "seed": Rule(int, "a whole number from 0 on", least=0),
    "seeds": Rule(int, "whole numbers from 0 on, one or a list", least=0, several=True),
    "control_seeds": Rule(int, "a whole number from 4 on, two for each half", least=4),
    "depth": _count(),
    "length": _count(),
    "pool": Rule(str, "first, mean or all", pattern="first|mean|all"),
    "threshold": Rule(float, "a number from 0 on", least=0),
    "factor": Rule(float, "a number above 0", above=0),
    "draws": _count(),
    "images": _count(),
    "image": Rule(int, "a whole number from 0 on", least=0),
    "classes": Rule(int, "a whole number from 2 on", least=2),
    "temperature": Rule(float, "a number above 0", above=0),
    "device": Rule(str, "cpu, cuda, cuda:1 or mps", pattern=r"(cpu|cuda|mps|xpu)(:\d+)?"),
}


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """Compare ``parameters`` with the notebook's parameters cell and with ``RULES``; no kernel is
    started.

    Raises UsageError for a name that the cell does not assign, for a value of another type than the
    default (an int may stand for a float), and for one that the rule of this name does not allow.
    None is allowed where it is the default. A parameter of this name with a default that the rule
    does not allow means something else.
    """
    known = defaults_of(path)
    for name, value in parameters.items():
        if name not in known:
            raise UsageError(f"{path.name}: {unknown('parameter', name, known)}")
        default, kind, given = known[name], type(known[name]), type(value)
        if default is not None and given is not kind and (kind, given) != (float, int):
            wanted = f"takes {kind.__name__}, as in {default!r}, not {given.__name__} {value!r}"
            raise UsageError(f"{path.name}: parameter {name!r} {wanted}")
        rule = _rule(path, name)
        if rule is None or value is None or not (default is None or rule.fits(default)):
            continue
        if why := rule.reason(value):
            raise UsageError(f"{path.name}: parameter {name!r} {why}")


def _rule(path: Path, name: str) -> Rule | None:
    """What a parameter of a notebook may be; some pages do not have all profiles."""
    if name == "profile" and chapter_of(path).small:
        return _profiles("smoke", "laptop")
    return RULES.get(name)


def takes_text(path: Path, name: str) -> bool:
    """Whether a parameter of the notebook in ``path`` is a text; where it is None its rule says
    so.
    """
    default = defaults_of(path).get(name)
    if default is None and name in RULES:
        return RULES[name].kind is str
    return isinstance(default, str)


def resolve(path: Path, parameters: Mapping[str, Any], here: Path) -> dict[str, Any]:
    """``parameters`` as the notebook in ``path`` takes them: with :func:`resolve_folders`, and
    whole numbers as texts where it takes those. Raises UsageError for other numbers there, of which
    it is not known how they were written.
    """
    found = dict(parameters)
    for name, value in parameters.items():
        if type(value) is int and takes_text(path, name):
            found[name] = str(value)
        elif type(value) is float and takes_text(path, name):
            raise UsageError(f"parameter {name!r} is a text: put {value} in quotes, as '1.10'")
    return resolve_folders(path, found, here)


def resolve_folders(path: Path, parameters: Mapping[str, Any], here: Path) -> dict[str, Any]:
    """``parameters`` with the folders among them as seen from the caller's folder ``here``, because
    a notebook runs in its own.

    ``data_root`` and ``results`` are folders, checkpoints are one or a pattern of files, and
    ``network`` is where it has a slash in it and is there. Raises UsageError for a relative path,
    but that of a ``network``, that is neither ``here`` nor beside the notebook.
    """
    resolved = dict(parameters)
    for name in (*PATHS, "network"):
        value = parameters.get(name)
        if not isinstance(value, str) or (name == "network" and "/" not in value):
            continue
        folder = Path(value).expanduser()
        for base in (here, path.parent):
            if (base / folder).exists() or _matches(base / folder):
                resolved[name] = os.path.abspath(base / folder)
                break
        else:
            if name in PATHS and not folder.is_absolute():
                raise UsageError(f"{name}={value!r}: there is no such {PATHS[name]} in {here}")
    return resolved


def _matches(pattern: Path) -> bool:
    return next(glob.iglob(str(pattern), recursive=True), None) is not None

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

from kpnb_book.run.chapters import SMALL
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


class Whole(int):
    """A whole number that ``str`` shows as it was ``written``."""

    written = ""

    def __str__(self) -> str:
        return self.written


class Real(float):
    """A number that ``str`` shows as it was ``written``: 1.10 is a module's name too."""

    written = ""

    def __str__(self) -> str:
        return self.written


def as_written(value: Any, text: str) -> Any:
    """A number that remembers the ``text`` which it was read from; any other value as it is."""
    kinds = {int: Whole, float: Real}
    if type(value) not in kinds:
        return value
    number = kinds[type(value)](value)
    number.written = text
    return number


class Written(Plain):
    """YAML whose numbers remember how they were written, until it is known what is wanted."""

    def construct_number(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.rpartition(":")[2]
        value = getattr(self, f"construct_yaml_{kind}")(node)
        return as_written(value, node.value)


Written.add_constructor("tag:yaml.org,2002:int", Written.construct_number)
Written.add_constructor("tag:yaml.org,2002:float", Written.construct_number)


def read_yaml(text: str | TextIO, kind: type[Plain] = Plain) -> Any:
    """What a YAML text or file holds; raises ``yaml.YAMLError``, which names a file. Nothing in it
    is run.
    """
    loader = kind(text)
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
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        value = ...
    if isinstance(value, bool | int | float | str | list | tuple | dict | None):
        return list(value) if isinstance(value, tuple) else value
    if text.startswith(("[", "{")):
        try:
            return read_yaml(text)
        except yaml.YAMLError as error:
            raise UsageError(f"the value {text} is neither a Python literal nor YAML") from error
    loader = Plain("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return loader.construct_object(yaml.ScalarNode(tag, text))


def read_assignments(assignments: Sequence[str], written: bool = False) -> dict[str, Any]:
    """``["lr=1e-3", "layer=FC1"]`` to ``{"lr": 0.001, "layer": "FC1"}``, as ``-p`` gives them.

    When ``written``, numbers remember how they were, for :func:`settled`. Raises UsageError for
    what is not an assignment or cannot be read.
    """
    parameters = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"-p {assignment}: write -p NAME=VALUE")
        try:
            read = read_value(value)
            parameters[name] = as_written(read, value) if written else read
        except UsageError as error:
            raise UsageError(f"-p {assignment}: {error}") from error
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
    if name == "profile" and path.stem in SMALL:
        return _profiles("smoke", "laptop")
    return RULES.get(name)


def settled(path: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``parameters`` without numbers that remember how they were written.

    Where the notebook in ``path`` takes a text such a number is the text that was typed, and else a
    number.
    """
    known = defaults_of(path)
    found = {}
    for name, value in parameters.items():
        as_text = isinstance(value, Whole | Real) and _takes_text(name, known.get(name))
        found[name] = str(value) if as_text else _plain(value)
    return found


def _takes_text(name: str, default: Any) -> bool:
    """Whether a parameter with this ``default`` is a text; of None its rule says so."""
    if default is None and name in RULES:
        return RULES[name].kind is str
    return isinstance(default, str)


def _plain(value: Any) -> Any:
    """A value, or those of a list or mapping, without numbers that remember how they were
    written.
    """
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, Whole):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def resolve(path: Path, parameters: Mapping[str, Any], here: Path) -> dict[str, Any]:
    """``parameters`` as the notebook in ``path`` takes them: :func:`settled`, and with
    :func:`resolve_folders`.
    """
    return resolve_folders(path, settled(path, parameters), here)


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

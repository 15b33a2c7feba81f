"""A grid of parameters: the same notebooks again and again, here or on a cluster, and their results
in one table.

A sweep is a YAML file with one block, or a list of blocks, of these keys:

    notebook: 10                            # number, name or path
    parameters: {profile: paper}            # what all its runs have in common; $NAME is read from
    the environment
    grid: {network: [alexnet, vgg11], layer: [FC1, FC2]}  # every combination is a run
    share: [layer]                          # runs that differ only in these train the same networks

Every run is a notebook in a folder named by its parameters. What is finished is not run again, and
what fails takes nothing else with it.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from kpnb_book.run import engine
from kpnb_book.run.checks import check_run
from kpnb_book.run.errors import UsageError, unknown
from kpnb_book.run.notebooks import TIMEOUT, find_notebook
from kpnb_book.run.origin import content_of, digest, with_parameters
from kpnb_book.run.parameters import read_yaml, resolve
from kpnb_book.run.rerun import finished, log_of, make_folder, rerun
from kpnb_book.run.tables import text_of, write

KEYS = ("notebook", "parameters", "grid", "share")


@dataclass(frozen=True)
class Member:
    """One run of a sweep: a notebook with ``parameters``, in the folder ``name``; ``digest``
    identifies all that its results follow from. Members of the same ``group`` train the same
    networks.
    """

    path: Path
    parameters: dict[str, Any]
    name: str
    digest: str
    group: str

    def finished(self, folder: Path) -> dict[str, Any] | None:
        """The record of the finished run in the sweep's ``folder``, or None."""
        return finished(self.path, folder / self.name, self.digest)

    @property
    def label(self) -> str:
        given = [f"{name}={text_of(value)}" for name, value in self.parameters.items()]
        return " ".join([self.path.stem, *given])


def read(file: Path, root: Path, overrides: Mapping[str, Any], here: bool = True) -> list[Member]:
    """The runs of a sweep, each once; ``overrides`` replace its parameters. Everything is checked,
    also the device when they are to run ``here``; nothing is started.

    Raises UsageError, with the nearest names, for a file, key, notebook or parameter that does not
    exist or fit, and for an override of a parameter that has a grid.
    """
    found: dict[str, Member] = {}
    try:
        blocks = _blocks(file)
        for block in blocks if isinstance(blocks, list) else [blocks]:
            for member in members_of(block, root, overrides, here):
                found.setdefault(member.name, member)
    except UsageError as error:
        raise UsageError(f"{file}: {error}") from error
    return [*found.values()]


def _blocks(file: Path) -> Any:
    """What a sweep's file holds; UsageError says why it cannot be read."""
    try:
        with file.open(encoding="utf8") as stream:
            return read_yaml(stream)
    except FileNotFoundError as error:
        raise UsageError(f"there is no such file (looked for in {Path.cwd()})") from error
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"it is no YAML: {error}") from error


def members_of(
    block: Any, root: Path, overrides: Mapping[str, Any], here: bool = True
) -> Iterator[Member]:
    """The runs of one block of a sweep; raises as :func:`read`."""
    _check_block(block, overrides)
    path, grid = find_notebook(str(block["notebook"]), root), block.get("grid", {})
    share, content, in_clone = block.get("share", []), content_of(path), _path_in_clone(path, root)
    for values in product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        given = block.get("parameters", {}) | chosen | dict(overrides)
        expanded = {name: _expanded(value) for name, value in given.items()}
        parameters = resolve(path, expanded, Path.cwd())
        check_run(path, parameters, here)
        for name in share:
            if name not in parameters:
                raise UsageError(unknown("parameter in 'share'", name, parameters))
        kept = {name: value for name, value in parameters.items() if name not in share}
        where = digest([in_clone, parameters])[:12]
        yield Member(
            path,
            parameters,
            name=f"{path.stem}-{where}",
            digest=with_parameters(content, parameters),
            group=digest([in_clone, kept]),
        )


def _check_block(block: Any, overrides: Mapping[str, Any]) -> None:
    """Raises UsageError for a block that is not as this module describes it."""
    if not isinstance(block, dict) or "notebook" not in block:
        keys = ", ".join(KEYS)
        raise UsageError(
            f"a block is a mapping with the keys {keys}; 'notebook' is missing in {block!r}"
        )
    for key, value in block.items():
        if key not in KEYS:
            raise UsageError(unknown("key", key, KEYS))
        if key in ("parameters", "grid") and not isinstance(value, dict):
            raise UsageError(f"{key!r} is a mapping of names to values, not {value!r}")
    share = block.get("share", [])
    if not isinstance(share, list) or not all(isinstance(name, str) for name in share):
        raise UsageError(f"'share' is a list of parameter names, as in [name], not {share!r}")
    _check_grid(block.get("grid", {}), overrides)


def _check_grid(grid: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Raises UsageError for values that are no list, for none, and for those that are replaced."""
    for name, values in grid.items():
        if not isinstance(values, list):
            raise UsageError(f"grid of {name!r}: write the values as a list, not {values!r}")
        if not values:
            raise UsageError(f"grid of {name!r}: it is empty, so there would be no run")
        if name in overrides:
            raise UsageError(
                f"-p {name} would replace the grid of {name!r}: change the grid in the file"
            )


def _path_in_clone(path: Path, root: Path) -> str:
    """A notebook's path, which does not change when the clone is moved."""
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _expanded(value: Any) -> Any:
    expanded = os.path.expandvars(value) if isinstance(value, str) else value
    if isinstance(value, str) and (unset := re.search(r"\$\w+|\$\{\w+\}", expanded)):
        raise UsageError(
            f"{value!r}: set the environment variable {unset[0]}, or replace the parameter with -p"
        )
    return expanded


def run(
    members: Sequence[Member],
    folder: Path,
    workers: int = 1,
    scheduler: str | None = None,
    timeout: int = TIMEOUT,
) -> dict[str, str]:
    """Run what is not finished yet, then write tables and page to ``folder``; returns why members
    failed, by label.

    Of members that share trainings the first runs alone; the others wait for it and not for each
    other's locks.
    """
    make_folder(folder)
    todo = [member for member in members if not member.finished(folder)]
    failed = {}
    if todo:
        with engine.cluster(min(workers, len(todo)), scheduler) as client:
            tasks = _tasks(todo, folder, timeout)
            outcomes = engine.run(client, tasks, done=len(members) - len(todo))
        failed = {
            member.label: outcomes[member.name].failed
            for member in todo
            if outcomes[member.name].failed
        }
    write(folder, [(m.name, m.parameters, m.finished(folder)) for m in members], failed)
    return failed


def _tasks(members: Sequence[Member], folder: Path, timeout: int) -> list[engine.Task]:
    """A task for each member, the first of a group before the others."""
    first: dict[str, str] = {}
    tasks = []
    for m in members:
        after = (first[m.group],) if m.group in first else ()
        first.setdefault(m.group, m.name)
        where = folder / m.name
        arguments = {"path": m.path, "folder": where, "parameters": m.parameters}
        arguments |= {"digest": m.digest, "timeout": timeout, "resume": True}
        tasks.append(engine.Task(m.name, m.label, rerun, arguments, log_of(m.path, where), after))
    return tasks

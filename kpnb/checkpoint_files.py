"""Which checkpoints a training has, and in which order: from a pattern, a folder or a list."""

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kpnb._messages import listed
from kpnb.checkpoints import Checkpoints
from kpnb.weights import (
    NUMBER,
    Source,
    expanded,
    is_state,
    looked_in,
    lying_in,
    patterns_in,
    read_weights,
    weights_in,
)

log = logging.getLogger(__name__)

Checkpoint = Source | Callable[[], Source]

COUNTED = re.compile(r"(epoch|(?<![a-z])ep|iter(?:ation)?|step)s?[-_= ]*(\d+)", re.IGNORECASE)
"""A number in the name of a file that is said to count epochs or steps."""

SCORE = re.compile(r"\d+\.\d+")
"""A number in the name of a file that counts nothing."""

BESIDE = re.compile(r"(training|recorder)\.safetensors")
MEASURED = re.compile(r"entropy-[0-9a-f]{24}(-\d+)?\.safetensors")
"""What kpnb itself writes into a folder of checkpoints that is none of them."""


def in_order(
    checkpoints: str | os.PathLike[str] | Checkpoints | Iterable[Checkpoint],
    entry: str | None = None,
) -> list[Checkpoint]:
    """One entry for each epoch: patterns and a folder become their files, in natural order.

    A number behind "epoch", "ep", "iter" or "step" orders them; without these, all numbers have to
    agree, or all but one are scores such as 0.25, and that one counts from 0 or 1. A list is taken
    at its word; files whose numbers do not grow with it are logged. What else kpnb has written
    beside checkpoints is left out.

    Raises ``FileNotFoundError`` for a pattern or folder without files and for a file that is not
    there, ``ValueError`` when files differ in more than numbers, when these do not agree, when
    fewer than two checkpoints are left, or when two are the same tensors (of the ``entry``) in
    memory; ``TypeError`` for a set, which has no order.
    """
    found: list[Checkpoint] = []
    given = list(_entries(checkpoints))
    _tell_disorder(given)
    for source in given:
        if not isinstance(source, str | os.PathLike) or expanded(source).exists():
            found.append(source)
            continue
        pattern = os.fspath(source)
        if not glob.has_magic(pattern):
            raise FileNotFoundError(
                f"checkpoint {pattern}: there is no such file or folder{looked_in(pattern)}"
            )
        files = _without_our_own(_matching(expanded(pattern)))
        if not files:
            raise FileNotFoundError(f"no checkpoints match {pattern}{looked_in(pattern)}")
        found += _natural(files, pattern, first=not found)
    if len(found) < 2:
        raise ValueError(
            f"{len(found)} checkpoint(s); the metrics need the untrained network and at least one "
            f"epoch{_suggested(checkpoints)}"
        )
    _check_not_shared(found, entry)
    return found


def _entries(
    checkpoints: str | os.PathLike[str] | Checkpoints | Iterable[Checkpoint],
) -> Iterable[Checkpoint]:
    """Checkpoints, a folder or a single path as a list; patterns in it are still patterns."""
    if isinstance(checkpoints, Checkpoints):
        return [partial(checkpoints.state, k) for k in range(checkpoints.epochs + 1)]
    if isinstance(checkpoints, str | os.PathLike):
        folder = expanded(checkpoints)
        if not folder.is_dir():
            return [checkpoints]
        files = _without_our_own(weights_in(folder))
        if not files:
            remedy = f"give a pattern or a list{_suggested(folder)}"
            raise FileNotFoundError(f"no checkpoints in {folder}: {lying_in(folder)}{remedy}")
        return _natural(files, f"{folder}{os.sep}")
    kind = type(checkpoints).__name__
    if isinstance(checkpoints, set | frozenset):
        raise TypeError(f"a {kind} of checkpoints has no order: give a list, epoch 0 first")
    network = isinstance(checkpoints, nn.Module)
    if network or isinstance(checkpoints, Mapping) or not isinstance(checkpoints, Iterable):
        hint = ", a network, which is one checkpoint at most" if network else ""
        raise TypeError(
            f"checkpoints are a pattern, a folder or a sequence, epoch 0 first; got {kind}{hint}"
        )
    return checkpoints


def _matching(pattern: Path) -> list[Path]:
    """The files of a pattern; a folder that is there, as "lr[0.1]", is taken by its name."""
    if pattern.parent.is_dir():
        pattern = Path(glob.escape(str(pattern.parent))) / pattern.name
    return [Path(name) for name in glob.glob(str(pattern), recursive=True)]


def _without_our_own(files: Iterable[Path]) -> list[Path]:
    """Without what kpnb writes beside checkpoints: the settings of its trainings, which have a JSON
    part, and what was measured where ``folder=`` is that of the checkpoints.
    """
    return [
        file
        for file in files
        if not MEASURED.fullmatch(file.name)
        and not (BESIDE.fullmatch(file.name) and file.with_suffix(".json").exists())
    ]


def _suggested(checkpoints: object) -> str:
    """The pattern of the checkpoints that lie in a folder in another way; "" for anything else."""
    if not isinstance(checkpoints, str | os.PathLike) or not expanded(checkpoints).is_dir():
        return ""
    patterns = patterns_in(expanded(checkpoints))
    return f"; is it the pattern {patterns[0]!r}?" if patterns else ""


def _natural(files: list[Path], pattern: str, first: bool = True) -> list[Path]:
    """Files in the order of the numbers in their names, which must be all they differ in.

    ``first`` says whether the first of them is taken as epoch 0.
    """
    kinds: dict[str, str] = {}
    for path in files:
        kinds.setdefault(NUMBER.sub("#", str(path)), str(path))
    if len(kinds) > 1 or len({_numbers(path) for path in files}) < len(files):
        raise ValueError(
            f"{pattern} matches files that differ in more than their numbers "
            f"({listed(sorted(kinds.values()))}), so their order is not known: narrow the pattern, "
            "or give a list"
        )
    columns, counters = _columns(files)
    if not counters and any(map(SCORE.search, map(str, files))):
        without, _ = _columns([SCORE.sub("", str(file)) for file in files])
        if len(without) == 1 and _is_run(without[0]):  # as in 3_loss0.25
            columns, counters = without, True
    rows = list(zip(*columns, strict=True)) or [()]
    places = sorted(range(len(files)), key=rows.__getitem__)
    agree = counters or all(_rising([column[place] for place in places]) for column in columns)
    ordered = [files[place] for place in places]
    if len({*rows}) < len(files) or not agree:
        raise ValueError(
            f"{pattern} matches files with several numbers that do not grow together "
            f"({listed([str(path) for path in ordered], 3)}), so it is not known which of them "
            "counts epochs: narrow the pattern, or give a list, epoch 0 first"
        )
    _tell_gaps([rows[place] for place in places], pattern, first)
    return ordered


def _numbers(path: str | os.PathLike[str]) -> tuple[int, ...]:
    return tuple(int(number) for number in NUMBER.findall(os.fspath(path)))


def _counters(path: str | os.PathLike[str]) -> tuple[int, ...]:
    """The numbers that are said to count epochs, then those that count steps."""
    named = COUNTED.findall(os.fspath(path))
    epochs = [int(number) for word, number in named if word.lower().startswith("e")]
    return (*epochs, *(int(number) for word, number in named if not word.lower().startswith("e")))


def _columns(files: Sequence[str | os.PathLike[str]]) -> tuple[list[list[int]], bool]:
    """The numbers in which files that are alike but for numbers differ, ``[numbers][files]``: their
    counters alone where they differ in these; and whether they are counters.
    """
    counters = [_counters(file) for file in files]
    named = len({*counters}) > 1
    rows = counters if named else [_numbers(file) for file in files]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return [column for column in columns if len({*column}) > 1], named


def _is_run(numbers: Sequence[int]) -> bool:
    """Whether these are 0, 1, 2, ... or 1, 2, 3, ... in any order, and more than by chance."""
    return len(numbers) > 3 and sorted(numbers) in (
        [*range(len(numbers))],
        [*range(1, len(numbers) + 1)],
    )


def _rising(values: list[Any]) -> bool:
    return values == sorted(values)


def _tell_disorder(sources: Sequence[Checkpoint]) -> None:
    """Log files of a list that are alike but for numbers which do not grow as the list goes on."""
    alike: dict[str, list[str]] = {}
    for source in sources:
        if isinstance(source, str | os.PathLike):
            alike.setdefault(NUMBER.sub("#", os.fspath(source)), []).append(os.fspath(source))
    for kind, files in alike.items():
        columns, counters = _columns(files)
        rising = _rising([*zip(*columns, strict=True)]) if counters else any(map(_rising, columns))
        if columns and not rising:
            log.warning(
                "the numbers of the files %s do not grow as the list goes on: they are taken as "
                "epochs in its order. The pattern %s takes them in that of their numbers",
                listed([os.path.basename(file) for file in files], 4),
                kind.replace("#", "*"),
            )


def _tell_gaps(keys: Sequence[Sequence[int]], pattern: str, first: bool) -> None:
    """Log which numbers of files are taken as epochs, when they are not 0, k, 2k, ...; where these
    are not the ``first``, when they do not have one step.
    """
    counted = [column for column in zip(*keys, strict=True) if len(set(column)) == len(keys) > 1]
    if not counted:
        return
    numbers = counted[0]
    start = 0 if first else numbers[0]
    step = numbers[1] - start
    if list(numbers) == [start + step * epoch for epoch in range(len(numbers))]:
        return
    taken = "taken as one epoch after the other"
    if first:
        taken = (
            f"taken as epochs 0 to {len(numbers) - 1}: the first counts as the untrained network"
        )
    log.warning(
        "the files of %s have the numbers %s, %s", pattern, listed(map(str, numbers), 6), taken
    )


def _check_not_shared(sources: Sequence[Checkpoint], entry: str | None) -> None:
    """``ValueError`` for networks and state dicts that are the same tensors in memory."""
    seen: dict[frozenset[int], int] = {}
    for number, source in enumerate(sources):
        places = _places(source, where_in(source, entry, None)[0])
        if places and places in seen:
            raise ValueError(
                f"checkpoints {seen[places]} and {number} are the same tensors in memory: "
                "state_dict() gives the network's own, which training changes, and all are listed "
                "before the first is measured; keep copy.deepcopy(model.state_dict())"
            )
        seen[places] = number


def where_in(
    source: Source, entry: str | None, prefix: str | None
) -> tuple[str | None, str | None]:
    """Which of ``entry`` and ``prefix`` hold for a source: both for files; for a network or a state
    dict in memory, as an untrained one before the files of its training, what there is of them.
    """
    if isinstance(source, str | os.PathLike):
        return entry, prefix
    state = source.state_dict() if isinstance(source, nn.Module) else source
    if not is_state(state):
        return entry, prefix
    named = prefix is not None and any(name.startswith(prefix) for name in state)
    return None, prefix if named else None


def _places(source: Checkpoint, entry: str | None) -> frozenset[int]:
    """Where in memory the weights of a network or a state dict lie; nowhere for anything else."""
    if not isinstance(source, Mapping | nn.Module):
        return frozenset()
    try:
        weights, _ = read_weights(source, entry=entry)
    except ValueError:  # which says more when it is loaded
        return frozenset()
    tensors = [value for value in weights.values() if isinstance(value, Tensor)]
    return frozenset(value.data_ptr() for value in tensors if value.numel())

"""What an experiment depends on, and where the values come from: a profile, then overrides."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from kpnb._messages import one_of
from kpnb.energy import ClosedForm

ALL = "all"  # every sample that there is, or every layer of an encoder
Count = int | Literal["all"]
OWN = (101, 102, 103)
"""Seeds that a build trains itself: beyond those that stored evidence has, and those that settings
were chosen with (100 and 200).
"""


def directions(solver: ClosedForm) -> dict[str, int | None]:
    """The settings that say what a solver's numbers are."""
    return {"rank": solver.rank, "probes": solver.probes, "noise": solver.noise}


CAREFUL = ClosedForm.careful()


@dataclass(frozen=True)
class Settings:
    """What an experiment of any modality depends on; ``resolve`` gives a profile's values.

    dataset, data_root      which data, and the folder it lies in (None: the set needs none)
    network, layers         name of the network, and the target layers
    b                       threshold of a knowledge point, nats
    seeds, device           one student and one baseline for each seed; where networks run
    epochs                  of student and baseline; the others have ``teacher_epochs`` and
                            ``head_epochs``
    lr                      rate of the baseline; the others have ``teacher_lr`` (None: the same),
                            ``student_lr`` and ``head_lr``
    batch_size              of every training
    teacher_samples, share  how many samples the teacher learns from, and student and baseline of
                            these; a share of type float is a part of the teacher's
    test_samples            held-out samples. Of all three: the word "all" for all there are, while
                            None, as for every setting, keeps the profile's number
    analysed                samples of the share that are measured, as the paper measures training
                            samples
    rank, probes, noise     of ``ClosedForm``: those of ``ClosedForm.careful()``, more than its
                            defaults, for networks early in training
    max_batch               rows of the largest forward pass when measuring
    scale                   the input's, see ``kpnb.entropy``
    """

    dataset: str = ""
    data_root: str | None = None
    network: str = ""
    layers: tuple[str, ...] = ("FC1", "FC2")
    b: float = 0.2
    seeds: tuple[int, ...] = (0, 1)
    device: str = "cpu"
    epochs: int = 20
    teacher_epochs: int = 15
    head_epochs: int = 10
    lr: float = 0.05
    teacher_lr: float | None = None
    student_lr: float = 0.1
    head_lr: float = 0.05
    batch_size: int = 64
    teacher_samples: Count = 8000
    share: Count | float = 1000
    test_samples: Count = 1000
    analysed: int = 48
    rank: int = CAREFUL.rank
    probes: int = CAREFUL.probes
    noise: int = CAREFUL.noise
    max_batch: int = 32
    scale: float = 1.0


Kind = TypeVar("Kind", bound=Settings)


def resolve(
    kind: type[Kind],
    profiles: Mapping[str, Mapping[str, Any]],
    profile: str,
    overrides: Mapping[str, Any],
) -> Kind:
    """The settings of one of the ``profiles``, with ``overrides``; None keeps the profile's value.

    The device defaults to a GPU when there is one. Raises ``ValueError`` for unknown profiles and
    settings, with the nearest names, for a word that is no number, and for a share above 1.
    """
    one_of("profile", profile, profiles)
    known = [field.name for field in fields(kind)]
    for name in overrides:
        one_of("setting", name, known)
    values = {"device": "cuda" if torch.cuda.is_available() else "cpu", **profiles[profile]}
    values.update((name, value) for name, value in overrides.items() if value is not None)
    for name in ("teacher_samples", "share", "test_samples"):
        if isinstance(value := values.get(name), str):
            one_of(f"number of samples ({name})", value, [ALL])
    share = values.get("share")
    if isinstance(share, float) and not 0 < share <= 1:
        raise ValueError(
            f"share={share} is a fraction of the teacher's samples, above 0 and at most 1; give a "
            "number of samples without a decimal point"
        )
    for name in ("layers", "seeds"):
        if name in values:
            values[name] = several(values[name])
    return kind(**values)


def brief(
    profiles: Mapping[str, Mapping[str, Any]], profile: str, epochs: int | None = None
) -> dict[str, Any]:
    """Overrides for the networks that a build trains itself, those of one of the ``profiles`` that
    has any; ``epochs`` if they were asked for.
    """
    found = profiles.get(profile, {})
    return {**found, "epochs": epochs or found.get("epochs")}


def several(given: Any) -> tuple[Any, ...]:
    """One value or a list of them as a tuple."""
    is_list = isinstance(given, Iterable) and not isinstance(given, str)
    return tuple(given) if is_list else (given,)


def note(settings: Settings) -> None:
    """Leave the settings of an experiment for whoever executes the notebook.

    They go to a file beside the one that ``KPNB_PROGRESS`` names, a line of JSON for each; without
    that variable nothing happens.
    """
    if path := os.environ.get("KPNB_PROGRESS"):
        with Path(path).with_suffix(".settings").open("a", encoding="utf8") as file:
            print(json.dumps(asdict(settings)), file=file)

"""Stored evidence: tables of numbers under ``book/results``, committed, one folder a study.

``settings.json``       what the study was: its settings, the version of the method, and the
                        networks that the tables hold
``networks.csv``        a row for each seed, layer and network: ``NETWORK``
``epochs.csv.xz``       of these, what they were after every epoch: columns as "epoch 3 n_fg"
``samples.csv.xz``      a row for each seed, layer, network and measured sample: ``SAMPLE``
``places.csv.xz``       of grids: in how many samples each cell is a knowledge point

No row depends on another, so that seeds can be computed in any order, by several processes, and are
kept when the next one fails.
"""

import io
import json
import lzma
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from kpnb.checkpoints import replace_file

RESULTS = Path(__file__).parents[2] / "results"
KEY = ["seed", "layer", "network"]
NETWORK = [
    "accuracy",  # held-out; of students with their head
    "feature_error",  # held-out, relative; of students
    "path",  # weight distance D after the last epoch
    "linearity",  # of the last epoch, mean over samples
    "training",  # address of the training in a store: what determines it
    "measurement",  # that of its entropies
    "seconds",  # of both
    "machine",
    "versions",
    "date",
]
SAMPLE = [
    "n_fg",
    "n_bg",
    "lambda",
    "d",  # weight distance at m-hat, inside Eq. 8
    "share",  # d as a share of the network's whole path
    "d_equal",  # d while student and baseline have gone at most the shorter of both paths
    "rho",
    "place_n_fg",  # the same points, judged by the regions of other samples
    "place_n_bg",
    "place_lambda",
]
DIGITS = 6


@dataclass(frozen=True)
class Rows:
    """What is known of some networks: frames with the columns ``KEY``, and those named above."""

    networks: pd.DataFrame
    samples: pd.DataFrame
    places: pd.DataFrame

    def each(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> "Rows":
        """The same, every frame changed."""
        return Rows(change(self.networks), change(self.samples), change(self.places))


class Stale(ValueError):
    """Stored evidence belongs to other settings, another version of the method, or other code."""


class Results:
    """The tables of one study in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def origin(self) -> dict[str, Any] | None:
        """What ``settings.json`` says; None when there are no tables."""
        path = self.folder / "settings.json"
        return json.loads(path.read_text("utf8")) if path.is_file() else None

    def check(self, origin: Mapping[str, Any]) -> None:
        """Raise :class:`Stale` when there are tables of another ``origin``, whatever their networks
        are.
        """
        theirs = self.origin
        if theirs is not None and (differing := changed_settings(theirs, origin)):
            raise Stale(f"the evidence in {self.folder.name} is stale: {'; '.join(differing)}")

    def seeds(self) -> list[int]:
        """Seeds that the tables hold."""
        return sorted({seed for seed, _ in self.networks()})

    def networks(self) -> set[tuple[int, str]]:
        """Seed and name of the networks that the tables hold; each is there at all layers."""
        if self.origin is None:
            return set()
        known = self._frame("networks.csv")
        return set(zip(known["seed"].tolist(), known["network"], strict=True))

    def read(self) -> Rows:
        """All rows. Raises FileNotFoundError when there are none."""
        networks, epochs, samples, places = (self._frame(name) for name in FILES)
        return Rows(networks.merge(epochs, "left", KEY, validate="1:1"), samples, places)

    def add(self, origin: Mapping[str, Any], rows: Rows) -> None:
        """Write ``rows`` beside those that are there; a network that is there is replaced.

        Other processes may do the same at the same time. Raises :class:`Stale` for another origin.
        """
        with self._locked():
            self.check(origin)
            rows = merged(self.read(), rows) if self.origin is not None else in_order(rows)
            of_epochs = [name for name in rows.networks if EPOCH.match(name)]
            networks, epochs = rows.networks.drop(columns=of_epochs), rows.networks[KEY + of_epochs]
            frames = dict(zip(FILES, (networks, epochs, rows.samples, rows.places), strict=True))
            for name in reversed(FILES):  # the networks last, which say what is there
                text = table(frames[name])
                data = zipped(text) if name.endswith(".xz") else text.encode()
                replace_file(self.folder / name, data)
            here = {**origin, "networks": list(dict.fromkeys(rows.networks["network"]))}
            text = json.dumps(here, indent=1, sort_keys=True) + "\n"
            replace_file(self.folder / "settings.json", text.encode())

    def remove(self) -> None:
        """Remove the tables."""
        with self._locked():
            for name in ("settings.json", *FILES):  # without the first none counts
                (self.folder / name).unlink(missing_ok=True)

    def _locked(self) -> FileLock:
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".lock")

    def _frame(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / name, keep_default_na=False, na_values=[""])


FILES = ("networks.csv", "epochs.csv.xz", "samples.csv.xz", "places.csv.xz")
EPOCH = re.compile(r"epoch \d+ ")
"""How the names of columns begin that go to a file of their own, packed: four fifths of all."""


def merged(before: Rows, new: Rows) -> Rows:
    """The rows of both; of a network that both have, the new ones."""
    again = new.networks.set_index(KEY).index
    kept = before.each(lambda frame: frame[~frame.set_index(KEY).index.isin(again)])
    return Rows(
        _together(kept.networks, new.networks),
        _together(kept.samples, new.samples),
        _together(kept.places, new.places),
    )


def in_order(rows: Rows) -> Rows:
    """The rows, sorted: the same bytes are written whatever was computed first."""
    return rows.each(_sorted)


def _together(old: pd.DataFrame, fresh: pd.DataFrame) -> pd.DataFrame:
    if old.empty or fresh.empty:
        return _sorted(fresh if old.empty else old)
    return _sorted(pd.concat([old, fresh], ignore_index=True))


def _sorted(frame: pd.DataFrame) -> pd.DataFrame:
    order = [*KEY, *(["sample"] if "sample" in frame else [])]
    return frame.sort_values(order, kind="stable", ignore_index=True)


def table(frame: pd.DataFrame) -> str:
    """``frame`` as CSV, numbers with ``DIGITS`` digits, nothing where a value is undefined."""
    return frame.to_csv(index=False, float_format=f"%.{DIGITS}g", lineterminator="\n")


def as_text(frame: pd.DataFrame) -> pd.DataFrame:
    """``frame`` with every value as it is written, "" where it is undefined."""
    return pd.read_csv(io.StringIO(table(frame)), dtype=str, keep_default_na=False)


def zipped(text: str) -> bytes:
    """``text``, packed; the same bytes for the same text."""
    return lzma.compress(text.encode(), preset=9)  # a quarter less than gzip makes of these tables


def changed_settings(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """What differs between two origins, in words: "settings.epochs was 20, is 30"; the networks do
    not count, because some may be added later.
    """
    old, new = flat(json.loads(json.dumps(theirs))), flat(json.loads(json.dumps(ours)))
    for origin in (old, new):
        origin.pop("networks", None)
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= (
            flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return found

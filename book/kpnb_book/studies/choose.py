"""How rate and weight of each loss are chosen: by held-out accuracy on a seed of its own, before
anything is counted.

    choose(["at", "rkd"], RESULTS / "losses" / "choice.csv")

First the rate, at the weight of the loss's paper; then, where labels count beside the loss, the
weight at that rate. Where the best lies at an end of what was tried, the search goes on beyond it.
No entropy is measured. What was tried is written to a table; what comes of it
is copied into ``losses.WAYS``, and a test compares the two.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from kpnb._messages import one_of
from kpnb.checkpoints import replace_file
from kpnb.losses import LOSSES
from kpnb_book.store import Store
from kpnb_book.studies import losses
from kpnb_book.studies.collecting import of_one_seed
from kpnb_book.studies.evidence import PROFILE
from kpnb_book.studies.losses import LOSSES_EVIDENCE, Way, way_of
from kpnb_book.studies.results import RESULTS
from kpnb_book.studies.rows import machine, versions
from kpnb_book.studies.settings import Settings
from kpnb_book.studies.study import Study

SEED = 100  # neither evidence (0 to 19, and 50 more) nor builds (101 and more) train it
RATES = (0.2, 0.5, 1.0, 2.0)  # times the study's student_lr: 0.02 to 0.2
WEIGHTS = (1.0, 0.1, 10.0)  # times the paper's
FURTHER = 4  # at most so many beyond an end, each half or twice (weights: a tenth or ten times) it
TABLE = RESULTS / "losses" / "choice.csv"
OF_NO_TRAINING = (
    "seeds", "device", "data_root", "layers", "grid", "b", "analysed", "rank", "probes", "noise",
    "max_batch", "scale",
)  # fmt: skip
"""Settings that say which networks are trained where, and how they are measured."""


def choose(
    names: Iterable[str] = (),
    table: Path = TABLE,
    store: Store | None = None,
    **overrides: Any,
) -> pd.DataFrame:
    """Try rates and weights of these losses, by default of all that have none yet, and add what
    was found to the ``table``; what it has is not tried again. Raises ``ValueError`` for trainings
    with other settings than those of the book's own table.

    Returns the table: loss, rate, weight, accuracy, seed, layer, machine, versions. Networks are
    deleted once a loss is done; a loss that was interrupted goes on where it stopped.
    """
    wanted = [*names] or [name for name in LOSSES if not way_of(name).chosen]
    for name in wanted:
        one_of("loss", name, LOSSES)
    _check_place(table, overrides)
    for name in wanted:
        with of_one_seed(store or Store(), f"choose-{name}-{SEED}") as apart:
            if apart is None:
                print(f"{name}: another process tries it", flush=True)
                continue
            study = LOSSES_EVIDENCE.study(apart, **overrides)
            new = pd.DataFrame(tried(study, name, read(table)))
            new = new.assign(machine=machine(study.settings.device), versions=versions())
            _add(new, table)
        rate, weight = best(name, read(table))
        print(f'"{name}": rate={rate:g}, weight={weight:g}', flush=True)
    return read(table)


def _check_place(table: Path, overrides: Mapping[str, Any]) -> None:
    """``ValueError`` where the book's own table would hold trainings of other settings."""
    evidence = LOSSES_EVIDENCE
    settings = evidence.kind.resolve(PROFILE, **{**evidence.overrides, **overrides})
    others = elsewhere(settings)
    if table == TABLE and others:
        raise ValueError(
            f"the book's table is about other settings ({', '.join(others)}): give another folder "
            "(--output)"
        )


def _add(new: pd.DataFrame, table: Path) -> None:
    """Write these rows too, beside what another process may have written meanwhile."""
    if new.empty:
        return
    table.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(table.with_name(".lock")):
        every = pd.concat([read(table), new]) if table.exists() else new
        order = {"key": lambda names: names.map([*LOSSES].index), "kind": "stable"}
        every = every.sort_values("loss", **order)
        replace_file(table, every.to_csv(index=False, lineterminator="\n").encode())


def read(table: Path = TABLE) -> pd.DataFrame:
    """What was tried so far."""
    columns = ["loss", "rate", "weight", "accuracy"]
    return pd.read_csv(table) if table.exists() else pd.DataFrame(columns=columns)


def tried(study: Study, loss: str, known: pd.DataFrame) -> list[dict[str, Any]]:
    """A row for each way that is tried beside those that are ``known``."""
    found = accuracies(loss, known)
    layer = study.settings.layers[0]
    new = []

    def accuracy(rate: float, weight: float) -> float:
        if (rate, weight) not in found:
            way = replace(way_of(loss), rate=rate, weight=weight)
            found[rate, weight] = held_out(study, loss, layer, way)
            row = {"loss": loss, "rate": rate, "weight": weight}
            new.append(row | {"accuracy": found[rate, weight], "seed": SEED, "layer": layer})
            print(
                f"{loss}: rate {rate:g}, weight {weight:g}: {found[rate, weight]:.3f}", flush=True
            )
        return found[rate, weight]

    search(loss, accuracy)
    return new


def accuracies(loss: str, known: pd.DataFrame) -> dict[tuple[float, float], float]:
    """What is ``known`` of a loss: accuracy by rate and weight."""
    mine = known[known["loss"] == loss]
    return dict(zip(zip(mine["rate"], mine["weight"], strict=True), mine["accuracy"], strict=True))


def search(loss: str, accuracy: Callable[[float, float], float]) -> tuple[float, float]:
    """The rule: the best rate at the first weight; then, where labels count, the best weight at
    that rate.
    """
    rate = highest(lambda rate: accuracy(rate, WEIGHTS[0]), RATES, step=2)
    if not way_of(loss).labels:
        return rate, WEIGHTS[0]
    return rate, highest(lambda weight: accuracy(rate, weight), WEIGHTS, step=10)


def highest(accuracy: Callable[[float], float], values: Sequence[float], step: float) -> float:
    """The value of the highest ``accuracy``, of equals the first; of ``values``, and of those
    beyond an end where the highest is there, ``step`` times as far.
    """
    scores = {value: accuracy(value) for value in values}
    for _ in range(FURTHER):
        top = max(scores, key=scores.__getitem__)
        if min(scores) < top < max(scores):
            break
        # no more digits than a table keeps: 0.1 / 2 / 2 and 0.025 are one value
        beyond = float(f"{top / step if top == min(scores) else top * step:.6g}")
        scores[beyond] = accuracy(beyond)
    return max(scores, key=scores.__getitem__)


def held_out(study: Study, loss: str, layer: str, way: Way) -> float:
    """Held-out accuracy of a student; 0 where its loss became infinite."""
    learned = losses.student(study, loss, layer, SEED, way=way)
    try:
        return study.scores(losses.with_head(study, loss, layer, learned, way))["accuracy"]
    except FloatingPointError:
        return 0.0


def best(loss: str, known: pd.DataFrame) -> tuple[float, float]:
    """Rate and weight that the rule gives with what is ``known``, whatever else was tried; KeyError
    where it asks for something that is not.
    """
    found = accuracies(loss, known)
    return search(loss, lambda rate, weight: found[rate, weight])


def differing(table: Path = TABLE) -> list[str]:
    """Losses whose rate or weight in ``WAYS`` is not what the ``table`` says, in words."""
    words, known = [], read(table)
    for loss in known["loss"].unique():
        rate, weight = best(loss, known)
        way = way_of(loss)
        if (way.rate, way.weight) != (rate, weight):
            words.append(
                f"{loss}: rate {rate:g} and weight {weight:g} were found, {way.rate} and "
                f"{way.weight} are used"
            )
    return words


def elsewhere(settings: Settings) -> list[str]:
    """Names of the settings in which these trainings differ from those that rates and weights were
    chosen with.
    """
    chosen = asdict(LOSSES_EVIDENCE.settings)
    return [
        name
        for name, value in asdict(settings).items()
        if name not in OF_NO_TRAINING and value != chosen.get(name)
    ]

"""How rate and weight of each loss are chosen: by held-out accuracy on a seed of its own, before
anything is counted.

    choose(["at", "rkd"], RESULTS / "losses" / "choice.csv")

First the rate, at the weight of the loss's paper; then, where labels count beside the loss, the
weight at that rate. No entropy is measured. What was tried is written to a table; what comes of it
is copied into ``losses.WAYS``, and a test compares the two.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from kpnb._messages import one_of
from kpnb.checkpoints import replace_file
from kpnb.losses import LOSSES
from kpnb_book.store import Store
from kpnb_book.studies import losses
from kpnb_book.studies.evidence import machine, of_one_seed, versions
from kpnb_book.studies.losses import LOSSES_EVIDENCE, Way, way_of
from kpnb_book.studies.results import RESULTS
from kpnb_book.studies.study import Study

SEED = 100  # neither evidence (0 to 19, and 50 more) nor builds (101 and more) train it
RATES = (0.2, 0.5, 1.0, 2.0)  # times the study's student_lr: 0.02 to 0.2
WEIGHTS = (1.0, 0.1, 10.0)  # times the paper's
TABLE = RESULTS / "losses" / "choice.csv"


def choose(
    names: Iterable[str] = (),
    table: Path = TABLE,
    store: Store | None = None,
    **overrides: Any,
) -> pd.DataFrame:
    """Try rates and weights of these losses, by default of all that have none yet, and add what
    was found to the ``table``; a loss that it has is not tried again.

    Returns the table: loss, rate, weight, accuracy, seed, layer, machine, versions. Networks are
    deleted once a loss is done; a loss that was interrupted goes on where it stopped.
    """
    wanted = [*names] or [name for name in LOSSES if not way_of(name).chosen]
    for name in wanted:
        one_of("loss", name, LOSSES)
    for name in wanted:
        if name in set(read(table)["loss"]):
            continue
        with of_one_seed(store or Store(), f"choose-{name}-{SEED}") as apart:
            if apart is None:
                print(f"{name}: another process tries it", flush=True)
                continue
            study = LOSSES_EVIDENCE.study(apart, **overrides)
            found = pd.DataFrame(tried(study, name))
            found = found.assign(machine=machine(study.settings.device), versions=versions())
            every = pd.concat([read(table), found]) if table.exists() else found
            table.parent.mkdir(parents=True, exist_ok=True)
            replace_file(table, every.to_csv(index=False, lineterminator="\n").encode())
        rate, weight = best(found)
        print(f'"{name}": rate={rate:g}, weight={weight:g}', flush=True)
    return read(table)


def read(table: Path = TABLE) -> pd.DataFrame:
    """What was tried so far."""
    return pd.read_csv(table) if table.exists() else pd.DataFrame(columns=["loss"])


def tried(
    study: Study,
    loss: str,
    rates: Sequence[float] = RATES,
    weights: Sequence[float] = WEIGHTS,
) -> list[dict[str, Any]]:
    """A row for each way that was tried: all ``rates`` at the first weight, then, where labels
    count, the other ``weights`` at the best rate.
    """
    found = [*_tried(study, loss, [(rate, weights[0]) for rate in rates])]
    if way_of(loss).labels:
        rate, _ = best(pd.DataFrame(found))
        found += _tried(study, loss, [(rate, weight) for weight in weights[1:]])
    return found


def _tried(
    study: Study, loss: str, pairs: Iterable[tuple[float, float]]
) -> Iterator[dict[str, Any]]:
    layer = study.settings.layers[0]
    for rate, weight in pairs:
        way = replace(way_of(loss), rate=rate, weight=weight)
        row = {"loss": loss, "rate": rate, "weight": weight}
        row |= {"accuracy": held_out(study, loss, layer, way), "seed": SEED, "layer": layer}
        print(f"{loss}: rate {rate:g}, weight {weight:g}: {row['accuracy']:.3f}", flush=True)
        yield row


def held_out(study: Study, loss: str, layer: str, way: Way) -> float:
    """Held-out accuracy of a student; 0 where its loss became infinite."""
    learned = losses.student(study, loss, layer, SEED, way=way)
    try:
        return study.scores(losses.with_head(study, loss, layer, learned, way))["accuracy"]
    except FloatingPointError:
        return 0.0


def best(found: pd.DataFrame) -> tuple[float, float]:
    """Rate and weight of the highest accuracy; of equals, those that were tried first."""
    row = found.loc[found["accuracy"].idxmax()]
    return float(row["rate"]), float(row["weight"])


def differing(table: Path = TABLE) -> list[str]:
    """Losses whose rate or weight in ``WAYS`` is not what the ``table`` says, in words."""
    words = []
    for loss, found in read(table).groupby("loss"):
        rate, weight = best(found)
        way = way_of(str(loss))
        if (way.rate, way.weight) != (rate, weight):
            words.append(
                f"{loss}: rate {rate:g} and weight {weight:g} were found, {way.rate} and "
                f"{way.weight} are used"
            )
    return words

"""What evidence keeps of every epoch: how many points there are, and how accurate a network is.

Columns of the table of networks, ``epoch 3 n_fg`` and so on: means over the samples, for the
paper's figures 2 (accuracy against lambda) and 7 (points by epoch).
"""

import math
import re

import pandas as pd

from kpnb_book.studies import measure
from kpnb_book.studies.results import KEY
from kpnb_book.studies.study import Study
from kpnb_book.studies.training import Training

CURVES = ("n_fg", "n_bg", "lambda", "accuracy")


def curve_columns(study: Study, training: Training, layer: str) -> dict[str, float]:
    """By column, of every epoch from the untrained network on: means of foreground and background
    points and of lambda, and held-out accuracy where the network learns labels.
    """
    H = measure.entropies(study, training, layer)["entropy"]
    points = measure.points(study, H)
    of_labels = training.objective.labels > 0
    found = {
        "n_fg": points.n_fg.nanmean(-1).tolist(),
        "n_bg": points.n_bg.nanmean(-1).tolist(),
        "lambda": points.ratio.nanmean(-1).tolist(),
        "accuracy": [entry["test_accuracy"] if of_labels else math.nan for entry in training.log],
    }
    return {
        f"epoch {epoch} {name}": value for name in CURVES for epoch, value in enumerate(found[name])
    }


def curves(networks: pd.DataFrame) -> pd.DataFrame:
    """The same as a row for each seed, layer, network and epoch, with the columns ``CURVES``; no
    row where evidence has none of it.
    """
    named = {column: re.fullmatch(r"epoch (\d+) (\w+)", column) for column in networks}
    known = {column: found.groups() for column, found in named.items() if found}
    if not known:
        return pd.DataFrame(columns=[*KEY, "epoch", *CURVES])
    long = networks.melt(KEY, list(known), "column")
    long["epoch"] = [int(known[column][0]) for column in long["column"]]
    long["name"] = [known[column][1] for column in long["column"]]
    wide = long.pivot(index=[*KEY, "epoch"], columns="name", values="value")
    return wide[list(CURVES)].dropna(how="all").reset_index()

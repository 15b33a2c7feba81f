"""The chapter on transformers: its figures, and what it says of tables in any state."""

from collections.abc import Mapping
from typing import TypeVar

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from kpnb.metrics import SYMBOL
from kpnb.stats import Difference
from kpnb_book.figures.plots import COLOUR, GREY, styled
from kpnb_book.figures.report import HTML
from kpnb_book.numbers import interval, value
from kpnb_book.studies.stored import Stored
from kpnb_book.studies.transformer import TAUGHT, UNTRAINED
from kpnb_book.studies.verdicts import SIX, Question

Kind = TypeVar("Kind")
KNOWN_AS = {
    "baseline": "from scratch",
    "student": "of its own kind, by features",
    "outputs": "of its own kind, by outputs",
    "convolution": "of a convolutional network",
}
SHORT = {
    "baseline": "from scratch",
    "student": "own features",
    "outputs": "own outputs",
    "convolution": "convolution",
}
"""The same above a picture."""
COLOURS = {"baseline": COLOUR["baseline"], "student": COLOUR["student"]}
COLOURS |= {"outputs": "#7a5195", "convolution": "#2a9d6f"}
AXIS = {
    "n_fg": SYMBOL["n_fg"],
    "n_bg": SYMBOL["n_bg"],
    "gap": "nats discarded:\nbackground - object",
}


def known_as(network: str) -> str:
    """What the page calls a network."""
    control = {name: taught for taught, name in UNTRAINED.items()}
    if network in control:
        return f"{KNOWN_AS[control[network]]}, untrained teacher"
    return KNOWN_AS.get(network, network)


@styled
def by_layer(means: pd.DataFrame) -> Figure:
    """Knowledge points, and by how much more of the background is discarded, layer by layer; blocks
    are joined by lines.

    means   ``studies.transformer.layer_means``
    """
    figure, axes = plt.subplots(len(AXIS), 1, figsize=(5.4, 6.4), sharex=True)
    layers = list(dict.fromkeys(means["layer"]))
    blocks = sum(layer.startswith("Block") for layer in layers)
    networks = list(dict.fromkeys(means["network"]))
    for axis, (name, label) in zip(axes, AXIS.items(), strict=True):
        for network in networks:
            values = means.loc[means["network"] == network, name].to_numpy()
            look = {"color": COLOURS.get(network, GREY), "marker": "o", "lw": 2}
            axis.plot(range(blocks), values[:blocks], **look)
            axis.plot(range(blocks, len(layers)), values[blocks:], **look | {"lw": 0})
        axis.axvline(blocks - 0.5, color=GREY, lw=1, ls=":")
        axis.set_ylabel(label)
        axis.locator_params(axis="y", nbins=5)
    axes[-1].set_xticks(range(len(layers)), [layer.replace("Block", "block ") for layer in layers])
    axes[-1].tick_params(axis="x", rotation=30)
    lines = [plt.Line2D([], [], color=COLOURS.get(name, GREY), marker="o") for name in networks]
    figure.legend(lines, [known_as(name) for name in networks], loc="outside lower center", ncols=2)
    return figure


# ---- words


def state(stored: Stored | None, epochs: int) -> str:
    """How far stored evidence is; ``epochs`` of the build's own networks, where there is none."""
    if stored is None:
        return (
            "There is no stored evidence of transformers yet. These are this build's own networks, "
            f"of one seed and {epochs} epochs, which decide nothing."
        )
    seeds = min(stored.seeds(Question("", role, "baseline", SIX)) for role in TAUGHT)
    stated = len(stored.stated)
    if seeds == stated:
        return f"Stored evidence of {stated} seeds:"
    return f"Stored evidence has {seeds} of {stated} seeds; the verdict waits for all."


def background(found: Mapping[str, Difference]) -> str:
    """Whether a transformer keeps more of the background than a convolutional network."""
    if not found:
        return (
            "Whether it keeps more background than a convolutional network is not judged before "
            "both have all seeds."
        )
    d = found["n_bg"]
    words = {
        "shows": "keeps fewer points on the background than a convolutional network",
        "opposite": "keeps more points on the background than a convolutional network",
        "negligible": "keeps about as many points on the background as a convolutional network",
    }
    said = words.get(d.verdict, "may keep more or fewer points on the background: undecided")
    ends = interval(d.low, d.high, 1, True)
    return f"From scratch a transformer {said} ({value(d.value, 1, sign=True)}, {ends})."


def taught(found: Mapping[str, Mapping[str, Difference]]) -> str:
    """In which metrics each student is what the paper's hypotheses want of it."""
    parts = []
    for role, by_metric in found.items():
        shows = [HTML[name] for name, d in by_metric.items() if d.verdict == "shows"]
        against = [HTML[name] for name, d in by_metric.items() if d.verdict == "opposite"]
        said = f"shows {', '.join(shows) or 'nothing'}"
        parts.append(f"{known_as(role)}: {said}; the opposite: {', '.join(against) or 'nothing'}")
    return ". ".join(parts) + "." if parts else ""


# ---- tables


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The ``table`` with the page's names of its networks."""
    return table.assign(network=table["network"].map(known_as))


def columns(found: Mapping[str, Kind]) -> dict[str, Kind]:
    """The same by the short names of the networks."""
    return {SHORT[network]: each for network, each in found.items()}

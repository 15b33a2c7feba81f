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
from kpnb_book.studies import transformer
from kpnb_book.studies.evidence import TEACHER
from kpnb_book.studies.stored import Stored
from kpnb_book.studies.transformer import CONTROL_OF, TRANSFORMER_EVIDENCE, TransformerEvidence

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
COLOURS = {"baseline": COLOUR["baseline"], "student": COLOUR["student"]}
COLOURS |= {"outputs": "#7a5195", "convolution": "#2a9d6f"}
COLUMNS = {
    "shared_transformer": "shared with the transformer",
    "shared_convolution": "shared with the convolutional network",
    TEACHER: "its teacher's accuracy",
}
AXIS = {
    "n_fg": SYMBOL["n_fg"],
    "n_bg": SYMBOL["n_bg"],
    "gap": "nats discarded:\nbackground - object",
}


def known_as(network: str) -> str:
    """What the page calls a network."""
    if network in CONTROL_OF:
        return f"{KNOWN_AS[CONTROL_OF[network]]}, untrained teacher"
    return KNOWN_AS.get(network, network)


def short(network: str) -> str:
    """The same above a picture."""
    if network in CONTROL_OF:
        return f"{SHORT[CONTROL_OF[network]]}, untrained"
    return SHORT.get(network, network)


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


def state(stored: Stored | None, evidence: TransformerEvidence = TRANSFORMER_EVIDENCE) -> str:
    """How far stored evidence is."""
    dataset = evidence.settings.dataset
    if stored is None:
        return f"There is no stored evidence of transformers on `{dataset}` yet."
    seeds, stated = transformer.seeds_of_all(stored), len(stored.stated)
    if transformer.finished(stored):
        return f"Stored evidence of {stated} seeds, on `{dataset}`:"
    return (
        f"Stored evidence has {seeds} of {stated} seeds; nothing of it is shown before all are "
        "there."
    )


def headline(table: pd.DataFrame) -> str:
    """What complete tables say first of two networks; ``studies.transformer.network_means``."""
    rows = table.set_index("network")
    if not {"baseline", "convolution"} <= {*rows.index}:
        return ""
    scratch, taught = (
        f"{value(rows.loc[role, 'n_bg'], 2)} points on the background and "
        f"{100 * rows.loc[role, 'accuracy']:.0f} % held-out accuracy"
        for role in ("baseline", "convolution")
    )
    return (
        f"The transformer that learns from scratch has {scratch}; taught by the outputs of a "
        f"convolutional network it has {taught}."
    )


def background(found: Mapping[str, Mapping[str, Difference]]) -> str:
    """Whether a transformer keeps more of the background than a convolutional network, both from
    scratch; of ``transformer.kinds``.
    """
    if "from scratch" not in found:
        return (
            "Whether it keeps more background than a convolutional network is not judged before "
            "both have all seeds."
        )
    d = found["from scratch"]["n_bg"]
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
        said += f"; the opposite: {', '.join(against) or 'nothing'}"
        parts.append(f"Against the one from scratch, that {known_as(role)} {said}.")
    return " ".join(parts)


# ---- tables


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The ``table`` with the page's names of its networks and columns."""
    named = table.assign(network=table["network"].map(known_as))
    return named.rename(columns=COLUMNS)


def columns(found: Mapping[str, Kind]) -> dict[str, Kind]:
    """The same by the short names of the networks."""
    return {short(network): each for network, each in found.items()}

"""The chapter on transformers: its figures, and what it says of tables in any state."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TypeVar

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from kpnb.metrics import NAMES, SYMBOL
from kpnb.stats import Difference
from kpnb_book.figures import losses as of_losses
from kpnb_book.figures.plots import COLOUR, GREY, styled
from kpnb_book.figures.views import View, sharing
from kpnb_book.networks.images import LAYERS
from kpnb_book.numbers import interval, value
from kpnb_book.studies import kinds, losses, transfer
from kpnb_book.studies.curves import curves
from kpnb_book.studies.evidence import TEACHER
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.stored import Stored
from kpnb_book.studies.transformer import (
    CONTROL_OF,
    TAUGHT,
    TEACHERS,
    TRANSFORMER_EVIDENCE,
    TransformerEvidence,
)
from kpnb_book.studies.verdicts import means

Kind = TypeVar("Kind")
KNOWN_AS = {
    "baseline": "from scratch",
    "student": "taught a transformer's feature",
    "outputs": "taught a transformer's outputs",
    "convolution": "taught a convolutional network's outputs",
    "untrained": "taught an untrained transformer's feature",
    "untrained outputs": "taught an untrained transformer's outputs",
    "untrained convolution": "taught an untrained convolutional network's outputs",
    "teacher": "the transformer's teacher",
    "untrained teacher": "the same, untrained",
    "convolutional": "a convolutional network from scratch",
}
"""What the page calls a network."""
SHORT = {
    "baseline": "from scratch",
    "student": "feature",
    "outputs": "outputs",
    "convolution": "conv. outputs",
}
"""The same above a picture."""
OF_STUDENT = {"baseline": COLOUR["baseline"], "student": COLOUR["student"]}
OF_STUDENT |= {"outputs": "#7a5195", "convolution": "#2a9d6f"}
CONTROL = {"ls": "--", "lw": 1, "ms": 3, "alpha": 0.7}
LOOK = {name: {"color": colour, "lw": 2, "ms": 6} for name, colour in OF_STUDENT.items()}
LOOK |= {name: CONTROL | {"color": OF_STUDENT[of]} for name, of in CONTROL_OF.items()}
LOOK |= {
    "teacher": {"color": GREY, "lw": 2, "ms": 6, "marker": "s"},
    "untrained teacher": CONTROL | {"color": GREY, "marker": "s"},
    "convolutional": {"color": COLOUR["foreground"], "lw": 2, "ms": 6, "marker": "D"},
}
AXIS = {
    "n_fg": SYMBOL["n_fg"],
    "n_bg": SYMBOL["n_bg"],
    "gap": "nats discarded:\nbackground - object",
}

(_FEATURE,) = TRANSFORMER_EVIDENCE.settings.layers
_TEACHERS_AT = {
    f"{_FEATURE}, transformer teacher": (_FEATURE, "transformer"),
    f"{_FEATURE}, convolutional teacher": (_FEATURE, "convolution"),
} | {
    f"{layer}, transformer teacher": (layer, "transformer")
    for layer in LAYERS[TRANSFORMER_EVIDENCE.settings.network]
    if layer not in (_FEATURE, "FC3")
}
"""Layer and kind of teacher, by what the view calls them."""


def known_as(network: str) -> str:
    """What the page calls a network."""
    return KNOWN_AS.get(network, network)


def short(network: str) -> str:
    """The same above a picture."""
    if network in CONTROL_OF:
        return f"{SHORT[CONTROL_OF[network]]}, untrained"
    return SHORT.get(network, network)


# ---- figures


@styled
def by_layer(means: pd.DataFrame, beside: pd.DataFrame | None = None) -> Figure:
    """Knowledge points, and by how much more of the background is discarded, layer by layer; blocks
    are joined by lines, and controls are dashed.

    means    ``kinds.layer_means``
    beside   ``kinds.convolutional_layers``, which come last
    """
    every = means if beside is None else pd.concat([means, beside], ignore_index=True)
    layers, networks = (list(dict.fromkeys(every[name])) for name in ("layer", "network"))
    figure, axes = plt.subplots(len(AXIS), 1, figsize=(6.6, 7.4), sharex=True)
    for axis, (name, label) in zip(axes, AXIS.items(), strict=True):
        for number, network in enumerate(networks):
            aside = 0.07 * (number - (len(networks) - 1) / 2)  # so that none hides another
            _along(axis, every[every["network"] == network], name, layers, aside)
        axis.set_ylabel(label)
        axis.locator_params(axis="y", nbins=5)
    ticks = [layer.replace("Block", "block ") for layer in layers]
    axes[-1].set_xticks(range(len(layers)), ticks, rotation=30)
    lines = [plt.Line2D([], [], **{"marker": "o", **LOOK.get(name, {})}) for name in networks]
    names = [known_as(name) for name in networks]
    figure.legend(lines, names, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _along(axis: Axes, rows: pd.DataFrame, name: str, layers: list[str], aside: float) -> None:
    """One network's values at its layers; those that lie behind each other in it are joined, and
    what may be called a transformer's feature is not.
    """
    look = {"marker": "o", **LOOK.get(rows["network"].iloc[0], {"color": GREY})}
    alone = rows["layer"].isin(["tokens", "cls", "mean"])
    for part, joined in ((rows[~alone], True), (rows[alone], False)):
        places = [layers.index(layer) + aside for layer in part["layer"]]
        axis.plot(places, part[name], **look | ({} if joined else {"lw": 0, "ls": "none"}))


@styled
def by_epoch(networks: pd.DataFrame) -> Figure:
    """Knowledge points and held-out accuracy after every epoch, means over the seeds; controls are
    dashed. What learns a feature has no accuracy before its head.

    networks   of the tables, with the columns of ``studies.curves``
    """
    means = curves(networks).groupby(["network", "epoch"])[["n_fg", "n_bg", "accuracy"]].mean()
    known = [name for name in TRANSFORMER_EVIDENCE.roles if name in means.index]
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.6))
    labels = {"n_fg": SYMBOL["n_fg"], "n_bg": SYMBOL["n_bg"], "accuracy": "held-out accuracy, %"}
    for axis, (name, label) in zip(axes, labels.items(), strict=True):
        for network in known:
            values = means.loc[network, name] * (100 if name == "accuracy" else 1)
            axis.plot(values.index, values, **LOOK[network])
        axis.set(xlabel="epoch", ylabel=label)
    lines = [plt.Line2D([], [], **LOOK[name]) for name in known]
    names = [known_as(name) for name in known]
    figure.legend(lines, names, loc="outside lower center", ncols=2, fontsize=8)
    return figure


def explore(study: ImageStudy, stored: Stored, chosen: Tensor) -> View | None:
    """Pictures through a network and a teacher, at every layer, with what the tables say of it;
    None where no picture is ``chosen`` (numbers ``[K]`` of the measured).

    study   measures the same pictures as the tables
    """
    if not len(chosen):
        return None
    cells, words = study.foreground.shape[1], in_words(stored)
    points: dict[str, dict[int, dict[str, Tensor]]] = {}
    said: dict[str, dict[int, dict[str, str]]] = {}
    for place in stored.places.to_dict("records"):
        network, seed = place["network"], int(place["seed"])
        for title, (layer, kind) in _TEACHERS_AT.items():
            prefix = "" if layer == _FEATURE else f"{layer} "
            found = points.setdefault(title, {}).setdefault(seed, {})
            for name, column in {"teacher": f"{kind} points", network: "points"}.items():
                found[name] = losses.unpacked(place[f"{prefix}{column}"], cells)[chosen]
            at = kind if layer == _FEATURE else "elsewhere"
            said.setdefault(title, {}).setdefault(seed, {})[network] = words[network, seed][at]
    names = {name: known_as(name) for name in TRANSFORMER_EVIDENCE.roles}
    alt = "Pictures with the knowledge points of a transformer and a teacher, by layer and seed"
    images, inside = study.measured.images[chosen], study.foreground[chosen]
    return sharing(images, points, said, inside, study.units.shape, names, alt)


# ---- words


def in_words(stored: Stored) -> dict[tuple[str, int], dict[str, str]]:
    """What the tables say of each network and seed, in a sentence: beside either kind of teacher at
    the feature, and "elsewhere".
    """
    found: dict[tuple[str, int], dict[str, str]] = {}
    for row in kinds.by_seed(stored).to_dict("records"):
        accuracy = f"Accuracy {100 * row['accuracy']:.1f} %."
        found[row["network"], int(row["seed"])] = {"elsewhere": accuracy} | {
            kind: f"{of_losses.over_all(row[f'shared_{kind}'], row[f'place_{kind}'])} {accuracy}"
            for kind in TEACHERS
        }
    return found


def state(stored: Stored | None, evidence: TransformerEvidence = TRANSFORMER_EVIDENCE) -> str:
    """How far stored evidence is."""
    dataset = evidence.settings.dataset
    if stored is None:
        return f"There is no stored evidence of transformers on `{dataset}` yet."
    seeds, stated = kinds.seeds_of_all(stored), len(stored.stated)
    if kinds.finished(stored):
        return f"Stored evidence of {stated} seeds, on `{dataset}`."
    return (
        f"Stored evidence has {seeds} of {stated} seeds; nothing of it is shown before all are "
        "there."
    )


def headline(stored: Stored, frames: Mapping[str, pd.DataFrame]) -> list[str]:
    """What complete tables say: of background, of the six metrics of each student, and of what is
    shared and of accuracy, against the one from scratch and against controls.

    frames   ``kinds.both_kinds``
    """
    return [background(frames), *taught(stored), *all_counted(stored)]


def in_short(stored: Stored | None, frames: Mapping[str, pd.DataFrame]) -> str:
    """What the front page says of transformers, in HTML."""
    if stored is None or not kinds.finished(stored):
        return "<p>They are compared once all of their seeds are there.</p>"
    dataset = TRANSFORMER_EVIDENCE.settings.dataset
    about = f"On the embedded images (<code>{dataset}</code>), {len(stored.stated)} seeds of each"
    waits = "" if kinds.kinds(frames) else background(frames)
    said = " ".join(filter(None, [f"{about} network.", *_controls_alone(stored), waits]))
    return f"<p>{said}</p>"


def in_short_table(stored: Stored | None) -> pd.DataFrame:
    """What students share and their accuracy for the front page, empty before all seeds are
    there.
    """
    if stored is None or not kinds.finished(stored):
        return pd.DataFrame()
    against = {"the one from scratch": "baseline"}
    if kinds.controls_finished(stored):
        against["its control"] = "untrained"
    orders = {
        other: kinds.sharing(stored, name).rename(columns={"network": "loss"})
        for other, name in against.items()
    }
    return of_losses.judged_in_words(orders, known_as)


def points_table(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """``background`` as a table, a row for each of ``kinds.both_kinds``; empty before it is
    judged.
    """
    found = kinds.kinds(frames)
    rows = []
    for name, by_metric in found.items():
        row = {"student": name}
        for metric, where in (("n_bg", "on the background"), ("n_fg", "on the object")):
            both, word, _ = _points_of_kinds(by_metric[metric], frames[name])
            row[f"points {where}, transformer / convolutional"] = f"{' / '.join(both)}: {word}"
        rows.append(row)
    return pd.DataFrame(rows)


SAID = {
    "n_fg": {"shows": "more", "opposite": "fewer", "negligible": "about as many"},
    "n_bg": {"shows": "fewer", "opposite": "more", "negligible": "about as many"},
}
"""Of a transformer's points, by the verdict on what the paper wants of students: more of them on
the object, and fewer on the background.
"""


def background(frames: Mapping[str, pd.DataFrame]) -> str:
    """Whether a transformer keeps more of the background than a convolutional network, and of the
    object, from scratch and taught; of ``kinds.both_kinds``.
    """
    found = kinds.kinds(frames)
    if "from scratch" not in found:
        return (
            "Whether a transformer keeps more background than a convolutional network is not "
            "judged without all seeds of both, with points, of the same pictures."
        )
    of_whom = "of a transformer (at cls) against a convolutional network (FC1 and FC2)"
    background, on_object = (
        "; ".join(
            f"{name} {_against(*_points_of_kinds(by_metric[metric], frames[name]))}"
            for name, by_metric in found.items()
        )
        for metric in ("n_bg", "n_fg")
    )
    return (
        f"Knowledge points on the background of an image, {of_whom}: {background}. On the object: "
        f"{on_object}."
    )


def _points_of_kinds(d: Difference, frame: pd.DataFrame) -> tuple[list[str], str, str]:
    """Points of both kinds of networks in one metric, which has more, and the difference."""
    both = [value(means(frame, kind)[d.metric], 3) for kind in ("transformer", "convolution")]
    word = SAID[d.metric].get(d.verdict, "not decided")
    word += ", surely by little" * (d.small and d.verdict in ("shows", "opposite"))
    ends = interval(d.low, d.high, 2, True)
    return both, word, f"{value(d.value, 2, sign=True)}, 95 % interval {ends}"


def _against(both: Sequence[str], word: str, difference: str) -> str:
    return f"{' against '.join(both)}, {word} ({difference})"


def taught(stored: Stored) -> list[str]:
    """In how many of the six metrics each student shows what the paper's hypotheses want of it:
    against the one from scratch, against its control, and that control itself; a sentence each.
    """
    found = {
        name: kinds.differences(stored, name).six for name in ("baseline", "untrained", "controls")
    }
    if not found["baseline"]:
        return ["No student is judged: each lacks a seed, or points."]
    said = []
    for role, by_metric in found["baseline"].items():
        sentence = (
            f"The student {known_as(role)}: of {len(by_metric)} metrics {_counted(by_metric)} "
            "against the one from scratch"
        )
        if role in found["untrained"]:
            sentence += f", {_counted(found['untrained'][role])} against its control"
        if role in found["controls"]:
            sentence += f"; its control itself has {_counted(found['controls'][role])}"
        said.append(f"{sentence}.")
    return [*said, *filter(None, [unanswered(stored, found["baseline"])])]


def _counted(by_metric: Mapping[str, Difference]) -> str:
    words = [d.verdict for d in by_metric.values()]
    shows, opposite = words.count("shows"), words.count("opposite")
    if not shows and not opposite:
        return "none that *shows* or is *opposite*"
    return f"{shows} that *show* and {opposite} *opposite*"


counted = partial(of_losses.counted, known_as=known_as, by="", of="ways to teach")
"""``losses.counted``, of the students of transformers."""


def all_counted(stored: Stored) -> list[str]:
    """Which students share more with their teacher beyond place, and which are more accurate, than
    the one from scratch; and than their controls, with what becomes of these themselves.
    """
    asked = {"baseline": "the one from scratch"}
    if kinds.controls_finished(stored):
        asked["untrained"] = "the same student of an untrained teacher"
    said = []
    for against, other in asked.items():
        order = kinds.sharing(stored, against).rename(columns={"network": "loss"})
        said.append(" ".join(counted(order, name, other) for name in transfer.JUDGED))
    return said + _controls_alone(stored)


def _controls_alone(stored: Stored) -> list[str]:
    """What becomes of the controls themselves, in a sentence; none before they have all seeds."""
    if not kinds.controls_finished(stored):
        return []
    alone = kinds.sharing(stored, "controls")
    more, gain = (alone[f"{name}_said"] for name in transfer.JUDGED)
    return [
        f"Of the {len(alone)} controls themselves, beside the one from scratch, "
        f"{(more == 'yes').sum()} share more and {(more == 'no: less').sum()} less; "
        f"{(gain == 'yes').sum()} are more accurate and {(gain == 'no: less').sum()} less."
    ]


def unanswered(stored: Stored, found: Iterable[str]) -> str:
    """Which students have no verdict here; "" where all have one."""
    missing = [known_as(name) for name in TAUGHT if name not in found]
    if not missing:
        return ""
    return (
        f"No answer for those {', '.join(missing)}: a seed is missing or diverged, or one of both "
        "networks has points in too few images."
    )


# ---- tables


def named(table: pd.DataFrame) -> pd.DataFrame:
    """A run's own networks for the page, by name, with accuracy in %."""
    named = table.assign(network=table["network"].map(known_as))
    known = [name for name in ("network", *NAMES) if name in named]
    return named[known].assign(**{"held-out accuracy, %": 100 * named["accuracy"]})


def means_table(stored: Stored) -> pd.DataFrame:
    """``kinds.network_means`` for the page: the six metrics and accuracies."""
    table = kinds.network_means(stored)
    every = len(stored.stated)
    seeds = [str(n) if n == every else f"{every} ({n} with points)" for n in table["seeds"]]
    return named(table).assign(**{"seeds": seeds, "its teacher's, %": 100 * table[TEACHER]})


def shared_table(stored: Stored) -> pd.DataFrame:
    """What every network shares with either kind of teacher: of all points that either has, by
    place alone, and beyond it.
    """
    table = kinds.network_means(stored)
    columns = {"network": table["network"].map(known_as)}
    titles = {"transformer": "the transformer", "convolution": "the convolutional network"}
    for kind, title in titles.items():
        columns[f"with {title}"] = table[f"shared_{kind}"]
        columns[f"{title}: by place alone"] = table[f"place_{kind}"]
        columns[f"{title}: beyond place"] = table[f"beyond_{kind}"]
    return pd.DataFrame(columns)


def judged_table(order: pd.DataFrame, other: str) -> pd.DataFrame:
    """``kinds.sharing`` for the page, against the ``other`` network."""
    table = of_losses.controls_table(order.rename(columns={"network": "loss"}), other)
    return table.assign(student=order["network"].map(known_as))


def layers_table(means: pd.DataFrame) -> pd.DataFrame:
    """``kinds.layer_means`` for the page: points on the object and on the background at each layer,
    a row for each network.
    """
    both = [f"{on:.1f} / {off:.1f}" for on, off in means[["n_fg", "n_bg"]].to_numpy()]
    wide = means.assign(both=both).pivot(index="network", columns="layer", values="both")
    wide = wide.loc[list(dict.fromkeys(means["network"])), list(dict.fromkeys(means["layer"]))]
    return wide.rename(index=known_as).rename_axis(columns=None).reset_index()


def columns(found: Mapping[str, Kind]) -> dict[str, Kind]:
    """The same by the short names of the networks."""
    return {short(network): each for network, each in found.items()}

"""What transformers are taught, by which kind of teacher, and how they differ from convolutional
networks: read from the tables of ``transformer``, beside those of images and of losses.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pandas as pd
import torch

from kpnb.stats import Difference
from kpnb_book.networks.images import LAYERS
from kpnb_book.studies import losses, paper, transfer
from kpnb_book.studies.evidence import STUDIES, TEACHER
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.losses import LOSSES_EVIDENCE
from kpnb_book.studies.rows import shifts
from kpnb_book.studies.stored import Stored, read_one
from kpnb_book.studies.transfer import SAME, Gaps, gaps_of, judged
from kpnb_book.studies.transformer import (
    CONTROL_OF,
    MEASURES,
    TAUGHT,
    TEACHERS,
    TRANSFORMER_EVIDENCE,
    UNTRAINED,
)
from kpnb_book.studies.verdicts import (
    POINTS,
    SIX,
    Question,
    all_decided,
    answers,
    decided,
    means,
)

TEACHER_OF = {"student": "transformer", "outputs": "transformer", "convolution": "convolution"}
"""By student, the kind of its teacher."""


def seeds_of_all(stored: Stored) -> int:
    """Of how many stated seeds the tables have baseline and every student, also where a training
    diverged.
    """
    return _seeds(stored, ("baseline", *TAUGHT))


def finished(stored: Stored) -> bool:
    """Whether they have those of all stated seeds; before that nothing of them is shown."""
    return seeds_of_all(stored) == len(stored.stated) > 1


def controls_finished(stored: Stored) -> bool:
    """Whether the students of untrained teachers have all seeds too."""
    every = _seeds(stored, TRANSFORMER_EVIDENCE.roles)
    return finished(stored) and every == len(stored.stated)


def _seeds(stored: Stored, roles: tuple[str, ...]) -> int:
    seeds = stored.networks.groupby("network")["seed"].nunique()
    return int(seeds.reindex([*roles], fill_value=0).min())


# ------------------------------------------------------------------------- the paper's six metrics


def differences(stored: Stored | None, against: str = "baseline") -> Gaps:
    """By student, ``transfer.Gaps``; none without tables.

    against   "baseline"; "untrained": the same student of the untrained teacher; or "controls":
              these students less the baseline
    """
    return gaps_of(stored, _pairs(against)) if stored else Gaps({}, {})


def _pairs(against: str) -> dict[str, tuple[str, str]]:
    """By student, which network is compared with which."""
    if against == "controls":
        return {role: (UNTRAINED[role], "baseline") for role in TAUGHT}
    other = UNTRAINED if against == "untrained" else dict.fromkeys(TAUGHT, against)
    return {role: (role, other[role]) for role in TAUGHT}


def kind_of_teacher(stored: Stored) -> dict[str, dict[str, Difference]]:
    """Of two students by outputs that of a convolutional network, less that of a transformer, in
    the six metrics; by what is subtracted.
    """
    return gaps_of(stored, {"convolution - transformer": ("convolution", "outputs")}).six


def differences_in_patches(stored: Stored) -> dict[str, dict[str, Difference]]:
    """As ``differences``, in ``POINTS`` with patches as units. There is no delta for these: the
    paper's tables count cells.
    """
    columns = {metric: f"patch {metric}" for metric in POINTS}
    asked = {role: Question(role, role, "baseline", columns, POINTS) for role in TAUGHT}
    return all_decided(stored.samples, asked, stored.stated)


# ------------------------------------------------------------------- what is shared with a teacher


def by_seed(stored: Stored) -> pd.DataFrame:
    """A row for each network and seed, with its accuracy and means over the samples.

    Columns: network, seed, accuracy; and for each kind of teacher, as "place_transformer":

    shared    knowledge points shared with it, of those that either has
    place     the same with its points in other samples, as for losses
    beyond    shared, less by place

    Over the samples in which the points of both are defined; undefined where a training diverged.
    """
    keys, cells = ["network", "seed"], losses.cells_of(stored.places)
    places = stored.places.set_index(keys).sort_index()
    rows = []
    for key, samples in stored.samples.groupby(keys):
        row = dict(zip(keys, key, strict=True))
        for kind in TEACHERS:
            known = samples[samples[f"shared_{kind}"].notna()]
            at = torch.tensor(known["sample"].to_numpy(int))
            both = (places.loc[key, name] for name in ("points", f"{kind} points"))
            ours, theirs = (losses.unpacked(each, cells) for each in both)
            others = [losses.iou(ours, theirs.roll(-n, 0))[at] for n in shifts(len(theirs))]
            row[f"shared_{kind}"] = known[f"shared_{kind}"].mean()
            row[f"place_{kind}"] = torch.stack(others).nanmean(0).nanmean().item()
            row[f"beyond_{kind}"] = row[f"shared_{kind}"] - row[f"place_{kind}"]
        rows.append(row)
    accuracies = stored.networks[[*keys, "accuracy"]]
    return accuracies.merge(pd.DataFrame(rows), on=keys, how="left")


def compared(table: pd.DataFrame, role: str, other: str) -> pd.DataFrame:
    """For each seed of ``by_seed``, as ``transfer.compared``: what a student or its control shares
    with that kind of teacher, and less what the ``other`` network shares with it, all beyond place.
    """
    kind = TEACHER_OF[CONTROL_OF.get(role, role)]
    ours, theirs = (table[table["network"] == name].set_index("seed") for name in (role, other))
    theirs = theirs.reindex(ours.index)
    return pd.DataFrame(
        {
            "shared": ours[f"shared_{kind}"],
            "place": ours[f"place_{kind}"],
            "beyond": ours[f"beyond_{kind}"],
            "more": ours[f"beyond_{kind}"] - theirs[f"beyond_{kind}"],
            "gain": ours["accuracy"] - theirs["accuracy"],
        }
    )


def sharing(stored: Stored, against: str = "baseline") -> pd.DataFrame:
    """A row for each student: ``transfer.judged`` of what it shares with its teacher and of its
    accuracy; ``against`` as in ``differences``.
    """
    table = by_seed(stored)
    return judged({role: compared(table, *pair) for role, pair in _pairs(against).items()})


def baselines_share(stored: Stored) -> float:
    """Knowledge points that baselines of different seeds share, mean over samples and neighbouring
    seeds; NaN without two.
    """
    cells = losses.cells_of(stored.places)
    here = stored.places[stored.places["network"] == "baseline"].sort_values("seed")
    samples = stored.samples[stored.samples["network"] == "baseline"].sort_values("sample")
    points = [losses.unpacked(each, cells) for each in here["points"]]
    defined = [
        torch.tensor(samples.loc[samples["seed"] == seed, "n_fg"].notna().to_numpy())
        for seed in here["seed"]
    ]
    pairs = [
        losses.iou(one, other)[both & also].nanmean()
        for (one, other), (both, also) in zip(pairwise(points), pairwise(defined), strict=True)
    ]
    return float(torch.stack(pairs).mean()) if pairs else float("nan")


# ----------------------------------------------------------------------------------- what is shown


def network_means(stored: Stored) -> pd.DataFrame:
    """A row for every network that all stated seeds have: ``seeds``, how many of them have points,
    the six metrics, ``by_seed`` and held-out accuracy, and that of its teacher, means over the
    seeds.
    """
    of_seeds = by_seed(stored).groupby("network")
    shared = of_seeds.mean(numeric_only=True).drop(columns="seed")
    counts = of_seeds["shared_transformer"].count()
    teachers = stored.networks.groupby("network")[TEACHER].mean()  # NaN of those without one
    rows = [
        {"network": role, "seeds": int(counts[role])}
        | means(stored.samples, role)
        | shared.loc[role].to_dict()
        | {TEACHER: teachers[role]}
        for role in TRANSFORMER_EVIDENCE.roles
        if role in stored.complete
    ]
    return pd.DataFrame(rows)


def layer_means(networks: pd.DataFrame) -> pd.DataFrame:
    """Points and gaps after the last epoch (``MEASURES``), means over the seeds: a row for the
    baseline, each student and control, and the teachers where ``networks`` have them, and each
    layer.
    """
    gaps = [name.removesuffix(" gap") for name in networks if name.endswith(" gap")]
    layers = [name for name in gaps if "teacher " not in name]
    means = networks.groupby("network").mean(numeric_only=True)
    found = {
        role: (means.loc[role], "") for role in TRANSFORMER_EVIDENCE.roles if role in means.index
    }
    for name in ("teacher", "untrained teacher"):
        if f"{name} {layers[0]}" in gaps:
            found[name] = means.mean(), f"{name} "
    rows = [
        {"network": role, "layer": layer}
        | {name: of_role[f"{prefix}{layer} {name}"] for name in MEASURES}
        for role, (of_role, prefix) in found.items()
        for layer in layers
    ]
    return pd.DataFrame(rows)


def with_stored_pictures(study: ImageStudy, stored: Stored) -> ImageStudy | None:
    """As that of ``transfer``, of transformers, which a build trains on fewer images."""
    same = [name for name in SAME if name != "share"]
    return transfer.with_stored_pictures(study, stored, TRANSFORMER_EVIDENCE, same)


# ------------------------------------------------------------------------ two kinds of networks

KINDS = Question("kinds", "transformer", "convolution", {m: SIX[m] for m in POINTS}, POINTS)
"""Networks of both kinds; distances and detours depend on how a kind is trained."""


@dataclass(frozen=True)
class Both:
    """Networks that there are of both kinds: the transformer's role, and the convolutional
    network's in the tables of ``study``.
    """

    transformer: str
    convolution: str
    study: str = "images"


OF_BOTH_KINDS = {
    "from scratch": Both("baseline", "baseline"),
    "taught by features": Both("student", "student"),  # each of a teacher of its own kind
    "taught by the same outputs": Both("convolution", "soft_targets", LOSSES_EVIDENCE.name),
}


def both_kinds(folder: str | Path | None = None) -> dict[str, pd.DataFrame]:
    """For each of ``OF_BOTH_KINDS`` the samples of "transformer" and "convolution", means over each
    one's layers, from the tables in ``folder`` (default ``book/results``); without those of which
    not both kinds have all seeds that were stated for transformers, and empty unless they measured
    the same pictures.
    """
    ours = read_one(TRANSFORMER_EVIDENCE, folder)
    if not ours or not ours.measured:
        return {}
    known = {"images": STUDIES["images"], LOSSES_EVIDENCE.name: LOSSES_EVIDENCE}
    tables = {name: read_one(evidence, folder) for name, evidence in known.items()}
    found = {}
    for name, both in OF_BOTH_KINDS.items():
        theirs = tables[both.study]
        if theirs is None or theirs.measured != ours.measured:
            continue
        frame = of_both_kinds(ours.samples, theirs.samples, both)
        if answers(frame, KINDS, TRANSFORMER_EVIDENCE.seeds):
            found[name] = frame
    return found


def of_both_kinds(
    transformers: pd.DataFrame, convolutions: pd.DataFrame, both: Both
) -> pd.DataFrame:
    """Samples of two networks of both kinds, of the seeds that both have, means over each one's
    layers; for ``KINDS``.
    """
    parts = []
    for name, samples in {"transformer": transformers, "convolution": convolutions}.items():
        chosen = samples[samples["network"] == getattr(both, name)]
        means = chosen.groupby(["seed", "sample"])[[*SIX.values()]].mean().reset_index()
        parts.append(means.assign(layer="all", network=name))
    common = set(parts[0]["seed"]) & set(parts[1]["seed"])
    frame = pd.concat(parts, ignore_index=True)
    return frame[frame["seed"].isin(common)]


def kinds(frames: Mapping[str, pd.DataFrame]) -> dict[str, dict[str, Difference]]:
    """Transformer minus convolutional network in the metrics of ``KINDS``, for each of
    ``both_kinds``.
    """
    tables = paper.read()
    return {
        name: decided(frame, KINDS, paper.deltas(tables, "images", means(frame, "convolution")))
        for name, frame in frames.items()
    }


def convolutional_layers(folder: str | Path | None = None) -> pd.DataFrame:
    """``layer_means`` of the convolutional network from scratch ("convolutional"), which stored
    evidence of losses has by layer; its gap is not known. Empty without it, or where it measured
    other pictures.
    """
    ours, theirs = (read_one(each, folder) for each in (TRANSFORMER_EVIDENCE, LOSSES_EVIDENCE))
    if not ours or not theirs or not ours.measured or ours.measured != theirs.measured:
        return pd.DataFrame()
    chosen = theirs.samples[theirs.samples["network"] == "baseline"]
    known = LAYERS[LOSSES_EVIDENCE.settings.network]
    rows = [
        {"network": "convolutional", "layer": layer}
        | {name: chosen[f"{layer} {name}"].mean() for name in ("n_fg", "n_bg")}
        for layer in known
        if layer != "FC3" and f"{layer} n_fg" in chosen
    ]
    return pd.DataFrame(rows)

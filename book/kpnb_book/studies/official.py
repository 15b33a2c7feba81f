"""The paper's own data: rows of its tables beside those of stored evidence, and what drawings and
photographs have in common.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from kpnb.metrics import BETTER, NAMES
from kpnb.stats import Difference
from kpnb_book.studies import board, fine_tuning, paper
from kpnb_book.studies.curves import curves
from kpnb_book.studies.evidence import STUDIES
from kpnb_book.studies.fine_tuning import FINE_TUNING_EVIDENCE, QUESTION, SHARE
from kpnb_book.studies.foreground import metrics_by_rule
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.stored import Stored, read, read_one
from kpnb_book.studies.verdicts import (
    BY_PAPER,
    POINTS,
    SIX,
    Estimate,
    Question,
    answers,
    by_seed,
    decided,
    estimates,
    means,
)

ROLES = ("student", "baseline")


@dataclass(frozen=True)
class DataSet:
    """A data set that the paper has a table of, and evidence on it.

    table, name   the paper's
    layer         the one that this table is about
    main          the study that stands for this set; the others have fewer seeds
    studies       by name of the evidence: the network and the teacher in the paper's words
    """

    table: str
    name: str
    layer: str
    main: str
    studies: Mapping[str, tuple[str, str]]

    def stored(self, folder: str | Path | None = None) -> dict[str, Stored]:
        """Its tables in ``folder`` (default ``book/results``), by name."""
        return stored(self.studies, folder)

    def paper_rows(self) -> pd.DataFrame:
        """The rows of the paper's table about this set."""
        rows = paper.read()
        return rows[(rows["table"] == self.table) & (rows["dataset"] == self.name)]

    def rows(self, found: Mapping[str, Stored]) -> pd.DataFrame:
        """Student and baseline in the six metrics, of the paper and then of evidence that is
        finished, which has a row for each of them at each layer; columns from, network, teacher,
        layer, role, ``NAMES``.
        """
        theirs = self.paper_rows()
        # Where the paper names no teacher, it is of the student's kind.
        teacher = "from " + teachers(theirs).fillna("its own kind")
        theirs = theirs.assign(source="paper", teacher=teacher)
        ours = []
        for name, each in board.finished(found).items():
            network, taught_by = self.studies[name]
            who = {"source": "here", "network": network, "teacher": f"from {taught_by}"}
            for layer, samples in each.samples.groupby("layer"):
                ours += [
                    {**who, "layer": layer, "role": role} | means(samples, role) for role in ROLES
                ]
        both = pd.concat([theirs, pd.DataFrame(ours)], ignore_index=True)
        columns = ["source", "network", "teacher", "layer", "role", *NAMES]
        return both[columns].rename(columns={"source": "from"})

    def estimated(self, found: Mapping[str, Stored]) -> dict[str, list[Estimate]]:
        """``verdicts.estimates`` of the study that stands for this set, at the layer of the paper's
        table and beside the pairs of that, by title; empty until the study is finished.
        """
        each = board.finished(found).get(self.main)
        if each is None or self.layer not in set(each.samples["layer"]):
            return {}
        samples = at_layers(each, {self.layer}).samples
        if not answers(samples, BY_PAPER):
            return {}
        title = f"{self.name}, {self.layer}"
        return {title: estimates(samples, each.kind, paper.read(), self.paper_rows())}

    def signs(self, found: Mapping[str, Stored]) -> pd.DataFrame:
        """In how many pairs a student is what the hypothesis wants, at the layer of the paper's
        table: there, and in each study that is finished, where a pair is the student and the
        baseline of a seed, means over the samples.

        Columns: source ("paper", or the name of a study), metric, wanted, pairs.
        """
        pairs = {"paper": paper.differences(self.paper_rows())}
        for name, each in board.finished(found).items():
            pairs[name] = by_seed(at_layers(each, {self.layer}).samples)
        rows = [
            {"source": source, "metric": metric, **_wanted(gaps[metric], metric)}
            for source, gaps in pairs.items()
            for metric in NAMES
        ]
        return pd.DataFrame(rows)

    def by_layer(self, found: Mapping[str, Stored]) -> pd.DataFrame:
        """Student minus baseline at each layer of the studies that are finished: a row for each
        study, layer and metric, the top convolution first, with its interval over samples and
        seeds, and beside it what the paper's pair of these networks has at that layer (NaN where it
        has none). Tests are corrected for the six metrics of a layer.

        Columns: study, layer, metric, paper, value, low, high, p, verdict, small.
        """
        theirs, tables = self._paper_pairs(), paper.read()
        rows = []
        for name, each in board.finished(found).items():
            for layer in sorted(each.samples["layer"].unique()):
                samples = each.samples[each.samples["layer"] == layer]
                if not answers(samples, BY_PAPER):
                    continue
                delta = paper.deltas(tables, each.kind, means(samples))
                pair = theirs.get((*self.studies[name], layer), {})
                rows += [
                    {"study": name, "layer": layer, "metric": metric}
                    | {"paper": pair.get(metric, float("nan")), "value": d.value, "low": d.low}
                    | {"high": d.high, "p": d.p, "verdict": d.verdict, "small": d.small}
                    for metric, d in decided(samples, BY_PAPER, delta).items()
                ]
        return pd.DataFrame(rows)

    def _paper_pairs(self) -> dict[tuple[str, str, str], dict[str, float]]:
        """Student minus baseline in the paper's table, by network, teacher and layer."""
        rows = self.paper_rows()
        gaps = paper.differences(rows).droplevel(["table", "dataset", "kind"])
        students = rows[rows["role"] == "student"].assign(teacher=teachers)
        numbers = students.groupby(["network", "layer"]).cumcount()
        return {
            (row["network"], row["teacher"], row["layer"]): gaps.loc[
                (row["network"], row["layer"], number)
            ].to_dict()
            for row, number in zip(students.to_dict("records"), numbers, strict=True)
        }


def teachers(rows: pd.DataFrame) -> pd.Series:
    """Whom the paper names as the teacher in each of its rows; missing where it names none."""
    return rows["setting"].str.removeprefix("pair of: ").str.removeprefix("Distilling from ")


def _wanted(values: pd.Series, metric: str) -> dict[str, int]:
    """How many differences have the sign that the hypothesis wants, and how many there are."""
    known = values.dropna()
    return {"wanted": int((known * BETTER[metric] > 0).sum()), "pairs": len(known)}


TINY_IMAGENET = DataSet(
    "9",
    "Tiny-ImageNet",
    "Conv",
    "tiny-imagenet-vgg11",
    {
        "tiny-imagenet-alexnet": ("AlexNet", "AlexNet"),
        "tiny-imagenet-vgg11": ("VGG-11", "VGG-11"),
        "tiny-imagenet-vgg16": ("VGG-16", "VGG-16"),
        "tiny-imagenet-vgg19": ("VGG-19", "VGG-19"),
        "tiny-imagenet-larger-teacher": ("VGG-11", "VGG-16"),
        "tiny-imagenet-vgg16-larger-teacher": ("VGG-16", "VGG-19"),
    },
)
SST2 = DataSet(
    "6",
    "SST-2",
    "feature",
    "sst2",
    {"sst2": ("two layers", "two layers"), "sst2-six-layers": ("six layers", "six layers")},
)


def stored(names: Iterable[str], folder: str | Path | None = None) -> dict[str, Stored]:
    """The tables in ``folder`` (default ``book/results``) that there are of these studies."""
    return read({name: STUDIES[name] for name in names}, folder)


# ------------------------------------------------------------------------ figures 2 and 7


def points_by_epoch(
    each: Stored, layer: str, roles: tuple[str, ...] = ROLES
) -> dict[str, dict[str, Tensor]]:
    """Figure 7: by kind of point and network, means over the samples at a ``layer``,
    ``[epochs, seeds]``, for ``plots.point_curves``; empty where evidence has no curves.
    """
    known = curves(each.networks)
    known = known[known["layer"] == layer].set_index("network")
    if not {*roles} <= {*known.index}:
        return {}
    titles = {"n_fg": "on the object", "n_bg": "on the background"}
    found = {
        title: {role: _by_seed(known.loc[role], name) for role in roles}
        for name, title in titles.items()
    }
    on, off = found.values()
    return found | {"all": {role: on[role] + off[role] for role in roles}}


def fine_tuned(
    folder: str | Path | None = None,
) -> tuple[dict[str, dict[str, Tensor]], dict[str, dict[str, Difference]]]:
    """Figure 7 itself: the curves of fine-tuned networks and of those from scratch; and their
    differences by what is asked, in the six metrics and by the share of the path, which both answer
    in the same unit though they start from weights of other length. Both empty until all stated
    seeds are there and define what is asked.
    """
    evidence = FINE_TUNING_EVIDENCE
    each = read_one(evidence, folder)
    if each is None or not each.finished(QUESTION):
        return {}, {}
    (layer,) = evidence.overrides["layers"]
    gaps = {
        question.name: decided(each.samples, question)
        for question in (QUESTION, SHARE)
        if answers(each.samples, question)
    }
    return points_by_epoch(each, layer, fine_tuning.ROLES), gaps


def _by_seed(curve: pd.DataFrame, name: str) -> Tensor:
    """One column of a network's curves, ``[epochs, seeds]``."""
    return torch.tensor(curve.pivot(index="epoch", columns="seed", values=name).to_numpy())


def quality_by_epoch(each: Stored, layer: str) -> pd.DataFrame:
    """Figure 2: lambda at a ``layer`` and held-out accuracy of the baselines after each epoch,
    means over the seeds, for ``plots.quality_and_accuracy``.
    """
    known = curves(each.networks)
    known = known[(known["layer"] == layer) & (known["network"] == "baseline")]
    columns = ["lambda", "accuracy"]
    found = known.groupby("epoch")[columns].mean().dropna().reset_index()
    return found.assign(network="baseline")


def quality_correlation(each: Stored, layer: str) -> pd.DataFrame:
    """Rank correlation of lambda and held-out accuracy over the epochs of each baseline, a row a
    seed; the untrained network does not count. Of the ``levels``, and of their ``changes`` from one
    epoch to the next, in which it is not enough that both rise.
    """
    known = curves(each.networks)
    known = known[(known["layer"] == layer) & (known["network"] == "baseline")]
    trained = known[known["epoch"] > 0].dropna(subset=["lambda", "accuracy"])
    found = {}
    for seed, frame in trained.groupby("seed"):
        levels = frame.sort_values("epoch")[["lambda", "accuracy"]]
        found[seed] = {
            "levels": levels["lambda"].corr(levels["accuracy"], method="spearman"),
            "changes": levels["lambda"].diff().corr(levels["accuracy"].diff(), method="spearman"),
        }
    return pd.DataFrame.from_dict(found, orient="index", columns=["levels", "changes"])


# ------------------------------------------------------------------------ drawings and photographs

BOTH = ("images", "tiny-imagenet-vgg11")
"""Drawings and photographs, at the same settings but for the data and, of photographs, one more
layer."""
EXPERIMENTS = {
    "images-small-share": "of 500 images instead of 2,000 learn student and baseline",
    "images-weak-teacher": "the teacher learns from 2,000 images instead of 8,000",
    "images-one-artist": "all drawings to learn from are by one artist instead of five",
    "images-in-context": "a class lies on one photograph instead of any",
}
"""Drawings, with one thing changed."""

RULE_TITLES = {
    "": "as the set has it",
    "box": "the object's bounding box",
    "apart": "cells next to the object count as neither",
}


def at_common_layers(found: Mapping[str, Stored]) -> dict[str, Stored]:
    """The same tables with nothing but the layers that all of them have, so that they can be
    compared.
    """
    if not found:
        return {}
    layers = set.intersection(*({*each.samples["layer"]} for each in found.values()))
    return {name: at_layers(each, layers) for name, each in found.items()}


def at_layers(each: Stored, layers: Collection[str]) -> Stored:
    """The same tables with nothing but these ``layers``."""
    frames = {name: getattr(each, name) for name in ("networks", "samples", "places")}
    kept = {name: frame[frame["layer"].isin(layers)] for name, frame in frames.items()}
    return replace(each, **kept)


def rule_question(rule: str) -> Question:
    """Student against baseline, by a rule of what is foreground ("": the study's own)."""
    prefix = f"{rule}_" if rule else ""
    return Question(
        rule, "student", "baseline", {metric: f"{prefix}{name}" for metric, name in SIX.items()}
    )


def pair_by_rule(study: ImageStudy, layer: str, seed: int) -> pd.DataFrame:
    """Points and lambda of a study's own student and baseline by each rule: a row for each rule and
    network, means over the images.
    """
    networks = {"student": study.student(layer, seed), "baseline": study.baseline(seed)}
    rows = []
    for rule, title in RULE_TITLES.items():
        for role, training in networks.items():
            found = metrics_by_rule(study, training, layer, rule or None).row()
            rows.append({"rule": title, "network": role} | {name: found[name] for name in POINTS})
    return pd.DataFrame(rows)


def by_rule(each: Stored) -> pd.DataFrame:
    """What student minus baseline is by each rule of what is foreground that the tables have: a row
    for each rule and metric, with its interval and verdict. Empty before all stated seeds.
    """
    if not each.finished():
        return pd.DataFrame()
    delta = paper.deltas(paper.read(), each.kind, means(each.samples))
    rows = []
    for rule, title in RULE_TITLES.items():
        question = rule_question(rule)
        if answers(each.samples, question):
            rows += [
                {"rule": title, "metric": metric, "value": d.value}
                | {"low": d.low, "high": d.high, "verdict": d.verdict, "small": d.small}
                for metric, d in decided(each.samples, question, delta).items()
            ]
    return pd.DataFrame(rows)

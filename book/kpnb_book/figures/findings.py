"""What the chapters on the hypotheses conclude: the sentences and tables that images, clouds and
texts have in common.

Every number in a sentence is computed here from what the chapter hands over, and is glued under the
chapter's prefix ("h1", "c2", ...), so that other pages, runs and sweeps have it by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd
from IPython.display import Markdown
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler
from torch import Tensor

from kpnb.metrics import BETTER, SYMBOL
from kpnb.stats import Difference, compare, tally
from kpnb_book import numbers
from kpnb_book.figures import estimation, reliability, sentences
from kpnb_book.figures.report import (
    REMINDER,
    decided_as,
    difference_table,
    glue,
    glue_pairs,
    interval,
    show,
)
from kpnb_book.figures.scoreboard import HYPOTHESES, outcome
from kpnb_book.studies import board, measure, tables
from kpnb_book.studies.replication import Beside, every_beside
from kpnb_book.studies.study import Study

KEYS = ("architecture", "layer", "network", "seed")  # what rows of ``tables.table5`` are about
By = Mapping[str, Difference]


@dataclass(frozen=True)
class Found:
    """Student against baseline in the metrics of one hypothesis.

    hypothesis  "H1", "H2" or "H3"
    samples     what is measured, in the plural: "images"
    alone       by study, each pair of a student and a baseline judged over its samples, by title
    overall     by study, what decides: over all its layers, seeds and samples
    stored      by study, its own seeds beside stored ones, where there are any
    evidence    by name of the stored study with the same settings, what all of its seeds decide

    The name of a single study is "".
    """

    hypothesis: str
    samples: str
    alone: Mapping[str, Mapping[str, By]]
    overall: Mapping[str, By]
    stored: Mapping[str, Beside] = field(default_factory=dict)
    evidence: Mapping[str, By] = field(default_factory=dict)

    @classmethod
    def of(cls, hypothesis: str, samples: str, studies: Mapping[str, Study]) -> "Found":
        """Trains and measures what is not stored yet."""
        alone = {
            name: {title: compare(*pair) for title, pair in measure.pairs(study).items()}
            for name, study in studies.items()
        }
        overall = {name: tables.overall(study) for name, study in studies.items()}
        evidence = board.decided_about(studies.values())
        return cls(hypothesis, samples, alone, overall, every_beside(studies), evidence)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Those of the hypothesis."""
        return HYPOTHESES[self.hypothesis]

    @property
    def pairs(self) -> dict[str, By]:
        """Each pair alone, by study and title."""
        return {
            titled(name, title): by_metric
            for name, found in self.alone.items()
            for title, by_metric in found.items()
        }

    @property
    def rows(self) -> dict[str, By]:
        """For figures and tables: the pairs of each study, then all of them together. A study with
        a single pair has one row, as it decides.
        """
        rows: dict[str, By] = {}
        for name, found in self.alone.items():
            if len(found) == 1:
                rows[titled(name, next(iter(found)))] = self.overall[name]
                continue
            rows |= {titled(name, title): by_metric for title, by_metric in found.items()}
            rows[titled(name, "all")] = self.overall[name]
        return rows

    def table(self) -> Styler:
        """The rows with their intervals and verdicts."""
        return show(difference_table(self.rows, self.metrics, samples=self.samples), precision=3)


def titled(study: str, title: str) -> str:
    """``title`` behind the name of its study, if it has one."""
    return f"{study}, {title}" if study else title


def conclusion(prefix: str, found: Found) -> Markdown:
    """The takeaway of a chapter: differences, intervals and verdicts, of stored evidence first
    where there is any, then of the chapter's own networks; and what verdicts mean.
    """
    glue_pairs(f"{prefix}_pair", found.pairs.values(), found.metrics)
    glue_pairs(prefix, found.overall.values(), found.metrics)
    own = f"Student minus baseline, with 95 % intervals over {_concluded(found, found.overall)}"
    where = "these networks" if len(found.overall) > 1 else "this network"
    own = f"{own} on this data set and {where}."
    if found.evidence:
        stored = _concluded(found, found.evidence)
        own = (
            "[Stored evidence](80_evidence.ipynb) of these settings, student minus baseline, with "
            f"95 % intervals over {stored} there.\n>\n> The seeds of this build alone, in the same "
            f"way, over {_concluded(found, found.overall)} by these."
        )
    return Markdown(f"> **Takeaway.** {own}\n>\n> {REMINDER}")


def _concluded(found: Found, overall: Mapping[str, By]) -> str:
    """What the metrics of a hypothesis are over which samples and seeds, and a word for it."""
    said = {
        name: ", ".join(_said(by_metric[metric]) for metric in found.metrics)
        for name, by_metric in overall.items()
    }
    seeds = max(d.seeds for by_metric in overall.values() for d in by_metric.values())
    over = f"{found.samples} and {seeds} training seeds"
    over = over if seeds > 1 else f"{found.samples}, for a single training seed"
    word = outcome([*overall.values()], found.metrics)
    return f"{over}:{_listed(said)}Hypothesis {found.hypothesis[1:]} is **{word}**"


def _listed(said: Mapping[str, str]) -> str:
    """What is said of a study, to go on in its sentence; of several a list of their own."""
    if len(said) == 1:
        return f" {next(iter(said.values()))}. "
    lines = "".join(f">\n> - {name}: {what}\n" for name, what in said.items())
    return f"\n{lines}>\n> "


def _said(d: Difference) -> str:
    """A metric's difference with its interval and verdict."""
    return f"{numbers.value(d.value, sign=True)} in {SYMBOL[d.metric]} {_sure(d)}"


def _sure(d: Difference) -> str:
    return f"({interval(d)}: *{decided_as(d.verdict, d.small)}*)"


def counted(found: Found) -> Markdown:
    """Metric by metric: what is wanted, how many pairs have it, and what decides."""
    pairs, lines = [*found.pairs.values()], []
    for metric in found.metrics:
        counts, wanted = tally(pairs, metric), "larger" if BETTER[metric] > 0 else "smaller"
        line = f"- {SYMBOL[metric]} should be {wanted} in the student."
        if len(pairs) > len(found.overall):
            line += (
                f" Of {len(pairs)} pairs, each judged over its {found.samples} alone, it shows in "
                f"{counts['shows']}, and the opposite in {counts['opposite']}."
            )
        decided = [
            f"{numbers.value(by[metric].value, sign=True)}{f' for {name}' if name else ''}, "
            f"*{by[metric].verdict}*"
            for name, by in found.overall.items()
        ]
        over = "Over all layers and seeds" if len(pairs) > 1 else f"Over all {found.samples}"
        lines.append(f"{line} {over}: {'; '.join(decided)}.")
    return Markdown("\n".join(lines))


def replicated(prefix: str, found: Found) -> Markdown | None:
    """Whether this build's own seeds lie where the stored ones say; None without any of these."""
    if not found.stored:
        return None
    rows = [each.rows(found.metrics) for each in found.stored.values()]
    inside = sum(int(each["inside"].sum()) for each in rows)
    glue(**{f"{prefix}_inside": inside, f"{prefix}_predicted": sum(map(len, rows))})
    return Markdown(reliability.replicated(found.stored, found.metrics))


def own_seeds(found: Found) -> Figure | None:
    """This build's own seeds beside the stored ones; None without any of these."""
    shown = {name: each for name, each in found.stored.items() if len(each.rows(found.metrics))}
    return estimation.replications(shown, found.metrics) if shown else None


def undefined(table: pd.DataFrame, samples: str) -> Markdown | Styler:
    """How many samples each metric of ``tables.table5`` leaves undefined, those that do."""
    counts = table.filter(like="undefined ")
    if not counts.to_numpy().any():
        return Markdown(f"None is undefined: every metric has a value for all {samples}.")
    kept = counts.loc[counts.any(axis=1), counts.any()]
    named = table[[name for name in KEYS if name in table]].loc[kept.index]
    short = kept.rename(columns=lambda name: name.removeprefix("undefined "))
    return show(named.join(short)).set_caption(f"{samples} without a value".capitalize())


def paths(
    prefix: str, figure: str, curves: Mapping[str, tuple[Tensor, Tensor]], samples: str
) -> Markdown:
    """How far the weights of student and baseline travel; ``curves`` as in
    ``plots.learning_curves``.
    """
    length = {name: float(distance[-1]) for name, (distance, _) in curves.items()}
    epochs = len(next(iter(curves.values()))[0]) - 1
    glue(**{f"{prefix}_{name}_path": value for name, value in length.items()})
    glue(**{f"{prefix}_epochs": epochs})
    return Markdown(
        f"[The figure above](#{figure}) follows all {samples}. In {epochs} epochs the weights of "
        f"this student travel {length['student']:.2f} times, those of the baseline "
        f"{length['baseline']:.2f} times the length of their initial vector. Both metrics grow "
        "with that length, so a difference in $D$ can come from the optimiser (learning rate, "
        "loss) as well as from what is learned."
    )


def factors(prefix: str, studies: Mapping[str, Study]) -> Markdown:
    """The two factors of D in this build, and what stored evidence says of them once it has all of
    its seeds.
    """
    lines = []
    for name, study in studies.items():
        found = tables.factors(study)
        key = f"{prefix}_{name.lower().replace('++', '2')}" if name else prefix
        glue(**{f"{key}_length": found.length, f"{key}_share": found.share["d_mean"].value})
        mean, variance = (
            f"{numbers.value(d.value, sign=True)} {_sure(d)}" for d in found.share.values()
        )
        lines.append(
            f"- {f'{name}: in' if name else 'In'} this build the student's weights travel "
            f"{numbers.value(found.length, digits=2)} times as far as the baseline's. Of the "
            f"*share* of that path, student minus baseline: mean {mean}; variance {variance}."
        )
    stored = board.finished(board.about(studies.values()))
    if stored:
        lines += ["", "Stored [evidence](80_evidence.ipynb), with all of its seeds:", ""]
        lines.append(sentences.path(board.board(stored), stored))
    return Markdown("\n".join(lines))


def by_path(prefix: str, gaps: pd.DataFrame) -> Markdown:
    """What the choice of the path does to D_mean; ``gaps`` as ``tables.by_scope`` has them."""
    found = gaps["d_mean"]
    glue(**{f"{prefix}_{scope.replace(' ', '_')}": value for scope, value in found.items()})
    said = {scope: numbers.value(value, sign=True) for scope, value in found.items()}
    return Markdown(
        f"Student minus baseline in {SYMBOL['d_mean']}, over all layers and seeds: {said['all']} "
        f"with all parameters, {said['below']} with those below the layer, "
        f"{said['layer steps']} under the released procedure's choices."
    )


def by_choice(prefix: str, means: pd.DataFrame) -> Markdown:
    """What other choices do to rho; ``means`` as ``tables.by_choice`` has them."""
    gaps = means["student"] - means["baseline"]
    glue(**{f"{prefix}_{title.replace(' ', '_')}": value for title, value in gaps.items()})
    text, released = (numbers.value(gaps[title], sign=True) for title in ("text", "released"))
    return Markdown(
        f"Student minus baseline in {SYMBOL['rho']}, over all layers and seeds: {text} by the "
        f"paper's text, {released} by the released procedure's choices."
    )


def repeated(prefix: str, rows: pd.DataFrame) -> Markdown:
    """How well two estimates of one checkpoint agree; ``rows`` as ``tables.repeated`` has them,
    with their names in the first column.
    """
    name, parts = rows.columns[0], []
    for row in rows.to_dict("records"):
        key = row[name].lower().replace("++", "2")
        glue(**{f"{prefix}_{key}_nats": row["nats"], f"{prefix}_{key}_iou": row["IoU"]})
        parts.append(
            f"{row[name]} {numbers.value(row['nats'], digits=2)} nats and "
            f"{numbers.written(row['IoU'], 3)}"
        )
    return Markdown(
        "Mean difference of two estimates of the last checkpoint, and overlap of their knowledge "
        f"points (intersection over union): {'; '.join(parts)}. The nearer the overlap is to 1, "
        "the less of what is given up can be the estimate's doing."
    )


def linear(prefix: str, rows: pd.DataFrame) -> Markdown:
    """What the linearities say; ``rows`` as ``tables.linearity`` has them."""
    low, high, error = rows["median"].min(), rows["median"].max(), rows["error of H"].max()
    glue(**{f"{prefix}_linear_low": low, f"{prefix}_linear_high": high})
    return Markdown(
        f"The medians lie between {low:.2f} and {high:.2f}. The last column is the mean standard "
        "error of an entropy, in nats, due to the random probes: "
        f"{numbers.value(error, digits=2)} at most."
    )

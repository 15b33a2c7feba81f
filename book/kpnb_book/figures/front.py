"""What the front page says of stored evidence, and the pages of the paper's own data of theirs: the
three hypotheses in a word each, and three sentences.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from kpnb.metrics import NAMES
from kpnb_book.figures.scoreboard import HYPOTHESES, outcome
from kpnb_book.figures.sentences import LEFT, PLACED, absent, answered, number, seeds
from kpnb_book.numbers import DASH, interval, value
from kpnb_book.studies.board import PAPERS_OWN, Stored, standing, waiting
from kpnb_book.studies.verdicts import SPEED

BY_SHARE = "H2 by share"
CAPTION = """<p><em>Student minus baseline. Upper dots are the paper's pairs, lower dots our seeds,
the bar is the 95 % interval of their mean. Within the grey band a difference is too small to
matter, and the arrow points where the hypothesis wants the student to be. <strong>Small</strong> is
what is there and surely too small to matter.</em></p>"""


def opening(board: pd.DataFrame, found: Mapping[str, Stored]) -> dict[str, str]:
    """What the first paragraph of the book quotes: the data, the difference in foreground points,
    its interval, the number of seeds, and a word for each hypothesis. It is about the paper's
    photographs once all seeds of these are there, and about the embedded images before; dashes
    until that is answered too.
    """
    asked = answered(board, "paper")
    where, data, named = (standing()["images"], "n_fg"), "images", "the embedded images"
    photographs = (PAPERS_OWN["Tiny-ImageNet"], "n_fg")
    if photographs in asked.index:
        where, data, named = photographs, "Tiny-ImageNet", "Tiny-ImageNet's photographs"
    words = hypotheses(board, found).set_index("data").loc[data].to_dict() | {"data": named}
    words["H2_share"] = words.pop(BY_SHARE)
    if where not in asked.index:
        return {"points": DASH, "interval": DASH, "seeds": DASH, **words}
    row = asked.loc[where]
    ends = interval(row["low"], row["high"], digits=2, sign=True)
    points = value(row["value"], 2, sign=True)
    return {"points": points, "interval": ends, "seeds": str(row["seeds"]), **words}


def hypotheses(board: pd.DataFrame, found: Mapping[str, Stored]) -> pd.DataFrame:
    """What the studies that stand for the paper's own sets and for a kind of embedded data say of
    each hypothesis, as the paper asks, and of the second also by the share of the path: a row for
    each, columns data, H1, H2, ``BY_SHARE`` and H3. Where nothing is answered, what
    ``sentences.words`` has there.
    """
    asked, shares = answered(board, "paper"), answered(board, "share of the path")
    said = shares["verdict"] if len(shares) else {}
    rows = []
    for data, study in {**PAPERS_OWN, **standing()}.items():
        row = {"data": data}
        unanswered = absent(found, study, "paper") if (study, NAMES[0]) not in asked.index else ""
        for hypothesis, metrics in HYPOTHESES.items():
            row[hypothesis] = unanswered or outcome(
                [{metric: asked.loc[(study, metric)] for metric in metrics}], metrics
            )
        mean, variance = (said.get((study, metric), "") for metric in SPEED)
        row[BY_SHARE] = unanswered or f"mean {mean}, variance {variance}"
        rows.append(row)
    return pd.DataFrame(rows)[["data", "H1", "H2", BY_SHARE, "H3"]]


def findings(board: pd.DataFrame, found: Mapping[str, Stored]) -> str:
    """``three_sentences`` on the paper's own data and on the embedded data, and ``progress``, in
    HTML. While no study has all of its seeds, ``progress`` alone: there is nothing yet to count.
    """
    if not any(each.finished() for each in found.values()):
        return "<p>None is judged before all of its seeds are there.</p>" + progress(found)
    data = {f"on {name}": [study] for name, study in PAPERS_OWN.items()}
    data["on the embedded data"] = list(standing().values())
    said = three_sentences(board, found, data)
    lines = (f"<li><strong>{lead}</strong> {escape(rest)}</li>" for lead, rest in said.items())
    return f"<ol>{''.join(lines)}</ol>{progress(found)}"


def on_one(board: pd.DataFrame, found: Mapping[str, Stored], study: str) -> str:
    """``three_sentences`` on one study in Markdown; "" before all of its seeds are there."""
    if study not in found or not found[study].finished():
        return ""
    said = three_sentences(board, found, {f"over all layers of `{study}`": [study]})
    return " ".join(f"**{lead}** {rest}" for lead, rest in said.items())


def progress(found: Mapping[str, Stored]) -> str:
    """How many seeds are stored of each study, and which tables are stale: HTML for the front
    page.
    """
    parts = [
        f"{name} {seeds(each.seeds(), len(each.stated))}"
        f"{'' if each.finished() else ', the verdict waits for all'}"
        f"{' (<strong>stale</strong>)' if each.outdated else ''}"
        for name, each in found.items()
    ]
    return f"<p>Stored so far: {'; '.join(parts) or 'nothing'}.</p>"


WAITS, NO_POINTS = "waits", "no points"
"""Instead of a verdict: seeds are still to be computed; a network has hardly any points, so that
not all metrics are defined, and never will be.
"""
Data = Mapping[str, Sequence[str]]
"""Studies by the words with which a sentence counts them together: "on the embedded data"."""
Answers = Mapping[str, Mapping[tuple[str, str], str]]
"""Verdicts, or what stands in their place, by question, study and metric."""


def three_sentences(board: pd.DataFrame, found: Mapping[str, Stored], data: Data) -> dict[str, str]:
    """What student against baseline shows; what of that is left without a liking for places; and
    what against a student without a teacher's knowledge, and without the length of the path. The
    rest of each sentence, by how it begins.
    """
    studies = [study for several in data.values() for study in several]
    asked = {question: _answers(board, found, question, studies) for question in LEFT}
    untaught = _left(asked, "beyond a smooth target", data, "differences")
    shares = _left(asked, "share of the path", data, "differences in weight distances")
    return {
        "As the paper asks, student against baseline,": f"{_shown(board, asked['paper'], data)}.",
        "Without what a mere liking for a place gives,": (
            f"{_left(asked, 'beyond place', data, 'differences in points')}."
        ),
        "Against the student of a teacher that was never trained,": (
            f"{untaught}; and by the share of a network's own path, which tells sooner from "
            f"shorter, {shares}."
        ),
    }


def _answers(
    board: pd.DataFrame, found: Mapping[str, Stored], question: str, studies: Sequence[str]
) -> dict[tuple[str, str], str]:
    """What the studies say to one question, by study and metric."""
    known = answered(board, question)["verdict"].to_dict() if len(board) else {}
    return {
        (study, metric): known.get((study, metric)) or nothing
        for study in studies
        for nothing in [WAITS if waiting(found, study, question) else NO_POINTS]
        for metric in PLACED.get(question, NAMES)
    }


def _shown(board: pd.DataFrame, asked: Mapping[tuple[str, str], str], data: Data) -> str:
    """ "on A 6 of 6 metrics show; on B 9 of 24 metrics show (8 are the opposite, 7 negligible)"."""
    parts = []
    for name, studies in data.items():
        answers = Counter(asked[study, metric] for study in studies for metric in NAMES)
        whole = answers.total()
        if answers[WAITS] == whole:
            parts.append(f"{name} none is judged yet")
            continue
        shows, turned = answers["shows"], answers["opposite"]
        others = {
            f"{number(turned, 'is', 'are')} the opposite": turned,
            "negligible": answers["negligible"],
            "undecided": answers["undecided"] + answers["open"],
            **_unanswered(answers),
        }
        said = f"{name} {shows} of {whole} metrics {number(shows, 'shows', 'show')}"
        parts.append(said + _listed(others) + _small(board, studies))
    return "; ".join(parts)


def _small(board: pd.DataFrame, studies: Sequence[str]) -> str:
    """How many of the differences that are there are surely too small to matter."""
    small = [
        bool(row.get("small", False))
        for row in ([] if board.empty else board.to_dict("records"))
        if row["study"] in studies and row["question"] == "paper"
        if row["verdict"] in ("shows", "opposite")
    ]
    if not any(small):
        return ""
    of_them = f"{sum(small)} of these {len(small)}" if len(small) > 1 else "it"
    return f", though {of_them} {number(sum(small), 'is', 'are')} surely too small to matter"


def _left(asked: Answers, question: str, data: Data, what: str) -> str:
    """What becomes of ``what`` shows for the paper's question when another ``question`` is asked:
    "on A 1 of 2 ``what`` is left, on B 2 of 8 are left (3 turn into the opposite, 1 waits for
    seeds)".
    """
    parts = []
    for name, studies in data.items():
        answers = Counter(
            verdict
            for (study, metric), verdict in asked[question].items()
            if study in studies and asked["paper"][study, metric] == "shows"
        )
        where = f"{name} " if len(data) > 1 else ""
        known = answers.total() - answers[WAITS] - answers[NO_POINTS]
        if known:
            still, turned = answers["shows"], answers["opposite"]
            turn = f"{number(turned, 'turns', 'turn')} into the opposite"
            noun = f" {what}" * (not parts)
            others = _listed({turn: turned, **_unanswered(answers)})
            parts.append(
                f"{where}{still} of {known}{noun} {number(still, 'is', 'are')} left{others}"
            )
        elif answers:
            parts.append(f"{where}nothing is judged{_listed(_unanswered(answers))}")
    if any(verdict != WAITS for verdict in asked["paper"].values()):
        return ", ".join(parts) or f"nothing can be left, as no {what} show"
    return "nothing is judged yet"


def _unanswered(answers: Mapping[str, int]) -> dict[str, int]:
    """What stands in the place of verdicts, in words, and how often."""
    waits = answers[WAITS]
    return {
        number(waits, "waits for seeds", "wait for seeds"): waits,
        "cannot be compared, for want of points": answers[NO_POINTS],
    }


def _listed(counts: Mapping[str, int]) -> str:
    """ " (3 negligible, 2 undecided)" of what there is any of."""
    parts = [f"{count} {said}" for said, count in counts.items() if count]
    return f" ({', '.join(parts)})" if parts else ""

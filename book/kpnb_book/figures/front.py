"""What the front page says of stored evidence, and the pages of the paper's own data of theirs: the
three hypotheses in a word each, and a sentence for each question.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape

import pandas as pd

from kpnb.metrics import NAMES
from kpnb_book.figures.scoreboard import HYPOTHESES, outcome
from kpnb_book.figures.sentences import PLACED, TARGETS, absent, answered, is_asked, is_unfit
from kpnb_book.figures.stored_tables import number, seeds
from kpnb_book.numbers import DASH, interval, value
from kpnb_book.studies.board import PAPERS_OWN, Stored, standing, waiting
from kpnb_book.studies.verdicts import SPEED

BY_SHARE = "H2 by share"
CAPTION = """<p><em>Student minus baseline. Upper dots are the paper's pairs, lower dots our seeds,
the bar is the 95 % interval of their mean. Within the grey band a difference is too small to
matter, and the arrow points where the hypothesis wants the student to be. <strong>Small</strong>:
a difference that is there, but surely too small to matter.</em></p>"""
WANTED = {
    "shows": "as the hypothesis wants",
    "opposite": "the opposite of what the hypothesis wants",
    "negligible": "too small to matter",
    "undecided": "too few seeds to decide",
    "open": "these trainings do not decide",
}
"""What a verdict says, for readers who do not know its name yet."""


def opening(board: pd.DataFrame, found: Mapping[str, Stored]) -> dict[str, str]:
    """What the first paragraph of the book quotes: the data, the difference in foreground points,
    its interval, its verdict, the number of seeds, a word for each hypothesis, and a sentence on
    the student of an untrained teacher ("control"). It is about the paper's photographs once all
    seeds of these are there, and about the embedded images before; dashes until that is answered
    too.
    """
    asked = answered(board, "paper")
    where, data, named = (standing()["images"], "n_fg"), "images", "the embedded images"
    photographs = next(iter(PAPERS_OWN))
    if (PAPERS_OWN[photographs], "n_fg") in asked.index:
        where, data = (PAPERS_OWN[photographs], "n_fg"), photographs
        named = "20 classes of Tiny-ImageNet (VGG-11, an eighth as wide)"
    words = hypotheses(board, found).set_index("data").loc[data].to_dict() | {"data": named}
    del words[BY_SHARE]
    words["control"] = _control(board, where[0])
    if where not in asked.index:
        return dict.fromkeys(("points", "interval", "verdict", "seeds"), DASH) | words
    row = asked.loc[where]
    ends = interval(row["low"], row["high"], digits=2, sign=True)
    verdict = WANTED[row["verdict"]]
    if row["small"] and row["verdict"] in ("shows", "opposite"):
        verdict += ", though surely too small to matter"
    points = value(row["value"], 2, sign=True)
    quoted = {"points": points, "interval": ends, "verdict": verdict, "seeds": str(row["seeds"])}
    return quoted | words


def _control(board: pd.DataFrame, study: str) -> str:
    """What the student of an untrained teacher shows against the baseline, what is left of the
    student against it, and what follows.
    """
    who = "The student of a teacher that was never trained, which has nothing to hand on,"
    itself, every = _showing(board, [study], "smooth target")
    if not every:
        return f"{who} is still to be compared with the same baseline."
    said = f"{who} differs from the same baseline as the hypotheses want in {itself} of {every} "
    left, every = _showing(board, [study], "beyond a smooth target")
    if not every:
        return f"{said}metrics."
    opposite, open_ = (
        _showing(board, [study], "beyond a smooth target", words)[0]
        for words in (["opposite"], ["undecided", "open"])
    )
    said += f"metrics; from that student the real one does so in {left} of {every}"
    said += f", and the opposite in {opposite}." if opposite else "."
    if itself and not left:
        said += " So what speaks for the hypotheses here is no trace of what the teacher knows"
        said += ", as far as these seeds tell." if open_ else "."
    return said


def _showing(
    board: pd.DataFrame, studies: Sequence[str], question: str, words: Sequence[str] = ("shows",)
) -> tuple[int, int]:
    """How many comparisons of a question have one of these verdicts, in these studies, and how many
    are answered.
    """
    rows = answered(board, question)
    if not len(rows):
        return 0, 0
    rows = rows[rows.index.get_level_values("study").isin(studies)]
    return int(rows["verdict"].isin(words).sum()), len(rows)


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
    """``sentences`` on the paper's own data and on the embedded data, and ``progress``, in HTML.
    While no study has all of its seeds, ``progress`` alone: there is nothing yet to count.
    """
    if not any(each.finished() for each in found.values()):
        return "<p>No study is judged before all of its seeds are there.</p>" + progress(found)
    judged = answered(board, "paper").index.unique("study")
    own = {name: study for name, study in PAPERS_OWN.items() if study in judged}
    data = {f"on {name}": [study] for name, study in own.items()}
    data["on the embedded data"] = list(standing().values())
    said = sentences(board, found, data)
    lines = (f"<li><strong>{lead}</strong>{escape(rest)}</li>" for lead, rest in said.items())
    return f"<ol>{''.join(lines)}</ol>{progress(found)}"


def on_one(board: pd.DataFrame, found: Mapping[str, Stored], study: str) -> str:
    """``sentences`` on one study in Markdown; "" before all of its seeds are there."""
    if study not in found or not found[study].finished():
        return ""
    said = sentences(board, found, {f"over all layers of `{study}`": [study]})
    return " ".join(f"**{lead}**{rest}" for lead, rest in said.items())


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


Data = Mapping[str, Sequence[str]]
"""Studies by the words with which a sentence counts them together: "on the embedded data"."""
ASKED = {
    "paper": ("As the paper asks", ", student against baseline"),
    "beyond place": (
        "Beyond place",
        ", when what a mere liking for the places of objects gives is subtracted (asked of the "
        "points on the object and of their share)",
    ),
    "beyond a smooth target": ("Against the student of a teacher that was never trained", ""),
    "beyond labels in random order": (
        "Against the student of a teacher of labels in random order",
        ", which knows its images and nothing of the classes",
    ),
    "share of the path": (
        "By the share of a network's own path",
        ", which tells sooner learning from a shorter path (asked of the two distances)",
    ),
}
"""How the sentence on each question begins: what it is called, and what that is."""


def sentences(board: pd.DataFrame, found: Mapping[str, Stored], data: Data) -> dict[str, str]:
    """For each question of ``ASKED``, how many metrics show, and how many do not: the rest of each
    sentence, by what the question is called.
    """
    said = {}
    for question, (lead, what) in ASKED.items():
        counted = [
            _counted(board, found, question, name, studies) for name, studies in data.items()
        ]
        if listed := "; ".join(part for part in counted if part):
            said[lead] = f"{what}: {listed}."
    return said


def _counted(
    board: pd.DataFrame,
    found: Mapping[str, Stored],
    question: str,
    name: str,
    studies: Sequence[str],
) -> str:
    """ "on A, 9 of 24 comparisons show, 6 of them too little to matter (8 opposite, 4 wait)"."""
    metrics = PLACED.get(question, NAMES)
    studies = [study for study in studies if is_asked(found, study, question)]
    if not studies:
        return ""
    rows = [] if board.empty else board[board["question"] == question].to_dict("records")
    rows = [row for row in rows if row["study"] in studies and row["metric"] in metrics]
    counts, whole = Counter(row["verdict"] for row in rows), len(studies) * len(metrics)
    small = Counter(row["verdict"] for row in rows if row.get("small", False))
    answering = {row["study"] for row in rows}
    waits = sum(bool(waiting(found, study, question)) for study in {*studies} - answering)
    unfit = sum(is_unfit(found, study, question) for study in {*studies} - answering)
    silent = len({*studies} - answering) - waits - unfit
    if waits == len(studies):
        return f"{name}, none is judged yet"
    others = {
        f"opposite{_of_these(small['opposite'], counts['opposite'])}": counts["opposite"],
        "negligible": counts["negligible"],
        "undecided": counts["undecided"] + counts["open"],
        number(waits * len(metrics), "waits for seeds", "wait for seeds"): waits * len(metrics),
        "cannot be compared, for want of points": silent * len(metrics),
        "not asked, as that teacher has not learned its labels": unfit * len(metrics),
    }
    listed = ", ".join(f"{count} {said}" for said, count in others.items() if count)
    shows = counts["shows"]
    said = f"{name}, {shows} of {whole} comparisons {number(shows, 'shows', 'show')}"
    said += _of_these(small["shows"], shows)
    said += f" ({listed})" if listed else ""
    of_control = {beyond: itself for itself, beyond in TARGETS.values()}.get(question, "")
    itself, every = _showing(board, studies, of_control)
    if every:
        one = number(len(studies), "that student itself shows", "those students themselves show")
        said += f", while against the baseline {one} in {itself} of {every}"
    return said


def _of_these(small: int, count: int) -> str:
    """How many of some differences are surely too small to matter."""
    of_them = "" if small == count else f"{small} of them "
    return f", {of_them}too little to matter" if small else ""

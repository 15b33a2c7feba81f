"""What the front page says of stored evidence, and the pages of the paper's own data of theirs: the
three hypotheses in a word each, and a sentence for each question.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from kpnb.metrics import NAMES
from kpnb_book.figures.scoreboard import HYPOTHESES, outcome
from kpnb_book.figures.sentences import PLACED, absent, answered, is_asked
from kpnb_book.numbers import DASH, interval, value
from kpnb_book.studies.board import PAPERS_OWN, Stored, standing, waiting
from kpnb_book.studies.verdicts import SPEED

BY_SHARE = "H2 by share"
HEADINGS = {
    "H1": "more (H1)",
    "H2": "sooner, and together (H2)",
    BY_SHARE: "sooner, and together, by share of the path",
    "H3": "fewer detours (H3)",
}
"""What the front page calls the columns of ``hypotheses``."""
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
    its interval, its verdict, the number of seeds, a word for each hypothesis, and sentences on
    students whose teacher knows nothing of the classes ("control") and what follows ("follows"). It
    is about the paper's photographs once all seeds of these are there, and about the embedded
    images before; dashes until that is answered too.
    """
    asked = answered(board, "paper")
    where, data, named = (standing()["images"], "n_fg"), "images", "the embedded images"
    photographs = next(iter(PAPERS_OWN))
    if (PAPERS_OWN[photographs], "n_fg") in asked.index:
        where, data = (PAPERS_OWN[photographs], "n_fg"), photographs
        named = "20 classes of Tiny-ImageNet (VGG-11, an eighth as wide)"
    words = hypotheses(board, found).set_index("data").loc[data].to_dict() | {"data": named}
    del words[BY_SHARE]
    words |= {"control": _control(board, where[0]), "follows": _follows(board, where[0])}
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
    """What students whose teacher knows nothing of the classes show against the baseline, and what
    is left of the student against them.
    """
    who = "The student of a teacher that was never trained"
    itself, every = _showing(board, study, "smooth target")
    if not every:
        return f"{who} is still to be compared with the same baseline."
    said = f"{who} shows {itself} of {every} metrics against the same baseline"
    if not _showing(board, study, "beyond a smooth target")[1]:
        return f"{said}."
    said = f"{said}{_left(board, study, 'beyond a smooth target')}."
    itself_too, memorising = _showing(board, study, "labels in random order")
    if memorising:
        said += f" That of a teacher of labels in random order shows {itself_too} of {memorising}"
        said += f"{_left(board, study, 'beyond labels in random order')}."
    return said


def _follows(board: pd.DataFrame, study: str) -> str:
    """What follows of the student of an untrained teacher."""
    itself, _ = _showing(board, study, "smooth target")
    left, asked = _showing(board, study, "beyond a smooth target")
    if not asked:
        return "Whose knowledge it is cannot be told yet."
    if left:
        return "What is left against it is what the teacher's training adds."
    if not itself:
        return "Neither of them tells whose knowledge it is."
    open_, _ = _showing(board, study, "beyond a smooth target", ["undecided", "open"])
    said = "What a student of an untrained teacher shows as well is no trace of what a teacher "
    return said + ("knows, as far as these seeds tell." if open_ else "knows.")


def _left(board: pd.DataFrame, study: str, question: str) -> str:
    """What the student shows against a control."""
    shows, opposite = (
        _showing(board, study, question, [word])[0] for word in ("shows", "opposite")
    )
    against = f"; against it the real one shows {shows}"
    return f"{against}, and the opposite in {opposite}" if opposite else against


def _showing(
    board: pd.DataFrame, study: str, question: str, words: Sequence[str] = ("shows",)
) -> tuple[int, int]:
    """How many metrics of a study have one of these verdicts in a question, and how many are
    answered.
    """
    rows = answered(board, question)
    if not len(rows):
        return 0, 0
    rows = rows[rows.index.get_level_values("study") == study]
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


ASKED = {
    "paper": "as the paper asks",
    "smooth target": "untrained teacher's student",
    "beyond a smooth target": "against that student",
    "labels in random order": "random labels' student",
    "beyond labels in random order": "against this student",
    "beyond place": "beyond place",
    "share of the path": "by share of path",
}
"""Questions whose answers are counted, and what a page calls them."""


def counts(board: pd.DataFrame, found: Mapping[str, Stored]) -> pd.DataFrame:
    """Of how many metrics each question of ``ASKED`` shows what the hypotheses want: a row for each
    study of ``hypotheses``, columns data and the questions; None where it is not asked.
    """
    rows = [
        {"data": data} | {said: _counted(board, found, study, each) for each, said in ASKED.items()}
        for data, study in {**PAPERS_OWN, **standing()}.items()
    ]
    return pd.DataFrame(rows)


def on_one(board: pd.DataFrame, found: Mapping[str, Stored], study: str) -> str:
    """The ``counts`` of one study, over all of its layers, in Markdown; "" before all of its seeds
    are there.
    """
    if study not in found or not found[study].finished():
        return ""
    counted = {said: _counted(board, found, study, each) for each, said in ASKED.items()}
    parts = [
        f"**{said[0].upper()}{said[1:]}**: {count}." for said, count in counted.items() if count
    ]
    whole = f"Metrics of `{study}` that show what the hypotheses want, over all layers."
    return " ".join([whole, *parts])


def progress(found: Mapping[str, Stored]) -> str:
    """How many seeds are stored of each study, and which tables are stale: HTML for the front
    page.
    """
    parts = [
        f"{name} {f'{lacks}, no verdict' if (lacks := each.lacks()) else f'{each.seeds()} seeds'}"
        f"{' (<strong>stale</strong>)' if each.outdated else ''}"
        for name, each in found.items()
    ]
    return f"<p>Stored so far: {'; '.join(parts) or 'nothing'}.</p>"


def _counted(
    board: pd.DataFrame, found: Mapping[str, Stored], study: str, question: str
) -> str | None:
    """ "2 of 6 (1 small); 3 opposite, 1 undecided"; why where there is no answer (``absent``), and
    None where the question is not asked.
    """
    if not is_asked(found, study, question):
        return None
    rows = answered(board, question)
    if not len(rows) or study not in rows.index.unique("study"):
        lacks = waiting(found, study, question)
        return f"not yet: {lacks}" if lacks else absent(found, study, question)
    rows = rows.loc[study]
    rows = rows.loc[rows.index.intersection(PLACED.get(question, NAMES))]
    verdicts = Counter(rows["verdict"])
    small = Counter(rows["verdict"][rows["small"] & rows["verdict"].isin(["shows", "opposite"])])
    counts = {
        "opposite": verdicts["opposite"],
        "negligible": verdicts["negligible"],
        "undecided": verdicts["undecided"] + verdicts["open"],
    }
    said = f"{verdicts['shows']} of {len(rows)}{_small(small['shows'])}"
    listed = ", ".join(
        f"{count}\N{NO-BREAK SPACE}{word}{_small(small[word])}"
        for word, count in counts.items()
        if count
    )
    return f"{said}; {listed}" if listed else said


def _small(count: int) -> str:
    return f" ({count}\N{NO-BREAK SPACE}small)" if count else ""

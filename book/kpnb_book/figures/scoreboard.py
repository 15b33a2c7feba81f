"""Every hypothesis on every modality in one table: the paper's signs and ours, the effect, the
verdict.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from kpnb.metrics import BETTER, NAMES
from kpnb.stats import Difference, tally, verdict
from kpnb_book.numbers import interval
from kpnb_book.studies.paper import differences
from kpnb_book.studies.study import Study
from kpnb_book.studies.tables import overall, table5

HYPOTHESES = {"H1": ("n_fg", "n_bg", "lambda"), "H2": ("d_mean", "d_var"), "H3": ("rho",)}


def _advantage(values: pd.DataFrame) -> pd.DataFrame:
    """How much better the student is than its baseline in each metric; rows of ``values`` begin
    with the role.
    """
    return (values.loc["student"] - values.loc["baseline"]) * pd.Series(BETTER)


def paper_signs(tables: pd.DataFrame) -> pd.DataFrame:
    """In how many of the paper's student/baseline pairs the student is better, of those that give
    both values.

    tables   ``paper.read()``

    Returns a row for each kind of data, with the columns ("better", metric) and ("pairs", metric).
    """
    found = differences(tables) * pd.Series(BETTER)
    counts = {"better": found > 0, "pairs": found.notna()}
    return pd.concat({name: count.groupby("kind").sum() for name, count in counts.items()}, axis=1)


def scoreboard(studies: Mapping[str, Study], tables: pd.DataFrame) -> pd.DataFrame:
    """A row for each hypothesis, study and metric.

    studies   by kind of data, with the network after a comma where there are several: "clouds,
              PointNet"
    tables    as in ``paper_signs``

    The effect is the mean over layers and seeds of student minus baseline, and ``tables.overall``
    decides. Signs are counted over the pairs of all layers and seeds.
    """
    paper, rows = paper_signs(tables), []
    for title, study in studies.items():
        decided = overall(study)
        ours = _advantage(table5(study).set_index(["network", "layer", "seed"])[[*NAMES]])
        theirs = paper.loc[title.split(",")[0]]
        asked = [(h, metric) for h, metrics in HYPOTHESES.items() for metric in metrics]
        for hypothesis, metric in asked:
            d = decided[metric]
            row = {
                "hypothesis": hypothesis,
                "data": title,
                "metric": metric,
                "paper": f"{theirs['better', metric]} / {theirs['pairs', metric]}",
                "ours": f"{(ours[metric] > 0).sum()} / {ours[metric].notna().sum()}",
                "effect": d.value,
                "interval": interval(d.low, d.high, digits=2, sign=True),
                "d": d.effect,
                "p": d.p,
                "verdict": d.verdict,
                "seeds": d.seeds,
            }
            rows.append(row)
    return pd.DataFrame(rows)


def outcome(pairs: Sequence[Mapping[str, Difference]], metrics: Sequence[str]) -> str:
    """The verdict on a hypothesis; of a mixed one the direction, too, with how many of its
    comparisons, of each of the ``pairs`` in each of its ``metrics``, go which way.

    "partly supported (1 of 3 shows)" where nothing is opposite, "partly contradicted (2 of 3
    opposite)" where nothing shows, else "mixed (1 of 3 shows, 1 opposite)"; "negligible" where all
    comparisons are.
    """
    word = verdict(pairs, metrics)
    if pairs and all(pair[m].verdict == "negligible" for pair in pairs for m in metrics):
        return "negligible"
    if word != "mixed":
        return word
    counts = sum((tally(pairs, metric) for metric in metrics), Counter())
    shows, opposite = counts["shows"], counts["opposite"]
    if not shows:
        return f"partly contradicted ({opposite} of {counts.total()} opposite)"
    said = f"{shows} of {counts.total()} {'shows' if shows == 1 else 'show'}"
    return f"mixed ({said}, {opposite} opposite)" if opposite else f"partly supported ({said})"

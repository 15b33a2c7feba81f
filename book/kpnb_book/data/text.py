"""The text data sets by name.

``reviews``   rated movie reviews: :mod:`kpnb_book.data.reviews`.
``factbook``  questions on countries, composed here: :mod:`kpnb_book.data.factbook`.
``sst2``, ``squad``   the official sets: :mod:`kpnb_book.data.text_official`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kpnb_book.data import factbook, reviews, text_official
from kpnb_book.data.contents import named
from kpnb_book.data.samples import Request, Sample, stratified
from kpnb_book.data.text_set import Row, Spans, TextSet, encode, foreground
from kpnb_book.hub import source, transformers
from kpnb_book.store import digest

# Name to a function of a request. Add your own: it needs nothing else.
SOURCES: dict[str, Callable[[Request], list[Row]]] = {
    "reviews": reviews.source,
    "factbook": factbook.source,
    "sst2": text_official.sst2,
    "squad": text_official.squad,
}
# Whether a set needs the folder of its files; SST-2 may come from a library.
ROOTS = {"reviews": False, "factbook": False, "squad": True}


@dataclass(frozen=True)
class TextRequest(Request):
    """What :func:`load` is asked for.

    Texts have at most ``length`` tokens of the model ``tokenizer``. ``rule`` says what the
    foreground is, from a row and the ``threshold``; any function that gives spans can take its
    place.
    """

    tokenizer: str = "minilm"
    length: int = 64
    rule: Callable[[Row, float], Spans] = foreground
    threshold: float = 1.0


def load(
    dataset: str = "reviews", split: str = "train", *, store: Any = None, **more: Any
) -> TextSet:
    """The ``split`` ("train" or "test") of a data set.

    ``more`` takes the fields of :class:`TextRequest`. All texts by default; fewer (``count``,
    ``at_most``) are drawn with ``seed``, classes in proportion. See :func:`encode` for how texts
    are cut. ``store``, a :class:`kpnb_book.store.Store`, keeps the tokens; without one, or with a
    ``rule`` of the caller's, which may change under the same name, they are made anew.
    Raises ``ValueError`` (``FileNotFoundError`` for what is missing) that names the culprit.
    """
    wanted = TextRequest(dataset, split, store=store, **more)
    try:
        rows = wanted.source(SOURCES)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read {dataset} ({split}) in {wanted.root}: {error!r}") from error
    if not rows:
        raise ValueError(f"{dataset} ({split}) in {wanted.root} holds no text")
    if count := wanted.count or (wanted.at_most and min(wanted.at_most, len(rows))):
        labels = np.array([row.label for row in rows])
        rows = [rows[i] for i in stratified(labels, count, wanted.seed, "texts")]

    asks = bool(rows[0].question)

    def samples() -> Iterator[Sample]:
        tokenize = transformers().AutoTokenizer.from_pretrained(**source(wanted.tokenizer))
        texts = [row.text for row in rows]
        parts = ([row.question for row in rows], texts) if asks else (texts,)
        found = tokenize(*parts, verbose=False).encodings
        for row, one in zip(rows, found, strict=True):
            yield row.name, encode(row, one, wanted.length, wanted.rule(row, wanted.threshold))

    config = {
        **wanted.config,
        "recipe": 2,  # raise it when the same rows become other tensors
        "tokenizer": named(wanted.tokenizer, store),
        "count": len(rows),
        "inputs": list(TextSet.INPUTS),
        "rule": wanted.rule.__qualname__,
        "rows": digest(rows),
    }
    whole = {"asks": asks, "rows": {row.name: row for row in rows}}
    kept = store if wanted.rule is foreground else None
    return TextSet.made(kept, config, ("negative", "positive"), samples(), **whole)

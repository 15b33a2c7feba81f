"""Texts with a foreground: one class, :class:`TextSet`, and how a row of text becomes tokens.

A data set is a function from a request to rows (:class:`Row`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from kpnb_book.data.samples import SampleSet

Spans = Sequence[
    tuple[int, int]
]  # parts of a text, by their first character and the one behind the last


class Row(NamedTuple):
    """A text with its label; or with a ``question`` about it, and where in it the ``answers``
    stand.
    """

    name: str
    text: str
    label: int = 0
    question: str = ""
    answers: Spans = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class TextSet(SampleSet):
    """N texts as the tokens of :mod:`kpnb_book.networks.text`, padded at the end to one length T.

    ``rows`` has the texts themselves by name, also of samples that are in another part of the set.
    """

    KIND: ClassVar[str] = "texts"
    INPUT: ClassVar[str] = "tokens"

    tokens: Tensor  # int64 [N, T, 4]; masks are [N, T]
    # int64 [N, T, 2]: first character of each token in its text and the one behind its last; or 0,
    # 0
    offsets: Tensor
    ends: Tensor  # int64 [N, 2]: the answer's first and last token; or 0, 0
    sizes: Tensor  # int64 [N]: tokens of the whole text, of which at most T are here
    rows: dict[str, Row]
    asks: bool  # whether these are questions, whose answer is to be found

    def __post_init__(self) -> None:
        self._check(torch.int64, self.tokens.shape[1])

    def batch(self, index: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Tokens ``[B, T, 4]`` of the texts ``index [B]``, and labels ``[B]`` or for questions
        ``ends [B, 2]``.
        """
        return self.tokens[index].to(device), (self.ends if self.asks else self.labels)[index].to(
            device
        )

    @property
    def cut(self) -> int:
        """How many of the texts had to lose tokens to fit."""
        return int((self.sizes > self.tokens.shape[1]).sum())

    @property
    def accepted(self) -> list[list[str]]:
        """The answers that count as right, for each question."""
        return [
            [row.text[start:end] for start, end in row.answers]
            for row in map(self.rows.get, self.names)
        ]

    def parts(self, ends: Tensor) -> list[str]:
        """The part of each text from its token ``ends[:, 0]`` to its token ``ends[:, 1]``."""
        chars = self.offsets.take_along_dim(ends[..., None], 1).flatten(1).tolist()
        return [
            self.rows[name].text[start:end]
            for name, (start, _, _, end) in zip(self.names, chars, strict=True)
        ]


# ------------------------------------------------------------------------------------------------
# foreground and tokens


LEXICON: dict[str, float] = (
    SentimentIntensityAnalyzer().lexicon
)  # VADER's ratings of words, -4 to 4


def foreground(row: Row, threshold: float) -> Spans:
    """Every place where an annotator saw the answer; in a sentence, words with at least this
    absolute rating.
    """
    if row.question:
        return row.answers
    words = re.finditer(r"\w+(?:'\w+)?", row.text)
    return [word.span() for word in words if abs(LEXICON.get(word[0].lower(), 0)) >= threshold]


def covered(offsets: np.ndarray, spans: Spans) -> np.ndarray:
    """Which tokens, by their ``offsets [T, 2]``, share a character with one of the spans, bool
    ``[T]``.
    """
    inside = [(offsets[:, 0] < end) & (offsets[:, 1] > start) for start, end in spans]
    return np.any([np.zeros(len(offsets), bool), *inside], 0)


def encode(row: Row, found: Any, length: int, spans: Spans) -> dict[str, np.ndarray]:
    """Fields of a :class:`TextSet` from a tokenizer's ``Encoding`` of the text; ``spans`` are the
    foreground.

    A text of more than ``length`` tokens loses its end; of a passage, the window around its (first)
    answer stays. Raises ``ValueError`` that names a text without words, and a question whose answer
    does not fit.
    """
    part = np.array(
        [-1 if number is None else number for number in found.sequence_ids]
    )  # of special tokens: -1
    words, offsets = np.flatnonzero(part == bool(row.question)), np.array(found.offsets)
    kept = (
        np.flatnonzero(covered(offsets[words], row.answers[:1]))
        if row.question
        else np.zeros(1, int)
    )
    room = len(words) - max(0, len(part) - length)  # how many tokens of the text can stay
    if not len(kept) or np.ptp(kept) >= room:
        what = "the question and a word of its answer" if row.question else "a word"
        raise ValueError(
            f"{row.name}: {length} tokens have no room for {what}, or there is none: {row.text!r}"
        )
    low = np.clip((kept[0] + kept[-1] - room + 1) // 2, 0, len(words) - room)
    keep = np.setdiff1d(np.arange(len(part)), [*words[:low], *words[low + room :]])
    tokens = np.stack([part >= 0, part >= -1, np.maximum.accumulate(part == 1), found.ids], 1)
    places = np.where(part[:, None] == bool(row.question), offsets, 0)
    tokens, places = (
        np.pad(each[keep], ((0, length - len(keep)), (0, 0))) for each in (tokens, places)
    )
    ends = np.searchsorted(keep, words[kept[[0, -1]]])
    masks = covered(places, spans)
    fields = {"tokens": tokens, "offsets": places, "ends": ends, "masks": masks}
    return fields | {"sizes": np.array(len(part)), "labels": np.array(row.label)}

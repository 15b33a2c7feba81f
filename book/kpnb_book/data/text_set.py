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

from kpnb._tensors import moved
from kpnb_book.data.samples import SampleSet

# Parts of a text, by their first character and the one behind the last.
Spans = Sequence[tuple[int, int]]


class Row(NamedTuple):
    """A text with its label; or with a ``question`` about it, and where its ``answers`` stand."""

    name: str
    text: str
    label: int = 0
    question: str = ""
    answers: Spans = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class TextSet(SampleSet):
    """N texts as tokens, padded at the end to one length T; named as networks of Hugging Face want
    them, which :mod:`kpnb_book.networks.text` are.

    ``rows`` has the texts themselves by name, also of samples that are in another part of the set.
    """

    KIND: ClassVar[str] = "texts"
    INPUT: ClassVar[str] = "input_ids"
    INPUTS: ClassVar[tuple[str, ...]] = ("input_ids", "attention_mask", "token_type_ids", "counts")

    input_ids: Tensor  # int64 [N, T], the numbers of the tokens; masks are [N, T]
    attention_mask: Tensor  # int64 [N, T]: 0 for padding
    token_type_ids: Tensor  # int64 [N, T]: 0 for a question, 1 for its passage; else 0
    counts: Tensor  # bool [N, T]: a unit of kpnb.Tokens, which special tokens and padding are not
    # int64 [N, T, 2]: first character of each token in its text, or in its question, and the one
    # behind its last; or 0
    offsets: Tensor
    ends: Tensor  # int64 [N, 2]: the answer's first and last token; or 0, 0
    sizes: Tensor  # int64 [N]: tokens of the whole text, of which at most T are here
    rows: dict[str, Row]
    asks: bool  # whether these are questions, whose answer is to be found
    # Whether a batch is cut to the longest of its texts: padding changes nothing, and takes as long
    # as words do. Only one with the first text stays whole. What a network is tried with before it
    # is trained is such a batch, so that texts too long for it are found there, and the whole set,
    # whose units are counted by all T.
    trimmed: bool = False

    def __post_init__(self) -> None:
        self._check(torch.int64, self.input_ids.shape[1])

    def batch(
        self, index: Tensor, device: torch.device | str = "cpu"
    ) -> tuple[dict[str, Tensor], Tensor]:
        """``INPUTS`` by name, [B, T] each, of the texts ``index`` [B], and labels [B], of questions
        ends [B, 2]. Fewer than T tokens where they are ``trimmed``.
        """
        targets = self.ends if self.asks else self.labels
        length = self.input_ids.shape[1]
        if self.trimmed and len(index) and (index > 0).all():
            length = int(self.attention_mask[index].sum(1).max())
        parts = {name: getattr(self, name)[index, :length] for name in self.INPUTS}
        return {name: moved(part, device) for name, part in parts.items()}, moved(
            targets[index], device
        )

    @property
    def outside(self) -> Tensor:
        return self.counts & ~self.masks

    @property
    def cut(self) -> int:
        """How many of the texts had to lose tokens to fit."""
        return int((self.sizes > self.input_ids.shape[1]).sum())

    @property
    def accepted(self) -> list[list[str]]:
        """The answers that count as right, for each question."""
        rows = [self.rows[name] for name in self.names]
        return [[row.text[start:end] for start, end in row.answers] for row in rows]

    def parts(self, ends: Tensor) -> list[str]:
        """The part of each text from its token ``ends[:, 0]`` to its token ``ends[:, 1]``."""
        chars = self.offsets.take_along_dim(ends[..., None], 1).flatten(1).tolist()
        return [
            self.rows[name].text[start:end]
            for name, (start, _, _, end) in zip(self.names, chars, strict=True)
        ]


# ---- foreground and tokens

# VADER's ratings of words, -4 to 4
LEXICON: dict[str, float] = SentimentIntensityAnalyzer().lexicon


def foreground(row: Row, threshold: float) -> Spans:
    """Every place where an annotator saw the answer.

    In a sentence, its words that VADER rates at least at ``threshold``, whatever the sign.
    """
    if row.question:
        return row.answers
    words = re.finditer(r"\w+(?:'\w+)?", row.text)
    return [word.span() for word in words if abs(LEXICON.get(word[0].lower(), 0)) >= threshold]


def covered(offsets: np.ndarray, spans: Spans) -> np.ndarray:
    """Which tokens, by their ``offsets`` [T, 2], share a character with a span, bool [T]."""
    inside = [(offsets[:, 0] < end) & (offsets[:, 1] > start) for start, end in spans]
    return np.any([np.zeros(len(offsets), bool), *inside], 0)


def encode(row: Row, found: Any, length: int, spans: Spans) -> dict[str, np.ndarray]:
    """Fields of a :class:`TextSet` from a tokenizer's ``Encoding`` of the text.

    ``spans`` are the foreground. A text of more than ``length`` tokens loses its end; of a passage,
    the window around its (first) answer stays. Raises ``ValueError`` that names a text without
    words, and a question whose answer does not fit.
    """
    # Which of the texts given to the tokenizer a token belongs to; none if it is a special one.
    part = np.array([-1 if number is None else number for number in found.sequence_ids])
    of_text = part == (1 if row.question else 0)
    offsets = np.array(found.offsets)
    keep, words = _window(row, of_text, offsets, length)
    end = length - len(keep)
    places = np.pad(np.where(part[:, None] >= 0, offsets, 0)[keep], ((0, end), (0, 0)))
    inside = covered(places, spans) & np.pad(of_text[keep], (0, end))
    of_tokens = {
        "input_ids": np.array(found.ids),
        "attention_mask": np.ones(len(part), np.int64),
        "token_type_ids": np.maximum.accumulate(part == 1).astype(np.int64),
        "counts": part >= 0,
    }
    return {name: np.pad(values[keep], (0, end)) for name, values in of_tokens.items()} | {
        "offsets": places,
        "ends": np.searchsorted(keep, words),
        "masks": inside,
        "sizes": np.array(len(part)),
        "labels": np.array(row.label),
    }


def _window(
    row: Row, of_text: np.ndarray, offsets: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the tokens that stay [K], and of the answer's first and last one [2].

    The answer of a text without a question is its first word.
    """
    words = np.flatnonzero(of_text)
    if row.question:
        kept = np.flatnonzero(covered(offsets[words], row.answers[:1]))
    else:
        kept = np.zeros(1, int)
    room = len(words) - max(0, len(of_text) - length)  # how many tokens of the text can stay
    if not len(kept) or np.ptp(kept) >= room:
        what = "the question and a word of its answer" if row.question else "a word"
        found = f"{length} tokens have no room for {what}, or there is none"
        raise ValueError(f"{row.name}: {found}: {row.text!r}")
    low = np.clip((kept[0] + kept[-1] - room + 1) // 2, 0, len(words) - room)
    lost = [*words[:low], *words[low + room :]]
    return np.setdiff1d(np.arange(len(of_text)), lost), words[kept[[0, -1]]]

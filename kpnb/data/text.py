"""Texts with a foreground: one class, :class:`TextSet`, and the data sets that give it.

``sst2``   SST-2 as in GLUE: ``train.tsv`` and ``dev.tsv`` in ``root``; without one, from the ``datasets`` library.
``squad``  SQuAD v1.1: ``train-v1.1.json`` and ``dev-v1.1.json`` in ``root``.

The dev split of an official set is the test split here, because the labels of its own are not public.

A further data set is a function like those in :data:`SOURCES`, in a package that names it as an entry point of the
group ``kpnb.texts``. So does the book with its own: see :mod:`kpnb_book.reviews` and :mod:`kpnb_book.factbook`.
"""

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AutoTokenizer
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from kpnb.data.samples import Request, Sample, SampleSet
from kpnb.networks.text import source
from kpnb.store import digest

Spans = Sequence[tuple[int, int]]  # parts of a text, by their first character and the one behind the last


class Row(NamedTuple):
    """A text with its label; or with a ``question`` about it, and where in it the ``answers`` stand."""

    name: str
    text: str
    label: int = 0
    question: str = ""
    answers: Spans = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class TextSet(SampleSet):
    """N texts as the tokens of :mod:`kpnb.networks.text`, padded at the end to one length T.

    ``rows`` has the texts themselves by name, also of samples that are in another part of the set.
    """

    KIND: ClassVar[str] = "texts"
    INPUT: ClassVar[str] = "tokens"

    tokens: Tensor  # int64 [N, T, 4]; masks are [N, T]
    offsets: Tensor  # int64 [N, T, 2]: first character of each token in its text and the one behind its last; or 0, 0
    ends: Tensor  # int64 [N, 2]: the answer's first and last token; or 0, 0
    sizes: Tensor  # int64 [N]: tokens of the whole text, of which at most T are here
    rows: dict[str, Row]
    asks: bool  # whether these are questions, whose answer is to be found

    def __post_init__(self) -> None:
        self._check(torch.int64, self.tokens.shape[1])

    def batch(self, index: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Tokens ``[B, T, 4]`` of the texts ``index [B]``, and labels ``[B]`` or for questions ``ends [B, 2]``."""
        return self.tokens[index].to(device), (self.ends if self.asks else self.labels)[index].to(device)

    @property
    def cut(self) -> int:
        """How many of the texts had to lose tokens to fit."""
        return int((self.sizes > self.tokens.shape[1]).sum())

    @property
    def accepted(self) -> list[list[str]]:
        """The answers that count as right, for each question."""
        return [[row.text[start:end] for start, end in row.answers] for row in map(self.rows.get, self.names)]

    def parts(self, ends: Tensor) -> list[str]:
        """The part of each text from its token ``ends[:, 0]`` to its token ``ends[:, 1]``."""
        chars = self.offsets.take_along_dim(ends[..., None], 1).flatten(1).tolist()
        return [self.rows[name].text[start:end] for name, (start, _, _, end) in zip(self.names, chars, strict=True)]


# ------------------------------------------------------------------------------------------------ foreground and tokens


LEXICON: dict[str, float] = SentimentIntensityAnalyzer().lexicon  # VADER's ratings of words, -4 to 4


def foreground(row: Row, threshold: float) -> Spans:
    """Every place where an annotator saw the answer; in a sentence, words with at least this absolute rating."""
    if row.question:
        return row.answers
    words = re.finditer(r"\w+(?:'\w+)?", row.text)
    return [word.span() for word in words if abs(LEXICON.get(word[0].lower(), 0)) >= threshold]


def covered(offsets: np.ndarray, spans: Spans) -> np.ndarray:
    """Which tokens, by their ``offsets [T, 2]``, share a character with one of the spans, bool ``[T]``."""
    inside = [(offsets[:, 0] < end) & (offsets[:, 1] > start) for start, end in spans]
    return np.any([np.zeros(len(offsets), bool), *inside], 0)


def encode(row: Row, found: Any, length: int, spans: Spans) -> dict[str, np.ndarray]:
    """Fields of a :class:`TextSet` from a tokenizer's ``Encoding`` of the text; ``spans`` are the foreground.

    A text of more than ``length`` tokens loses its end; of a passage, the window around its (first) answer stays.
    Raises ``ValueError`` that names a text without words, and a question whose answer does not fit.
    """
    part = np.array([-1 if number is None else number for number in found.sequence_ids])  # of special tokens: -1
    words, offsets = np.flatnonzero(part == bool(row.question)), np.array(found.offsets)
    kept = np.flatnonzero(covered(offsets[words], row.answers[:1])) if row.question else np.zeros(1, int)
    room = len(words) - max(0, len(part) - length)  # how many tokens of the text can stay
    if not len(kept) or np.ptp(kept) >= room:
        what = "the question and a word of its answer" if row.question else "a word"
        raise ValueError(f"{row.name}: {length} tokens have no room for {what}, or there is none: {row.text!r}")
    low = np.clip((kept[0] + kept[-1] - room + 1) // 2, 0, len(words) - room)
    keep = np.setdiff1d(np.arange(len(part)), [*words[:low], *words[low + room :]])
    tokens = np.stack([part >= 0, part >= -1, np.maximum.accumulate(part == 1), found.ids], 1)
    places = np.where(part[:, None] == bool(row.question), offsets, 0)
    tokens, places = (np.pad(each[keep], ((0, length - len(keep)), (0, 0))) for each in (tokens, places))
    ends = np.searchsorted(keep, words[kept[[0, -1]]])
    masks = covered(places, spans)
    fields = {"tokens": tokens, "offsets": places, "ends": ends, "masks": masks}
    return fields | {"sizes": np.array(len(part)), "labels": np.array(row.label)}


# ------------------------------------------------------------------------------------------------- sentences: SST-2

SST2 = "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb"  # the commit to download, which its hash pins


def _file(wanted: Request, train: str, test: str) -> Path:
    path = Path(wanted.root or "root=", train if wanted.split == "train" else test).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; root= names the folder that holds {train} and {test}")
    return path


def sst2(wanted: Request) -> list[Row]:
    """Sentences of SST-2."""
    if wanted.root is None and util.find_spec("datasets"):
        from datasets import load_dataset

        split = {"train": "train", "test": "validation"}[wanted.split]
        table = load_dataset("stanfordnlp/sst2", revision=SST2)[split].to_pandas()
    else:
        how = {"sep": "\t", "quoting": csv.QUOTE_NONE, "keep_default_na": False, "dtype": {"label": int}}
        table = pd.read_csv(_file(wanted, "train.tsv", "dev.tsv"), usecols=["sentence", "label"], **how)
    pairs = zip(table["sentence"], table["label"].tolist(), strict=True)
    return [Row(f"row {number}", text, label) for number, (text, label) in enumerate(pairs, 1)]


# ------------------------------------------------------------------------------------------------- questions: SQuAD


def squad(wanted: Request) -> list[Row]:
    """Questions of SQuAD v1.1."""
    articles, rows = json.loads(_file(wanted, "train-v1.1.json", "dev-v1.1.json").read_bytes())["data"], []
    for part, qa in ((p, qa) for article in articles for p in article["paragraphs"] for qa in p["qas"]):
        found = {(a["answer_start"], a["answer_start"] + len(a["text"])): a["text"] for a in qa["answers"]}
        rows.append(Row(qa["id"], part["context"], 0, qa["question"], tuple(found)))
        if not found or any(part["context"][start:end] != text for (start, end), text in found.items()):
            raise ValueError(f"question {qa['id']} has no answer, or not where answer_start says: {found}")
    return rows


# ------------------------------------------------------------------------------------------------------- all data sets

# Name to a function of a request.
SOURCES: dict[str, Callable[[Request], list[Row]]] = {"sst2": sst2, "squad": squad}


@dataclass(frozen=True)
class TextRequest(Request):
    """What :func:`load` is asked for: texts of at most ``length`` tokens of the model ``tokenizer``.

    ``rule`` says what the foreground is, from a row and the ``threshold``; any function that gives spans can take its
    place.
    """

    tokenizer: str = "minilm"
    length: int = 64
    rule: Callable[[Row, float], Spans] = foreground
    threshold: float = 1.0


def load(dataset: str = "reviews", split: str = "train", *, store: Any = None, **more: Any) -> TextSet:
    """The ``split`` ("train" or "test") of a data set. What may be said ``more`` is that of :class:`TextRequest`.

    How texts are cut says :func:`encode`. ``store``, a :class:`kpnb.store.Store`, keeps the tokens; without one, or
    with a ``rule`` of the caller's, which may change under the same name, they are made anew.
    Raises ``ValueError`` (``FileNotFoundError`` for what is missing) that names the culprit.
    """
    wanted = TextRequest(dataset, split, **more)
    try:
        rows = wanted.source("kpnb.texts", SOURCES)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"cannot read {dataset} ({split}) in {wanted.root}: {error!r}") from error
    if not rows:
        raise ValueError(f"{dataset} ({split}) in {wanted.root} holds no text")

    def samples() -> Iterator[Sample]:
        texts = ([row.question for row in rows], [row.text for row in rows])[not asks :]
        found = AutoTokenizer.from_pretrained(**source(wanted.tokenizer))(*texts, verbose=False).encodings
        for row, one in zip(rows, found, strict=True):
            yield row.name, encode(row, one, wanted.length, wanted.rule(row, wanted.threshold))

    asks = bool(rows[0].question)
    config = {**wanted.config, "count": len(rows), "rule": wanted.rule.__qualname__, "rows": digest(rows)}
    whole = {"asks": asks, "rows": {row.name: row for row in rows}}
    kept = store if wanted.rule is foreground else None
    return TextSet.made(kept, config, ("negative", "positive"), samples(), **whole)

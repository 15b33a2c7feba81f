"""The official text sets: SST-2 and SQuAD, in their usual files.

``sst2``   SST-2 as in GLUE: ``train.tsv`` and ``dev.tsv`` in ``root``; without one, from the
           ``datasets`` library.
``squad``  SQuAD: ``train-v1.1.json`` and ``dev-v1.1.json`` in ``root``, or those of v2.0.

The dev split of an official set is the test split here, because the labels of its own are not
public.
"""

import csv
import json
import logging
from importlib import util
from pathlib import Path
from typing import Any

import pandas as pd

from kpnb_book.data.samples import Request
from kpnb_book.data.text_set import Row

log = logging.getLogger(__name__)
SST2 = "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb"  # the commit to download, which its hash pins


def _file(wanted: Request, *names: str) -> Path:
    """The first file of the split that is there, of ``names`` for training and testing in turn."""
    remedy = f"root= (data_root= of a command) names the folder of {names[0]} and {names[1]}"
    if wanted.root is None:
        raise FileNotFoundError(f"the data set {wanted.dataset!r} has no folder: {remedy}")
    root = Path(wanted.root).expanduser()
    asked = names[wanted.split == "test" :: 2]
    for name in asked:
        if (root / name).is_file():
            return root / name
    raise FileNotFoundError(f"{root / asked[0]} is missing; {remedy}")


def sst2(wanted: Request) -> list[Row]:
    """Sentences of SST-2."""
    if wanted.root is None and util.find_spec("datasets"):
        from datasets import load_dataset

        split = {"train": "train", "test": "validation"}[wanted.split]
        table = load_dataset("stanfordnlp/sst2", revision=SST2)[split].to_pandas()
    else:
        table = pd.read_csv(
            _file(wanted, "train.tsv", "dev.tsv"),
            sep="\t",
            usecols=["sentence", "label"],
            dtype={"label": int},
            quoting=csv.QUOTE_NONE,
            keep_default_na=False,
        )
    pairs = zip(table["sentence"], table["label"].tolist(), strict=True)
    return [Row(f"row {number}", text, label) for number, (text, label) in enumerate(pairs, 1)]


def squad(wanted: Request) -> list[Row]:
    """Questions of SQuAD v1.1, and those of v2.0 that have an answer.

    The others have no foreground; how many were left out is said in the log.
    """
    path = _file(wanted, "train-v1.1.json", "dev-v1.1.json", "train-v2.0.json", "dev-v2.0.json")
    content = json.loads(path.read_bytes())
    rows, without = _questions(content["data"])
    if without:
        found = f"{len(without)} of {len(without) + len(rows)} questions in {path} have no answer"
        log.warning("%s and are left out: %s ...", found, without[0])
    return rows


def _questions(articles: list[dict[str, Any]]) -> tuple[list[Row], list[str]]:
    """The questions that have an answer, and the names of the others.

    The rows of the ``datasets`` library are articles of one question.
    """
    rows = []
    without = []
    for article in articles:
        row = {"context": article.get("context"), "qas": [article]}
        for part in article["paragraphs"] if "question" not in article else [row]:
            for qa in part["qas"]:
                answers = _answers(qa)
                if qa.get("is_impossible") or not answers:
                    without.append(qa["id"])
                else:
                    rows.append(_question(qa, answers, part["context"]))
    return rows, without


def _answers(qa: dict[str, Any]) -> list[tuple[str, int]]:
    """Answers and where they start, from a list of both or, as the ``datasets`` library has it, two
    lists. ``ValueError`` names the question of any others.
    """
    given = qa.get("answers") or []
    try:
        if isinstance(given, dict):
            found = list(zip(given["text"], given["answer_start"], strict=True))
        else:
            found = [(answer["text"], answer["answer_start"]) for answer in given]
        if not all(isinstance(text, str) and isinstance(start, int) for text, start in found):
            raise TypeError
        return found
    except (KeyError, TypeError, ValueError) as error:
        wrong = f"has answers that are no texts with their answer_start: {given!r}"
        raise ValueError(f"question {qa['id']} {wrong}") from error


def _question(qa: dict[str, Any], found: list[tuple[str, int]], context: str) -> Row:
    answers = {(start, start + len(text)): text for text, start in found}
    if any(context[start:end] != text for (start, end), text in answers.items()):
        wrong = f"has an answer that is not where answer_start says: {answers}"
        raise ValueError(f"question {qa['id']} {wrong}")
    return Row(qa["id"], context, 0, qa["question"], tuple(answers))

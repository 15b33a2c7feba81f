"""The official text sets: SST-2 and SQuAD v1.1, in their usual files.

``sst2``   SST-2 as in GLUE: ``train.tsv`` and ``dev.tsv`` in ``root``; without one, from the
           ``datasets`` library.
``squad``  SQuAD v1.1: ``train-v1.1.json`` and ``dev-v1.1.json`` in ``root``.

The dev split of an official set is the test split here, because the labels of its own are not
public.
"""

import csv
import json
from importlib import util
from pathlib import Path
from typing import Any

import pandas as pd

from kpnb_book.data.samples import Request
from kpnb_book.data.text_set import Row

SST2 = "8d51e7e4887a4caaa95b3fbebbf53c0490b58bbb"  # the commit to download, which its hash pins


def _file(wanted: Request, train: str, test: str) -> Path:
    path = Path(wanted.root or "root=", train if wanted.split == "train" else test).expanduser()
    if not path.is_file():
        remedy = f"root= names the folder that holds {train} and {test}"
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    return path


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
    """Questions of SQuAD v1.1."""
    content = json.loads(_file(wanted, "train-v1.1.json", "dev-v1.1.json").read_bytes())
    paragraphs = [part for article in content["data"] for part in article["paragraphs"]]
    return [_question(qa, part["context"]) for part in paragraphs for qa in part["qas"]]


def _question(qa: dict[str, Any], context: str) -> Row:
    answers = {}
    for answer in qa["answers"]:
        start = answer["answer_start"]
        answers[start, start + len(answer["text"])] = answer["text"]
    if not answers or any(context[start:end] != text for (start, end), text in answers.items()):
        found = f"has no answer, or not where answer_start says: {answers}"
        raise ValueError(f"question {qa['id']} {found}")
    return Row(qa["id"], context, 0, qa["question"], tuple(answers))

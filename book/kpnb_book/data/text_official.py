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
    root = Path(wanted.root or "root=").expanduser()
    asked = names[wanted.split == "test" :: 2]
    for name in asked:
        if (root / name).is_file():
            return root / name
    remedy = f"root= names the folder that holds {names[0]} and {names[1]}"
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
    rows = []
    without = []
    for article in content["data"]:
        for part in article["paragraphs"]:
            for qa in part["qas"]:
                if qa.get("is_impossible") or not qa.get("answers"):
                    without.append(qa["id"])
                else:
                    rows.append(_question(qa, part["context"]))
    if without:
        found = f"{len(without)} of {len(without) + len(rows)} questions in {path} have no answer"
        log.warning("%s and are left out: %s ...", found, without[0])
    return rows


def _question(qa: dict[str, Any], context: str) -> Row:
    answers = {}
    for answer in qa["answers"]:
        start = answer["answer_start"]
        answers[start, start + len(answer["text"])] = answer["text"]
    if any(context[start:end] != text for (start, end), text in answers.items()):
        found = f"has an answer that is not where answer_start says: {answers}"
        raise ValueError(f"question {qa['id']} {found}")
    return Row(qa["id"], context, 0, qa["question"], tuple(answers))

"""A tiny BERT in a folder, as transformers writes it, with a vocabulary of the words that the tests
use.
"""

import json
from pathlib import Path

import numpy as np
from transformers import BertConfig, BertModel, BertTokenizer

TEXT = """the a movie film is was not n't good great bad awful dull fun gooo ##oo ##od un ##believ
##able it ' s t , . ? ! what where who capital of river in paris rome france italy has people
#million city cities and lies on seine
tiber 1 2 3 4 5 6 7 8 9 10 12"""
WORDS = TEXT.split()


def tiny_model(root: Path, weights: bool = True) -> str:
    """The folder of a BERT with three layers of width 16; with ``weights``, random ones are there
    to load.
    """
    vocabulary = {
        word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])
    }
    BertTokenizer(vocab=vocabulary).save_pretrained(root)
    size = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=48, **size)
    config.save_pretrained(root)
    if weights:
        BertModel(config).save_pretrained(root)
    return str(root)


def write_sst2(root: Path, count: int = 24) -> None:
    """SST-2 as in GLUE: the label follows from one word."""
    rng = np.random.default_rng(0)
    for name in ("train.tsv", "dev.tsv"):
        lines = ["sentence\tlabel"]
        for i in range(count):
            word = rng.choice(["good", "great", "fun"] if i % 2 else ["bad", "awful", "dull"])
            rest = rng.permutation(["the", "movie", "was", "in", "paris", '"', "it"])[
                : rng.integers(2, 8)
            ]
            lines.append(" ".join([*rest, word]) + f" \t{i % 2}")
        (root / name).write_text("\n".join(lines) + "\n", "utf8")


def write_squad(root: Path, count: int = 8) -> None:
    """SQuAD v1.1: two questions a passage; the second has two answers."""
    rng = np.random.default_rng(1)
    for name in ("train", "dev"):
        paragraphs = []
        for i in range(count):
            city, country, river = rng.choice(
                [("Paris", "France", "Seine"), ("Rome", "Italy", "Tiber")]
            )
            people = int(rng.integers(2, 10))
            extra = "It was great ." * int(rng.integers(0, 2))
            lies = f"The city lies on the {river} and has {people} million people ."
            context = f"{extra} {city} is the capital of {country} . {lies}"
            questions = {
                f"What is the capital of {country} ?": [city],
                "Where lies the city ?": [f"the {river}", river],
            }
            qas = []
            for k, (asked, texts) in enumerate(questions.items()):
                answers = [{"text": text, "answer_start": context.index(text)} for text in texts]
                number = f"{name}-{2 * i + k}"
                qas.append({"id": number, "question": asked, "answers": answers})
            paragraphs.append({"context": context, "qas": qas})
        content = {"version": "1.1", "data": [{"title": "Cities", "paragraphs": paragraphs}]}
        (root / f"{name}-v1.1.json").write_text(json.dumps(content), "utf8")

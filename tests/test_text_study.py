"""The text experiments in miniature on files in the official layouts, the scorer, and the heat
map.
"""

import html
import math
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from kpnb.losses import cross_entropy
from kpnb.objectives import Aligned
from kpnb_book.figures.report import show
from kpnb_book.figures.views import heat_map
from kpnb_book.networks.text import build
from kpnb_book.store import Store
from kpnb_book.studies import measure, tables
from kpnb_book.studies.study import Study
from kpnb_book.studies.text import (
    QuestionStudy,
    TextStudy,
    alike,
    best_spans,
    exact_and_f1,
    normalise,
)
from kpnb_book.studies.training import Schedule, baseline
from tests.by_hand import metrics_by_hand
from tests.tiny_text import tiny_model, write_squad, write_sst2

TINY = {
    "depth": 2,
    "epochs": 3,
    "teacher_epochs": 2,
    "head_epochs": 2,
    "teacher_samples": "all",
    "share": 12,
}
TINY |= {
    "test_samples": "all",
    "analysed": 5,
    "batch_size": 8,
    "rank": 6,
    "probes": 4,
    "noise": 8,
    "b": 0.05,
    "seeds": (0,),
}
DATA = {"sst2": {"dataset": "sst2", "length": 16}, "squad": {"dataset": "squad", "length": 48}}


@pytest.fixture(scope="module", params=DATA)
def study(request, tmp_path_factory) -> TextStudy:
    root = tmp_path_factory.mktemp("files")
    write_sst2(root)
    write_squad(root)
    network = tiny_model(tmp_path_factory.mktemp("tiny"))
    options = {"network": network, "data_root": str(root), **DATA[request.param], **TINY}
    return TextStudy("smoke", store=Store(tmp_path_factory.mktemp("store")), **options)


def test_the_untrained_teacher_has_no_learned_weights(study):
    """The teacher starts from the encoder's, and its student is a control of its own."""
    teacher, control = study.teacher(), study.untrained_student("feature").teacher
    learned, random = teacher.state(0), control.state(0)
    name = study.weight_of("feature")
    assert learned[name].shape == random[name].shape
    assert not torch.equal(learned[name], random[name])
    pretrained = study.student("feature", teacher_epoch=0).teacher
    assert torch.equal(pretrained.state(0)[name], learned[name])
    assert control.epochs == 0


def test_the_weight_of_the_feature_is_that_of_the_last_block(study):
    assert study.weight_of("feature") == "encoder.encoder.layer.1.output.dense.weight"


def test_table_agrees_with_a_count_by_hand(study):
    """Eq. 6-9 with plain loops, sentence by sentence without its padding."""
    table = tables.table5(study).set_index("network")
    exists = study.x["counts"].numpy()
    assert not exists.all()
    for role, training in (("student", study.student("feature")), ("baseline", study.baseline())):
        entropy = measure.entropies(study, training, "feature")["entropy"].numpy()
        assert (np.isfinite(entropy) == exists).all()
        ones = []
        for i, there in enumerate(exists):
            if study.foreground[i].any():
                one = entropy[:, i : i + 1, there], study.foreground[i : i + 1, there].numpy()
                ones.append(metrics_by_hand(*one, training.step_norms(), b=0.05))
        for name in ("n_fg", "n_bg", "d_mean", "rho"):
            values = [one[name] for one in ones if not np.isnan(one[name])]
            assert table.loc[role, name] == pytest.approx(
                np.mean(values) if values else np.nan, nan_ok=True
            )
    assert "undefined" in show(tables.table5(study)).to_html()


@pytest.mark.parametrize("pool", ["first", "mean", "all"])
def test_padding_that_is_cut_off_changes_nothing(study, pool):
    """Texts of like length go together, cut to the longest of them; against all at full length."""
    options = {**asdict(study.settings), "pool": pool, "analysed": 12}
    several = type(study)("smoke", store=study.store, **options)
    lengths = several.measured.attention_mask.sum(1)
    assert len(lengths.unique()) > 2
    model = several.build(**several.spec(0))
    how = {"solver": measure.solver_of(several.settings), "dead": "nan", "progress": False}
    layer = several.path("feature")
    ours = several.entropies(model, [layer], **how)[layer]
    whole = Study.entropies(several, model, [layer], **how)[layer]
    assert ours.settings == whole.settings
    for name, values in ours.tensors().items():
        expected = whole.tensors()[name]
        if name == "error":  # of probes that have another number of units to disagree about
            expected, values = expected.isnan(), values.isnan()
        torch.testing.assert_close(values, expected, atol=2e-5, rtol=1e-3, equal_nan=True)


def test_short_texts_are_trained_without_what_no_text_of_a_batch_fills(study):
    """Against batches at full length: the same loss and the same gradients."""
    whole, trimmed = (replace(study.share, trimmed=trimmed) for trimmed in (False, True))
    by_length = whole.attention_mask.sum(1).argsort()
    short = by_length[by_length > 0][:4]
    model, gradients, losses = study.build(**study.spec(0)), [], []
    for data in (whole, trimmed):
        model.zero_grad()
        x, labels = data.batch(short)
        losses.append(cross_entropy(model(**x), labels))
        losses[-1].backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        assert x["counts"].sum() == whole.counts[short].sum()
    assert x["input_ids"].shape[1] == whole.attention_mask[short].sum(1).max()
    assert x["input_ids"].shape[1] < whole.input_ids.shape[1]
    torch.testing.assert_close(losses[0], losses[1])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("length", "pool", "trims"), [(9, "first", False), (40, "mean", True), (40, "all", False)]
)
def test_texts_are_trimmed_where_most_is_padding(study, length, pool, trims):
    if study.train.asks:
        pytest.skip("of questions all tokens count")
    options = asdict(study.settings) | {"length": length, "pool": pool}
    other = TextStudy("smoke", store=study.store, **options)
    assert other.train.trimmed is other.share.trimmed is other.test.trimmed is trims
    assert other.x["input_ids"].shape == (len(other.measured), length)


def test_texts_of_like_length_are_neighbours():
    lengths = torch.tensor([9, 3, 7, 3, 5, 8])
    found = [(index.tolist(), longest) for index, longest in alike(lengths, window=4, at_once=2)]
    assert found == [([1, 3], 3), ([2, 0], 9), ([4, 5], 8)]
    few = [(index.tolist(), longest) for index, longest in alike(lengths[:4], 4, 2)]
    assert few == found[:2]  # the first ones have the same company, however many follow


def test_texts_without_a_foreground_are_not_measured(study):
    """In SST-2 every text has a word that counts here; half of them lose theirs."""
    share = study.share
    masks = share.masks.clone()
    masks[::2] = False
    poorer = replace(share, masks=masks)
    kept = poorer.complete()
    assert len(kept) == len(share) // 2
    assert kept.names == share.names[1::2]
    assert share.complete() is share
    without = replace(share, masks=torch.zeros_like(masks))
    assert without.complete() is without  # to be told where the metrics are counted
    everything = replace(share, masks=share.counts)
    assert everything.complete() is everything


def test_a_copied_study_is_trained_already_and_one_of_another_model_is_not(study, tmp_path):
    """Its data and its model's folder lie elsewhere; then the model has another width."""
    table = tables.table5(study)
    s = study.settings
    shutil.copytree(s.data_root, tmp_path / "data", copy_function=shutil.copyfile)
    shutil.copytree(s.network, tmp_path / "model", copy_function=shutil.copyfile)
    options = {**asdict(s), "data_root": str(tmp_path / "data")}
    options["network"] = str(tmp_path / "model")
    copied = TextStudy("smoke", store=study.store, **options)
    trainings = [copied.teacher(), copied.baseline(), copied.student("feature")]
    assert not any(training.missing() for training in trainings)
    assert tables.table5(copied).equals(table)
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text("utf8").replace('"gelu"', '"relu"'), "utf8")
    other = TextStudy("smoke", store=study.store, **options)
    assert other.baseline().missing() == [0, 1, 2, 3]
    assert other.baseline().address != study.baseline().address


def test_texts_longer_than_the_encoder_are_named_before_anything_is_trained(study, tmp_path):
    options = {**asdict(study.settings), "length": 60}
    long = TextStudy("smoke", store=Store(tmp_path), **options)
    for training in (
        long.teacher(),
        long.student("feature"),
        long.head("feature"),
        long.baseline(),
    ):
        with pytest.raises(
            ValueError, match=r"texts of 60 tokens, .* positions for 48: set length"
        ):
            training.finish()
    assert not list(tmp_path.rglob("epoch-*"))


def test_entropy_is_that_of_embeddings_at_their_own_scale(study):
    training = study.baseline()
    found = measure.entropies(study, training, "feature")["entropy"]
    for epoch in (0, 3):
        words = training.state(epoch)["words.weight"]
        expected = Aligned().mean + math.log(words.std().item())
        torch.testing.assert_close(
            found[epoch].nanmean(-1), torch.full((5,), expected), rtol=0, atol=1e-5
        )
    levels = measure.region_means(study, {"feature": found[-1]}).groupby("region")["entropy"].mean()
    assert levels.notna().all()


def test_who_starts_where_and_what_moves(study):
    student, first, head = (
        study.student("feature"),
        study.baseline().state(0),
        study.head("feature"),
    )
    assert all(torch.equal(value, student.state(0)[key]) for key, value in first.items())
    weights = build(study.settings.network, pretrained=True, layers=2).encoder.state_dict()
    teacher = study.teacher().state(0)
    assert all(torch.equal(value, teacher[f"encoder.{key}"]) for key, value in weights.items())
    assert len(teacher["words.weight"]) == len(study.spec(0)["vocabulary"]) < 45  # of 56 tokens
    assert not torch.equal(first["words.weight"], teacher["words.weight"])
    last = student.step_norms()[-1]
    assert last["words.weight"] > 0
    assert last["head.weight"] == 0
    for key, value in student.state().items():
        assert torch.equal(value, head.state()[key]) == (not key.startswith("head."))
    errors = [entry["test_feature_error"] for entry in student.log]
    assert errors[-1] < errors[0]
    assert (
        0
        < measure.distance(study, student, "feature")[-1]
        < measure.distance(study, student, "feature", "below")[-1] * 1.0001
    )


def test_scores(study):
    table = tables.accuracies(study).set_index("network")
    assert list(table.index) == ["teacher", "baseline", "student"]
    names = ["accuracy"] + ["exact match", "F1"] * study.test.asks
    assert table[names].stack().between(0, 1).all()
    if study.test.asks:
        model = study.teacher().load()
        with torch.no_grad():
            logits = model(**study.test.batch(torch.arange(len(study.test)))[0])
        right = (logits.argmax(1) == study.test.ends).all(1).double().mean().item()
        assert table.loc["teacher", "accuracy"] == pytest.approx(right)
        for answer, name in zip(study.answers(study.teacher()), study.test.names, strict=True):
            assert answer in study.test.rows[name].text
            assert answer


def test_nothing_is_computed_twice(study):
    tables.table5(study), tables.accuracies(study)
    before = _times(study.store.root)
    s = study.settings
    options = {"network": s.network, "data_root": s.data_root, **DATA[s.dataset], **TINY}
    again = TextStudy("smoke", store=study.store, **options)
    assert tables.table5(again).equals(tables.table5(study))
    assert tables.accuracies(again).equals(tables.accuracies(study))
    assert _times(study.store.root) == before


def _times(root: Path) -> dict[Path, int]:
    """When the files of a store were written; but for what is remembered of data files, which waits
    until these are some seconds old.
    """
    kept = set(root.rglob("*")) - set((root / "contents").rglob("*"))
    return {path: path.stat().st_mtime_ns for path in kept if path.is_file()}


def test_adamw_goes_on_where_it_was(study, tmp_path):
    """Three epochs at once, and one and two more by another process, end with the same bits."""
    spec, data = study.spec(3), study.share
    how = {"lr": 1e-3, "weight_decay": 0.1, "batch_size": 4, "seed": 1, "adamw": True, "bf16": True}
    whole = baseline(Store(tmp_path / "a"), spec, data, Schedule(3, **how), build=build)
    baseline(Store(tmp_path / "b"), spec, data, Schedule(1, **how), build=build)
    parts = baseline(Store(tmp_path / "b"), spec, data, Schedule(3, **how), build=build)
    assert all(torch.equal(value, parts.state()[key]) for key, value in whole.state().items())
    kept = whole.run.get("epoch-002", dict).tensors
    kinds = {name.split(".")[0]: tensor.dtype for name, tensor in kept.items()}
    half = dict.fromkeys(("mean", "square"), torch.bfloat16)
    assert kinds == half | dict.fromkeys(("model", "step"), torch.float32)
    assert not torch.equal(whole.state(1)["head.weight"], whole.state(2)["head.weight"])


class Clouds:
    """Twelve points of three classes, in double precision."""

    config: ClassVar[dict[str, str]] = {"dataset": "twelve points"}
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def __len__(self) -> int:
        return 12

    def batch(self, index: torch.Tensor, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[index], index % 3


def test_adamw_is_the_published_update(tmp_path):
    """Loshchilov and Hutter 2019, algorithm 2, written out; full batches, so that the order does
    not matter.
    """
    model = torch.nn.Linear(5, 3).double()
    schedule = Schedule(4, lr=0.05, momentum=0.8, weight_decay=0.1, batch_size=12, adamw=True)
    found = baseline(Store(tmp_path), model, Clouds(), schedule).state()
    w = torch.cat([model.weight, model.bias[:, None]], 1).detach()
    m = v = torch.zeros_like(w)
    x, y = (
        torch.cat([Clouds.x, torch.ones(12, 1)], 1),
        torch.nn.functional.one_hot(torch.arange(12) % 3),
    )
    for step in range(1, 5):
        gradient = ((x @ w.T).softmax(1) - y).T @ x / 12
        m, v = 0.8 * m + 0.2 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w - 0.05 * (0.1 * w + m / (1 - 0.8**step) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
    torch.testing.assert_close(torch.cat([found["weight"], found["bias"][:, None]], 1), w)


def test_settings_of_the_profiles():
    assert TextStudy.resolve("laptop").dataset == "reviews"
    assert QuestionStudy.resolve("laptop").dataset == "factbook"
    assert QuestionStudy.PROFILES.keys() == TextStudy.PROFILES.keys()
    assert {TextStudy.resolve(profile).b for profile in TextStudy.PROFILES} == {0.2}
    assert TextStudy.resolve("paper").network == "bert-base-uncased"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Rhine-Maas, a river!", ["rhinemaas", "river"]),
        ("AN  apple", ["apple"]),
        ("theatre", ["theatre"]),
        ("A.", []),
    ],
)
def test_answers_are_normalised_as_the_official_scorer_does(text, words):
    assert normalise(text) == words


@pytest.mark.parametrize(
    ("given", "wanted", "exact", "f1"),
    [
        ("the Seine", ["Seine"], 1, 1),
        ("river Seine", ["Seine"], 0, 2 / 3),
        ("Seine", ["the Tiber", "river Seine"], 0, 2 / 3),
        ("two two", ["two"], 0, 2 / 3),  # a word counts as often as both have it
        ("Rome", ["Paris"], 0, 0),
        ("", ["Paris"], 0, 0),
    ],
)
def test_exact_match_and_f1_by_hand(given, wanted, exact, f1):
    assert exact_and_f1([given], [wanted]) == {"exact match": exact, "F1": pytest.approx(f1)}
    both = exact_and_f1([given, "Rome"], [wanted, ["Rome"]])
    assert both == {"exact match": (exact + 1) / 2, "F1": pytest.approx((f1 + 1) / 2)}


def test_best_span_is_in_order_and_not_too_long():
    logits = torch.randn(6, 9, 2, generator=torch.Generator().manual_seed(0))
    for longest in (1, 3, 30):
        for one, (start, end) in zip(logits, best_spans(logits, longest).tolist(), strict=True):
            pairs = [(i, j) for i in range(9) for j in range(i, min(9, i + longest))]
            assert (start, end) == max(
                pairs, key=lambda pair, one=one: (one[pair[0], 0] + one[pair[1], 1]).item()
            )


def test_heat_map_shows_every_token_once(study):
    texts, entropy = (
        study.measured,
        measure.entropies(study, study.baseline(), "feature")["entropy"],
    )
    outside = entropy.where(~texts.masks, torch.nan).nanmean(-1, keepdim=True)
    gaps = outside - entropy
    points = gaps > 0.03
    titles = [f"epoch <{epoch}>" for epoch in range(4)]
    page = heat_map(texts, dict(zip(titles, entropy, strict=True)), 1, b=0.03).html
    frames = re.findall(r"<details( open)?><summary>(.*?)</summary>(.*?)</details>", page)
    assert [bool(shown) for shown, *_ in frames] == [False, True, True, True]
    assert frames[3][1].startswith("epoch &lt;3&gt; ")
    row = texts.rows[texts.names[1]]
    units = study.x["counts"][1]  # of a question as well
    for (_, title, body), known, gap in zip(frames, points[:, 1], gaps[:, 1], strict=True):
        fg, bg = (int((known & region).sum()) for region in (texts.masks[1], ~texts.masks[1]))
        assert f">N<sup>fg</sup> = {fg}, N<sup>bg</sup> = {bg}, " in title
        stored = [float(value) for value in re.findall(r'data-gap="(\S+?)"', body)]
        np.testing.assert_allclose(stored, gap[units], atol=1e-6)
        assert [float(said) for said in re.findall(r'title="(\S+) nats"', body)] == pytest.approx(
            stored, abs=0.00501
        )
        shown = [
            html.unescape(re.sub("<[^>]*>", "", part)) for part in re.findall("<p>.*?</p>", body)
        ]
        assert shown == [row.question, row.text][not texts.asks :]
        assert body.count("outline") == fg + bg
        assert body.count("<u>") == int(texts.masks[1].sum())
        # More colour is a larger gap, and what lies above the background's mean has none.
        shades = np.array(re.findall(r"rgba\(230,159,0,(\S+?)\)", body), float)
        assert np.all(np.diff(shades[np.argsort(stored)]) >= 0)
        assert not shades[np.array(stored) < 0].any()
        assert shades.max() > 0
        if texts.asks:  # every word of the question is framed where it stands
            words = re.findall(r"<span [^>]*>(.*?)</span>", re.search("<p>.*?</p>", body)[0])
            assert html.unescape("".join(words)) == re.sub(r"\s", "", row.question)

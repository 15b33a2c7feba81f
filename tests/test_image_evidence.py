"""What evidence on images has besides: other rules of what is foreground, and points by epoch;
against plain loops and cases that are known.
"""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from kpnb_book.store import Store
from kpnb_book.studies import measure
from kpnb_book.studies.collecting import seed_rows
from kpnb_book.studies.curves import curves
from kpnb_book.studies.evidence import STUDIES, ImageEvidence
from kpnb_book.studies.foreground import RULES, apart, boxes, in_the_box, ring_share
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.results import KEY
from tests.drawn import TINY, draw

METRICS = ("n_fg", "n_bg", "lambda", "d", "rho")


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> ImageStudy:
    root = draw(tmp_path_factory.mktemp("shapes"))
    store = Store(tmp_path_factory.mktemp("store"))
    return ImageStudy("smoke", store=store, **TINY, dataset="folder", data_root=str(root), b=0.05)


def test_boxes_are_the_smallest_rectangles():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(40, 9, 7, generator=generator) < 0.05
    found = boxes(masks)
    for mask, box in zip(masks, found, strict=True):
        expected = torch.zeros_like(mask)
        if mask.any():
            y, x = mask.nonzero().T
            expected[y.min() : y.max() + 1, x.min() : x.max() + 1] = True
        assert torch.equal(box, expected)
    assert torch.equal(boxes(found), found)


def test_cells_that_touch_the_object_are_left_out(study):
    foreground, background = apart(study)
    rows, columns = study.units.shape
    assert torch.equal(foreground, study.foreground)
    for i, cells in enumerate(study.foreground.reshape(-1, rows, columns)):
        for y in range(rows):
            for x in range(columns):
                near = cells[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].any()
                assert background[i, y * columns + x] == (not near)


def test_where_masks_are_boxes_the_box_changes_nothing(study):
    masks = study.measured.masks
    try:
        object.__setattr__(study.measured, "masks", boxes(masks))
        del study.regions
        foreground, background = in_the_box(study)
        assert torch.equal(foreground, study.foreground)
        assert torch.equal(background, study.background)
    finally:
        object.__setattr__(study.measured, "masks", masks)
        del study.regions
    assert (in_the_box(study)[0] | ~study.foreground).float().mean() > 0.95


@pytest.fixture(scope="module")
def shapes(study) -> ImageEvidence:
    settings = {name: getattr(study.settings, name) for name in ("dataset", "data_root", "b")}
    return ImageEvidence("shapes", ImageStudy, TINY | settings, (), rules=("box",))


def test_points_by_epoch_end_with_those_of_the_tables(study, shapes):
    own = shapes.study(study.store)
    rows = seed_rows(shapes, own, 0)
    found = curves(rows.networks)
    assert found.groupby("network").size().to_dict() == dict.fromkeys(
        ("baseline", "student"), own.settings.epochs + 1
    )
    last = found[found["epoch"] == own.settings.epochs].set_index("network")
    means = rows.samples.groupby("network")[["n_fg", "n_bg", "lambda"]].mean()
    pd.testing.assert_frame_equal(
        last[["n_fg", "n_bg", "lambda"]], means, check_names=False, rtol=1e-6
    )
    assert last.loc["baseline", "accuracy"] == own.baseline(0).accuracy
    assert pd.isna(last.loc["student", "accuracy"])  # it has learned no labels
    (layer,) = own.settings.layers
    H = measure.entropies(own, own.student(layer, 0), layer)["entropy"][0]
    level = torch.stack([h[b].mean() for h, b in zip(H, own.background, strict=True)])
    points = (level[:, None] - H > own.settings.b) & own.foreground
    first = found[(found["epoch"] == 0) & (found["network"] == "student")]
    assert first["n_fg"].item() == pytest.approx(points.sum(1).double().mean().item())
    assert curves(rows.networks[KEY]).empty


def test_every_rule_has_its_columns_beside_those_of_all_studies(study, shapes, monkeypatch):
    same = {"masks": lambda study: study.regions}
    monkeypatch.setattr("kpnb_book.studies.foreground.RULES", RULES | same)
    ruled = replace(shapes, rules=("masks", "box", "apart"))
    own = ruled.study(study.store)
    samples = seed_rows(ruled, own, 0).samples
    for name in METRICS:  # the study's own regions give the study's own numbers
        pd.testing.assert_series_equal(samples[f"masks_{name}"], samples[name], check_names=False)
    assert not samples["apart_n_bg"].equals(samples["n_bg"])
    (layer,) = own.settings.layers
    H = measure.entropies(own, own.baseline(0), layer)["entropy"][-1]
    foreground, background = in_the_box(own)
    for i, row in samples[samples["network"] == "baseline"].set_index("sample").iterrows():
        level = H[i][background[i]].mean()
        points = level - H[i] > own.settings.b
        assert row["box_n_fg"] == (points & foreground[i]).sum()
        assert row["box_n_bg"] == (points & background[i]).sum()


def test_share_of_points_in_the_ring(study):
    near = study.background & ~apart(study)[1]
    assert ring_share(study, near) == 1
    assert ring_share(study, apart(study)[1]) == 0
    assert ring_share(study, study.background) == pytest.approx(
        near.sum().item() / study.background.sum().item()
    )
    assert torch.tensor(ring_share(study, study.foreground)).isnan()


def test_photographs_have_boxes_for_masks_and_drawings_have_outlines():
    assert STUDIES["images"].rules == ("box", "apart")
    assert STUDIES["tiny-imagenet-vgg11"].rules == ("apart",)
    assert set(RULES) >= {*STUDIES["images"].rules}
    assert isinstance(STUDIES["images"], ImageEvidence)

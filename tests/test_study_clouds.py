"""The point cloud experiment in miniature, and what its units and the scale of its coordinates
mean.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

import kpnb
from kpnb import distill
from kpnb.distill import TensorData
from kpnb.features import capture
from kpnb.losses import softened_output
from kpnb.objectives import Aligned, Converged
from kpnb.schedule import Schedule
from kpnb_book.networks.clouds import NETWORKS
from kpnb_book.store import Store
from kpnb_book.studies import measure, tables
from kpnb_book.studies.clouds import CloudStudy
from tests.by_hand import metrics_by_hand

TINY = {
    "points": 24,
    "background": 16,
    "k": 5,
    "width": 0.1,
    "epochs": 2,
    "teacher_epochs": 1,
    "head_epochs": 1,
}
TINY |= {"teacher_samples": 48, "share": 0.5, "test_samples": 12, "analysed": 4, "layers": "FC1"}
TINY |= {"seeds": (0,)}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_gives_a_table_that_a_count_by_hand_confirms(store, network):
    study = CloudStudy("smoke", store=store, network=network, b=0.1, **TINY)
    table = tables.table5(study).set_index("network")
    for role, training in (("student", study.student("FC1")), ("baseline", study.baseline())):
        entropy = measure.entropies(study, training, "FC1")["entropy"].numpy()
        assert entropy.shape == (3, 4, 40)
        assert np.isfinite(entropy).all()
        hand = metrics_by_hand(entropy, study.measured.masks.numpy(), training.step_norms(), b=0.1)
        for name, value in hand.items():
            assert table.loc[role, name] == pytest.approx(value, nan_ok=True)
    assert tables.accuracies(study)["accuracy"].between(0, 1).all()


@pytest.mark.parametrize("network", NETWORKS)
def test_the_weight_of_a_layer_is_what_makes_its_units(store, network):
    """The linear map right below the layer, and not the gain of a normalisation."""
    study = CloudStudy("smoke", store=store, network=network, **TINY)
    model, (x, _) = study.build(**study.spec(0)), study.measured.batch(torch.arange(2))
    for layer in ("FC1", "FC2"):
        name = study.weight_of(layer)
        owner, seen = model.get_submodule(name.removesuffix(".weight")), []
        owner.register_forward_hook(lambda *call, seen=seen: seen.append(call[2]))
        feature = capture(model.eval(), x, [study.path(layer)])[study.path(layer)]
        assert isinstance(owner, nn.Linear)
        assert seen[0].shape == feature.shape


def test_a_batch_of_one_is_named_before_anything_is_trained(tmp_path):
    """Behind the maximum over points batch normalisation has one number of each cloud."""
    study = CloudStudy("smoke", store=Store(tmp_path / "store"), **TINY, batch_size=1)
    says = r"cannot learn from a batch of one sample .*batch_size"
    for training in (study.student("FC1"), study.head("FC1"), study.baseline()):
        with pytest.raises(ValueError, match=says):
            training.finish()
    model, path = study.build(**study.spec(0)), study.path("FC1")
    data = TensorData(study.x[:1], torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=says):
        distill.student(model, model, path, data, Schedule(1), folder=tmp_path / "own")
    with pytest.raises(ValueError, match=says):
        distill.train(
            model, data, Schedule(1), softened_output(), teacher=model, folder=tmp_path / "own"
        )
    assert not list(tmp_path.rglob("epoch-*"))


def test_who_learns_from_what(store):
    study = CloudStudy("smoke", store=store, **TINY)
    assert (len(study.train), len(study.share), len(study.test)) == (48, 24, 12)
    assert set(study.share.names) <= set(study.train.names)
    assert set(study.measured.names) <= set(study.share.names)
    assert study.foreground.sum(1).tolist() == [24] * 4


def test_entropy_is_that_of_coordinates_at_their_scale(store):
    study = CloudStudy("smoke", store=store, **TINY)
    found = measure.entropies(study, study.baseline(), "FC1", [-1])["entropy"]
    torch.testing.assert_close(found.mean(-1), torch.full((1, 4), Aligned().mean + math.log(0.4)))
    other = CloudStudy("smoke", store=store, scale=0.2, **TINY)
    shifted = measure.entropies(other, other.baseline(), "FC1", [-1])["entropy"]
    torch.testing.assert_close(shifted.mean(-1), found.mean(-1) - math.log(2))


@pytest.mark.parametrize("objective", [Aligned(), Converged(0.001)], ids=["aligned", "converged"])
def test_points_that_win_no_maximum_are_finite_and_discarded_most(store, objective):
    study = CloudStudy("smoke", store=store, **TINY)
    model = study.baseline().load().eval()
    x = study.x.clone().requires_grad_(True)
    feature = kpnb.features.capture(model, x, ["head.2"])["head.2"]
    rows = torch.stack(
        [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in feature.T]
    )
    unused = (rows == 0).all(0).all(-1)  # [B, n], without any code of the closed form
    assert 0 < unused.sum() < unused.numel()
    solved = kpnb.entropy(
        model, study.x, "head.2", units=kpnb.Points(), objective=objective, scale=0.4
    )
    assert solved.entropy.isfinite().all()
    for entropy, idle in zip(solved.entropy, unused, strict=True):
        torch.testing.assert_close(entropy[idle], entropy.max().expand(int(idle.sum())))
        assert (entropy[~idle] <= entropy.max()).all()


def test_a_network_that_is_dead_for_a_cloud_gives_nan_or_says_so(store):
    study = CloudStudy("smoke", store=store, **TINY)
    model = study.baseline().load()
    with torch.no_grad():
        model.head[1].bias.fill_(-1e3)
    options = {"units": kpnb.Points(), "scale": 0.4}
    assert kpnb.entropy(model, study.x, "head.2", dead="nan", **options).entropy.isnan().all()
    with pytest.raises(
        ValueError, match=r"samples 0, 1, 2, 3: the feature of layer 'head\.2' does not move"
    ):
        kpnb.entropy(model, study.x, "head.2", **options)


def test_settings_follow_network_and_overrides():
    assert CloudStudy.resolve("laptop").b == 0.5
    assert CloudStudy.resolve("laptop", network="dgcnn").b == 0.25
    assert CloudStudy.resolve("laptop", network="pointnet", b=0.3).b == 0.3
    assert CloudStudy.resolve("paper").background == 500
    with pytest.raises(ValueError, match="unknown network 'pointnet3'; did you mean 'pointnet"):
        CloudStudy("smoke", network="pointnet3")

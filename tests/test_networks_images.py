"""Image networks: torchvision's shapes at full size, layers where the table says, reproducible and side-effect free."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

from kpnb.networks.images import LAYERS, SMALLEST_INPUT, build, layer_path

SMALL = {"input_size": 64, "width": 0.0625, "hidden": 24}


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_is_torchvisions_at_full_size(name, monkeypatch):
    monkeypatch.setattr(nn.Module, "to_empty", lambda self, device: self)  # stay on the meta device: no 500 MB
    net = build(name, 1000)
    with torch.device("meta"):
        theirs = models.get_model(name)
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    assert str(net) == str(theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_where_the_table_says(name):
    net = build(name, 5, **SMALL).eval()
    seen, order = {}, []
    for layer in LAYERS[name]:
        module = net.get_submodule(layer_path(name, layer))
        module.register_forward_hook(lambda m, i, out, key=layer: seen.update({key: out.clone()}) or order.append(key))
    logits = net(torch.randn(2, 3, 64, 64))
    assert order == ["Conv", "FC1", "FC2", "FC3"]
    for layer in ("Conv", "FC1", "FC2"):
        assert isinstance(net.get_submodule(layer_path(name, layer)), nn.ReLU)
        assert seen[layer].min() >= 0
        assert seen[layer].max() > 0
    torch.testing.assert_close(seen["FC3"], logits, rtol=0, atol=0)
    assert seen["FC1"].shape == seen["FC2"].shape == (2, 24)
    assert seen["Conv"].shape[:2] == (2, 16 if name == "alexnet" else 32)  # 256 or 512 channels / 16
    features = list(net.features)
    at = features.index(net.get_submodule(layer_path(name, "Conv")))
    assert [type(m) for m in features[at + 1 :]] == [nn.MaxPool2d]  # the last pool, and nothing after it


@pytest.mark.parametrize("size", [63, 64, 95, 96, 128, 224, 227])
@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_pool_before_fc1_neither_shrinks_nor_blows_up(name, size):
    net = build(name, 3, input_size=size, width=0.05, hidden=8).eval()
    maps = net.features(torch.zeros(1, 3, size, size))
    assert net.avgpool(maps).shape == maps.shape
    assert net(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_pool_is_torchvisions_for_larger_images():
    assert build("vgg11", 3, input_size=448, width=0.05, hidden=8).avgpool.output_size == (7, 7)


@pytest.mark.parametrize(("name", "smallest"), [("alexnet", 63), ("vgg11", 32), ("vgg16_bn", 32)])
def test_smallest_size_is_exact(name, smallest):
    assert smallest in SMALLEST_INPUT.values()
    assert build(name, 3, input_size=smallest, width=0.05, hidden=8).eval()(torch.zeros(1, 3, smallest, smallest)).shape
    with pytest.raises(ValueError, match=f"input_size={smallest - 1} .*smallest is {smallest}"):
        build(name, 3, input_size=smallest - 1)
    with torch.device("meta"):
        theirs = models.get_model(name).eval()
    with pytest.raises(RuntimeError, match="too small"):  # torchvision's own network gives up there, too
        theirs.features(torch.zeros(1, 3, smallest - 1, smallest - 1, device="meta"))


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn"])
def test_seed_decides_and_global_random_numbers_are_untouched(name):
    before = torch.get_rng_state()
    one, same, other = (build(name, 3, **SMALL, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert all(value.isfinite().all() for value in one.values())


def test_initial_weights_have_hes_variance():
    net = build("vgg11", 12, input_size=64, width=0.5, hidden=256)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 50_000:
            fan_in = module.weight[0].numel()
            assert module.weight.var().item() == pytest.approx(2 / fan_in, rel=0.03)
            assert not module.bias.any()
    assert net.classifier[-1].weight.var().item() == pytest.approx(0.01 / 256, rel=0.1)


def test_dropout_and_batch_norm():
    net = build("vgg11_bn", 3, **SMALL, dropout=0.25)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    assert any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    with pytest.raises(ValueError, match="unknown network 'alexnet_bn'; did you mean 'alexnet'"):
        build("alexnet_bn", 3)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_file_round_trip(tmp_path, suffix):
    source = build("vgg11", 3, **SMALL, seed=5)
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(source.state_dict(), path)
    loaded, fresh = (build("vgg11", 3, **SMALL, seed=6, weights=w).state_dict() for w in (path, None))
    assert all(torch.equal(loaded[key], value) for key, value in source.state_dict().items())
    other = build("vgg11", 4, **SMALL, seed=6, weights=path).state_dict()  # another number of classes: FC3 is fresh
    assert torch.equal(other["classifier.3.weight"], loaded["classifier.3.weight"])
    assert other["classifier.6.weight"].shape == (4, 24)
    assert not torch.equal(fresh["classifier.3.weight"], loaded["classifier.3.weight"])


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(build("vgg11", 3, **SMALL).state_dict(), path)
    with pytest.raises(ValueError, match=r"(?s)does not fit.* classifier.0.weight: .*\[24, 128\].*\[30, 128\]"):
        build("vgg11", 3, **SMALL | {"hidden": 30}, weights=path)
    with pytest.raises(ValueError, match=r"(?s)another network.*Missing key.*features\.24\.weight"):
        build("vgg16", 3, **SMALL, weights=path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds a list, not a state dict"):
        build("vgg11", 3, **SMALL, weights=path)
    with pytest.raises(FileNotFoundError, match=r"absent\.pt does not exist"):
        build("vgg11", 3, **SMALL, weights=tmp_path / "absent.pt")


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors", "code.pt"])
def test_damaged_weights_file(tmp_path, name):
    path = tmp_path / name
    state = build("vgg11", 3, **SMALL).state_dict()
    if name == "code.pt":
        torch.save(nn.Linear(2, 2), path)  # a pickled module: loading it would run code
    else:
        (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{name} is damaged or holds more than tensors"):
        build("vgg11", 3, **SMALL, weights=path)


def test_torchvision_weights_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(RuntimeError, match=r"could not fetch vgg11 IMAGENET1K_V1 .*download https://.*weights="):
        build("vgg11", 3, **SMALL, weights="IMAGENET1K_V1")


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"unknown network 'vgg17'; did you mean .*'vgg16'"):
        build("vgg17", 3)
    with pytest.raises(ValueError, match="unknown layer of vgg11 'FC4'; did you mean 'FC"):
        layer_path("vgg11", "FC4")
    with pytest.raises(ValueError, match="unknown weights of alexnet 'IMAGENET1K'; did you mean 'IMAGENET1K_V1'"):
        build("alexnet", 3, **SMALL, weights="IMAGENET1K")


@pytest.mark.parametrize("bad", [{"width": 0}, {"hidden": 0}, {"dropout": 1.0}, {"num_classes": 0}])
def test_impossible_sizes(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        build("vgg11", **{"num_classes": 3, **SMALL, **bad})

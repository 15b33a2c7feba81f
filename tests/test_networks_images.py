"""Image networks: torchvision's shapes at full size, layers where the table says, reproducible and
side-effect free.
"""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision import models

import kpnb
from kpnb.features import capture
from kpnb_book.networks.images import LAYERS, SMALLEST_INPUT, TRANSFORMERS, build, layer_path

SMALL = {"input_size": 64, "width": 0.0625, "hidden": 24}
RESNETS = ("resnet50", "resnet101", "resnet152")
CONVOLUTIONAL = [name for name in LAYERS if name not in TRANSFORMERS]
PLAIN = [name for name in CONVOLUTIONAL if name not in RESNETS]


@pytest.mark.parametrize("name", PLAIN)
def test_state_dict_is_torchvisions_at_full_size(name, monkeypatch):
    monkeypatch.setattr(
        nn.Module, "to_empty", lambda self, device: self
    )  # stay on the meta device: no 500 MB
    net = build(name, 1000)
    with torch.device("meta"):
        theirs = models.get_model(name)
    assert {k: v.shape for k, v in net.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    assert str(net) == str(theirs)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_layers_are_where_the_table_says(name):
    net = build(name, 5, **SMALL).eval()
    seen, order = {}, []
    for layer in LAYERS[name]:
        module = net.get_submodule(layer_path(name, layer))
        module.register_forward_hook(
            lambda m, i, out, key=layer: seen.update({key: out.clone()}) or order.append(key)
        )
    logits = net(torch.randn(2, 3, 64, 64))
    assert order == ["Conv", "FC1", "FC2", "FC3"]
    for layer in ("Conv", "FC1", "FC2"):
        assert isinstance(net.get_submodule(layer_path(name, layer)), nn.ReLU)
        assert seen[layer].min() >= 0
        assert seen[layer].max() > 0
    torch.testing.assert_close(seen["FC3"], logits, rtol=0, atol=0)
    assert seen["FC1"].shape == seen["FC2"].shape == (2, 24)
    assert seen["Conv"].shape[:2] == (
        2,
        16 if name == "alexnet" else 32,
    )  # 256 or 512 channels / 16
    features = list(net.avgpool if name in RESNETS else net.features)
    at = features.index(net.get_submodule(layer_path(name, "Conv")))
    pool = nn.AdaptiveAvgPool2d if name in RESNETS else nn.MaxPool2d
    assert [type(m) for m in features[at + 1 :]] == [pool]  # the last pool, and nothing after it


@pytest.mark.parametrize("name", RESNETS)
def test_resnet_is_torchvisions_with_two_convolutions_and_two_linear_layers_more(name, monkeypatch):
    monkeypatch.setattr(nn.Module, "to_empty", lambda self, device: self)  # stay on the meta device
    ours = {key: tuple(value.shape) for key, value in build(name, 200).state_dict().items()}
    with torch.device("meta"):
        theirs = {
            key: tuple(value.shape) for key, value in models.get_model(name).state_dict().items()
        }
    trunk = {key: shape for key, shape in theirs.items() if not key.startswith("fc.")}
    assert trunk.items() <= ours.items()
    assert {
        key: shape for key, shape in ours.items() if key not in trunk and key.endswith("weight")
    } == {
        "avgpool.0.weight": (512, 2048, 3, 3),
        "avgpool.2.weight": (512, 512, 3, 3),
        "fc.0.weight": (4096, 512),
        "fc.3.weight": (4096, 4096),
        "fc.6.weight": (200, 4096),
    }


def test_resnet_at_half_width_is_the_same_shape_halved():
    whole, half = (
        dict(build("resnet50", 3, hidden=8, width=width).named_parameters())
        for width in (0.25, 0.125)
    )
    for name, parameter in half.items():
        if parameter.dim() == 4:
            out, into = (size // 2 if size != 3 else 3 for size in whole[name].shape[:2])
            assert parameter.shape[:2] == (out, into)


def test_weights_of_the_original_resnet_load_into_the_trunk(tmp_path):
    path = tmp_path / "resnet50.pt"
    small = build("resnet50", 3, **SMALL, seed=4)
    original = {
        key: v for key, v in small.state_dict().items() if not key.startswith(("avgpool.", "fc."))
    }
    original |= {"fc.weight": torch.zeros(1000, 128), "fc.bias": torch.zeros(1000)}
    torch.save(original, path)
    loaded, fresh = (
        build("resnet50", 7, **SMALL, seed=6, weights=w).state_dict() for w in (path, None)
    )
    for key, value in loaded.items():
        source = fresh if key.startswith(("avgpool.", "fc.")) else original
        assert torch.equal(value, source[key])
    assert not torch.equal(loaded["layer1.0.conv1.weight"], fresh["layer1.0.conv1.weight"])
    torch.save(
        small.state_dict(), path
    )  # one with the added layers gives them as well, but for FC3 of other classes
    again = build("resnet50", 7, **SMALL, seed=6, weights=path).state_dict()
    assert all(
        torch.equal(again[key], small.state_dict()[key])
        for key in again
        if not key.startswith("fc.6.")
    )
    assert torch.equal(again["fc.6.weight"], fresh["fc.6.weight"])
    del original["layer4.2.bn3.weight"]
    torch.save(original, path)
    with pytest.raises(ValueError, match=r"(?s)does not fit.*missing: .*layer4.2.bn3.weight"):
        build("resnet50", 7, **SMALL, weights=path)


def test_resnet_forward_is_torchvisions_trunk_and_the_added_layers():
    net = build("resnet50", 3, **SMALL).eval()
    theirs = models.resnet50(num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        y = net.maxpool(torch.relu(net.bn1(net.conv1(x))))
        y = net.layer4(net.layer3(net.layer2(net.layer1(y))))
        first, _, second, *_ = net.avgpool
        y = torch.relu(second(torch.relu(first(y)))).mean((2, 3))
        y = net.fc[6](torch.relu(net.fc[3](torch.relu(net.fc[0](y)))))
        torch.testing.assert_close(net(x), y)
    assert [type(m) for m in net.layer4.modules()] == [type(m) for m in theirs.layer4.modules()]


@pytest.mark.parametrize("layer", ["Conv", "FC1", "FC2", "FC3"])
def test_a_training_step_for_a_layer_of_resnet_changes_what_it_depends_on(layer):
    net = build("resnet50", 3, **SMALL, dropout=0.0)
    x, path = torch.randn(4, 3, 64, 64), layer_path("resnet50", layer)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    capture(net, x, [path])[path].square().sum().sqrt().backward()
    optimiser.step()
    moved = {
        name.rsplit(".", 1)[0]
        for name, p in net.named_parameters()
        if not torch.equal(p, before[name])
    }
    added = ["avgpool.0", "avgpool.2", "fc.0", "fc.3", "fc.6"]
    below = {"Conv": 2, "FC1": 3, "FC2": 4, "FC3": 5}[layer]
    assert [name for name in added if name in moved] == added[:below]
    assert {"conv1", "layer1.0.conv1", "layer4.2.conv3"} <= moved


def test_entropy_at_all_four_layers_of_a_resnet():
    net, x = build("resnet50", 3, **SMALL), torch.randn(2, 3, 64, 64)
    paths = [layer_path("resnet50", layer) for layer in ("Conv", "FC1", "FC2", "FC3")]
    found = kpnb.entropy(net, x, paths, units=kpnb.ImageGrid(4))
    for path in paths:
        assert found[path].entropy.shape == (2, 16)
        assert found[path].entropy.isfinite().all()
        torch.testing.assert_close(
            found[path].entropy.mean(-1), torch.full((2,), -2.8), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("size", [63, 64, 95, 96, 128, 224, 227])
@pytest.mark.parametrize("name", ["alexnet", "vgg11"])
def test_pool_before_fc1_neither_shrinks_nor_blows_up(name, size):
    net = build(name, 3, input_size=size, width=0.05, hidden=8).eval()
    maps = net.features(torch.zeros(1, 3, size, size))
    assert net.avgpool(maps).shape == maps.shape
    assert net(torch.zeros(1, 3, size, size)).shape == (1, 3)


def test_pool_is_torchvisions_for_larger_images():
    assert build("vgg11", 3, input_size=448, width=0.05, hidden=8).avgpool.output_size == (7, 7)


def test_resnet_takes_any_size():
    assert build("resnet50", 3, **SMALL | {"input_size": 1}).eval()(
        torch.zeros(1, 3, 1, 1)
    ).shape == (1, 3)
    with pytest.raises(ValueError, match=r"input_size=0 .*smallest is 1"):
        build("resnet50", 3, input_size=0)


@pytest.mark.parametrize(("name", "smallest"), [("alexnet", 63), ("vgg11", 32), ("vgg16_bn", 32)])
def test_smallest_size_is_exact(name, smallest):
    assert smallest in SMALLEST_INPUT.values()
    assert (
        build(name, 3, input_size=smallest, width=0.05, hidden=8)
        .eval()(torch.zeros(1, 3, smallest, smallest))
        .shape
    )
    with pytest.raises(ValueError, match=f"input_size={smallest - 1} .*smallest is {smallest}"):
        build(name, 3, input_size=smallest - 1)
    with torch.device("meta"):
        theirs = models.get_model(name).eval()
    with pytest.raises(
        RuntimeError, match="too small"
    ):  # torchvision's own network gives up there, too
        theirs.features(torch.zeros(1, 3, smallest - 1, smallest - 1, device="meta"))


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn", "resnet50"])
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
    loaded, fresh = (
        build("vgg11", 3, **SMALL, seed=6, weights=w).state_dict() for w in (path, None)
    )
    assert all(torch.equal(loaded[key], value) for key, value in source.state_dict().items())
    other = build(
        "vgg11", 4, **SMALL, seed=6, weights=path
    ).state_dict()  # another number of classes: FC3 is fresh
    assert torch.equal(other["classifier.3.weight"], loaded["classifier.3.weight"])
    assert other["classifier.6.weight"].shape == (4, 24)
    assert not torch.equal(fresh["classifier.3.weight"], loaded["classifier.3.weight"])


@pytest.mark.parametrize(
    ("name", "entry", "prefix"),
    [
        ("vgg11", "state_dict", "model."),
        ("vgg11", "model", "module."),
        ("vgg11", "net", "_orig_mod."),
        ("resnet50", "state_dict", "net.module."),
    ],
)
def test_wrapped_and_prefixed_weights_files(tmp_path, name, entry, prefix):
    source = build(name, 3, **SMALL, seed=5)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    torch.save({entry: state, "epoch": 3}, tmp_path / "teacher.pt")
    loaded = build(name, 3, **SMALL, seed=6, weights=tmp_path / "teacher.pt").state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in source.state_dict().items())
    fresh = build(name, 4, **SMALL, seed=6, weights=tmp_path / "teacher.pt").state_dict()
    assert all(torch.equal(fresh[key], loaded[key]) for key in fresh if ".6." not in key)


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(build("vgg11", 3, **SMALL).state_dict(), path)
    with pytest.raises(
        ValueError, match=r"(?s)does not fit.* classifier.0.weight is \[24, 128\].*\[30, 128\]"
    ):
        build("vgg11", 3, **SMALL | {"hidden": 30}, weights=path)
    with pytest.raises(ValueError, match=r"(?s)another network.*missing: .*features\.24\.weight"):
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
    with pytest.raises(
        RuntimeError, match=r"could not fetch vgg11 IMAGENET1K_V1 .*download https://.*weights="
    ):
        build("vgg11", 3, **SMALL, weights="IMAGENET1K_V1")


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"unknown network 'vgg17'; did you mean .*'vgg16'"):
        build("vgg17", 3)
    with pytest.raises(ValueError, match="unknown layer of vgg11 'FC4'; did you mean 'FC"):
        layer_path("vgg11", "FC4")
    with pytest.raises(
        ValueError, match="unknown weights of alexnet 'IMAGENET1K'; did you mean 'IMAGENET1K_V1'"
    ):
        build("alexnet", 3, **SMALL, weights="IMAGENET1K")


@pytest.mark.parametrize("bad", [{"width": 0}, {"hidden": 0}, {"dropout": 1.0}, {"num_classes": 0}])
def test_impossible_sizes(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        build("vgg11", **{"num_classes": 3, **SMALL, **bad})

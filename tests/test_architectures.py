"""Networks of other people's packages, with random weights: entropy against their full Jacobian.

The oracle uses nothing of kpnb: a hook of its own, autograd's Jacobian, and sums over the units.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torchvision import models

import kpnb
from kpnb import ClosedForm, ImageGrid, Regions, Tokens
from kpnb.energy import unit_energies
from kpnb.features import Network
from kpnb.inputs import read_inputs
from kpnb.objectives import Aligned, entropy_of, solve
from kpnb.perturb import Perturbation

EXACT = ClosedForm(rank=None)


@dataclass
class Case:
    """A network, its input, how kpnb is asked, and the oracle's side: module, run, part of output,
    and the number of each element's unit, ``[N, ...]``.
    """

    model: nn.Module
    x: Any
    layer: str
    module: nn.Module
    labels: Tensor
    options: dict[str, Any]
    run: int = 0
    part: Callable[[Any], Tensor] = lambda output: output
    samples: int = 0  # dimension of the feature
    call: Callable[[nn.Module, Any], Any] = kpnb.features.call


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def patches(size: int, patch: int) -> Tensor:
    """The number of each pixel's patch, ``[size, size]``, row by row."""
    place = torch.arange(size) // patch
    return place[:, None] * (size // patch) + place


def resnet() -> Case:
    block = models.resnet.BasicBlock
    model = seeded(lambda: models.ResNet(block, [1, 1, 1, 1], num_classes=4))
    with torch.no_grad():  # most of its 512 channels do not move, so they cost nothing
        model.layer4[0].bn2.bias[50:] = -100
    units = patches(16, 4)
    return Case(
        model,
        normal(2, 3, 16, 16),
        "layer4.0.relu:1",  # the block runs its only ReLU twice
        model.layer4[0].relu,
        units.expand(2, 3, 16, 16),
        {"units": ImageGrid(4)},
        run=1,
    )


def vision_transformer() -> Case:
    size = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 2}
    make = lambda: models.VisionTransformer(**size, hidden_dim=16, mlp_dim=24)  # noqa: E731
    model = seeded(make)
    nn.init.normal_(model.heads.head.weight)  # zeros, as torchvision starts it
    units = patches(32, 8)
    return Case(
        model,
        normal(2, 3, 32, 32),
        "encoder.ln",
        model.encoder.ln,
        units.expand(2, 3, 32, 32),
        {"units": Regions(units)},
    )


def convnext() -> Case:
    block = models.convnext.CNBlockConfig
    setting = [block(8, 16, 1), block(16, 24, 1), block(24, None, 1)]
    model = seeded(lambda: models.ConvNeXt(setting, num_classes=4, layer_scale=0.5))
    units = patches(32, 8)
    return Case(
        model,
        normal(2, 3, 32, 32),
        "avgpool",
        model.avgpool,
        units.expand(2, 3, 32, 32),
        {"units": ImageGrid(4)},
    )


IDS = torch.tensor([[2, 11, 7, 19, 3, 0, 0], [2, 5, 23, 9, 14, 8, 3]])
ATTENDED = (IDS > 0).long()
WORDS = (IDS > 3).bool()  # neither padding nor special


def _tokens(width: int) -> Tensor:
    labels = torch.arange(7).expand(2, 7).where(WORDS, -1)
    return labels[..., None].expand(2, 7, width)


def bert() -> Case:
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=30, intermediate_size=24, **size)
    model = seeded(lambda: transformers.BertModel(config))
    return Case(
        model,
        kpnb.embedded(model, IDS, ATTENDED, token_type_ids=torch.zeros_like(IDS)),
        "pooler",
        model.pooler,
        _tokens(16),
        {"units": Tokens(WORDS), "perturb": "inputs_embeds"},
    )


def bert_itself() -> Case:
    """The model's own output: two tensors, so one has to be chosen."""
    case = bert()
    case.layer, case.module = "", case.model
    case.options["select"], case.part = "last_hidden_state", lambda output: output[0]
    return case


def hugging_face_vit() -> Case:
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.ViTConfig(image_size=32, patch_size=8, intermediate_size=24, **size)
    model = seeded(lambda: transformers.ViTModel(config))
    units = patches(32, 8)
    return Case(
        model,
        {"pixel_values": normal(2, 3, 32, 32)},
        "layernorm",
        model.layernorm,
        units.expand(2, 3, 32, 32),
        {"units": Regions(units), "perturb": "pixel_values"},
    )


def decoder() -> Case:
    config = transformers.GPT2Config(vocab_size=30, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    model = seeded(lambda: transformers.GPT2LMHeadModel(config))
    x = kpnb.embedded(model, IDS, ATTENDED) | {"use_cache": False}
    block = model.transformer.h[1]
    return Case(
        model,
        x,
        "transformer.h.1",
        block,
        _tokens(16),
        {"units": Tokens(WORDS), "perturb": "inputs_embeds"},
        part=lambda output: output[0] if isinstance(output, tuple) else output,
    )


class Sequence(nn.Module):
    """Batches first outside, time first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 8, num_layers=2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.lstm(x.transpose(0, 1))
        return self.head(states[-1])


@pytest.mark.parametrize("training", [True, False])
def test_recurrent_layers_have_a_derivative_on_a_card_too(training):
    """cuDNN has none in evaluation mode; in training mode their dropout must not be felt."""
    model = seeded(Sequence).train(training)
    plain = kpnb.entropy(model, normal(2, 5, 6), "lstm", units=Tokens(), batch_dim=1)
    model.lstm.dropout, seen = 0.5, []
    model.lstm.register_forward_pre_hook(
        lambda layer, _: seen.append((layer.training, layer.dropout))
    )
    found = kpnb.entropy(model, normal(2, 5, 6), "lstm", units=Tokens(), batch_dim=1)
    assert set(seen) == {(True, 0.0)}
    assert (model.lstm.training, model.lstm.dropout) == (training, 0.5)
    assert torch.equal(found.entropy, plain.entropy)


def lstm() -> Case:
    model = seeded(Sequence)
    labels = torch.arange(5)[:, None].expand(2, 5, 6)
    how = {"units": Tokens(), "batch_dim": 1}
    x = normal(2, 5, 6)
    return Case(model, x, "lstm", model.lstm, labels, how, part=lambda output: output[0], samples=1)


def lstm_hidden_state() -> Case:
    case = lstm()
    case.options["select"], case.part = (1, 0), lambda output: output[1][0]
    return case


def signal() -> Case:
    layers = [nn.Conv1d(2, 4, 5, padding=2), nn.GELU(), nn.AdaptiveAvgPool1d(3), nn.Flatten()]
    model = seeded(lambda: nn.Sequential(*layers, nn.Linear(12, 3)))
    windows = torch.arange(24) // 6
    x = normal(2, 2, 24)
    return Case(model, x, "3", model[3], windows.expand(2, 2, 24), {"units": Regions(windows)})


class TwoInputs(nn.Module):
    """An image, and numbers about it that are not perturbed; called by position."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.numbers = nn.Linear(48, 10), nn.Linear(3, 10)
        self.join, self.head = nn.Tanh(), nn.Linear(10, 2)

    def forward(self, image: Tensor, numbers: Tensor) -> dict[str, Tensor]:
        joined = self.join(self.image(image.flatten(1)) * self.numbers(numbers))
        return {"logits": self.head(joined)}


def two_inputs() -> Case:
    model = seeded(TwoInputs)
    x = {"image": normal(2, 3, 4, 4), "numbers": normal(2, 3, seed=3)}
    forward = lambda model, x: model(x["image"], x["numbers"])  # noqa: E731
    how = {"units": ImageGrid(2), "perturb": "image", "forward": forward}
    units = patches(4, 2).expand(2, 3, 4, 4)
    return Case(model, x, "join", model.join, units, how, call=forward)


CASES = [
    resnet,
    vision_transformer,
    convnext,
    bert,
    bert_itself,
    hugging_face_vit,
    decoder,
    lstm,
    lstm_hidden_state,
    signal,
    two_inputs,
]


def energies_by_hand(case: Case) -> Tensor:
    """Energies ``[N, n]`` from the Jacobian of one sample after another; NaN for units it lacks."""
    name = case.options.get("perturb")
    whole = case.x[name] if name else case.x
    units = case.options["units"].count(whole)
    rows = []
    for sample in range(len(whole)):

        def feature(one: Tensor, sample: int = sample) -> Tensor:
            x = one[None]
            if name:
                rest = {
                    k: v[sample : sample + 1] if isinstance(v, Tensor) else v
                    for k, v in case.x.items()
                }
                x = rest | {name: x}
            kept = []
            with case.module.register_forward_hook(lambda _m, _a, out: kept.append(case.part(out))):
                case.call(case.model, x)
            return kept[case.run].movedim(case.samples, 0)[0].flatten()

        jacobian = torch.autograd.functional.jacobian(feature, whole[sample])
        square = jacobian.square().sum(0).flatten()
        labels = case.labels[sample].flatten()
        rows.append([square[labels == unit].sum() for unit in range(units)])
        for unit in range(units):
            if not (labels == unit).any():
                rows[-1][unit] = torch.tensor(torch.nan, dtype=torch.float64)
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("make", CASES)
def test_energies_are_the_full_jacobian(make):
    case = make()
    options = dict(case.options)
    units, perturb = options.pop("units"), options.pop("perturb", None)
    network, inputs = Network(case.model, **options), read_inputs(case.model, case.x, perturb)
    found = unit_energies(Perturbation(network, inputs, units), [case.layer], EXACT)[case.layer]
    with torch.random.fork_rng():
        wanted = energies_by_hand(case)
    torch.testing.assert_close(found.energy, wanted, rtol=1e-8, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("make", CASES)
def test_sketch_is_near_and_company_changes_nothing(make):
    case = make()
    exact = kpnb.entropy(case.model, case.x, case.layer, solver=EXACT, **case.options)
    sketch = kpnb.entropy(case.model, case.x, case.layer, **case.options)
    one = kpnb.entropy(case.model, case.x, case.layer, max_batch=1, solver=EXACT, **case.options)
    torch.testing.assert_close(one.entropy, exact.entropy, rtol=1e-6, atol=1e-6, equal_nan=True)
    assert (sketch.entropy - exact.entropy).abs().nanmean() < 0.15
    assert torch.allclose(exact.entropy.nanmean(-1), torch.tensor(-2.8, dtype=torch.float64))


def test_kappa_of_other_peoples_networks():
    """Where the prediction is linear in the feature, kappa is the norm of its weight."""
    case = two_inputs()
    found = kpnb.entropy(case.model, case.x, case.layer, **case.options)
    bound = kpnb.lipschitz(case.model, case.x, case.layer, found.sigma, **case.options)
    norm = torch.linalg.matrix_norm(case.model.head.weight.detach(), 2)
    assert torch.allclose(bound.kappa, norm.expand(2))
    assert (bound.observed <= bound.kappa * (1 + 1e-9)).all()
    case = lstm()  # the head reads the last state alone
    found = kpnb.entropy(case.model, case.x, case.layer, **case.options)
    bound = kpnb.lipschitz(case.model, case.x, case.layer, found.sigma, **case.options)
    norm = torch.linalg.matrix_norm(case.model.head.weight.detach(), 2)
    assert torch.allclose(bound.kappa, norm.expand(2))
    case = decoder()
    select = {"": "logits", case.layer: 0 if isinstance(_output(case), tuple) else None}
    found = kpnb.entropy(case.model, case.x, case.layer, **case.options)
    bound = kpnb.lipschitz(
        case.model, case.x, case.layer, found.sigma, select=select, samples=2, **case.options
    )
    assert (bound.observed <= bound.kappa * 1.1).all()


def _output(case: Case) -> Any:
    kept = []
    with case.module.register_forward_hook(lambda _m, _a, out: kept.append(out)):
        case.call(case.model, case.x)
    return kept[0]


def test_a_run_of_a_shared_module_is_another_feature():
    case = resnet()
    found = kpnb.entropy(case.model, case.x, ["layer4.0.relu:0", "layer4.0.relu:1"], **case.options)
    one, two = found.values()
    assert (one.entropy - two.entropy).abs().max() > 1e-3


# ------------------------------------------------------------- stock networks, at their own size

STOCK = {"resnet50": "fc", "convnext_tiny": "classifier", "vit_b_16": "heads"}


@lru_cache(maxsize=1)
def stock(name: str) -> nn.Module:
    """torchvision's network for 224 pixels and two classes, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.get_model(name, weights=None, num_classes=2).eval()
        if name == "vit_b_16":
            nn.init.normal_(model.heads.head.weight)  # zeros, as torchvision starts it
    return model


@pytest.mark.parametrize("name", STOCK)
def test_stock_networks_at_their_own_size(name):
    """With two logits the defaults follow every direction of the feature: H is that of autograd's
    gradients, summed over patches of 16 pixels, and nothing is estimated.
    """
    model, x = stock(name), normal(1, 3, 224, 224).float()
    quick = ClosedForm(check=1)  # for the linearity, which is not asked for
    found = kpnb.entropy(model, x, STOCK[name], units=ImageGrid(14), solver=quick, check=False)

    leaf = x.clone().requires_grad_()
    rows = [torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in model(leaf)[0]]
    by_pixel = torch.stack(rows).double().square().sum((0, 1, 2))
    energy = by_pixel.unfold(0, 16, 16).unfold(1, 16, 16).sum((-2, -1)).reshape(1, -1)

    sigma, _ = solve(energy, torch.zeros_like(energy), Aligned(), 0.01)
    torch.testing.assert_close(found.entropy.double(), entropy_of(sigma), rtol=0, atol=1e-3)
    assert found.entropy.std() > 0.01  # patches do differ
    torch.testing.assert_close(found.delta_f2.double(), 1e-4 * energy.sum(1), rtol=1e-3, atol=0)
    assert (found.rank == 2).all()
    assert (found.error == 0).all()


def test_the_patches_of_a_stock_vision_transformer_are_embedded_alike():
    """Where a patch becomes a vector, J is the same matrix for each: all have one entropy, -2.8.
    The sketch of these 150,528 numbers says itself how far it is from that.
    """
    model, x = stock("vit_b_16"), normal(1, 3, 224, 224).float()
    found = kpnb.entropy(model, x, "conv_proj", units=ImageGrid(14))
    wanted = 1e-4 * 196 * model.conv_proj.weight.double().square().sum()
    torch.testing.assert_close(found.delta_f2[0].double(), wanted, rtol=0.02, atol=0)
    off = (found.entropy + 2.8) / found.error
    assert off.square().mean().sqrt() < 2
    assert found.error.max() < 0.2
    assert torch.allclose(found.linearity, torch.ones(1), atol=0.05)

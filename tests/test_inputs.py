"""What a network may be called with, and what its layers may return."""

import re
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset
from transformers.modeling_outputs import BaseModelOutputWithPooling

import kpnb
from kpnb import (
    ClosedForm,
    Converged,
    ImageGrid,
    Regions,
    Stochastic,
    Tokens,
    entropies,
    entropy,
)
from kpnb._outputs import replaced
from kpnb._precision import widest
from kpnb.features import capture, layer_at
from kpnb.schedule import Schedule
from tests.models import images, small_net

GRID = ImageGrid(4)
Named = namedtuple("Named", ["first", "second"])


class Returning(nn.Module):
    """A layer whose output is wrapped by ``wrap``, which gets two tensors; the head unwraps it."""

    def __init__(self, wrap, unwrap) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.head = (nn.Linear(*s) for s in ((432, 9), (9, 7), (9, 3)))
        self.block, self.unwrap = Block(self.one, self.two, wrap), unwrap
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.unwrap(self.block(x.flatten(1))))


class Block(nn.Module):
    def __init__(self, one: nn.Module, two: nn.Module, wrap) -> None:
        super().__init__()
        self.one, self.two, self.wrap = one, two, wrap

    def forward(self, x: Tensor) -> Any:
        h = self.one(x).tanh()
        return self.wrap(h, self.two(h))


def _output(h: Tensor, p: Tensor) -> BaseModelOutputWithPooling:
    return BaseModelOutputWithPooling(last_hidden_state=h, pooler_output=p)


# how a layer returns two tensors; how the first is had; what has to be said to have it
FORMS = {
    "tuple": (lambda h, p: (h, p), lambda out: out[0], None),
    "list": (lambda h, p: [h, p], lambda out: out[0], None),
    "named tuple": (lambda h, p: Named(h, p), lambda out: out.first, None),
    "nested": (lambda h, p: ((p, h), "x"), lambda out: out[0][1], (0, 1)),
    "dict": (lambda h, p: {"h": h, "p": p}, lambda out: out["h"], "h"),
    "dict of one": (lambda h, p: {"h": h, "how": "so"}, lambda out: out["h"], None),
    "model output": (_output, lambda out: out.last_hidden_state, "last_hidden_state"),
}


@pytest.mark.parametrize("form", FORMS)
def test_layers_return_what_they_like(form):
    wrap, unwrap, select = FORMS[form]
    model, x = Returning(wrap, unwrap), images()
    plain = Returning(lambda h, p: h, lambda out: out)
    found = entropy(model, x, "block", units=GRID, select=select)
    wanted = entropy(plain, x, "block", units=GRID)
    assert torch.equal(found.entropy, wanted.entropy)
    both = entropy(model, x, ["block", "one"], units=GRID, select={"block": select})
    assert torch.equal(both["block"].entropy, wanted.entropy)
    one, two = (
        kpnb.lipschitz(m, x, "block", wanted.sigma, units=GRID, select=s)
        for m, s in ((model, {"block": select}), (plain, None))
    )
    assert torch.equal(one.kappa, two.kappa)
    assert torch.allclose(one.kappa, torch.linalg.matrix_norm(model.head.weight.detach(), 2))


def test_ambiguous_outputs_say_what_is_there():
    wrap, unwrap, _ = FORMS["dict"]
    model, x = Returning(wrap, unwrap), images()
    message = r"dict of 'h': \[3, 9\], 'p': \[3, 7\]: choose with select"
    with pytest.raises(TypeError, match=message):
        entropy(model, x, "block", units=GRID)
    with pytest.raises(TypeError, match=r"'h': .*, which has no 'q'"):
        entropy(model, x, "block", units=GRID, select="q")
    nothing = Returning(lambda h, p: {"loss": None}, lambda out: out)
    with pytest.raises(TypeError, match=r"dict of 'loss': NoneType: choose a layer inside it"):
        entropy(nothing, x, "block", units=GRID)
    assert torch.equal(
        capture(model, x, ["block"], select="p")["block"], model.block(x.flatten(1))["p"]
    )


def test_replacing_a_part_leaves_the_original_as_it_was():
    old, new = torch.zeros(2), torch.ones(2)
    for output, key in (
        ((old, old), (1,)),
        (Named(old, old), (0,)),
        ({"a": old, "b": (old, [old])}, ("b", 1, 0)),
        (_output(old, old), ("pooler_output",)),
    ):
        changed = replaced(output, key, new)
        assert type(changed) is type(output)
        one, two = changed, output
        for step in key:
            one, two = one[step], two[step]
        assert one is new
        assert two is old
    assert changed.pooler_output is new


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.TransformerEncoderLayer(6, 2, 8), nn.Linear(6, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x.transpose(0, 1)).mean(0))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_sequence_first_layers(count):
    """Also where there are as many samples as positions, so that sizes alone tell nothing."""
    model, x = TimeFirst(), torch.randn(count, 5, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"returns \[5, 3, 6\] for 3 samples.*pass batch_dim=1"):
        entropy(model, x, "layer", units=Tokens())
    found = entropy(model, x, "layer", units=Tokens(), batch_dim=1)
    alone = entropy(model, x[:1], ["layer", "head"], units=Tokens(), batch_dim={"layer": 1})
    assert torch.allclose(found.entropy[:1], alone["layer"].entropy, atol=1e-9)


# ------------------------------------------------------------------------------------------- inputs


@dataclass
class Asked(nn.Module):
    """A model with an image, a weight for each sample and a temperature for all of them."""

    def __post_init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.f, self.g = nn.Linear(432, 8), nn.Linear(8, 3)
        self.double()

    __hash__ = object.__hash__

    def forward(self, image: Tensor, weight: Tensor, temperature: float = 1.0) -> Tensor:
        return self.g(self.f(image.flatten(1) * weight) / temperature)


def _asked(count: int = 5) -> dict[str, Any]:
    weight = torch.rand(count, 432, generator=torch.Generator().manual_seed(2)).double() + 0.1
    return {"image": images(count), "weight": weight, "temperature": 0.5}


@pytest.mark.parametrize("solver", [ClosedForm(rank=None), Stochastic(steps=3, samples=8)])
def test_the_others_go_along_sample_by_sample(solver):
    """Against each sample alone, and against a model that has the weights built in."""
    model, x = Asked(), _asked()
    how = {"units": GRID, "solver": solver, "perturb": "image"}
    together = entropy(model, x, "f", max_batch=4, **how)
    for sample in range(5):
        rows = slice(sample, sample + 1)
        one = x | {"image": x["image"][rows], "weight": x["weight"][rows]}
        alone = entropy(model, one, "f", **how).entropy
        assert torch.allclose(together.entropy[rows], alone, atol=1e-6)
        if isinstance(solver, ClosedForm):
            jacobian = model.f.weight.detach() * x["weight"][rows]
            assert torch.allclose(jacobian.square().sum() * 1e-4, together.delta_f2[sample])


def test_a_forward_of_ones_own():
    model, x = Asked(), _asked()
    wanted = entropy(model, x, "f", units=GRID, perturb="image").entropy
    by_position = entropy(
        model,
        x,
        "f",
        units=GRID,
        perturb="image",
        forward=lambda model, x: model(x["image"], x["weight"], temperature=x["temperature"]),
    ).entropy
    assert torch.equal(by_position, wanted)
    weight, half = x["weight"][:1], 0.5
    alone = entropy(
        model,
        x["image"][:1],
        "f",
        units=GRID,
        forward=lambda model, image: model(image, weight, half),
    ).entropy
    assert torch.allclose(alone, wanted[:1])


def test_arrays_are_taken_to_the_model():
    model, x = small_net().float(), images()
    wanted = entropy(model, x.float(), "8", units=GRID).entropy
    assert torch.equal(entropy(model, x.numpy(), "8", units=GRID).entropy, wanted)
    both = {key: v.numpy() if isinstance(v, Tensor) else v for key, v in _asked().items()}
    found = entropy(Asked(), both, "f", units=GRID, perturb="image").entropy
    assert torch.equal(found, entropy(Asked(), _asked(), "f", units=GRID, perturb="image").entropy)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        ([images()], {}, TypeError, r"got list\. Several inputs are a mapping .*kpnb\.entropies"),
        (DataLoader(images()), {}, TypeError, r"got DataLoader.*kpnb\.entropies"),
        (images().long()[:, 0, 0], {}, ValueError, "Integers cannot be perturbed.*kpnb.embedded"),
        (np.zeros((2, 3, 12, 12), int), {}, ValueError, r"values are converted: x\.float\(\), sc"),
        (_asked(), {}, ValueError, "'image', 'weight', 'temperature': say .* perturb='image'"),
        (
            _asked(),
            {"perturb": "imaeg"},
            LookupError,
            "unknown input 'imaeg'; did you mean 'image'",
        ),
        (_asked(), {"perturb": "temperature"}, TypeError, "got float"),
        (images(), {"perturb": "image"}, ValueError, "needs a mapping of tensors; got Tensor"),
    ],
)
def test_other_inputs_are_named(x, options, error, message):
    with pytest.raises(error, match=message):
        entropy(Asked(), x, "f", units=GRID, **options)


class Odd:
    """Arrays that PyTorch does not take as they are."""

    @staticmethod
    def read_only(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x.setflags(write=False)
        return x

    @staticmethod
    def mirrored(x: np.ndarray) -> np.ndarray:
        return x[:, :, ::-1].copy()[:, :, ::-1]

    @staticmethod
    def big_endian(x: np.ndarray) -> np.ndarray:
        return x.astype(">f8")

    @staticmethod
    def columns_first(x: np.ndarray) -> np.ndarray:
        return np.asfortranarray(x)


@pytest.mark.parametrize("form", ["read_only", "mirrored", "big_endian", "columns_first"])
def test_arrays_of_every_kind_are_taken(form):
    model, x = small_net().double(), images()
    array = getattr(Odd, form)(x.numpy())
    wanted = entropy(model, x, "8", units=GRID)
    found = entropy(model, array, "8", units=GRID)
    assert torch.equal(found.entropy, wanted.entropy)
    assert torch.equal(capture(model, array, "8")["8"], capture(model, x, ["8"])["8"])
    for sigma in (wanted.sigma.numpy(), wanted.sigma.tolist()):
        one, two = (kpnb.lipschitz(model, x, "8", s, units=GRID) for s in (sigma, wanted.sigma))
        assert torch.equal(one.kappa, two.kappa)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (images().float(), ValueError, "computes in torch.float64, the input is torch.float32"),
        (images().half(), ValueError, r"the input is torch.float16: convert one, .*x\.to\("),
        (images() + 0j, ValueError, "torch.complex128 .*view_as_real"),
        (images() > 0, ValueError, "floating-point batch .* torch.bool"),
        (images().to("meta"), ValueError, "the model is on cpu, the input on meta"),
        (images().to_sparse(), TypeError, "sparse tensor: pass it with to_dense"),
        (images()[0], ValueError, r"\[B, C, H, W\]; got \(3, 12, 12\) \(x\[None\]"),
        (images()[0, 0, 0], ValueError, r"non-empty batch \[N, ...\]; got \(12,\)"),
        (images()[:0], ValueError, r"non-empty batch .*\(0, 3, 12, 12\)"),
        (images()[:, :0], ValueError, r"non-empty batch .*\(4, 0, 12, 12\)"),
        (images().movedim(1, -1), ValueError, r"12 x 3 pixels; x.permute\(0, 3, 1, 2\)"),
        (np.array([{}]), TypeError, "the input must come as a tensor or an array of numbers"),
        (None, TypeError, "got NoneType"),
    ],
)
def test_inputs_that_do_not_fit_are_named(x, error, message):
    model = small_net().double()
    with pytest.raises(error, match=message):
        entropy(model, x, "8", units=GRID)
    with pytest.raises(error, match=message):
        kpnb.lipschitz(model, x, "8", torch.ones(4, 16), units=GRID)


def test_bytes_of_images_are_not_taken_for_tokens():
    model = small_net()
    pixels = (images() > 0).to(torch.uint8)
    with pytest.raises(ValueError, match=r"x\.float\(\) / 255, then normalised") as raised:
        entropy(model, pixels, "8", units=GRID)
    assert "token" not in str(raised.value)
    with pytest.raises(ValueError, match=r"x\.float\(\) / 255, .*for token ids, measure"):
        entropy(model, pixels.flatten(1), "8", units=GRID)  # it could be either


def test_a_model_on_the_meta_device_is_named():
    with torch.device("meta"):
        model = small_net()
    for run in (
        lambda: entropy(model, images().float(), "8", units=GRID),
        lambda: kpnb.Recorder(model, images().float(), torch.ones(4, 16) > 0, "8", units=GRID),
        lambda: kpnb.lipschitz(model, images().float(), "8", torch.ones(4, 16), units=GRID),
    ):
        with pytest.raises(ValueError, match=r"'0\.weight' is on the meta device.*to_empty"):
            run()
    with pytest.raises(ValueError, match="the input is on the meta device"):
        entropy(nn.Sequential(nn.Tanh()), images().to("meta"), "0", units=GRID)


@pytest.mark.parametrize("dead", ["raise", "nan"])
def test_nan_in_an_input_is_the_inputs_whatever_dead_says(dead):
    """``dead`` is about features that do not move or overflow, not about broken data."""
    x = images()
    x[2, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="sample 2 of the batch: NaN or infinite"):
        entropy(small_net().double(), x, "8", units=GRID, dead=dead)
    asked = _asked()
    asked["weight"] = asked["weight"].clone()
    asked["weight"].view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match="the input 'weight' holds NaN"):
        entropy(Asked(), asked, "f", units=GRID, perturb="image", dead=dead)


class Masked(nn.Module):
    """A network that wants its mask to be bool, and says so."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small_net().double()

    def forward(self, image: Tensor, mask: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            raise RuntimeError("expected the mask to have dtype bool")
        return self.body(image)


def test_an_integer_beside_the_input_does_not_hide_the_models_own_error():
    given = {"image": images(), "mask": torch.ones(4, 3, dtype=torch.int64)}
    with pytest.raises(RuntimeError, match="expected the mask to have dtype bool"):
        entropy(Masked(), given, "body.8", units=GRID, perturb="image")
    given["image"] = images().float()
    given["mask"] = given["mask"].bool()
    with pytest.raises(ValueError, match=r"computes in torch\.float64, the input 'image' is"):
        entropy(Masked(), given, "body.8", units=GRID, perturb="image")


def test_a_models_own_error_says_what_it_was_called_with():
    with pytest.raises(RuntimeError, match="to have 3 channels") as raised:
        entropy(small_net().double(), images()[:, :1], "8", units=GRID)
    assert raised.value.__notes__ == [
        "the model was called with torch.float64 (3, 1, 12, 12), samples first",
        "in a pass of 3 of the 4 samples of x (4, 1, 12, 12)",
    ]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": nn.Sequential(nn.Flatten(), nn.LazyLinear(3))}, ValueError, "no shape yet: run"),
        ({"model": lambda x: x}, TypeError, r"the model is a torch\.nn\.Module; got function"),
        ({"layers": 8}, TypeError, r"names in model.named_modules\(\); got int"),
        ({"layers": []}, ValueError, "name at least one"),
        ({"units": 4}, TypeError, r"units are an object such as kpnb.ImageGrid\(16\).*int 4"),
        ({"units": ImageGrid}, TypeError, "units are an object .* got ImageGrid"),
        (
            {"units": np.zeros((8, 8), int)},
            TypeError,
            r"got an array \[8, 8\], which kpnb.Regions takes as labels",
        ),
        ({"solver": "closed"}, TypeError, r"solver is ClosedForm\(\) or Stochastic"),
        ({"solver": ClosedForm}, TypeError, r"solver is ClosedForm\(\) or Stochastic"),
        ({"objective": -2.8}, TypeError, r"objective is Aligned\(\) or Converged"),
        ({"scale": float("nan")}, ValueError, "scale=nan must be positive"),
        ({"scale": "1"}, TypeError, "scale='1' must be a number"),
        ({"scale": [1.0, 1.0]}, TypeError, r"scale=\[1.0, 1.0\] must be a number"),
        ({"scale": torch.ones(3)}, TypeError, "must be a number"),
        ({"max_batch": 0}, ValueError, "max_batch=0 must be positive"),
        ({"dead": "no"}, ValueError, "unknown dead 'no'"),
    ],
)
def test_arguments_of_another_kind_are_named(change, error, message):
    given = {"model": small_net().double(), "x": images(), "layers": "8", "units": GRID} | change
    with pytest.raises(error, match=message):
        entropy(**given)


def test_a_module_in_place_of_its_name_is_named():
    model = small_net().double()
    for layers in (model[8], [model[8]]):
        with pytest.raises(TypeError, match="got ReLU; this module is called '8'"):
            entropy(model, images(), layers, units=GRID)


@pytest.mark.parametrize(
    ("sigma", "error", "message"),
    [
        (torch.ones(2, 16), ValueError, r"sigma is \[4, 16\], samples by units.*\(2, 16\)"),
        (torch.ones(16), ValueError, r"sigma is \[4, 16\].*\(16,\)"),
        (-torch.ones(4, 16), ValueError, "not negative"),
        (1j * torch.ones(4, 16), TypeError, "sigma holds real numbers"),
        (None, TypeError, "sigma must come as a tensor .*NoneType"),
    ],
)
def test_a_sigma_that_does_not_fit_is_named(sigma, error, message):
    with pytest.raises(error, match=message):
        kpnb.lipschitz(small_net().double(), images(), "8", sigma, units=GRID)


def test_a_result_in_place_of_its_sigma_is_named():
    model, x = small_net().double(), images()
    with pytest.raises(TypeError, match=r"got Entropy: pass its \.entropy or \.sigma"):
        kpnb.lipschitz(model, x, "8", entropy(model, x, "8", units=GRID), units=GRID)
    for how in ({"samples": 0}, {"tau": -1.0}):
        with pytest.raises(ValueError, match=r"(samples=0|tau=-1\.0) must be positive"):
            kpnb.lipschitz(model, x, "8", torch.ones(4, 16), units=GRID, **how)


def test_an_input_on_another_device_is_named():
    x = _asked() | {"weight": torch.empty(5, 432, device="meta")}
    with pytest.raises(ValueError, match="model is on cpu, the input 'weight' on meta"):
        entropy(Asked(), x, "f", units=GRID, perturb="image")


def test_embedded_needs_embeddings():
    with pytest.raises(TypeError, match="Linear has no get_input_embeddings"):
        kpnb.embedded(nn.Linear(2, 2), torch.zeros(1, 2, dtype=torch.int64))


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 3)

    def get_input_embeddings(self) -> nn.Module:
        return self.table


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, list, torch.int32])
def test_token_ids_of_every_kind_are_embedded(kind):
    model, ids = Words(), [[0, 4, 2], [1, 1, 3]]
    if kind is not list:
        made = torch.tensor(ids, dtype=kind) if isinstance(kind, torch.dtype) else None
        given = np.array(ids, kind) if made is None else made
    else:
        given = ids
    found = kpnb.embedded(model, given, np.ones((2, 3)))
    assert torch.equal(found["inputs_embeds"], model.table.weight.detach()[torch.tensor(ids)])
    assert torch.equal(found["attention_mask"], torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([1, 2], ValueError, r"non-empty batch \[N, T\]; got \(2,\)"),
        ([[0.5]], TypeError, r"integers \[N, T\]; got torch.float64"),
        ([[7]], ValueError, "from 7 to 7, but the model has embeddings for 0 to 4"),
        ([[-1]], ValueError, "from -1 to -1"),
        ({"input_ids": [[1]]}, TypeError, r"unpack what the tokenizer returns, .*\*\*tokens"),
        ("hello", TypeError, "input_ids must come as a tensor or an array"),
    ],
)
def test_token_ids_that_do_not_fit_are_named(ids, error, message):
    with pytest.raises(error, match=message):
        kpnb.embedded(Words(), ids)


def test_an_attention_mask_of_other_texts_is_named():
    with pytest.raises(ValueError, match=r"mask is \(2, 1\), the token ids are \(1, 1\)"):
        kpnb.embedded(Words(), [[1]], [[1], [1]])
    ids = torch.ones(2, 3, dtype=torch.int64)
    for shape in ((2, 2), (2, 4), (2,), (3, 3), (2, 3, 2)):
        with pytest.raises(ValueError, match=rf"mask is {re.escape(str(shape))}, the token ids"):
            kpnb.embedded(Words(), ids, torch.ones(shape))
    for shape in ((2, 3), (2, 3, 3), (2, 1, 3, 3)):
        assert kpnb.embedded(Words(), ids, torch.ones(shape))["attention_mask"].shape == shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 2.5}, r"max_batch=2\.5 must be a whole number"),
        ({"max_batch": True}, "max_batch=True must be a whole number"),
        ({"seed": "a"}, "seed='a' must be a whole number"),
        ({"forward": "features"}, r"forward is a function .* got 'features'"),
    ],
)
def test_settings_of_another_kind_are_named(options, message):
    with pytest.raises(TypeError, match=message):
        entropy(small_net().double(), images(), "8", units=GRID, **options)


def test_other_whole_numbers_and_functions_are_named():
    model, x, sigma = small_net().double(), images(), torch.ones(4, 16)
    with pytest.raises(TypeError, match=r"samples=2\.0 must be"):
        kpnb.lipschitz(model, x, "8", sigma, units=GRID, samples=2.0)
    with pytest.raises(TypeError, match="forward is a function"):
        kpnb.lipschitz(model, x, "8", sigma, units=GRID, forward="features", check=False)
    with pytest.raises(TypeError, match=r"rank=2\.5 must be"):
        ClosedForm(rank=2.5)
    with pytest.raises(TypeError, match="steps='9' must be"):
        Stochastic(steps="9")
    with pytest.raises(TypeError, match=r"batch_size=8\.5 must be"):
        Schedule(batch_size=8.5)


@pytest.mark.parametrize("kind", [DataLoader, iter])
def test_batches_in_the_place_of_one_are_named(kind):
    with pytest.raises(TypeError, match=r"x is one batch; got .*for batch in loader"):
        capture(small_net().double(), kind(images()), ["8"])


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_named():
    model, x = small_net().double().eval(), images()
    traced, scripted = torch.jit.trace(model, x), torch.jit.script(model)
    message = r"the model is TorchScript .*before scripting or tracing"
    for compiled in (traced, scripted):
        for layer in ("8", ""):
            with pytest.raises(TypeError, match=message):
                entropy(compiled, x, layer, units=GRID)
            with pytest.raises(TypeError, match=message):
                capture(compiled, x, [layer])
        part = nn.Sequential(compiled, nn.Linear(5, 3).double())
        for layer in ("0", "0.8"):
            with pytest.raises(TypeError, match="'0' is TorchScript"):
                entropy(part, x, layer, units=GRID)
        found = entropy(part, x, "1", units=GRID)  # what follows is an ordinary layer
        wanted = entropy(nn.Sequential(model, part[1]), x, "1", units=GRID)
        torch.testing.assert_close(found.entropy, wanted.entropy)
        random = nn.Sequential(compiled, Random())
        with pytest.raises(ValueError, match=r"'1' is another one .*'1' \(Random\)"):
            entropy(random, x, "1", units=GRID)


def test_layers_of_a_parallel_model_go_by_both_names():
    model, x = small_net().double(), images()
    wanted = entropy(model, x, "8", units=GRID).entropy
    parallel = nn.DataParallel(model)
    for name in ("8", "module.8"):
        assert torch.equal(entropy(parallel, x, name, units=GRID).entropy, wanted)
    inside = nn.Sequential(torch.compile(parallel, backend="eager"), nn.Identity())
    for name in ("0.8", "0._orig_mod.module.8", "0.module.8"):
        assert torch.equal(entropy(inside, x, name, units=GRID).entropy, wanted)
    own = nn.ModuleDict({"module": model})  # a name of the model's own stays
    with pytest.raises(LookupError, match="unknown layer '8'"):
        layer_at(own, "8")


def test_rows_of_which_there_are_not_as_many_as_samples_are_named():
    """Before the model is called: nobody has to guess whose they are."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(432, 5).double(), nn.Linear(5, 3).double()

        def forward(self, x: Tensor, meta: Tensor) -> Tensor:
            return self.two(self.one(x.flatten(1)) * meta)

    x, how = images(), {"perturb": "x", "units": GRID}
    for meta in (torch.ones(7, 5).double(), np.ones(5)):
        with pytest.raises(ValueError, match=r"'meta' \[.*\] has no row for each of the .*='meta'"):
            entropy(Both(), {"x": x, "meta": meta}, "two", **how)
    torch.manual_seed(0)
    model, row = Both(), torch.rand(5).double()
    for meta, shared in ((row, "meta"), (row[None], None), (row[0], None)):
        found = entropy(model, {"x": x, "meta": meta}, "two", shared=shared, **how)
        each = entropy(model, {"x": x, "meta": meta.expand(len(x), 5)}, "two", **how)
        torch.testing.assert_close(found.entropy, each.entropy)
    with pytest.raises(RuntimeError, match="must match the size"):  # the caller's word counts
        entropy(Both(), {"x": x, "meta": torch.ones(7, 5).double()}, "two", shared="meta", **how)


# ------------------------------------------------------------------------------------- many batches


@pytest.mark.parametrize(
    "batches", [images(), images().numpy(), _asked(), "data", 3, TensorDataset(images())]
)
def test_what_yields_no_batches_is_named(batches):
    with pytest.raises(TypeError, match=r"such as a DataLoader; got .*kpnb.entropy measures"):
        next(entropies(small_net().double(), batches, "8", units=GRID))


def test_a_bad_batch_is_told_by_its_number():
    found = entropies(small_net().double(), [images(), images()[:0]], "8", units=GRID)
    next(found)
    with pytest.raises(ValueError, match="non-empty batch") as raised:
        next(found)
    assert raised.value.__notes__ == ["in batch 1"]


def test_batch_by_batch_is_all_at_once():
    model, x, labels = small_net().double(), images(7), torch.arange(7)
    wanted = entropy(model, x, "8", units=GRID)
    loader = DataLoader(TensorDataset(x, labels), batch_size=3)
    parts = list(entropies(model, loader, "8", units=GRID, progress=False))
    assert [len(part.entropy) for part in parts] == [3, 3, 1]
    assert torch.allclose(torch.cat([part.entropy for part in parts]), wanted.entropy, atol=1e-9)
    several = next(entropies(model, iter([x]), ["5", "8"], units=GRID, progress=False))
    assert torch.equal(several["8"].entropy, wanted.entropy)


def test_mappings_and_units_by_batch():
    ask, counts = _asked(6), torch.arange(6)[:, None] < torch.arange(12) + 3

    def batches():
        for rows in torch.arange(6).split(4):
            yield {k: v[rows] if isinstance(v, Tensor) else v for k, v in ask.items()} | {
                "keep": counts[rows]
            }

    seen = []

    def units(batch: dict[str, Any]) -> ImageGrid:
        seen.append(batch.pop("keep"))
        return GRID

    found = list(entropies(Asked(), batches(), "f", units=units, perturb="image", progress=False))
    whole = entropy(Asked(), ask, "f", units=GRID, perturb="image").entropy
    assert torch.allclose(torch.cat([part.entropy for part in found]), whole)
    assert torch.equal(torch.cat(seen), counts)


def test_nothing_is_measured_or_kept_before_it_is_asked_for():
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield images(2)

    found = entropies(small_net().double(), endless(), "8", units=GRID, progress=False)
    assert not taken
    next(found), next(found)
    assert len(taken) == 2


def test_the_first_batch_is_looked_at_and_only_that(monkeypatch):
    looked = []
    real = kpnb.entropy.__globals__["try_layers"]
    monkeypatch.setitem(
        kpnb.entropy.__globals__, "try_layers", lambda *args: looked.append(1) or real(*args)
    )
    batches = [images(2)] * 3
    list(entropies(small_net().double(), batches, "8", units=GRID, progress=False))
    assert len(looked) == 1


# -------------------------------------------------------------------------------- no float64 at all


class NoDouble(TorchDispatchMode):
    """A device without float64, as Apple's: refuses it as MPS does, or with another ``error``."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error or TypeError("Cannot convert a MPS Tensor to float64 dtype")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.dtype == torch.float64:
                raise self.error
        return result


@pytest.mark.parametrize("objective", [None, Converged(0.1)])
@pytest.mark.parametrize(
    "solver", [ClosedForm(), ClosedForm(rank=None), Stochastic(steps=4, samples=8)]
)
def test_devices_without_float64(solver, objective):
    model, x = small_net().float(), images(3, dtype=torch.float32)
    wanted = entropy(model, x, ["5", "8"], units=GRID, solver=solver, objective=objective)
    with NoDouble():
        found = entropy(model, x, ["5", "8"], units=GRID, solver=solver, objective=objective)
        masks = torch.zeros(3, 12, 12, dtype=torch.bool)
        masks[:, :6] = True
        foreground = kpnb.foreground_units(GRID.coverage(masks))
        points = kpnb.knowledge_points(found["8"].entropy, foreground)
        assert kpnb.summarise(points.n_fg).defined == 3
        kpnb.lipschitz(model, x, "8", found["8"].sigma, units=GRID, samples=2)
    assert found["8"].settings["precision"] == "torch.float32"
    assert wanted["8"].settings["precision"] == "torch.float64"
    for layer, one in wanted.items():
        assert (found[layer].entropy - one.entropy).abs().max() < 2e-3
        assert found[layer].settings == one.settings | {"precision": "torch.float32"}


def test_memory_that_runs_out_is_no_device_without_float64():
    said = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
    for error in (RuntimeError(said), torch.OutOfMemoryError("CUDA out of memory")):
        with NoDouble(error), pytest.raises(RuntimeError, match="memory"):
            widest(torch.ones(2))
    with NoDouble():
        assert widest(torch.ones(2)).dtype == torch.float32


def test_settings_are_ready_for_json():
    import json

    mask = torch.ones(2, 5, dtype=torch.bool)
    found = entropy(
        TimeFirst(), torch.randn(2, 5, 6).double(), "layer", units=Tokens(mask), batch_dim=1
    )
    assert re.fullmatch(r"Tokens\([0-9a-f]{12}\)", json.loads(json.dumps(found.settings))["units"])


def test_parts_of_samples_in_a_list_are_named():
    left, right = torch.randn(8, 6), torch.randn(8, 6)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(6, 3)

        def forward(self, left: Tensor, right: list[Tensor]) -> Tensor:
            return self.one(left) * self.one(torch.stack(right))

    given = {"left": left, "right": list(right)}
    with pytest.raises(ValueError, match=r"'right' is a list of tensors: .* one tensor with a row"):
        entropy(Both(), given, "", perturb="left", units=Regions(torch.arange(6) // 2))


def test_arrays_are_real_where_the_first_parameter_is_complex():
    """As in Fourier layers: the input is of the precision of their parts."""

    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.weight = nn.Parameter(torch.randn(5, dtype=torch.complex64))
            self.head = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.fft.irfft(torch.fft.rfft(x) * self.weight, 8))

    x, units = torch.randn(3, 8), Regions(torch.arange(8) // 2)
    wanted = entropy(Fourier(), x, "head", units=units)
    found = entropy(Fourier(), x.double().numpy(), "head", units=units)
    assert torch.equal(found.entropy, wanted.entropy)

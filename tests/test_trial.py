"""What would make an entropy meaningless is found before it is measured, and named."""

import functools
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kpnb import (
    ClosedForm,
    Converged,
    ImageGrid,
    Points,
    Recorder,
    Stochastic,
    Tokens,
    entropies,
    entropy,
    lipschitz,
)
from tests.models import images, small_net

GRID = ImageGrid(4)


class Net(nn.Module):
    """Two linear layers with something between them."""

    def __init__(self, between=lambda h: h) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two, self.between = nn.Linear(432, 12), nn.Linear(12, 5), between
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.between(self.one(x.flatten(1))))


def measure(model: nn.Module, layers, x: Tensor | None = None, **options):
    return entropy(model, images() if x is None else x, layers, units=GRID, **options)


# ---- the feature is the same each time, and one of a sample alone


@pytest.mark.parametrize("count", [1, 4])
def test_randomness_in_evaluation_mode_is_named(count):
    model = Net(lambda h: F.dropout(h, 0.5))
    message = r"layer 'two' is another one each time .*what 'two' \(Linear\) is given"
    with pytest.raises(ValueError, match=message):
        measure(model, "two", images(count))
    assert measure(model, "two", images(count), check=False).entropy.isfinite().all()
    assert measure(model, "one", images(count)).entropy.isfinite().all()  # below it


def test_a_module_that_is_random_is_named():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1 * torch.randn_like(x)

    model = nn.Sequential(*small_net().double(), Noisy())
    with pytest.raises(ValueError, match=r"another one each time .*first seen in '11' \(Noisy\)"):
        measure(model, "11")


class Standardised(nn.Module):
    """By statistics of the batch, which one sample has not."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / x.std(0)


@pytest.mark.filterwarnings("ignore:std")  # PyTorch's, of one sample
def test_batch_statistics_that_one_sample_lacks_are_named():
    net = nn.Sequential(nn.Flatten(), Standardised(), nn.Linear(432, 5)).eval()
    with pytest.raises(ValueError, match=r"depends on the other samples of its batch .*'1'"):
        measure(net, "2", images(4, dtype=torch.float32))


@pytest.mark.parametrize("count", [1, 4])
def test_batch_statistics_are_named(count):
    model = small_net(norm=True).double()
    model[1] = nn.BatchNorm2d(6, track_running_stats=False).double()
    message = r"layer '8' .* depends on the other samples .*first seen in '1' \(BatchNorm2d\)"
    with pytest.raises(ValueError, match=message):
        measure(model, "8", images(count))
    assert measure(model, "0", images(count)).entropy.isfinite().all()
    together, alone = (measure(model, "8", images(n), max_batch=1) for n in (4, 1))
    assert torch.allclose(together.entropy[:1], alone.entropy)  # each for itself, as the error says


class Recurrent(nn.Module):
    """An LSTM over sequences ``[N, T, C]`` and a linear layer."""

    def __init__(self, batch_first: bool, turned: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(6, 8, batch_first=batch_first)
        self.head, self.turned = nn.Linear(8, 3), turned

    def forward(self, x: Tensor) -> Tensor:
        h = self.lstm(x.transpose(0, 1) if self.turned else x)[0]
        return self.head(h.transpose(0, 1) if self.turned else h)


@pytest.mark.parametrize("count", [1, 4])
def test_a_recurrent_layer_along_the_batch_is_named(count):
    """Without ``batch_first`` the samples are the steps, and each knows those before it."""
    x, how = torch.randn(count, 5, 6), {"units": Tokens()}
    for layer in ("lstm", "head"):
        message = rf"'{layer}' of a sample depends on the other .*'lstm' \(LSTM\).*batch_first"
        with pytest.raises(ValueError, match=message):
            entropy(Recurrent(batch_first=False), x, layer, **how)
        wanted = entropy(Recurrent(batch_first=True), x, layer, **how)
        turned = {"batch_dim": {"lstm": 1}, **how}
        found = entropy(Recurrent(batch_first=False, turned=True), x, layer, **turned)
        torch.testing.assert_close(found.entropy, wanted.entropy, atol=1e-4, rtol=0)


@pytest.mark.parametrize("max_batch", [2, 64])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    "between",
    [
        lambda h: h.cumsum(0),
        lambda h: h + 2 * h[:1],
        lambda h: h + 2 * h[-1:],
        lambda h: torch.cat([h[:1], h[1:] + h[:-1]]),
        lambda h: torch.cat([h[:-1] + h[1:], h[-1:]]),
    ],
    ids=["all before", "the first", "the last", "the one before", "the one after"],
)
def test_a_sample_that_depends_on_some_of_the_others_is_named(between, count, max_batch):
    message = r"'two' of a sample depends on the other .*in what 'two' \(Linear\) is given"
    with pytest.raises(ValueError, match=message):
        measure(Net(between), "two", images(count), max_batch=max_batch)
    assert measure(Net(between), "one", images(count)).entropy.isfinite().all()  # below it
    assert measure(Net(between), "two", images(count), max_batch=1).entropy.isfinite().all()


def test_padding_to_the_longest_of_a_batch_is_no_dependence():
    """Neither for a longer sample nor for a shorter one; the feature's length is the batch's."""

    class Packed(Recurrent):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            how = {"batch_first": True, "enforce_sorted": False}
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, **how)
            h = nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]
            return self.head(h)

    x, exact = torch.randn(2, 5, 6, dtype=torch.float64), ClosedForm(rank=None)
    model = Packed(batch_first=True).double()
    for lengths in ([5, 3], [3, 5]):
        given = {"x": x, "lengths": torch.tensor(lengths)}
        mask = torch.arange(5) < given["lengths"][:, None]
        how = {"perturb": "x", "units": Tokens(mask), "shared": (), "solver": exact}
        both = entropy(model, given, "head", **how)
        each = entropy(model, given, "head", max_batch=1, **how)
        torch.testing.assert_close(both.entropy, each.entropy, equal_nan=True)


@pytest.mark.parametrize("lengths", [[6, 3], [3, 6], [3, 4]])
def test_attention_over_padded_samples_is_one_function_with_and_without_a_graph(lengths):
    """PyTorch's fast path would give zeros at padding, but only in passes without a graph."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.body = nn.TransformerEncoder(block, 1)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.body(x, src_key_padding_mask=~mask)

    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    given, how = {"x": x, "mask": mask}, {"perturb": "x", "units": Tokens(mask), "shared": ()}
    fast = torch.backends.mha.get_fastpath_enabled()
    found = entropy(Encoder().double(), given, "body", solver=ClosedForm(check=300), **how)
    assert (found.linearity - 1).abs().max() < 0.2
    assert torch.backends.mha.get_fastpath_enabled() == fast


class Texts(nn.Module):
    """An encoder that looks at no padding, and vectors of its tokens as ``read`` leaves them."""

    def __init__(self, read) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.feature, self.read = nn.Identity(), read

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.feature(self.read(self.body(x, src_key_padding_mask=~mask), mask[..., None]))


@pytest.mark.parametrize(
    ("read", "rank", "same"),
    [
        (lambda h, mask: h[:, 0], 2, True),
        (lambda h, mask: (h * mask).sum(1) / mask.sum(1), 2, True),
        (lambda h, mask: h * mask, None, True),
        (lambda h, mask: h, None, False),
    ],
    ids=["first token", "mean", "zeros", "each token"],
)
def test_padding_counts_where_the_feature_has_a_vector_for_it(read, rank, same):
    """As ``entropies`` says: a feature of one vector, or of zeros at padding, knows nothing of it;
    one of each token has the padded positions, which look at the words, as parts.
    """
    x = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for length in (6, 12, 40):
        mask = torch.arange(length)[None] < 6
        given = {"x": x[:, :length], "mask": mask}
        how = {"perturb": "x", "units": Tokens(mask), "shared": (), "solver": ClosedForm(rank)}
        found.append(entropy(Texts(read).double(), given, "feature", **how).entropy[0, :6])
    apart = max((one - found[0]).abs().max() for one in found)
    assert apart < 1e-4 if same else apart > 0.01


def test_rounding_is_not_mistaken_for_either():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        model = small_net(norm=True).to(dtype)
        half = dtype == torch.bfloat16
        with pytest.warns(UserWarning, match="bfloat16") if half else nullcontext():
            assert measure(model, "8", images(dtype=dtype)).entropy.isfinite().all()


# ---- it depends on the input, and has a derivative


class Positions(Net):
    """As an encoder adds them: a feature of its own that does not depend on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Embedding(3, 12).double()

    def forward(self, x: Tensor) -> Tensor:
        place = torch.zeros(len(x), dtype=torch.int64)
        return self.two(self.one(x.flatten(1)) + self.positions(place))


def test_a_layer_that_does_not_depend_on_the_input_is_named():
    message = "layer 'positions' does not depend on the input"
    with pytest.raises(ValueError, match=message):
        measure(Positions(), "positions")
    with pytest.warns(UserWarning, match=f"left out 'positions': .*{message}"):
        found = measure(Positions(), ["two", "positions", "one"])
    assert list(found) == ["two", "one"]


def _without_grad(h: Tensor) -> Tensor:
    with torch.no_grad():
        return h.tanh()


@pytest.mark.parametrize(
    "between", [_without_grad, torch.inference_mode()(Tensor.tanh), Tensor.detach]
)
@pytest.mark.parametrize("solver", [ClosedForm(), Stochastic(steps=2, samples=4)])
def test_a_model_that_keeps_no_derivatives_is_named(between, solver):
    with pytest.raises(ValueError, match=r"'two' has no derivative .*no_grad\(\).*detach"):
        measure(Net(between), "two", solver=solver)


@pytest.mark.filterwarnings("ignore:None of the inputs")  # PyTorch's, for passes without graph
@pytest.mark.parametrize("layer", ["two", "two.inner"])
def test_reentrant_checkpointing_is_named(layer):
    model = Net(functools.partial(checkpoint, torch.tanh, use_reentrant=True))
    if layer == "two.inner":  # inside of what is checkpointed

        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Linear(12, 5).double()

            def forward(self, h: Tensor) -> Tensor:
                return checkpoint(self.inner, h, use_reentrant=True)

        model.between, model.two = torch.tanh, Checkpointed()
    with pytest.raises(ValueError, match="reentrant checkpointing"):
        measure(model, layer)
    fine = Net(functools.partial(checkpoint, torch.tanh, use_reentrant=False))
    plain = Net(torch.tanh)
    assert torch.equal(measure(fine, "two").entropy, measure(plain, "two").entropy)


def test_inference_mode_around_the_call_changes_nothing():
    model, wanted = small_net().double(), measure(small_net().double(), "8")
    with torch.inference_mode():
        found = measure(model, "8")
        made_here = measure(model, "8", images())
        born_here = small_net().double()
        with pytest.raises(ValueError, match=r"parameters were made under torch\.inference_mode"):
            measure(born_here, "8")
    assert torch.equal(found.entropy, wanted.entropy)
    assert torch.equal(made_here.entropy, wanted.entropy)
    with torch.no_grad():
        assert torch.equal(measure(model, "8").entropy, wanted.entropy)


# ---- lipschitz looks first too, at the feature and at the prediction


def kappa(model: nn.Module, layer: str, **options):
    x = images()
    return lipschitz(model, x, layer, torch.full((4, 16), 0.02), units=GRID, samples=2, **options)


def _batch_statistics() -> nn.Module:
    model = small_net(norm=True).double()
    model[1] = nn.BatchNorm2d(6, track_running_stats=False).double()
    return model


@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: Net(lambda h: F.dropout(h, 0.5)), "two"),
        (_batch_statistics, "8"),
        (Positions, "positions"),
        (lambda: Net(_without_grad), "two"),
    ],
    ids=["random", "batch statistics", "constant", "no_grad"],
)
def test_lipschitz_names_what_entropy_names(make, layer):
    with pytest.raises(ValueError) as one:  # noqa: PT011 - the message is compared
        measure(make(), layer)
    with pytest.raises(ValueError, match=r"layer '") as two:
        kappa(make(), layer)
    assert str(one.value) in str(two.value)


def test_lipschitz_looks_at_the_prediction():
    class Head(Net):
        def __init__(self, above) -> None:
            super().__init__()
            self.above = above

        def forward(self, x: Tensor) -> Tensor:
            return self.above(super().forward(x))

    with pytest.raises(ValueError, match="the model's own output is another one each time"):
        kappa(Head(lambda y: F.dropout(y, 0.5)), "one")
    with pytest.raises(ValueError, match="the model's own output has no derivative"):
        kappa(Head(_without_grad), "one")
    with pytest.raises(ValueError, match=r"no derivative by the feature of layer 'one'.*no_grad"):
        kappa(Head(_without_grad), "one", check=False)
    assert kappa(Head(lambda y: F.dropout(y, 0.5)), "one", check=False).kappa.isfinite().all()


def test_a_prediction_that_does_not_depend_on_the_feature_is_named():
    class Aside(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.one(x.flatten(1))
            self.two(h)
            return h

    with pytest.raises(ValueError, match=r"no derivative by the feature of layer 'two': it does"):
        kappa(Aside(), "two")


def test_lipschitz_at_a_run_of_a_shared_module():
    """Against the same network with modules of their own, at both names and both runs."""
    shared = nn.Tanh()
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(432, 12), shared, nn.Linear(12, 12), shared, nn.Linear(12, 3)
    ).double()
    apart = nn.Sequential(*model[:2], nn.Tanh(), model[3], nn.Tanh(), model[5])
    for name in ("2", "4"):
        for check in (True, False):
            with pytest.raises(ValueError, match=rf"'{name}' runs 2 times .*'{name}:1'"):
                kappa(model, name, check=check)
        for run, layer in enumerate(("2", "4")):
            one, two = kappa(model, f"{name}:{run}"), kappa(apart, layer)
            assert torch.equal(one.kappa, two.kappa)
            assert torch.equal(one.observed, two.observed)
    assert (kappa(model, "2:0").kappa - kappa(model, "2:1").kappa).abs().max() > 1e-3
    for check in (True, False):
        with pytest.raises(RuntimeError, match=r"never reached layer '2:2' \(it runs 2 times\)"):
            kappa(model, "2:2", check=check)


# ---- quantised numbers have no derivative


@pytest.fixture
def quantised() -> nn.Module:
    """Linear layers that are quantised as they run."""
    return torch.ao.quantization.quantize_dynamic(small_net().eval(), {nn.Linear}, torch.qint8)


quiet = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


@quiet
@pytest.mark.parametrize("options", [{}, {"max_batch": 1}, {"solver": Stochastic(steps=2)}])
def test_quantisation_is_named(quantised, options):
    x = images(dtype=torch.float32)
    message = r"layer '8' is computed with quantised numbers \(first in '7', DynamicQuantizedLinear"
    with pytest.raises(ValueError, match=message):
        measure(quantised, "8", x, **options)
    with pytest.warns(UserWarning, match="left out '10': .*quantised"):
        found = measure(quantised, ["5", "10"], x)  # what lies below is an ordinary network
    assert torch.equal(found["5"].entropy, measure(small_net(), "5", x).entropy)
    with pytest.raises(ValueError, match="the model's own output is computed with quantised"):
        lipschitz(quantised, x, "5", torch.ones(4, 16), units=GRID)


@quiet
def test_quantisation_is_named_without_a_look_as_well(quantised):
    with pytest.raises(ValueError, match=r"no derivative by the input: .*quantised"):
        measure(quantised, "8", images(dtype=torch.float32), check=False)


@quiet
@pytest.mark.skipif(not set(torch.backends.quantized.supported_engines) - {"none"}, reason="none")
def test_static_quantisation_is_named():
    class Converted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter = torch.ao.quantization.QuantStub()
            self.body, self.leave = small_net(inplace=False)[0], torch.ao.quantization.DeQuantStub()

        def forward(self, x: Tensor) -> Tensor:
            return self.leave(self.body(self.enter(x)))

    model, x = Converted().eval(), images(dtype=torch.float32)
    engine = torch.backends.quantized.engine
    model.qconfig = torch.ao.quantization.get_default_qconfig(engine)
    prepared = torch.ao.quantization.prepare(model)
    prepared(x)
    converted = torch.ao.quantization.convert(prepared)
    for layer in ("enter", "body", "leave"):
        with pytest.raises(ValueError, match=rf"'{layer}' is computed with quantised .*'enter'"):
            measure(converted, layer, x)


# ---- it is finite, and moves


def test_a_derivative_that_is_not_finite_is_named():
    """``where`` hides what is not finite from the feature, but not from its derivative."""
    model = Net(lambda h: torch.where(h > 0, h.sqrt(), torch.zeros_like(h)))
    with pytest.raises(ValueError, match=r"samples 0, 1, 2, 3: .*'two' is not finite .*derivative"):
        measure(model, "two")
    assert measure(model, "two", dead="nan").delta_f2.isnan().all()


def test_one_sample_at_a_time_is_looked_at_too():
    with pytest.raises(ValueError, match="'two' is another one each time"):
        measure(Net(lambda h: F.dropout(h, 0.5)), "two", max_batch=1)
    with pytest.raises(ValueError, match="'two' has no derivative"):
        measure(Net(_without_grad), "two", max_batch=1)


@pytest.mark.parametrize(
    "solver", [ClosedForm(), ClosedForm(rank=None), Stochastic(steps=2, samples=4)]
)
def test_a_feature_that_overflows_is_named_with_its_samples(solver):
    model, x = Net(lambda h: h.sum(1, keepdim=True).relu().pow(99).expand(-1, 12)), images()
    model = model.float()
    with torch.no_grad():
        model.one.weight.copy_(torch.eye(12, 432) / 3)
        model.one.bias.zero_()
    x = x.float().clamp(-0.1, 0.1)
    x[2, 0] += 30
    how = {"solver": solver, "check": False}
    with pytest.raises(ValueError, match=r"sample 2: the feature of layer 'two' is not finite"):
        measure(model, "two", x, **how)
    found = measure(model, "two", x, dead="nan", **how)
    assert found.delta_f2.isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("solver", [ClosedForm(), ClosedForm(rank=None)])
@pytest.mark.parametrize("how", [{}, {"check": False}, {"objective": Converged(0.01)}])
def test_an_overflow_in_a_layer_leaves_those_below_it(solver, how):
    """Of large numbers beside infinite ones, only the former have a square or none."""
    model, x = Net(lambda h: (60 * h).exp()).float(), images().float()
    with pytest.warns(UserWarning, match=r"left out 'two': sample.* 'two' is not finite"):
        found = measure(model, ["one", "two"], x, solver=solver, **how)
    assert [*found] == ["one"]
    assert torch.equal(found["one"].entropy, measure(model, "one", x, solver=solver, **how).entropy)
    kept = measure(model, "two", x, solver=solver, dead="nan", **how)
    assert kept.delta_f2.isnan().any()


@pytest.mark.parametrize("solver", [ClosedForm(rank=3, probes=3, noise=6), ClosedForm(rank=None)])
@pytest.mark.parametrize("factor", [2**-40, 2**33, 2**53])
def test_a_factor_on_the_feature_changes_nothing(solver, factor):
    """Not a bit, where it is a power of two, though squares of squares leave single precision."""
    x = images().float()
    plain, scaled = (Net(lambda h, k=k: h * k).float() for k in (1.0, factor))
    for model in (plain, scaled):
        model.two = nn.Identity()
    one, other = (measure(model, "two", x, solver=solver).entropy for model in (plain, scaled))
    assert torch.equal(one, other)


def test_lipschitz_of_a_feature_that_overflows_is_refused():
    model, x = Net(lambda h: (200 * h).exp()).float(), images().float()
    with pytest.raises(ValueError, match=r"sample.*'two' is not finite"):
        lipschitz(model, x, "two", torch.full((4, GRID.count(x)), 0.01), GRID)


def test_good_layers_are_returned_and_a_bad_one_is_named():
    """A head that starts from zero, as many do."""
    model = Net()
    nn.init.zeros_(model.two.weight)
    with pytest.warns(UserWarning, match="left out 'two': samples 0, 1, 2, 3: .*does not move"):
        found = measure(model, ["one", "two"])
    assert torch.equal(found["one"].entropy, measure(model, "one").entropy)
    assert list(found) == ["one"]
    with pytest.raises(ValueError, match="does not move"):
        measure(model, "two")
    assert measure(model, ["one", "two"], dead="nan")["two"].entropy.isnan().all()


# ---- names


def test_a_module_that_runs_several_times_has_to_be_told_apart():
    shared = nn.Tanh()
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(432, 12), shared, nn.Linear(12, 12), shared, nn.Linear(12, 3)
    ).double()
    with pytest.raises(ValueError, match=r"'2' runs 2 times .*'2:0' to '2:1'"):
        measure(model, "2")
    one, two = measure(model, ["2:0", "4:1"]).values()  # both names, and both runs
    assert torch.equal(one.entropy, measure(model[:3], "2").entropy)
    apart = nn.Sequential(*model[:4], nn.Tanh(), model[5])
    assert torch.equal(two.entropy, measure(apart, "4").entropy)
    with pytest.raises(RuntimeError, match=r"never reached layer '2:2' \(it runs 2 times\)"):
        measure(model, "2:2")
    with pytest.raises(LookupError, match="unknown layer '9:1'"):
        measure(model, "9:1")


def test_compiled_models_are_measured_under_both_names():
    model = small_net().double().eval()
    wanted = measure(model, "8").entropy
    compiled = torch.compile(model, backend="eager")
    compiled(images())  # so that it is compiled before there are hooks
    for name in ("8", "_orig_mod.8"):
        assert torch.equal(measure(compiled, name).entropy, wanted)
    assert torch.equal(measure(model, "_orig_mod.8").entropy, wanted)
    inside = nn.Sequential(torch.compile(model, backend="eager"), nn.Identity())
    inside(images())
    for name in ("0.8", "0._orig_mod.8"):
        assert torch.equal(measure(inside, name).entropy, wanted)
    with pytest.raises(LookupError, match="unknown layer '88'; did you mean '8'"):
        measure(compiled, "88")
    model.compile(backend="eager")
    model(images())
    assert torch.equal(measure(model, "8").entropy, wanted)


@pytest.mark.parametrize("solver", [ClosedForm(), Stochastic(steps=2, samples=4)])
def test_a_network_that_works_in_place_does_not_change_what_it_is_given(solver):
    model, x = nn.Sequential(nn.ReLU(inplace=True), *small_net()).double(), images()
    before = x.clone()
    found = measure(model, "6", x, solver=solver)
    lipschitz(model, x, "6", found.sigma, units=GRID, samples=2)
    assert torch.equal(x, before)
    assert not x.requires_grad
    leaf = x.clone().requires_grad_(True)  # as it comes out of somebody's training code
    assert torch.equal(measure(model, "6", leaf, solver=solver).entropy, found.entropy)
    assert leaf.grad is None


def test_layers_inside_of_what_is_checkpointed():
    class Checkpointed(nn.Module):
        def __init__(self, on: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body, self.on = nn.Sequential(nn.Linear(432, 9), nn.Tanh(), nn.Linear(9, 9)), on

        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return checkpoint(self.body, flat, use_reentrant=False) if self.on else self.body(flat)

    for layer in ("body.0", "body.2", ["body.1", "body"]):
        plain, saved = (measure(Checkpointed(on).double(), layer) for on in (False, True))
        for name in ["body.1", "body"] if isinstance(layer, list) else [None]:
            one, two = (found[name] if name else found for found in (plain, saved))
            assert torch.allclose(one.entropy, two.entropy, atol=1e-12)


class Graph(torch.nn.Module):
    """The mean over nodes after one exchange along the edges of a graph."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 8)

    def forward(self, nodes, edges):
        return torch.tanh(edges @ self.linear(nodes)).mean(1)


def test_what_all_samples_share_is_suspected_where_its_size_is_that_of_the_batch():
    torch.manual_seed(0)
    model, nodes = Graph(), torch.randn(6, 6, 3)
    edges = (torch.rand(6, 6) > 0.5).float()
    how = {"perturb": "nodes", "units": Points()}
    for max_batch in (1, 32):
        with pytest.raises(ValueError, match=r"'edges'.* gets its own row.*, shared='edges';"):
            entropy(model, {"nodes": nodes, "edges": edges}, "", max_batch=max_batch, **how)
    shared = entropy(model, {"nodes": nodes, "edges": edges}, "", shared="edges", **how)
    one = entropy(model, {"nodes": nodes, "edges": edges[None]}, "", **how)
    each = entropy(model, {"nodes": nodes, "edges": edges.expand(6, 6, 6)}, "", **how)
    torch.testing.assert_close(shared.entropy, each.entropy)
    torch.testing.assert_close(one.entropy, each.entropy)


class Summed(torch.nn.Module):
    """A weighted sum over positions; the ``weight`` is of each sample, or of each position."""

    def __init__(self, rows: int | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.rows = torch.nn.Linear(3, 8), rows

    def forward(self, x, weight):
        if self.rows is not None and len(x) != self.rows:
            raise RuntimeError("one sample at a time")
        return torch.tanh(self.linear(x) * weight[..., None]).sum(1)


SUMMED = {"perturb": "x", "units": Points(), "solver": ClosedForm(rank=None)}


@pytest.mark.parametrize("max_batch", [1, 2, 4, 32])
def test_what_is_shared_is_whole_for_every_part_of_a_batch(max_batch):
    """Also where the last part, or each, has by accident as many samples as it has rows."""
    x = torch.randn(5, 4, 3)
    for rows in (4, 1):  # never the whole batch's 5
        weight = torch.rand(rows) + 0.5
        each = {"x": x, "weight": weight.expand(5, 4)}
        wanted = entropy(Summed(), each, "", max_batch=32, **SUMMED)
        how = SUMMED | {"max_batch": max_batch, "shared": "weight" if rows > 1 else None}
        found = entropy(Summed(), {"x": x, "weight": weight}, "", **how)
        torch.testing.assert_close(found.entropy, wanted.entropy)


@pytest.mark.parametrize("max_batch", [1, 2, 32])
@pytest.mark.parametrize("samples", [2, 4])
def test_a_row_of_what_is_shared_is_never_laid_over_a_sample(samples, max_batch):
    x, weight = torch.randn(samples, samples, 3), torch.rand(samples) + 0.5
    given, how = {"x": x, "weight": weight}, SUMMED | {"max_batch": max_batch}
    with pytest.raises((ValueError, RuntimeError)) as raised:
        entropy(Summed(), given, "", **how)
    said = "\n".join([str(raised.value), *getattr(raised.value, "__notes__", [])])
    assert "'weight', whose first size is that of the batch" in said
    assert "shared='weight'" in said
    found = entropy(Summed(), given, "", shared="weight", **how)
    each = entropy(Summed(), {"x": x, "weight": weight.expand(samples, samples)}, "", **how)
    torch.testing.assert_close(found.entropy, each.entropy)
    with pytest.raises(LookupError, match="unknown shared input 'wieght'; did you mean 'weight'"):
        entropy(Summed(), given, "", shared=["wieght"], **how)


def test_a_network_for_one_sample_needs_a_word_on_what_is_shared():
    x, weight = torch.randn(4, 4, 3), torch.rand(4, 4) + 0.5
    how = SUMMED | {"max_batch": 1, "solver": Stochastic(steps=2, samples=2)}
    wanted = entropy(Summed(), {"x": x, "weight": weight}, "", **how)
    with pytest.raises(ValueError, match=r"is not clear\. Of 'weight'.*shared=\(\)"):
        entropy(Summed(1), {"x": x, "weight": weight}, "", **how)
    found = entropy(Summed(1), {"x": x, "weight": weight}, "", shared=(), **how)
    torch.testing.assert_close(found.entropy, wanted.entropy)


def test_all_that_measure_are_told_what_is_shared(tmp_path):
    x, weight = torch.randn(4, 4, 3), torch.rand(4) + 0.5
    given, how = {"x": x, "weight": weight}, SUMMED | {"shared": ["weight"]}
    wanted = entropy(Summed(), given, "linear", **how)
    assert wanted.settings["shared"] == ["weight"]
    half = torch.arange(4).expand(4, 4) < 2
    recorder = Recorder(Summed(), given, half, "linear", folder=tmp_path, **how)
    recorder.epoch()
    recorder.epoch()
    torch.testing.assert_close(recorder.trajectory().entropy[1], wanted.entropy)
    (part,) = entropies(Summed(), [given], "linear", **how)
    torch.testing.assert_close(part.entropy, wanted.entropy)
    options = {"perturb": "x", "units": Points()}
    found, each = (
        lipschitz(Summed(), {"x": x, "weight": w}, "linear", wanted.sigma, shared=s, **options)
        for w, s in ((weight, "weight"), (weight.expand(4, 4), ()))
    )
    torch.testing.assert_close(found.kappa, each.kappa)


# ---- numbers of another kind, and what a pass leaves behind


class Told(nn.Module):
    """A module that returns its input as ``turned`` makes it, and then a real number of it."""

    def __init__(self, turned, back) -> None:
        super().__init__()
        self.feature, self.turned, self.back = nn.Identity(), turned, back

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.feature(self.turned(x.flatten(1)[:, :8])))


def test_complex_features_are_refused_and_their_parts_side_by_side_are_not():
    def paired(h: Tensor) -> Tensor:
        return torch.complex(h[:, :4], 10 * h[:, 4:])

    message = r"layer 'feature' returns complex numbers.*view_as_real"
    for solver in (ClosedForm(rank=None), Stochastic(steps=2, samples=4)):
        with pytest.raises(TypeError, match=message):
            measure(Told(paired, torch.abs), "feature", solver=solver)
    apart = Told(lambda h: torch.view_as_real(paired(h)), torch.sum)
    beside = Told(lambda h: torch.cat([h[:, :4], 10 * h[:, 4:]], 1), torch.sum)
    found, wanted = (measure(m, "feature", solver=ClosedForm(rank=None)) for m in (apart, beside))
    torch.testing.assert_close(found.entropy, wanted.entropy)


def test_sparse_features_are_refused():
    with pytest.raises(TypeError, match=r"layer 'feature' returns a sparse tensor.*to_dense"):
        measure(Told(Tensor.to_sparse, Tensor.to_dense), "feature")


def test_a_finer_head_is_not_mistaken_for_a_dependence():
    """Rounding is that of the network's coarsest numbers, whatever the feature's own."""

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.below, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 2).double()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.below(x).mean((2, 3)).double())

    found = measure(Head(), "head", images(4, dtype=torch.float32))
    assert found.entropy.isfinite().all()


def test_buffers_are_left_as_they_were_even_after_an_error():
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.norm = nn.BatchNorm1d(5).double()
            self.register_buffer("passes", torch.zeros(()))
            self.register_buffer("other", torch.zeros(2))

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            self.other = self.other + 1
            self.norm.train()
            return self.norm(self.net(x))

    model = Counting()
    buffers = dict(model.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    assert measure(model, "net.two").entropy.isfinite().all()
    with pytest.raises(ValueError, match="more than 1 value"):  # of one sample no statistics
        measure(model, "norm")
    for name, buffer in model.named_buffers():
        assert buffer is buffers[name]
        assert torch.equal(buffer, before[name]), name


def test_misspelt_layers_in_options_are_named():
    model = Net()
    for option in ({"select": {"too": 0}}, {"batch_dim": {"too": 1}}):
        with pytest.raises(LookupError, match=r"unknown layer 'too'; did you mean 'two'"):
            measure(model, "two", **option)
    assert measure(model, "two", batch_dim={"one": 0}).entropy.isfinite().all()

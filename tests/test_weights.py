"""Weights as other people write them: every wrapping and prefix, and what must be refused."""

import argparse
import collections
import copy
import pathlib
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from kpnb.weights import load_weights, read_weights
from tests.models import small_net


def net(seed: int = 0) -> nn.Sequential:
    """A small network with batch normalisation: parameters, running statistics, a counter."""
    return small_net(seed=seed, norm=True)


def same(model: nn.Module, other: nn.Module) -> bool:
    """Whether two networks hold the same weights, whatever wraps them."""
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: value for name, value in state.items()}


def averaged(state: dict) -> dict:
    return {name: value + 1 for name, value in state.items()}


WRITTEN = {
    "plain": lambda s: s,
    "ordered": collections.OrderedDict,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"step": torch.tensor(1)}}}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": torch.tensor(0.3)},
    "net": lambda s: {"net": s, "acc": 71.3, "epoch": 3},
    "nested": lambda s: {"checkpoint": {"model": s}},
    "torchvision": lambda s: {
        "model": s,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "lr_scheduler": {"base_lrs": [0.1]},
        "args": argparse.Namespace(data=pathlib.Path("data"), device=torch.device("cpu")),
    },
    "lightning": lambda s: {
        "state_dict": prefixed(s, "model."),
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.3)}},
        "hyper_parameters": {"lr": 0.1},
        "pytorch-lightning_version": "2.4.0",
    },
    "another attribute": lambda s: {"state_dict": prefixed(s, "backbone.")},
    "timm": lambda s: {
        "state_dict": s,
        "state_dict_ema": averaged(s),
        "metric": np.float64(71.3),
        "arch": "vgg",
    },
    "average first": lambda s: {"model_ema": averaged(s), "model": s},
    "nested average": lambda s: {"ema": {"module": averaged(s), "decay": 0.99}, "model": s},
    "parallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "Lightning of a compiled": lambda s: {"state_dict": prefixed(s, "model._orig_mod.")},
    "parallel and compiled": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "compiled and parallel": lambda s: {"model": prefixed(s, "_orig_mod.module.")},
    "compiled block": lambda s: {n.replace("7.", "7._orig_mod.", 1): v for n, v in s.items()},
    "FSDP": lambda s: {n.replace("0.", "0._fsdp_wrapped_module.", 1): v for n, v in s.items()},
    "averaged model": lambda s: prefixed(s, "module.") | {"n_averaged": torch.tensor(4)},
    "with an epoch among them": lambda s: s | {"epoch": 3},
}


@pytest.mark.parametrize("suffix", ["memory", ".pt", ".pth", ".ckpt", ".bin", ".pth.tar"])
@pytest.mark.parametrize("form", WRITTEN)
def test_every_usual_form_is_read(tmp_path, form, suffix):
    source, model = net(1), net(2)
    content = WRITTEN[form](source.state_dict())
    if suffix != "memory":
        torch.save(content, tmp_path / f"epoch{suffix}")
        content = tmp_path / f"epoch{suffix}"
    notes = load_weights(model, content)
    assert same(model, source)
    assert bool(notes) == (form in {"timm", "average first", "nested average"})


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_safetensors_with_every_prefix(tmp_path, prefix):
    source, model = net(1), net(2)
    save_file(prefixed(source.state_dict(), prefix), tmp_path / "epoch.safetensors")
    assert load_weights(model, str(tmp_path / "epoch.safetensors")) == []
    assert same(model, source)


class Module(nn.Module):
    """What Lightning's users write: the network is an attribute."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


WRAPPED = {
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "both": lambda m: nn.DataParallel(torch.compile(m)),
    "attribute": Module,
}


@pytest.mark.parametrize("form", ["plain", "parallel", "compiled", "lightning"])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_the_model_itself_may_be_wrapped(wrap, form):
    source, model = net(1), net(2)
    content = WRITTEN[form](source.state_dict())
    load_weights(WRAPPED[wrap](model), content)
    assert same(model, source)


def test_kpnbs_own_checkpoints_give_their_weights(tmp_path):
    source, model = net(1), net(2)
    state = prefixed(source.state_dict(), "model.")
    for part in ("momentum.", "mean.", "square.", "step."):
        state |= prefixed(averaged(dict(source.named_parameters())), part)
    state = {name: value.detach() for name, value in state.items()}
    save_file(state, tmp_path / "epoch-000.safetensors")
    assert load_weights(model, tmp_path / "epoch-000.safetensors") == []
    assert same(model, source)


def test_the_average_can_be_asked_for(tmp_path, caplog):
    source, model = net(1), net(2)
    content = WRITTEN["timm"](source.state_dict())
    assert load_weights(model, content, entry="state_dict_ema") == []
    assert torch.equal(model[0].weight, source[0].weight + 1)
    load_weights(model, content)
    assert "weights taken from 'state_dict', not state_dict_ema" in caplog.text
    with pytest.raises(
        ValueError, match=r"unknown entry 'ema'; known: 'state_dict', 'state_dict_ema'"
    ):
        load_weights(model, content, entry="ema")


def test_a_file_with_two_networks_asks_which():
    student, teacher, model = net(1), net(2), net(3)
    both = {"student": student.state_dict(), "teacher": teacher.state_dict()}
    with pytest.raises(ValueError, match=r"several state dicts \(student, teacher\).*entry="):
        load_weights(model, both)
    load_weights(model, both, entry="teacher")
    assert same(model, teacher)
    names = prefixed(student.state_dict(), "student.") | prefixed(teacher.state_dict(), "teacher.")
    for one_entry in (names, {"state_dict": names}, {"state_dict": prefixed(names, "model.")}):
        with pytest.raises(ValueError, match=r"fit the model\. .*: pass .*\. missing") as error:
            load_weights(model, one_entry)
        advised = re.findall(r"prefix='([\w.]+)'", str(error.value))
        for prefix, network in zip(advised, (student, teacher), strict=True):
            load_weights(model, one_entry, prefix=prefix)
            assert same(model, network)
    load_weights(model, {"state_dict": names}, prefix="student.")
    assert same(model, student)
    with pytest.raises(ValueError, match=r"unknown prefix 'studnt\.'; did you mean 'student\.'"):
        load_weights(model, names, prefix="studnt.")


def test_of_two_networks_in_a_file_the_one_whose_shapes_fit_is_advised():
    model = nn.Linear(3, 2)
    wide = prefixed(nn.Linear(3, 9).state_dict(), "teacher.")
    narrow = prefixed(nn.Linear(3, 2).state_dict(), "student.")
    with pytest.raises(ValueError, match=r"fit the model\. .*: pass prefix='student\.'\. missing"):
        load_weights(model, wide | narrow)
    with pytest.raises(ValueError, match=r"fit the model\. .*: pass prefix='teacher\.'\. missing"):
        load_weights(model, wide | {"head.bias": torch.zeros(2)})


def test_a_folder_as_hugging_faces_trainer_writes_it(tmp_path):
    source, model = net(1), net(2)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    torch.save({"state": {}}, tmp_path / "optimizer.pt")
    load_weights(model, tmp_path)
    assert same(model, source)
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"2 weights files \(optimizer.pt, other.safetensors\)"):
        load_weights(model, tmp_path)


def test_a_folder_of_folders_says_what_it_holds(tmp_path):
    for step in (5, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        save_file(net(1).state_dict(), tmp_path / f"checkpoint-{step}" / "model.safetensors")
    says = (
        r"holds no weights: it holds checkpoint-10/, checkpoint-5/; .* end in \.safetensors, \.pt"
    )
    with pytest.raises(FileNotFoundError, match=says):
        load_weights(net(2), tmp_path)
    (tmp_path / "empty" / "__pycache__").mkdir(parents=True)  # Python's, nobody's files
    with pytest.raises(FileNotFoundError, match="holds no weights: it is empty; "):
        load_weights(net(2), tmp_path / "empty")


def test_the_home_folder_and_where_a_file_was_looked_for(tmp_path, monkeypatch):
    source, model = net(1), net(2)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.save(source.state_dict(), tmp_path / "last.pth.tar")
    for given in ("~/last.pth.tar", pathlib.Path("~"), "~"):
        load_weights(model, net(2))
        load_weights(model, given)
        assert same(model, source)
    with pytest.raises(
        FileNotFoundError, match=rf"lst\.pt does not exist \(looked in {tmp_path}\)"
    ):
        load_weights(model, "lst.pt")
    with pytest.raises(FileNotFoundError, match=r"lst\.pt does not exist$"):
        load_weights(model, "~/lst.pt")


def test_hints_are_whole_parts_of_names_and_name_a_tensor_once():
    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    numbered = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match=r"missing: conv1\.weight, bn1\.weight") as error:
        load_weights(Theirs(), numbered.state_dict())
    assert "is it" not in str(error.value)
    typed = Theirs().state_dict()
    near = {"convl.weight": typed.pop("conv1.weight")}
    with pytest.raises(ValueError, match=r"conv1\.weight \(is it convl\.weight\?\)"):
        load_weights(Theirs(), typed | near)
    two = nn.ModuleDict({"head": nn.Linear(2, 2, bias=False), "heads": nn.Linear(2, 2, bias=False)})
    with pytest.raises(
        ValueError, match=r"missing: head\.weight \(is it headz\.weight\?\), heads\.w"
    ) as error:
        load_weights(two, {"headz.weight": torch.ones(2, 2)})
    assert str(error.value).count("is it") == 1
    both = {"extra": torch.ones(2), "deep.net.head.weight": torch.ones(2, 2)}
    with pytest.raises(
        ValueError, match=r"head\.weight \(is it deep\.net\.head\.weight\?\), heads"
    ):
        load_weights(two, both)


def test_old_files_without_the_counter_of_batches(caplog):
    source, model = net(1), net(2)
    model[1].num_batches_tracked += 5
    old = {n: v for n, v in source.state_dict().items() if "num_batches" not in n}
    load_weights(model, old)
    assert "num_batches_tracked (1 layers)" in caplog.text
    assert model[1].num_batches_tracked == 5
    assert torch.equal(model[0].weight, source[0].weight)
    del old["1.running_var"]
    with pytest.raises(ValueError, match=r"missing: 1\.running_var$"):
        load_weights(model, old)


def test_tied_weights_are_stored_once():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

    model, value = Tied(), torch.randn(5, 3)
    load_weights(model, {"embed.weight": value})
    assert torch.equal(model.head.weight, value)
    model.head.weight = nn.Parameter(torch.zeros(5, 3))  # not tied any more
    with pytest.raises(ValueError, match=r"missing: head\.weight"):
        load_weights(model, {"embed.weight": value})


def without(state: dict, *names: str) -> dict:
    return {name: value for name, value in state.items() if name not in names}


MISFITS = {
    "missing": (lambda s: without(s, "4.weight"), r"missing: 4\.weight"),
    "unexpected": (lambda s: s | {"more": torch.ones(2)}, r"not in the model: more"),
    "misspelt": (
        lambda s: without(s, "7.weight") | {"7.wieght": s["7.weight"]},
        r"missing: 7\.weight \(is it 7\.wieght\?\); not in the model: 7\.wieght",
    ),
    "other width": (
        lambda s: s | {"7.weight": torch.ones(30, 288)},
        r"7\.weight is \[30, 288\] there and \[24, 288\] in the model",
    ),
    "quantised": (
        lambda s: s | {"7.weight": s["7.weight"].to(torch.int8)},
        r"7\.weight is int8 \[24, 288\] there",
    ),
    "last of all": (lambda s: s | {"10.bias": torch.ones(6)}, r"10\.bias is \[6\]"),
    "another network": (
        lambda s: {"a.weight": torch.ones(2)},
        r"missing: 0\.weight.*10\.weight, 10\.bias; not in",
    ),
    "nothing": (lambda s: {}, "holds no tensors by name"),
    "an optimiser": (lambda s: {"optimizer": {"state": {}}}, "holds no tensors.*but optimizer"),
}


def test_weights_of_other_libraries_are_named(tmp_path):
    arrays = {name: value.numpy() for name, value in net(1).state_dict().items()}
    np.savez(tmp_path / "epoch.npz", **arrays)
    with pytest.raises(ValueError, match=r"\.npz is NumPy's; torch\.save\(state_dict, path\)"):
        load_weights(net(2), tmp_path / "epoch.npz")
    with pytest.raises(ValueError, match=r"but NumPy arrays \(0\.weight, .*torch\.from_numpy"):
        load_weights(net(2), arrays)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("case", MISFITS)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path, case, prefix):
    model = net(2)
    before = copy.deepcopy(model.state_dict())
    change, message = MISFITS[case]
    path = tmp_path / "epoch.pt"
    torch.save(
        prefixed(change(net(1).state_dict()), prefix if case != "an optimiser" else ""), path
    )
    with pytest.raises(ValueError, match=message) as error:
        load_weights(model, path)
    assert str(path) in str(error.value)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


class Refusing(nn.Module):
    """Has extra state, and refuses that of others while it is loaded."""

    def get_extra_state(self) -> dict:
        return {"version": 1}

    def set_extra_state(self, state: dict) -> None:
        if state["version"] != 1:
            raise KeyError("version")


def test_a_module_that_refuses_while_it_loads_changes_nothing(tmp_path):
    model = nn.Sequential(net(2), Refusing())
    before = copy.deepcopy(model.state_dict())
    state = dict(nn.Sequential(net(1), Refusing()).state_dict())
    torch.save({"model": state}, tmp_path / "good.pt")
    torch.save({"model": state | {"1._extra_state": {"version": 2}}}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt does not fit"):
        load_weights(model, tmp_path / "bad.pt")
    assert torch.equal(model[0][0].weight, before["0.0.weight"])
    load_weights(model, tmp_path / "good.pt")
    assert torch.equal(model[0][0].weight, state["0.0.weight"])


@pytest.mark.parametrize("name", ["cut.pt", "cut.safetensors", "text.pt", "empty.pt", "noise.pt"])
def test_damaged_files_are_named(tmp_path, name):
    path, model = tmp_path / name, net(2)
    if name.startswith("cut"):
        (save_file if path.suffix == ".safetensors" else torch.save)(model.state_dict(), path)
        path.write_bytes(path.read_bytes()[:1000])
    else:
        noise = np.random.default_rng(0).bytes(999)
        path.write_bytes({"text": b"hello", "empty": b"", "noise": noise}[path.stem])
    with pytest.raises(ValueError, match=f"{name} is damaged or holds more than tensors"):
        load_weights(model, path)


def test_files_that_would_run_code_are_refused(tmp_path):
    torch.save({"model": net(), "epoch": 3}, tmp_path / "whole.pt")  # the network, not its weights
    with pytest.raises(ValueError, match=r"objects of .*BatchNorm2d.*save model\.state_dict\(\)"):
        load_weights(net(), tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt holds a list, not a state dict"):
        load_weights(net(), tmp_path / "list.pt")
    with pytest.raises(FileNotFoundError, match=r"absent\.pt does not exist"):
        load_weights(net(), tmp_path / "absent.pt")


def test_modes_devices_and_precision_stay_as_the_models():
    model, source = net(2).eval(), net(1).half()
    model[0].weight.requires_grad_(False)
    load_weights(model, source.state_dict())
    assert not model.training
    assert not model[0].weight.requires_grad
    assert torch.equal(model[0].weight, source[0].weight.float())


def test_models_with_rules_of_their_own():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the old form of weight normalisation is deprecated
        old = nn.utils.weight_norm(nn.Linear(3, 2))
        source = nn.utils.weight_norm(nn.Linear(3, 2))
        lazy = nn.LazyLinear(2)
    load_weights(old, prefixed(source.state_dict(), "module."))
    x = torch.randn(4, 3)
    assert torch.equal(old(x), source(x))
    load_weights(lazy, nn.Linear(3, 2).state_dict())
    assert lazy.weight.shape == (2, 3)
    with torch.device("meta"):
        empty = nn.Linear(3, 2)
    with pytest.raises(ValueError, match="meta device"):
        load_weights(empty, nn.Linear(3, 2).state_dict())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantised_networks_take_their_own_weights_and_refuse_others():
    source, model = (
        torch.ao.quantization.quantize_dynamic(net(seed), {nn.Linear}) for seed in (1, 2)
    )
    load_weights(model, source.state_dict())
    x = torch.randn(2, 3, 12, 12)
    assert torch.equal(model.eval()(x), source.eval()(x))
    with pytest.raises(ValueError, match=r"missing: .*7\._packed_params"):
        load_weights(model, net().state_dict())
    with pytest.raises(ValueError, match=r"missing: 7\.weight"):
        load_weights(net(), source.state_dict())


def test_sources_of_other_kinds():
    source, model = net(1), net(2)
    load_weights(model, source)
    assert same(model, source)
    with pytest.raises(TypeError, match="a state dict, a network or a file; got NoneType"):
        load_weights(model, None)
    with pytest.raises(TypeError, match=r"the model is a torch\.nn\.Module; got function"):
        load_weights(lambda x: x, {})


def test_reading_without_a_model():
    state, notes = read_weights({"model": prefixed(net().state_dict(), "module."), "epoch": 1})
    assert state.keys() == prefixed(net().state_dict(), "module.").keys()
    assert notes == []

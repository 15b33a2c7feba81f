"""Store: real faults (damaged files, killed and competing processes, full disk), exact round
trips.
"""

import json
import logging
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from kpnb_book.store import Run, Store, canonical

ENV = os.environ | {"OMP_NUM_THREADS": "1"}


def make(value: float = 1.0):
    return {"a": torch.full((3, 4), value), "n": torch.tensor(7)}, {"value": value}


def never():
    raise AssertionError("computed although it is stored")


def script(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never appeared"
        time.sleep(0.005)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Store(tmp_path / "store").run("kind", {"x": 1})


def files(run: Run) -> set[str]:
    return {path.name for path in run.path.iterdir()} - {".lock"}


def test_what_was_computed_comes_back_bit_for_bit(run: Run):
    tensors = {
        "bf16": torch.randn(5).bfloat16(),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "empty": torch.zeros(0, 2),
        "view": torch.arange(12).view(3, 4).T,
        "grad": torch.ones(2, requires_grad=True),
    }
    tensors["tied"] = tensors["view"]
    info = {"pair": (1, 2), "nan": math.nan, "third": 1 / 3}
    fresh = run.get("a", lambda: (tensors, info))
    stored = Store(run.root).run("kind", {"x": 1}).get("a", never)
    for item in (fresh, stored):
        assert item.info["pair"] == [1, 2]
        assert math.isnan(item.info["nan"])
        assert item.info["third"] == 1 / 3
        assert item.tensors.keys() == tensors.keys()
        for key, value in tensors.items():
            assert item.tensors[key].dtype == value.dtype
            assert torch.equal(item.tensors[key], value)
            assert item.tensors[key].is_contiguous()
    tensors["view"].zero_()
    assert fresh.tensors["view"].sum() == 66, "the result shares memory with what was passed in"


def test_address_depends_on_content_only():
    def address(config, kind="kind"):
        return Store("unused").run(kind, config).address

    assert address({"a": 1, "b": (1, 2.0)}) == address({"b": [1.0, 2], "a": 1})
    different = [
        {"a": 1},
        {"a": 2},
        {"a": True},
        {"a": "1"},
        {"a": None},
        {"a": 1.5},
        {"b": 1},
        {},
        {"a": [1]},
    ]
    assert len({address(config) for config in different}) == len(different)
    assert address({}, "one") != address({}, "two")


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"a": {"b": [1, {2}]}}, r"config\.a\.b\[1\] is a set"),
        ({"a": torch.ones(1)}, r"config\.a is a Tensor"),
        ({"a": math.nan}, r"config\.a is nan"),
        ({"a": {1: 2}}, r"config\.a has the key 1 of type int"),
        ({"a": Path("x")}, r"config\.a is a \w*Path"),
    ],
)
def test_what_is_not_json_is_named(config, where):
    with pytest.raises((TypeError, ValueError), match=where):
        canonical(config)


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a/b", "a\0"])
def test_names_cannot_leave_the_folder(run: Run, name: str):
    with pytest.raises(ValueError, match="cannot be a file name"):
        run.get(name, make)
    with pytest.raises(ValueError, match="cannot be a file name"):
        Store(run.root).run(name, {})


def test_root_comes_from_argument_then_environment_then_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KPNB_STORE", str(tmp_path / "env"))
    assert Store(tmp_path / "arg").root == tmp_path / "arg"
    assert Store().root == tmp_path / "env"
    monkeypatch.delenv("KPNB_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert Store().root == tmp_path / "cache" / "kpnb"


def truncate(run: Run) -> None:
    path = run.path / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-3])


def flip(run: Run, name: str = "b.safetensors", at: int = -2) -> None:
    data = bytearray((run.path / name).read_bytes())
    data[at] ^= 1
    (run.path / name).write_bytes(data)


def flip_value(run: Run) -> None:
    path = run.path / "b.json"
    path.write_text(path.read_text().replace('"value": 2.0', '"value": 2.5'))


def swap(run: Run) -> None:
    for suffix in ("safetensors", "json"):
        shutil.copy(run.path / f"a.{suffix}", run.path / f"b.{suffix}")


def other_run(run: Run) -> None:
    other = Store(run.root).run("kind", {"x": 2})
    other.get("b", lambda: make(9.0))
    for suffix in ("safetensors", "json"):
        shutil.copy(other.path / f"b.{suffix}", run.path / f"b.{suffix}")


DAMAGES = {
    "truncated": truncate,
    "flipped": flip,
    "header": lambda run: flip(run, at=3),
    "json broken": lambda run: (run.path / "b.json").write_text('{"info": '),
    "json empty": lambda run: (run.path / "b.json").write_text(""),
    "json list": lambda run: (run.path / "b.json").write_text("[]"),
    "json not text": lambda run: (run.path / "b.json").write_bytes(b"\xff\xfe\xff"),
    "json value": flip_value,
    "swapped": swap,
    "of another run": other_run,
    "tensors swapped": lambda run: shutil.copy(
        run.path / "a.safetensors", run.path / "b.safetensors"
    ),
    "tensors missing": lambda run: (run.path / "b.safetensors").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_said_once_and_only_it_is_recomputed(run: Run, damage: str, caplog):
    for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        run.get(name, lambda v=value: make(v))
    DAMAGES[damage](run)
    calls = []
    with caplog.at_level(logging.WARNING, "kpnb.checkpoints"):
        for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
            item = run.get(name, lambda n=name, v=value: calls.append(n) or make(v))
            assert item.info == {"value": value}
            assert torch.equal(item.tensors["a"], torch.full((3, 4), value))
        run.get("b", never)
    assert calls == ["b"]
    assert len(caplog.records) == 1
    assert "b.safetensors is damaged" in caplog.text


def test_missing_sidecar_means_not_there(run: Run, caplog):
    run.get("a", make)
    (run.path / "a.json").unlink()
    assert not run.has("a")
    assert run.get("a", lambda: make(5.0)).info == {"value": 5.0}
    assert not caplog.records


def test_info_reads_no_tensors_but_sees_a_truncated_file(run: Run):
    run.get("b", make)
    flip(run)  # the size is right: only a reader of the content can know
    assert run.info("b") == {"value": 1.0}
    truncate(run)
    assert run.info("b") is None
    assert run.info("c") is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failed_computation_leaves_nothing(run: Run, error):
    def fail():
        raise error

    with pytest.raises(error):
        run.get("a", fail)
    assert files(run) == set()
    assert run.get("a", make).info == {"value": 1.0}


def test_what_cannot_be_stored_leaves_nothing(run: Run):
    with pytest.raises(TypeError, match="JSON"):
        run.get("a", lambda: ({}, {"bad": {1, 2}}))
    assert files(run) == set()


def test_a_computation_may_ask_for_another_artefact(run: Run):
    item = run.get("b", lambda: (run.get("a", make).tensors, {"from": "a"}))
    assert files(run) == {"config.json", "a.json", "a.safetensors", "b.json", "b.safetensors"}
    assert torch.equal(item.tensors["a"], make()[0]["a"])


def test_a_broken_config_is_written_anew(run: Run):
    run.get("a", make)
    (run.path / "config.json").write_text("{")
    run.get("b", make)
    assert json.loads((run.path / "config.json").read_text())["config"] == {"x": 1}


KILLED = """
import os, signal, sys, torch
import kpnb_book.store as store
for where in sys.argv[2:]:
    if os.fork() == 0:
        real = os.replace
        def replace(source, target):
            if str(target).endswith(where):
                os.kill(os.getpid(), signal.SIGKILL)
            real(source, target)
        os.replace = replace
        store.Store(sys.argv[1]).run("kind", {"where": where}).get("a", lambda: ({"a":
        torch.ones(3)}, {}))
    assert os.wait()[1] == signal.SIGKILL
"""


def test_kill_while_writing(tmp_path: Path):
    places = ["a.safetensors", "a.json"]
    subprocess.run(script(KILLED, tmp_path, *places), env=ENV, check=True, timeout=60)
    for where in places:
        run = Store(tmp_path).run("kind", {"where": where})
        assert f"{where}.tmp" in files(run)
        assert not run.has("a")
        run.get("a", make)
        assert files(run) == {"config.json", "a.json", "a.safetensors"}


RIVAL = """
import logging, sys, time, torch
from pathlib import Path
import kpnb_book.store as store
logging.basicConfig(level="INFO", format="%(levelname)s %(message)s")
root, me = Path(sys.argv[1]), sys.argv[2]
def compute():
    with open(root / "calls", "a") as file:
        file.write(me + "\\n")
    time.sleep(1.0)
    return {"a": torch.ones(3)}, {"by": me}
(root / f"ready-{me}").touch()
while not (root / "go").exists():
    time.sleep(0.002)
print(store.Store(root / "store").run("kind", {}).get("a", compute).info["by"])
"""


def test_two_processes_compute_once_and_the_other_waits(tmp_path: Path):
    """That it waits is said to those who want to know."""
    rivals = [
        subprocess.Popen(script(RIVAL, tmp_path, me), env=ENV, stdout=-1, stderr=-1, text=True)
        for me in ("one", "two")
    ]
    for me in ("one", "two"):
        wait_for(tmp_path / f"ready-{me}")
    (tmp_path / "go").touch()
    outputs = [rival.communicate(timeout=60) for rival in rivals]
    calls = (tmp_path / "calls").read_text().split()
    assert len(calls) == 1
    assert [out.strip() for out, _ in outputs] == calls * 2
    said = "".join(err for _, err in outputs)
    assert said.count("INFO waiting for another process that computes kind/") == 1


FULL = """
import resource, sys, torch
import kpnb_book.store as store
run = store.Store(sys.argv[1]).run("kind", {"x": 1})
run.get("small", lambda: ({"a": torch.ones(3)}, {}))
resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
try:
    run.get("big", lambda: ({"a": torch.ones(10000)}, {}))
except OSError as error:
    print(error)
"""


def test_full_disk_names_root_and_remedy_and_loses_nothing(run: Run):
    done = subprocess.run(
        script(FULL, run.root), env=ENV, capture_output=True, text=True, check=True, timeout=60
    )
    assert f"cannot write to the store {run.root}" in done.stdout
    assert "free some space" in done.stdout
    assert "KPNB_STORE" in done.stdout
    assert run.has("small")
    assert files(run) == {"config.json", "small.json", "small.safetensors"}


def test_root_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    run = Store(tmp_path / "file").run("kind", {})
    assert not run.has("a")
    with pytest.raises(
        OSError, match=rf"store {tmp_path / 'file'}: .*file is a file, where a folder.*KPNB_STORE"
    ):
        run.get("a", never)


@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="permissions do not bind root"
)
def test_a_read_only_store_serves_what_it_has(run: Run):
    run.get("a", make)
    run.path.chmod(0o500)
    try:
        assert run.get("a", never).info == {"value": 1.0}
        with pytest.raises(OSError, match="make it a writable folder"):
            run.get("b", make)
    finally:
        run.path.chmod(0o700)

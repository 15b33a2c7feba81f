"""What is never done: unpickle, unpack archives into folders, load YAML that can run code, download
without a hash, write into somebody's data."""

import ast
import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from kpnb_book.data import clouds, images, reviews, text, text_official
from kpnb_book.hub import source
from kpnb_book.networks.text import TextNet
from tests.drawn import draw
from tests.test_data_clouds import SMALL, WRITERS
from tests.tiny_text import tiny_model, write_squad, write_sst2

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for folder in ("kpnb", "book", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
    if not {"_build", "_executed"} & {*path.parts}
]

UNPICKLES = "pickle.load pickle.loads Unpickler read_pickle allow_pickle marshal shelve dill joblib"
UNPACKS = "extract extractall unpack_archive exec trust_remote_code extract_archive"
READS_YAML = "yaml.load yaml.load_all yaml.full_load yaml.unsafe_load"
DOWNLOADS = "urlopen urlretrieve urllib requests httpx hub.load download_and_extract_archive"
FORBIDDEN = f"{UNPICKLES} {UNPACKS} {READS_YAML} {DOWNLOADS}".split()
# A call of these needs an argument, and with it this value.
NEEDED = {
    "torch.load": ("weights_only", True),
    "get_state_dict": ("check_hash", True),
    "load_state_dict_from_url": ("check_hash", True),
    "extractall": ("filter", "data"),  # nothing can lie outside of the folder
    "download_url": ("md5", ...),
}


def dotted(node: ast.AST) -> str:
    """Dotted name of an expression, as far as it has one, behind a dot."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return f".{getattr(node, 'id', '')}"


def imported(node: ast.Import | ast.ImportFrom) -> list[str]:
    module = f".{node.module}" if isinstance(node, ast.ImportFrom) else ""
    return [module, *(f"{module}.{alias.name}" for alias in node.names)]


def lacks(call: ast.Call, name: str) -> str | None:
    """The argument that a call of the function ``name`` needs and does not have."""
    for function, (key, value) in NEEDED.items():
        if name.endswith(f".{function}") and ".safetensors" not in name:
            given = [word.value for word in call.keywords if word.arg == key]
            good = given and (value is ... or getattr(given[0], "value", None) == value)
            return None if good else key
    return None


def offences(source: str) -> Iterator[str]:
    """Names in a source that should not be there, and calls that lack an argument."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = imported(node)
        elif isinstance(node, ast.Call):
            name = dotted(node.func)
            if key := lacks(node, name):
                yield f"{name} without {key}, line {node.lineno}"
            names = [f".{word.arg}" for word in node.keywords]
            if not any(name.endswith(f".{function}") for function in NEEDED):
                names.append(name)
        for name in names:
            if any(name.endswith(f".{bad}") for bad in FORBIDDEN):
                yield f"{name}, line {node.lineno}"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "from pickle import loads",
        "import marshal",
        "torch.load(path)",
        "torch.load(path, weights_only=flag)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "tarfile.open(path).extractall(folder)",
        "archive.extractall(folder, filter='fully_trusted')",
        "download_url(url, folder)",
        "from torchvision.datasets.utils import download_and_extract_archive",
        "yaml.load(text, Loader=yaml.Loader)",
        "urllib.request.urlopen(url)",
        "weights.get_state_dict(progress=False)",
    ],
)
def test_offences_are_found(source):
    assert [*offences(source)]


def test_no_source_does_what_it_must_not():
    assert len(SOURCES) > 40
    found = {str(path): [*offences(path.read_text("utf8"))] for path in SOURCES}
    found = {path: names for path, names in found.items() if names}
    # the first cells of a chapter, which its kernel would execute
    planned = found.pop(str(ROOT / "book" / "kpnb_book" / "run" / "plans.py"))
    assert [re.sub(r"\d+", "", each) for each in planned] == [".exec, line "] * 2
    assert found == {}


def test_pickled_weights_of_an_encoder_are_not_read(tmp_path):
    name = tiny_model(tmp_path)
    TextNet(name, pretrained=True)
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(OSError, match="safetensors"):
        TextNet(name, pretrained=True)


def test_downloads_are_pinned_by_hash():
    pinned = Path(reviews.__file__).with_name("reviews.txt").read_text("utf8")
    assert "--require-hashes" in pinned
    assert len(text_official.SST2) == 40
    for name in ("bert-base-uncased", "someone/model@0123abc"):
        asked = source(name)
        assert re.fullmatch("0123abc|[0-9a-f]{40}", asked["revision"])
        assert asked["pretrained_model_name_or_path"] == name.removesuffix("@0123abc")
    packages = json.loads((ROOT / "package.json").read_text("utf8"))
    assert packages["integrity"].keys() == {*packages["dependencies"], *packages["devDependencies"]}
    assert all(value.startswith("sha512-") for value in packages["integrity"].values())


def content(root: Path) -> dict[str, tuple]:
    """Every file and folder below ``root``: permissions, time and what is in it."""
    found = {}
    for path in [root, *root.rglob("*")]:
        about = path.stat()
        inside = sha256(path.read_bytes()).hexdigest() if path.is_file() else None
        found[str(path)] = (about.st_mode, about.st_mtime_ns, inside)
    return found


READERS = {
    "folder": (draw, lambda root, split: images.load("folder", split, size=16, root=root)),
    "sst2": (write_sst2, lambda root, split: text.load("sst2", split, root=root, length=24)),
    "squad": (write_squad, lambda root, split: text.load("squad", split, root=root, length=48)),
    **{
        layout: (write, lambda root, split: clouds.load("modelnet40", split, root=root, **SMALL))
        for layout, write in WRITERS.items()
    },
}


@pytest.mark.parametrize("kind", READERS)
def test_a_data_root_is_never_written_to(tmp_path, kind):
    write, read = READERS[kind]
    root = tmp_path / "data"
    root.mkdir()
    write(root)
    folders = [root, *root.rglob("*/")]
    for path in [*root.rglob("*"), root]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = content(root)
    try:
        for split in ("train", "test"):
            assert len(read(root, split))
        assert content(root) == before
    finally:
        for folder in folders:
            folder.chmod(0o755)

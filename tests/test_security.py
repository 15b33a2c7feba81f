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
from tests.test_data_clouds import SMALL, WRITERS
from tests.test_study import draw
from tests.tiny_text import tiny_model, write_squad, write_sst2

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for path in ROOT.glob("[!.]*/**/*.py")
    if path.parts[len(ROOT.parts)] in ("kpnb", "book", "benchmarks")
]
SOURCES = [path for path in SOURCES if not {"_build", "_executed"} & {*path.parts}]

FORBIDDEN = {
    *(
        "pickle.load",
        "pickle.loads",
        "Unpickler",
        "read_pickle",
        "allow_pickle",
        "marshal",
        "shelve",
        "dill",
        "joblib",
    ),
    *("extractall", "extract", "unpack_archive", "exec", "trust_remote_code"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
    *("urlopen", "urlretrieve", "urllib", "requests", "httpx", "hub.load"),
}
NEEDED = {
    "torch.load": "weights_only",
    "get_state_dict": "check_hash",
    "load_state_dict_from_url": "check_hash",
}


def dotted(node: ast.AST) -> str:
    """Dotted name of an expression, as far as it has one, behind a dot."""
    return (
        f"{dotted(node.value)}.{node.attr}"
        if isinstance(node, ast.Attribute)
        else f".{getattr(node, 'id', '')}"
    )


def offences(source: str) -> Iterator[str]:
    """The names in a source that should not be there, and calls that lack a keyword argument which
    must be True.
    """
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            names = [
                f".{module}.{alias.name}" if module else f".{alias.name}" for alias in node.names
            ]
            names += [f".{module}"]
        elif isinstance(node, ast.Call):
            names = [dotted(node.func), *(f".{keyword.arg}" for keyword in node.keywords)]
            true = {
                k.arg
                for k in node.keywords
                if isinstance(k.value, ast.Constant) and k.value.value is True
            }
            needed = [
                key
                for name, key in NEEDED.items()
                if names[0].endswith(f".{name}")
                and key not in true
                and ".safetensors" not in names[0]
            ]
            yield from (f"{names[0]} without {key}, line {node.lineno}" for key in needed)
        yield from (
            f"{name}, line {node.lineno}"
            for name in names
            for bad in FORBIDDEN
            if name.endswith(f".{bad}")
        )


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
        "yaml.load(text, Loader=yaml.Loader)",
        "urllib.request.urlopen(url)",
        "weights.get_state_dict(progress=False)",
    ],
)
def test_offences_are_found(source):
    assert [*offences(source)]


def test_no_source_does_what_it_must_not():
    assert len(SOURCES) > 40
    assert {
        path.name: found for path in SOURCES if (found := [*offences(path.read_text("utf8"))])
    } == {}


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
    paths = sorted([root, *root.rglob("*")])
    stats = [(path, path.stat()) for path in paths]
    return {
        str(p): (s.st_mode, s.st_mtime_ns, p.is_file() and sha256(p.read_bytes()).hexdigest())
        for p, s in stats
    }


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

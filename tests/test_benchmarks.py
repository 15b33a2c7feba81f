"""The benchmarks' command, and the page that shows what it has kept. What they measure is not
judged here.
"""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest
import torch

import kpnb
from benchmarks import __main__ as command
from benchmarks import chapters, directions, frontier, fullsize, gpu, losses, regression, solvers
from kpnb.energy import jacobians
from kpnb.losses import LOSSES
from kpnb.units import ImageGrid
from kpnb_book.figures import frontier as figure
from kpnb_book.networks.images import build
from kpnb_book.run.notebooks import run_notebook
from kpnb_book.store import Store
from kpnb_book.studies.text import TextStudy
from tests.models import images, small_net
from tests.test_runner import repository, write
from tests.tiny_text import tiny_model, write_sst2

ROOT = Path(__file__).resolve().parents[1]


def call(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    command.main()


@pytest.fixture
def clone(tmp_path, monkeypatch) -> Path:
    """A tiny clone, in which two benchmarks say what they were asked."""
    monkeypatch.chdir(repository(tmp_path))
    said = {
        name: lambda quick, name=name: print(name, "quick" if quick else "in full")
        for name in ("one", "two")
    }
    monkeypatch.setattr(command, "ALL", said)
    return tmp_path


def test_everything_is_kept_with_the_machine_and_a_part_is_not(clone, monkeypatch, capsys):
    kept = clone / "book" / "_executed" / "benchmarks.txt"
    call(monkeypatch, "two", "--quick")
    assert capsys.readouterr().out.splitlines()[-1] == "two quick"
    assert not kept.exists()
    call(monkeypatch)
    lines = kept.read_text("utf8").splitlines()
    assert [line.split()[0] for line in lines] == [
        "processor",
        "system",
        "PyTorch",
        "measured",
        "one",
        "two",
    ]
    assert lines[-2:] == ["one in full", "two in full"]
    assert capsys.readouterr().out.startswith(kept.read_text("utf8"))
    with pytest.raises(SystemExit):
        call(monkeypatch, "three")
    assert "unknown benchmark 'three'" in capsys.readouterr().err


def test_a_benchmark_that_fails_leaves_the_figures_before(clone, monkeypatch):
    call(monkeypatch)
    before = (clone / "book" / "_executed" / "benchmarks.txt").read_text("utf8")
    command.ALL["two"] = lambda quick: 1 / 0
    with pytest.raises(ZeroDivisionError):
        call(monkeypatch)
    assert (clone / "book" / "_executed" / "benchmarks.txt").read_text("utf8") == before


def test_chapters_are_those_that_were_executed(clone, capsys):
    chapters.run(quick=True)
    assert "none: make book executes them" in capsys.readouterr().out
    path = write(
        clone / "notebooks" / "11_second.ipynb", "quick = 1", "import time; time.sleep(1.2)"
    )
    run_notebook(path, clone / "book" / "_executed" / path.name)
    capsys.readouterr()
    chapters.run(quick=True)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "11_second" in line)
    _, seconds, longest, cell = line.split(maxsplit=3)
    assert 1.2 <= float(longest) <= float(seconds)
    assert cell.startswith("import time; time.sleep(1.2)")


def test_figures_are_shipped_where_they_are_asked_for(clone, monkeypatch):
    shipped = clone / "benchmarks" / "results" / "mine.txt"
    call(monkeypatch, "two", "--output", str(shipped))
    lines = shipped.read_text("utf8").splitlines()
    assert [lines[0].split()[0], lines[-1]] == ["processor", "two in full"]
    assert not (clone / "book" / "_executed" / "benchmarks.txt").exists()


def test_page_shows_what_is_shipped_and_what_was_kept(tmp_path, found):
    swap = runpy.run_path(str(ROOT / "book" / "_ext" / "executed.py"))["swap"]
    app, page = (
        SimpleNamespace(srcdir=tmp_path),
        (ROOT / "book" / "benchmarks.md").read_text("utf8"),
    )
    (tmp_path / "_toc.yml").write_text("")

    def shown() -> str:
        source = [page]
        swap(app, "book/benchmarks", source)
        return source[0]

    assert "No figures are shipped" in shown()
    assert "Nothing has been measured here yet" in shown()
    assert "No points are shipped" in shown()
    for file, said in (
        ("book/_executed/benchmarks.txt", "processor   mine\n"),
        ("benchmarks/results/laptop.txt", "processor   of 2024\n"),
    ):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(said)
    frontier.keep(found, tmp_path / "benchmarks" / "results" / "frontier-mine.csv", "")
    shipped, measured = shown().split("### Measured on the computer")
    assert "```text\nprocessor   of 2024\n```" in shipped
    assert "```text\nprocessor   mine\n```" in measured
    assert "shipped with this version" not in shipped
    picture = re.search(r"```{figure} (\S+)", shown())[1]
    assert "<svg" in (tmp_path / "book" / picture).read_text("utf8")


class Few:
    """Two images and their foreground: what ``solvers`` wants of a study, in small."""

    x = images(2, dtype=torch.float32)
    units = ImageGrid(4)
    foreground = torch.arange(16).expand(2, -1) < 8
    settings = SimpleNamespace(b=0.2)

    @staticmethod
    def path(_layer: str) -> str:
        return "8"


def test_the_learner_is_compared_in_both_ways_to_stop(capsys):
    """Passes an image: 60 steps as released, two thirds of that or so when aligned."""
    solvers.against_the_learner(Few, small_net(), "FC1", images=2, samples=2)
    said = capsys.readouterr().out
    rows = re.findall(
        r"(as released|stopped when aligned) +([\d.]+) ms +([\d,]+) +(\d+)$", said, re.M
    )
    assert [name for name, *_ in rows] == ["as released", "stopped when aligned"]
    released, aligned = (int(passes) for _, _, passes, _ in rows)
    assert released == 60 * 2
    assert 50 < aligned < 110
    for pair in ("closed form, exact", "as released, exact", "stopped when aligned, two seeds"):
        assert pair in said


def test_a_row_of_the_paper_counts_the_passes_that_the_release_makes(capsys):
    """Of an image and a checkpoint: eight maps, 60 x 96 forwards and as many backwards for each."""
    fullsize.row(closed=0.5, step=0.25)
    said = capsys.readouterr().out
    released, aligned = re.findall(
        r"learner, (?:as|stopped).* +([\d.]+) s and +([\d,]+) passes", said
    )[:2]
    assert released == ("30.0", f"{8 * 2 * 5760:,}")
    assert aligned == ("18.0", f"{8 * 2 * 36 * 96:,}")
    assert "as released takes 60 times as long" in said


# ---- the best directions


def test_the_best_directions_are_those_of_a_singular_value_decomposition():
    model, x = small_net(), Few.x[:1]
    whole = torch.autograd.functional.jacobian(model[:9], x).flatten(2)[0]  # [d, C H W]
    left, sizes, _ = np.linalg.svd(whole.numpy().astype(float), full_matrices=False)
    about = directions.perturbation(model, x, Few.units)
    found = directions.leading(jacobians(about, ["8"])["8"], 3)[:, 0].double().numpy()
    # singular vectors have no sign
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :3] * sizes[:3]).T, atol=1e-5)


def test_directions_that_noise_finds_are_the_closed_forms_and_all_of_them_are_exact():
    model, counts = small_net(), [(2, 2), (20, 4)]  # the second spans the feature
    each = list(directions.entropies(model, Few.x, "8", Few.units, counts, seeds=[0, 10]))
    how = {"units": Few.units, "dead": "nan"}
    exact = kpnb.entropy(model, Few.x, "8", solver=kpnb.ClosedForm(rank=None), **how).entropy
    sketch = kpnb.ClosedForm(rank=2, probes=2, noise=3)
    sketched = kpnb.entropy(model, Few.x, "8", solver=sketch, seed=10, **how).entropy
    for number, sample in enumerate(each):
        assert len(sample) == 1 + 2 * 2 * 2
        torch.testing.assert_close(sample["exact"].float(), exact[number])
        torch.testing.assert_close(sample["noise", 2, 2, 10].float(), sketched[number])
        for kind in ("noise", "best"):
            torch.testing.assert_close(
                sample[kind, 20, 4, 0].float(), exact[number], atol=1e-4, rtol=0
            )


# ---- the frontier


@pytest.fixture(scope="module")
def few() -> frontier.Case:
    """A small network after no training, of which the learner measures one of two images."""
    how = {"x": Few.x, "units": Few.units, "scale": 1.0}
    about = ("images", "early", "FC1")

    def entropies(model, layers, **options):
        return kpnb.entropy(model, layers=layers, **how, **options)

    return frontier.Case(*about, small_net(), "8", entropies, how, Few.foreground, 0.05, few=1)


SKETCHES = (
    kpnb.ClosedForm(rank=2, probes=2, noise=3),
    kpnb.ClosedForm(rank=20, probes=4, noise=20),
)


@pytest.fixture(scope="module")
def found(few) -> pd.DataFrame:
    """Points of two sketches, of which the second spans the feature, the Jacobian and the
    learner.
    """
    rows = frontier.measured(few, SKETCHES, seeds=[0, 10], samples=2)
    return pd.DataFrame(map(asdict, rows))


def test_errors_of_the_frontier_are_those_of_entropies_by_hand(few, found):
    """Means over the seeds, over all images and over those of the learner."""
    how = {"units": Few.units, "dead": "nan"}
    model = small_net()
    exact = kpnb.entropy(model, Few.x, "8", solver=kpnb.ClosedForm(rank=None), **how).entropy
    sketched = found[found["rank"] == 2].set_index("samples")
    assert [*sketched.index] == [1, 2]
    for count in (1, 2):
        gaps = [
            kpnb.entropy(model, Few.x, "8", solver=SKETCHES[0], seed=s, **how).entropy - exact
            for s in (0, 10)
        ]
        wanted = np.mean([gap[:count].abs().mean().item() for gap in gaps])
        assert sketched.loc[count, "error"] == pytest.approx(wanted)
    spans = found[(found["rank"] == 20) | (found["way"] == "exact Jacobian")]
    assert len(spans) == 4
    assert spans["error"].max() < 1e-5
    assert spans["iou"].min() == 1
    assert (found[found["way"].str.startswith("learner")]["samples"] == 1).all()


def test_the_frontier_names_the_fastest_setting_that_is_as_good_as_the_learner(capsys):
    """One has too few points on the learner's images, if not on all; one is slow."""
    about = {"network": "images", "when": "late", "layer": "FC1", "error": 0.02}
    settings = {(1, 2, 2): (1, 0.7), (2, 2, 1): (2, 0.85), (9, 5, 14): (4, 0.95)}
    rows = []
    for (rank, probes, noise), (milliseconds, iou) in settings.items():
        numbers = {"way": "closed form", "rank": rank, "probes": probes, "noise": noise}
        row = about | numbers | {"milliseconds": milliseconds}
        rows += [row | {"samples": 4, "iou": iou}, row | {"samples": 32, "iou": 0.99}]
    for way, milliseconds in (("as released", 2200), ("stopped when aligned", 1400)):
        row = about | {"way": f"learner, {way}", "milliseconds": milliseconds}
        rows.append(row | {"samples": 4, "iou": 0.8})
    frontier.show(pd.DataFrame(rows))
    lines = capsys.readouterr().out.splitlines()
    assert "2 + 2, 1 (draft) has the released learner's IoU: 1,100 times faster" in lines[-1]
    assert lines[-1].endswith("700 times faster than the learner, stopped when aligned")
    assert [line.split("  ")[1] for line in lines[3:6]] == [
        "1 + 2, 2",
        "2 + 2, 1 (draft)",
        "9 + 5, 14 (default)",
    ]


def test_points_that_are_kept_are_read_again_and_drawn(found, tmp_path):
    """With their provenance: a line of the closed form, and the learner's two marks in each."""
    path = tmp_path / "frontier-mine.csv"
    frontier.keep(found, path, "processor   mine")
    assert "# processor   mine\n" in path.read_text("utf8")
    rows = figure.read(path)
    pd.testing.assert_frame_equal(rows, found, check_exact=False, rtol=1e-4)
    error, iou = figure.draw(rows).axes
    line, sketched = error.lines[0].get_xydata(), rows[rows["way"] == "closed form"]
    sketched = sketched[sketched["samples"] == 2]
    np.testing.assert_array_equal(line, sketched[["milliseconds", "error"]])
    for axis in (error, iou):
        assert len(axis.collections) == 2


def test_points_and_figure_go_where_the_frontier_is_told_to(clone, monkeypatch, capsys):
    said = {}
    monkeypatch.setitem(command.ALL, "frontier", lambda quick, **where: said.update(where))
    call(monkeypatch, "one", "frontier", "--points", "a.csv", "--figure", "a.svg")
    assert said == {"points": Path("a.csv"), "figure": Path("a.svg")}
    with pytest.raises(SystemExit):
        call(monkeypatch, "one", "--points", "a.csv")
    assert "--points and --figure are of the frontier" in capsys.readouterr().err


SHIPPED = figure.read(ROOT / "benchmarks" / "results" / "frontier-two-cores.csv")
OF = ["rank", "probes", "noise"]


def test_the_draft_is_the_cheapest_that_is_as_good_as_the_learner_at_both_layers():
    """Of the points that are shipped, on the learner's images."""
    learned = SHIPPED[SHIPPED["way"] == "learner, as released"].set_index("layer")
    closed = SHIPPED[(SHIPPED["way"] == "closed form") & (SHIPPED["when"].str.startswith("late"))]
    closed = closed[(closed["samples"] == frontier.FEW) & (closed["network"] == "images")]
    closed = closed[closed["layer"].isin(learned.index)]
    closed = closed.assign(enough=closed["iou"] >= closed["layer"].map(learned["iou"]))
    by_setting = closed.groupby(OF)
    enough = by_setting["milliseconds"].mean()[by_setting["enough"].all()]
    assert kpnb.ClosedForm(*map(int, enough.idxmin())) == kpnb.ClosedForm.draft()


def test_the_page_says_of_the_named_settings_what_the_points_say():
    page = (ROOT / "book" / "benchmarks.md").read_text("utf8")
    cell = r" *([\d.]+) \(([\d.]+)\) *\|"
    rows = re.findall(rf"^\| ([a-z ]+), (\w+), (\w+) \|{3 * cell}", page, re.M)
    assert len(rows) == 9
    for network, layer, when, *said in rows:
        here = (SHIPPED["layer"] == layer) & SHIPPED["when"].str.startswith(when)
        here &= SHIPPED["network"] == network.removeprefix("point ")
        points = SHIPPED[here & (SHIPPED["way"] == "closed form")].sort_values("samples")
        points = points.drop_duplicates(OF, keep="last").set_index(OF)
        for solver, iou, error in zip(frontier.NAMED.values(), said[::2], said[1::2], strict=True):
            point = points.loc[(solver.rank, solver.probes, solver.noise)]
            assert float(iou) == pytest.approx(point["iou"], abs=0.0051)
            assert float(error) == pytest.approx(point["error"], abs=0.00051)


def test_named_settings_make_as_many_passes_as_they_say():
    """Forwards: the noise, one with a graph, one that checks; backwards: one a direction."""
    for name, (forwards, backwards) in {"draft": (3, 4), "default": (16, 14)}.items():
        counting = Passes()
        model = torch.nn.Sequential(counting, *small_net(width=48))
        how = {"units": Few.units, "dead": "nan", "check": False, "max_batch": 2}
        kpnb.entropy(model, Few.x, "9", solver=frontier.NAMED[name], **how)
        assert (counting.forwards, counting.backwards) == (forwards, backwards)
    assert frontier.NAMED["careful"] == kpnb.ClosedForm(rank=16, probes=16, noise=24)


class Passes(torch.nn.Module):
    """Hands images on, and counts the passes in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.forwards = self.backwards = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.forwards += 1
        if x.requires_grad:
            x.register_hook(self.back)
        return x

    def back(self, _gradient: torch.Tensor) -> None:
        self.backwards += 1


def test_the_learner_for_texts_is_timed_at_its_own_steps(tmp_path, monkeypatch, capsys):
    """A step is what twice as many take longer; everything runs, and a clock is planted."""
    times = iter([0.5, 0.3, 0.8, 0.4])
    monkeypatch.setattr(solvers, "seconds", lambda run: run() and next(times))
    write_sst2(tmp_path)
    model = tiny_model(tmp_path / "model")
    sst2 = {"dataset": "sst2", "data_root": str(tmp_path), "network": model, "analysed": 4}
    study = TextStudy("smoke", store=Store(tmp_path / "store"), **sst2)
    solvers.against_the_interpreter(study, type(study).build(**study.teacher_spec()).eval(), 2)
    said = capsys.readouterr().out.splitlines()
    assert "closed form against 5,000 steps of one sample" in said[-3]
    assert said[-2].split() == ["default", "200.0", "ms", "500,000", "ms", "2,500"]
    assert said[-1].split() == ["chapters", "100.0", "ms", "500,000", "ms", "5,000"]


# ---- on a card


def smaller() -> gpu.Network:
    """A whole Jacobian of 256 rows in place of 1,024."""
    plan = [4, "M", 4, "M"]
    return gpu.Network(lambda: gpu._vgg(plan, 48, 32), ("0.5", "2.1", "2.2"), 32)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory) -> dict:
    """What the miniature on the CPU has written, as JSON and as a page."""
    folder = tmp_path_factory.mktemp("gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setattr(gpu, "small", smaller)
        gpu.main([str(folder), "--price", "3"])
    page = (folder / "gpu-none-on-the-cpu.md").read_text("utf8")
    return json.loads((folder / "gpu-none-on-the-cpu.json").read_text("utf8")) | {"page": page}


def test_without_a_card_every_part_runs_in_miniature_and_says_so(miniature):
    assert "There is no CUDA card here" in miniature["page"]
    assert miniature["machine"]["card"] == "none, on the CPU"
    for name, part in miniature["parts"].items():
        assert f"## {name}" in miniature["page"]
        assert part["rows"]
        assert not part["left_out"]


def test_energies_in_other_precisions_are_as_far_off_as_they_must_be(miniature):
    """The exact ones in float64 are the reference itself; the sketch has its own error, and float32
    adds little to it.
    """
    rows = [r for r in miniature["parts"]["correctness"]["rows"] if "precision" in r]
    gaps = {(r["what"].split()[0], r["precision"], r["layer"]): r["mean_error"] for r in rows}
    for layer in {layer for _, _, layer in gaps}:
        assert gaps["exact", "float64", layer] == 0
        assert 0 < gaps["exact", "float32", layer] < 1e-3
        assert gaps["exact", "float32", layer] < gaps["exact", "bfloat16", layer] < 0.1
        assert gaps["sketched", "float32", layer] < 0.1


def test_a_batch_that_does_not_fit_is_halved_to_the_same_result(miniature):
    rows = miniature["parts"]["correctness"]["rows"]
    (row,) = (row for row in rows if row["what"].startswith("out of memory"))
    assert row["halved"] == 4  # 64 images, of which four fit
    assert row["max_error"] < 1e-3


def test_the_row_is_the_sum_of_its_trainings_and_maps(miniature):
    part = miniature["parts"]["row"]["rows"]
    timed = {r["what"].split()[-1]: r for r in part if r["what"].startswith("an epoch")}
    epochs = {role: r["seconds"] + r["and for its checkpoint"] for role, r in timed.items()}
    maps = {r["layer"]: r["seconds"] for r in part if "layer" in r}
    hours = {r["what"].split()[-1]: r for r in part if "hours" in r}
    layers = len(maps) - 1
    assert hours["training"]["hours"] == pytest.approx(
        150 * (layers * epochs["student"] + epochs["baseline"]) / 3600
    )
    (plain,) = (r for r in part if r["what"] == "a plain loop")
    assert plain["ratio"] == pytest.approx(plain["seconds"] / timed["baseline"]["seconds"])
    assert hours["measuring"]["hours"] == pytest.approx(151 * 5994 * sum(maps.values()) / 3600)
    assert hours["together"]["cost"] == pytest.approx(3 * hours["together"]["hours"])


def test_the_cards_benchmark_needs_nothing_of_the_book():
    """No more than kpnb and torchvision, and it is found by the command."""
    code = (
        "import sys; sys.argv[1:] = ['gpu', '--help']\n"
        "import benchmarks.__main__ as command\n"
        "try:\n    command.main()\nfinally:\n    print('book:', 'kpnb_book' in sys.modules)"
    )
    where = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "book")))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=where)
    assert done.stdout.startswith("usage: python -m benchmarks gpu")
    assert done.stdout.endswith("book: False\n")


def test_a_case_that_fails_is_named_and_what_was_measured_is_kept(tmp_path, monkeypatch):
    """Planted: a library's fault in one part, and memory that runs out in another."""
    lack = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "small", smaller)
    monkeypatch.setattr(gpu, "halving", lambda *_: 1 / 0)
    whole = gpu.one_batch

    def one_batch(model, x, layers, *how):
        if len(layers) == 1:
            raise lack
        return whole(model, x, layers, *how)

    monkeypatch.setattr(gpu, "one_batch", one_batch)
    monkeypatch.setattr(gpu, "row", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # a kill by hand, or by whoever lent the card
        gpu.main([str(tmp_path)])
    parts = json.loads((tmp_path / "gpu-none-on-the-cpu.json").read_text("utf8"))["parts"]
    assert "out of memory: ZeroDivisionError: division by zero" in parts["correctness"]["left_out"]
    assert any(row["what"].startswith("memory") for row in parts["correctness"]["rows"])
    assert "vgg16, 0.5, 2: does not fit into memory" in parts["speed"]["left_out"]
    assert [row["layer"] for row in parts["speed"]["rows"] if "layer" in row] == ["all", "all"]


def test_a_case_that_would_take_too_long_is_left_out():
    part = gpu.Part(seconds=60)
    measured = gpu.Measured(part, "small", gpu.small(), took={"all": 40.0})
    device = torch.device("cpu")
    measured.at(2, 1e9, device, 1)
    assert part.left_out == ["small, all, 2: would take too long"]
    assert [row["layer"] for row in part.rows] == [*gpu.small().layers]


def test_a_part_whose_time_is_up_names_what_it_leaves_out():
    part = gpu.Part(seconds=0.2)
    seen = []
    for name, pause in part.each([("a", 0.3), ("b", 0), ("c", 0)]):
        seen.append(name)
        time.sleep(pause)
    assert seen == ["a"]
    assert part.left_out == ["b", "c"]
    assert "Left out: b; c." in gpu.report({}, {"speed": part}, "")


# ---- losses of another implementation


def test_students_by_the_same_function_are_equally_accurate(tmp_path, monkeypatch, capsys):
    """Ours under another name."""
    kinds = {"soft_targets": lambda s, t: LOSSES["soft_targets"].function(s, t)}
    monkeypatch.setattr(losses, "another", lambda: kinds)
    monkeypatch.setattr(losses, "SEEDS", range(2))
    tiny = {"epochs": 1, "teacher_epochs": 1, "head_epochs": 1, "hidden": 16}
    tiny |= {"teacher_samples": 48, "share": 24, "test_samples": 24}
    monkeypatch.setattr(losses, "PROBLEM", losses.PROBLEM | tiny)
    monkeypatch.setitem(LOSSES, "torchdistill soft_targets", None)  # undone in the end
    losses.run(Store(tmp_path))
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[0] == "soft_targets"
    assert row[1] == row[2]
    assert row[3:] == ["+0.0", "yes"]


def test_the_other_implementation_has_our_units():
    """Where a constant tells the two apart it is right; and what differs by more is not equal."""
    pytest.importorskip("torchdistill")
    gen = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 4, 2, 2, generator=gen, dtype=float) for _ in range(2))
    for name, function in losses.another().items():
        pair = [f.flatten(1) for f in (student, teacher)] if name in ("soft_targets", "pkt") else (
            student, teacher
        )  # fmt: skip
        ours, theirs = LOSSES[name].function(*pair), function(*pair)
        if name in ("soft_targets", "at", "rkd"):
            torch.testing.assert_close(theirs, ours)
        else:
            assert theirs != pytest.approx(ours.item(), rel=1e-3)


# ---- this tree against another


def test_another_tree_is_a_folder_or_a_revision(tmp_path, monkeypatch):
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)

    (tmp_path / "kpnb").mkdir()
    (tmp_path / "kpnb" / "__init__.py").write_text("old = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "old")
    (tmp_path / "kpnb" / "__init__.py").write_text("new = 1\n")
    monkeypatch.setattr(regression, "ROOT", tmp_path)
    with regression.tree_of(str(tmp_path)) as tree:
        assert (tree / "kpnb" / "__init__.py").read_text() == "new = 1\n"
    with regression.tree_of("HEAD") as tree:
        assert (tree / "kpnb" / "__init__.py").read_text() == "old = 1\n"
    assert not tree.exists()


class Side:
    """Answers as if it had measured; every call takes longer than the one before."""

    asked: ClassVar[list[str]] = []

    def __init__(self, name: str, factor: float) -> None:
        self.name, self.factor, self.calls = name, factor, 0

    def ask(self, what: str, *_request: object) -> object:
        self.asked.append(f"{self.name} {what}")
        self.calls += what == "time"
        return {"time": self.factor * self.calls, "memory": 8 * self.factor}.get(what, [0.01, 0.9])


def test_two_sides_take_turns_and_are_set_side_by_side(capsys):
    Side.asked.clear()
    case = {"name": "grid: a case", "settings": {"default": (9, 5, 14)}}
    rows = regression.compare([case], Side("other", 2.0), Side("this", 1.5), repeats=4)
    once = [f"{name} {what}" for what in ("quality", "memory") for name in ("other", "this")]
    turns = ["this time", "other time", "other time", "this time"] * 2
    assert Side.asked == once + turns
    line = capsys.readouterr().out.splitlines()[-1]
    numbers = re.findall(r"\d+\.\d+", line)
    assert numbers[:4] == ["0.01000", "0.01000", "0.9000", "0.9000"]
    assert numbers[4:] == ["0.750", "0.750", "0.750", "16.0", "12.0", "0.750"]
    (row,) = rows
    assert row.kind == "grid"
    assert row.ratios == pytest.approx([0.75] * 4)


def test_three_per_cent_are_judged_by_the_interval(capsys):
    """Of ratios with a spread of 5 %: few leave it open, many decide, either way."""
    rng = np.random.default_rng(0)
    rows = [
        regression.Row(kind, middle * rng.lognormal(0, 0.05, turns), memory=1.01)
        for kind, middle, turns in (("grid", 1, 400), ("points", 1.06, 400), ("tokens", 1.01, 4))
        for _ in range(2)
    ]
    regression.summarise(rows)
    _, _, *lines = capsys.readouterr().out.splitlines()
    said = [re.split(r"\s{2,}", line.strip()) for line in lines]
    assert [(kind, what) for kind, _, _, what, *_ in said] == [
        ("grid", "within 3 %"),
        ("points", "more"),
        ("tokens", "open: repeat more often"),
    ]
    for (_, ratio, interval, *_), middle in zip(said, (1, 1.06, 1.01), strict=True):
        low, high = map(float, interval.split("-"))
        assert low <= middle <= high
        assert low <= float(ratio) <= high


def test_memory_is_counted_at_the_peak():
    """Two tensors of 4 MiB at a time, whatever came and went; what is kept counts too."""

    def call() -> torch.Tensor:
        kept = torch.empty(2**20)
        for _ in range(3):
            torch.empty(2**20)
        return kept

    assert regression.peak(call) == 8
    assert regression.peak(lambda: None) == 0


def test_a_side_measures_with_the_kpnb_of_its_tree(tmp_path):
    """On networks that are built by this tree's code, which the other one may lack."""
    shutil.copytree(ROOT / "kpnb", tmp_path / "kpnb")
    with (tmp_path / "kpnb" / "entropy.py").open("a") as file:
        file.write("\n\ndef entropy(*_args, real=entropy, **options):\n")
        file.write("    raise SystemExit('the other one')\n")
    with (tmp_path / "kpnb" / "weights.py").open("a") as file:
        file.write("\n\ndel renamed  # which our networks import\n")
    spec = {"name": "vgg11_bn", "num_classes": 3, "input_size": 32, "width": 0.05, "hidden": 8}
    case = {"kind": "image", "spec": spec, "state": build(**spec).state_dict(), "scale": 1.0}
    case |= {"x": torch.zeros(1, 3, 32, 32), "masks": torch.ones(1, 32, 32).bool(), "layer": "f"}
    case |= {"settings": {"default": (2, 2, 3)}}
    torch.save([case], tmp_path / "cases.pt")
    done = subprocess.run(
        [sys.executable, regression.__file__, tmp_path, "--serve", tmp_path / "cases.pt"],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "book")))},
        input='["time", 0, "default"]\n',
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.stderr.strip().endswith("the other one")

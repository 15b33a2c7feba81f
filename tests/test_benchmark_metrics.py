"""What a setting changes in the six metrics, against the metrics themselves and planted tables."""

import pandas as pd
import pytest

import kpnb
from benchmarks import metrics
from kpnb.metrics import NAMES
from kpnb.stats import compare
from kpnb_book.store import Store
from kpnb_book.studies import measure
from kpnb_book.studies.evidence import Evidence
from kpnb_book.studies.images import ImageStudy
from kpnb_book.studies.results import KEY, NETWORK, SAMPLE, Results, Rows
from tests.drawn import TINY, draw

SKETCH = kpnb.ClosedForm(rank=2, probes=2, noise=2)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> ImageStudy:
    root, store = draw(tmp_path_factory.mktemp("shapes")), Store(tmp_path_factory.mktemp("store"))
    fine = {"rank": 20, "probes": 20, "noise": 24, "b": 0.05}
    return ImageStudy("laptop", dataset="folder", data_root=str(root), store=store, **TINY | fine)


def test_the_exact_jacobian_moves_nothing_and_a_sketch_as_far_as_its_metrics_say(
    study, monkeypatch
):
    """FC1 has 20 units, so that 20 directions span it, whatever the noise."""
    monkeypatch.setattr(metrics, "REFERENCE", measure.solver_of(study.settings))
    reference, errors = metrics.moved(study, "FC1", [metrics.REFERENCE, SKETCH], seed=0)
    pair = {name: d.value for name, d in compare(*measure.pair(study, "FC1", 0)).items()}
    sides = [
        measure.metrics(study, network, "FC1")
        for network in (study.student("FC1", 0), study.baseline(0))
    ]
    assert reference.to_dict() == pytest.approx(pair, nan_ok=True)
    exact, sketch = (errors.iloc[i] for i in range(2))
    assert exact[list(NAMES)].fillna(0).to_numpy() == pytest.approx(0, abs=1e-9)
    assert sketch[list(NAMES)].abs().max() > 0
    assert exact["milliseconds"] > 0
    assert errors.index.tolist() == ["20 + 20, 24", "2 + 2, 2"]
    lambdas = [each.ratio.nanmean().item() for each in sides]
    if not any(each.ratio.isnan().any() for each in sides):
        assert reference["lambda"] == pytest.approx(lambdas[0] - lambdas[1], abs=1e-6)


def test_the_spread_is_that_of_student_minus_baseline_over_the_stored_seeds(monkeypatch, tmp_path):
    evidence = Evidence("planted", ImageStudy)
    monkeypatch.setattr(metrics, "RESULTS", tmp_path)
    assert metrics.spread(evidence, "FC1") is None
    gaps, rows = [1.0, 2.0, 6.0], []
    for seed, gap in enumerate(gaps):
        for layer in ("FC1", "FC2"):
            for network in ("student", "baseline"):
                for sample in range(2):
                    value = sample + (gap if network == "student" else 0) * (layer == "FC1")
                    known = dict.fromkeys(SAMPLE, value) | {"sample": sample}
                    rows.append({"seed": seed, "layer": layer, "network": network} | known)
    samples = pd.DataFrame(rows)
    networks = samples[KEY].drop_duplicates().assign(**dict.fromkeys(NETWORK, 0.0))
    places = networks[KEY].assign(cell0=0)
    Results(tmp_path / "planted").add({"name": "planted"}, Rows(networks, samples, places))
    found = metrics.spread(evidence, "FC1")
    assert found["n_fg"] == pytest.approx(7**0.5)  # of 1, 2 and 6
    assert metrics.spread(evidence, "FC2")["n_fg"] == 0


def test_settings_are_read_as_rank_probes_and_noise():
    assert metrics.setting("4,2,5") == kpnb.ClosedForm(rank=4, probes=2, noise=5)
    with pytest.raises(ValueError, match="unpack"):
        metrics.setting("4,2")

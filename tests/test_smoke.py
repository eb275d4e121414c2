"""All tables and figures at scale smoke, as a user starts them: no cell stays empty."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from reports.tables.records import read_records
from reports.tables.table import OTHER_FEATURES, build
from scripts.rows import EXPERIMENTS, TABLES

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
# An adversarially trained model is in the panel of its own distance; a flow may have no classes.
NOT_ASKED = {("at-linf", "robust/L2"), ("at-l2", "robust/Linf"), ("glow", "auroc/py")}


def run(script: str, root: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SCALE": "smoke", "ROOT": str(root), "JOBS": "2"}
    environment |= {"PYTHON": sys.executable}  # nothing is to be installed
    environment.pop("HDGE_DATA_ROOT", None)  # it needs no data
    command = ["bash", str(ROOT / "scripts" / script)]
    return subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    root = tmp_path_factory.mktemp("smoke")
    return root, run("all.sh", root)


def test_every_experiment_is_trained(smoke):
    root, process = smoke
    assert process.returncode == 0, process.stderr[-2000:]
    folders = {path.name for path in (root / "smoke").iterdir() if (path / "last_ckpt.pt").exists()}
    assert folders == {f"{name}-s1" for name in EXPERIMENTS}


@pytest.mark.parametrize("name", TABLES)
def test_no_trained_cell_is_empty(name, smoke):
    root, _ = smoke
    records = read_records(root / "results", ["smoke"])["smoke"]
    table = build(name, "smoke", TABLES[name].rows, records)
    experiments = {experiment for row in table.rows for experiment in row.experiments}
    assert table.keys and experiments >= set(TABLES[name].rows)
    for row in (row for row in table.rows if row.experiments):
        assert row.about["runs"] == "1 seed", (row.model, row.about)
        for key, number in row.numbers.items():
            if (row.experiments[0], key.rpartition("/")[0]) in NOT_ASKED:
                continue
            if number.state == OTHER_FEATURES:  # of the network that judges the samples
                kind = key.split("/")[0]
                counts = [n.n for k, n in row.numbers.items() if k.startswith(f"{kind}/")]
                assert kind in ("fid", "is") and sum(map(bool, counts)) == 1
                continue
            assert number.mean is not None, (row.experiments, key, number.state)


def test_every_table_is_written_in_every_format(smoke):
    root, _ = smoke
    assert "Scale smoke" in (root / "RESULTS.md").read_text(encoding="utf-8")
    for name, suffix in itertools.product(TABLES, ("csv", "md", "tex")):
        assert (root / "results" / f"{name}-smoke.{suffix}").exists()


def test_a_second_call_trains_nothing_and_shows_the_table(smoke):
    root, _ = smoke
    before = {path: path.stat().st_mtime_ns for path in (root / "smoke").rglob("*.pt")}
    again = run("table5_variants.sh", root)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "hdge-raw-s1: trained already" in again.stdout
    table = root / "results" / "table5_variants-smoke.md"
    assert table.read_text(encoding="utf-8") in again.stdout
    assert {path: path.stat().st_mtime_ns for path in (root / "smoke").rglob("*.pt")} == before

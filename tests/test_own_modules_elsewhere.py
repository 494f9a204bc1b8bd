"""A module, loss, metric and data of one's own in other processes: Dask, submitit, torchrun."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import run as call
from typing import Any

import pytest
import slurm_for_tests as slurm
import torch

import biograd
from biograd import ranks
from biograd.__main__ import main

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform == "win32", reason="processes are ended by signals"),
]
ROOT = Path(__file__).parent.parent
LAYERS = "from torch import nn\n\n\nclass Layer(nn.Linear):\n    pass\n"
NET = """
import torch
from torch import nn
from torch.nn import functional

from layers import Layer


class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.first, self.second = Layer(4, width), Layer(width, width)
        self.readout = nn.Linear(width, 3)

    def forward(self, inputs):
        hidden = torch.tanh(self.second(torch.tanh(self.first(inputs))))
        return self.readout(hidden)


def loss(outputs, targets):
    return functional.cross_entropy(outputs, targets, reduction="none")


def margin(outputs, targets):
    best = outputs.topk(2, dim=1).values
    return best[:, 0] - best[:, 1]


def data():
    stream = torch.Generator().manual_seed(1)
    inputs = torch.rand(90, 4, generator=stream)
    return inputs, inputs[:, :3].argmax(1)
"""
OWN = ["--dataset", "net.py:data", "--loss", "net.py:loss", "--metric", "net.py:margin"]
STUDY = ["compare", "--models", "net.py:Net", "--model-arg", "width=5", "--estimators",
         "backprop,weak", "--seeds", "1", "--epochs", "2", "--no-control", "-q", *OWN]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "layers.py").write_text(LAYERS)
    return tmp_path


@pytest.fixture
def cluster() -> Iterator[str]:
    distributed = pytest.importorskip("distributed")
    made = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None,
        silence_logs=logging.CRITICAL,
    )  # fmt: skip
    with made:
        yield made.scheduler_address


def found(folder: str) -> dict[str, Any]:
    return {name: biograd.load(next(Path(folder).glob(f"*{name}-seed0.h5")))
            for name in ("backprop", "weak")}  # fmt: skip


def same(one: Any, two: Any) -> bool:
    tensors = two.checkpoint()[0]
    return all(torch.equal(value, tensors[name]) for name, value in one.checkpoint()[0].items())


@pytest.mark.parametrize("engine", ["local", "dask", "submitit", "slurm"])
def test_a_comparison_elsewhere_is_that_of_one_process(
    engine: str, place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*STUDY, "-w", "1", "-o", "one"]) == 0
    more = {"dask": ["--engine", "dask"], "submitit": ["--engine", "submitit"]}.get(engine, [])
    workers = [] if engine == "dask" else ["-w", "2"]
    if engine == "dask":
        more += ["--address", request.getfixturevalue("cluster")]
    elif engine == "submitit":
        more += ["--job", "cluster=local"]
    elif engine == "slurm":
        slurm.stand_in(place, monkeypatch)
        more = ["--engine", "submitit"]
    assert main([*STUDY, *workers, "-o", "two", *more]) == 0
    for name, run in found("one").items():
        other = found("two")[name]
        assert same(run, other) and run.summary["test_margin"] == other.summary["test_margin"]
        assert {*other.code["model"]} == {"net.py", "layers.py"}
        assert {*other.code} == {"model", "loss", "metric.margin"}
    assert not same(found("one")["backprop"], found("one")["weak"])


def test_two_ranks_train_ones_own_module(place: Path) -> None:
    words = ["train", "--model", "net.py:Net", "--epochs", "2", "--batch-size", "18", "-q", *OWN]
    words += ["--estimator", "weak", "--set", "training.optimiser=sgd"]
    assert main([*words, "-o", "one.h5"]) == 0
    known = {key: value for key, value in os.environ.items() if key not in ranks.KNOWN}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = call(
        [*start, "-m", "biograd", *words, "-o", "two.h5"],
        env=known | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = biograd.load("one.h5"), biograd.load("two.h5")
    assert (one.summary["ranks"], two.summary["ranks"]) == (1, 2)
    tensors = two.checkpoint()[0]
    for name, value in one.checkpoint()[0].items():
        if name.startswith("network."):
            torch.testing.assert_close(tensors[name], value, rtol=1e-4, atol=1e-6)
    assert two.summary["test_margin"] == pytest.approx(one.summary["test_margin"], rel=1e-4)

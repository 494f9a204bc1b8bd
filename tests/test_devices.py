"""Devices by name: what is one, what is here, and that a run is where it was asked to be."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import biograd
from biograd import devices, experiment, ranks
from biograd.__main__ import main
from biograd.configuration import TrainingRequest, configure
from biograd.errors import CapabilityError, RecipeError
from biograd.placement import allotment

TINY = ("training.epochs=1",)


def gpus(monkeypatch: pytest.MonkeyPatch, count: int, mps: bool = False) -> None:
    """Let torch say that there are so many CUDA devices."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda", "cuda:0", "cuda:12", "mps"])
def test_names_of_devices(name: str) -> None:
    assert devices.named(name) == name
    assert configure(TrainingRequest("ann", device=name)).device == name  # wherever it may be


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpu", "--device gpu: did you mean 'cuda'?"),
        ("cudaa", "--device cudaa: did you mean 'cuda'?"),
        ("cuda:", "--device cuda:: write cuda or cuda:N"),
        ("cuda:-1", "--device cuda:-1: write cuda or cuda:N"),
        ("cuda:01", "--device cuda:01: write cuda or cuda:N"),
        ("cuda:1,2", "--device cuda:1,2: write cuda or cuda:N"),
        ("cuda:٣", "--device cuda:٣: write cuda or cuda:N"),
        ("mps:0", "--device mps:0: did you mean 'mps'?"),
        ("CPU", "--device CPU: (known"),
        ("", "--device : (known"),
    ],
)
def test_what_is_no_device(name: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "run.h5"
    for ask in (
        lambda: biograd.train("ann", device=name, path=path),
        lambda: biograd.compare(["ann"], device=name, folder=tmp_path / "study"),
    ):
        with pytest.raises(RecipeError) as caught:
            ask()
        assert str(caught.value).startswith(words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "count", "seen", "words"),
    [
        ("cuda", 0, None, "--device cuda: no CUDA device is available here; use --device cpu"),
        ("cuda:1", 0, "", "no CUDA device is available here (CUDA_VISIBLE_DEVICES is ''); use"),
        ("cuda:1", 1, None, "--device cuda:1: cuda:0 alone is visible here"),
        ("cuda:4", 4, "3,2,1,0", "cuda:0 to cuda:3 are visible here (CUDA_VISIBLE_DEVICES is '3,"),
        ("mps", 2, None, "--device mps: torch has no MPS device here; use --device cpu"),
    ],
)
def test_what_is_not_here_is_refused_before_any_work(
    name: str, count: int, seen: str | None, words: str, monkeypatch: Any, tmp_path: Path
) -> None:
    gpus(monkeypatch, count)
    monkeypatch.delenv(devices.VISIBLE, raising=False)
    if seen is not None:
        monkeypatch.setenv(devices.VISIBLE, seen)
    monkeypatch.setattr(experiment, "_load", lambda *_: pytest.fail("data were read"))
    for ask in (
        lambda: biograd.train("ann", device=name, path=tmp_path / "run.h5"),
        lambda: biograd.compare(["ann"], device=name, folder=tmp_path / "study"),
        lambda: biograd.compare(["ann"], device=name, workers=2, folder=tmp_path / "study"),
    ):
        with pytest.raises(RecipeError) as caught:
            ask()
        assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_auto_takes_cuda_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, mps, found in ((2, False, "cuda"), (0, True, "cpu"), (0, False, "cpu")):
        gpus(monkeypatch, count, mps)
        assert devices.present("auto") == found
    gpus(monkeypatch, 2, mps=True)
    assert [devices.present(name) for name in ("cuda:1", "mps")] == ["cuda:1", "mps"]


@pytest.mark.parametrize("command", ["train", "compare", "run"])
def test_the_console_refuses_it_in_one_line(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    gpus(monkeypatch, 0)
    study = tmp_path / "study.toml"
    study.write_text('[grid]\nmodels = ["ann"]\n')
    given = {"train": ["--model", "ann"], "compare": ["--models", "ann"], "run": [str(study)]}
    out = ["--out", str(tmp_path / "out")]
    for device, words in (("cuda:1", "no CUDA device"), ("cdua", "did you mean 'cuda'?")):
        assert main([command, *given[command], *out, "--device", device]) == 2
        said = capsys.readouterr().err
        assert words in said and f"device {device}: " in said
    assert not (tmp_path / "out").exists()


def test_the_name_is_passed_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every training of a comparison, and every trial of its search, is placed where it was asked.

    The CPU stands in for a device of that name.
    """
    pytest.importorskip("optuna")
    gpus(monkeypatch, 2)
    placed: list[str] = []
    to = torch.nn.Module.to

    def spy(self: Any, device: Any = None, *more: Any, **named: Any) -> Any:
        if isinstance(device, str):
            placed.append(device)
            return self
        return to(self, device, *more, **named)

    monkeypatch.setattr(torch.nn.Module, "to", spy)
    monkeypatch.setattr("biograd.runs.environment.device_name", lambda name: name)
    found = biograd.compare(
        ["ann"], ["backprop"], folder=tmp_path, device="cuda:1", seeds=2, control=False,
        settings=TINY, tune=["training.learning_rate=0.01|0.02"], trials=2,
    )  # fmt: skip
    assert placed == ["cuda:1"] * 4  # two trials, two seeds
    with found.open("ann", 0) as run:
        assert run.attribute("device") == run.config["device"] == "cuda:1"
        assert run.environment["device"] == "cuda:1"
        assert "visible_devices" in run.environment


def test_a_folder_goes_on_wherever_it_was_begun(tmp_path: Path) -> None:
    words = {"folder": tmp_path, "seeds": 1, "control": False, "settings": TINY}
    biograd.compare(["ann"], ["backprop"], **words)
    note = next(tmp_path.glob("*seed0.json"))
    table = json.loads(note.read_text())
    table["configuration"]["device"] = "cuda"  # as if a node with one had trained it
    note.write_text(json.dumps(table))
    biograd.compare(["ann"], ["backprop"], **words, device="cpu")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that says that it was on cuda, its random streams as long as those of CUDA."""
    path = tmp_path / "run.h5"
    biograd.train("spiking", path=path, settings=TINY)
    of, checkpoint = experiment.Configuration.of, biograd.runs.reader.Run.checkpoint

    def moved(*given: Any) -> Any:
        return dataclasses.replace(of(*given), device="cuda")

    monkeypatch.setattr(experiment.Configuration, "of", moved)

    def foreign(self: Any, step: int | None = None) -> Any:
        tensors, meta = checkpoint(self, step)
        streams = {n: v[:16] for n, v in tensors.items() if n.startswith("engine.stream.")}
        assert streams
        return tensors | streams, meta

    monkeypatch.setattr(biograd.runs.reader.Run, "checkpoint", foreign)
    gpus(monkeypatch, 0)
    return path


def test_a_run_of_cuda_is_looked_at_on_the_cpu(
    elsewhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = biograd.load(elsewhere)
    network, engine = biograd.trained(run)
    assert "the run was on cuda, which is not here: on the CPU" in caplog.text
    assert next(network.parameters()).device.type == "cpu" and engine.step == run.last_step
    assert biograd.diagnose(run, draws=2, device="cpu").layers
    with pytest.raises(RecipeError, match="no CUDA device is available here"):
        biograd.trained(run, device="cuda")


def test_a_run_of_cuda_goes_on_on_cuda_alone(elsewhere: Path) -> None:
    with pytest.raises(RecipeError, match="the run was on cuda: no CUDA device is available"):
        biograd.resume(elsewhere, epochs=2)
    with pytest.raises(RecipeError, match="its random numbers go on there alone"):
        biograd.resume(elsewhere, epochs=2, device="cpu")


def test_a_type_that_a_device_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, 0, mps=True)
    with pytest.raises(CapabilityError, match="MPS does not compute in 64 bits"):
        configure(
            TrainingRequest("ann", device="mps", assignments=("network.dtype=float64",))
        ).here()
    words = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support it"
    with pytest.raises(CapabilityError, match="64 bits"), devices.in_their_types("mps"):
        raise TypeError(words)
    with pytest.raises(TypeError), devices.in_their_types("cpu"):
        raise TypeError(words)


@pytest.mark.parametrize(
    ("device", "here", "words"),
    [
        ("cpu", 2, ""),
        ("mps", 2, "exchange tensors of cpu and cuda alone"),
        ("cuda:1", 2, "2 processes of this machine would share it: give --device cuda"),
        ("cuda", 4, "2 CUDA devices for 4 or more processes"),
    ],
)
def test_ranks_have_devices_of_their_own(
    device: str, here: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    monkeypatch.setenv("LOCAL_RANK", str(here - 1))
    monkeypatch.setattr(ranks.HERE, "world", ranks.World(here - 1, here, None))
    if not words:
        ranks.own_device(device)
        return
    with pytest.raises(RecipeError, match=words):
        ranks.own_device(device)


def test_one_rank_a_machine_takes_the_device_that_is_named(monkeypatch: Any) -> None:
    gpus(monkeypatch, 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(ranks.HERE, "world", ranks.World(1, 2, None))
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    ranks.own_device("cuda:1")
    ranks.own_device("cuda")
    assert taken == [1, 0]


@pytest.fixture
def dealing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Deal devices from a folder of this test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(allotment, "_mine", set())
    held: list[Any] = []

    def deal(names: list[str], count: int) -> list[str]:
        held.extend(allotment.deal(names) for _ in range(count))
        return [one.name for one in held[-count:]]

    deal.held = held  # type: ignore[attr-defined]
    return deal


def test_devices_go_to_whoever_uses_them_least(dealing: Any) -> None:
    assert dealing(["0", "1", "MIG-a/b"], 4) == ["0", "1", "MIG-a/b", "0"]
    dealing.held[1].back()
    assert dealing(["0", "1", "MIG-a/b"], 2) == ["1", "1"]
    assert dealing(["5", "4"], 1) == ["5"]  # as the user ordered them
    assert allotment.deal(["0"]) is None and allotment.deal([]) is None


def test_other_processes_devices_count(dealing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dealing(["0", "1"], 1) == ["0"]
    monkeypatch.setattr(allotment, "_mine", set())  # the lock alone is left, as another's is
    assert dealing(["0", "1"], 2) == ["1", "0"]


def test_a_link_in_the_place_of_the_locks_is_not_followed(dealing: Any, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"biograd-{os.getuid()}").symlink_to(elsewhere)
    assert dealing(["0", "1"], 3) == ["0", "1", "0"]
    assert not list(elsewhere.iterdir())


def test_without_locks_a_process_deals_its_own(dealing: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(allotment, "_folder", lambda: None)
    monkeypatch.setattr(allotment, "_mine", set())
    assert dealing(["0", "1"], 3) == ["0", "1", "0"]


def test_a_device_that_is_named_is_not_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(devices.VISIBLE, "3,5")
    assert [allotment.shared(name) for name in ("auto", "cuda", "cuda:1", "cpu", "mps")] == [
        ["3", "5"], ["3", "5"], [], [], [],
    ]  # fmt: skip


def test_cores_are_those_of_the_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    for given, found in (("", 16), ("4", 4), ("32", 16), ("x", 16), ("0", 16)):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", given)
        assert allotment.cores() == found

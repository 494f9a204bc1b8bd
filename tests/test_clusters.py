"""Clusters: options of jobs, devices and cores of workers, several processes of one training."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import slurm_for_tests as slurm
import work_for_tests as work

import biograd
from biograd import devices, ranks
from biograd.__main__ import main
from biograd.errors import RecipeError
from biograd.placement import Placement, Work, allotment, jobs, place, sbatch
from biograd.placement import dask as dask_engine
from biograd.placement import submitit as submitit_engine
from biograd.placement.slurm import read_options

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are ended by signals")
HERE = Path(__file__).parent
SLOW = pytest.mark.slow


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(jobs, "PAUSE", 0.05)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent)]))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv(devices.VISIBLE, "")  # else torch would be asked


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return slurm.stand_in(tmp_path, monkeypatch)


# Options of jobs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["time=5", "gpus=2"], {"time": 5, "gpus": 2}),
        (["slurm_time=1-02:30:01", "slurm_gpus_per_node=1"], {"time": 1591, "gpus": 1}),
        (["slurm_partition=a,b", "mem_gb=2.5"], {"partition": "a,b", "memory": 2.5}),
        (["setup=module load a", "slurm_setup=. b"], {"setup": ["module load a", ". b"]}),
        (["slurm_mem=4GB", "slurm_exclusive=true"], {"slurm_mem": "4GB", "slurm_exclusive": True}),
        (
            ['slurm_additional_parameters={"a": "b c"}'],
            {"slurm_additional_parameters": {"a": "b c"}},
        ),
        (
            ["slurm_srun_args=-vv", "slurm_srun_args=--mpi=none"],
            {"slurm_srun_args": ["-vv", "--mpi=none"]},
        ),
    ],
)
def test_whatever_submitit_takes_is_read(options: list[str], found: dict[str, Any]) -> None:
    assert read_options(options) == found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("time=5", "timeout_min=6"), "option 'timeout_min' is given twice"),
        (("partition=a", "slurm_partition=b"), "option 'slurm_partition' is given twice"),
        (("slurm_time=1:75x",), "option slurm_time='1:75x': must be a whole number"),
        (("slurm_comment=a\nb",), "option slurm_comment='a\\nb': must be one line"),
        (("slurm_Comment=a",), "option 'slurm_Comment': "),
        (("reservation=a",), "option 'reservation': "),
        (("slurm_=a",), "option 'slurm_': "),
        (("nodes=0",), "option nodes='0': must be a whole number from 1"),
    ],
)
def test_what_no_option_is(options: tuple[str, ...], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_options(options)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_options_reach_the_script_of_a_job(states: Path, tmp_path: Path) -> None:
    options = (
        *("slurm_partition=gpu", "slurm_gres=gpu:a100:1", "slurm_comment=it's mine", "cpus=2"),
        *("setup=export MARK=one", "slurm_setup=export MARK=$MARK,two", "slurm_exclusive=true"),
        *('slurm_additional_parameters={"reservation": "lab"}', "slurm_signal_delay_s=7"),
    )
    paths = [tmp_path / f"{index}" for index in range(3)]
    given = [Work(path.name, work.environment, (path, "MARK")) for path in paths]
    assert place(given, Placement("submitit", None, None, options, tmp_path), lambda e: None) == []
    assert [path.read_text() for path in paths] == ["one,two"] * 3
    script = (states / "1.script").read_text()
    flags = ("partition=gpu", "gres=gpu:a100:1", "comment='it'\"'\"'s mine'", "exclusive")
    for flag in (*flags, "reservation=lab", "signal=USR2@7", "array=0-2%3"):
        assert f"#SBATCH --{flag}\n" in script, flag


def test_what_submitit_does_not_know_is_refused_in_its_words(states: Path, tmp_path: Path) -> None:
    for option, words in {
        "slurm_partiton=gpu": "Unknown argument 'partiton' for executor 'slurm'",
        "slurm_map_count=3": "Unknown argument 'map_count'",
    }.items():
        placement = Placement("submitit", None, None, (option,), tmp_path)
        with pytest.raises(RecipeError) as caught:
            place([Work("a", work.write)], placement, lambda event: None)
        assert str(caught.value).startswith("--job: submitit says: ")
        assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not list(states.glob("*.script"))


def test_options_of_a_plain_script(tmp_path: Path) -> None:
    options = ("slurm_reservation=lab", "slurm_comment=it's; rm", "slurm_exclusive=true",
               "slurm_mem=4GB", "setup=module load a", "setup=module load b")  # fmt: skip
    script = sbatch(["true"], 2, Placement(options=options, folder=tmp_path))
    for flag in ("reservation=lab", "comment='it'\"'\"'s; rm'", "exclusive", "mem=4GB"):
        assert f"#SBATCH --{flag}\n" in script
    assert script.index("module load a\n") < script.index("module load b\n")
    for name in ("slurm_use_srun=false", "slurm_array_parallelism=3", "slurm_teardown=true"):
        with pytest.raises(RecipeError, match=f"option {name.partition('=')[0]}: "):
            sbatch(["true"], 2, Placement(options=(name,)))


def test_setup_of_jobs_here(tmp_path: Path) -> None:
    options = ("cluster=local", "setup=export MARK=here")
    placement = Placement("submitit", 1, None, options, tmp_path)
    path = tmp_path / "a"
    assert place([Work("a", work.environment, (path, "MARK"))], placement, lambda e: None) == []
    assert path.read_text() == "here"


# Cores and devices of workers -------------------------------------------------------------------


def test_cores_of_the_login_node_do_not_limit_an_array(
    states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (allotment, submitit_engine):
        monkeypatch.setattr(module, "cores", lambda: 1)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    paths = [tmp_path / f"{index}" for index in range(5)]
    given = [Work(path.name, work.write, (path,)) for path in paths]
    assert place(given, Placement("submitit", None, folder=tmp_path), lambda e: None) == []
    assert "#SBATCH --array=0-4%5\n" in (states / "1.script").read_text()
    assert {path.read_text() for path in paths} == {"2"}  # the cores of the job, not of the login


def test_threads_follow_the_allocation(tmp_path: Path) -> None:
    lines = "\n".join([*allotment.SHELL, 'echo "$OMP_NUM_THREADS ${SRUN_CPUS_PER_TASK:-}"'])
    for given, said in (
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "8"}, "3 3"),
        ({"SLURM_CPUS_ON_NODE": "8"}, "8 "),
        ({}, f"{len(os.sched_getaffinity(0))} "),
    ):
        known = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        ran = subprocess.run(
            ["bash", "-euc", lines],
            env=known | {"OMP_NUM_THREADS": "77"} | given,
            capture_output=True,
            text=True,
        )
        assert (ran.stdout.rstrip("\n"), ran.stderr) == (said, "")


def seen(engine: str, folder: Path, device: str, count: int, **fields: Any) -> list[str]:
    """Return which devices several pieces of work see that run at the same time."""
    paths = [folder / f"{index}.device" for index in range(count)]
    given = [Work(path.name, work.device, (path, folder, count)) for path in paths]
    placement = Placement(engine, count, folder=folder, device=device, **fields)
    assert place(given, placement, lambda event: None) == []
    return sorted(path.read_text() for path in paths)


LOCAL = {"submitit": {"options": ("cluster=local",)}}


@pytest.mark.parametrize("engine", ["local", "dask", "submitit"])
def test_workers_divide_the_devices_that_are_visible(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(devices.VISIBLE, "7,3")
    assert seen(engine, tmp_path, "auto", 3, **LOCAL.get(engine, {})) == ["3", "7", "7"]


@pytest.mark.parametrize("engine", ["local", "dask", "submitit"])
def test_a_device_that_is_named_is_everyones(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(devices.VISIBLE, "7,3")
    assert seen(engine, tmp_path, "cuda:1", 2, **LOCAL.get(engine, {})) == ["7,3", "7,3"]


def test_jobs_of_slurm_divide_what_their_node_shows(
    states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node without a plugin for its devices shows all of them to every job."""
    monkeypatch.setenv(devices.VISIBLE, "0,1")
    assert seen("submitit", tmp_path, "cuda", 2) == ["0", "1"]


@SLOW
def test_dask_workers_of_one_machine_share_devices_and_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers that somebody else has started, each in a process of its own."""
    import logging

    import distributed

    monkeypatch.setenv(devices.VISIBLE, "0,1")
    with distributed.LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        host="127.0.0.1",
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
    ) as cluster:
        address = cluster.scheduler_address
        assert seen("dask", tmp_path, "auto", 2, address=address) == ["0", "1"]
        with distributed.Client(address) as client:
            assert dask_engine._crowd(client) == {"127.0.0.1": 2}


# Processes of one training ----------------------------------------------------------------------

STUDY = """
kind = "training"
model = "ann"
seeds = [0]
set = ["training.epochs=2", "network.dtype=float64", "training.optimiser=sgd"]
[cells.one]
estimator = "backprop"
"""


def results(folder: Path) -> Any:
    return biograd.load(folder / "one-seed0.h5")


@SLOW
@pytest.mark.timeout(400)
@pytest.mark.parametrize("engine", ["local", "slurm"])
def test_tasks_of_a_job_train_together(
    engine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Two nodes, or two tasks of this machine, and one process: the same numbers."""
    (tmp_path / "study.toml").write_text(STUDY)
    more = ["--job", "cluster=local", "--job", "tasks_per_node=2"]
    if engine == "slurm":
        request.getfixturevalue("states")
        more = ["--job", "nodes=2"]
    words = ["run", str(tmp_path / "study.toml"), "--quiet", "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "alone")]) == 0
    together = [*words, "--out", str(tmp_path / "two"), "--engine", "submitit", *more]
    assert main(together) == 0
    found, alone = results(tmp_path / "two"), results(tmp_path / "alone")
    assert (found.summary["ranks"], alone.summary["ranks"]) == (2, 1)
    for name in ("test_loss", "test_accuracy", "train_accuracy"):
        assert found.summary[name] == pytest.approx(alone.summary[name], rel=1e-9)
    assert main(together) == 0  # nothing is trained again


def test_a_script_lets_the_tasks_of_a_job_find_each_other(tmp_path: Path) -> None:
    code = (
        "import json, os, sys; names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', "
        "'MASTER_ADDR', 'MASTER_PORT'); "
        "open(os.environ['RANK'], 'w').write(json.dumps([os.environ[n] for n in names]))"
    )
    slurm.install(tmp_path / "bin")
    script = tmp_path / "script.sh"
    options = ("nodes=2", "tasks_per_node=2")
    placement = Placement(options=options, folder=tmp_path)
    script.write_text(sbatch([sys.executable, "-c", code], 1, placement))
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=2\n" in script.read_text()
    environment = os.environ | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "40017", "SLURM_JOB_NODELIST": "here",
        "SLURM_NTASKS": "4", "SLURM_NNODES": "2",
    }  # fmt: skip
    ran = subprocess.run(["bash", script], env=environment, cwd=tmp_path, capture_output=True)
    assert ran.returncode == 0, (tmp_path / "jobs" / "0_0.log").read_text()
    for rank in range(4):
        found = json.loads((tmp_path / f"{rank}").read_text())
        assert found == [str(rank), "4", str(rank % 2), "2", "here", "20017"]


def test_a_study_without_a_task_is_work_for_one_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in zip(ranks.KNOWN, ("0", "2", "a", "1"), strict=True):
        monkeypatch.setenv(name, value)
    (tmp_path / "study.toml").write_text(STUDY)
    assert main(["run", str(tmp_path / "study.toml"), "--out", str(tmp_path / "a")]) == 2
    assert "`biograd run` without --task is work for one process" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()

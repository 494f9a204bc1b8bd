"""Engines: the same tasks, placed differently, with the same results."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import slurm_for_tests as slurm
import work_for_tests as work
from click.testing import CliRunner
from work_for_tests import gone, wait_until

from biograd.commands import console
from biograd.errors import BiogradError, MissingExtraError, RecipeError
from biograd.placement import ENGINES, Event, Failure, Placement, Work, jobs, place, sbatch

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are ended by signals")
HERE = Path(__file__).parent
SLOW = pytest.mark.slow
OPTIONS = {"submitit": ("cluster=local",)}
"""What an engine needs to run here."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PAUSE", 0.05)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # else torch would be asked


def here(engine: str, folder: Path, workers: int = 2, **fields: Any) -> Placement:
    return Placement(engine, workers, folder=folder, options=OPTIONS.get(engine, ()), **fields)


def placed(given: list[Work], placement: Placement) -> tuple[list[Failure], list[Event]]:
    events: list[Event] = []
    failures = place(given, placement, events.append)
    for task in given:
        states = [event.state for event in events if event.name == task.name]
        assert states[0] == "started" and states.count("started") == 1 + states.count("retried")
        assert states[-1] == ("failed" if any(f.name == task.name for f in failures) else "done")
    return failures, events


KILLED = {"submitit": r"its job \d+ ended without a result \(FINISHED\)"}


@pytest.mark.parametrize("engine", ENGINES)
def test_engines_agree(
    engine: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(jobs, "TRIES", 2)
    functions = (work.killed_once, work.killed_always, work.refused, work.cannot_write)
    given = [Work(f.__name__, f, (tmp_path / f.__name__,)) for f in functions]
    given.append(Work("two words", work.write, (tmp_path / "write",)))
    given.append(Work("surprised", work.surprised, (tmp_path / "surprised",)))
    failures, events = placed(given, here(engine, tmp_path))
    reasons = {failure.name: failure.reason for failure in failures}
    assert all("\n" not in event.reason for event in events)
    killed = KILLED.get(engine, "its process was killed by SIGKILL")
    assert re.match(killed, reasons.pop("killed_always"))
    surprise, log = reasons.pop("surprised").split(" (see ")
    assert surprise == "KeyError: 'two\\nlines'" and "Traceback" in Path(log[:-1]).read_text()
    assert Path(log).parent == tmp_path / "jobs"
    assert reasons == {
        "refused": "the recipe is wrong",
        "cannot_write": "cannot be written: no space left",
    }
    names = [f.__name__ for f in functions] + ["surprised"]
    tries = [len((tmp_path / name).read_text()) for name in names]
    assert tries == [2, 2, 1, 2, 1]
    assert (tmp_path / "write").read_text() == "1"  # the user's OMP_NUM_THREADS
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("engine", [pytest.param(name, marks=SLOW) for name in ENGINES])
def test_every_result_once_whoever_is_killed(engine: str, tmp_path: Path) -> None:
    draw = random.Random(0)
    kills = {f"{index:02}": draw.choice([0, 0, 1, 2]) for index in range(40)}
    assert 10 < sum(kills.values()) < 50
    given = [
        Work(name, work.result_once, (tmp_path / name, count, draw.random() < 0.5))
        for name, count in kills.items()
    ]
    failures, events = placed(given, here(engine, tmp_path, 3))
    assert failures == []
    assert {path.name: path.read_text() for path in tmp_path.glob("??")} == dict.fromkeys(
        kills, "result"
    )
    tries = {p.stem: len(p.read_text()) for p in tmp_path.glob("*.tries")}
    assert tries == {name: 1 + count for name, count in kills.items()}
    assert sum(event.state == "retried" for event in events) == sum(kills.values())


@SLOW
@pytest.mark.parametrize("model", ["ann", "brian2"])
def test_trainings_are_the_same_everywhere(model: str, tmp_path: Path) -> None:
    found = []
    for engine in ENGINES:
        folder = tmp_path / engine
        given = [
            Work(f"{seed}", work.train, (folder / f"{seed}.h5", model, seed)) for seed in (0, 1)
        ]
        assert placed(given, here(engine, folder))[0] == []
        found.append([json.loads((folder / f"{seed}.json").read_text()) for seed in (0, 1)])
    assert found[0] == found[1] == found[2]
    assert found[0][0] != found[0][1]  # seeds differ


# The end of the parent ------------------------------------------------------------------------

PARENT = """
import signal, sys
from pathlib import Path
import work_for_tests as work
from click.testing import CliRunner
from work_for_tests import gone, wait_until
from biograd.placement import Placement, place
from biograd.placement.jobs import Work

def terminate(*_):
    raise SystemExit(143)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, terminate)
    folder, (engine, function, *options) = Path(sys.argv[1]), sys.argv[2:]
    paths = [folder / name for name in "ab"]
    tasks = [Work(path.name, getattr(work, function), (path,)) for path in paths]
    try:
        place(tasks, Placement(engine, 2, None, tuple(options), folder), lambda event: None)
    except KeyboardInterrupt:
        sys.exit(130)
"""


def parent(folder: Path, engine: str, function: str) -> tuple[subprocess.Popen[str], list[int]]:
    """Start a parent of two processes and return it and their numbers."""
    script = folder / "parent.py"
    script.write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), engine, function, *OPTIONS.get(engine, ())],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    paths = [folder / name for name in "ab"]
    wait_until(lambda: all(path.exists() and path.read_text() for path in paths))
    return process, [int(path.read_text().split()[0]) for path in paths]


@pytest.mark.parametrize("engine", [pytest.param(name, marks=SLOW) for name in ENGINES])
def test_nobody_outlives_a_killed_parent(engine: str, tmp_path: Path) -> None:
    process, children = parent(tmp_path, engine, "sleep")
    process.kill()
    process.wait()
    begin = time.monotonic()
    wait_until(lambda: all(gone(child) for child in children))
    assert time.monotonic() - begin < 30  # not of themselves
    assert process.stdout is not None
    process.stdout.close()


@pytest.mark.parametrize("engine", [pytest.param(name, marks=SLOW) for name in ENGINES])
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_only_the_parent_speaks_when_all_are_signalled(
    number: signal.Signals, code: int, engine: str, tmp_path: Path
) -> None:
    process, children = parent(tmp_path, engine, "trains_long")
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, "")
    assert all(gone(child) for child in children)
    # each stopped after a step and committed
    assert [(tmp_path / name).read_text().split()[1] for name in "ab"] == ["interrupted"] * 2


# What is asked -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"engine": "submit"}, "engine 'submit': did you mean 'submitit'?"),
        ({"workers": 0}, "workers = 0: must be at least 1"),
        ({"options": ("time=5",)}, "engine 'local' takes no options; only submitit does"),
        ({"address": "tcp://a:1"}, "engine 'local' takes no address; only dask does"),
        ({"engine": "submitit", "address": "a:1"}, "engine 'submitit' takes no address"),
        ({"engine": "dask", "options": ("time=5",)}, "engine 'dask' takes no options"),
        ({"engine": "dask", "address": "nowhere"}, "address 'nowhere': missing port number"),
    ],
)
def test_what_is_not_valid_is_said_in_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        place([Work("a", work.write)], Placement(**fields), lambda event: None)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


BAD_OPTIONS = {
    "time": "option 'time': must be KEY=VALUE",
    "tme=5": "option 'tme': did you mean 'time'?",
    "time=5m": "option time='5m': must be a whole number from 1",
    "time=0": "option time='0': must be a whole number from 1",
    "cpus=²": "option cpus='²': must be a whole number",
    "memory=-1": "option memory='-1': must be a number of gigabytes",
    "memory=nan": "option memory='nan': must be a number of gigabytes",
    "memory=4G": "option memory='4G': must be a number of gigabytes",
    "partition=a b": "option partition='a b': must be one word",
    "partition=a\n#SBATCH --wrap=rm": "option partition='a\\n#SBATCH --wrap=rm': must be one word",
    "account=$(rm)": "option account='$(rm)': must be one word",
    "setup=a\nb": "option setup='a\\nb': must be one line of shell",
    "cluster=cloud": "option cluster='cloud': (known: local, slurm)",
}


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_options_that_are_not_valid(option: str) -> None:
    given = Placement("submitit", options=(option,))
    for ask in (
        lambda: place([Work("a", work.write)], given, lambda event: None),
        lambda: sbatch(["biograd"], 1, given),
    ):
        with pytest.raises(RecipeError) as caught:
            ask()
        assert str(caught.value).startswith(BAD_OPTIONS[option])
        assert "\n" not in str(caught.value)


def test_an_option_is_given_once() -> None:
    with pytest.raises(RecipeError, match="option 'time' is given twice"):
        sbatch(["biograd"], 1, Placement(options=("time=5", "time=6")))


@pytest.mark.parametrize("engine, extra", [("submitit", "sweep"), ("dask", "dask")])
def test_a_missing_package_is_named(
    engine: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, {"dask": "distributed"}.get(engine, engine), None)
    with pytest.raises(MissingExtraError, match=re.escape(f"pip install 'biograd[{extra}]'")):
        place([Work("a", work.write)], here(engine, tmp_path), lambda event: None)


def test_libraries_are_loaded_when_they_are_needed() -> None:
    code = "import sys, biograd.placement as e\n"
    code += "print([n for n in ('submitit', 'distributed', 'dask', 'torch') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_to_do(engine: str, tmp_path: Path) -> None:
    assert placed([], here(engine, tmp_path)) == ([], [])
    assert list(tmp_path.iterdir()) == []


# Dask ------------------------------------------------------------------------------------------


def test_no_scheduler_at_an_address(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from biograd.placement import dask

    monkeypatch.setattr(dask, "CONNECT", 0.5)
    with pytest.raises(BiogradError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9: "):
        place(
            [Work("a", work.write)],
            Placement("dask", address="tcp://127.0.0.1:9"),
            lambda event: None,
        )
    assert capfd.readouterr() == ("", "")


def test_a_client_that_cannot_start_says_nothing_later() -> None:
    code = (
        "from biograd.placement import Placement, place\n"
        "from biograd.placement.jobs import Work\n"
        "try:\n"
        "    place([Work('a', print)], Placement('dask', address='foo://x:1'), print)\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("RecipeError\n", "")


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A Dask cluster that somebody else has started, with a worker of two threads."""
    import logging

    import distributed

    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=2,
        host="127.0.0.1",
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
    ) as made:
        yield made


@SLOW
def test_a_cluster_at_an_address(cluster: Any, tmp_path: Path) -> None:
    functions = (work.write, work.write, work.killed_once, work.refused)
    paths = [tmp_path / f"{index}" for index in range(len(functions))]
    given = [Work(path.name, f, (path,)) for f, path in zip(functions, paths, strict=True)]
    placement = here("dask", tmp_path, address=cluster.scheduler_address)
    failures, _ = placed(given, placement)
    assert failures == [Failure("3", "the recipe is wrong")]
    assert [path.read_text() for path in paths] == ["1", "1", "xx", "x"]
    assert len(cluster.scheduler.workers) == 1  # it goes on


@SLOW
def test_a_dask_worker_that_dies(cluster: Any, tmp_path: Path) -> None:
    path = tmp_path / "a"
    placement = here("dask", tmp_path, address=cluster.scheduler_address)
    assert placed([Work("a", work.worker_killed_once, (path,))], placement)[0] == []
    assert path.read_text() == "xx"


@SLOW
def test_dask_workers_with_another_biograd(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from biograd.placement import dask

    monkeypatch.setattr(dask, "__version__", "0")
    placement = here("dask", tmp_path, address=cluster.scheduler_address)
    with pytest.raises(BiogradError, match=r"has biograd .*, and here is 0: install the same"):
        place([Work("a", work.write)], placement, lambda event: None)


# Slurm -----------------------------------------------------------------------------------------


@pytest.fixture
def states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return slurm.stand_in(tmp_path, monkeypatch)


def test_an_array_of_slurm(states: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    functions = (work.write, work.write, work.killed_once, work.refused, work.surprised)
    paths = [tmp_path / f"{index}" for index in range(len(functions))]
    given = [Work(path.name, f, (path,)) for f, path in zip(functions, paths, strict=True)]
    options = ("time=90", "partition=long", "cpus=3", "memory=0.5", "gpus=1")
    failures, _ = placed(given, Placement("submitit", 2, None, options, tmp_path))
    log = tmp_path / "jobs" / "1_4_0_log.err"
    assert failures == [
        Failure("3", "the recipe is wrong"),
        Failure("4", f"KeyError: 'two\\nlines' (see {log})"),
    ]
    assert [path.read_text() for path in paths] == ["3", "3", "xx", "x", "x"]
    script = (states / "1.script").read_text()
    flags = ("array=0-4%2", "time=90", "partition=long", "cpus-per-task=3", "mem=512MB")
    assert all(f"#SBATCH --{flag}\n" in script for flag in (*flags, "gpus-per-node=1"))
    assert max(map(int, (states / "running").read_text().split())) == 2
    assert len(list(states.glob("*.script"))) == 2  # the array, and the killed one alone
    assert capfd.readouterr() == ("", "")


def test_a_job_at_its_time_limit_goes_on_under_its_number(
    states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as if the study ran in a job itself
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "98")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "99")
    path = tmp_path / "a"
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)
        if event.state == "started":
            wait_until(lambda: path.exists() and path.read_text() == "begun")
            slurm.send("1", signal.SIGUSR2)

    assert (
        place([Work("a", work.goes_on, (path,))], Placement("submitit", folder=tmp_path), watch)
        == []
    )
    assert path.read_text() == "begun, interrupted, ended"
    assert [event.state for event in events] == ["started", "done"]
    assert len(list(states.glob("*.script"))) == 1


def test_a_job_that_is_cancelled_is_not_submitted_again(states: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"

    def watch(event: Event) -> None:
        if event.state == "started":
            wait_until(lambda: path.exists() and bool(path.read_text()))
            slurm.scancel("1")

    failures = place(
        [Work("a", work.sleep, (path,))], Placement("submitit", folder=tmp_path), watch
    )
    assert [failure.name for failure in failures] == ["a"]
    assert failures[0].reason.startswith("its job 1 ended without a result (CANCELLED)")
    assert len(list(states.glob("*.script"))) == 1


def test_jobs_are_cancelled_with_the_study(states: Path, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "ab"]

    def watch(event: Event) -> None:
        wait_until(lambda: all(path.exists() and path.read_text() for path in paths))
        raise KeyboardInterrupt

    given = [Work(path.name, work.sleep, (path,)) for path in paths]
    with pytest.raises(KeyboardInterrupt):
        place(given, Placement("submitit", 2, folder=tmp_path), watch)
    wait_until(lambda: all(gone(int(path.read_text())) for path in paths))
    assert [slurm.read(job, "state") for job in ("1_0", "1_1")] == ["CANCELLED"] * 2


def test_what_sbatch_says_is_one_line(
    states: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (states / "refuse").touch()
    failures, _ = placed(
        [Work("a", work.write, (tmp_path / "a",))], Placement("submitit", folder=tmp_path)
    )
    said = "sbatch: error: invalid partition specified: nowhere sbatch: error: failed"
    assert failures == [Failure("a", f"its job could not be submitted: {said}")]
    assert capfd.readouterr() == ("", "")


def test_a_queue_that_does_not_answer_says_nothing_of_the_jobs(
    states: Path, tmp_path: Path
) -> None:
    (tmp_path / "bin" / "squeue").write_text("#!/bin/sh\necho no controller; exit 1\n")
    placement = Placement("submitit", folder=tmp_path)
    assert placed([Work("a", work.write, (tmp_path / "a",))], placement)[0] == []


def test_no_slurm_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for options in ((), ("cluster=slurm",)):
        with pytest.raises(RecipeError, match=r"cluster=local, or use --print-sbatch"):
            place([Work("a", work.write)], Placement("submitit", options=options), lambda e: None)


def test_a_folder_with_a_sign_of_slurm(states: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="needs a folder without %"):
        folder = tmp_path / "50%a"
        place([Work("a", work.write)], Placement("submitit", folder=folder), lambda e: None)


# A plain script ---------------------------------------------------------------------------------

HOSTILE = [
    "a b",
    "$(touch injected)",
    "`touch injected`",
    "it's",
    '"',
    "a\ntouch injected",
    "#",
    "ü",
]


def run_array(script: str, count: int, folder: Path, **variables: str) -> list[list[str]]:
    """Run a script as Slurm would, and return what each task received."""
    file = folder / "script.sh"
    file.write_text(script)
    subprocess.run(["bash", "-n", file], check=True)
    for index in range(count):
        environment = os.environ | {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_JOB_ID": "7"}
        ran = subprocess.run(
            ["bash", file], env=environment | variables, cwd=folder, capture_output=True, text=True
        )
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    return [json.loads(p.read_text()) for p in sorted((folder / "received").glob("*"))]


RECEIVE = """
import json, os, sys
from pathlib import Path
Path("received").mkdir(exist_ok=True)
given = [*sys.argv[1:], os.environ["OMP_NUM_THREADS"]]
Path("received", sys.argv[-1]).write_text(json.dumps(given))
print("said", sys.argv[-1])
"""


def test_an_array_script(tmp_path: Path) -> None:
    (tmp_path / "receive.py").write_text(RECEIVE)
    command = [sys.executable, "receive.py", *HOSTILE]
    folder = Path("a study's; touch injected")
    options = ("time=1", "partition=gpu", "cpus=4", "memory=1.5", "gpus=2", "account=me")
    script = sbatch(command, 3, Placement("submitit", 2, options=options, folder=folder))
    received = run_array(script, 3, tmp_path, SLURM_CPUS_PER_TASK="4")
    assert received == [[*HOSTILE, "--task", str(index), "4"] for index in range(3)]
    logs = sorted((tmp_path / folder / "jobs").iterdir())
    assert [(log.name, log.read_text()) for log in logs] == [
        (f"7_{index}.log", f"said {index}\n") for index in range(3)
    ]
    assert not (tmp_path / "injected").exists()
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert directives == [
        "#SBATCH --job-name=biograd",
        "#SBATCH --array=0-2%2",
        "#SBATCH --output=/dev/null",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:TERM@30",
        "#SBATCH --time=1",
        "#SBATCH --partition=gpu",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --mem=1536M",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --account=me",
    ]
    assert script.index("set -euo pipefail") > script.index(directives[-1])


def test_a_failing_task_fails_its_job(tmp_path: Path) -> None:
    file = tmp_path / "script.sh"
    file.write_text(sbatch(["false"], 1, Placement(folder=tmp_path)))
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "0"}
    assert subprocess.run(["bash", file], env=environment).returncode == 1
    del environment["SLURM_ARRAY_TASK_ID"]  # not in an array
    ran = subprocess.run(["bash", file], env=environment, capture_output=True)
    assert ran.returncode == 1


def test_a_script_needs_tasks_and_slurm() -> None:
    with pytest.raises(RecipeError, match="there is no task to submit"):
        sbatch(["biograd"], 0, Placement())
    with pytest.raises(RecipeError, match="cluster=local: a script for sbatch is for Slurm"):
        sbatch(["biograd"], 1, Placement(options=("cluster=local",)))
    assert "--array=0-0%1\n" in sbatch(["biograd"], 1, Placement(workers=8))
    assert "--array=0-8\n" in sbatch(["biograd"], 9, Placement(workers=None))


def test_the_cores_of_a_login_node_limit_no_script(tmp_path: Path) -> None:
    ask = ["compare", "--models", "ann", "--estimators", "backprop", "--seeds", "9", "--no-control"]
    folder = str(tmp_path / "study")
    for more, limit in (([], "0-8"), (["--workers", "3"], "0-8%3")):
        words = [*ask, "-o", folder, "--print-sbatch", *more]
        ran = CliRunner().invoke(console, words, catch_exceptions=False)
        assert f"#SBATCH --array={limit}\n" in ran.output


def test_generic_resources_and_setup_of_a_job(tmp_path: Path) -> None:
    options = ("gres=gpu:a100:1", "setup=module load cuda && export X=1")
    script = sbatch(["biograd"], 2, Placement(options=options))
    assert "#SBATCH --gres=gpu:a100:1\n" in script
    assert script.index("module load cuda && export X=1\n") < script.index("exec biograd")
    here = Placement("submitit", options=("cluster=local", "gres=gpu:1"), folder=tmp_path)
    with pytest.raises(RecipeError, match="option gres: has no effect with cluster=local"):
        place([Work("a", work.write)], here, lambda event: None)

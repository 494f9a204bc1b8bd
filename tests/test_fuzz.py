"""A short share of the fuzzing; the long one is ``python -m tests.fuzz TARGET``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import TARGETS, target
from fuzz.harness import Target, campaign, judged, run, snapshot

SHARE = {"data": 30, "nir": 10, "recipes": 20, "recordings": 15, "runs": 6}
"""Mutants of the default suite, by target."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_share_of_the_mutants(tmp_path: Path, name: str) -> None:
    tally = campaign(target(name), tmp_path, range(10 * SHARE[name]))
    assert tally.mutants and not tally.faults, "\n".join(map(str, tally.faults))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_a_few_mutants(tmp_path: Path, name: str) -> None:
    tally = campaign(target(name), tmp_path, range(SHARE[name]))
    refused = sum(tally.codes[code] for code in (1, 2, 4))
    assert refused and not tally.faults, "\n".join(map(str, tally.faults))


def test_the_harness_sees_what_goes_wrong(tmp_path: Path) -> None:
    """Commands that do wrong, and one that does not."""
    (tmp_path / "kept").write_text("mine")
    before = snapshot(tmp_path)
    good = run(["list", "models"])
    assert judged(good, before, before, []) == ""
    (tmp_path / "kept").write_text("other")
    assert "changed" in judged(good, before, snapshot(tmp_path), [])
    bad = run(["inspect", str(tmp_path / "nothing")])
    assert bad.code == 4 and judged(bad, before, before, []) == ""
    assert "left behind" in judged(bad, before, before, ["out"])
    source = (  # in a process of its own: what a signal meets in a long-lived one may not bear it
        "from fuzz.harness import judged, run\n"
        "print(judged(run(['list', 'models'], seconds=1e-4), {}, {}, []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    assert "hangs" in done.stdout


def test_what_hears_no_signal_is_ended_by_the_system() -> None:
    source = "from fuzz.harness import limited\nwith limited(0):\n  max(iter(int, 1))"
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", source], check=False, env={**os.environ, "PYTHONPATH": folder}
    )
    assert done.returncode == -signal.SIGXCPU


def test_mutants_follow_from_their_number(tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        (folder / "a").write_bytes(bytes(100))

    def mutate(stream: object, folder: Path) -> str:
        from fuzz.mutators import damaged_bytes

        data, how = damaged_bytes(stream, (folder / "a").read_bytes())  # type: ignore[arg-type]
        seen.append(data)
        return how

    seen: list[bytes] = []
    for folder in ("one", "two"):
        campaign(Target(prepare, mutate, ()), tmp_path / folder, range(5), seed=3)
    assert seen[:5] == seen[5:] and len(set(seen)) > 1

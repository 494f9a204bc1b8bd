"""The allocator keeps memory where nobody has said otherwise; each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from biograd.errors import RecipeError
from biograd.process import memory, switches

FAULTS = """
import resource, torch
from biograd.process.memory import keep_memory
kept = keep_memory()
def work(times):
    for _ in range(times):
        torch.empty(12_000_000).fill_(1)
work(20)  # glibc before 2.38 finds room for an aligned array only after some others
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work(3)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(**variables: str) -> tuple[str, int]:
    """Return whether memory is kept, and how many pages three more arrays of 48 MB took."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith((*memory.OWN, "BIOGRAD_"))}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS],
        capture_output=True,
        text=True,
        check=True,
        env={**plain, **variables},
    )
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(not memory.may_keep_memory(), reason="the allocator is chosen by the user")
def test_freed_arrays_cost_no_pages_the_second_time() -> None:
    kept, few = faults()
    given_back, many = faults(BIOGRAD_KEEP_MEMORY="0")
    assert (kept, given_back) == ("True", "False")
    assert many > 3000 and few < many / 100


@pytest.mark.parametrize(
    "variables", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}]
)
def test_what_a_user_has_chosen_stays(variables: dict[str, str]) -> None:
    assert faults(**variables)[0] == "False"


def test_a_variable_of_zero_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, expected in (("0", False), ("1", True), ("", True)):
        monkeypatch.setenv(switches.COMPILED, value)
        assert switches.allowed(switches.COMPILED) is expected
    monkeypatch.setenv(switches.COMPILED, "false")
    with pytest.raises(RecipeError, match="BIOGRAD_COMPILED = 'false': must be 0 or 1"):
        switches.allowed(switches.COMPILED)
    monkeypatch.delenv(switches.COMPILED)
    assert switches.allowed(switches.COMPILED)
    monkeypatch.setenv(switches.KEEP_MEMORY, "0")
    assert not memory.may_keep_memory()

"""Named random streams, and the global generators while a user's code draws from them."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
import torch

from biograd.randomness import derive_seed, generator, seeded_globals


def drawn() -> tuple[float, float, float]:
    return float(torch.rand(1)), float(np.random.rand()), random.random()


def test_a_seed_is_the_digest_of_its_stream() -> None:
    digest = hashlib.blake2b(b"3/noise/hidden", digest_size=8).digest()
    assert derive_seed(3, "noise", "hidden") == int.from_bytes(digest, "little") // 2
    assert len({derive_seed(seed, name) for seed in range(50) for name in "abcd"}) == 200


def test_a_stream_is_its_own() -> None:
    before = torch.get_rng_state()
    first, second = generator(0, "noise"), generator(0, "order")
    assert not torch.equal(torch.rand(4, generator=first), torch.rand(4, generator=second))
    assert torch.equal(torch.get_rng_state(), before)


def test_global_generators_are_seeded_for_a_while_and_put_back() -> None:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    expected = drawn(), drawn()
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    found = [drawn()]
    with seeded_globals(0, "module"):
        inside = drawn()
    with seeded_globals(0, "module"):
        assert drawn() == inside
    with seeded_globals(0, "examples"):
        assert all(a != b for a, b in zip(drawn(), inside, strict=True))
    found.append(drawn())
    assert tuple(found) == expected


def test_they_are_put_back_after_an_error() -> None:
    before = random.getstate()
    with pytest.raises(ZeroDivisionError), seeded_globals(0):
        raise ZeroDivisionError
    assert random.getstate() == before

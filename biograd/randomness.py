"""Named random streams: every use of randomness has its own generator, derived from one seed.

Why: a run can only be repeated, resumed or compared copy by copy if no part of it draws from a
generator that another part shares.  Nothing in biograd draws from the global generators; code of
users does, which then finds them seeded.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def derive_seed(seed: int, *names: object) -> int:
    """Return a 63-bit seed for the stream ``names`` under ``seed`` (BLAKE2b of both)."""
    text = "/".join([str(int(seed)), *map(str, names)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(
    seed: int, *names: object, device: torch.device | str | None = None
) -> torch.Generator:
    """Return a fresh ``torch.Generator`` for the stream ``names`` under ``seed``.

    >>> a, b = generator(0, "noise"), generator(0, "noise")
    >>> bool(torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b)))
    True
    >>> a, b = generator(0, "noise"), generator(0, "order")
    >>> bool(torch.equal(torch.rand(3, generator=a), torch.rand(3, generator=b)))
    False
    """
    stream = torch.Generator(device=device or "cpu")
    stream.manual_seed(derive_seed(seed, *names))
    return stream


@contextlib.contextmanager
def seeded_globals(seed: int, *names: object) -> Iterator[None]:
    """Seed torch's, NumPy's and Python's global generators for the stream ``names``, for a while.

    Those of accelerators stay as they are.
    """
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()
    derived = derive_seed(seed, *names)
    torch.default_generator.manual_seed(derived)
    np.random.seed(derived % 2**32)
    random.seed(derived)
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])
        random.setstate(kept[2])

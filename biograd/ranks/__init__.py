"""The processes that train one network together: who they are, what they exchange, how they end.

``torchrun`` starts them and tells each its number, the rank, by the environment.  They exchange
tensors over gloo on the CPU and NCCL on CUDA.  What a rank says of its own end goes to torchrun's
store, which outlives it; the others ask there why a rank does not answer any more.

One rank speaks for all, the first that is left.  Alone, a process is rank 0 of 1, and nothing here
does anything; torch is imported by whoever joins others.
"""

from biograd.ranks.ending import Lost, deaf, give_way, together
from biograd.ranks.exchange import (
    add,
    after_first,
    collect,
    copy_first,
    first_of_machine,
    from_first,
    table,
)
from biograd.ranks.world import (
    HERE,
    KNOWN,
    World,
    command,
    end,
    join,
    leave,
    own_device,
    rank,
    refuse,
    size,
    speaks,
    started,
    traffic,
)

__all__ = [
    "HERE",
    "KNOWN",
    "Lost",
    "World",
    "add",
    "after_first",
    "collect",
    "command",
    "copy_first",
    "deaf",
    "end",
    "first_of_machine",
    "from_first",
    "give_way",
    "join",
    "leave",
    "own_device",
    "rank",
    "refuse",
    "size",
    "speaks",
    "started",
    "table",
    "together",
    "traffic",
]

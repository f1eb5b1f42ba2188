"""Several processes (GPUs) that work together, started by ``accelerate launch``; with one, nothing here does anything.

All run the same program. The first is the one that writes; what every one needs comes from it or is shared out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T, R = TypeVar("T"), TypeVar("R")
PATIENCE = timedelta(hours=6)  # how long processes wait for the one that reads data or writes


@cache
def together():
    """accelerate's state, or None where one process works alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
        return None
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    on_cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)
    if state.distributed_type not in (DistributedType.MULTI_CPU, DistributedType.MULTI_GPU):
        raise RuntimeError(f"accelerate was set up for {state.distributed_type.value}; plain data parallelism is what is here: "
                           "accelerate launch --multi_gpu --num_processes N -m allmrec_lib.train ...")  # fmt: skip
    return state


def count() -> int:
    """How many processes work together."""
    return 1 if together() is None else together().num_processes


def number() -> int:
    """Which of them this one is, from 0."""
    return 0 if together() is None else together().process_index


def is_main() -> bool:
    """Whether this is the process that writes."""
    return number() == 0


def wait() -> None:
    """Until all processes are here."""
    if together() is not None:
        together().wait_for_everyone()


def from_main(value: T) -> T:
    """The main process's ``value``, in all of them."""
    if together() is None:
        return value
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def mean(value: Tensor) -> float:
    """The mean of the processes' scalars."""
    if together() is None:
        return float(value)
    from accelerate.utils import reduce

    return float(reduce(value.detach().to(together().device), "mean"))


def each_once(work: Callable[[T], R], items: list[T]) -> list[R]:
    """``work`` of every item, in order. With N processes each does every N-th item, and all get all results."""
    done = [work(item) for item in items[number() :: count()]]
    if together() is None:
        return done
    from accelerate.utils import gather_object

    results: list[R] = [None] * len(items)
    for process, found in enumerate(gather_object([done])):
        results[process :: count()] = found  # raises ValueError for a result too few or too many
    return results

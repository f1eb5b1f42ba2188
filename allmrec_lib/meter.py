"""What making an artifact took: wall time, peak memory, and on what. And memory that is given back while it is made."""

from __future__ import annotations

import ctypes
import platform
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or "CPU"])[0]


def device_name(device: str = "cpu") -> str:
    """The GPU's name, or the CPU's with how many threads compute."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{cpu_name()}, {threads} thread{'s' if threads > 1 else ''}"


_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
_given_back = time.monotonic()


def give_back_memory(every_s: float = 10.0) -> None:
    """Give memory that was freed back to the system, once in ``every_s`` seconds: glibc keeps it, and batches of many lengths cut
    what it keeps into pieces that fit no other, so that a long training on a CPU grows by gigabytes. Elsewhere nothing."""
    global _given_back
    if _TRIM is not None and time.monotonic() - _given_back >= every_s:
        _TRIM(0)
        _given_back = time.monotonic()


class Meter:
    """``with Meter() as meter: ...``, then ``meter.made``: ``wall_s``, ``peak_mb``, ``device``, and ``tokens`` where an LLM read.

    Seconds and tokens are those of this meter alone: what was made inside, under a meter of its own, is left out. The peak is what
    is allocated on all GPUs where one is in use, else the process's resident memory, what was loaded before included.
    """

    _running: list[Meter] = []

    def __enter__(self) -> Meter:
        for outer in self._running:
            outer.peak = max(outer.peak, _peak_mb())
        self.begin, self.inside, self.peak = time.monotonic(), 0.0, 0.0
        self.made: dict[str, Any] = {}
        self.tokens = 0
        self._running.append(self)
        _forget_peak()
        return self

    def __exit__(self, *error: object) -> None:
        self._running.remove(self)
        seconds, self.peak = time.monotonic() - self.begin, max(self.peak, _peak_mb())
        for outer in self._running[-1:]:
            outer.inside, outer.peak = outer.inside + seconds, max(outer.peak, self.peak)
        device = device_name("cuda" if torch.cuda.is_initialized() else "cpu")
        self.made = {"wall_s": round(seconds - self.inside, 1), "peak_mb": round(self.peak), "device": device}
        self.made |= {"tokens": self.tokens} if self.tokens else {}

    @classmethod
    def read(cls, tokens: int) -> None:
        """An LLM has read so many tokens, padding included."""
        for inner in cls._running[-1:]:
            inner.tokens += tokens


def _peak_mb() -> float:
    if torch.cuda.is_initialized():
        return sum(map(torch.cuda.max_memory_allocated, range(torch.cuda.device_count()))) / 2**20
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    if kilobytes:
        return kilobytes[0] / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _forget_peak() -> None:
    """Start the peak anew, where the system can: on others it stays that of the process so far."""
    if torch.cuda.is_initialized():
        for card in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(card)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")

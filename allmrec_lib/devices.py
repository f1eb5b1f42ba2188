"""How much memory is free where a run would compute."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache


@cache
def cards() -> list[tuple[str, int]]:
    """Name and free bytes of every GPU, asked by a process of its own: who asks keeps some of a card's memory while it lives."""
    asked = ("import json, torch; print(json.dumps([[torch.cuda.get_device_name(card), torch.cuda.mem_get_info(card)[0]] "
             "for card in range(torch.cuda.device_count())]))")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the GPUs do not say how much memory is free: {done.stderr.strip().splitlines()[-1]}")
    return [(name, free) for name, free in json.loads(done.stdout)]


def used_cards(device: str, spread: bool) -> list[tuple[str, int]]:
    """Those of :func:`cards` that a run uses: all, with ``spread``; none on a CPU."""
    if not device.startswith("cuda"):
        return []
    return cards() if spread else [cards()[int(device.partition(":")[2] or 0)]]


def device_memory(device: str, spread: bool) -> tuple[float, str]:
    """Free GB on the card (all cards, with ``spread``), or in the machine's memory for ``cpu``; and what that is."""
    import psutil

    if not (used := used_cards(device, spread)):
        return psutil.virtual_memory().available / 1e9, "free memory"
    return sum(free for _, free in used) / 1e9, f"free on {', '.join(name for name, _ in used)}"

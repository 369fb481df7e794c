"""Measures whether other processes used the machine during a run: disturbed times must not be quoted.

Other processes do not slow every implementation equally. Implementations that synchronise at barriers lose whole time
slices; ours does not wait for a thread that has not begun; and a disturbed multiply-add peak makes every share of it
too high.
"""

from __future__ import annotations

import os
from pathlib import Path

_STAT = Path("/proc/stat")

# Largest share of all cores' time that counts as quiet: an idle system's own services were measured slightly below it.
MAX_OTHERS_SHARE = 0.03


class NoiseMonitor:
    """Tracks processor time from its construction on."""

    def __init__(self) -> None:
        self._start = _times()

    def others_share(self) -> float | None:
        """The share of all cores' time that other processes (or the host) took; None where there is no /proc/stat."""
        end = _times()
        if self._start is None or end is None:
            return None
        total, busy, own = (after - before for after, before in zip(end, self._start, strict=True))
        return max(0.0, busy - own) / total if total else 0.0


def _times() -> tuple[float, float, float] | None:
    """Seconds over all cores: total, busy, and this process's with its children's (torch.compile keeps some alive)."""
    if not _STAT.exists():
        return None
    # The fields are user, nice, system, idle, iowait, irq, softirq, steal; user includes guest time.
    ticks = [int(value) for value in _STAT.read_text().split("\n")[0].split()[1:9]]
    seconds = [value / os.sysconf("SC_CLK_TCK") for value in (sum(ticks), sum(ticks) - ticks[3] - ticks[4])]
    return seconds[0], seconds[1], _own_seconds()


def _own_seconds() -> float:
    """Processor seconds of this process and its descendants, running and ended."""
    used: dict[int, float] = {}
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        process = int(path.parent.name)
        parents[process] = int(fields[1])
        used[process] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def is_own(process: int) -> bool:
        while process > 1 and process != os.getpid():
            process = parents.get(process, 0)
        return process == os.getpid()

    return sum(seconds for process, seconds in used.items() if is_own(process))

"""Whether anyone else used the machine meanwhile: times taken beside others are not to be quoted.

A neighbour does not slow all alike. Contestants that meet at barriers lose whole time slices, ours does not wait for
a thread that has not begun, and a disturbed multiply-add peak makes every share of it too high.
"""

from __future__ import annotations

import os
from pathlib import Path

_STAT = Path("/proc/stat")

# Of all cores' time: what an idle system's own services were seen to take, and some room.
MOST_BY_OTHERS = 0.03


class Watch:
    """Processor time since it was made."""

    def __init__(self) -> None:
        self._start = _times()

    def taken_by_others(self) -> float | None:
        """The share of all cores' time that other processes (or the host) took; None where there is no /proc/stat."""
        end = _times()
        if self._start is None or end is None:
            return None
        total, busy, own = (after - before for after, before in zip(end, self._start, strict=True))
        return max(0.0, busy - own) / total if total else 0.0


def _times() -> tuple[float, float, float] | None:
    """Seconds of all cores: all, busy, and ours with ended children's."""
    if not _STAT.exists():
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user's already.
    ticks = [int(value) / os.sysconf("SC_CLK_TCK") for value in _STAT.read_text().split("\n")[0].split()[1:9]]
    return sum(ticks), sum(ticks) - ticks[3] - ticks[4], sum(os.times()[:4])

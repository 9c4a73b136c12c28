"""What a real training step launches and waits for, with the plugin and without it.

    python benchmarks/step_time/profile_steps.py [--steps 5] [--out FILE.json] [Megatron flags…]

After a warm-up, neighbouring steps of one run take turns under torch's profiler, between two logged
steps. On a CPU the operations that torch dispatches are counted instead; there is no device time.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from run import machine, train, without_plugin  # noqa: E402
from written import write_json  # noqa: E402

WARM_UP = 11  # steps; the first one is logged
WAITS = re.compile(r"cuda\w*Synchronize|cuMemcpy\w*DtoH(?!Async)|cudaMemcpy$")
SHOWN = 12


class Profiles:
    """Runs neighbouring steps with and without the plugin, and keeps what the profiler saw."""

    def __init__(self, steps: int, out: Path | None) -> None:
        self._left = [plugin for _ in range(steps) for plugin in (True, False)]
        self._before = WARM_UP
        self._out = out
        self.seen: dict[bool, list[dict[str, Any]]] = {True: [], False: []}

    def wrap(self, train_step: Any) -> Any:
        """``train_step`` with our seam on it → one that takes turns."""
        import torch

        def profiled(*args: Any, **kwargs: Any) -> Any:
            if self._before or not self._left:
                self._before = max(0, self._before - 1)
                return train_step(*args, **kwargs)
            plugin = self._left.pop(0)
            step = train_step
            if not plugin:
                step, args = without_plugin(train_step, args)
            with torch.profiler.profile() as profile:
                result = step(*args, **kwargs)
            self.seen[plugin].append(summary(profile))
            write_json(self._out, self.result())
            return result

        return profiled

    def result(self) -> dict[str, Any]:
        """Medians over the steps, and what the plugin launches on top."""
        found: dict[str, Any] = {**machine(), "counted": counted()}
        typical: dict[bool, Counter[str]] = {}
        for name, plugin in (("with", True), ("without", False)):
            steps = self.seen[plugin]
            if not steps:
                continue
            typical[plugin] = Counter(
                {
                    key: int(statistics.median(step["launched"][key] for step in steps))
                    for key in set().union(*(step["launched"] for step in steps))
                }
            )
            found[name] = {
                "steps": len(steps),
                "launches": statistics.median(s["launched"].total() for s in steps),
                "device_us": statistics.median(s["device_us"] for s in steps),
                "waits": statistics.median(s["waits"].total() for s in steps),
                "waits_by_name": dict(sum((s["waits"] for s in steps), Counter())),
            }
        if len(typical) == 2:
            found["more_with"] = dict((typical[True] - typical[False]).most_common(SHOWN))
            found["more_without"] = dict((typical[False] - typical[True]).most_common(SHOWN))
        return found


def summary(profile: Any) -> dict[str, Any]:
    """Names of what one step launched and waited for, how often, and its time on the device."""
    import torch

    launched, waits, device_us = Counter[str](), Counter[str](), 0.0
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            launched[event.name] += 1
            device_us += event.time_range.elapsed_us()
        elif WAITS.search(event.name):
            waits[event.name] += 1
        elif not torch.cuda.is_available() and "::" in event.name:
            launched[event.name] += 1
    return {"launched": launched, "device_us": device_us, "waits": waits}


def counted() -> str:
    """What "launches" are on this machine."""
    import torch

    if torch.cuda.is_available():
        return "kernels, copies and fills"
    return "operations that torch dispatches on the CPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)  # type: ignore[union-attr]
    parser.add_argument("--steps", type=int, default=5, help="of each kind")
    parser.add_argument("--out", type=Path, help="JSON file (default: print only)")
    options, flags = parser.parse_known_args()
    profiles = Profiles(options.steps, options.out)
    train(profiles.wrap, WARM_UP + 2 * options.steps + 1, "none", flags)
    print(json.dumps(profiles.result(), indent=2))


if __name__ == "__main__":
    main()

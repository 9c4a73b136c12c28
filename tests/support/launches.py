"""What a call enqueues on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch


def launches(function: Callable[[], object]) -> list[str]:
    """Names of the kernels, copies and fills that one call enqueues."""
    function()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        function()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return [event.name for event in profile.events() if event.device_type == on_device]

"""The loss of a microbatch on a GPU: what it launches, and that it equals the CPU's."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("pydantic", reason="the flow reads its config by pydantic")
from support import passes
from support.launches import launches

from domain_pretrain.kernels.domain_reduce import select

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("kind", [None, "lagged"])
def test_launches_of_the_flow_are_counted(kind: str | None) -> None:
    """The table of docs/kernels.md; rows of samples that are new arrive in one copy."""
    cuda, device = select("cuda"), torch.device("cuda", torch.cuda.current_device())
    host = launches(passes.Pass(None, passes.loss_func, device))
    beside, instead = (
        launches(passes.Pass(passes.forward(cuda, kind, device), function, device))
        for function in (passes.loss_func, passes.our_loss_func)
    )
    ours = [name for name in beside if name in ("reduce", "loss", "gradient")]
    assert ours == (["reduce"] if kind is None else ["loss", "gradient"])
    assert len(beside) == len(host) + len(ours) - (kind is not None)
    assert instead == ["loss", "gradient"]
    plugin, source = passes.forward(cuda, kind, device), passes.new_samples()
    anew = launches(passes.Pass(plugin, passes.our_loss_func, device, source=source))
    assert [name for name in anew if "HtoD" not in name] == ["loss", "gradient"]
    assert len(anew) == 3


@pytest.mark.parametrize("backend", ["cuda", "reference"])
def test_the_flow_on_the_device_equals_the_flow_on_the_cpu(backend: str) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    for kind in (None, "lagged"):
        for function in (passes.loss_func, passes.our_loss_func):
            plugins = [
                passes.forward(select("reference"), kind),
                passes.forward(select(backend), kind, device),
            ]
            *_, expected = passes.Pass(plugins[0], function)()
            *_, gradient = passes.Pass(plugins[1], function, device)()
            assert torch.equal(gradient.cpu(), expected)
            assert torch.equal(plugins[1].ledger.sums.cpu(), plugins[0].ledger.sums)
            totals = [plugin.ledger.totals.tolist() for plugin in plugins]
            assert totals[0][1:] == totals[1][1:]
            assert totals[0][0] == pytest.approx(totals[1][0], rel=1e-6)

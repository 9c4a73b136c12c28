"""``python -m domain_pretrain.launch.agent <words>``: torchrun, with meaningful exit codes.

torchrun itself always ends with 1 and a traceback of its own. Here the exit code is
that of the process that failed first (128 + the signal that killed it, as in a shell), and the
last words say which rank it was and where its log is. A rank that ends with 2 is not started
again, nor is a run that has decided to stop: see :mod:`.elastic`.

And every start gets its own store, on its rank 0. By default torchrun's agents keep one for all
starts, in which processes may find the addresses that the previous start has left:
"connection refused", restart after restart (pytorch/pytorch#135712, and seen with 2.13).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from torch.distributed import DistError, launcher
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import main as torchrun
from torch.distributed.run import parse_args

from domain_pretrain.launch.elastic import Agent, EndedError
from domain_pretrain.launch.lifeline import Lifeline, kill_children

AGAIN = "start the command again on every node: it resumes from the newest good checkpoint"


def main(words: Sequence[str]) -> int:
    """Run the agent of this node; returns the exit code of the training."""
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    _watch_the_first_node(words)
    launcher.api.LocalElasticAgent = Agent  # type: ignore[misc]  # torchrun has no flag for it
    logs = " ".join(word.partition("=")[2] for word in words if word.startswith("--log-dir="))
    try:
        torchrun(list(words))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        code = failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
        ended = f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else "failed"
        say(f"rank {rank} {ended}: exit code {code}, no restart left. Logs: {logs}")
        return code
    except EndedError as end:
        say(f"{end}. Logs: {logs}")
        return end.code
    except SignalException as error:
        say(f"ended by {error.sigval.name}")
        return 128 + error.sigval
    except (RendezvousError, DistError) as error:
        say(f"this node lost the others, or they never came ({type(error).__name__}: {error})")
        say(AGAIN)
        return 1
    return 0


def _watch_the_first_node(words: Sequence[str]) -> None:
    args = parse_args(list(words))
    host, _, port = args.rdzv_endpoint.rpartition(":")
    if args.nnodes == "1" or not host:
        return
    settings = dict(pair.split("=") for pair in args.rdzv_conf.split(",") if pair)
    patience_s = float(settings.get("join_timeout", 600))

    def give_up() -> None:
        say(f"this node lost the others: {host}:{port} cannot be reached for {patience_s:.0f} s")
        say(AGAIN)
        kill_children()
        os._exit(1)  # the main thread waits for an answer that will not come

    Lifeline(host, int(port), patience_s, give_up).start()


def say(text: str) -> None:
    """To standard error, where torchrun's own messages go."""
    print(f"launch: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The demo from its first line to its last: corpora, base model, continued pretraining, ending."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.text import Text

from domain_pretrain.demo.corpora import Corpus, build
from domain_pretrain.demo.launch import PhaseProgress, run, torchrun
from domain_pretrain.demo.layout import Layout, cores
from domain_pretrain.demo.recipe import Phase
from domain_pretrain.demo.traced import last_iteration
from domain_pretrain.records.reader import EVENTS_FILE, read_findings
from domain_pretrain.records.record import Finding
from domain_pretrain.report.history import read_history
from domain_pretrain.report.page.write import write_page
from domain_pretrain.report.picture import loss_picture
from domain_pretrain.report.table import loss_table, summarise


@dataclass(frozen=True)
class Story:
    """What to tell, where, and on which processes.

    Attributes:
        out: an empty folder.
        base, continued: the phases; the second starts from the first one's checkpoint.
        script: run instead of the built-in entry.
    """

    console: Console
    out: Path
    layout: Layout
    base: Phase
    continued: Phase
    script: Path | None

    def tell(self) -> None:
        """Run all of it.

        Raises:
            DomainPretrainError: the corpora cannot be written, or training failed.
        """
        started = time.monotonic()
        self._say("device", f"{_device(self.layout)}; {self.layout}")
        corpora = self._build()
        self._train(self.base, corpora)
        checkpoint = self.out / self.base.name / "checkpoint"
        self._train(self.continued, corpora, "--load", str(checkpoint), "--finetune")
        self._show_tables()
        self._show_picture()
        self._show_trace()
        self._show_alarm()
        minutes, seconds = divmod(int(time.monotonic() - started), 60)
        self._say("done", f"in {minutes} min {seconds} s")

    def _say(self, name: str, text: str) -> None:
        self.console.print(Text(f"{name:<9}", "bold"), text, soft_wrap=True)

    def _build(self) -> dict[str, Corpus]:
        with self.console.status("corpora: from the standard library of this Python …"):
            corpora = build(self.out / "corpora")
        sizes = [f"{name} {corpus.manifest.tokens / 1e6:.2f}M" for name, corpus in corpora.items()]
        self._say("corpora", f"{', '.join(sizes)} tokens (bytes)")
        return corpora

    def _train(self, phase: Phase, corpora: Mapping[str, Corpus], *flags: str) -> None:
        folder = self.out / phase.name
        folder.mkdir()
        phase.write_config(folder, corpora)
        tokenizer = corpora["general"].manifest.megatron_flags
        words = [str(self.script)] if self.script else []
        words += [*phase.flags(folder, self.layout.tp), *self.layout.flags(), *tokenizer, *flags]
        command = torchrun(self.layout.nproc, words)
        environment = {"OMP_NUM_THREADS": str(self.layout.threads), **os.environ}
        with PhaseProgress(self.console, phase.name, phase.iterations, folder) as progress:
            for _ in run(command, environment, folder / "train.log"):
                progress.update()

    def _show_tables(self) -> None:
        for phase in (self.base, self.continued):
            folder = self.out / phase.name
            self.console.print()
            summaries = summarise(read_history(folder))
            self.console.print(loss_table(summaries, title=phase.title))
        self.console.print(
            "\ndirty is scrambled text, where no model gets below ln 128 = 4.85 nats per byte. A "
            "loss that stays high while the others fall is what channel loss is there to show.\n"
        )

    def _show_picture(self) -> None:
        phases = (self.base, self.continued)
        histories = [read_history(self.out / phase.name) for phase in phases]
        picture, page = self.out / "losses.png", self.out / "report.html"
        loss_picture(
            [(phase.title, told) for phase, told in zip(phases, histories, strict=True)],
            picture,
            title="Channel loss of four domains, one of them dirty",
        )
        write_page(
            [(phase.name, told) for phase, told in zip(phases, histories, strict=True)],
            [self.out / phase.name for phase in phases],
            page,
        )
        installed = Path(sys.executable).with_name("tensorboard")
        tensorboard = _short(installed) if installed.exists() else "tensorboard"
        self._say("picture", _short(picture))
        self._say("page", _short(page))
        self._say("charts", f"{tensorboard} --logdir {_short(self.out / 'tensorboard')}")
        logs = (_short(self.out / phase.name / "train.log") for phase in phases)
        self._say("logs", " ".join(logs))

    def _show_trace(self) -> None:
        folder = self.out / self.continued.name
        found = last_iteration(folder, "dirty")
        if found is None:
            return
        iteration, samples = found
        command = f"domain-pretrain trace {_short(folder)} --iteration {iteration} --domain dirty"
        self._say("documents", f"dirty, last read in iteration {iteration}: {command}")
        for sample in samples:
            spans = ", ".join(
                f"{one['index']} from token {one['first']}" for one in sample["documents"]
            )
            self._say("", f"sample {sample['sample']}, document {spans}: {sample['text']!r}")

    def _show_alarm(self) -> None:
        folder = self.out / self.continued.name
        told = alarm_text(read_findings(folder), _short(folder / EVENTS_FILE))
        if told is not None:
            self._say("alarm", told)


def alarm_text(findings: Sequence[Finding], file: str) -> str | None:
    """The alarm ``dirty``, and where its documents are; None where it was not raised."""
    found = next((one for one in findings if one.rule == "dirty"), None)
    if found is None:
        return None
    return (
        f"{found.rule} in iteration {found.iteration}: {found.message}; the documents behind it "
        f"are in {file}, and `domain-pretrain trace` shows more"
    )


def _device(layout: Layout) -> str:
    if layout.device == "cpu":
        return f"CPU (no GPU found): {cores()} cores, {platform.machine()}"
    import torch

    return f"GPU: {torch.cuda.get_device_name()} ({layout.nproc} of {torch.cuda.device_count()})"


def _short(path: Path) -> str:
    """Relative to the current folder where it lies below."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative

"""The runs of one Megatron that tests/e2e/test_hosts.py looks at: four in every layout."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from pathlib import Path
from typing import Any

from support.corpora import DOMAINS
from support.forks import fork_server
from support.launch import MODEL, SCRIPTS, Run, environment
from support.metrics import METRICS
from support.observe import STEPS, Observed
from support.probes import ALL, config, write_data, write_spy
from support.ramps import RULE, ramped
from support.tools import tools

from domain_pretrain.hosts.versions import host_version
from domain_pretrain.process import SINGLE_PROCESS

PP2 = "--pipeline-model-parallel-size 2"
LAYOUTS = {
    "one": (1, ""),
    "DP2": (2, ""),
    "TP2": (2, "--tensor-model-parallel-size 2 --make-vocab-size-divisible-by 304"),
    "PP2": (2, PP2),
    "PP2xVPP2": (2, f"{PP2} --num-layers-per-virtual-pipeline-stage 1"),
    "CP2": (2, "--context-parallel-size 2"),
}
WEIGHTS = dict(zip(DOMAINS, (3.0, 0.7, 1.9, 0.2, 5.0), strict=True))
CONFIG = {
    "strategy": "static",
    "weights": WEIGHTS,
    "warmup_steps": 0,
    "uniform_part": 0,
    "clip": [0, 1000],
}
# The padded vocabulary takes part in the softmax: it must not depend on the TP size or tokenizer.
COMMON = shlex.split(
    f"--train-iters {STEPS} --eval-interval 2 --eval-iters 1 --ckpt-format torch "
    "--make-vocab-size-divisible-by 608"
)
# The first step has learning rate 0, so that the second starts from the same weights everywhere.
WEIGHTED = shlex.split(
    "--calculate-per-token-loss --eod-mask-loss --lr-warmup-iters 2 --clip-grad 0 --save-interval 2"
)
ONE_BY_ONE = ["--calculate-per-token-loss", "--log-interval", "1"]
# Of the 32 samples of a run: stages that end within steps, and a cut over the end of the first.
SCHEDULE = [
    {"samples": 12, "weights": {"general": 3, "maths": 1}},
    {"samples": 12, "weights": {"finance": 1, "code": 1, "rare": 2}, "shape": "linear"},
    {"weights": {"finance": 1, "rare": 1}},
]
CUT = (10, 15)
# Blocks of a step.
DYNAMIC = {
    "strategy": "linupper",
    "temperature": 0.5,
    "warmup_steps": 0,
    "clip": [0.1, 8.0],
    "block": 8,
}
FIXED = 3  # validation samples of every domain
# Dropout, so that a random number too many would show.
PLAIN = shlex.split("--attention-dropout 0.1 --hidden-dropout 0.1 --save-interval 100")


class Host:
    """Runs of one Megatron, each made once and shared by the checks."""

    def __init__(self, host: Path, folder: Path, blend: list[str], corpora: Path) -> None:
        self.folder, self.blend, self.corpora = folder, blend, corpora
        self.env = host_environment(host, folder)
        self.runs: dict[tuple[str, str], Observed] = {}
        script = host / "pretrain_gpt.py"
        self.script = [script] if script.is_file() else []
        version = self.version = host_version(host / "megatron")
        # Token 256 ends a document; until 0.17 the tokenizer adds that token to the vocabulary.
        vocabulary = 256 if version.release < (0, 18) else 257
        self.common = [*MODEL, *COMMON, "--vocab-size", str(vocabulary)]

    def run(self, name: str, layout: str) -> Observed:
        """The run ``name`` of :data:`RUNS` in a layout, made at first use; it must end well."""
        if (name, layout) not in self.runs:
            self.runs[name, layout] = RUNS[name](self, layout)
        observed = self.runs[name, layout]
        assert observed.run.returncode == 0, observed.run.output[-6000:]
        return observed

    def _start(self, name: str, layout: str, *words: Any, plugin: bool, **env: str) -> Observed:
        folder = self.folder / f"{name}-{layout}"
        folder.mkdir(exist_ok=True)
        nproc, flags = LAYOUTS[layout]
        words = (*(("-m", "domain_pretrain") if plugin else ()), *words, *flags.split())
        env = {**self.env, **(SINGLE_PROCESS if nproc == 1 else {}), **env}
        given = [str(word) for word in words]
        code, output = fork_server(env).run(given, nproc=nproc, env=env)
        return Observed(Run(code, output, folder), folder)

    def _weighted(self, name: str, layout: str) -> list[str | Path]:
        config = self.folder / "weighted.yaml"
        config.write_text(json.dumps({"reweight": CONFIG}))
        log = self.folder / f"{name}-{layout}"
        plugin = ["--domain-config", config, "--domain-log-dir", log]
        return [*self.common, *WEIGHTED, *self.blend, *plugin, "--save", log / "checkpoint"]

    def weighted(self, layout: str) -> Observed:
        """Reweighted training, with losses and gradients recorded."""
        log = self.folder / f"weighted-{layout}"
        env = {"RECORD_DIR": str(log), "WEIGHTS": json.dumps(list(WEIGHTS.values()))}
        words = [SCRIPTS / "host_gpt.py", *self._weighted("weighted", layout)]
        return self._start("weighted", layout, *words, plugin=True, **env)

    def resumed(self, layout: str) -> Observed:
        """The same from step 2 on, in the folder that a crash in step 4 leaves."""
        unbroken = self.run("weighted", layout).folder
        log = self.folder / f"resumed-{layout}"
        shutil.copytree(unbroken / "checkpoint", log / "checkpoint")
        shutil.rmtree(log / "checkpoint" / "iter_0000004")
        (log / "checkpoint" / "latest_checkpointed_iteration.txt").write_text("2")
        lines = (unbroken / METRICS).read_text().splitlines(keepends=True)
        (log / METRICS).write_text("".join(lines[:5]) + lines[5][:20])
        # One layout enables the plugin only after Megatron was imported.
        late = layout == "DP2"
        script = [SCRIPTS / "late_gpt.py"] if late else self.script
        words = [*script, *self._weighted("resumed", layout), "--load", log / "checkpoint"]
        return self._start("resumed", layout, *words, plugin=not late)

    def ramped(self, layout: str) -> Observed:
        """Dynamically reweighted training, with batches that grow; of several ranks, recorded."""
        log = self.folder / f"ramped-{layout}"
        config = self.folder / "ramped.yaml"
        config.write_text(json.dumps({"reweight": RULE}))
        plugin = ["--domain-config", config, "--domain-log-dir", log]
        words = ramped([*self.common, *self.blend, *plugin, *ONE_BY_ONE], self.version)
        if layout == "one":
            return self._start("ramped", layout, *self.script, *words, plugin=True)
        words = [SCRIPTS / "host_gpt.py", *words]
        return self._start("ramped", layout, *words, plugin=True, RECORD_DIR=str(log))

    def mixed(self, layout: str) -> Observed:
        """A blend that changes on the way, with a cut in it, read by a worker."""
        log = self.folder / f"mixed-{layout}"
        config = self.folder / "mixed.yaml"
        mix = {"schedule": SCHEDULE, "skip": [{"samples": CUT}]}
        config.write_text(json.dumps({"mix": mix}))
        words = [*self.common, *self.blend, *ONE_BY_ONE, "--num-workers", "1"]
        words += ["--domain-config", config, "--domain-log-dir", log]
        return self._start("mixed", layout, *self.script, *words, plugin=True)

    def followed(self, layout: str) -> Observed:
        """Shares of the stream that follow the losses, read by a worker."""
        log = self.folder / f"followed-{layout}"
        config = self.folder / "followed.yaml"
        config.write_text(json.dumps({"mix": {"dynamic": DYNAMIC}}))
        words = [*self.common, *self.blend, *ONE_BY_ONE, "--num-workers", "1"]
        words += ["--domain-config", config, "--domain-log-dir", log]
        return self._start("followed", layout, *self.script, *words, plugin=True)

    def _plain(self, name: str, layout: str) -> list[str | Path]:
        # Upstream cannot run a blend under CP since 0.18: the host alone gets a single corpus.
        data = ["--split", "80,10,10", "--data-path", self.corpora / "general"]
        data = data if layout == "CP2" else self.blend
        save = ["--save", self.folder / f"{name}-{layout}" / "checkpoint"]
        return [*self.common, *PLAIN, *data, *save]

    def alone(self, layout: str) -> Observed:
        """The host without the plugin; only the CPU backend, which it needs to run here."""
        words = [SCRIPTS / "host_gpt.py", *self._plain("alone", layout)]
        return self._start("alone", layout, *words, plugin=False)

    def counted(self, layout: str) -> Observed:
        """The same training with channel loss, and a fixed set of validation samples."""
        log = self.folder / f"counted-{layout}"
        config = self.folder / "counted.yaml"
        config.write_text(json.dumps({"evaluate": {"samples": FIXED}}))
        words = [*self.script, *self._plain("counted", layout)]
        words += ["--domain-config", config, "--domain-log-dir", log]
        return self._start("counted", layout, *words, plugin=True)

    def asked(self, layout: str) -> Observed:
        """Of other data, whose tokens are bytes; probes ask the model at each evaluation."""
        folder, log = self.folder / "bytes", self.folder / f"asked-{layout}"
        if not folder.exists():
            folder.mkdir()
            self._bytes = write_data(folder)
            self._spy = write_spy(folder)["PYTHONPATH"]
        spy = {"texts": ALL, "predict": layout != "CP2"}
        asked = config(self.folder / f"asked-{layout}.yaml", {"spy": spy})
        words = [*self.script, *self.common, *PLAIN, *self._bytes, *asked]
        words += ["--domain-log-dir", log, "--channel-loss"]
        path = os.pathsep.join([self.env["PYTHONPATH"], self._spy])
        return self._start("asked", layout, *words, plugin=True, PYTHONPATH=path)


RUNS = {
    "weighted": Host.weighted,
    "resumed": Host.resumed,
    "alone": Host.alone,
    "counted": Host.counted,
    "asked": Host.asked,
    "ramped": Host.ramped,
    "mixed": Host.mixed,
    "followed": Host.followed,
}


def host_environment(host: Path, folder: Path) -> dict[str, str]:
    """Of runs with the Megatron in ``host``; ``folder`` is for its files."""
    python_path = os.pathsep.join([str(host), os.environ.get("PYTHONPATH", "")])
    path = os.pathsep.join([str(tools(folder / "bin")), os.environ["PATH"]])
    # Megatron's bytecode is kept, but not in the user's checkout.
    bytecode = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    return environment(PYTHONPATH=python_path, PATH=path, **bytecode)

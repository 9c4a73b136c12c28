"""Make these fixtures with version 0.1: ``PYTHONPATH=OLD/src python make.py OLD/tests/e2e``.

OLD is a checkout of commit c9ebc6f, the last one before 0.1's rooms were rearranged.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).parent
DOMAINS = ("finance", "general")
METRICS = "domain_metrics.jsonl"
# One tiny layer. Eight microbatches, as poisoned_gpt.py counts; TensorBoard's window is open where
# the checkpoint is saved.
FLAGS = """
--num-layers 1 --hidden-size 8 --num-attention-heads 2 --ffn-hidden-size 16
--seq-length 16 --max-position-embeddings 16 --attention-dropout 0 --hidden-dropout 0
--tokenizer-type NullTokenizer --vocab-size 100 --make-vocab-size-divisible-by 104
--lr 1e-2 --min-lr 1e-3 --lr-decay-style cosine --lr-decay-iters 4 --train-iters 4
--micro-batch-size 1 --global-batch-size 8 --calculate-per-token-loss --split 80,10,10
--log-interval 1 --tensorboard-log-interval 3 --eval-iters 1
"""
EVALUATE_AT_THE_END, EVALUATE = "--eval-interval 1000", "--eval-interval 2"
CONFIG = """\
domains:
  finance: {data: [corpora/finance], weight: 1}
  general: {data: [corpora/general], weight: 3}
"""
REWEIGHT = """\
reweight:
  strategy: group_dro
  scope: global_batch
  warmup_steps: 0
  blend: 0.1
  step_size: 0.5
"""


def corpora(folder: Path) -> None:
    """Token // 50 is the domain; 100 ends a document."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate(DOMAINS):
        probabilities = rng.dirichlet(np.full(50, 0.2 + number))
        builder = IndexedDatasetBuilder(str(folder / f"{name}.bin"), dtype=np.uint16)
        for _ in range(30):
            tokens = 50 * number + rng.choice(50, size=rng.integers(8, 40), p=probabilities)
            document = torch.from_numpy(np.append(tokens, 100).astype(np.int64))
            builder.add_document(document, [len(document)])
        builder.finalize(str(folder / f"{name}.idx"))


def train(folder: Path, *words: str, env: dict[str, str] | None = None) -> None:
    """Train in ``folder``, where all paths begin."""
    subprocess.run(
        [sys.executable, "-m", "domain_pretrain", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        check=True,
    )


def main(entries: Path) -> None:
    for old in HERE.iterdir():
        if old.name not in ("make.py", "README.md"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    folder = Path(tempfile.mkdtemp())
    corpora(folder / "corpora")
    (folder / "config.yaml").write_text(CONFIG + REWEIGHT)
    (folder / "flags.txt").write_text(f"{FLAGS.strip()}\n{EVALUATE_AT_THE_END}\n")
    for name in ("corpora", "config.yaml", "flags.txt"):
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
        copy(folder / name, HERE / name)
    flags = [*FLAGS.split(), "--domain-config", "config.yaml", "--domain-log-dir"]

    for form in ("torch_dist", "torch"):
        save = f"--save {form} --save-interval 2 --ckpt-format {form}"
        train(folder, *flags, f"log-{form}", *EVALUATE_AT_THE_END.split(), *save.split())
        shutil.rmtree(folder / form / "iter_0000004")
        (folder / form / "latest_checkpointed_iteration.txt").write_text("2")
        shutil.copytree(folder / form, HERE / form)
    lines = (folder / "log-torch" / METRICS).read_text()
    assert lines == (folder / "log-torch_dist" / METRICS).read_text()
    (HERE / "unbroken.jsonl").write_text(lines)

    saved = HERE / "torch" / "iter_0000002" / "mp_rank_00" / "model_optim_rng.pt"
    scheduler = torch.load(saved, weights_only=False)["opt_param_scheduler"]
    (state,) = [value for value in scheduler.values() if isinstance(value, dict)]
    (HERE / "state.json").write_text(json.dumps(state, indent=1) + "\n")

    sample = CONFIG + REWEIGHT + "channel_loss: {average: sample}\n"
    (folder / "config.yaml").write_text(sample)
    poison = ["--no-check-for-nan-in-loss-and-grad", "--tensorboard-dir", "tensorboard"]
    script = str(entries / "poisoned_gpt.py")
    train(folder, script, *flags, "log", *EVALUATE.split(), *poison, env={"POISON": "training"})
    shutil.copy(folder / "log" / METRICS, HERE)
    (HERE / "sample_config.yaml").write_text(sample)
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    ours = [tag for tag in events.Tags()["scalars"] if re.match("channel-|reweighting/", tag)]
    (HERE / "tags.json").write_text(json.dumps(sorted(ours), indent=1) + "\n")
    made = {name: version(name) for name in ("megatron-core", "torch")}
    (HERE / "made_with.json").write_text(json.dumps(made) + "\n")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

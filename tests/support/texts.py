"""Two hundred held-out texts, in files, and what any model's log-probabilities of them are."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import torch

END = 256  # of a document; the other tokens are bytes
PIECES = {
    "english": ["The bond market", " fell on Monday", "; rain in the north", ", “sun” later", "."],
    "chinese": ["中国的首都", "是北京", "，今天天气很好", "。债券收益率上升", "，价格就会下降！"],
    "code": ["for i in range(10):", "\n    print(i)", "  # 循环\n", "return a + b\n", "{'x': [1]}"],
}
COUNTS = {"english": 67, "chinese": 67, "code": 66}


def write_texts(folder: Path) -> dict[str, str]:
    """A file of each domain, by its name, as ``texts`` of the probe ``perplexity``.

    No two of a file are the same; they have 1 to some 70 bytes.
    """
    draw = random.Random(0)
    files = {}
    for name, count in COUNTS.items():
        texts = dict.fromkeys([name[0]])  # of one token
        while len(texts) < count:
            text = "".join(draw.choices(PIECES[name], k=6))[draw.randint(0, 3) :]
            texts[text[: draw.randint(1, 25 if name == "chinese" else 70)]] = None
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
        files[name] = str(path)
    return files


def losses(
    files: dict[str, str], model: Callable[[torch.Tensor], torch.Tensor], context: int
) -> dict[str, float]:
    """``−log p`` of every text, nats, as the probe names them.

    Args:
        files: what :func:`write_texts` has written.
        model: tokens ``[b, context]`` → logits ``[b, context, V]``.
        context: tokens that a prediction looks back on at most. A longer text goes on by half of
            that, and each of its further tokens is predicted from those that begin ``context``
            before the end of its half.
    """
    names, rows, starts = [], [], []
    for path in files.values():
        for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), start=1):
            tokens = [END, *json.loads(line)["text"].encode()]
            done = 1
            for end in [*range(context + 1, len(tokens), context // 2), len(tokens)]:
                begin = max(0, end - context - 1)
                names.append(f"{path}:{number}")
                rows.append(torch.tensor(tokens[begin:end]))
                starts.append(done - begin - 1)
                done = end
    found = dict.fromkeys(names, 0.0)
    # What stands behind a row does not count: the model looks back only.
    padded = torch.full((len(rows), context + 1), END)
    for row, own in zip(padded, rows, strict=True):
        row[: len(own)] = own
    for first in range(0, len(rows), 64):
        some = padded[first : first + 64]
        of_all = model(some[:, :-1]).double().log_softmax(-1)
        of_next = of_all.gather(2, some[:, 1:, None])[..., 0]
        for at, values in enumerate(of_next, start=first):
            found[names[at]] -= float(values[starts[at] : len(rows[at]) - 1].sum())
    return found

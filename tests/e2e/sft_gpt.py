"""A user's script for ``--sft`` with a tokenizer of its own: a word is the number of its token.

It needs neither of the libraries that Megatron's own chat tokenizer and reader are made of.
"""

import json
from pathlib import Path

import numpy as np
import recording_gpt
from megatron.training.datasets import sft_dataset

from domain_pretrain.hosts.gpt import data as gpt_data


class Tokenizer:
    eod, pad, vocab_size, unique_identifiers = 256, 257, 300, {"class": "numbers"}

    def tokenize_conversation(self, conversation, return_target, add_generation_prompt):
        tokens, targets = [], []
        for message in conversation:
            words = [int(word) for word in message["content"].split()]
            tokens += words
            answered = message["role"] == "assistant"
            targets += words if answered else [sft_dataset.IGNORE_INDEX] * len(words)
        return np.array(tokens), np.array(targets)


def read(path, config):
    return [
        json.loads(line)["messages"] for line in Path(path).read_text(encoding="utf-8").splitlines()
    ]


gpt_data.build_tokenizer = lambda args: Tokenizer()
sft_dataset.SFTDataset.build_low_level_dataset = staticmethod(read)

if __name__ == "__main__":
    recording_gpt.main()

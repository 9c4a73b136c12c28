"""What a preflight has to know about a training command's flags."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from domain_pretrain.errors import ConfigError

Words = tuple[str, ...]


class Flags(BaseModel):
    """Megatron's flags and ours, by the names that argparse gives them; others are ignored.

    A default is Megatron's; None stands for "not given".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    # The run
    channel_loss: bool = False
    domain_config: Path | None = None
    domain_reweight: str | None = None
    domain_log_dir: Path | None = None
    # Layout
    tensor_model_parallel_size: PositiveInt = 1
    pipeline_model_parallel_size: PositiveInt = 1
    context_parallel_size: PositiveInt = 1
    expert_model_parallel_size: PositiveInt = 1
    # Model
    num_layers: PositiveInt | None = None
    hidden_size: PositiveInt | None = None
    ffn_hidden_size: NonNegativeInt | None = None
    num_attention_heads: PositiveInt | None = None
    kv_channels: PositiveInt | None = None
    group_query_attention: bool = False
    num_query_groups: PositiveInt = 1
    swiglu: bool = False
    untie_embeddings_and_output_weights: bool = False
    num_experts: NonNegativeInt | None = None
    moe_ffn_hidden_size: NonNegativeInt | None = None
    moe_shared_expert_intermediate_size: NonNegativeInt = 0
    # Training
    seq_length: PositiveInt | None = None
    micro_batch_size: PositiveInt | None = None
    global_batch_size: PositiveInt | None = None
    rampup_batch_size: Words | None = None
    step_batch_size_schedule: str | None = None
    decrease_batch_size_if_needed: bool = False
    train_iters: NonNegativeInt | None = None
    train_samples: NonNegativeInt | None = None
    bf16: bool = False
    fp16: bool = False
    # Checkpoints
    save: Path | None = None
    load: Path | None = None
    pretrained_checkpoint: Path | None = None
    finetune: bool = False
    enable_hf2mg_convert: bool = False  # MindSpeed-LLM's: it converts --load itself
    ckpt_step: NonNegativeInt | None = None
    save_interval: NonNegativeInt | None = None
    save_retain_interval: NonNegativeInt | None = None
    no_save_optim: bool = False
    # Data
    data_path: Words | None = None
    data_args_path: str | None = None
    train_data_path: Words | None = None
    valid_data_path: Words | None = None
    test_data_path: Words | None = None
    per_split_data_args_path: str | None = None
    split: str | None = None
    mock_data: bool = False
    sft: bool = False
    multiple_validation_sets: bool = False
    validation_set_names: Words | None = None
    # Evaluations
    eval_iters: NonNegativeInt = 100
    full_validation: bool | None = None  # not every host has it
    skip_train: bool = False
    is_instruction_dataset: bool = False  # MindSpeed-LLM's, and the next
    is_pairwise_dataset: bool = False
    tokenizer_type: str | None = None
    tokenizer_model: str | None = None
    tokenizer_name_or_path: str | None = None  # MindSpeed-LLM's
    tokenizer_special_tokens: Words | None = None
    vocab_file: str | None = None
    vocab_size: NonNegativeInt | None = None
    padded_vocab_size: NonNegativeInt | None = None
    make_vocab_size_divisible_by: PositiveInt = 128

    @classmethod
    def parse(cls, words: Sequence[str]) -> Flags:
        """Read them from a command line.

        Args:
            words: flags and their values; of a flag given twice the last counts, as in Megatron.

        Raises:
            ConfigError: a value is missing or of the wrong kind; names every such flag.
        """
        flags, problems = cls.read(words)
        if problems:
            raise ConfigError("\n  ".join(["flags are wrong:", *problems]))
        return flags

    @classmethod
    def read(cls, words: Sequence[str]) -> tuple[Flags, list[str]]:
        """Like :meth:`parse`, but a flag of the wrong kind counts as not given.

        Returns:
            The others, and a sentence about each wrong one.

        Raises:
            ConfigError: a value is missing, so that the words cannot be told apart.
        """
        parser = _Parser(prog="preflight", allow_abbrev=False, add_help=False)
        for name, field in cls.model_fields.items():
            option = f"--{name.replace('_', '-')}"
            if field.annotation in (bool, bool | None):
                parser.add_argument(option, action="store_const", const=True)
            else:
                many = "tuple" in str(field.annotation)
                parser.add_argument(option, nargs="+" if many else None)
        given = {k: v for k, v in vars(parser.parse_known_args(list(words))[0]).items() if v}
        problems: list[str] = []
        try:
            return cls.model_validate(given), problems
        except ValidationError as error:
            for problem in error.errors():
                name = str(problem["loc"][0])
                given.pop(name, None)
                option = f"--{name.replace('_', '-')}"
                problems.append(f"{option}: {problem['msg']} (given: {problem['input']!r})")
            return cls.model_validate(given), problems

    @property
    def special_tokens(self) -> Words | None:
        """Of ``--tokenizer-special-tokens``, by the name that Megatron's args give them."""
        return self.tokenizer_special_tokens

    @property
    def reads_prefixes(self) -> bool:
        """Whether the data flags name prefixes of tokens on a disk, as for pretraining."""
        others = self.mock_data or self.sft or self.is_instruction_dataset
        return not (others or self.is_pairwise_dataset)

    @property
    def changes_its_batch(self) -> bool:
        """Whether steps may have other batches than ``--global-batch-size``."""
        schedule = self.rampup_batch_size or self.step_batch_size_schedule
        return bool(schedule or self.decrease_batch_size_if_needed)

    @property
    def tokenizer(self) -> str | None:
        """File, folder or name of the tokenizer."""
        return self.tokenizer_name_or_path or self.tokenizer_model

    def iterations(self, batch: int) -> int | None:
        """Optimizer steps of ``batch`` samples in the whole run; None where no flag says."""
        if self.train_iters is None and self.train_samples and batch:
            return self.train_samples // batch
        return self.train_iters


class _Parser(argparse.ArgumentParser):
    """Raises instead of leaving the program."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise ConfigError(message)

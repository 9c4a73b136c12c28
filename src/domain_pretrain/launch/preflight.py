"""What can be said about a run before it takes a device."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from domain_pretrain.data.plan import TokenPlan, plan_tokens, read_too_often
from domain_pretrain.data.vocabulary import vocabulary
from domain_pretrain.errors import ConfigError
from domain_pretrain.launch.base_model import Import, find_import
from domain_pretrain.launch.data import data_of_flags, mix_of_flags, prefixes_of_flags
from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.host import Answer, without_plugin
from domain_pretrain.launch.layout import data_parallel_size, layout_problems
from domain_pretrain.launch.size import checkpoint_bytes, human, parameters
from domain_pretrain.launch.start import find_start
from domain_pretrain.paths import free_bytes, is_remote
from domain_pretrain.records.writer import check_log_dir

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # "gpt2", "Qwen/Qwen3-8B"
# Of tokenizers that are a file, in every version.
_OF_FILES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")


class Report:
    """What was found: rows to print, warnings, and problems that forbid a start.

    And the plan of tokens, if there is one, and whether the host accepts the flags.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.problems: list[str] = []
        self.plan: TokenPlan | None = None
        self.accepted = False

    def attempt(self, what: str, check: Callable[[], None]) -> None:
        """Run one check of ``what``; its error is a problem, and the next one still runs."""
        try:
            check()
        except (ConfigError, OSError) as error:
            self.add_problem(str(error))
        except Exception as error:  # of a fault in one check, the others must not fall silent
            self.add_problem(
                f"{what} could not be checked: {type(error).__name__}: {error} (if they are right, "
                "this is a fault of the preflight: report it)"
            )

    def add_problem(self, text: str) -> None:
        """Two checks may find the same mistake."""
        if text not in self.problems:
            self.problems.append(text)

    def rename(self, stand_in: str, path: str) -> None:
        """Say ``path`` wherever its stand-in was looked at."""
        self.rows = [(name, text.replace(stand_in, path)) for name, text in self.rows]
        self.warnings = [text.replace(stand_in, path) for text in self.warnings]
        self.problems = [text.replace(stand_in, path) for text in self.problems]

    def print(self, console: Console) -> None:
        """The tables, and the warnings."""
        table = Table("", "", show_header=False, title="Preflight", title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        if self.plan is not None and self.plan.domains:
            console.print(_domain_table(self.plan))
        if self.plan is not None and self.plan.prefixes:
            console.print(_prefix_table(self.plan))
        for warning in self.warnings:
            console.print(f"preflight: {warning}", style="yellow")


Ask = Callable[[Sequence[str], int, int], Answer]


def inspect(words: list[str], nodes: int, devices_per_node: int, ask: Ask | None = None) -> Report:
    """Check the command ``-m domain_pretrain WORDS`` on this many processes.

    Args:
        words: a script perhaps, and the flags.
        nodes, devices_per_node: of the run.
        ask: the host whether it accepts the flags, :func:`~domain_pretrain.launch.host.ask`; None:
            do not.
    """
    try:
        flags, wrong = Flags.read(words)
        base = find_import(words, flags)
    except ConfigError as error:
        report = Report()
        report.add_problem(str(error))
        return report
    if base is None:
        return _inspect(words, flags, wrong, nodes, devices_per_node, ask)
    return _inspect_with_import(base, words, wrong, nodes, devices_per_node, ask)


def _inspect_with_import(
    base: Import, words: list[str], wrong: list[str], nodes: int, devices: int, ask: Ask | None
) -> Report:
    """As if the model had been imported; so the run's flags are held against it, too."""
    try:
        with base.outline() as folder:
            words = base.in_place(words, folder)
            report = _inspect(words, Flags.read(words)[0], wrong, nodes, devices, ask)
        report.rename(str(folder), str(base.out))
    except ConfigError as error:
        report = Report()
        report.add_problem(str(error))
        return report
    report.attempt("the import", lambda: _look_at_import(report, base))
    return report


def _look_at_import(report: Report, base: Import) -> None:
    if not base.needed:
        return
    if base.done():
        report.rows.append(("base model", f"{base.source}, imported into {base.out}"))
        return
    size, free = base.bytes(), free_bytes(base.out)
    if size > free:
        raise ConfigError(
            f"{base.source} is to be imported into {base.out}, which takes {human(size)}, and "
            f"{human(free)} are free"
        )
    report.rows.append(
        ("base model", f"{base.source}, to be imported into {base.out} first: {human(size)}")
    )


def _inspect(
    words: list[str],
    flags: Flags,
    wrong: list[str],
    nodes: int,
    devices: int,
    ask: Ask | None,
) -> Report:
    report = Report()
    report.problems += wrong
    script = words[0] if words and not words[0].startswith("-") else None
    report.rows.append(("script", script or "the built-in one"))
    dp = data_parallel_size(flags, nodes * devices)
    report.attempt("paths", lambda: _look_at_paths(report, script, flags))
    report.attempt("the layout", lambda: _look_at_layout(report, flags, nodes, devices, dp))
    if ask is not None and (script is None or Path(script).is_file()):
        report.attempt("flags", lambda: _ask_host(report, words, nodes, devices, ask))
    if not report.accepted:
        report.problems += layout_problems(flags, nodes * devices)
    report.attempt("data", lambda: _look_at_tokens(report, flags, dp))
    report.attempt("checkpoints", lambda: _look_at_start(report, flags))
    report.attempt("disk space", lambda: _look_at_disk(report, flags))
    if flags.domain_log_dir is not None:
        log_dir = flags.domain_log_dir
        report.attempt("the log folder", lambda: check_log_dir(log_dir))
    return report


def _look_at_paths(report: Report, script: str | None, flags: Flags) -> None:
    paths: list[tuple[str, str | Path | None]] = [
        ("the script", script),
        ("--domain-config", flags.domain_config),
    ]
    tokenizer = flags.tokenizer
    if tokenizer and (flags.tokenizer_type in _OF_FILES or not _HUB_NAME.fullmatch(tokenizer)):
        paths.append(("the tokenizer", tokenizer))
    elif tokenizer and not Path(tokenizer).exists():
        report.warnings.append(
            f"there is no folder {tokenizer!r} here: it is taken for a name on the Hugging Face "
            "hub, which every process has to reach or have in its cache"
        )
    for what, path in paths:
        if path is not None and not is_remote(path) and not Path(path).exists():
            report.add_problem(f"{what} {str(path)!r} does not exist")


def _look_at_layout(report: Report, flags: Flags, nodes: int, devices: int, dp: int) -> None:
    world, tp = nodes * devices, flags.tensor_model_parallel_size
    layout = (
        f"TP {tp} x PP {flags.pipeline_model_parallel_size} x CP {flags.context_parallel_size} x "
        f"DP {dp}"
    )
    if flags.num_experts:
        layout += f" (EP {flags.expert_model_parallel_size})"
    report.rows.append(("processes", f"{nodes} x {devices} = {world} = {layout}"))
    if tp > devices:
        report.warnings.append(
            f"TP = {tp} spans nodes of {devices} devices: tensor parallelism communicates most; "
            "keep it within a node"
        )


def _ask_host(report: Report, words: list[str], nodes: int, devices: int, ask: Ask) -> None:
    answer = ask(words, nodes, devices)
    report.warnings += [one for one in answer.warnings if one not in report.warnings]
    if answer.outcome == "refused by the plugin":
        report.add_problem(answer.text)
        answer = ask(without_plugin(words), nodes, devices)  # it may have more to say
    if answer.outcome == "accepted":
        report.accepted = True
        report.rows.append(("flags", f"{answer.host} accepts them"))
    elif answer.outcome == "refused" and not answer.of_this_machine:
        report.add_problem(f"{answer.host} refuses: {answer.text}")
    elif answer.outcome == "refused":
        report.rows.append(("flags", f"{answer.host} refuses them on this machine"))
        report.warnings.append(
            f"{answer.host} refuses on this machine: {answer.text} (no problem if the machines "
            "that train have what it asks for)"
        )
    else:
        report.rows.append(("flags", "the host could not be asked whether it accepts them"))
        report.warnings.append(f"the host could not be asked on this machine: {answer.text}")


def plan_of_flags(flags: Flags, dp: int = 1) -> TokenPlan | None:
    """The plan of tokens of a command; None where its flags do not say how much is read.

    Then, too, the data are checked.

    Args:
        flags: of the command.
        dp: data-parallel size: without ``--global-batch-size``, every replica takes one microbatch.

    Raises:
        ConfigError: see :func:`data_of_flags`.
    """
    batch = flags.global_batch_size or (flags.micro_batch_size or 0) * dp
    length = flags.seq_length or 0
    iterations = flags.iterations(batch)
    data = data_of_flags(flags)
    if not (batch and length and iterations):
        return None
    if data is None:
        return TokenPlan(batch * length, iterations, ())
    mix = mix_of_flags(flags, *data, flags.train_samples or iterations * batch)
    return plan_tokens(batch, length, iterations, *data, mix)


def _look_at_tokens(report: Report, flags: Flags, dp: int) -> None:
    plan = plan_of_flags(flags, dp)
    if plan is None:
        report.rows.append(("tokens", "not planned: the flags do not give a batch and a length"))
        return
    report.plan = plan
    report.rows.append(
        (
            "tokens",
            f"{plan.tokens_per_step:,} per step x {plan.iterations:,} steps = {plan.tokens:,}",
        )
    )
    report.rows += plan.stages
    report.warnings += plan.warnings
    for domain in plan.domains:
        if warning := read_too_often(f"domain {domain.name!r}", domain.epochs):
            report.warnings.append(warning)


def _look_at_start(report: Report, flags: Flags) -> None:
    start, warnings = find_start(flags)
    report.warnings += warnings
    report.rows.append(("starts from", start))


def _look_at_disk(report: Report, flags: Flags) -> None:
    try:
        prefixes = prefixes_of_flags(flags)
    except (ConfigError, OSError):
        prefixes = []  # another check says what is wrong with the data
    ids = vocabulary(flags, prefixes)
    count, size = parameters(flags, ids), checkpoint_bytes(flags, ids)
    if flags.save is None or not (count and size) or is_remote(flags.save):
        return
    free = free_bytes(flags.save)
    row = f"{_count(count)} parameters, about {human(size)} each"
    if ids is None and flags.padded_vocab_size is None:
        row += " without embeddings (nothing here tells the vocabulary's size)"
    report.rows.append(("checkpoints", f"{row}; {human(free)} free"))
    if size > free:
        text = f"a checkpoint takes about {human(size)}, and {flags.save} has {human(free)} free"
        if not flags.num_experts:
            raise ConfigError(text)
        report.warnings.append(f"{text} (less where some layers have no experts)")
    elif flags.save_interval and flags.train_iters and not flags.save_retain_interval:
        planned = flags.train_iters // flags.save_interval
        if planned * size > free:
            report.warnings.append(
                f"{planned} checkpoints are planned, {free // size} fit: delete old ones in time, "
                "save less often, or use --save-retain-interval (Megatron >= 0.14)"
            )


def _count(parameters: int) -> str:
    """As models are named: ``8.03B``, ``0.11M``."""
    unit, power = ("B", 9) if parameters >= 10**8 else ("M", 6)
    return f"{parameters / 10**power:.2f}{unit}"


def _domain_table(plan: TokenPlan) -> Table:
    table = Table("domain", title="Plan of tokens", title_justify="left")
    for column in ("share", "tokens", "samples", "corpus", "epochs"):
        table.add_column(column, justify="right")
    for domain in plan.domains:
        table.add_row(
            domain.name,
            f"{domain.share:.2%}",
            f"{domain.tokens:,.0f}",
            f"{domain.samples:,.0f}",
            f"{domain.corpus.tokens:,}",
            f"{domain.epochs:.2f}",
        )
    return table


def _prefix_table(plan: TokenPlan) -> Table:
    table = Table("prefix", title="Plan of samples", title_justify="left")
    for column in ("samples", "epochs"):
        table.add_column(column, justify="right")
    for one in plan.prefixes:
        table.add_row(one.prefix, f"{one.samples:,}", f"{one.epochs:.2f}")
    return table

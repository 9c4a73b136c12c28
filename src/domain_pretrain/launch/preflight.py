"""What can be said about a run before it takes a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from domain_pretrain.config import DomainConfig
from domain_pretrain.data.blend import blend_of_words, data_path_arguments
from domain_pretrain.data.catalog import Catalog
from domain_pretrain.data.plan import TokenPlan, plan_tokens
from domain_pretrain.data.reading import Reading
from domain_pretrain.data.splits import DEFAULT
from domain_pretrain.errors import ConfigError
from domain_pretrain.hosts.command_line import read_data_flags
from domain_pretrain.hosts.evaluations import check_evaluations
from domain_pretrain.launch.checkpoints import Resume, find_resume
from domain_pretrain.launch.flags import Flags
from domain_pretrain.launch.layout import data_parallel_size, layout_problems
from domain_pretrain.launch.size import checkpoint_bytes, free_bytes, human, parameters
from domain_pretrain.paths import is_remote
from domain_pretrain.records.writer import check_log_dir

MANY_EPOCHS = 4  # beyond it, repeated tokens teach ever less (arXiv:2305.16264)


class Report:
    """What was found: rows to print, warnings, and problems that forbid a start."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self.warnings: list[str] = []
        self.problems: list[str] = []
        self.plan: TokenPlan | None = None

    def attempt(self, check: Callable[[], None]) -> None:
        """Run one check; its error is a problem, and the next one still runs."""
        try:
            check()
        except (ConfigError, OSError) as error:
            self.problems.append(str(error))

    def print(self, console: Console) -> None:
        """Two tables, and the warnings."""
        table = Table("", "", show_header=False, title="Preflight", title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table)
        if self.plan is not None and self.plan.domains:
            console.print(_domain_table(self.plan))
        for warning in self.warnings:
            console.print(f"preflight: {warning}", style="yellow", markup=False, highlight=False)


def inspect(words: list[str], nodes: int, devices_per_node: int) -> Report:
    """Check the command ``-m domain_pretrain WORDS`` on this many processes; starts nothing."""
    report = Report()
    try:
        flags = Flags.parse(words)
    except ConfigError as error:
        report.problems.append(str(error))
        return report
    script = words[0] if words and not words[0].startswith("-") else None
    report.rows.append(("script", script or "the built-in one"))
    report.problems += _missing_paths(script, flags)
    _look_at_layout(report, flags, nodes, devices_per_node)
    report.attempt(lambda: _look_at_tokens(report, flags))
    report.attempt(lambda: _look_at_checkpoints(report, flags))
    report.attempt(lambda: _look_at_disk(report, flags))
    if flags.domain_log_dir is not None:
        check = flags.domain_log_dir
        report.attempt(lambda: check_log_dir(check))
    return report


def _missing_paths(script: str | None, flags: Flags) -> Iterator[str]:
    paths: list[tuple[str, str | Path | None]] = [
        ("the script", script),
        ("--domain-config", flags.domain_config),
        ("--pretrained-checkpoint", flags.pretrained_checkpoint),
    ]
    # A name without a folder may stand for one that the tokenizer library knows.
    if flags.tokenizer and "/" in flags.tokenizer:
        paths.append(("the tokenizer", flags.tokenizer))
    for what, path in paths:
        if path is not None and not is_remote(path) and not Path(path).exists():
            yield f"{what} {str(path)!r} does not exist"


def _look_at_layout(report: Report, flags: Flags, nodes: int, devices: int) -> None:
    world = nodes * devices
    sizes = {
        "TP": flags.tensor_model_parallel_size,
        "PP": flags.pipeline_model_parallel_size,
        "CP": flags.context_parallel_size,
        "DP": data_parallel_size(flags, world),
    }
    layout = " x ".join(f"{name} {size}" for name, size in sizes.items())
    if flags.num_experts:
        layout += f" (EP {flags.expert_model_parallel_size})"
    report.rows.append(("processes", f"{nodes} x {devices} = {world} = {layout}"))
    report.problems += layout_problems(flags, world)
    if sizes["TP"] > devices:
        report.warnings.append(
            f"TP = {sizes['TP']} spans nodes of {devices} devices: tensor parallelism communicates "
            "most; keep it within a node"
        )


def data_of_flags(flags: Flags) -> tuple[Reading, Catalog] | None:
    """What the command is going to read, and whose it is; None where nothing names data.

    Raises:
        ConfigError: something is missing, wrong, or cannot be read as it is asked for.
    """
    domains = DomainConfig.load(flags.domain_config).domains if flags.domain_config else {}
    blend, per_split = read_data_flags(flags)
    split = flags.split
    if blend is None and per_split is None and domains and not flags.mock_data:
        blend = blend_of_words(data_path_arguments(domains)[1:])
    if blend is None and per_split is None and not flags.mock_data:
        return None
    if blend is not None and flags.data_args_path is None:
        split = split or DEFAULT
    catalog = Catalog.build(
        blend,
        per_split,
        domains,
        mock_data=flags.mock_data,
        multiple_validation_sets=flags.multiple_validation_sets,
        validation_set_names=flags.validation_set_names,
    )
    reading = Reading.check(
        blend,
        per_split,
        split,
        flags.seq_length or 1,
        catalog.prefixes,
        files=not flags.sft and not flags.mock_data,
    )
    reading.check_lengths()
    check_evaluations(flags, reading)
    return reading, catalog


def plan_of_flags(flags: Flags) -> TokenPlan:
    """The plan of tokens of a command.

    Raises:
        ConfigError: a flag that it takes is missing; or see :func:`data_of_flags`.
    """
    data = data_of_flags(flags)
    batch, length, iterations = flags.global_batch_size, flags.seq_length, flags.iterations
    needed = {"--global-batch-size": batch, "--seq-length": length, "--train-iters": iterations}
    if not (batch and length and iterations):
        missing = [flag for flag, value in needed.items() if not value]
        raise ConfigError(f"no plan of tokens without {', '.join(missing)}")
    if data is None:
        return TokenPlan(batch * length, iterations, ())
    return plan_tokens(batch * length, iterations, *data)


def _look_at_tokens(report: Report, flags: Flags) -> None:
    plan = plan_of_flags(flags)
    report.plan = plan
    report.rows.append(
        (
            "tokens",
            f"{plan.tokens_per_step:,} per step x {plan.iterations:,} steps = {plan.tokens:,}",
        )
    )
    for domain in plan.domains:
        if domain.epochs > MANY_EPOCHS:
            report.warnings.append(
                f"domain {domain.name!r} is read {domain.epochs:.1f} times: beyond {MANY_EPOCHS} "
                "epochs repeated tokens teach little; lower its weight, or find more data"
            )


def _look_at_checkpoints(report: Report, flags: Flags) -> None:
    if flags.load is None or flags.ckpt_step is not None or is_remote(flags.load):
        return
    resume = find_resume(flags.load)
    report.warnings += resume.broken
    report.rows.append(("starts from", _start(resume, flags)))
    base = flags.pretrained_checkpoint
    if resume.iteration is None and base is not None and base.exists():
        found = find_resume(base)
        if found.iteration is None and found.tracker is None and not _is_release(base):
            raise ConfigError(f"--pretrained-checkpoint {base} holds no Megatron checkpoint")


def _is_release(folder: Path) -> bool:
    return (folder / "release").is_dir()


def _start(resume: Resume, flags: Flags) -> str:
    if resume.iteration is not None:
        return f"iteration {resume.iteration} of {flags.load}"
    if flags.pretrained_checkpoint is not None:
        return f"the weights of {flags.pretrained_checkpoint}"
    return "random weights" if not _is_release(Path(flags.load or "")) else str(flags.load)


def _look_at_disk(report: Report, flags: Flags) -> None:
    size = checkpoint_bytes(flags)
    if flags.save is None or size is None or is_remote(flags.save):
        return
    free = free_bytes(flags.save)
    row = f"{(parameters(flags) or 0) / 1e9:.2f}B parameters, about {human(size)} each"
    report.rows.append(("checkpoints", f"{row}; {human(free)} free"))
    if size > free:
        raise ConfigError(
            f"a checkpoint takes about {human(size)}, and {flags.save} has {human(free)} free"
        )
    if flags.save_interval and flags.iterations and not flags.save_retain_interval:
        count = flags.iterations // flags.save_interval
        if count * size > free:
            report.warnings.append(
                f"{count} checkpoints are planned, {free // size} fit: delete old ones in time, "
                "save less often, or use --save-retain-interval (Megatron >= 0.14)"
            )


def _domain_table(plan: TokenPlan) -> Table:
    table = Table("domain", title="Plan of tokens", title_justify="left")
    for column in ("share", "tokens", "corpus", "epochs"):
        table.add_column(column, justify="right")
    for domain in plan.domains:
        table.add_row(
            domain.name,
            f"{domain.share:.2%}",
            f"{domain.tokens:,.0f}",
            f"{domain.corpus:,.0f}",
            f"{domain.epochs:.2f}",
        )
    return table

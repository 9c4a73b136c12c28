"""Every command on a page is run, or is listed here with the reason why not.

What trains is run by tests/e2e/test_page_runs.py, from the same pages.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import shlex
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.checkpoints import write_checkpoint
from support.clone import make_clone, shell, write_command
from support.flags import FLAG
from support.pages import PAGES, ROOT, blocks, commands, text
from support.prefixes import write_prefix
from support.traces import note, write_documents, write_metrics

from domain_pretrain.commands.main import COMMANDS
from domain_pretrain.records.events_file import finding_entry
from domain_pretrain.records.reader import EVENTS_FILE
from domain_pretrain.records.record import Finding

SHOWN = sorted({command for page in PAGES for command in commands(page)})

# Run here, in a clone with what they read.
RUN = (
    r"domain-pretrain prepare .*",
    r"domain-pretrain plan .*",
    r"domain-pretrain (trace|watch) .*",
    r"domain-pretrain (eval|replay) .*",  # as --dry-run
    r"domain-pretrain doctor( --host /path/to/Megatron-LM)?",
    r"(sbatch|kubectl) .*",  # stand-ins, which look at what they are given
    r"([A-Z_]+=\S+ )*scripts/pretrain_[gn]pu\.sh .*",  # as --dry-run
)
# Run elsewhere, taken from the page: by this test.
TESTED = {
    r"torchrun .*": "test_page_runs.py::test_a_shown_run_trains",
    r".* (configs/)?journey/.*": "test_journey.py::test_the_journey",
    r".*(configs/recipes/long-context/|\blong/).*": "test_long_context.py::test_the_pages_commands",
    r"domain-pretrain (demo|report) .*|tensorboard .*": "test_page_runs.py::test_the_demos_page",
    r"domain-pretrain (import|export) .*": "test_huggingface.py::test_the_pages_commands",
    r"python3 -m domain_pretrain .* configs/recipes/lora.yaml .*": (
        "test_lora.py::test_the_pages_run"
    ),
    r"TP=1 && source models/base/model.env": "test_lora.py::test_the_pages_run",
    r"(mkdir|cat|domain-pretrain prepare|NODE_RANK=.) .*loopback.*|wait \$!": (
        "test_launch.py::test_two_nodes_word_for_word"
    ),
}
TESTS = "it runs the tests"
NETWORK = "it needs the network"
HOURS = "it takes hours"
SOAK = "python tests/e2e/soak.py --kills 60 --iterations 350 --seed 2026 --work soak"
# Not run: exactly these, with the reason. Their words are checked against what there is.
LISTED = {
    "make test": TESTS,
    'make test ARGS="tests/unit -x"': TESTS,
    "make test ARGS=\"-m 'not megatron'\"": TESTS,
    "make check": TESTS,
    "make fuzz": "a share of it is a test",
    'make fuzz ARGS="blends --seed 7"': "a share of it is a test",
    'MEGATRON_LM_PATH=/path/to/Megatron-LM make test ARGS="-m checkout"': TESTS,
    "ATEN_CPU_CAPABILITY=default make test ARGS=tests/unit": TESTS,
    "python -m pytest tests/e2e/test_bridge.py": TESTS,
    "python -m pytest tests/e2e/test_mindspeed.py": TESTS,
    "PYTHONPATH=src python -m pytest tests/gpu": "it needs a GPU",
    "python benchmarks/domain_reduce/run.py": "it needs a GPU",
    "scripts/gpu_wheels.sh wheels": NETWORK,
    "make gpu WHEELS=wheels": "it needs a GPU",
    "COMMIT=abc1234 scripts/gpu_day.sh --wheels wheels --out results --piece 1": "it needs a GPU",
    "scripts/gpu_day.sh --piece demo --piece graph": "it needs a GPU",
    "scripts/gpu_day.sh --rehearse --out rehearsal": "it trains for minutes; test_gpu_day.py",
    "make hosts CHECKOUTS=../checkouts": HOURS,
    "domain-pretrain watch runs/finance": "it goes on until Ctrl-C; with --once it is run",
    "make journey": "it makes an environment first; the script is run",
    "make demo": "it makes an environment first; the demo is run",
    "domain-pretrain demo": "the same with a layout is run",
    "pip install /path/to/this/clone": NETWORK,
    "pip install '/path/to/this/clone[megatron]'": NETWORK,
    "pip install '/path/to/this/clone[hf]'": NETWORK,
    "pip install peft datasets accelerate einops wandb tqdm": NETWORK,
    "pip install --no-deps megatron-bridge==0.6.2 omegaconf hydra-core "
    "antlr4-python3-runtime==4.9.3 mistral-common": NETWORK,
    "pip install --no-deps megatron-bridge==0.6.2": NETWORK,
    "pip install 'transformers>=5.8,<=5.12.1'": NETWORK,
    "pip install peft datasets sentencepiece scipy pandas scikit-learn accelerate tiktoken einops "
    "pybind11 six regex psutil transformers==5.2.0 'numpy<2' 'torch<2.8' tensorboard pytest": (
        NETWORK
    ),
    "cd Megatron-LM": NETWORK,
    "for v in 0.12.3 0.13.1 0.14.0 0.15.3 0.16.1 0.17.1 0.18.2 0.19.0; do": NETWORK,
    "git worktree add ../checkouts/$v core_v$v": NETWORK,
    "done": NETWORK,
    "git worktree add --detach ../checkouts/main main": NETWORK,
    "export MEGATRON_LM_PATH=/path/to/Megatron-LM": "it sets a variable",
    "export MINDSPEED_LLM_PATH=/path/to/MindSpeed-LLM": "it sets a variable",
    "export MINDSPEED_LLM_PATH=/path/to/MindSpeed-LLM MINDSPEED_PATH=/path/to/MindSpeed": (
        "it sets variables"
    ),
    "export PYTHONPATH=$MEGATRON_LM_PATH": "it sets a variable",
    "domain-pretrain doctor --host /path/to/MindSpeed-LLM": "it needs a checkout of MindSpeed-LLM",
    SOAK: HOURS,
    f"{SOAK} --layout PP2 --async-save": HOURS,
    f"{SOAK} --layout TP2 --async-save": HOURS,
    "python benchmarks/scaling/run.py --out FILE.json --picture FILE.png [--latency-us 15] "
    "[--gigabytes-per-second 20]": HOURS,
}


def runs_elsewhere(command: str) -> str | None:
    return next((test for pattern, test in TESTED.items() if re.fullmatch(pattern, command)), None)


def is_run(command: str) -> bool:
    known = any(re.fullmatch(pattern, command) for pattern in RUN)
    return known and command not in LISTED and runs_elsewhere(command) is None


def test_every_command_is_run_or_listed() -> None:
    unknown = [
        command
        for command in SHOWN
        if not (is_run(command) or runs_elsewhere(command) or command in LISTED)
    ]
    assert not unknown, "run them, or list them with a reason"


def test_what_is_listed_is_shown() -> None:
    assert LISTED.keys() <= set(SHOWN)
    for pattern, test in TESTED.items():
        assert any(re.fullmatch(pattern, command) for command in SHOWN), pattern
        file, name = test.split("::")
        assert f"\ndef {name}(" in text(f"tests/e2e/{file}")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """With the files that the commands read, and stand-ins for a cluster's commands."""
    folder = make_clone(tmp_path / "clone")
    corpus = folder / "raw" / "finance" / "2024" / "a.jsonl.gz"
    corpus.parent.mkdir(parents=True)
    corpus.write_bytes(gzip.compress(json.dumps({"text": "prices rise"}).encode()))
    page = {"text": "prices rise", "meta": {"source": "finance/news"}}
    (folder / "raw" / "a.jsonl").write_text(json.dumps(page), "utf-8")
    asked = {"question": "prices", "answer": {"text": "rise"}}
    (folder / "qa.jsonl").write_text(json.dumps(asked), "utf-8")
    # Each looks for the files that it is told of, as the real one does before anything else.
    look = (
        "for word; do file=${word##*=}; "
        '[[ $file != */*.* || -e $file ]] || { echo "no $file"; exit 1; }; done'
    )
    write_command(folder / "bin" / "kubectl", look)
    job = "SLURM_JOB_ID=1 SLURM_SUBMIT_DIR=$PWD SLURM_JOB_NUM_NODES=8 SLURM_JOB_NODELIST=n1"
    write_command(folder / "bin" / "sbatch", f'{look}\nshift; {job} exec bash "$@"')
    write_command(folder / "bin" / "scontrol", "echo n1")
    write_command(folder / "bin" / "srun", '[[ $1 == -* ]] && shift\n"$1" --dry-run "${@:2}"')
    return folder


def write_plan(clone: Path, command: str) -> None:
    """The page's plan and its data; and for a script that is given it, what it comes to."""
    for name in ("finance", "maths", "code", "logic", "dialogue"):
        write_prefix(clone / "data" / name, [4000] * 2000)
    (plan,) = [body for body in blocks("docs/planning.md", "yaml") if "# finance.yaml" in body]
    (clone / "finance.yaml").write_text(plan, encoding="utf-8")
    if command.startswith("PLAN="):
        done = shell(clone, "domain-pretrain plan finance.yaml")
        assert done.returncode == 0, done.stdout


def write_tokenizer(folder: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {"prices": 0, "rise": 1, "<unk>": 2, "</s>": 3}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = json.dumps({"eos_token": "</s>"})
    (folder / "tokenizer_config.json").write_text(config, encoding="utf-8")


def write_models(clone: Path) -> None:
    """A base and a run's checkpoints, and the page's config."""
    for folder in ("models/base", "runs/finance/checkpoints"):
        write_checkpoint(clone / folder, "iter_0000100", seq_length=64, vocab_size=256)
    (config,) = [body for body in blocks("docs/compare.md", "yaml") if "# probes.yaml" in body]
    (clone / "probes.yaml").write_text(config, encoding="utf-8")


def write_run() -> None:
    """Of 1,500 iterations, in relative paths; to be written in the clone."""
    data, run = Path("data"), Path("runs") / "finance"
    run.mkdir(parents=True)
    for name in ("finance", "general"):
        write_documents(data / name, [[0, 1] * (5 + number) for number in range(40)])
    domains = {str(data / name): name for name in ("finance", "general")}
    note(run, domains, 1500, tokenizer="models/llama-3.1-8b", cache="cache")
    write_metrics(run, list(domains.values()), 1200)
    evidence = {"iterations": [1200, 1201], "onset": 1199}
    spike = Finding("spike", "finance", 1200, "warning", "loss jumps", evidence=evidence)
    (run / EVENTS_FILE).write_text(json.dumps(finding_entry(spike)) + "\n", encoding="utf-8")


@pytest.mark.parametrize("command", [command for command in SHOWN if is_run(command)])
def test_it_does_as_shown(command: str, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if command.startswith("domain-pretrain"):
        pytest.importorskip("megatron.core")
    if re.search(r" (trace|watch|replay) ", command):
        monkeypatch.chdir(clone)
        write_run()
    if " replay " in command:
        for at in (1150, 1300):
            write_checkpoint(Path("runs/finance/checkpoints"), f"iter_{at:07d}", seq_length=16)
    if "prepare" in command or "trace" in command:
        write_tokenizer(clone / "models" / "llama-3.1-8b")
    if "plan" in command:
        write_plan(clone, command)
    if "/path/to/Megatron-LM" in command:
        found = find_spec("megatron")
        assert found is not None and found.submodule_search_locations
        host = Path(next(iter(found.submodule_search_locations))).parent
        command = command.replace("/path/to/Megatron-LM", str(host))
    if " eval " in command:
        write_models(clone)
    words = re.sub(
        r"(scripts/pretrain_\w+\.sh|pretrain (?:eval|replay)) ", r"\1 --dry-run ", command
    )
    places = {"MINDSPEED_LLM_PATH": "/path/to/MindSpeed-LLM", "TMPDIR": str(clone)}
    done = shell(clone, f"set -e; {words}", **places)
    assert done.returncode == 0, done.stdout
    if "pretrain_" in words or "sbatch" in words:
        assert "-m domain_pretrain.launch" in done.stdout
        assert ("--domain-config finance.plan/domains.yaml" in done.stdout) == ("PLAN=" in command)
    if command.startswith("domain-pretrain plan"):
        (written,) = re.findall(r"^written: (\S+), (\S+)$", done.stdout, re.M)
        assert all((clone / path).is_file() for path in written)
        return
    for output in re.findall(r"--output (\S+)", command):
        # By a field, it is a folder of data sets.
        assert (clone / f"{output}.idx").is_file() or (clone / output / "domains.yaml").is_file()


@pytest.mark.parametrize("command", SHOWN)
def test_its_words_are_known(command: str) -> None:
    """What it names is there: flags, files, variables, extras; the others' test covers make."""
    words = [word for word in shlex.split(command.replace("[--", "--")) if word != "..."]
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        del words[0]
    if not words:
        return
    if words[0] == "domain-pretrain":
        subparsers = argparse.ArgumentParser().add_subparsers()
        assert words[1] in COMMANDS
        module = import_module(f"domain_pretrain.commands.{words[1]}")
        module.add_parser(subparsers)
        if getattr(module, "TAKES_WORDS", False):  # Megatron's, behind --
            words = words[: (*words, "--").index("--")]
        subparsers.choices[words[1]].parse_args(words[2:])
    elif words[0] == "python" and words[1].endswith(".py"):
        assert all(f'"{flag}"' in text(words[1]) for flag in FLAG.findall(command))
    elif words[:2] == ["pip", "install"]:
        for word in words[2:]:
            if word.startswith("/path/to/this/clone"):
                extra = word.partition("[")[2].rstrip("]")
                assert not extra or re.search(rf"^{extra} = \[", text("pyproject.toml"), re.M)
            elif not word.startswith("--"):
                Requirement(word)
    elif words[0] == "export":
        for word in words[1:]:
            name = word.partition("=")[0]
            assert any(
                name in path.read_text("utf-8") for path in ROOT.glob("scripts/*.sh")
            ) or any(name in path.read_text("utf-8") for path in ROOT.glob("tests/e2e/test_*.py"))
    inputs = re.compile(r"(?:scripts|configs|tests|benchmarks)/[\w./-]+\.\w+")
    for path in inputs.findall(command):
        assert (ROOT / path).is_file(), path

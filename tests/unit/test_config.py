from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import SchemaValidator

from domain_pretrain import section
from domain_pretrain.adapt.lora import Lora
from domain_pretrain.config import DomainConfig
from domain_pretrain.data.domain import Domain
from domain_pretrain.data.mix.section import Cut
from domain_pretrain.errors import ConfigError, DomainPretrainError
from domain_pretrain.evaluate.choice import ChoiceOptions
from domain_pretrain.evaluate.section import Evaluating
from domain_pretrain.flags import PluginArgs, add_arguments, plugin_args
from domain_pretrain.kernels.section import ChannelLoss
from domain_pretrain.planning.section import PlanFile
from domain_pretrain.section import Section
from domain_pretrain.stats import Average
from domain_pretrain.strategies.hold import HoldOptions
from domain_pretrain.strategies.shapes import ShapeOptions

ROOT = Path(__file__).parents[2]
A = "weights: {a: 1}"


def load(tmp_path: Path, text: str) -> DomainConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return DomainConfig.load(path)


def test_reads_a_whole_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
        domains:
          finance: {data: ["data/finance/*"], weight: 1}
          general: {data: [data/a, data/b], weight: 5}
        channel_loss: {average: sample}
        """,
    )
    assert list(config.domains) == ["finance", "general"]
    assert config.domains["finance"] == Domain(data=["data/finance/*"], weight=1.0)
    assert config.domains["general"].data == ["data/a", "data/b"]
    assert config.channel_loss == ChannelLoss(average="sample")


def test_every_key_is_optional_but_data(tmp_path: Path) -> None:
    assert load(tmp_path, "{}") == DomainConfig()
    assert load(tmp_path, "domains: {a: {data: [x]}}").domains["a"].weight is None
    with pytest.raises(ConfigError, match=r"domains\.a\.data: Field required"):
        load(tmp_path, "domains: {a: {}}")


def sections(base: type[Section] = Section) -> Iterator[type[Section]]:
    """All of the package, what plugs into a section among them."""
    for model in base.__subclasses__():
        if model.__module__.startswith("domain_pretrain."):
            yield model
        yield from sections(model)


def numbers(schema: Any) -> Iterator[dict[str, Any]]:
    """Each place in a schema where pydantic takes a number or a boolean."""
    if isinstance(schema, dict):
        if schema.get("type") in ("bool", "float", "int"):
            yield schema
        schema = tuple(schema.values())
    if isinstance(schema, list | tuple):
        for part in schema:
            yield from numbers(part)


def test_nothing_else_is_taken_for_a_number_or_a_boolean() -> None:
    """In any section, at any depth; pydantic by itself reads true and "1" as 1, "no" as false."""
    assert {Evaluating, Lora, Cut, PlanFile, HoldOptions, ChoiceOptions} <= set(sections())
    found = [leaf for model in sections() for leaf in numbers(model.__pydantic_core_schema__)]
    assert len(found) > 100
    for leaf in found:
        others = ("1", "no", 1) if leaf["type"] == "bool" else ("1", True)
        for other in others:
            with pytest.raises(ValidationError):
                SchemaValidator(leaf).validate_python(other)


@pytest.mark.parametrize("given", ["1e-3", "1E-3", "1.e-3", ".1e-2", "10e-4", "+1.0e-3"])
def test_a_number_in_powers_of_ten(given: str, tmp_path: Path) -> None:
    """PyYAML reads some of them as texts."""
    domain = load(tmp_path, f"domains: {{a: {{data: [x], weight: {given}}}}}").domains["a"]
    assert domain.weight == 0.001


def test_what_only_looks_like_one_is_text(tmp_path: Path) -> None:
    texts = ["1e", "e5", "1e5x", "1-2e3", "0x1e3z"]
    assert (
        load(tmp_path, f"domains: {{a: {{data: {json.dumps(texts)}}}}}").domains["a"].data == texts
    )
    assert (
        load(tmp_path, f"domains: {{a: {{data: [{', '.join(texts)}]}}}}").domains["a"].data == texts
    )


def test_sample_configs_load() -> None:
    samples = sorted(
        [*(ROOT / "configs").glob("*.yaml"), *(ROOT / "configs/recipes").glob("*.yaml")]
    )
    assert samples
    for sample in samples:
        assert DomainConfig.load(sample).domains, sample


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("domain: {}", r"\n  domain: unknown key; did you mean 'domains'\?"),
        (
            "domains: {finance: {data: [x], wieght: 1}}",
            r"domains\.finance\.wieght: unknown key; did you mean 'weight'\?",
        ),
        ("channel_loss: {averge: token}", r"channel_loss\.averge: .*did you mean 'average'"),
        # A domain may be called like a key; the schema of its mapping is a domain's all the same.
        ("domains: {data: {data: [x], wait: 1}}", r"domains\.data\.wait: .*\(known keys: data, we"),
        (
            "rewight: 1",
            r"rewight: unknown key; did you mean 'reweight'.*\(known keys: domains, channel",
        ),
        ("domains: {a: {data: [x], pined: true}}", r"pined: unknown key; did you mean 'pinned'\?"),
        ("domains: {a: {data: [x], floor: 2}}", r"domains\.a\.floor: .*less than or equal to 1"),
        ("reweight: {clip: [2, 3]}", r"reweight\.clip: .*0 <= low < 1 < high"),
        ("reweight: {scope: batch}", r"reweight\.scope: .*'global_batch' or 'microbatch'"),
        ("reweight: {unit: sample}", r"reweight\.unit: sample needs scope: microbatch"),
        ("reweight: {scope: microbatch, clip: [0, 2]}", r"reweight\.clip: has no effect with sc"),
        ("reweight: {scope: microbatch, clp: 2}", r"reweight\.clp: unknown key \(known keys: temp"),
        ("reweight: {scope: microbatch, temperature: 0}", r"reweight\.temperature: .*greater than"),
        ("reweight: {scope: microbatch, strategy: excess}", r"strategy: needs the losses of whole"),
        ("channel_loss: {average: tokens}", r"average: .*'token' or 'sample' \(given: 'tokens'\)"),
        ("domains: {a: {data: x}}", r"domains\.a\.data: Input should be a valid list"),
        ("domains: {a: {data: []}}", r"domains\.a\.data: List should have at least 1 item"),
        ("domains: {a: {data: ['']}}", r"domains\.a\.data\.0: "),
        ("domains: {a: {data: [x], weight: 0}}", r"domains\.a\.weight: .*greater than 0"),
        ("domains: {a: {data: [x], weight: -1}}", r"\(given: -1\)"),
        ("domains: {a: {data: [x], weight: .inf}}", r"domains\.a\.weight: .*finite"),
        ("domains: {a: {data: [x], weight: .nan}}", r"domains\.a\.weight: "),
        ("domains: {a: {data: [x], weight: yes}}", r"weight: .*valid number \(given: True\)"),
        ("evaluate: {samples: true}", r"evaluate\.samples: .*valid integer \(given: True\)"),
        ("evaluate: {every: '2'}", r"evaluate\.every: .*valid integer \(given: '2'\)"),
        ("adapt: {lora: {rank: true}}", r"adapt\.lora\.rank: .*valid integer \(given: True\)"),
        ("adapt: {lora: {experts: 1}}", r"lora\.experts: .*valid boolean \(given: 1\)"),
        ("mix: {skip: [{samples: [true, 5]}]}", r"samples\.0: .*valid integer \(given: True\)"),
        ("domains: {a: {data: [x], pinned: 'no'}}", r"pinned: .*valid boolean \(given: 'no'\)"),
        ("domains: {a: {data: [x], weight: '5'}}", r"weight: .*valid number \(given: '5'\)"),
        (
            "domains: {a: {data: [x], weight: 1}, b: {data: [y]}}",
            r"domain 'b' has no weight while others",
        ),
        ("domains: {a: 1}", r"domains\.a: "),
        ("mix: {schedule: [{samples: 1}]}", r"mix\.schedule\.0\.weights: Field required"),
        ("mix: {schedule: [{weights: {}}]}", r"weights: no domain has a weight above 0"),
        (f"mix: {{schedule: [{{{A}}}, {{{A}}}]}}", r"mix: stage 1 has no length: only the last"),
        (f"mix: {{schedule: [{{{A}, samples: 1, share: 0.5}}]}}", r"samples and share are two"),
        (f"mix: {{schedule: [{{{A}, samples: 0}}]}}", r"schedule\.0\.samples: .*greater than 0"),
        (f"mix: {{schedule: [{{{A}, shape: ramp}}]}}", r"'constant', 'linear' or 'cosine'"),
        (f"mix: {{schedule: [{{{A}, shape: linear}}]}}", r"mix: the first stage is linear, and ha"),
        (f"mix: {{schedule: [{{{A}, sampels: 1}}]}}", r"sampels: unknown key; did you mean 'samp"),
        (
            "mix: {schedule: [{weights: {a: -1}}]}",
            r"the weight of a should be a number ≥ 0, .*-1",
        ),
        ("mix: {schedule: [{weights: {a: yes}}]}", r"the weight of a should be a number ≥ 0"),
        ("mix: {schedule: [{weights: {a: {x: .nan}}}]}", r"the weight of a\.x should be a number"),
        ("mix: {schedule: [{weights: {a: 1.0e+308, b: 1.0e+308}}]}", r"weights are too large to a"),
        (
            f"mix: {{schedule: [{{weights: {{a: {'9' * 400}}}}}]}}",
            r"the weight of a should be a num",
        ),
        ("mix: {skip: [{samples: [3, 3]}]}", r"mix\.skip\.0\.samples: must be \[first, stop\]"),
        ("mix: {skip: [{samples: [3]}]}", r"mix\.skip\.0\.samples\.1: Field required"),
        ("mix: {skip: [{samples: 3}]}", r"mix\.skip\.0\.samples: .*tuple"),
    ],
)
def test_a_wrong_key_or_value_is_named_by_its_path(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        *((word, "a boolean") for word in ("no", "yes", "on", "Off", "true")),
        *((word, "a number") for word in ("2024", "1.0e+3", "0x10", ".inf", "1:30")),
        *((word, "null") for word in ("null", "~")),
        ("2024-01-31", "a date"),
    ],
)
def test_a_name_that_yaml_reads_as_something_else(tmp_path: Path, key: str, what: str) -> None:
    where = f"line 3, column 3: the key {key} is read as {what}, not as a name"
    fix = f'put it in quotes, as in "{key}":'
    with pytest.raises(ConfigError, match=re.escape(f"{where}: {fix}")):
        load(tmp_path, f"domains:\n  en: {{data: [x]}}\n  {key}: {{data: [y]}}\n")
    text = f"domains:\n  en: {{data: [x]}}\n  '{key}': {{data: [y]}}\n"
    if re.fullmatch(r"\w[\w.-]*", key):
        assert list(load(tmp_path, text).domains) == ["en", key]


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("2024-01-01 99:00:00", r", line 2, column 4: '2024-01-01 99:00:00' is no timestamp: hour"),
        ("2024-13-01", r", line 2, column 4: '2024-13-01' is no timestamp: month"),
        ("!!float abc", r", line 2, column 4: 'abc' is no float: could not convert"),
        (
            "!!float " + "abc" * 12_000,
            r", line 2, column 4: '(abc)*a? … \w*': could not|is no float",
        ),
        ("!!int ''", r", line 2, column 4: '' is no int"),
        ("!!bool abc", r", line 2, column 4: 'abc' is no bool"),
        ("!!timestamp abc", r", line 2, column 4: 'abc' is no timestamp"),
        ("1" * 5_000, r", line 2, column 4: '1+ … 1+' is no int: Exceeds the limit"),
        ("!" + "tag" * 12_000 + " 1", r", line 2, column 4: could not determine a constructor"),
        ("*" + "a" * 34_000, r", line 2, column 4: found undefined alias"),
        (nested(1_000), r" is nested too deeply"),
        (nested(100), r" is wrong:\n  a: unknown key.*\n  b: unknown key"),
        ("x\0", r" is not YAML"),
    ],
    ids=str.__len__,
)
def test_what_yaml_cannot_read(tmp_path: Path, value: str, said: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^domain config '.*config\.yaml'.*(?s:{said})"
    ) as caught:
        load(tmp_path, f"a: 1\nb: {value}\n")
    assert len(str(caught.value)) < 1_500


BOMB = "x: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"x{i}: &b{i} [{','.join([f'*b{i - 1}' if i else '*a'] * 9)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("domains: {a: {data: [x], weight: %s}}", r"domains\.a\.weight: .*given: 'wwww.*\.\.\."),
        ("domains: {? %s : 1}", r"domains\.w+ … w+: "),
        (
            "domains: {? '/%s' : {data: [x]}}",
            r"domains: the domain name '/w+ … .*beginning",
        ),
        ("? %s\n: 1", r"\n  w+ … w+: unknown key"),
        ("channel_loss: %s", r"channel_loss: "),
        ("channel_loss: {average: [%s]}", r"channel_loss\.average: "),
        (BOMB + "channel_loss: {average: *b11}", r"channel_loss\.average: "),
        ("channel_loss: {average: &a [*a]}", r"channel_loss\.average: "),
    ],
    ids=range(8),
)
def test_a_message_does_not_repeat_a_long_value(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        load(tmp_path, text.replace("%s", "w" * 34_000))
    assert max(map(len, str(caught.value).splitlines())) < 1_000


def test_a_key_of_an_earlier_version_still_works(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    section._tell_new_name.cache_clear()  # it is told once a process
    config = load(tmp_path, "reweight: {blend: 0.5}")
    assert config == load(tmp_path, "reweight: {uniform_part: 0.5}")
    assert config.reweighting("linupper") == DomainConfig.model_validate(
        {"reweight": {"strategy": "linupper", "uniform_part": 0.5}}
    ).reweighting(None)
    (notice,) = capsys.readouterr().out.splitlines()
    assert "key 'blend' is called 'uniform_part' now; the old name still works" in notice
    with pytest.raises(ConfigError, match="reweight: blend is the old name of uniform_part: give "):
        load(tmp_path, "reweight: {blend: 0.5, uniform_part: 0.5}")


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "{domain: 1, channel: 2, channel_loss: {average: 3}}")
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize("name", ["a/b", "a b", "", ".a", "-a", "a:b", "a\\n"])
def test_refuses_names_that_a_tag_cannot_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be part of a TensorBoard tag"):
        load(tmp_path, f'domains: {{"{name}": {{data: [x]}}}}')


@pytest.mark.parametrize("name", ["finance", "q_1-2.v3", "_x", "金融", "Übung", "2024"])
def test_accepts_letters_of_any_script(tmp_path: Path, name: str) -> None:
    assert list(load(tmp_path, f'domains: {{"{name}": {{data: [x]}}}}').domains) == [name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: it must be a mapping with the keys domains, channel_loss"),
        ("- a", "holds a list"),
        ("domains:\n  a: {data: [x}\n", r"config\.yaml', line 2, column 15: "),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("{[1]: 2}", "line 1, column 2: found unhashable key"),
        (
            "domains:\n  a: {data: [x]}\n  a: {data: [y]}",
            "line 3, .*'a' was already given in line 2",
        ),
        ("a: \x00", "is not YAML"),
    ],
)
def test_broken_yaml(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml' does not exist \(current directory"):
        DomainConfig.load(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        DomainConfig.load(tmp_path)
    (tmp_path / "latin").write_bytes("domains: {ü: {data: [x]}}".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read: 'utf-8'"):
        DomainConfig.load(tmp_path / "latin")


def test_errors_are_one_family() -> None:
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, DomainPretrainError)


def test_settings_depend_on_content_only(tmp_path: Path) -> None:
    one = load(tmp_path, "domains: {a: {data: [x], weight: 1}, b: {data: [y], weight: 2}}")
    same = load(
        tmp_path,
        "channel_loss: {average: token}\n"
        "domains:\n  b: {weight: 2.0, data: [y]}\n  a: {weight: 1, data: [x]}\n",
    )
    other = load(tmp_path, "domains: {a: {data: [x], weight: 1}, b: {data: [y], weight: 3}}")
    assert one.settings() == same.settings() != other.settings()
    assert list(one.settings()) == list(same.settings()), "sorted"
    assert other.settings()["domains.b.weight"] == 3
    assert DomainConfig().settings() == {}


def test_settings_hold_with_the_flag(tmp_path: Path) -> None:
    config = load(tmp_path, "reweight: {temperature: 0.5}")
    assert config.settings("none") == {}
    assert config.settings("linupper") == {
        "reweight.strategy": "linupper",
        "reweight.temperature": 0.5,
    }


def parser() -> argparse.ArgumentParser:
    return add_arguments(argparse.ArgumentParser(allow_abbrev=False))


def test_flags_default_to_off() -> None:
    assert plugin_args(parser().parse_args([])) == PluginArgs() == plugin_args(SimpleNamespace())
    assert not PluginArgs().channel_loss


def test_flags_are_read() -> None:
    flags = "--channel-loss --domain-log-dir out --domain-backend cpu"
    args = parser().parse_args([*flags.split(), "--allow-unknown-host", "--allow-domain-change"])
    assert plugin_args(args) == PluginArgs(
        channel_loss=True,
        domain_log_dir="out",
        domain_backend="cpu",
        allow_unknown_host=True,
        allow_domain_change=True,
    )


def test_a_config_implies_channel_loss() -> None:
    args = plugin_args(parser().parse_args(["--domain-config", "c.yaml"]))
    assert args.channel_loss
    assert args.domain_config == "c.yaml"


def test_a_foreign_namespace_is_read_with_defaults_and_checked() -> None:
    assert plugin_args(SimpleNamespace(domain_backend=None, channel_loss=True)) == PluginArgs(True)
    with pytest.raises(ConfigError, match="--domain-backend gpu: must be one of auto, cpu, cuda"):
        plugin_args(SimpleNamespace(domain_backend="gpu"))


def test_the_reweight_section_and_its_flag(tmp_path: Path) -> None:
    assert DomainConfig().reweighting(None) is None
    assert DomainConfig().reweighting("none") is None
    by_flag = DomainConfig().reweighting("excess")
    assert by_flag is not None
    assert (by_flag.strategy, by_flag.scope, by_flag.unit) == ("excess", "global_batch", "domain")

    config = load(tmp_path, "reweight: {temperature: 0.4, warmup_steps: 5}")
    assert config.reweighting("none") is None
    for flag in (None, "linupper"):  # the section names no strategy: the flag may
        found = config.reweighting(flag)
        assert found is not None
        assert (found.strategy, found.warmup_steps) == ("linupper", 5)
        assert found.model_extra == {"temperature": 0.4}  # the strategy's own

    config = load(tmp_path, "reweight: {strategy: quadratic}")
    with pytest.raises(ConfigError, match=r"--domain-reweight excess and reweight\.strategy: quad"):
        config.reweighting("excess")
    config = load(tmp_path, "reweight: {scope: microbatch}")
    with pytest.raises(
        ConfigError, match=r"reweight\.strategy: needs the losses of whole.*'excess'"
    ):
        config.reweighting("excess")


def test_importing_config_does_not_import_torch_or_megatron() -> None:
    code = "import sys, domain_pretrain.config; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(ROOT / "src")},
    ).stdout.split()
    assert not {"torch", "megatron"} & set(loaded)


# --- docs/config.md says what the code says ---------------------------------------------------

DOC = (ROOT / "docs" / "config.md").read_text(encoding="utf-8")


def rows(heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its two header lines."""
    section = DOC.split(f"\n## {heading}\n")[1].split("\n## ")[0].split("\n### ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def written(field: FieldInfo) -> str:
    """A default as the page shows it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_defaults=True)
    return (
        "none" if value is None else f"`{value if isinstance(value, str) else json.dumps(value)}`"
    )


def models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in get_args(annotation) for model in models(part)]


def schema(
    model: type[BaseModel], *others: type[BaseModel], at: str = ""
) -> Iterator[tuple[str, str, str]]:
    """(key, default, description) of every key of the file, sections before what they hold.

    Others: what the mapping may be instead with another ``scope``.
    """
    for name, field in model.model_fields.items():
        default, text = written(field), field.description
        for other in others:
            (scope,) = get_args(other.model_fields["scope"].annotation)
            if name not in other.model_fields:
                text = f"{text} Not with `scope: {scope}`."
            elif name != "scope" and written(other.model_fields[name]) != default:
                default += f"; {written(other.model_fields[name])} with `scope: {scope}`"
        assert text
        yield f"`{at}{name}`", default, text
        inner = at + name + {dict: ".<name>.", list: "[]."}.get(get_origin(field.annotation), ".")
        if found := models(field.annotation):
            yield from schema(*found, at=inner)
    for other in others:  # the options of the strategies are on their own page
        assert other.model_fields.keys() <= {*model.model_fields, *ShapeOptions.model_fields}


def test_the_docs_list_every_key_with_its_default_and_meaning() -> None:
    assert [(key, default, text) for key, _, default, text in rows("Keys")] == list(
        schema(DomainConfig)
    )
    (average,) = [value for key, value, *_ in rows("Keys") if key == "`channel_loss.average`"]
    assert average == ", ".join(f"`{choice}`" for choice in get_args(Average))


def test_the_docs_list_every_flag_with_its_default_and_meaning() -> None:
    (group,) = [g for g in parser()._action_groups if g.title == "domain_pretrain"]
    expected = []
    for action in group._group_actions:
        flag = f"`{action.option_strings[0]}`"
        if action.metavar:
            flag = f"{flag[:-1]} {action.metavar}`"
        if action.choices:
            flag += " " + ", ".join(f"`{choice}`" for choice in action.choices)
        default = {None: "none", False: "off"}.get(action.default, f"`{action.default}`")
        expected.append([flag, default, action.help])
    assert rows("Flags") == expected


def test_the_docs_show_a_config_that_loads(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", DOC, re.DOTALL)
    assert load(tmp_path, example) == DomainConfig.load(ROOT / "configs" / "minimal.yaml")

"""Probes of a run, as far as no model is needed: what is refused, text, when, and what fails."""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from support.bpe import write_bpe
from support.prefixes import write_prefix
from support.probes import write_data

from domain_pretrain.data.reading import Reading
from domain_pretrain.errors import ConfigError, UnsupportedError, WriterError
from domain_pretrain.evaluate import LogitsModel, ProbeOptions, Row, Score
from domain_pretrain.evaluate.suite import SuiteOptions
from domain_pretrain.hosts import mindspeed
from domain_pretrain.hosts.probes import driver, probing
from domain_pretrain.hosts.probes.checks import check_probing, look_up
from domain_pretrain.hosts.probes.driver import Driver, _pack, _unpack
from domain_pretrain.hosts.probes.probing import Probing
from domain_pretrain.hosts.probes.scorer import _row_sums
from domain_pretrain.hosts.probes.text import Text, end_of, of_bytes, of_host
from domain_pretrain.hosts.runtime import Runtime
from domain_pretrain.hosts.support import REFUSED_WITH_PROBES, check_flags
from domain_pretrain.records.evaluated import Evaluated
from domain_pretrain.rules.registry import Configured

CPU = torch.device("cpu")


def probe(rule: Any = lambda model, options: [], options: Any = None, name: str = "p") -> Any:
    return Configured(name, rule, options or ProbeOptions())


# --- what is refused at the start ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "parts", "message"),
    [
        ({}, (0, None, None), "there is none: give --valid-data-path"),
        ({"eval_iters": 0}, (0, 1, None), "--eval-iters 0 never does"),
    ],
)
def test_probes_that_could_not_run(flags: Any, parts: Any, message: str) -> None:
    given = SimpleNamespace(**{"eval_iters": 2, **flags})
    with pytest.raises(ConfigError, match=message):
        check_probing(given, Reading((None,) * 3, parts, {}))
    check_probing(SimpleNamespace(eval_iters=2), Reading((None,) * 3, (0, 1, None), {}))


def test_a_host_on_which_nobody_has_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    given = SimpleNamespace(eval_iters=2)
    monkeypatch.setitem(sys.modules, mindspeed.MANAGER, SimpleNamespace())
    with pytest.raises(UnsupportedError, match="MindSpeed-LLM makes other batches"):
        check_probing(given, Reading((None,) * 3, (0, 1, None), {}))


def test_a_rank_for_which_a_script_builds_no_data() -> None:
    """In some, tensor-parallel ranks but the first do not even hear of it."""
    runtime = Runtime()
    assert runtime._validation_of([object(), object()]) == [None, None]
    for data in ("other run's", "a", None):
        runtime.keep_validation(data)
    assert runtime._validation_of([object(), object()]) == ["a", None]


def test_predictions_alone_do_not_go_with_context_parallelism(tmp_path: Path) -> None:
    """Nor do those of probes inside a suite."""
    (tmp_path / "asks.yaml").write_text("sentence: {items: {a: [bonds fall]}}\n")
    (tmp_path / "goes_on.yaml").write_text(f"continuation: {{texts: {{a: {tmp_path}/a.txt}}}}\n")
    (tmp_path / "a.txt").write_text("bonds fall")
    asks, goes_on = (
        probe(options=SuiteOptions(files=[str(tmp_path / f"{name}.yaml")]), name="suite")
        for name in ("asks", "goes_on")
    )

    class Predicting(ProbeOptions):
        predicts: ClassVar[bool] = True

    def flags(ranks: int) -> SimpleNamespace:
        return SimpleNamespace(tokenizer_type="TikTokenizer", context_parallel_size=ranks)

    nothing = Reading((None,) * 3, (0, 1, None), {})
    look_up(flags(2), nothing, [probe(), asks])
    for one in (probe(options=Predicting()), goes_on):
        look_up(flags(1), nothing, [one])
        with pytest.raises(
            WriterError, match=rf"evaluate\.probes\.{one.name} asks for predictions"
        ):
            look_up(flags(2), nothing, [asks, one])


@pytest.mark.parametrize(
    "flags",
    [
        {"sft": True},
        {"dataloader_inter_document_masking": True},
        {"cuda_graph_scope": "full_iteration"},
    ],
)
def test_rows_that_the_host_would_not_take(flags: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"evaluate\.probes"):
        check_flags(SimpleNamespace(**flags), REFUSED_WITH_PROBES)
    check_flags(SimpleNamespace(sft=False), REFUSED_WITH_PROBES)


def test_a_tokenizer_without_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are no text; bytes are, where the manifests beside the data say that it is bytes."""
    monkeypatch.chdir(tmp_path)
    null = SimpleNamespace(tokenizer_type="NullTokenizer")
    write_data(tmp_path)
    write_prefix("other", [4, 3], dtype="uint16")

    def reading(*names: str) -> Reading:
        return Reading((None,) * 3, (0, 1, None), dict.fromkeys(names))  # type: ignore[arg-type]

    assert look_up(null, reading("english", "code"), [])
    for names in (("english", "other"), ()):
        with pytest.raises(WriterError, match="NullTokenizer knows none: give the tokenizer"):
            look_up(null, reading(*names), [])
    assert not look_up(SimpleNamespace(tokenizer_type="TikTokenizer"), reading("other"), [])


def test_what_a_probe_misses_is_told_by_the_rank_that_looked() -> None:
    class Needy(ProbeOptions):
        def check(self) -> None:
            raise ConfigError("there is no file 'x'")

    flags = SimpleNamespace(tokenizer_type="TikTokenizer")
    with pytest.raises(WriterError, match="there is no file 'x'"):
        look_up(flags, Reading((None,) * 3, (0, 1, None), {}), [probe(options=Needy())])


# --- text ----------------------------------------------------------------------------------------


class Around:
    """Bytes between a token that begins a text and one that ends it."""

    eod = 301

    def __init__(self, before: list[int], after: list[int]) -> None:
        self._before, self._after = before, after

    def tokenize(self, text: str) -> np.ndarray:
        return np.array([*self._before, *text.encode(), *self._after])

    def detokenize(self, tokens: list[int]) -> str:
        return bytes(token for token in tokens if token < 256).decode()


@pytest.mark.parametrize(("before", "after"), [([], []), ([300], []), ([], [301]), ([300], [301])])
def test_what_a_tokenizer_puts_around_a_text_is_taken_off(
    before: list[int], after: list[int]
) -> None:
    text = of_host(Around(before, after))
    assert text.encode("ab") == list(b"ab")
    assert text.encode("") == []
    assert text.decode(text.encode("北京")) == "北京"
    assert text.end == 301


@pytest.mark.megatron
def test_megatrons_own_hugging_face_tokenizer(tmp_path: Path) -> None:
    """With a template that puts ``<s>`` in front, as Llama's."""
    build = pytest.importorskip("megatron.core.tokenizers.utils.build_tokenizer")
    pytest.importorskip("transformers")
    made = write_bpe(tmp_path, 300)
    args = argparse.Namespace(
        tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model=str(tmp_path),
        chat_template=None,
        metadata_path=None,
        vocab_file=None,
        merge_file=None,
        special_tokens=None,
        tokenizer_hf_no_use_fast=False,
        tokenizer_hf_no_include_special_tokens=False,
        trust_remote_code=False,
        use_gigatoken=False,
        padded_vocab_size=None,
        pad_vocab_size=True,
        make_vocab_size_divisible_by=128,
        tensor_model_parallel_size=1,
        rank=0,
    )
    theirs = build.build_tokenizer(args)
    first = made.token_to_id("<s>")
    assert theirs.tokenize("the fox")[0] == first
    text = of_host(theirs)
    assert first not in text.encode("the fox, 北京")
    assert text.decode(text.encode("the fox, 北京")) == "the fox, 北京"
    assert text.end == made.token_to_id("</s>")


def test_a_tokenizer_without_an_end() -> None:
    for tokenizer in (SimpleNamespace(eod=None), SimpleNamespace(eod=-1), SimpleNamespace()):
        with pytest.raises(UnsupportedError, match="has no token that ends a document"):
            end_of(tokenizer)


def test_bytes() -> None:
    text = of_bytes()
    assert (text.encode("é"), text.end) == ([0xC3, 0xA9], 256)
    assert text.decode([0xC3, 256, 299]) == "\ufffd"


# --- when ----------------------------------------------------------------------------------------


def make(*probes: Any, every: int = 1, publisher: Any = None, interval: int = 5) -> Probing:
    args = SimpleNamespace(
        eval_interval=interval,
        seq_length=32,
        padded_vocab_size=300,
        consumed_train_samples=80,
        context_parallel_size=1,
    )
    return Probing(probes, every, by_bytes=True, args=args, device=CPU, publisher=publisher)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_resumed_run_probes_where_the_unbroken_one_would(every: int) -> None:
    """It knows nothing of the evaluations before."""
    points = [at for at in range(0, 61, 5) if make(every=every).due(at, final=False)]
    assert points == list(range(0, 61, 5 * every))


# --- asking --------------------------------------------------------------------------------------


class Alone:
    """The scorer of one process without Megatron, of a model that likes every token alike."""

    def __init__(self, *args: Any, **how: Any) -> None:
        self.calls = 0

    def log_likelihoods(self, rows: list[Row]) -> list[float]:
        self.calls += 1
        return [float(row.first - len(row.tokens)) for row in rows]


class Recording:
    def __init__(self) -> None:
        self.found: list[Evaluated] = []
        self.events: list[Any] = []

    def scores(self, evaluated: Evaluated) -> None:
        self.found.append(evaluated)

    def event(self, event: Any) -> None:
        self.events.append(event)


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch) -> Recording:
    """Of a process of its own, in which every call of a model is an :class:`Alone`."""
    monkeypatch.setattr(probing, "Scorer", Alone)
    monkeypatch.setattr(driver, "_tell", lambda said: said)
    globals_ = SimpleNamespace(
        get_tokenizer=lambda: SimpleNamespace(eod=256, vocab_size=257, tokenize=None)
    )
    for name in ("megatron", "megatron.training"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "megatron.training.global_vars", globals_)
    return Recording()


def run(one: Probing, *, iteration: int = 10, final: bool = False, trained: bool = True) -> None:
    one.run(iteration, None, [], None, reads=[], final=final, trained=trained)


def good(model: Any, options: Any) -> list[Score]:
    return [Score("good", "a", model.log_likelihoods([Row([1, 2, 3])])[0], 2, True)]


def bad(model: Any, options: Any) -> list[Score]:
    raise KeyError("gone")


def strange(model: Any, options: Any) -> list[Any]:
    return [0.5]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (bad, "evaluate.probes.p failed: KeyError: 'gone'"),
        (strange, "evaluate.probes.p failed: TypeError: it gave 0.5, which is no Score"),
        (
            lambda model, options: model.log_likelihoods([Row([1] * 34)]),
            "evaluate.probes.p: a text of 34 tokens does not fit",
        ),
        (
            lambda model, options: model.log_likelihoods([Row([1, 300])]),
            "evaluate.probes.p: a row has the token 300, and the model has 300",
        ),
    ],
)
def test_a_probe_that_fails(
    rule: Any, message: str, publisher: Recording, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told, and the run goes on with what others found; before training, it ends."""
    one = make(probe(rule), probe(good, name="good"), publisher=publisher)
    run(one)
    assert f"WARNING: {message}" in capsys.readouterr().out
    (found,) = publisher.found
    assert [(score.name, score.mean) for score in found.scores] == [("good", -1.0)]
    (event,) = publisher.events
    assert (event.name, event.iteration) == ("probe", 10)
    with pytest.raises(ConfigError) as caught:
        run(make(probe(rule), publisher=publisher), iteration=0, trained=False)
    assert message in str(caught.value)


def test_a_model_that_fails_ends_the_run_whatever_the_probe_does(
    publisher: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, rows: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Alone, "log_likelihoods", fail)

    def misfit(self: Any, rows: Any) -> Any:
        return _row_sums(torch.ones(3), torch.ones(1, 2))

    def swallows(model: Any, options: Any) -> list[Score]:
        for _ in range(2):
            try:
                good(model, options)
            except RuntimeError:
                continue
        return []

    with pytest.raises(RuntimeError, match="out of memory"):
        run(make(probe(good), publisher=publisher))
    monkeypatch.setattr(Alone, "log_likelihoods", misfit)
    with pytest.raises(WriterError, match=r"evaluate\.probes\.p: the model returned \(3,\)"):
        run(make(probe(good), publisher=publisher))
    monkeypatch.setattr(Alone, "log_likelihoods", fail)
    with pytest.raises(RuntimeError, match="went on after its call of the model had failed"):
        run(make(probe(swallows), publisher=publisher))
    assert not publisher.found


def test_the_last_evaluation_of_the_training_is_not_repeated_at_its_end(
    publisher: Recording,
) -> None:
    one = make(probe(good), publisher=publisher)
    assert one.due(10, final=True)
    run(one)
    assert not one.due(10, final=True)
    assert one.due(12, final=True)
    run(one, iteration=12, final=True)
    assert [(found.iteration, found.final) for found in publisher.found] == [
        (10, False),
        (12, True),
    ]
    assert publisher.found[0].consumed_samples == 80


def test_a_probe_may_draw_and_seed(publisher: Recording) -> None:
    def careless(model: Any, options: Any) -> list[Score]:
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(0)
        random.random(), np.random.random(), torch.rand(3)
        if options.fail:
            raise ValueError
        return []

    def draws() -> tuple[Any, ...]:
        return random.random(), float(np.random.random()), float(torch.rand(1))

    for fail in (False, True):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(7)
        expected = draws()
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(7)
        run(make(probe(careless, SimpleNamespace(fail=fail)), publisher=publisher))
        assert draws() == expected


def test_nothing_is_asked_without_rows(publisher: Recording) -> None:
    scorer = Alone()
    model = Driver(scorer, Text(lambda text: [], lambda tokens: "", 256), 32, 300)  # type: ignore[arg-type]
    assert model.log_likelihoods([]) == []
    assert scorer.calls == 0


def test_predictions_that_a_layout_cannot_make_are_refused_before_the_ranks_are_told() -> None:
    """Also to a probe that has not said that it asks for them."""
    text = Text(lambda text: [], lambda tokens: "", 256)
    model = Driver(Alone(), text, 32, 300, predicts=False)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="asks for predictions, which context parallelism"):
        model.predict([Row([1, 2])])
    assert not model.broken


def test_sums_of_many_tokens_keep_their_digits() -> None:
    """fp32 has none left at 1e-4 in 100,000 nats."""
    losses = torch.full((1, 40_000), 2.7)
    (found,) = _row_sums(losses, torch.ones(1, 40_000))
    assert found == pytest.approx(40_000 * float(losses[0, 0]), abs=1e-6)
    joined = torch.arange(6.0)
    assert _row_sums(joined, torch.tensor([[1, 0, 1], [0, 1, 0]])) == [2.0, 4.0]


@pytest.mark.parametrize("high", [2, 2**31 + 5])
def test_rows_travel(high: int) -> None:
    rows = [Row([high, 1, 0], 2), Row([5], 1), Row([1, 2], 2)]
    assert _unpack(_pack(rows)) == rows


def test_the_driver_is_a_model() -> None:
    """Whatever a probe may ask of the one, it may ask of the other."""
    names = {name for name in vars(LogitsModel) if not name.startswith("_")}
    assert names <= set(dir(Driver))

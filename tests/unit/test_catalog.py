from __future__ import annotations

import math
import time
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prefixes import write_prefix

from domain_pretrain.data.blend import (
    Blend,
    check_data_path,
    data_path_arguments,
    domain_prefixes,
)
from domain_pretrain.data.catalog import Catalog
from domain_pretrain.data.domain import NAME, Domain
from domain_pretrain.data.origin import ById, Constant, Sets
from domain_pretrain.data.prefixes import check_files, count_tokens, expand
from domain_pretrain.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(*prefixes: str, tokens: int = 10) -> None:
    """Files of a prefix with one document."""
    for prefix in prefixes:
        write_prefix(prefix, [tokens])


def config(**domains: list[str] | tuple[float, list[str]]) -> dict[str, Domain]:
    """``name=[data, …]`` or ``name=(weight, [data, …])``."""
    return {
        name: Domain(data=value)
        if isinstance(value, list)
        else Domain(weight=value[0], data=value[1])
        for name, value in domains.items()
    }


def blend(**weights: float) -> Blend:
    return list(weights), list(weights.values())


# --- names without a config -------------------------------------------------------------------


def names(*prefixes: str) -> tuple[str, ...]:
    return Catalog.build((list(prefixes), None), None, {}).names


@pytest.mark.parametrize(
    ("prefixes", "expected"),
    [
        (["data/finance_text_document", "data/law_document", "data/web"], "finance law web"),
        (["z", "a", "m"], "z a m"),
        (["a", "./a", "x/../a", "b"], "a b"),
        (["web/finance", "books/finance", "law"], "web.finance books.finance law"),
        (["1/web/f", "1/books/f", "2/web/f"], "1.web.f 1.books.f 2.web.f"),
        (["d/x", "d/x_text_document"], "x x_text_document"),
        (["d/x_document", "d/x_text_document"], "x_document x_text_document"),
        (["c++ code", "-x", "数据/金融_text_document"], "c___code _-x 金融"),
        (["s3://bucket/finance", "msc://bucket/law_text_document"], "finance law"),
    ],
)
def test_a_prefix_is_named_by_its_last_part(prefixes: list[str], expected: str) -> None:
    assert names(*prefixes) == tuple(expected.split())


@pytest.mark.parametrize(
    "prefixes",
    [
        ["d/a b", "d/a_b"],  # the same once the blank is replaced
        ["x/f", "y/f", "z/x.f"],  # told apart from each other, but not from a third
    ],
)
def test_names_are_never_merged(prefixes: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"would both be the domain .*: name them in a --domain"):
        names(*prefixes)


parts = st.sampled_from(["a", "b", "a_text_document", "a b", "a.b", "金", ".x"])


@given(st.lists(st.lists(parts, min_size=1, max_size=3).map("/".join), min_size=1, max_size=8))
def test_every_prefix_gets_a_valid_name_of_its_own_or_none_does(prefixes: list[str]) -> None:
    try:
        found = names(*prefixes)
    except ConfigError:
        return
    assert len(set(found)) == len(found) == len(set(prefixes))
    assert all(NAME.fullmatch(name) for name in found)


# --- ids (against real datasets: test_catalog_megatron.py) ------------------------------------


def test_names_come_in_order_of_appearance_over_the_splits() -> None:
    catalog = Catalog.build(None, [(["b", "a"], None), (["c", "b"], None), (["d"], None)], None)
    assert catalog.names == ("b", "a", "c", "d")
    assert catalog.split("valid") == ById((2, 0))
    assert catalog.split("test") == Constant(3)


def test_no_data_is_an_error() -> None:
    for per_split in (None, [None, None, None]):
        with pytest.raises(ConfigError, match="no data: give --data-path"):
            Catalog.build(None, per_split, None)


def test_mock_data_with_prefixes_or_domains_is_refused() -> None:
    for one, domains in ((blend(a=1), {}), (None, config(a=["a"]))):
        with pytest.raises(ConfigError, match="--mock-data has no prefixes"):
            Catalog.build(one, None, domains, mock_data=True)
    assert Catalog.build(None, None, {}, mock_data=True).names == ("mock",)


def test_a_config_without_domains_names_nothing() -> None:
    assert Catalog.build(blend(a=1, b=1), None, {}).names == ("a", "b")


@pytest.mark.parametrize(
    ("valid", "flag", "set_names", "message"),
    [
        ((["a", "b"], None), True, ["x"], "gives 1 names for 2 validation set"),
        ((["a"], None), True, ["x", "y"], "gives 2 names for 1 validation set"),
        ((["a", "b"], None), False, ["x", "y"], "needs --multiple-validation-sets"),
    ],
)
def test_validation_set_names_are_counted(
    valid: Blend, flag: bool, set_names: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Catalog.build(
            None,
            [blend(a=1), valid, None],
            None,
            multiple_validation_sets=flag,
            validation_set_names=set_names,
        )


def test_validation_set_names_that_fit_are_accepted() -> None:
    options = {"multiple_validation_sets": True, "validation_set_names": ["x", "y"]}
    catalog = Catalog.build(None, [blend(a=1), (["b", "a"], None), None], None, **options)  # type: ignore[arg-type]
    assert catalog.split("valid") == Sets((1, 0))


# --- a config and a blend ---------------------------------------------------------------------


def test_a_config_groups_prefixes_in_its_own_order(here: Path) -> None:
    write("data/general/x", "data/general/deep/y", "data/finance")
    catalog = Catalog.build(
        (["data/finance", "./data/general/x", f"{here}/data/general/deep/y", "data/finance"], None),
        None,
        config(general=["data/general/*", "data/general/*/y.bin"], finance=["data/finance"]),
    )
    assert catalog.names == ("general", "finance")
    assert catalog.split("train") == ById((1, 0, 0, 1))


def test_a_config_needs_each_prefix_in_one_split_only() -> None:
    per_split: list[Blend] = [(["t/f", "t/g"], [1.0, 5.0]), (["v/f", "v/g"], None), None]
    catalog = Catalog.build(None, per_split, config(f=(1, ["t/f", "v/f"]), g=(5, ["t/g", "v/g"])))
    assert catalog.split("train") == catalog.split("valid") == ById((0, 1))


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (config(f=["a"]), r"prefix 'b' of the data flags belongs to no domain .*\(f\)"),
        (config(f=["a", "b"], g=["c"]), r"domain 'g' has no data: the data flags do not list 'c'"),
        (config(f=["a", "c"], g=["b"]), r"domain 'f' has data that is not used: .* 'c'"),
        (config(f=["a"], g=["b", "./a"]), r"'./a' belongs to two domains: 'f' \(by 'a'\) and 'g'"),
        (config(f=["a", "b"], g=["nothing/*"]), r"domain 'g' has no data: 'nothing/\*' matches no"),
    ],
)
def test_a_config_that_does_not_fit_the_blend(domains: dict[str, Domain], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Catalog.build(blend(a=1, b=1), None, domains)


def test_all_that_is_wrong_with_the_prefixes_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as told:
        domain_prefixes(config(f=["a", "no/*"], g=["./a", "b"], h=["none/*", "s3://c/*"]))
    first, second, third, last = str(told.value).split("\n")
    assert "'f' has no data: 'no/*'" in first
    assert "'./a' belongs to two domains" in second
    assert "'h' has no data: 'none/*'" in third
    assert "'s3://c/*' is a glob in an object store" in last


def test_weights_of_a_domain_add_up_and_only_ratios_count() -> None:
    domains = config(f=(0.2, ["a", "b"]), g=(1.0, ["c"]))
    Catalog.build(blend(a=1, b=2, c=15), None, domains)
    Catalog.build(blend(a=1, b=2, c=15 * (1 + 5e-7)), None, domains)
    Catalog.build((["a", "c", "b", "a"], [1, 15, 1, 1]), None, domains)
    with pytest.raises(
        ConfigError,
        match=r"'f': the config's weight 0\.2 is 16\.66\d+% of .* weight 4 is 21\.05\d+%",
    ):
        Catalog.build(blend(a=2, b=2, c=15), None, domains)
    with pytest.raises(ConfigError, match="make them agree"):
        Catalog.build(blend(a=1, b=2, c=15 * (1 + 5e-6)), None, domains)


def test_weights_on_one_side_only() -> None:
    with pytest.raises(ConfigError, match="the training data flag gives none"):
        Catalog.build((["a", "b"], None), None, config(f=(1, ["a"]), g=(1, ["b"])))
    Catalog.build((["a", "b"], None), None, config(f=["a"], g=["b"]))
    Catalog.build(blend(a=1, b=3), None, config(f=["a"], g=["b"]))
    # One domain is always the whole.
    Catalog.build((["a", "b"], None), None, config(f=(7, ["a", "b"])))


def test_weights_are_those_of_the_training_blend() -> None:
    domains = config(f=(1, ["a"]), g=(5, ["b"]))
    Catalog.build(None, [blend(a=1, b=5), blend(a=1, b=1), None], domains)
    Catalog.build(None, [None, blend(a=1, b=1), None], domains)
    with pytest.raises(ConfigError, match=r"weight 1 is 16\.66\d+% .* weight 1 is 100\.0+%"):
        Catalog.build(None, [(["a"], None), (["b"], None), None], domains)


@pytest.mark.parametrize(
    ("one", "message"),
    [
        ((["a", "b"], [1.0, 0.0]), "data blend: weight 0.0 of 'b' must be positive"),
        ((["a", "b"], [1.0, math.nan]), "weight nan of 'b'"),
        ((["a", "30", "b"], None), "'30' is taken for prefix 2 of 3, but looks like a weight"),
    ],
)
def test_a_blend_from_a_file_is_checked_too(one: Blend, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Catalog.build(one, None, {})
    with pytest.raises(ConfigError, match=message.replace("data blend", "valid blend")):
        Catalog.build(None, [blend(a=1), one, None], None)


# --- the values of --data-path ----------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens", ["a", "a b", "a b c", "1 a", "1 a 2 b", "1e-3 a .5 b", "1 a 1 a"]
)
def test_sound_data_paths(tokens: str) -> None:
    check_data_path(tokens.split())


def test_a_prefix_may_look_like_a_number_if_it_exists() -> None:
    write("2024")
    check_data_path(["2024"])
    check_data_path(["1", "2024"])
    with pytest.raises(ConfigError, match="'2023' is taken for prefix 1 of 1"):
        check_data_path(["2023"])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ("", "--data-path is empty"),
        ("1 a 2", "'1' is taken for prefix 1 of 3, but looks like a weight"),
        ("30 a b", "'30' is taken for prefix 1 of 3"),
        ("a 30 b 70", "'30' is taken for prefix 2 of 4"),
        ("30 70", "'70' is taken for prefix 1 of 1"),
        ("1 a b c", r"'b' \(value 3\) stands where a weight is expected"),
        ("a b 1 c", r"'a' \(value 1\) stands where a weight is expected"),
        ("1 a 0 b", r"weight '0' \(value 3\) must be positive and finite"),
        ("-1 a 1 b", r"weight '-1' \(value 1\)"),
        ("nan a 1 b", "weight 'nan'"),
        ("1 a inf b", "weight 'inf'"),
    ],
)
def test_data_paths_that_megatron_would_misread(tokens: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_data_path(tokens.split())
    with pytest.raises(ConfigError, match=r"^--valid-data-path"):
        check_data_path(tokens.split(), "--valid-data-path")


# --- files ------------------------------------------------------------------------------------


def test_expand() -> None:
    write("d/b", "d/a", "d/deep/c", "d/e.v2")
    Path("d/notes.txt").touch()
    assert expand("d/*") == expand("d/*.bin") == expand("d/*.idx") == ["d/a", "d/b", "d/e.v2"]
    assert expand("d/**/*") == ["d/a", "d/b", "d/deep/c", "d/e.v2"]
    assert expand("d/[ab]") == ["d/a", "d/b"]
    assert expand("d/x*") == []
    assert expand("not/there") == expand("not/there.bin") == ["not/there"]
    assert expand("s3://bucket/a") == ["s3://bucket/a"]
    with pytest.raises(ConfigError, match=r"'s3://bucket/\*' is a glob in an object store"):
        expand("s3://bucket/*")


def test_check_files() -> None:
    write("d/finance_text_document", "d/web")
    check_files(["d/finance_text_document", "./d/web", "s3://bucket/x"])
    for wrong, hint in (
        ("d/finance", "d/finance_text_document"),
        ("d/fnance_text_document", "d/finance_text_document"),
        ("d/web.bin", "d/web"),
        ("dd/web", "d"),
    ):
        with pytest.raises(ConfigError, match=f"'{wrong}.idx' does not exist; did .* '{hint}'"):
            check_files(["d/web", wrong])
    with pytest.raises(ConfigError, match=r"'x/y\.idx' does not exist$"):
        check_files(["x/y"])


def test_check_files_names_a_lone_missing_bin_and_counts_the_rest() -> None:
    write("d/web")
    Path("d/web.bin").unlink()
    with pytest.raises(ConfigError, match=r"'d/web\.bin' does not exist$"):
        check_files(["d/web"])
    with pytest.raises(ConfigError, match="and 4 more"):
        check_files([f"x{i}" for i in range(9)])


def test_a_glob_without_matches_suggests_what_is_there() -> None:
    write("data/finance/a", "data/finance/b")
    for pattern, hint in (
        ("data/finace/*", r"; did you mean 'data/finance'\?$"),
        ("data/finance/c*", r"matches no \.idx file$"),
        ("data/finance/*.jsonl", r"; did you mean 'data/finance/a', 'data/finance/b'\?$"),
    ):
        with pytest.raises(ConfigError, match=hint):
            data_path_arguments(config(f=(1, [pattern])))


def test_count_tokens() -> None:
    write("x", tokens=5)
    assert count_tokens("x") == 5
    with pytest.raises(ConfigError, match=r"'y' cannot be read: .*y\.bin"):
        count_tokens("y")
    with pytest.raises(ConfigError, match=r"in an object store: give the blend by --data-path"):
        count_tokens("msc://profile/y")


# --- the blend that a config supplies ---------------------------------------------------------


def test_a_weight_is_divided_by_tokens() -> None:
    write("g/small", tokens=10)
    write("g/large", tokens=30)
    # One prefix alone needs no size, so no files either.
    domains = config(general=(5, ["g/*"]), finance=(1, ["s3://bucket/f"]))
    assert data_path_arguments(domains) == [
        *("--data-path", "3.75", "g/large", "1.25", "g/small"),
        *("1.0", "s3://bucket/f"),
    ]


def test_without_weights_all_are_mixed_by_tokens() -> None:
    write("g/a", tokens=10)
    write("f", tokens=30)
    assert data_path_arguments(config(f=["f"], g=["g/*"])) == [
        *("--data-path", "30.0", "f", "10.0", "g/a")
    ]


def test_a_prefix_listed_twice_is_supplied_once() -> None:
    write("g/a", "g/b")
    assert data_path_arguments(config(g=(1, ["g/b", "g/*"])))[2::2] == ["g/b", "g/a"]


def test_a_prefix_without_tokens_is_refused() -> None:
    write("g/a")
    write("g/none", tokens=0)
    with pytest.raises(ConfigError, match="'g/none' holds no tokens"):
        data_path_arguments(config(g=(1, ["g/*"])))


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(st.floats(1e-6, 1e6), st.lists(st.integers(1, 10**4), min_size=1, max_size=4)),
        min_size=1,
        max_size=4,
    )
)
def test_what_a_config_supplies_agrees_with_it(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[float, list[int]]]
) -> None:
    root = tmp_path_factory.mktemp("supply")
    for i, (_, sizes) in enumerate(drawn):
        for j, tokens in enumerate(sizes):
            write(f"{root}/{i}/{j}", tokens=tokens)
    domains = config(
        **{f"d{i}": (weight, [f"{root}/{i}/*"]) for i, (weight, _) in enumerate(drawn)}
    )
    values = data_path_arguments(domains)[1:]
    check_data_path(values)
    weights, prefixes = [float(value) for value in values[::2]], values[1::2]
    Catalog.build((prefixes, weights), None, domains)
    per_token = defaultdict(set)
    for weight, prefix in zip(weights, prefixes, strict=True):
        per_token[Path(prefix).parent.name].add(weight / count_tokens(prefix))
    for rates in per_token.values():
        assert max(rates) == pytest.approx(min(rates), rel=1e-12)


def test_the_work_grows_with_the_domains_not_with_their_pairs() -> None:
    """In the processor's time, of which waiting is no part, and against itself: no fixed limit."""

    def seconds(count: int) -> float:
        write(*(f"{count}/{i}/x_text_document" for i in range(count)))
        domains = config(**{f"d{i}": (1 + i % 7, [f"{count}/{i}/*"]) for i in range(count)})
        spent = []
        for _ in range(3):
            start = time.thread_time()
            values = data_path_arguments(domains)[1:]
            prefixes, weights = values[1::2], [float(value) for value in values[::2]]
            catalog = Catalog.build((prefixes, weights), None, domains)
            unnamed = Catalog.build((prefixes, None), None, {})
            spent.append(time.thread_time() - start)
        split = catalog.split("train")
        assert split == ById(tuple(range(count)))
        assert unnamed.names == tuple(f"{i}.x" for i in range(count))
        return min(spent)

    assert seconds(1000) < 30 * seconds(100)  # 10 times the domains; they have 100 times the pairs


# --- odd names ----------------------------------------------------------------------------------


def test_a_name_with_brackets_is_tried_before_the_glob() -> None:
    write("wiki[zh]", "wikiz")
    assert expand("wiki[zh]") == ["wiki[zh]"]
    assert expand("wiki[z]") == ["wikiz"]


@pytest.mark.parametrize(("word", "plain"), [("1", "1.0"), ("2.5", "02.5"), ("1e3", "1000.0")])
def test_a_number_that_is_a_dataset_too(word: str, plain: str) -> None:
    write("a", word)
    with pytest.raises(ConfigError, match=f"also a dataset here: write ./{word} .* or {plain} for"):
        check_data_path([word, "a"])
    check_data_path([plain, "a"])
    check_data_path([f"./{word}", "a"])
    assert Catalog.build(([f"./{word}", "a"], None), None, {}).names[1] == "a"


@pytest.mark.parametrize("prefix", ["/", ".", "..", "//"])
def test_a_folder_for_a_prefix(prefix: str) -> None:
    assert len(names(prefix)) == 1

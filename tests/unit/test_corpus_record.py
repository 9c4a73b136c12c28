"""What of a record becomes text: one field, or a template around several."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.prepared import as_bytes, final_files, read_back, write

from domain_pretrain.prepare.corpus import prepare
from domain_pretrain.prepare.errors import PrepareError
from domain_pretrain.prepare.manifest import Manifest
from domain_pretrain.prepare.record import select

pytest.importorskip("megatron.core")

QA = r"Question: {question}\nAnswer: {meta.answer}"


def test_a_template_joins_fields(tmp_path):
    records = [
        {"question": "two and two?", "meta": {"answer": 4}},
        {"question": "sure?", "meta": {"answer": True}},
        {"question": "a {brace} and \\n", "meta.answer": "flat", "meta": {"answer": "nested"}},
        {"question": "none", "meta": {}},
        {"question": "null", "meta": {"answer": None}},
        {"question": "a fraction", "meta": {"answer": 1.5}},
        "a string",
    ]
    source = write(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    bad = []
    options = {"template": QA, "max_bad": 0.6, "on_bad_line": bad.append}
    manifest = prepare([source], tmp_path / "out", "bytes", **options)
    assert read_back(tmp_path / "out") == as_bytes(
        [
            "Question: two and two?\nAnswer: 4",
            "Question: sure?\nAnswer: true",
            "Question: a {brace} and \\n\nAnswer: flat",
        ]
    )
    assert [line.line for line in bad] == [4, 5, 6, 7]
    assert "no key 'meta.answer' among 'question', 'meta'" in bad[0].reason
    assert (manifest.template, manifest.text_key) == (QA, None)
    assert Manifest.load(tmp_path / "out") == manifest


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz"])
def test_a_template_joins_columns(tmp_path, name):
    content = 'meta.answer,id,question\n4,1,"two, and two?"\nno,2,sure?\n'
    source = write(tmp_path / name, content if "csv" in name else content.replace(",", "\t"))
    prepare([source], tmp_path / "out", "bytes", template=QA)
    question = "two, and two?" if "csv" in name else "two\t and two?"
    assert read_back(tmp_path / "out") == as_bytes(
        [f"Question: {question}\nAnswer: 4", "Question: sure?\nAnswer: no"]
    )
    with pytest.raises(PrepareError, match=r"no column 'x' in its first line.*--template"):
        prepare([source], tmp_path / "x", "bytes", template="{x}")


def test_a_template_joins_parquet_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {
        "meta": [{"answer": 4, "x": 1.5}, None, {"answer": None, "x": 0.5}, {"answer": 5}],
        "question": pyarrow.array(["a", "b", "c", None]).dictionary_encode(),
        "sure": [True, False, None, True],
        "text": ["t", "u", "v", "w"],
    }
    source = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table(columns), source)
    bad = []
    options = {"template": QA + " {sure}", "max_bad": 0.8, "on_bad_line": bad.append}
    prepare([source], tmp_path / "out", "bytes", **options)
    assert read_back(tmp_path / "out") == as_bytes(["Question: a\nAnswer: 4 true"])
    assert [(line.line, line.reason) for line in bad] == [
        (line, f"{name!r} is null, not a string, whole number or boolean")
        for line, name in [(2, "meta.answer"), (3, "meta.answer"), (4, "question")]
    ]
    for template, message in [
        ("{meta.x}", "column 'meta.x' is double, not a string, whole number or boolean"),
        ("{meta.y}", "no 'y' of 'meta.y' in column 'meta', a struct"),
        ("{text.y}", "no 'y' of 'text.y' in column 'text', a string"),
        ("{none.y}", "no column 'none'.*--template: meta, question, sure, text"),
        ("{meta}", "column 'meta' is struct.*, not a string, whole number or boolean"),
    ]:
        with pytest.raises(PrepareError, match=message):
            prepare([source], tmp_path / "x", "bytes", template=template)


def test_the_text_may_lie_within(tmp_path):
    records = [{"data": {"text": "a"}}, {"data.text": "b", "data": 1}]
    source = write(tmp_path / "a.jsonl", "".join(json.dumps(r) + "\n" for r in records))
    manifest = prepare([source], tmp_path / "out", "bytes", text_key="data.text")
    assert read_back(tmp_path / "out") == as_bytes(["a", "b"])
    assert manifest.text_key == "data.text"


BROKEN = {
    "{a!r}": r"\{a!r\} is no field",
    "{a:>10}": r"\{a:>10\} is no field",
    "{a:{b}}": "is no field",
    "{a[0]}": "is no field",
    "{a[0]b}": "is no field",
    "{a..b}": "is no field",
    "{ a }": "is no field",
    "{}": "is no field",
    "{": "write a brace that is text twice",
    "a}": "write a brace that is text twice",
    "{{a}}": "names no field",
    "": "names no field",
    r"\q{a}": r"none of \\n, \\t and",
    "{a}\\": r"none of \\n, \\t and",
}


@pytest.mark.parametrize(("template", "message"), BROKEN.items(), ids=BROKEN)
def test_a_broken_template_is_refused_before_anything_is_read(tmp_path, template, message):
    with pytest.raises(PrepareError, match=message) as raised:
        prepare([tmp_path / "none.jsonl"], tmp_path / "out", "bytes", template=template)
    assert str(raised.value).startswith("--template ")


def test_a_template_evaluates_nothing(tmp_path):
    """What str.format would look up in an object is the name of a key here."""
    names = ["a.__class__", "a.__init__.__globals__"]
    source = write(tmp_path / "a.jsonl", json.dumps({"a": "x", names[0]: "key"}))
    prepare([source], tmp_path / "out", "bytes", template=f"{{{names[0]}}}")
    assert read_back(tmp_path / "out") == as_bytes(["key"])
    with pytest.raises(PrepareError, match=f"no key '{names[1]}'"):
        prepare([source], tmp_path / "x", "bytes", template=f"{{{names[1]}}}")


@given(before=st.text(), value=st.text(), after=st.text())
def test_any_text_can_stand_around_a_field(before, value, after):
    def literal(text: str) -> str:
        return text.replace("\\", r"\\").replace("{", "{{").replace("}", "}}")

    selection = select(template=literal(before) + "{x}" + literal(after))
    line = json.dumps({"x": value})
    assert selection.of_line(line) == (before + value + after, "", "")
    assert selection.of_row([value]) == (before + value + after, "", "")


def test_options_that_contradict_each_other(tmp_path):
    text = write(tmp_path / "a.txt", "x")
    for inputs, options, message in [
        ("none", {"text_key": "a", "template": "{b}"}, "--text-key and --template"),
        (text, {"template": "{b}"}, "a text file is one document and has no fields for --template"),
        (text, {"by": "b"}, "a text file is one document and has no fields for --by"),
        (text, {"by": ""}, "--by: names no field"),
    ]:
        with pytest.raises(PrepareError, match=message):
            prepare([inputs], tmp_path / "out", "bytes", **options)
    assert final_files(tmp_path) == []

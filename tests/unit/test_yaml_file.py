"""What is written as YAML is read as it was."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain_pretrain.yaml_file import as_yaml, read_yaml

LIKE_NUMBERS = st.from_regex(r"[-+.0-9eE_]{1,12}", fullmatch=True)
PLAIN = st.text() | LIKE_NUMBERS | st.floats(allow_nan=False) | st.integers() | st.booleans()


@given(st.recursive(PLAIN, st.lists))
@example(["\x85", "a\u2028b", "\u2029", "ü"])
@example(["1e5", "12e45678", "1e-3", 1e-3, 1e17])  # a digest of digits, with one e among them
def test_what_is_written_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, content: Any
) -> None:
    path = tmp_path_factory.mktemp("yaml") / "content.yaml"
    path.write_text(as_yaml({"content": content}), "utf-8")
    assert read_yaml(path) == {"content": content}


def test_keys_stay_in_their_order(tmp_path: Any) -> None:
    content = {"b": 1, "a": {"1e5": 2}}
    (tmp_path / "content.yaml").write_text(as_yaml(content), "utf-8")
    found = read_yaml(tmp_path / "content.yaml")
    assert found == content and list(found) == ["b", "a"]

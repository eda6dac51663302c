"""The card with names that try to be more than names."""

from __future__ import annotations

import pytest

from pipeline.proof.card import _code, _table


@pytest.mark.parametrize(
    "name", ["a`<img src=x onerror=alert(1)>`", "a|b", "*bold*", "[link](x)", "two\r\nlines", "\\|"]
)
def test_a_name_means_nothing_but_itself(name: str) -> None:
    shown = _code(name)
    inside = shown.removeprefix("<code>").removesuffix("</code>")
    assert len(inside) == len(shown) - len("<code></code>")
    assert not set(inside) & set("<>`|*[]\\\r\n")
    assert _table(["class"], [(shown,)]).count("|") == 3 * 2

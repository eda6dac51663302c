"""``biotune backbones``: what people look at before they choose a network."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from stages.backbones import main


def test_it_lists_the_papers_networks_torchvisions_and_how_to_name_timms() -> None:
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 0, result.output
    for name in ("efficientnet_lite0", "densenet121", "convnext_tiny", "timm/NAME"):
        assert name in result.output


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("inception_v3", ["stem", "Mixed_6e", "AuxLogits", "fc"]),
        ("mobilenet_v3_small", ["classifier"]),
        ("timm/convnext_atto", ["stem", "stages.3", "head"]),
    ],
)
def test_it_shows_the_blocks_of_one(name: str, blocks: list[str]) -> None:
    result = CliRunner().invoke(main, [name])
    assert result.exit_code == 0, result.output
    for block in blocks:
        assert f"│ {block} " in result.output


def test_an_unknown_name_is_one_line() -> None:
    result = CliRunner().invoke(main, ["densenet112"])
    assert result.exit_code == 1
    assert result.output.startswith(
        "Error: model.backbone: unknown backbone 'densenet112'; did you"
    )
    assert "densenet121" in result.output

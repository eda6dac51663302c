"""``biotune backbones``: which networks there are, and their blocks."""

from __future__ import annotations

import click

from stages.options import ContainedCommand


@click.command("backbones", cls=ContainedCommand)
@click.argument("name", required=False)
def main(name: str | None) -> None:
    """List what model.backbone may be, or show the blocks of one.

    \b
    Examples:
      biotune backbones
      biotune backbones densenet121
      biotune backbones timm/convnext_atto
    """
    from pipeline.backbones import list_backbones, show_backbone

    if name is None:
        list_backbones()
    else:
        show_backbone(name)


if __name__ == "__main__":
    main()

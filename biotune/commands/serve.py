"""``biotune serve``: an exported model over HTTP, with a page to try it on."""

from __future__ import annotations

from pathlib import Path

import click

from biotune.commands.command import Command
from biotune.commands.options import device_option, model_argument


@click.command(cls=Command)
@model_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0 for all addresses.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535))
@device_option
@click.option(
    "--threads",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="That compute a batch; 0 for one per core.",
)
@click.option(
    "--max-batch",
    default=32,
    show_default=True,
    type=click.IntRange(min=1),
    help="Images of concurrent requests that are computed together.",
)
@click.option(
    "--max-wait-ms",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Longest that an image waits for others that are still being decoded.",
)
@click.option(
    "--queue",
    default=512,
    show_default=True,
    type=click.IntRange(min=1),
    help="Images accepted and not yet answered; more are refused with 503.",
)
@click.option(
    "--max-body",
    default=32.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="MiB of one request; larger ones are refused with 413.",
)
@click.option(
    "--max-pixels",
    default=25_000_000,
    show_default=True,
    type=click.IntRange(min=1),
    help="Of one image, checked before decoding; larger ones are refused with 422.",
)
@click.option(
    "--max-files",
    default=64,
    show_default=True,
    type=click.IntRange(min=1),
    help="Images in one request; more are refused with 413.",
)
@click.option(
    "--body-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds for a request to arrive; slower ones are refused with 408.",
)
@click.option(
    "--drain",
    default=1.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Seconds after SIGTERM in which /readyz says 503 and requests are still taken.",
)
def main(
    model: Path,
    host: str,
    port: int,
    device: str,
    threads: int,
    max_wait_ms: float,
    max_body: float,
    body_timeout: float,
    drain: float,
    **limits: int,
) -> None:
    """Serve an exported MODEL: a page at /, POST /predict for programs.

    Programs send image files as a multipart form (files), or one as the body, and get JSON:
    GET /openapi.json describes it. For operators there are GET /model, /healthz, /readyz and,
    for Prometheus, /metrics. There are no accounts and no TLS: before you let others in, put a
    proxy with both before it.

    Ctrl-C or SIGTERM ends it: what was accepted is answered first.

    \b
    Examples:
      biotune serve model.onnx
      biotune serve model.onnx --host 0.0.0.0 --port 80 --device cuda
      curl -F files=@a.jpg -F files=@b.png 'http://127.0.0.1:8000/predict?top_k=3'
      curl -H 'Content-Type: image/jpeg' --data-binary @a.jpg http://127.0.0.1:8000/predict
    """
    try:
        from biotune.serving.app import create_app
        from biotune.serving.limits import Limits
        from biotune.serving.server import serve
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"serving needs {error.name}: pip install 'biotune[serve]'"
        ) from error
    from biotune.deployment.predictor import Predictor

    predictor = Predictor(model, device=device, threads=threads)
    checked = Limits(
        max_wait=max_wait_ms / 1000,
        max_body=round(max_body * 2**20),
        body_timeout=body_timeout,
        **limits,
    )
    click.echo(f"Serving {model} with {predictor.provider}; Ctrl-C ends it.", err=True)
    serve(create_app(predictor, checked), host, port, drain)

"""How fast does a classifier answer, in what memory: torch eager, ONNX, int8, and as a server?

All of them answer the same test images, as they were prepared. Each is a process of its own, so
that its memory is its own; they take turns, so that a drift of the machine hits all alike, and
each has the same number of threads. One image a call gives the latency, 32 a call the throughput.

Clients of the server send one PNG after the other, each over a connection of its own. They run on
the same cores as the server and take time from it, as they would not in use.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

# The processes that are measured import this module too, and ONNX Runtime's are to be without
# torch: what needs it is imported where it is used.

CLIENTS = (1, 8, 32)
LATENCY_CALLS, THROUGHPUT_CALLS, BATCH = 50, 5, 32

Answer = Callable[[NDArray[np.uint8]], Any]
Loader = Callable[[Path, int], Answer]


@dataclass
class Timing:
    """One turn: milliseconds of calls with one image, images a second with 32, resident MiB."""

    milliseconds: list[float]
    images_a_second: float
    mib: float


@dataclass
class Served:
    """One turn of a server under so many clients."""

    milliseconds: list[float]
    images_a_second: float


def torch_eager(weights: Path, threads: int) -> Answer:
    """The trained network with its resize and softmax, as the exporter sees it."""
    import torch

    from biotune.deployment.export import Classifier
    from biotune.finetuning.checkpoints import load_model

    torch.set_num_threads(threads)
    backbone, card = load_model(weights)
    classifier = Classifier(backbone, card.image_size).eval()

    def answer(images: NDArray[np.uint8]) -> Any:
        with torch.inference_mode():
            return classifier(torch.from_numpy(images)).numpy()

    return answer


def onnx_runtime(model: Path, threads: int) -> Answer:
    """An exported model, as programs use it."""
    from biotune.deployment.predictor import Predictor

    predictor = Predictor(model, device="cpu", threads=threads)
    return lambda images: predictor.probabilities(list(images))


class _Measured:
    """What a process measures, loaded once when it starts."""

    answer: Answer

    @classmethod
    def load(cls, loader: Loader, file: Path, threads: int) -> None:
        cls.answer = staticmethod(loader(file, threads))


def measure(images: NDArray[np.uint8]) -> Timing:
    """One turn, in the process of what is measured.

    Args:
        images: uint8 [n, height, width, 3], at least 32.
    """

    def seconds(batch: NDArray[np.uint8]) -> float:
        begin = time.perf_counter()
        _Measured.answer(batch)
        return time.perf_counter() - begin

    _Measured.answer(images[:BATCH])
    one_by_one = [images[n % len(images)][None] for n in range(LATENCY_CALLS)]
    latencies = [1000 * seconds(image) for image in one_by_one]
    throughput = BATCH / float(
        np.median([seconds(images[:BATCH]) for _ in range(THROUGHPUT_CALLS)])
    )
    return Timing(latencies, throughput, resident_mib("self"))


def resident_mib(process: int | str) -> float:
    """Memory that a process holds; of Linux."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def serving(model: Path, threads: int) -> Iterator[tuple[int, int]]:
    """A server on the loopback interface; its process id and port."""
    command = [sys.executable, "-m", "biotune", "serve", str(model), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--threads", str(threads)], stderr=subprocess.PIPE, text=True
    )
    try:
        said = ""
        while not said.startswith("http://"):
            said = process.stderr.readline() if process.stderr else ""
            if not said:
                raise RuntimeError(f"the server of {model} ended with {process.wait()}")
        yield process.pid, int(said.rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(timeout=30)


def ask(port: int, files: Sequence[bytes], clients: int, seconds: float) -> Served:
    """Let clients send one image after the other for so long."""
    ready = threading.Barrier(clients)
    headers = {"Content-Type": "image/png"}

    def client(number: int) -> list[float]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.connect()
        ready.wait()
        taken: list[float] = []
        end = time.perf_counter() + seconds
        while (begin := time.perf_counter()) < end:
            connection.request(
                "POST", "/predict", files[(number + len(taken)) % len(files)], headers
            )
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise RuntimeError(f"the server answered {response.status}")
            taken.append(1000 * (time.perf_counter() - begin))
        connection.close()
        return taken

    with ThreadPoolExecutor(clients) as threads:
        begin = time.perf_counter()
        taken = [latency for each in threads.map(client, range(clients)) for latency in each]
        return Served(taken, len(taken) / (time.perf_counter() - begin))


Contenders = dict[str, tuple[Loader, Path]]


def contenders(artifacts: Path) -> Contenders:
    """What there is to measure. An int8 model is only there if it was accurate enough."""
    ways: Contenders = {
        "torch eager": (torch_eager, artifacts / "model" / "model.safetensors"),
        "ONNX fp32": (onnx_runtime, artifacts / "deploy" / "model.onnx"),
    }
    for _, file in ways.values():
        if not file.is_file():
            raise click.ClickException(f"there is no {file}: make run")
    int8 = artifacts / "deploy" / "model.int8.onnx"
    if int8.is_file():
        return ways | {"ONNX int8": (onnx_runtime, int8)}
    click.echo(f"ONNX int8 is left out: there is no {int8}")
    return ways


def measure_calls(
    ways: Contenders, images: NDArray[np.uint8], threads: int, rounds: int
) -> dict[str, list[Timing]]:
    """Every contender's turns, one after the other in each round."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                ProcessPoolExecutor(1, spawn, _Measured.load, (loader, file, threads))
            )
            for name, (loader, file) in ways.items()
        }
        turns: dict[str, list[Timing]] = {name: [] for name in processes}
        for _ in range(rounds):
            for name, process in processes.items():
                turns[name].append(process.submit(measure, images).result())
    return turns


def measure_servers(
    ways: Contenders, files: Sequence[bytes], threads: int, rounds: int, seconds: float
) -> tuple[dict[str, dict[int, list[Served]]], dict[str, float]]:
    """Turns of a server of each ONNX model, by number of clients; and its MiB at the end."""
    models = {n: f for n, (loader, f) in ways.items() if loader is onnx_runtime}
    with ExitStack() as stack:
        servers = {n: stack.enter_context(serving(file, threads)) for n, file in models.items()}
        turns: dict[str, dict[int, list[Served]]] = {n: {c: [] for c in CLIENTS} for n in servers}
        for _, port in servers.values():
            ask(port, files, 8, 1.0)
        for _ in range(rounds):
            for name, (_, port) in servers.items():
                for clients in CLIENTS:
                    turns[name][clients].append(ask(port, files, clients, seconds))
        memory = {name: resident_mib(process) for name, (process, _) in servers.items()}
    return turns, memory


def as_png(image: NDArray[np.uint8]) -> bytes:
    """An image as the content of a PNG file."""
    file = BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def call_rows(turns: dict[str, list[Timing]]) -> list[dict[str, Any]]:
    """Figures of each contender over all its turns."""
    rows = []
    for name, each in turns.items():
        latencies = [latency for turn in each for latency in turn.milliseconds]
        rows.append(
            {
                "way": name,
                "1 image, median ms": float(np.median(latencies)),
                "p95 ms": float(np.percentile(latencies, 95)),
                "32 images, images a second": float(np.median([t.images_a_second for t in each])),
                "memory, MiB": each[-1].mib,
            }
        )
    return rows


def server_rows(
    turns: dict[str, dict[int, list[Served]]], memory: dict[str, float]
) -> list[dict[str, Any]]:
    """Figures of each server and number of clients over all its turns."""
    rows = []
    for name, by_clients in turns.items():
        for clients, each in by_clients.items():
            latencies = [latency for turn in each for latency in turn.milliseconds]
            rows.append(
                {
                    "served": f"{name}, {clients} client{'s' if clients > 1 else ''}",
                    "images a second": float(np.median([t.images_a_second for t in each])),
                    "median ms": float(np.median(latencies)),
                    "p95 ms": float(np.percentile(latencies, 95)),
                    "memory, MiB": memory[name],
                }
            )
    return rows


@click.command()
@click.option(
    "--artifacts",
    default=Path("artifacts"),
    show_default=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="What `make run` left.",
)
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(1))
@click.option(
    "--seconds", default=3.0, show_default=True, help="Of each turn of a server and its clients."
)
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write them here.")
def main(
    artifacts: Path, threads: int, rounds: int, seconds: float, json_file: Path | None
) -> None:
    """Latency, throughput and memory of an exported model; two Markdown tables.

    \b
    Examples:
      python benchmarks/inference.py
      python benchmarks/inference.py --threads 2 --rounds 1
    """
    from benchmarks.reporting import describe_machine, markdown_table, one_line, options_of_command
    from biotune.data import PreparedImages

    prepared = PreparedImages.open(artifacts / "prepared")
    images = np.asarray(prepared.images[prepared.indices("test")[: 4 * BATCH]])
    if len(images) < BATCH:
        raise click.ClickException(f"there are {len(images)} test images, {BATCH} are needed")
    ways = contenders(artifacts)
    calls = call_rows(measure_calls(ways, images, threads, rounds))
    turns, memory = measure_servers(ways, list(map(as_png, images)), threads, rounds, seconds)
    served = server_rows(turns, memory)
    machine, options = describe_machine(), options_of_command()
    del machine["threads"]  # of this process, which measures nothing
    size = f"images of {images.shape[2]} x {images.shape[1]} pixels"
    click.echo(f"{one_line(machine)}\n{one_line(options)}; {size}")
    for rows in (calls, served):
        cells = [[f"{v:.4g}" if isinstance(v, float) else v for v in r.values()] for r in rows]
        click.echo(f"\n{markdown_table(list(rows[0]), cells)}")
    if json_file is not None:
        content = {"machine": machine, "options": one_line(options), "calls": calls}
        json_file.write_text(json.dumps(content | {"served": served}, indent=1) + "\n")


if __name__ == "__main__":
    main()

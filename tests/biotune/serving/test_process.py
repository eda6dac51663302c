"""Many clients at a time, and the end: nothing that was accepted is lost."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from biotune.deployment.predictor import Prediction
from tests.imports import ROOT
from tests.serve_process import ServeProcess

Digits = list[tuple[str, bytes]]


def test_200_clients_at_a_time_are_answered_right(
    server: ServeProcess, digits: Digits, expected: dict[str, Prediction]
) -> None:
    begin = threading.Barrier(200)

    def ask(number: int) -> tuple[str, str]:
        name, content = digits[number % len(digits)]
        begin.wait(timeout=60)
        return name, server.post(content).json["images"][0]["label"]

    with ThreadPoolExecutor(200) as clients:
        answers = list(clients.map(ask, range(200)))
    assert answers == [(name, expected[name].ranked[0][0]) for name, _ in answers]
    batches = dict(
        line.rsplit(" ", 1)
        for line in server.get("/metrics").body.decode().splitlines()
        if line.startswith("biotune_batch_images_")
    )
    assert float(batches["biotune_batch_images_sum"]) > float(batches["biotune_batch_images_count"])


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_the_end_under_load_loses_no_accepted_request(
    served_model: Path, digits: Digits, sig: int
) -> None:
    """Requests whose whole body was sent before the signal are answered; the exit code is 0."""
    with ServeProcess(served_model) as server, ThreadPoolExecutor(60) as clients:
        form = digits * 2
        sent = [clients.submit(server.post_form, form) for _ in range(60)]
        while _in_work(server) < 20:
            time.sleep(0.01)
        accepted = _in_work(server)
        begin = time.monotonic()
        code, said = server.stop(sig)
        took = time.monotonic() - begin
        answers = [answer.result().status for answer in sent if answer.exception() is None]
    assert (code, said) == (0, "")
    assert took < 12
    assert set(answers) <= {200, 503}
    assert answers.count(200) * len(form) >= accepted
    if sig == signal.SIGTERM:  # there is a second for those who were on their way
        assert len(answers) == 60


def _in_work(server: ServeProcess) -> int:
    lines = server.get("/metrics").body.decode().splitlines()
    return int(float(next(x for x in lines if x.startswith("biotune_queue_images")).split()[1]))


def test_while_it_drains_it_is_not_ready_and_still_answers(
    served_model: Path, digits: Digits
) -> None:
    with ServeProcess(served_model, ("--drain", "3")) as server:
        server.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 3
        while (ready := server.get("/readyz")).status == 200:
            assert time.monotonic() < deadline
        assert (ready.status, ready.json["detail"]) == (503, "draining")
        reply = server.post(digits[0][1])
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert server.process.wait(timeout=20) == 0
        with pytest.raises(ConnectionRefusedError):
            server.get("/healthz")


def test_those_who_stall_are_hung_up_on(server: ServeProcess) -> None:
    """One never ends its request's head, the other never reads what it asked for."""
    address = ("127.0.0.1", server.port)
    with (
        socket.create_connection(address, 30) as talking,
        socket.create_connection(address, 30) as deaf,
    ):
        talking.sendall(b"POST /predict HTTP/1.1\r\nHost:")
        deaf.setblocking(False)
        asked = 0
        with suppress(BlockingIOError):
            while asked < 50_000:
                deaf.sendall(b"GET /page.js HTTP/1.1\r\nHost: x\r\n\r\n")
                asked += 1
        begin = time.monotonic()
        assert talking.recv(1) == b""
        assert 5 < time.monotonic() - begin < 20
        time.sleep(3)
        deaf.settimeout(10)
        got = 0
        with suppress(ConnectionResetError):
            while piece := deaf.recv(2**20):
                got += len(piece)
        assert got < asked * 5000
    assert server.get("/healthz").status == 200


def _serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "biotune", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_a_port_that_is_taken_is_one_message(server: ServeProcess, served_model: Path) -> None:
    done = _serve(str(served_model), "--port", str(server.port))
    assert done.returncode == 1
    assert f"Error: cannot listen at 127.0.0.1, port {server.port} (Address" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_that_contradict_are_one_message(served_model: Path) -> None:
    done = _serve(str(served_model), "--queue", "8")
    assert done.returncode == 1
    assert "Error: a queue of 8 images cannot take the 64 files" in done.stderr


def test_a_model_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    done = _serve(str(tmp_path / "no.onnx"))
    assert done.returncode == 1
    assert "Error: there is no model" in done.stderr


def test_the_server_needs_no_torch_mlflow_or_dvc(served_model: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from biotune.deployment.predictor import Predictor\n"
        "from biotune.serving import app, limits, server\n"
        f"app.create_app(Predictor(Path({str(served_model)!r})), limits.Limits())\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not {"torch", "mlflow", "dvc", "sklearn", "onnx"} & set(done.stdout.split())

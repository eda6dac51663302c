"""What goes to MLflow: a run for each pipeline, below it its stages, below search its genomes.

Tracking can never stop or delay a stage: what is tracked is first on disk
(:mod:`pipeline.tracking.outbox`), and a thread sends it (:mod:`pipeline.tracking.sender`), when
MLflow answers. What could not be sent is kept, and sent by the next stage or by ``biotune sync``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

from pipeline.home import IMAGE_VARIABLE
from pipeline.params import Params
from pipeline.tracking.database import destination, own_database
from pipeline.tracking.origin import IMAGE_TAG, origin_tags
from pipeline.tracking.outbox import Outbox, StageRecords
from pipeline.tracking.registry import ANSWERS_FILE, MODEL_FOLDER, Registered
from pipeline.tracking.sender import Sender

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

PATIENCE: Final = {"server": 10.0, "own file": 300.0, "interrupted": 5.0}
"""Seconds that a stage waits at its end for the next record to arrive. A file of one's own is
written to for sure, and MLflow may have to make it first."""

_LONGEST_REASON = 1000
"""Characters of an error's text that are tracked."""


@dataclass(frozen=True)
class TrackedRun:
    """One genome's run: what it was, and how it went.

    Attributes:
        name: shown in the UI.
        params: facts known before training.
        metrics: last values.
        curves: metric name → value after each epoch.
        tags: origin, outcome and the like.
        seconds: how long it trained; the run is dated back by as much.
    """

    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    curves: Mapping[str, Iterable[float]]
    tags: Mapping[str, str]
    seconds: float


class StageRun:
    """The MLflow run of one stage; made by :func:`tracked_stage`.

    Every method returns as soon as its record is on disk.

    Raises:
        OSError: in every method, if the home folder cannot be written.
    """

    def __init__(self, records: StageRecords, on_record: Callable[[], object]) -> None:
        self._records, self._on_record = records, on_record

    @property
    def key(self) -> str:
        """The tag ``biotune.key`` of this run in MLflow."""
        return f"{self._records.name}/0"

    def metrics(self, metrics: Mapping[str, Any]) -> None:
        """Log final figures, nested ones under dotted names; what is no number is left out."""
        self._add("metrics", _numbers(metrics))

    def tags(self, tags: Mapping[str, str]) -> None:
        """Say of the stage's run what is no number."""
        self._add("tags", tags)

    def artifacts(self, files: Iterable[Path], folder: str | None = None) -> None:
        """Upload files as they are now, into a folder of the run."""
        for file in files:
            self._add("file", {"file": self._records.keep_file(file), "folder": folder})

    def text(self, name: str, text: str) -> None:
        """Upload a text as a file."""
        with TemporaryDirectory() as scratch:
            file = Path(scratch, name)
            file.write_text(text, encoding="utf-8")
            self.artifacts([file])

    def figures(self, draw: Callable[[], Mapping[str, Figure]]) -> None:
        """Draw pictures, file name → matplotlib figure, and upload them."""
        with TemporaryDirectory() as scratch:
            for name, figure in draw().items():
                figure.savefig(Path(scratch, name))
                self.artifacts([Path(scratch, name)], "plots")

    def child(self, run: TrackedRun) -> None:
        """Add a finished run below this one."""
        self._add("child", asdict(run))

    def model(self, folder: Path, registered: Registered) -> None:
        """Upload a model, a folder in MLflow's format, and register it as a new version."""
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            inside = Path(MODEL_FOLDER, file.relative_to(folder)).parent
            self.artifacts([file], inside.as_posix())
        self.text(ANSWERS_FILE, registered.answers())
        tags = {**registered.tags(), **origin_tags()}
        self._add("model", {**asdict(registered), "tags": tags})

    def end(self, status: str) -> None:
        """Close the run as ``FINISHED``, ``FAILED`` or ``KILLED``."""
        self._add("end", {"status": status})

    def _add(self, kind: str, content: Mapping[str, Any]) -> None:
        self._records.append(kind, content)
        self._on_record()


@contextmanager
def tracked_stage(stage: str, params: Params, fingerprint: str, home: Path) -> Iterator[StageRun]:
    """The run of one stage, below the run of its pipeline, which is made by whoever comes first.

    The store is ``MLFLOW_TRACKING_URI``, by default a SQLite file in the home folder. On leaving,
    what is still to be sent is waited for, as :data:`PATIENCE` and
    :data:`pipeline.tracking.sender.LONGEST_WAIT` say.

    Args:
        stage: ``search``, ``finetune``, ``evaluate`` or ``export``.
        params: all of ``params.yaml``; with the data they tell one pipeline from another.
        fingerprint: of the prepared images.
        home: see :func:`pipeline.home.biotune_home`.

    Raises:
        OSError: if the home folder cannot be written.
    """
    uri = tracking_uri(home)
    outbox = Outbox(home)
    description = _description(stage, params, fingerprint)
    records = outbox.begin(stage, destination(uri, home), description)
    sender = Sender(outbox, records, uri)
    sender.start()
    run = StageRun(records, sender.notice)
    patience = PATIENCE["own file" if uri.startswith("sqlite:") else "server"]
    try:
        if os.environ.get(IMAGE_VARIABLE):  # each stage may run in another
            run.tags({IMAGE_TAG: os.environ[IMAGE_VARIABLE]})
        yield run
        run.end("FINISHED")
    except BaseException as error:
        failed = isinstance(error, Exception)
        if not failed:
            patience = PATIENCE["interrupted"]
        with suppress(OSError):  # of a disk that is full, which is what ended the stage
            if failed:
                run.tags({"biotune.reason": str(error)[:_LONGEST_REASON]})
            run.end("FAILED" if failed else "KILLED")
        raise
    finally:
        with suppress(OSError):  # the same
            sender.finish(patience)
            _say_what_is_left(stage, sender, outbox)
        if not sender.is_alive():
            outbox.close()


def _say_what_is_left(stage: str, sender: Sender, outbox: Outbox) -> None:
    if sender.left:
        why = f" ({str(sender.error).partition(chr(10))[0]})" if sender.error else ""
        log.warning(
            "%d records of the %s stage are not in MLflow yet%s. They are kept in %s: the next "
            "stage sends them, or `biotune sync`",
            sender.left,
            stage,
            why,
            outbox.folder,
        )
    elif left := sum(1 for _ in outbox.left_behind()):
        log.warning(
            "what %d earlier stages tracked is not in MLflow yet: `biotune sync` sends it to %s",
            left,
            destination(tracking_uri(outbox.home), outbox.home),
        )


def tracking_uri(home: Path) -> str:
    """Where runs go."""
    return os.environ.get("MLFLOW_TRACKING_URI") or own_database(home)


def pipeline_id(params: Params, fingerprint: str) -> str:
    """Hash of a pipeline's parameters and data, 16 hex digits.

    The machine's section is left out: the same search on another number of workers is the same.
    """
    described = params.model_dump(mode="json", exclude={"runtime", "tracking"})
    text = json.dumps([described, fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _description(stage: str, params: Params, fingerprint: str) -> dict[str, Any]:
    """All that is needed to make the stage's run, at any later time."""
    section = params.model_dump(mode="json", include={stage, "model", "prepare", "runtime"})
    return {
        "stage": stage,
        "pipeline": pipeline_id(params, fingerprint),
        "experiment": params.tracking.experiment,
        "tags": origin_tags(),
        "params": {
            f"{name}.{key}": str(value)
            for name, keys in section.items()
            for key, value in keys.items()
        },
    }


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float):
            flat[prefix + key] = value
    return flat

"""The application: images in, classes and probabilities out, and what operators ask a server."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from importlib.resources import files
from io import BytesIO
from typing import Annotated, Any, Final

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from numpy.typing import NDArray
from PIL import Image
from starlette.requests import ClientDisconnect

from biotune.data.decoding import UnusableImageError
from biotune.deployment.predictor import Predictor
from biotune.serving.answers import Answer, Answers, Ranked, Refusal
from biotune.serving.batching import Batcher, QueueFullError
from biotune.serving.bodies import FIELD, BodyReader
from biotune.serving.guard import Guard
from biotune.serving.limits import Limits
from biotune.serving.metrics import CONTENT_TYPE, Metrics

logger = logging.getLogger(__name__)

PAGE: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}

_BUSY: Final = {"Retry-After": "1"}

_BODY: Final = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FIELD],
                    "properties": {
                        FIELD: {"type": "array", "items": {"type": "string", "format": "binary"}}
                    },
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    }
}


class Service:
    """One model, its queue, and whether it takes requests; its methods are the endpoints.

    Attributes:
        draining: set by the server when it is about to end.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.draining = False
        self._ready = False
        self._predictor, self._limits = predictor, limits
        self._bodies = BodyReader(limits)
        self.metrics = Metrics()
        self._batcher = Batcher(predictor, limits, self.metrics)
        self._facts = _facts(predictor, limits)
        self.metrics.watch_queue(lambda: self._batcher.waiting)
        self.metrics.describe_model(
            {k: str(self._facts[k]) for k in ("file", "sha256", "provider")}
        )

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """Threads are there while the server is; what was accepted is finished before the end."""
        self._batcher.start()
        warming = asyncio.create_task(self._warm_up())
        yield
        await asyncio.to_thread(self._batcher.stop)
        warming.cancel()

    async def _warm_up(self) -> None:
        # The first inference allocates and, on a GPU, compiles: no client is to wait for that.
        side, blank = self._predictor.image_size, BytesIO()
        Image.new("RGB", (side, side)).save(blank, "PNG")
        try:
            for answer in self._batcher.submit([blank.getvalue()]):
                await asyncio.wrap_future(answer)
            self._ready = True
        except Exception:
            logger.exception("the model cannot classify a blank image; the server stays not ready")

    async def predict(
        self, request: Request, top_k: Annotated[int, Query(ge=1, description="Classes.")] = 5
    ) -> Response:
        """Classify one image (the body) or several (a form), each with its most probable classes.

        An image that cannot be used is answered with the reason, beside the others; if none can
        be used, the status is 422.
        """
        try:
            with self._bodies.holding() as held:
                if not self._batcher.room():
                    raise QueueFullError  # before the body is read
                uploads = await self._bodies.read(request, held)
                rows = await self._answers([upload.content for upload in uploads])
        except QueueFullError as error:
            full = f"the queue of {self._limits.queue} images is full: try again"
            raise HTTPException(503, full, _BUSY) from error
        except ClientDisconnect as error:
            raise HTTPException(400, "the body ended early") from error
        named = zip(uploads, rows, strict=True)
        answers = Answers(images=[self._answer(upload.name, row, top_k) for upload, row in named])
        reasons = [answer.error for answer in answers.images if answer.error]
        if len(reasons) < len(rows):
            return _json(answers)
        detail = reasons[0] if len(rows) == 1 else f"none of the {len(rows)} images can be used"
        return _json(Refusal(detail=detail, images=answers.images), 422)

    async def _answers(self, contents: list[bytes]) -> list[_Outcome]:
        submitted: list[Future[NDArray[np.float32]]] = self._batcher.submit(contents)
        waiting = map(asyncio.wrap_future, submitted)
        outcomes: list[_Outcome] = []
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, UnusableImageError):
                self.metrics.image("failed")
                raise HTTPException(500, "the model failed: the server's log says why")
            outcomes.append(outcome)
        return outcomes

    def _answer(self, name: str | None, outcome: _Outcome, top_k: int) -> Answer:
        if isinstance(outcome, UnusableImageError):
            self.metrics.image("unusable")
            return Answer(name=name, error=str(outcome))
        self.metrics.image("classified")
        ranked = [Ranked(label=n, probability=p) for n, p in self._predictor.rank(outcome)[:top_k]]
        best = ranked[0]
        return Answer(name=name, label=best.label, probability=best.probability, classes=ranked)

    async def model(self) -> JSONResponse:
        """What the model is, what computes it, and the limits of this server."""
        return JSONResponse(self._facts)

    async def healthz(self) -> dict[str, str]:
        """Whether the process works."""
        return {"status": "ok"}

    async def readyz(self) -> dict[str, str]:
        """Whether requests should be sent here: 503 before the first inference, and at the end."""
        if self.draining or not self._ready:
            raise HTTPException(503, "draining" if self.draining else "warming up", _BUSY)
        return {"status": "ready"}

    async def prometheus(self) -> Response:
        """Counters in Prometheus' text format."""
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)


_Outcome = NDArray[np.float32] | UnusableImageError


def create_app(predictor: Predictor, limits: Limits) -> FastAPI:
    """An application that answers with one model.

    Args:
        predictor: the model.
        limits: what a client may ask of it.

    Returns:
        The application; its ``state.service`` is the :class:`Service`.
    """
    service = Service(predictor, limits)
    # The documentation pages of FastAPI load scripts from elsewhere; /openapi.json stays.
    app = FastAPI(title="BioTune", lifespan=service.running, docs_url=None, redoc_url=None)
    app.state.service = service
    refusals: dict[int | str, dict[str, Any]] = {
        status: {"model": Refusal} for status in (400, 408, 413, 415, 422, 503)
    }
    app.add_api_route(
        "/predict",
        service.predict,
        methods=["POST"],
        response_model=Answers,
        responses=refusals,
        openapi_extra=_BODY,
    )
    probes = {"/model": service.model, "/healthz": service.healthz, "/readyz": service.readyz}
    for path, endpoint in (probes | {"/metrics": service.prometheus}).items():
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], response_model=None)
    for path, (name, kind) in PAGE.items():
        app.add_route(path, _file(name, kind), include_in_schema=False)
    paths = ["/predict", *probes, "/metrics", "/openapi.json", *PAGE]
    app.add_middleware(
        Guard, metrics=service.metrics, paths=paths, draining=lambda: service.draining
    )
    return app


def _file(name: str, kind: str) -> Any:
    content = (files("biotune.serving") / "page" / name).read_bytes()

    async def page(_: Request) -> Response:
        return Response(content, media_type=kind)

    return page


def _json(content: Answers | Refusal, status: int = 200) -> Response:
    body = content.model_dump_json(exclude_none=True)
    return Response(body, status, media_type="application/json")


def _facts(predictor: Predictor, limits: Limits) -> dict[str, Any]:
    with predictor.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    shown = ("max_body", "max_pixels", "max_files")
    return {
        **predictor.metadata,
        "file": predictor.path.name,
        "sha256": digest,
        "provider": predictor.provider,
        "limits": {name: getattr(limits, name) for name in shown},
    }

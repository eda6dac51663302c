"""The JSON that clients get; ``/openapi.json`` describes it."""

from __future__ import annotations

from pydantic import BaseModel


class Ranked(BaseModel):
    """A class with its probability in [0, 1]."""

    label: str
    probability: float


class Answer(BaseModel):
    """What the model says of one image, or why it cannot be used.

    Attributes:
        name: of the file, as the client sent it; left out for a raw body.
        label: the most probable class; left out, as is all that follows, where there is an error.
        probability: of that class.
        classes: the most probable ones, in order.
        error: the reason.
    """

    name: str | None = None
    label: str | None = None
    probability: float | None = None
    classes: list[Ranked] | None = None
    error: str | None = None


class Answers(BaseModel):
    """One for each image, in their order."""

    images: list[Answer]


class Refusal(BaseModel):
    """Why a request was not answered; with images if there were any."""

    detail: str
    images: list[Answer] | None = None

"""What all errors have in common that a stage ends with through no fault of the code."""


class PipelineError(RuntimeError):
    """A stage cannot go on; the message says why, and what to do. Shown without a traceback."""

"""``python -m stages.supervise dvc repro``: a container's first process, where DVC runs in it.

``docker stop`` and Kubernetes send SIGTERM to a container's first process alone. DVC has no handler
for it: its stage would be killed a while later, and the lock that DVC leaves behind (``rwlock``)
names a small process id that the next container has too, so that ``dvc repro`` there says "busy".
What DVC does heed is Ctrl-C in a terminal, that is SIGINT to all: this sends that instead.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from types import FrameType


def supervise(command: Sequence[str]) -> int:
    """Run a command in a process group of its own; stop it all by SIGINT when told to stop.

    Returns:
        Its exit code; 128 + the signal, if one has ended it or if it failed after one.
    """
    received: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def interrupt(signum: int, _frame: FrameType | None = None) -> None:
        received.append(signum)
        if child is not None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.killpg(child.pid, signal.SIGINT)

    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, interrupt)
    try:
        child = subprocess.Popen(command, start_new_session=True)
    except OSError as error:
        print(f"Error: {command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return 127
    if received:  # before there was anything to interrupt
        interrupt(received[0])
    code = _wait(child)
    if code < 0:
        return 128 - code
    return 128 + received[0] if code and received else code


def _wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for it, and for whatever else ends: a first process inherits all that lose their own."""
    while True:
        pid, status = os.wait()
        if pid == child.pid:
            child.returncode = os.waitstatus_to_exitcode(status)
            return child.returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("Usage: python -m stages.supervise COMMAND [ARGUMENT ...]")
    sys.exit(supervise(sys.argv[1:]))

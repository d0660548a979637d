"""Ctrl-C and SIGTERM: the step in progress is finished and saved; a second one ends the process at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether the end was asked for."""

    def __init__(self) -> None:
        self.asked = False

    def ask(self, signum: int, frame: FrameType | None) -> None:
        """For signal.signal()."""
        self.asked = True
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_DFL)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Take note of signals while the block runs."""
    request = StopRequest()
    before = [signal.signal(one, request.ask) for one in _SIGNALS]
    try:
        yield request
    finally:
        for one, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(one, handler)

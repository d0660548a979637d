"""Ctrl-C while a command is still loading what it needs: the message and the exit code that it has later, too."""

import os
import signal


def end_on_interrupt() -> None:
    """For the first lines of a command. A Ctrl-C that whoever started the process had ignored stays ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, end_at_once)


def end_at_once(*about: object) -> None:
    """Tell so, and end; nothing has been begun."""
    os.write(2, b"\nerror: interrupted\n")
    os._exit(1)

"""What commands say while they work, and how they fail. Light: it is loaded before everything else."""

import errno
import functools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

import click

from configs.errors import UserError

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
_TICK_SECONDS = 0.8


def process_started() -> float:
    """When this process began, on the clock of time.time(); the moment of the call where the system does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 - pathlib is not loaded yet, and this runs first
            ticks = int(file.read().rsplit(b")", 1)[1].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError):
        return time.time()


class Console:
    """Progress lines on one stream. Phases are timed, kept in `phases`, and never silent for a second."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.started = process_started()
        self.phases: dict[str, float] = {}
        self._open_line = False

    def line(self, text: str) -> None:
        """Print a whole line."""
        self._write("\n" * self._open_line + text + "\n")
        self._open_line = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a stretch of work: prints its name, a dot now and then while it lasts, and its seconds."""
        began = time.perf_counter()
        self._write("\n" * self._open_line + f"  {name} ")
        self._open_line = True
        with _ticking(lambda: self._write("." if self._open_line else "")):
            yield
        self.phases[name] = time.perf_counter() - began
        self._write(f"{'' if self._open_line else f'  {name} '}{self.phases[name]:.2f} s\n")
        self._open_line = False

    @contextmanager
    def bar(self, name: str, unit: str, total: int | None = None) -> Iterator[Any]:
        """A tqdm progress bar on this stream, which ticks even when nothing advances."""
        from tqdm import tqdm  # here, because the first line of output must not wait for it

        every = 0.1 if self.stream.isatty() else _TICK_SECONDS
        options: dict[str, Any] = {
            "unit": f" {unit}",
            "unit_scale": True,
            "leave": False,
            "mininterval": every,
            "miniters": 1,
        }
        with tqdm(total=total, desc=f"  {name}", file=self.stream, **options) as bar, _ticking(bar.refresh):
            yield bar

    def since_start(self) -> float:
        """Seconds since the process began."""
        return time.time() - self.started

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def command(**settings: Any) -> Callable[[Callable[..., None]], click.Command]:
    """A click command that exits with 0 (done), 1 (failed, with a message) or 2 (bad usage).

    Foreseeable faults (UserError, OSError, MemoryError, Ctrl-C) end in one message; `--debug` shows the traceback.
    """

    def wrap(function: Callable[..., None]) -> click.Command:
        @click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
        @functools.wraps(function)
        def guarded(debug: bool, **arguments: Any) -> None:
            try:
                function(**arguments)
            except (UserError, OSError, MemoryError, KeyboardInterrupt) as error:
                if debug:
                    traceback.print_exc()
                click.echo(f"\nerror: {_words(error)}", err=True)
                sys.exit(1)

        return click.command(cls=click.Command, context_settings=HELP_OPTIONS, **settings)(guarded)

    return wrap


def run(main: click.Command, name: str) -> NoReturn:
    """Run a command as this process's only purpose, called `name` in its help.

    Ends without taking the interpreter apart, which with torch or numba loaded would be 0.1 to 0.6 s of silence.
    """
    code: object = 0
    try:
        main(prog_name=name)
    except SystemExit as ended:
        code = ended.code
    with suppress(OSError):  # nobody reads any more
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


def examples(*lines: str) -> str:
    """A click epilog that shows examples as they are typed."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


@contextmanager
def _ticking(tick: Callable[[], object]) -> Iterator[None]:
    """Call `tick` a little more than once a second while the block runs."""
    done = threading.Event()

    def run() -> None:
        while not done.wait(_TICK_SECONDS):
            tick()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _words(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; what was finished is kept"
    if isinstance(error, MemoryError):
        return f"out of memory: {error}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}no space left on device; free some and run the command again, what was finished is kept"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'input/output'}: {error.strerror.lower()}"
    return str(error)

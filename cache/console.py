"""What commands say while they work, and how they fail. Light: it is loaded before everything else."""

import errno
import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, TextIO

import click

from cache.early import end_at_once
from cache.files import in_words
from configs.errors import UserError

HELP_OPTIONS = {"help_option_names": ["-h", "--help"]}
_SILENCE_SECONDS = 0.7  # what lasts shorter is not worth a line
_LOOK_SECONDS = 0.1  # how often it is looked whether there is silence
_LINE_SECONDS = 10.0  # until the same is said in a new line; before, dots are signs of life enough
_PIPE_CLOSED = 141  # what a shell reports of a program that nobody reads any more


def process_started() -> float:
    """When this command began, on the clock of time.time(); the moment of the call where the system does not tell.

    bin/_python notes the moment in HEADSTART_UPTIME: the system's own start of a process is that of whatever waited in
    it before `exec`. Without the note it is the system's.
    """
    try:
        with open("/proc/uptime", "rb") as file:  # noqa: PTH123 - pathlib is not loaded yet, and this runs first
            uptime = float(file.read().split()[0])
        if "HEADSTART_UPTIME" in os.environ:
            return time.time() - (uptime - float(os.environ["HEADSTART_UPTIME"]))
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
            ticks = int(file.read().rsplit(b")", 1)[1].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, AttributeError, IndexError):
        return time.time()


class Console:
    """Progress lines on one stream, from any thread. Phases are timed, kept in `phases`, and never silent for a second.

    When nobody reads the stream any more, the work goes on without it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.started = process_started()
        self.phases: dict[str, float] = {}
        self._open_line = False
        self._bar: Any = None  # on a terminal, where it stays below all lines
        self._spoke = time.monotonic()
        self._lock = threading.RLock()

    def line(self, text: str) -> None:
        """Print a whole line."""
        with self._lock:
            if self._bar is not None:
                self._bar.write(text, file=self.stream)
                return
            self._write("\n" * self._open_line + text + "\n")
            self._open_line = False

    def waiting_for(self, what: str) -> Callable[[], None]:
        """To be called again and again while something is waited for: says so within a second, and that it still does.

        Beside a bar, which moves, it is said once.
        """
        due, told = 0.0, float("-inf")

        def tick() -> None:
            nonlocal due, told
            now = time.monotonic()
            if due and now >= due:
                due = now + _SILENCE_SECONDS
                if self._bar is None:
                    told = self.tell(f"  waiting for {what}", told)
                else:
                    self.line(f"  waiting for {what}")
                    due = float("inf")
            due = due or now + _SILENCE_SECONDS

        return tick

    def tell(self, text: str, told: float) -> float:
        """Print a line, or only a dot where the same was said at `told` and that is not long ago; when it was said."""
        with self._lock:
            now = time.monotonic()
            if now >= told + _LINE_SECONDS:
                self.line(text)
                return now
            self._write("." if self._open_line else "  .")
            self._open_line = True
            return told

    def end_line(self) -> None:
        """End a line of dots."""
        with self._lock:
            self._write("\n" * self._open_line)
            self._open_line = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a stretch of work: prints its name, a dot now and then while it lasts, and its seconds."""
        began = time.perf_counter()
        with self._lock:
            self._write("\n" * self._open_line + f"  {name} ")
            self._open_line = True
        with self._never_silent(self._dot):
            yield
        self.phases[name] = time.perf_counter() - began
        with self._lock:
            self._write(f"{'' if self._open_line else f'  {name} '}{self.phases[name]:.2f} s\n")
            self._open_line = False

    @contextmanager
    def bar(self, name: str, unit: str, total: int | None = None) -> Iterator[Any]:
        """A tqdm progress bar on a terminal, which ticks even when nothing advances; elsewhere lines and dots."""
        if not self.stream.isatty():
            lines = Lines(self, name, unit, total)
            with self._never_silent(lines.refresh):
                yield lines
            if lines.told > 0:
                self.end_line()
            return
        from tqdm import tqdm  # here, because the first line of output must not wait for it

        options: dict[str, Any] = {"unit": f" {unit}", "unit_scale": True, "leave": False, "miniters": 1}
        with tqdm(total=total, desc=f"  {name}", file=self.stream, **options) as bar, self._never_silent(bar.refresh):
            self._bar = bar
            try:
                yield bar
            finally:
                self._bar = None

    def since_start(self) -> float:
        """Seconds since the process began."""
        return time.time() - self.started

    def _dot(self) -> None:
        with self._lock:
            self._write("." * self._open_line)

    @contextmanager
    def _never_silent(self, say: Callable[[], object]) -> Iterator[None]:
        """Call `say` while the block runs whenever nothing was said for long, by whomever: short bars add up."""
        done = threading.Event()

        def listen() -> None:
            with suppress(UserError):  # a stream that cannot be written: the work itself will meet it
                while not done.wait(_LOOK_SECONDS):
                    if time.monotonic() >= self._spoke + _SILENCE_SECONDS:
                        say()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _write(self, text: str) -> None:
        self._spoke = time.monotonic() if text else self._spoke
        with self._lock:
            try:
                self.stream.write(text)
                self.stream.flush()
            except BrokenPipeError:
                self.stream = open(os.devnull, "w")  # noqa: PTH123, SIM115 - it is open until the end
            except OSError as error:
                where = "standard error" if self.stream is sys.stderr else "standard output"
                raise UserError(f"{where}: {(error.strerror or str(error)).lower()}") from None


class Lines:
    """Progress for a log file, with the face of a tqdm bar: lines, dots between them, and nothing for what is short."""

    def __init__(self, console: Console, name: str, unit: str, total: int | None) -> None:
        self.n = 0
        self._console, self._name, self._unit, self._total = console, name, unit, total
        self._note = ""
        self.told = float("-inf")
        self._began = time.monotonic()

    def update(self, count: int = 1) -> None:
        """So much more is done."""
        self.n += count

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Say this as well, in the lines that follow."""
        self._note = f", {text}"

    def refresh(self) -> None:
        """Tell how far it is, or that it goes on."""
        done, total = (f"{n / 1e6:,.1f}" if self._unit == "B" else f"{n:,}" for n in (self.n, self._total or 0))
        of = f"{done} of {total}" if self._total else done
        unit = "MB" if self._unit == "B" else self._unit
        seconds = time.monotonic() - self._began
        self.told = self._console.tell(f"  {self._name}: {of} {unit}, {seconds:.0f} s{self._note}", self.told)


def command(kept: bool = False, **settings: Any) -> Callable[[Callable[..., None]], click.Command]:
    """A click command that exits with 0 (done), 1 (failed, with a message) or 2 (bad usage).

    Foreseeable faults (UserError, OSError, MemoryError, Ctrl-C) end in one message; `--debug` shows the traceback. When
    nobody reads the output any more, it ends quietly. `kept`: what was finished before a fault stays.
    """

    def wrap(function: Callable[..., None]) -> click.Command:
        @click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
        @functools.wraps(function)
        def guarded(debug: bool, **arguments: Any) -> None:
            try:
                if signal.getsignal(signal.SIGINT) is end_at_once:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                function(**arguments)
            except BrokenPipeError:
                sys.exit(_PIPE_CLOSED)
            except (UserError, OSError, MemoryError, KeyboardInterrupt) as error:
                with suppress(OSError):
                    if debug:
                        traceback.print_exc()
                    click.echo(f"\nerror: {_words(error, kept)}", err=True)
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


def _words(error: BaseException, kept: bool) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted" + "; what was finished is kept" * kept
    if isinstance(error, MemoryError):
        return f"out of memory: {error}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f"{error.filename}: " if error.filename else ""
        what = "no space left on device; free some and run the command again"
        return where + what + ", what was finished is kept" * kept
    return in_words(error) if isinstance(error, Exception) else str(error)

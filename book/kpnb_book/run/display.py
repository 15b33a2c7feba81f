"""What the terminal shows while notebooks are executed: when each begins and ends, and meanwhile
what its kernel is doing.
"""

import shutil
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kpnb_book.run.engine import Task

LIVE, LOG = 0.5, 30.0  # seconds between two looks, on a terminal and in a log


class Display:
    """Lines about ``tasks``; ``done`` more were finished before.

    On a terminal the last line is rewritten; in a log the running tasks have a line every 30 s.
    """

    def __init__(self, tasks: "Sequence[Task]", done: int = 0) -> None:
        total = done + len(tasks)
        width = len(str(total))
        self._labels = {
            task.name: f"[{number:>{width}}/{total}] {task.label}" if total > 1 else task.label
            for number, task in enumerate(tasks, done + 1)
        }
        self._logs = {task.name: task.log for task in tasks}
        self._begun: dict[str, float] = {}
        self._doing: dict[str, str] = {}
        self._live = sys.stdout.isatty()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Display":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()
        self._write("")

    def hear(self, name: str, line: str) -> None:
        """A worker says what the task ``name`` is doing; at first, that it has begun."""
        with self._lock:
            if not line:
                self._begun[name] = time.monotonic()
                self._say(f"{self._labels[name]} ...")
            self._doing[name] = line

    def end(self, name: str, failed: str) -> None:
        """The task ``name`` has come to its end; what its process has said is shown as well."""
        with self._lock:
            begun = self._begun.pop(name, None)
            self._doing.pop(name, None)
            took = f"  {time.monotonic() - begun:.1f} s" if begun else ""
            self._say(f"{self._labels[name]}{took}{'  failed' if failed else ''}")
            if self._logs[name].exists():
                print(self._logs[name].read_text("utf8", "replace").rstrip(), file=sys.stderr)

    def _watch(self) -> None:
        while not self._closed.wait(LIVE if self._live else LOG):
            with self._lock:
                lines = [self._line(name) for name in self._begun]
            if self._live:
                self._write("; ".join(lines)[: shutil.get_terminal_size().columns - 1])
            else:
                print(*lines, sep="\n", end="\n" if lines else "", flush=True)

    def _line(self, name: str) -> str:
        seconds = time.monotonic() - self._begun[name]
        return f"{self._labels[name]}  {seconds:.0f} s  {self._doing.get(name, '')}".rstrip()

    def _say(self, line: str) -> None:
        self._write("")
        print(line, flush=True)

    def _write(self, line: str) -> None:
        if self._live:
            print(f"\r\x1b[K{line}", end="", flush=True)

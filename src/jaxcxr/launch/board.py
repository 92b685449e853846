"""One line for each job on the screen: rewritten in place on a terminal, else written at every change."""

import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Final

WAITING: Final = "waiting"


class Board:
    """The lines of some jobs."""

    def __init__(self, names: Sequence[str], say: Callable[[str], None], live: bool | None = None) -> None:
        """Show that all are waiting.

        Args:
            names: of the jobs.
            say: told the lines where they are not rewritten.
            live: rewrite the lines in place; if standard error is a terminal, unless given.
        """
        self._states = dict.fromkeys(names, WAITING)
        self._say = say
        self._live = sys.stderr.isatty() if live is None else live
        if self._live:
            sys.stderr.write("\n" * len(names))
            self._draw()

    def show(self, name: str, state: str, detail: str = "") -> None:
        """Show the state of a job; the detail, which changes all the time, on a terminal only."""
        line = f"{state}  {detail}" if self._live and detail else state
        if self._states[name] == line:
            return
        self._states[name] = line
        if self._live:
            self._draw()
        else:
            self._say(f"{name}: {line}")

    def _draw(self) -> None:
        width, columns = max(map(len, self._states)), shutil.get_terminal_size().columns
        lines = [f"{name:<{width}}  {state}"[: columns - 1] for name, state in self._states.items()]
        sys.stderr.write(f"\x1b[{len(lines)}F" + "".join(f"{line}\x1b[K\n" for line in lines))
        sys.stderr.flush()


def duration(seconds: float) -> str:
    """A span of time as 1:02:03 or 2:03."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"

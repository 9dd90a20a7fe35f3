"""A script on a terminal of its own, and what stands there at the end."""

import os
import pty
import re
import signal
import struct
import sys
import termios
from fcntl import ioctl
from pathlib import Path

COLUMNS = 100


def interrupt(command: list[str], seen: str, folder: Path) -> tuple[int, list[str]]:
    """Run `python command` in `folder` on a terminal, and press Ctrl-C when `seen` stands there.

    Returns the exit status (negative: the signal) and the lines of the screen.
    """
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
        os.chdir(folder)
        os.execv(sys.executable, [sys.executable, *command])
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    written, pressed = b"", False
    while True:
        try:
            part = os.read(terminal, 4096)
        except OSError:  # the last process has left the terminal
            break
        if not part:
            break
        written += part
        if not pressed and re.search(seen.encode(), written):
            os.write(terminal, b"\x03")
            pressed = True
    _, status = os.waitpid(process, 0)
    os.close(terminal)
    return os.waitstatus_to_exitcode(status), screen(written.decode("utf-8", "replace"))


def screen(text: str) -> list[str]:
    """The lines that `text` leaves on a terminal."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", text):
        if part == "\r":
            column = 0
        elif part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\x1b[K":
            lines[row] = lines[row][:column]
        elif part == "\x1b[A":
            row = max(0, row - 1)
        else:
            for letter in part:
                if column == COLUMNS:  # it wraps
                    row, column = row + 1, 0
                    lines += [""] * (row == len(lines))
                lines[row] = lines[row][:column].ljust(column) + letter + lines[row][column + 1 :]
                column += 1
    return [line.rstrip() for line in lines]

"""A script on a terminal of its own, and what stands there at the end."""

import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path

COLUMNS = 100


def interrupt(command: list[str], seen: str, folder: Path) -> tuple[int, list[str]]:
    """Run `python command` in `folder` on a terminal, and press Ctrl-C when `seen`, a pattern, stands there.

    Returns the exit status (negative: the signal) and the lines of the screen.
    """
    leader, terminal = pty.fork()
    if leader == 0:
        _lead([sys.executable, *command], folder)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    written, pressed = b"", False
    try:
        while not (ended := re.search(rb"ended (-?\d+)\r\n", written)):
            written += os.read(terminal, 4096)
            if not pressed and re.search(seen.encode(), written):
                os.write(terminal, b"\x03")
                pressed = True
    finally:
        os.close(terminal)  # what still runs on it gets SIGHUP, and ends
        os.waitpid(leader, 0)
    return int(ended[1]), screen(written[: ended.start()].decode("utf-8", "replace"))


def _lead(command: list[str], folder: Path) -> None:
    """What a shell does: it starts the command, and stays when that ends. If it left, the last words could be lost."""
    try:
        signal.signal(signal.SIGINT, lambda *_: None)  # a command that it starts has the default again
        code = subprocess.Popen(command, cwd=folder).wait()
        os.write(1, f"ended {code}\n".encode())
        os.read(0, 1)  # until the terminal is closed
    finally:
        os._exit(0)


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

"""The progress bar moves by time, whatever is logged, and a file gets lines as before."""

import ast
import io
import os
import pty
import struct
import sys
import termios
from fcntl import ioctl

import pytest
from drawn import class_folders
from running import ROOT, run, small_finetuning, tiny

from ssl import console

# A script whose stderr is a terminal, with a bar that is drawn without a pause.
EAGER = """
import runpy, sys
from ssl import console
console.Progress.PAUSE = 0
sys.stderr.isatty = lambda: True
sys.argv = {words!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """Seconds of a clock that stands still; assign to clock[0]."""
    now = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def drawn(terminal: Terminal) -> list[str]:
    """What was drawn since the last call."""
    lines = [line.strip() for line in terminal.getvalue().split("\r") if line.strip()]
    terminal.seek(0)
    terminal.truncate()
    return lines


def test_the_bar_moves_between_notes_and_says_how_long_a_step_takes(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = console.Progress(100, 0)
    assert "0/100" in drawn(terminal)[-1]
    for step in (1, 2):
        clock[0] += 20
        progress.move(step)
        (line,) = drawn(terminal)
        assert f"{step}/100" in line and "20.00s/step" in line
    progress.update(2, "loss 0.5")
    assert "loss 0.5" in drawn(terminal)[-1]
    clock[0] += 20
    progress.move(3)
    assert "3/100" in (line := drawn(terminal)[-1]) and "loss 0.5" in line
    progress.close()


def test_fast_steps_draw_the_bar_no_oftener_than_it_can_be_read(monkeypatch, clock):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    progress = console.Progress(2000, 0)
    drawn(terminal)
    for step in range(1, 1001):  # ten seconds
        clock[0] += 0.01
        progress.move(step)
        progress.update(step, f"loss {step}")
    assert 10 <= len(drawn(terminal)) <= 2 * 10 / progress.PAUSE
    progress.close()


def test_a_file_gets_lines_at_notes_alone(monkeypatch, clock, capsys):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = console.Progress(100, 0)
    for step in range(1, 41):
        clock[0] += 20
        progress.move(step)
        if step % 10 == 0:
            progress.update(step, "loss 0.5")
    assert capsys.readouterr().out.splitlines()[0] == "step 10/100  loss 0.5  left 30:00"
    assert not sys.stderr.getvalue()


@pytest.mark.parametrize(
    ("encoding", "expected"), [("ascii", rb"79 \u2013 80, caf\udce9"), ("utf-8", "79 – 80, caf".encode() + rb"\udce9")]
)
def test_what_stdout_cannot_spell_is_escaped(monkeypatch, encoding, expected):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding, errors="strict"))
    console.say("79 – 80, caf\udce9")
    assert written.getvalue() == expected + b"\n"


def test_a_stdout_that_was_closed_before_the_start_is_ignored(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    console.say("nobody hears this")


def test_only_say_and_tell_print():
    """They take a stdout or stderr that is closed or full."""
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "ssl").rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "print"
    }
    assert found == {"ssl/errors.py"}


@pytest.mark.parametrize(("rows", "columns"), [(0, 0), (10, 0), (24, 80)])
def test_the_bar_shows_its_numbers_on_a_terminal_of_unknown_size(monkeypatch, clock, rows, columns):
    leader, follower = pty.openpty()
    ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    os.set_blocking(leader, False)
    with open(follower, "w") as terminal, open(leader, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stderr", terminal)
        progress = console.Progress(100, 0)
        assert b"0/100" in (screen.read(4096) or b"")
        clock[0] += 20
        progress.move(1)
        assert b"1/100" in (screen.read(4096) or b"")
        progress.close()


@pytest.mark.parametrize("script", ["train.py", "finetune.py"])
def test_every_step_moves_the_bar_of_a_script(tmp_path, script):
    images = class_folders(tmp_path / "images", {"train": (64, 0), "test": (21, 1)})
    how = {"data_dir": images, "output_dir": tmp_path / "run", "epochs": 1}
    words = tiny(**how, log_every=1000, warmup_epochs=0) if script == "train.py" else small_finetuning(**how)
    (tmp_path / "eager.py").write_text(EAGER.format(words=[str(ROOT / script), *words]))
    said = run(tmp_path / "eager.py").stderr
    for step in (1, 2, 3):
        assert f" {step}/" in said

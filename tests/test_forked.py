"""The way in which tests start scripts is that of `python`: streams, status, folder, arguments, what hangs."""

import os
import subprocess
import sys

import forked
import pytest

from ssl.faultcheck.small_run import gone

SCRIPT = """
import atexit, os, sys, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
print(__name__, sys.argv, os.getcwd(), os.environ.get("WORD"), sys.path[0], sys.stdin.read() == "", file=sys.stderr)
END
"""


@pytest.mark.parametrize("end", ["", "sys.exit(3)", "sys.exit('words')", "raise ValueError('words')", "os._exit(4)"])
def test_a_start_is_that_of_python(tmp_path, end):
    (tmp_path / "script.py").write_text(SCRIPT.replace("END", end))
    env = {"PATH": os.environ["PATH"], "WORD": "x y"}
    done = forked.run("script.py", "a b", "-c", cwd=tmp_path, env=env)
    plain = subprocess.run(
        [sys.executable, "script.py", "a b", "-c"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    assert (done.returncode, done.stdout) == (plain.returncode, plain.stdout)
    assert done.stderr.splitlines()[0] == plain.stderr.splitlines()[0]
    assert done.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]


def test_what_hangs_is_ended_with_all_it_started_and_the_next_start_works(tmp_path):
    (tmp_path / "script.py").write_text("import os, time\nprint(os.fork(), flush=True)\ntime.sleep(1000)\n")
    with pytest.raises(subprocess.TimeoutExpired) as late:
        forked.run("script.py", cwd=tmp_path, timeout=3)
    gone([int(pid) for pid in late.value.stdout.split() if pid != "0"])
    (tmp_path / "script.py").write_text("print('next')\n")
    assert forked.run("script.py", cwd=tmp_path).stdout == "next\n"


def test_processes_form_a_group_and_the_failure_of_one_ends_it(tmp_path):
    (tmp_path / "script.py").write_text(
        "import os, sys, time\n"
        "rank, size = (int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE'))\n"
        "print(f'{rank} of {size}', flush=True)\n"
        "if 'fail' in sys.argv: sys.exit(2) if rank else time.sleep(1000)\n"
    )
    done = forked.run("script.py", cwd=tmp_path, processes=2)
    assert done.returncode == 0 and sorted(done.stdout.splitlines()) == ["0 of 2", "1 of 2"]
    assert forked.run("script.py", "fail", cwd=tmp_path, processes=2).returncode == 1

"""A small run that starts quickly where nothing disturbs it."""

import subprocess
from unittest import mock

import forked

from ssl.faultcheck.small_run import PATIENCE, SmallRun


class ForkedRun(SmallRun):
    """A small run whose launches that nothing disturbs, `finish()`, start as forked.py starts scripts.

    `launch()` starts an interpreter, or torchrun; so do all launches with arguments for torchrun.
    """

    def finish(self, process: subprocess.Popen | None = None) -> int:
        if process or self.launcher:
            return super().finish(process)
        with mock.patch.object(subprocess, "Popen") as popen:
            self.launch()
        command, environment = popen.call_args.args[0], popen.call_args.kwargs["env"]
        words = command[command.index(str(self.script)) :]
        done = forked.run(*words, processes=self.processes, env=environment, timeout=PATIENCE)
        with open(self.log, "a") as log:
            log.write(done.stdout + done.stderr)
        return done.returncode

"""Ports for processes that find each other."""

import contextlib
import random
import socket


def free_ports(count: int) -> list[int]:
    """Ports on which nothing listens, below those that Linux gives to whoever asks for any (from 32768)."""
    with contextlib.ExitStack() as stack:
        found = []
        while len(found) < count:
            port = random.SystemRandom().randrange(20_000, 32_000)
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                found.append(port)
        return found

"""Whether a server can be reached."""

import contextlib
import socket
import threading
from urllib.parse import urlsplit


def answers(url: str, limit_s: float) -> bool:
    """Whether the host of a URL takes a connection within `limit_s` seconds, looking its name up included."""
    parts = urlsplit(url)
    port = parts.port or (80 if parts.scheme == "http" else 443)
    connected = threading.Event()

    def connect() -> None:
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname or "", port), timeout=limit_s):
            connected.set()

    thread = threading.Thread(target=connect, daemon=True)  # a look-up cannot be interrupted, only left alone
    thread.start()
    thread.join(limit_s)
    return connected.is_set()

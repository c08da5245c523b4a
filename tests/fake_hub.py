"""A Hugging Face hub on loopback with one dataset's files, for as much of its protocol as a download needs."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FakeHub:
    """`files` by name, `sha256` of each, and `requests` that came: (method, path)."""

    files: dict[str, bytes]
    revision: str
    sha256: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    endpoint: str = ""

    def fetched(self) -> list[str]:
        """Names of the files that were sent, in order."""
        return [path.rpartition("/")[2] for method, path in self.requests if method == "GET" and path.endswith(".csv")]


@contextlib.contextmanager
def fake_hub(files: dict[str, bytes], revision: str) -> Iterator[FakeHub]:
    hub = FakeHub(files, revision, {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            hub.requests.append((self.command, self.path))
            name = self.path.rpartition("/")[2]
            content = hub.files.get(name, b"")
            self.send_response(200 if name in hub.files or self.path == "/" else 404)
            self.send_header("X-Repo-Commit", hub.revision)
            self.send_header("ETag", f'"{hub.sha256.get(name)}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""A W&B server for tests: what the real client of wandb 0.31 asks for, on 127.0.0.1, and a memory of what it was sent.

The client talks to it with WANDB_BASE_URL=server.url and WANDB_API_KEY=KEY. GraphQL calls create a run, look it up for resuming,
ask where files go, and create artifacts (a logged table is one as well); history rows, summary, preemption and exit code come over
the file stream. wandb-workspaces asks for the account, looks a view up by its name and writes it. Any other call is answered with
an error and kept in `FakeWandb.unknown`.
"""

import base64
import contextlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

KEY = "fake5ecret" * 4  # 40 characters, the shape that the client insists on
HISTORY, SUMMARY = "wandb-history.jsonl", "wandb-summary.json"


@dataclass
class FakeRun:
    """What the server was told of one run."""

    settings: dict[str, Any] = field(default_factory=dict)  # the variables of upsertBucket that were not null
    streams: dict[str, list[str]] = field(default_factory=dict)  # lines of each streamed file
    files: dict[str, bytes] = field(default_factory=dict)  # uploaded whole
    starts: int = 0  # how often a client asked whether the run exists
    preempting: bool = False
    exit_code: int | None = None

    @property
    def config(self) -> dict[str, Any]:
        """The run's config without W&B's own entries."""
        entries = json.loads(self.settings["config"])
        return {key: entry["value"] for key, entry in entries.items() if key != "_wandb"}

    @property
    def history(self) -> list[dict[str, Any]]:
        """The logged rows without W&B's own columns."""
        rows = [json.loads(line) for line in self.streams.get(HISTORY, [])]
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]

    @property
    def summary(self) -> dict[str, Any]:
        """The last summary."""
        summary: dict[str, Any] = json.loads(self.streams[SUMMARY][-1])
        return summary


@dataclass
class FakeArtifact:
    """What the server was told of one artifact."""

    settings: dict[str, Any]  # the input of createArtifact
    files: dict[str, bytes] = field(default_factory=dict)
    manifest: dict[str, Any] = field(default_factory=dict)
    committed: bool = False

    @property
    def aliases(self) -> set[str]:
        """The names that this version was given."""
        return {alias["alias"] for alias in self.settings.get("aliases") or []}


@dataclass
class FakeView:
    """A saved workspace: the variables of its last upsertView, and how often it was written."""

    variables: dict[str, Any]
    writes: int = 0

    @property
    def spec(self) -> dict[str, Any]:
        """What the workspace shows."""
        spec: dict[str, Any] = json.loads(self.variables["spec"])
        return spec


class FakeWandb:
    """The server; a context manager that serves from entering to leaving. Every request without `KEY` gets a 401."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.views: dict[str, FakeView] = {}  # by id
        self.artifacts: list[FakeArtifact] = []
        self.unknown: list[str] = []
        self.refused = 0
        self.stopped = False
        self._http = self._bind(0)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def _bind(self, port: int) -> ThreadingHTTPServer:
        http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        http.daemon_threads = True
        return http

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Die: new connections are refused and open ones get no more answers."""
        self.stopped = True
        self._http.shutdown()
        self._http.server_close()

    def come_back(self) -> None:
        """Serve again after `stop`, at the same address and with the memory of before."""
        self._http, self.stopped = self._bind(self._http.server_port), False
        self.__enter__()

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Answer one GraphQL call."""
        if "upsertBucket" in query:
            run = self.runs.setdefault(variables["name"], FakeRun())
            run.settings |= {key: value for key, value in variables.items() if value is not None}
            project = {"id": "p", "name": variables["project"], "entity": {"id": "e", "name": variables["entity"] or "tester"}}
            names = {"id": "b", "name": variables["name"], "displayName": run.settings.get("displayName", "")}
            return {"data": {"upsertBucket": {"bucket": {**names, "project": project, "historyLineCount": 0}, "inserted": True}}}
        if "RunResumeStatus" in query:
            known = self.runs.get(variables["name"])
            run = self.runs.setdefault(variables["name"], FakeRun())
            run.starts += 1
            entity = {"id": "e", "name": variables["entity"] or "tester"}
            bucket = self._resumed(variables["name"], known) if known else None
            return {"data": {"model": {"id": "p", "name": variables["project"], "entity": entity, "bucket": bucket}}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{variables['run']}/{name}"} for name in variables["files"]]
            return {"data": {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}}
        if "viewer" in query:
            viewer = {"id": "u", "entity": "tester", "username": "tester", "email": "", "teams": {"edges": []}, "flags": "{}"}
            return {"data": {"viewer": viewer}}
        if "rtifact" in query:
            return self._artifact_call(query, variables)
        if "upsertView" in query:  # strict: an id alone says which view is meant
            view_id = variables.get("id") or f"view{len(self.views)}"
            view = self.views.setdefault(view_id, FakeView(variables))
            view.variables, view.writes = variables, view.writes + 1
            answer = {"view": {"id": view_id, "name": variables["name"]}, "inserted": view.writes == 1}
            return {"data": {"upsertView": answer}}
        if "allViews" in query:
            return {"data": {"project": self._views_of(variables)}}
        if "OrganizationCoreWeaveOrganizationID" in query:
            return {"data": {"entity": {"organization": None}}}
        if "serverInfo" in query:
            return {"data": {"serverInfo": {"features": []}}}
        return self._refuse(query)

    def _refuse(self, query: str) -> dict[str, Any]:
        self.unknown.append(query.strip().splitlines()[0])
        return {"data": None, "errors": [{"message": "the fake server does not know this call"}]}

    def _artifact_call(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "FetchArtifactDigestAlgorithm" in query or "query ArtifactType(" in query:  # nothing is known of artifacts beforehand
            return {"data": {"project": None}}
        if "createArtifact(" in query:
            self.artifacts.append(FakeArtifact(variables["input"]))
            number = str(len(self.artifacts) - 1)
            artifact = {"id": number, "state": "PENDING", "artifactSequence": {"latestArtifact": None}}
            return {"data": {"createArtifact": {"artifact": artifact}}}
        if "ArtifactManifest(" in query:
            call = "createArtifactManifest" if "createArtifactManifest" in query else "updateArtifactManifest"
            number = variables.get("artifactID") or variables["artifactManifestID"]
            file = {"id": number, "uploadUrl": f"{self.url}/manifest/{number}", "uploadHeaders": []}
            return {"data": {call: {"artifactManifest": {"id": number, "file": file}}}}
        if "createArtifactFiles" in query:
            found = [(entry["name"], entry["artifactID"]) for entry in variables["input"]["artifactFiles"]]
            always = {"uploadHeaders": [], "uploadMultipartUrls": None}
            nodes = [
                {"storagePath": name, "uploadUrl": f"{self.url}/artifact/{number}/{name}", "artifact": {"id": number}, **always}
                for name, number in found
            ]
            return {"data": {"createArtifactFiles": {"files": {"edges": [{"node": node} for node in nodes]}}}}
        if "commitArtifact" in query:
            self.artifacts[int(variables["artifactID"])].committed = True
            return {"data": {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}}
        return self._refuse(query)

    def _views_of(self, wanted: dict[str, Any]) -> dict[str, Any] | None:
        """A project's views of one name; None where no run has made the project."""
        place = (wanted["entityName"], wanted["projectName"])
        if place not in {(run.settings.get("entity") or "tester", run.settings.get("project")) for run in self.runs.values()}:
            return None
        found = [
            {"id": view_id, "displayName": view.variables["displayName"], "spec": view.variables["spec"]}
            for view_id, view in self.views.items()
            if (view.variables["entityName"], view.variables["projectName"], view.variables["name"]) == (*place, wanted["viewName"])
        ]
        return {"allViews": {"edges": [{"node": node} for node in found]}}

    def _resumed(self, name: str, run: FakeRun) -> dict[str, Any]:
        counts = {f"{kind}LineCount": len(run.streams.get(f"wandb-{kind}.jsonl", [])) for kind in ("history", "events")}
        tails = {f"{kind}Tail": json.dumps(run.streams.get(f"wandb-{kind}.jsonl", [])[-1:]) for kind in ("history", "events")}
        settings = {"summaryMetrics": run.streams.get(SUMMARY, ["{}"])[-1], "config": run.settings["config"]}
        more = {"displayName": run.settings["displayName"], "logLineCount": 0, "tags": [], "notes": "", "wandbConfig": '{"t": 1}'}
        return {"id": "b", "name": name, **counts, **tails, **settings, **more}

    def stream(self, run: FakeRun, body: dict[str, Any]) -> None:
        """Take one request of the file stream: lines of files at an offset, and the run's end."""
        for name, chunk in body.get("files", {}).items():
            lines = run.streams.setdefault(name, [])
            lines[chunk["offset"] : chunk["offset"] + len(chunk["content"])] = chunk["content"]
        run.preempting = run.preempting or body.get("preempting", False)
        if body.get("complete"):
            run.exit_code = body["exitcode"]


def _handler(server: FakeWandb) -> type[BaseHTTPRequestHandler]:
    expected = "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if server.stopped:
                self.close_connection = True
                return
            with lock:
                self._answer(*self._take(body))

        do_PUT = do_POST

        def _take(self, body: bytes) -> tuple[int, dict[str, Any]]:
            parts = self.path.strip("/").split("/")
            if parts[0] == "upload":  # signed addresses: the client sends no key there
                server.runs[parts[1]].files["/".join(parts[2:])] = body
                return 200, {}
            if parts[0] == "artifact":
                server.artifacts[int(parts[1])].files["/".join(parts[2:])] = body
                return 200, {}
            if parts[0] == "manifest":
                server.artifacts[int(parts[1])].manifest = json.loads(body)
                return 200, {}
            if self.path.startswith("/sdk/otel/"):
                return 200, {}  # the client's own telemetry
            if self.headers.get("Authorization") != expected:
                server.refused += 1
                return 401, {"errors": [{"message": "invalid API key"}]}
            if self.path == "/graphql":
                call = json.loads(body)
                return 200, server.graphql(call["query"], call.get("variables") or {})
            if parts[0] == "files" and parts[-1] == "file_stream":
                server.stream(server.runs[parts[3]], json.loads(body))
                return 200, {}
            server.unknown.append(f"{self.command} {self.path}")
            return 404, {}

        def _answer(self, code: int, answer: dict[str, Any]) -> None:
            payload = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # a client that ends does not close its connections first
                super().handle()

    return Handler

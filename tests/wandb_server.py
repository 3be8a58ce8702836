"""A small W&B server in memory, for the real client: what `wandb.init(mode="online")`, `wandb sync` and `wandb.Api` ask for.

No GraphQL engine: an operation is known by its name in the query's text, and answered with all the fields that the client's
fragments name. An unknown operation is refused and kept in `unknown`, so that a test fails instead of passing on a guess.
It shows what the client sends and what it makes of answers; how the real server merges or limits, it cannot show.
The rows of a run lie by line number, and what is sent again replaces them: wandb/wandb#5865 and #12269 say so of the real
one. `appends` makes it a server that tells the client where the lines of a run end, and gets all of them again.
Faults are switched on and off: `refuse`, `fail`, `delay`, `after`, `heal`.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import socket
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import unquote

KEY = "local" + 40 * "0"
ENTITY = "somebody"
Values = Mapping[str, Any]


@dataclass
class Upload:
    """A run as the server has it."""

    entity: str
    project: str
    id: str
    created: int
    name: str = ""
    group: str = ""
    state: str = "running"
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    lines: dict[int, str] = field(default_factory=dict)  # of the history, by line number

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(self.lines[number]) for number in sorted(self.lines)]

    def node(self) -> dict[str, Any]:
        """What RunFragment asks for."""
        return {
            "id": f"id-{self.id}",
            "projectId": "1",
            "name": self.id,
            "displayName": self.name,
            "state": self.state,
            "config": json.dumps(self.config),
            "summaryMetrics": json.dumps(self.summary),
            "systemMetrics": "{}",
            "group": self.group,
            "jobType": None,
            "sweepName": None,
            "commit": None,
            "readOnly": False,
            "createdAt": f"2026-01-01T00:00:{self.created % 60:02d}",
            "heartbeatAt": None,
            "description": None,
            "notes": None,
            "tags": [],
            "historyLineCount": len(self.lines),
            "historyKeys": self.history_keys(),
            "user": {"name": ENTITY, "username": ENTITY},
            "project": {"name": self.project, "entity": {"name": self.entity}},
        }

    def history_keys(self) -> dict[str, Any]:
        return {"lastStep": max((row["_step"] for row in self.rows), default=-1), "keys": {}}


class WandbServer:
    """`with WandbServer() as server:`; the client finds it by `server.environment`."""

    def __init__(self) -> None:
        self.runs: dict[str, Upload] = {}
        self.calls: Counter[str] = Counter()
        self.asked = 0  # how often, whatever became of it
        self.unknown: list[str] = []
        self.appends = False
        self.files: dict[str, bytes] = {}  # that were uploaded, by name
        self.deaf = False  # takes no run, and says that it is its own fault
        self.deleted: set[str] = set()  # ids of runs that were deleted
        self.status = 0  # answer everything with this
        self.delay = 0.0  # seconds before each answer
        self._then: tuple[int, Callable[[], object]] | None = None  # how many answers until what
        self._lock = threading.RLock()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._open: set[socket.socket] = set()

    def __enter__(self) -> Self:
        self.heal()
        return self

    def __exit__(self, *_: object) -> None:
        self.refuse()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY}

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._open)

    def heal(self) -> None:
        """Well again, on the same port."""
        self.status, self.delay, self._then = 0, 0.0, None
        if self._server is None:
            self._server = _Http(("127.0.0.1", self._port), type("Bound", (_Handler,), {"wandb": self}))
            self._port = self._server.server_address[1]
            threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def fail(self, status: int) -> None:
        self.status = status

    def after(self, answers: int, fault: Callable[[], object]) -> None:
        self._then = answers, fault

    def refuse(self) -> None:
        """Nobody listens, and who was being served is cut off."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        with self._lock:
            for connection in list(self._open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def count(self) -> None:
        """One request more; the fault that waits for it begins with it."""
        with self._lock:
            self.asked += 1
            if self._then is None:
                return
            answers, fault = self._then
            self._then = (answers - 1, fault) if answers else None
        if not answers:
            fault()

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        """Status and JSON for one authorised request."""
        if path == "/graphql":
            found = re.search(r"^\s*(?:query|mutation)\s+(\w+)", body["query"], re.MULTILINE)
            name = found[1] if found else body["query"][:80]
            answer = OPERATIONS.get(name)
            with self._lock:
                self.calls[name] += 1
                if name == "UpsertBucket" and self.deaf:
                    return 500, {"errors": [{"message": "later, maybe"}]}
                if name == "UpsertBucket" and body["variables"]["name"] in self.deleted:
                    return 409, {"errors": [{"message": "this run was deleted; try a new run name"}]}
                if answer is not None:
                    return 200, {"data": answer(self, {"query": body["query"], **(body.get("variables") or {})})}
                self.unknown.append(name)
                return 400, {"errors": [{"message": f"unknown operation {name}"}]}
        if stream := re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path):
            with self._lock:
                self.calls["file_stream"] += 1
                return 200, self._stream("/".join(stream.groups()), body)
        if path.startswith("/sdk/otel"):  # the client's own statistics
            return 404, {}
        with self._lock:
            self.unknown.append(path)
        return 404, {}

    def _stream(self, key: str, body: Values) -> Values:
        run = self.runs[key]
        for name, part in (body.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                run.lines |= {part["offset"] + number: line for number, line in enumerate(part["content"])}
            elif name == "wandb-summary.json":
                run.summary = json.loads(part["content"][-1])
        if body.get("complete"):
            run.exit_code = body["exitcode"]
            run.state = "failed" if run.exit_code else "finished"
        return {"exitcode": None, "limits": {}}

    def upsert(self, asked: Values) -> Values:
        entity, project = asked.get("entity") or ENTITY, asked.get("project") or "uncategorized"
        key = f"{entity}/{project}/{asked['name']}"
        is_new = key not in self.runs
        run = self.runs.setdefault(key, Upload(entity, project, asked["name"], created=len(self.runs)))
        run.name, run.group = asked.get("displayName") or run.name, asked.get("groupName") or run.group
        run.config = json.loads(asked["config"]) if asked.get("config") else run.config
        run.state = "running" if is_new else run.state
        counted = {} if self.appends else {"historyLineCount": None}
        return {"upsertBucket": {"bucket": run.node() | counted, "inserted": is_new}}

    def run(self, asked: Values) -> Upload | None:
        name = asked.get("name") or asked.get("run") or asked.get("runName")
        return self.runs.get(f"{asked['entity']}/{asked['project']}/{name}")

    def page(self, asked: Values) -> Values:
        wanted = json.loads(asked["filters"] or "{}")
        here = [run for run in self.runs.values() if (run.entity, run.project) == (asked["entity"], asked["project"])]
        if not here:
            return {"project": None}
        found = [run for run in here if all(_matches(run, key, test) for key, test in wanted.items())]
        first = int(asked["cursor"] or 0)
        shown = found[first : first + asked["perPage"]]
        left_out = LAZY if "LightweightRunFragment" in asked["query"] else ()
        nodes = [{key: value for key, value in run.node().items() if key not in left_out} for run in shown]
        edges = [{"node": node, "cursor": str(first + number + 1)} for number, node in enumerate(nodes)]
        info = {"endCursor": str(first + len(shown)), "hasNextPage": first + len(shown) < len(found)}
        runs = {"edges": edges, "pageInfo": info}
        return {"project": {"internalId": "1", "runCount": len(found), "readOnly": False, "runs": runs}}

    def history(self, asked: Values) -> Values:
        run = self.run(asked)
        assert run is not None
        lines = [json.dumps(row) for row in run.rows if asked["minStep"] <= row["_step"] < asked["maxStep"]]
        return {"project": {"run": {"history": lines[: asked["pageSize"]]}}}


def _matches(run: Upload, key: str, test: Any) -> bool:
    """The part of MongoDB's language that we use."""
    assert list(test) == ["$in"], f"a filter this server does not know: {key}: {test}"
    if key == "name":
        return run.id in test["$in"]
    assert key.startswith("config."), f"a filter this server does not know: {key}"
    return run.config.get(key.removeprefix("config."), {}).get("value") in test["$in"]


LAZY = ("config", "summaryMetrics", "systemMetrics", "historyKeys")  # what a lazy client asks for when it needs it
VIEWER = {
    "id": "1",
    "entity": ENTITY,
    "username": ENTITY,
    "name": ENTITY,
    "email": None,
    "admin": False,
    "flags": "{}",
    "teams": {"edges": []},
}
OPERATIONS: dict[str, Callable[[WandbServer, Values], Values]] = {
    "Viewer": lambda server, asked: {"viewer": VIEWER},
    "GetViewer": lambda server, asked: {"viewer": VIEWER},
    "GetDefaultEntity": lambda server, asked: {"viewer": VIEWER},
    "ServerFeaturesQuery": lambda server, asked: {"serverInfo": {"features": []}},
    "OrganizationCoreWeaveOrganizationID": lambda server, asked: {"entity": None},
    "UpsertBucket": WandbServer.upsert,
    "CreateRunFiles": lambda server, asked: {
        "createRunFiles": {
            "runID": "1",
            "uploadHeaders": [],
            "files": [{"name": name, "uploadUrl": f"{server.url}/upload/{name}"} for name in asked["files"]],
        }
    },
    "Runs": WandbServer.page,
    "RunHistoryKeys": lambda server, asked: {
        "project": {"run": {"historyKeys": run.history_keys()} if (run := server.run(asked)) else None}
    },
    "RunParquetHistory": lambda server, asked: {
        "project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": run.rows}}}
        if (run := server.run(asked))
        else None
    },
    "HistoryPage": WandbServer.history,
}


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was cut off is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wandb: WandbServer

    def setup(self) -> None:
        super().setup()
        self.wandb._open.add(self.connection)

    def finish(self) -> None:
        self.wandb._open.discard(self.connection)
        super().finish()

    def _serve(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        self.wandb.count()
        time.sleep(self.wandb.delay)
        status, answer = self.wandb.status, {"errors": [{"message": "out of order"}]}
        if not status and self.path.startswith("/upload/"):  # uploads carry no key
            self.wandb.files[unquote(self.path.removeprefix("/upload/"))] = data
            status, answer = 200, {}
        elif not status:
            sent = self.headers.get("Authorization", "")
            if sent == f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}" or self.path.startswith("/sdk"):
                try:
                    status, answer = self.wandb.answer(self.path, json.loads(data) if data[:1] == b"{" else None)
                except Exception:  # a client would take a cut connection for the network's fault, and try for ever
                    self.wandb.unknown.append(traceback.format_exc())
                    status, answer = 400, {}
            else:
                status, answer = 401, {"errors": [{"message": "who are you?"}]}
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = _serve

    def log_message(self, format: str, *values: Any) -> None:
        pass

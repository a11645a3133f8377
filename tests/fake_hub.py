"""A hub on 127.0.0.1 that takes repositories and commits, and remembers every request."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """What came in.

    Attributes:
        url: where it listens.
        tokens: of the requests, as they were sent.
        repositories: that were made.
        files: of the commits, by path.
        refuses: commits end with 403.
    """

    url: str = ""
    refuses: bool = False
    tokens: set[str] = field(default_factory=set)
    repositories: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)


@contextlib.contextmanager
def hub(*, refuses: bool = False) -> Iterator[Hub]:
    """The hub, while the block runs."""
    held = Hub(refuses=refuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            held.tokens.add(self.headers.get("authorization", ""))
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.path == "/api/repos/create":
                held.repositories.append(json.loads(body))
                name = held.repositories[-1]["name"]
                self.answer({"url": f"{held.url}/me/{name}", "name": f"me/{name}"})
            elif self.path == "/api/validate-yaml":  # of a model card
                self.answer({"errors": [], "warnings": []})
            elif "/preupload/" in self.path:
                paths = [each["path"] for each in json.loads(body)["files"]]
                kinds = {"uploadMode": "regular", "shouldIgnore": False}
                self.answer({"files": [{"path": path, **kinds} for path in paths]})
            elif "/commit/" in self.path and not held.refuses:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        content = base64.b64decode(line["value"]["content"])
                        held.files[line["value"]["path"]] = content
                oid = "0" * 40
                self.answer(
                    {
                        "success": True,
                        "commitOid": oid,
                        "commitUrl": f"{held.url}/me/run/commit/{oid}",
                    }
                )
            else:
                self.answer({"error": "no"}, 403)

        def do_GET(self) -> None:
            held.tokens.add(self.headers.get("authorization", ""))
            self.answer({"id": "me/run", "sha": "0" * 40, "siblings": [], "name": "me"})

        def answer(self, values: dict[str, Any], code: int = 200) -> None:
            text = json.dumps(values).encode()
            self.send_response(code)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()

"""A Hugging Face hub on this machine, as far as `datasets` asks one: repositories of datasets, and blobs."""

import gzip
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlparse


@dataclass
class Repo:
    """The files of a dataset's repository; its commit follows from them."""

    files: dict[str, bytes] = field(default_factory=dict)
    gated: str = ""
    """"all": nothing is given out; "files": the README is, as the hub does."""

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for name, content in sorted(self.files.items()):
            digest.update(f"{name}\0".encode() + content + b"\0")
        return digest.hexdigest()


class FakeHub:
    """Answers from `repos` and `blobs`; `failures` holds statuses that a path answers with before it answers well."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.old: dict[str, Repo] = {}
        self.next: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.failures: dict[str, list[int]] = {}
        self.asked: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.connections = 0
        self.lock = threading.Lock()
        self.url = ""

    def put(self, name: str, repo: Repo) -> Repo:
        """A new commit of a repository; the old ones stay readable by their commits."""
        self.repos[name] = self.old[f"{name}@{repo.commit}"] = repo
        return repo

    def put_next(self, name: str, repo: Repo) -> Repo:
        """The commit that the repository is at once somebody posts to ``/advance/NAME``."""
        self.next[name] = repo
        return repo

    def put_blob(self, name: str, text: bytes) -> None:
        self.blobs[name] = gzip.compress(text)

    @contextmanager
    def serving(self) -> Iterator["FakeHub"]:
        hub = self

        class Handler(_Handler):
            fake = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    fake: FakeHub

    def setup(self) -> None:
        super().setup()
        with self.fake.lock:
            self.fake.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        url = urlparse(self.path)
        parts = unquote(url.path).strip("/").split("/")
        with self.fake.lock:
            self.fake.asked[url.path] += 1
            failures = self.fake.failures.get(url.path, [])
            status = failures.pop(0) if failures else 0
        if status:
            self._error(status, "")
        elif parts[0] == "content":
            blob = self.fake.blobs.get(parts[1])
            self._error(404, "") if blob is None else self._send(blob)
        elif parts[:2] == ["api", "datasets"]:
            self._api("/".join(parts[2:4]), parts[4:], parse_qs(url.query))
        elif parts[0] == "datasets" and parts[3] == "resolve":
            self._resolve("/".join(parts[1:3]), parts[4], "/".join(parts[5:]))
        else:
            self._error(404, "")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        if parts[0] == "advance":
            name = "/".join(parts[1:])
            self.fake.put(name, self.fake.next[name])
            return self._json({})
        repo = self._repo("/".join(parts[2:4]), parts[5])
        if repo is not None:
            tree = {entry["path"]: entry for entry in _tree(repo)}
            self._json([tree[path] for path in parse_qs(body)["paths"] if path in tree])
        return None

    def _repo(self, name: str, revision: str) -> Repo | None:
        """The repository at that revision; where there is none, the error is sent."""
        repo = self.fake.repos.get(name)
        if repo is None:
            self._error(404, "RepoNotFound")
        elif revision not in ("main", repo.commit):
            repo = self.fake.old.get(f"{name}@{revision}")
            if repo is None:
                self._error(404, "RevisionNotFound")
        return repo

    def _api(self, name: str, rest: list[str], query: dict[str, list[str]]) -> None:
        repo = self._repo(name, rest[1] if len(rest) > 1 else "main")
        if repo is None:
            return None
        if rest[:1] == ["tree"]:
            folder = "/".join(rest[2:])
            recursive = query.get("recursive", ["false"])[0].lower() in ("1", "true")
            inside = [e for e in _tree(repo) if not folder or e["path"].startswith(f"{folder}/")]
            if folder and not inside:
                return self._error(404, "EntryNotFound")
            level = f"{folder}/".count("/") if folder else 0
            return self._json([e for e in inside if recursive or e["path"].count("/") == level])
        return self._json(
            {"id": name, "sha": repo.commit, "siblings": [{"rfilename": path} for path in repo.files], "tags": []}
        )

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        if repo.gated == "all" or (repo.gated == "files" and path != "README.md"):
            self._error(403 if "Authorization" in self.headers else 401, "GatedRepo")
        elif path not in repo.files:
            self._error(404, "EntryNotFound", {"X-Repo-Commit": repo.commit})
        else:
            content = repo.files[path]
            tag = hashlib.sha1(content).hexdigest()
            self._send(content, {"X-Repo-Commit": repo.commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}, path)

    def _send(self, content: bytes, headers: dict[str, str] | None = None, path: str = "") -> None:
        wanted, status, headers = self.headers.get("Range", ""), 200, dict(headers or {})
        if wanted.startswith("bytes="):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            with self.fake.lock:
                self.fake.sent[path] += len(content)
            self.wfile.write(content)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": "0", "X-Error-Code": code, **(headers or {})}.items():
            if value:
                self.send_header(key, value)
        self.end_headers()


def _tree(repo: Repo) -> list[dict[str, Any]]:
    folders = {"/".join(path.split("/")[:i]) for path in repo.files for i in range(1, path.count("/") + 1)}
    return [
        *({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)),
        *(
            {"type": "file", "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
            for path, content in sorted(repo.files.items())
        ),
    ]

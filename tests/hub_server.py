"""A server that speaks as much of the Hugging Face hub as downloading a model takes."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class HubServer:
    """Serves the folders of models as repositories, and counts what is asked for.

    Attributes:
        repositories: folder by repository and commit; `main` is the last commit.
        requests: method and path of every request, without queries.
        holds: asked again and again before weights are sent, until it says no.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Path]] = {}
        self.requests: list[tuple[str, str]] = []
        self.holds: Callable[[], bool] = lambda: False

    def push(self, repository: str, folder: Path) -> str:
        """Make a folder the newest commit of a repository; the commit."""
        commits = self.repositories.setdefault(repository, {})
        commit = hashlib.sha1(f"{repository} {len(commits)}".encode()).hexdigest()
        commits[commit] = folder
        return commit

    def num_questions(self) -> int:
        """How often it was asked what there is."""
        return sum(path.startswith("/api/") for _, path in self.requests)

    def downloads(self, suffix: str = ".safetensors") -> list[str]:
        """Files of which the content was asked for, with repetitions."""
        return [p for method, p in self.requests if method == "GET" and p.endswith(suffix)]

    @contextmanager
    def running(self) -> Iterator[str]:
        """The address under which it answers."""
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub._answer(self)

            def do_HEAD(self) -> None:
                hub._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}"
            server.shutdown()
            thread.join()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = urlsplit(handler.path).path
        self.requests.append((handler.command, path))
        headers, body = self._find(path)
        handler.send_response(200 if headers is not None else 404)
        is_known = any(f"/{repository}/" in path for repository in self.repositories)
        missing = {"X-Error-Code": "EntryNotFound" if is_known else "RepoNotFound"}
        for name, value in (headers or missing).items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if handler.command == "GET":
            while path.endswith(".safetensors") and self.holds():
                time.sleep(0.02)
            handler.wfile.write(body)

    def _find(self, path: str) -> tuple[dict[str, str] | None, bytes]:
        words = path.strip("/").split("/")
        if words[:2] == ["api", "models"]:
            # api/models/OWNER/NAME/(revision|tree)/REVISION
            commits = self.repositories.get("/".join(words[2:4]))
            if (
                commits is None or len(words) > 6
            ):  # a folder of it: ours have none that is asked for
                return None, b""
            commit = self._commit(commits, words[5] if len(words) > 5 else "main")
            files = sorted(p for p in commits[commit].rglob("*") if p.is_file())
            names = [str(p.relative_to(commits[commit])) for p in files]
            document: object = {
                "id": "/".join(words[2:4]),
                "sha": commit,
                "siblings": [{"rfilename": name} for name in names],
            }
            if len(words) > 4 and words[4] == "tree":
                document = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": _etag(file)}
                    for name, file in zip(names, files, strict=True)
                ]
            return {"Content-Type": "application/json"}, json.dumps(document).encode()
        # OWNER/NAME/resolve/REVISION/FILE
        commits = self.repositories.get("/".join(words[:2]))
        if commits is None or words[2] != "resolve":
            return None, b""
        commit = self._commit(commits, words[3])
        file = commits[commit].joinpath(*words[4:])
        if not file.is_file():
            return None, b""
        return {"ETag": f'"{_etag(file)}"', "X-Repo-Commit": commit}, file.read_bytes()

    @staticmethod
    def _commit(commits: dict[str, Path], revision: str) -> str:
        return list(commits)[-1] if revision == "main" else revision


def _etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()

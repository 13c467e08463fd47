"""A hub on loopback, for the real clients: HF_ENDPOINT names it, folders are its repositories.

    with Hub() as hub:
        hub.add("facebook/opt-125m", folder)
        hub.add("codeparrot/codeparrot-clean-valid", other, kind="datasets", commit=40 * "a")
        run(env=os.environ | hub.environment)
        hub.asked("facebook/opt-125m", "model")   # [(method, path, Range), ...]

As on the hub, weights answer with a redirect to another place and their size and hash beforehand,
text with its bytes; a gated repository says what it is and gives no file.
"""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SMALL = {".json", ".txt", ".md", ".model"}  # in git itself, not beside it


class Repository:
    def __init__(self, folder, kind, commit, gated):
        self.folder, self.kind, self.commit, self.gated = Path(folder), kind, commit, gated

    def files(self):
        found = {p.relative_to(self.folder).as_posix(): p for p in self.folder.rglob("*")}
        return {name: path for name, path in sorted(found.items()) if path.is_file()}

    def entry(self, name):
        path = self.files()[name]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        about = {"type": "file", "path": name, "size": path.stat().st_size, "oid": digest[:40]}
        if path.suffix in SMALL:
            return about
        return about | {"lfs": {"oid": digest, "size": about["size"], "pointerSize": 130}}

    def tree(self, at, *, recursive):
        prefix = f"{at}/" if at else ""
        found = []
        for name in self.files():
            rest = name.removeprefix(prefix)
            if not name.startswith(prefix):
                continue
            head, _, below = rest.partition("/")
            folder = {"type": "directory", "path": prefix + head, "size": 0, "oid": 40 * "f"}
            if below and folder not in found:
                found.append(folder)
            if not below or recursive:
                found.append(self.entry(name))
        return found


class Hub:
    """The server; `requests` holds all that it was asked."""

    def __init__(self, address=("127.0.0.1", 0)):
        self.repositories, self.requests = {}, []
        self.cut = {}
        """Of a file's name, how many of its bytes are sent before the connection is dropped."""
        self._server = ThreadingHTTPServer(address, type("Handler", (_Handler,), {}))
        self._server.RequestHandlerClass.hub = self
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {"HF_ENDPOINT": self.url}

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def add(self, name, folder, *, kind="models", commit=COMMIT, gated=False):
        self.repositories[kind, name] = Repository(folder, kind, commit, gated)

    @contextlib.contextmanager
    def here(self, cache, *, offline=False):
        """Let this process's client ask this hub, with a cache of its own."""
        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        values = {"ENDPOINT": self.url, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        values |= {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": offline}
        values |= {"DOWNLOAD_CHUNK_SIZE": 10_000}  # what came of a chunk is lost in a cut
        with (
            mock.patch.multiple("huggingface_hub.constants", **values),
            mock.patch("huggingface_hub.hf_api.api.endpoint", self.url),
        ):
            yield

    def asked(self, *words, method="GET"):
        """Requests of this method whose path holds all the words."""
        return [r for r in self.requests if r[0] == method and all(word in r[1] for word in words)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    do_GET = do_POST = do_HEAD

    def _answer(self):
        url = urlsplit(self.path)
        path, query = unquote(url.path).strip("/"), parse_qs(url.query)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            kind, repository, rest = self._find(path)
        except KeyError:
            self._refuse(404, "RepoNotFound", "Repository not found")
            return
        if kind == "api":
            self._api(repository, rest, query, body)
        elif repository.gated:
            self._refuse(403, "GatedRepo", "Access to this repository is restricted")
        else:
            self._file(repository, rest[0], "/".join(rest[2:]))

    def _find(self, path):
        """What is asked for (api or file), the repository, and the words after its name."""
        words = path.split("/")
        what = "file"
        if words[0] == "api":
            what, words = "api", words[1:]
            kind, words = words[0], words[1:]
        elif words[0] == "datasets":
            kind, words = "datasets", words[1:]
        else:
            kind = "models"
        return what, self.hub.repositories[kind, "/".join(words[:2])], words[2:]

    def _api(self, repository, rest, query, body):
        if not rest or rest[0] == "revision":
            if rest and rest[1] not in ("main", repository.commit):
                self._refuse(404, "RevisionNotFound", f"Invalid rev id: {rest[1]}")
                return
            name = next(n for (_, n), r in self.hub.repositories.items() if r is repository)
            siblings = [{"rfilename": file} for file in repository.files()]
            about = {"_id": "1", "id": name, "modelId": name, "sha": repository.commit}
            about |= {"private": False, "gated": "manual" if repository.gated else False}
            about |= {"disabled": False, "downloads": 1, "likes": 0, "tags": []}
            self._json(about | {"siblings": siblings, "lastModified": "2024-01-01T00:00:00.000Z"})
        elif rest[0] == "tree":
            recursive = query.get("recursive", ["false"])[0].lower() == "true"
            found = repository.tree("/".join(rest[2:]), recursive=recursive)
            if found:
                self._json(found)
            else:
                self._refuse(404, "EntryNotFound", "no such folder")
        elif rest[0] == "paths-info":
            asked = self._asked_paths(body)
            files = repository.files()
            everything = {entry["path"]: entry for entry in repository.tree("", recursive=True)}
            self._json([everything[p] for p in asked if p in files or p in everything])
        else:
            self._refuse(404, "EntryNotFound", "no such page")

    def _asked_paths(self, body):
        if "json" in (self.headers.get("Content-Type") or ""):
            paths = json.loads(body)["paths"]
            return [paths] if isinstance(paths, str) else paths
        return parse_qs(body.decode()).get("paths", [])

    def _file(self, repository, step, name):
        path = repository.files().get(name)
        if path is None:
            self._refuse(404, "EntryNotFound", "Entry not found", commit=repository.commit)
            return
        entry, size = repository.entry(name), path.stat().st_size
        large = "lfs" in entry
        digest = entry["lfs"]["oid"] if large else entry["oid"]
        about = {"X-Repo-Commit": repository.commit, "Accept-Ranges": "bytes"}
        if large and step == "resolve":
            self.send_response(302)
            linked = {"X-Linked-Size": str(size), "X-Linked-ETag": f'"{digest}"'}
            place = self.path.replace("/resolve/", "/cdn/", 1)
            host = f"http://{self.headers['Host']}"
            self._end(about | linked | {"Location": host + place, "Content-Length": "0"})
            return
        content, status = path.read_bytes(), 200
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(int(last) if last else size - 1, size - 1)
            content, status = content[begin : end + 1], 206
            about["Content-Range"] = f"bytes {begin}-{end}/{size}"
        self.send_response(status)
        self._end(about | {"ETag": f'"{digest}"', "Content-Length": str(len(content))})
        if self.command == "HEAD":
            return
        if name in self.hub.cut and len(content) > self.hub.cut[name]:
            self.wfile.write(content[: self.hub.cut.pop(name)])
            self.close_connection = True
            return
        self.wfile.write(content)

    def _json(self, value):
        content = json.dumps(value).encode()
        self.send_response(200)
        self._end({"Content-Type": "application/json", "Content-Length": str(len(content))})
        if self.command != "HEAD":
            self.wfile.write(content)

    def _refuse(self, status, code, words, commit=None):
        self.send_response(status)
        about = {"X-Error-Code": code, "X-Error-Message": words, "Content-Length": "0"}
        self._end(about | ({"X-Repo-Commit": commit} if commit else {}))

    def _end(self, headers):
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

"""A small Hub on this machine for tests: it speaks enough of the real one's protocol for the real client.

Repositories of models and data sets live in memory: commits with a parent, branches, regular and large files. Large
files go by the LFS protocol, in one piece or in parts, and are refused where their bytes are not what was announced.
A test looks at what is stored (`hub.files(...)`) and at the `hub.requests`, and lets requests fail (`hub.fail`).
"""

import base64
import contextlib
import dataclasses
import fnmatch
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_thisMustNeverBePrintedAnywhere0123"
_LARGE = ("*.safetensors", "*.parquet")


@dataclasses.dataclass(frozen=True)
class Commit:
    """files: path -> bytes."""

    oid: str
    parent: str | None
    message: str
    files: dict[str, bytes]


@dataclasses.dataclass
class Repo:
    private: bool
    branches: dict[str, str] = dataclasses.field(default_factory=dict)
    commits: dict[str, Commit] = dataclasses.field(default_factory=dict)

    def commit(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        parent = self.branches.get(branch)
        oid = hashlib.sha1(f"{len(self.commits)} {branch} {message} {parent}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, message, files)
        self.branches[branch] = oid
        return self.commits[oid]

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision, revision))


@dataclasses.dataclass
class Failure:
    """What happens to requests whose "METHOD /path" matches `where`; see `Hub.fail`."""

    where: str
    times: int
    status: int | None
    cut: int | None
    lost: bool
    delay_s: float
    then: Callable[[], None] | None


class Hub(ThreadingHTTPServer):
    """The server.

    `url` is its address, `requests` are the (method, path, authorization, body bytes received) of all requests, and
    `ranges` the parts of files that were requested.
    """

    daemon_threads = True

    def __init__(self, part_size: int | None = None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.tokens = {TOKEN}
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.part_size = part_size
        self.requests: list[tuple[str, str, str | None, int]] = []
        self.ranges: list[str] = []
        self.failures: list[Failure] = []
        self.lock = threading.RLock()

    def fail(
        self,
        where: str,
        status: int | None = None,
        times: int = 1,
        cut: int | None = None,
        lost: bool = False,
        delay_s: float = 0.0,
        then: Callable[[], None] | None = None,
    ) -> None:
        """Lets the next requests fail.

        Args:
            where: pattern of "METHOD /path", such as "PUT /lfs/*".
            status: answered in place of the real answer; nothing is done.
            times: how many requests.
            cut: the connection breaks after so many bytes: of the body of an upload, or of the answer to a GET.
            lost: the request is carried out, and its answer never sent.
            delay_s: waited before anything is answered.
            then: called before anything is answered.
        """
        self.failures.append(Failure(where, times, status, cut, lost, delay_s, then))

    def failure_of(self, request: str) -> Failure | None:
        with self.lock:
            for failure in self.failures:
                if failure.times > 0 and fnmatch.fnmatchcase(request, failure.where):
                    failure.times -= 1
                    return failure
        return None

    def files(self, name: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Path -> bytes of a revision, without the .gitattributes that the Hub itself writes."""
        commit = self.repos[kind, name].at(revision)
        return {path: data for path, data in commit.files.items() if path != ".gitattributes"}

    def log(self, name: str, revision: str = "main", kind: str = "model") -> list[str]:
        """Messages of the commits, newest first, without the Hub's own first one."""
        repo, messages = self.repos[kind, name], []
        commit = repo.at(revision)
        while commit.parent is not None:
            messages.append(commit.message)
            commit = repo.commits[commit.parent]
        return messages

    def count(self, where: str) -> int:
        """How many requests matched a pattern of "METHOD /path"."""
        return sum(fnmatch.fnmatchcase(f"{method} {path}", where) for method, path, _, _ in self.requests)

    def received(self, where: str) -> list[int]:
        """Body bytes of each matching request."""
        return [size for method, path, _, size in self.requests if fnmatch.fnmatchcase(f"{method} {path}", where)]


@contextlib.contextmanager
def running(part_size: int | None = None):
    """A Hub that answers until the block ends; with `part_size` large files come in parts of so many bytes."""
    hub = Hub(part_size)
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def environment(hub: Hub | str, home, token: str | None = TOKEN) -> dict[str, str]:
    """Settings by which a process of its own talks to the Hub."""
    url = hub if isinstance(hub, str) else hub.url
    return {
        "HF_ENDPOINT": url, "HF_TOKEN": token or "", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }  # fmt: skip


def connect(monkeypatch, hub: Hub | str, home, token: str | None = TOKEN) -> None:
    """The same for the client in this process, which has read its settings already."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    url = hub if isinstance(hub, str) else hub.url
    for name, value in environment(url, home, token).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(home / "modules"))
    monkeypatch.setattr("transformers.utils.hub._hf_api", None)
    close_session()


def no_waiting(monkeypatch) -> None:
    """The client does not wait between its attempts."""
    from types import SimpleNamespace

    still = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    for module in ("huggingface_hub.utils._http", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.time", still)


class _Broken(Exception):
    """The connection is cut here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits for the acknowledgement of its headers
    server: Hub

    def log_message(self, *args):
        pass

    def _serve(self) -> None:
        address = urlsplit(self.path)
        self.route, self.query = unquote(address.path), parse_qs(address.query)
        self.failure = failure = self.server.failure_of(f"{self.command} {self.route}")
        if failure and failure.delay_s:
            time.sleep(failure.delay_s)
        if failure and failure.then:
            failure.then()
        try:
            body = self._body(None if failure is None or self.command == "GET" else failure.cut)
            self.server.requests.append((self.command, self.route, self.headers.get("Authorization"), len(body)))
            if failure and failure.cut is not None and self.command != "GET":
                raise _Broken
            if failure and failure.status is not None:
                # As a careless proxy would: what was sent stands in the answer.
                return self._json({"error": f"no, {self.headers.get('Authorization')}"}, failure.status)
            with self.server.lock:
                self._dispatch(body)
        except _Broken:
            self._hang_up()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self, cut: int | None) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            data = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                data += self.rfile.read(size)
                self.rfile.readline()
                if cut is not None and len(data) >= cut:
                    return data[:cut]
            self.rfile.readline()
            return data
        length = int(self.headers.get("Content-Length") or 0)
        return self.rfile.read(length if cut is None else min(cut, length))

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def _json(self, value, status: int = 200, **headers: str) -> None:
        self._bytes(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})

    def _error(self, status: int, message: str, code: str | None = None) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._json({"error": message}, status, **headers)

    def _bytes(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        if self.failure and self.failure.lost:
            raise _Broken
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.failure.cut if self.failure and self.command == "GET" else None
        self.wfile.write(content if cut is None else content[:cut])
        if cut is not None:
            self.wfile.flush()
            raise _Broken

    @property
    def _known(self) -> bool:
        given = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        return given in self.server.tokens

    def _dispatch(self, body: bytes) -> None:
        for method, pattern, handler, needs_token in _ROUTES:
            match = re.fullmatch(pattern, self.route)
            if match and self.command in method.split("|"):
                if needs_token and not self._known:
                    return self._error(401, "Invalid credentials in Authorization header")
                return handler(self, body, **match.groupdict())
        self._error(404, f"no such route: {self.command} {self.route}")

    def _repo(self, kind: str | None, name: str) -> Repo | None:
        """The repository, or None after an answer: as the real Hub, it does not tell what is private from nothing."""
        repo = self.server.repos.get(((kind or "models").removesuffix("s"), name))
        if repo is None or (repo.private and not self._known):
            self._error(404 if self._known else 401, "Repository not found", "RepoNotFound")
            return None
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> Commit | None:
        commit = repo.at(revision)
        if commit is None:
            self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    # What the client requests, in the order in which a push does.

    def _whoami(self, body):
        self._json({"name": "tester", "type": "user", "orgs": [{"name": "org"}]})

    def _create(self, body):
        given = json.loads(body)
        name = f"{given.get('organization') or 'tester'}/{given['name']}"
        kind = given.get("type") or "model"
        url = f"{self.server.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.server.repos:
            return self._json({"error": f"You already created this {kind} repo", "url": url}, 409)
        repo = self.server.repos[kind, name] = Repo(given.get("visibility") == "private" or bool(given.get("private")))
        repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self._json({"url": url, "name": name, "id": name})

    def _validate_yaml(self, body):
        self._json({"errors": [], "warnings": []})

    def _branch(self, body, kind, name, branch):
        if (repo := self._repo(kind, name)) is None:
            return
        if branch in repo.branches:
            return self._error(409, f"Reference already exists: {branch}")
        start = (json.loads(body) if body else {}).get("startingPoint") or "main"
        if (commit := self._commit_of(repo, start)) is not None:
            repo.branches[branch] = commit.oid
            self._json({})

    def _preupload(self, body, kind, name, revision):
        repo = self._repo(kind, name)
        commit = repo and self._commit_of(repo, revision)
        if commit is None:
            return
        files = []
        for file in json.loads(body)["files"]:
            large = any(fnmatch.fnmatch(file["path"], pattern) for pattern in _LARGE)
            old = commit.files.get(file["path"])
            files.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": None if old is None else (hashlib.sha256(old).hexdigest() if large else _git_oid(old)),
                }
            )
        self._json({"files": files, "commitOid": commit.oid})

    def _batch(self, body, kind, name):
        if self._repo(kind, name) is None:
            return
        objects = []
        for given in json.loads(body)["objects"]:
            oid, size, url = given["oid"], given["size"], self.server.url
            answer = {"oid": oid, "size": size}
            if oid not in self.server.objects:
                upload: dict = {"href": f"{url}/lfs/object/{oid}", "header": {}}
                if self.server.part_size and size > self.server.part_size:
                    count = -(-size // self.server.part_size)
                    links = {str(number): f"{url}/lfs/part/{oid}/{number}" for number in range(1, count + 1)}
                    upload = {
                        "href": f"{url}/lfs/complete/{oid}",
                        "header": {"chunk_size": str(self.server.part_size), **links},
                    }
                answer["actions"] = {"upload": upload, "verify": {"href": f"{url}/lfs/verify", "header": {}}}
            objects.append(answer)
        self._json({"transfer": "multipart" if self.server.part_size else "basic", "objects": objects})

    def _put_object(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            return self._error(400, "the content is not what was announced")
        self.server.objects[oid] = body
        self._json({})

    def _put_part(self, body, oid, number):
        self.server.parts[oid, int(number)] = body
        self._json({}, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def _complete(self, body, oid):
        parts = sorted(json.loads(body)["parts"], key=lambda part: part["partNumber"])
        self._put_object(b"".join(self.server.parts.pop((oid, part["partNumber"])) for part in parts), oid)

    def _verify(self, body):
        given = json.loads(body)
        stored = self.server.objects.get(given["oid"])
        if stored is None or len(stored) != given["size"]:
            return self._error(404, "object not found")
        self._json({})

    def _commit(self, body, kind, name, revision):
        repo = self._repo(kind, name)
        head = repo and self._commit_of(repo, revision)
        if head is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, head.oid):
            return self._error(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self._error(400, "a large file was never uploaded")
                files[value["path"]] = self.server.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    return self._error(404, "A file with this name doesn't exist", "EntryNotFound")
            elif line["key"] == "deletedFolder":
                files = {path: data for path, data in files.items() if not path.startswith(value["path"])}
        commit = repo.commit(revision, header["summary"], files)
        url = f"{self.server.url}/{name}/commit/{commit.oid}"
        self._json({"success": True, "commitOid": commit.oid, "commitUrl": url})

    # What it requests to load.

    def _info(self, body, kind, name, revision="main"):
        repo = self._repo(kind, name)
        commit = repo and self._commit_of(repo, revision)
        if commit is not None:
            siblings = [{"rfilename": path} for path in sorted(commit.files)]
            self._json({"id": name, "modelId": name, "sha": commit.oid, "private": repo.private, "siblings": siblings,
                        "tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False})  # fmt: skip

    def _refs(self, body, kind, name):
        if repo := self._repo(kind, name):
            branches = [{"name": b, "ref": f"refs/heads/{b}", "targetCommit": oid} for b, oid in repo.branches.items()]
            self._json({"branches": branches, "tags": [], "converts": []})

    def _tree(self, body, kind, name, revision, folder=""):
        repo = self._repo(kind, name)
        commit = repo and self._commit_of(repo, revision)
        if commit is None:
            return
        folder = f"{folder}/" if folder else ""
        found = {path: data for path, data in commit.files.items() if path.startswith(folder)}
        if folder and not found:
            return self._error(404, "path does not exist", "EntryNotFound")
        recursive = self.query.get("recursive", [""])[0].lower() in ("true", "1")
        entries = []
        for path, data in sorted(found.items()):
            rest = path[len(folder) :]
            if "/" in rest and not recursive:
                of = {"type": "directory", "path": folder + rest.split("/")[0], "size": 0, "oid": "0" * 40}
                entries += [of] if of not in entries else []
            else:
                entries.append({"type": "file", **_entry(path, data)})
        self._json(entries)

    def _paths_info(self, body, kind, name, revision):
        repo = self._repo(kind, name)
        commit = repo and self._commit_of(repo, revision)
        if commit is not None:
            given = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            self._json([{"type": "file", **_entry(p, commit.files[p])} for p in given if p in commit.files])

    def _resolve(self, body, name, revision, path, kind=None):
        repo = self._repo(kind, name)
        commit = repo and self._commit_of(repo, revision)
        if commit is None:
            return
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            return self._json({"error": "Entry not found"}, 404, **headers, **{"X-Error-Code": "EntryNotFound"})
        data = commit.files[path]
        entry = _entry(path, data)
        headers["ETag"] = f'"{entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]}"'
        if "lfs" in entry:
            headers |= {"X-Linked-ETag": headers["ETag"], "X-Linked-Size": str(len(data))}
        given = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if given is None or self.command == "HEAD":
            return self._bytes(data, 200, headers)
        self.server.ranges.append(f"{path} {given[0]}")
        first, last = int(given[1]), min(int(given[2] or len(data) - 1), len(data) - 1)
        if first >= len(data):
            return self._bytes(b"", 416, headers | {"Content-Range": f"bytes */{len(data)}"})
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        self._bytes(data[first : last + 1], 206, headers)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict:
    if any(fnmatch.fnmatch(path, pattern) for pattern in _LARGE):
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return {"path": path, "size": len(data), "oid": _git_oid(lfs["oid"].encode()), "lfs": lfs}
    return {"path": path, "size": len(data), "oid": _git_oid(data)}


_API = r"/api/(?P<kind>models|datasets)/(?P<name>[^/]+/[^/]+)"
_FILE = r"(?P<name>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)"
# (methods, path, what answers, whether a token is needed)
_ROUTES = [
    ("GET", r"/api/whoami-v2", _Handler._whoami, True),
    ("POST", r"/api/repos/create", _Handler._create, True),
    ("POST", r"/api/validate-yaml", _Handler._validate_yaml, False),
    ("POST", _API + r"/branch/(?P<branch>.+)", _Handler._branch, True),
    ("POST", _API + r"/preupload/(?P<revision>.+)", _Handler._preupload, True),
    ("POST", _API + r"/commit/(?P<revision>.+)", _Handler._commit, True),
    ("POST", r"/(?:(?P<kind>datasets)/)?(?P<name>[^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler._batch, True),
    ("PUT", r"/lfs/object/(?P<oid>\w+)", _Handler._put_object, False),
    ("PUT", r"/lfs/part/(?P<oid>\w+)/(?P<number>\d+)", _Handler._put_part, False),
    ("POST", r"/lfs/complete/(?P<oid>\w+)", _Handler._complete, False),
    ("POST", r"/lfs/verify", _Handler._verify, True),
    ("GET", _API, _Handler._info, False),
    ("GET", _API + r"/revision/(?P<revision>.+)", _Handler._info, False),
    ("GET", _API + r"/refs", _Handler._refs, False),
    ("GET", _API + r"/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler._tree, False),
    ("POST", _API + r"/paths-info/(?P<revision>.+)", _Handler._paths_info, False),
    ("GET|HEAD", r"/(?P<kind>datasets)/" + _FILE, _Handler._resolve, False),
    ("GET|HEAD", r"/" + _FILE, _Handler._resolve, False),
]

"""Files of a hub by their address, against a stand-in of its API here: kept, used offline, refused in words."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from harness.errors import InputError
from harness.models._weight_files import fetched
from harness.models.var.checkpoint import load_transformer
from tests.unit.models.made_files import T

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = sorted(T)
SHARDS = {f"model-0000{i + 1}-of-00002.safetensors": save({key: T[key] for key in NAMES[i::2]}) for i in range(2)}
INDEX = {"weight_map": {key: f"model-0000{i + 1}-of-00002.safetensors" for i in range(2) for key in NAMES[i::2]}}
FILES = {
    "owner/net": {"small/var.safetensors": save(T), "readme.md": b"no weights"},
    "owner/sharded": {**SHARDS, "model.safetensors.index.json": json.dumps(INDEX).encode()},
}


@dataclass
class Hub:
    """A stand-in of the hub's API: metadata and content of files."""

    server: ThreadingHTTPServer
    asked: list[str] = field(default_factory=list)  # methods and paths of all requests

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        for name, files in FILES.items():
            for revision in ("main", COMMIT):
                file = path.removeprefix(f"/{name}/resolve/{revision}/")
                if file in files:
                    return send(request, 200, files[file], {"ETag": f'"{hashlib.sha256(files[file]).hexdigest()}"'})
            if path.startswith(f"/{name}/resolve/"):
                known = path.split("/")[4] in ("main", COMMIT)
                error = "EntryNotFound" if known else "RevisionNotFound"
                return send(request, 404, b"", {"X-Error-Code": error})
        if path.startswith("/owner/gated/"):
            return send(request, 403, b"", {"X-Error-Code": "GatedRepo"})
        return send(request, 401, b"", {"X-Error-Code": "RepoNotFound"})


def send(request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str]) -> None:
    request.send_response(status)
    for name, value in {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command == "GET":
        request.wfile.write(content)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    found: list[Hub] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found[0].answer(self)

        do_HEAD = do_GET

        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.append(Hub(server))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", place)  # what HF_ENDPOINT and HF_HOME say, read when it is imported
    template = f"{place}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    yield found[0]
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_file_is_fetched_once_and_its_commit_kept(stand_in: Hub):
    for _ in range(2):
        network, words = load_transformer("hf://owner/net/small/var.safetensors")
        assert words == f"target var.safetensors: revision {COMMIT}"
        assert all(torch.equal(weight, T[name]) for name, weight in network.weights.items())
    assert sum(each.startswith("GET /owner/net/resolve") for each in stand_in.asked) == 1
    assert load_transformer(Path("hf://owner/net/small/var.safetensors"))[1] == words


def test_what_is_cached_is_used_offline_too(stand_in: Hub, monkeypatch: pytest.MonkeyPatch):
    place = "hf://owner/net/small/var.safetensors"
    first = fetched(place, "target")
    asked = len(stand_in.asked)
    assert fetched(place, "target") == first
    assert len(stand_in.asked) == asked  # it may move on: this run is of what was there
    stand_in.server.shutdown()
    stand_in.server.server_close()
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # the library tries again
    assert fetched(place, "target") == first
    with pytest.raises(InputError, match="is not in the cache, and the hub cannot be reached; go online once, or pass"):
        fetched("hf://owner/net/other.pth", "target")


def test_an_index_brings_its_shards(stand_in: Hub):
    network, words = load_transformer("hf://owner/sharded/model.safetensors.index.json")
    assert "2 shards" in words
    assert f"revision {COMMIT}" in words
    assert torch.equal(network.weights["head.weight"], T["head.weight"])


def test_a_revision_is_asked_for(stand_in: Hub):
    load_transformer(f"hf://owner/net@{COMMIT}/small/var.safetensors")
    assert f"GET /owner/net/resolve/{COMMIT}/small/var.safetensors" in stand_in.asked


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("hf://owner", "must read hf://OWNER/NAME/FILE; pass --target hf://FoundationVision/var/var_d16.pth"),
        ("hf://owner/net", "must read hf://OWNER/NAME/FILE; pass --target hf://FoundationVision/var/var_d16.pth"),
        ("hf://owner/net/none.pth", "has no file none.pth"),
        ("hf://owner/net@nine/small/var.safetensors", "has no revision nine"),
        ("hf://owner/nobody/a.pth", "is no repository of the hub, or a private one"),
        ("hf://owner/gated/a.pth", "is for those whom its owners let in; ask for access"),
        ("hf://owner/a b/c.pth", "cannot be fetched ("),
    ],
)
def test_what_the_hub_refuses_is_one_line(place: str, said: str, stand_in: Hub):
    with pytest.raises(InputError) as caught:
        fetched(place, "target")
    assert str(caught.value).startswith(f"target={place}: {said}")

"""Downloads from a server that misbehaves."""

import gzip
import hashlib
import http.server
import multiprocessing
import resource
import threading
import time
import urllib.error
import urllib.request

import pytest
from helpers import raises

from resnet_backbone.errors import ArgumentError
from resnet_backbone.weights import CheckpointError, DownloadError
from resnet_backbone.weights import download as module
from resnet_backbone.weights.download import cached_path, fetch, hash_in_name

CONTENT = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"model-{DIGEST[:8]}.pth"


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests = []
        self.headers = {}
        """Headers in place of the usual ones; ``None`` leaves one out."""
        self.drops = []
        """After how many bytes each of the next transfers ends."""
        self.stall = 0.0
        self.pause = 0.0
        self.failures = []
        """The statuses with which the next requests are answered."""
        self.content = CONTENT
        self.location = f"/{NAME}"

    def url(self, path=NAME):
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def handle_error(self, request, client_address):
        """Ignore clients that close the connection."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append(self.path)
        if self.path.startswith("/redirect/"):
            code = int(self.path.split("/")[2])
            self.send_response(code)
            self.send_header("Location", server.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.failures:
            self.send_error(server.failures.pop(0))
            return
        time.sleep(server.pause)
        content = server.content
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **server.headers}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if server.drops:
            self.wfile.write(content[: server.drops.pop(0)])
            self.wfile.flush()
            if server.stall:
                time.sleep(server.stall)
            self.close_connection = True
            return
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "PAUSE", 0.01)
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def nothing_but(hub_dir, *names):
    return sorted(path.name for path in hub_dir.iterdir() if path.is_file()) == sorted(names)


def test_file_is_downloaded_once(server, hub_dir):
    path = fetch(server.url(), progress=False)
    assert path == hub_dir / NAME
    assert path.read_bytes() == CONTENT
    assert fetch(server.url(), progress=False) == path
    assert len(server.requests) == 1
    assert nothing_but(hub_dir, NAME)


def test_interrupted_download_is_retried(server, hub_dir):
    server.drops = [300_000, 200_000]
    assert fetch(server.url(), progress=False).read_bytes() == CONTENT
    assert len(server.requests) == 3
    assert nothing_but(hub_dir, NAME)


def test_stalled_download_is_retried(server, hub_dir, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    server.drops, server.stall = [300_000], 5
    assert fetch(server.url(), progress=False).read_bytes() == CONTENT
    assert len(server.requests) == 2
    assert nothing_but(hub_dir, NAME)


def test_unresponsive_server(server, hub_dir):
    server.drops = [0] * 20
    with raises(DownloadError, server.url(), "0", "1048576"):
        fetch(server.url(), progress=False)
    assert len(server.requests) == module.ATTEMPTS
    assert nothing_but(hub_dir)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect(code, server):
    assert fetch(server.url(f"redirect/{code}/{NAME}"), progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("location", ["ftp://127.0.0.1/model.pth", "file:///etc/passwd", "data:,weights"])
def test_redirect_to_another_protocol(location, server, hub_dir):
    server.location = location
    with raises(DownloadError, "model.pth", "HTTP 302", location.partition(":")[0]):
        fetch(server.url("redirect/302/model.pth"), progress=False)
    assert nothing_but(hub_dir)


def test_redirect_from_https_to_http():
    request = urllib.request.Request("https://example.com/model.pth")
    with raises(urllib.error.HTTPError, "302", "http"):
        module._Redirects().redirect_request(request, None, 302, "Found", {}, "http://example.com/model.pth")


class DamagedError(CheckpointError):
    pass


def check(path):
    """Replacement for reading the file, which fails if it is incomplete."""
    if path.read_bytes() != CONTENT:
        raise DamagedError(f"{path} is damaged")


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ({"Content-Length": "1000"}, CONTENT),
        ({"Content-Length": None, "Connection": "close"}, CONTENT[:-1]),
        ({"Content-Type": "text/plain"}, CONTENT.decode("latin1").encode()),
    ],
    ids=["length too small", "cut, of unknown length", "in another character encoding"],
)
def test_file_without_a_hash_is_read_before_caching(headers, content, server, hub_dir):
    server.headers, server.content = headers, content
    url = server.url("model.pth")
    with raises(DamagedError, url):
        fetch(url, progress=False, check=check)
    assert nothing_but(hub_dir)
    server.headers, server.content = {}, CONTENT
    assert fetch(url, progress=False, check=check).read_bytes() == CONTENT


def test_wrong_length_is_retried_then_raises(server, hub_dir):
    server.headers = {"Content-Length": str(2 * len(CONTENT)), "Connection": "close"}
    with raises(DownloadError, server.url(), "1048576", "2097152"):
        fetch(server.url(), progress=False)
    assert len(server.requests) == module.ATTEMPTS
    assert nothing_but(hub_dir)


def test_encoded_body(server, hub_dir):
    server.headers, server.content = {"Content-Encoding": "gzip"}, gzip.compress(CONTENT)
    with raises(DownloadError, server.url(), "gzip"):
        fetch(server.url(), progress=False)
    assert len(server.requests) == 1
    assert nothing_but(hub_dir)


def test_tokens_are_not_in_messages(server):
    server.failures = [404, 404]
    urls = server.url("model.pth?token=secret"), server.url().replace("http://", "http://user:secret@")
    for url in (*urls, "http://user:secret@127.0.0.1/model.pth"):
        with raises(DownloadError, "model") as caught:
            fetch(url, progress=False)
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://[", "http://[::1/model.pth"])
def test_invalid_url(url):
    with raises(ArgumentError, "source", repr(url), "URL"):
        fetch(url)


def test_transient_errors_are_retried(server):
    server.failures = [503, 429, 500]
    assert fetch(server.url(), progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("code", [403, 404, 410, 416])
def test_permanent_errors_are_not_retried(code, server, hub_dir):
    server.failures = [code]
    with raises(DownloadError, server.url(), f"HTTP {code}"):
        fetch(server.url(), progress=False)
    assert len(server.requests) == 1
    assert nothing_but(hub_dir)


def test_wrong_hash_in_the_name(server, hub_dir):
    server.content = b"something else"
    with raises(DownloadError, server.url(), "SHA-256", DIGEST[:8]):
        fetch(server.url(), progress=False)
    assert nothing_but(hub_dir)


def test_given_hash(server, hub_dir):
    with raises(DownloadError, server.url("model.pth"), "SHA-256", "12345678"):
        fetch(server.url("model.pth"), "12345678", progress=False)
    assert nothing_but(hub_dir)
    path = fetch(server.url("model.pth"), DIGEST.upper(), progress=False)
    with raises(DownloadError, str(path), "SHA-256", "sha256='12345678'", "delete"):
        fetch(server.url("model.pth"), "12345678", progress=False)
    assert path.exists()


def test_damaged_cached_file_is_downloaded_again(server, hub_dir):
    hub_dir.mkdir(parents=True)
    (hub_dir / NAME).write_bytes(CONTENT[:1000])
    assert fetch(server.url(), progress=False).read_bytes() == CONTENT


def test_web_page_instead_of_the_file(server, hub_dir):
    server.content = b"<!DOCTYPE html><html>Please log in</html>"
    with raises(DownloadError, server.url("model.pth"), "web page"):
        fetch(server.url("model.pth"), progress=False)
    assert nothing_but(hub_dir)


def test_connection_rejected():
    with raises(DownloadError, "http://127.0.0.1:9/model.pth", "refused"):
        fetch("http://127.0.0.1:9/model.pth", progress=False)


def test_two_files_with_the_same_name(server):
    assert cached_path(server.url("MSRA/R-50.pkl")) != cached_path(server.url("torchvision/R-50.pkl"))
    assert cached_path(server.url("MSRA/R-50.pkl")).name.endswith(".pkl")


def test_hash_in_name():
    assert hash_in_name("resnet18-f37072fd.pth") == "f37072fd"
    assert hash_in_name("r50_coco_20200504_163323-30042637.pth") == "30042637"
    assert hash_in_name("r50_coco-20200504.pth") is None
    assert hash_in_name("swav_800ep_pretrain.pth.tar") is None


def test_progress_is_shown(server, capsys):
    fetch(server.url())
    assert NAME in capsys.readouterr().err


def _fetch_in_process(url, results):
    results.put(hashlib.sha256(fetch(url, progress=False).read_bytes()).hexdigest())


def test_two_processes_at_once(server, hub_dir):
    server.pause = 0.5
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_fetch_in_process, args=(server.url(), results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in processes] == [DIGEST, DIGEST]
    for process in processes:
        process.join()
    assert len(server.requests) == 1
    assert nothing_but(hub_dir, NAME)


def test_two_threads_at_once(server, hub_dir):
    server.pause = 0.2
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(fetch(server.url(), progress=False))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [hub_dir / NAME] * 4
    assert len(server.requests) == 1


def test_read_only_cache(server, monkeypatch):
    path = fetch(server.url(), progress=False)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "FileLock", forbidden)
    assert fetch(server.url(), progress=False) == path
    with raises(DownloadError, server.url("other.pth"), str(cached_path(server.url("other.pth"))), "Permission denied"):
        fetch(server.url("other.pth"), progress=False)


def test_full_disk_is_not_retried(server, hub_dir):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, hard))
    try:
        with raises(DownloadError, server.url(), str(hub_dir / NAME), "File too large"):
            fetch(server.url(), progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(server.requests) == 1
    assert nothing_but(hub_dir)


@pytest.mark.parametrize("url", ["http:///model.pth", "http://127.0.0.1:port/model.pth"])
def test_malformed_url_is_not_retried(url, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("tried again"))
    with raises(DownloadError, url):
        fetch(url, progress=False)


@pytest.mark.parametrize(
    ("path", "asked"),
    [("my model.pth", "/my%20model.pth"), ("modèle.pth", "/mod%C3%A8le.pth"), ("a%20b.pth", "/a%20b.pth")],
)
def test_urls_are_escaped(path, asked, server):
    assert fetch(server.url(path), progress=False).read_bytes() == CONTENT
    assert server.requests[0] == asked

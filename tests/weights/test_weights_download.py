"""Downloads from a server that misbehaves."""

import hashlib
import http.server
import multiprocessing
import resource
import threading
import time

import pytest

from resnet_backbone.weights import DownloadError
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
        self.ranges = True
        self.etag = '"one"'
        self.drops = []
        """After how many bytes each of the next transfers ends."""
        self.stall = 0.0
        self.pause = 0.0
        self.failures = []
        """The statuses with which the next requests are answered."""
        self.content = CONTENT

    def url(self, path=NAME):
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def handle_error(self, request, client_address):
        """A client that hangs up is no news."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if self.path.startswith("/redirect/"):
            code = int(self.path.split("/")[2])
            self.send_response(code)
            self.send_header("Location", f"/{NAME}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.failures:
            self.send_error(server.failures.pop(0))
            return
        time.sleep(server.pause)
        begin = self.begin()
        content = server.content[begin:]
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(server.content) - 1}/{len(server.content)}")
        if server.etag:
            self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if server.drops:
            self.wfile.write(content[: server.drops.pop(0)])
            self.wfile.flush()
            if server.stall:
                time.sleep(server.stall)
            self.close_connection = True
            return
        self.wfile.write(content)

    def begin(self):
        requested = self.headers.get("Range")
        if not requested or not self.server.ranges or self.headers.get("If-Range") != self.server.etag:
            return 0
        return int(requested.removeprefix("bytes=").rstrip("-"))


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


def test_fetches_once_into_torch_hubs_cache(server, hub_dir):
    path = fetch(server.url(), progress=False)
    assert path == hub_dir / NAME
    assert path.read_bytes() == CONTENT
    assert fetch(server.url(), progress=False) == path
    assert len(server.requests) == 1
    assert nothing_but(hub_dir, NAME)


def test_dropped_transfer_is_resumed(server, hub_dir):
    server.drops = [300_000, 200_000]
    assert fetch(server.url(), progress=False).read_bytes() == CONTENT
    assert [requested for _, requested in server.requests] == [None, "bytes=300000-", "bytes=500000-"]
    assert nothing_but(hub_dir, NAME)


@pytest.mark.parametrize("etag", ['"one"', None, 'W/"weak"'])
def test_dropped_transfer_begins_anew_where_it_must(etag, server):
    server.etag, server.ranges, server.drops = etag, False, [300_000]
    assert fetch(server.url(), progress=False).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_new_version_in_the_middle_begins_anew(server):
    server.drops = [300_000]
    fetch_part(server)
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert fetch(server.url("model.pth"), progress=False).read_bytes() == CONTENT[::-1]


def fetch_part(server):
    """What an interrupted process leaves behind."""
    final = cached_path(server.url("model.pth"))
    final.parent.mkdir(parents=True)
    part = module._Part(final.with_name(f"{final.name}.part"), final.with_name(f"{final.name}.part.json"))
    with pytest.raises(module._Broken):
        module._request(server.url("model.pth"), part, lambda done, total: None, 5)
    assert part.size() == 300_000


def test_interrupted_process_is_resumed_by_the_next(server, hub_dir):
    server.drops = [300_000]
    fetch_part(server)
    path = fetch(server.url("model.pth"), progress=False)
    assert path.read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=300000-"
    assert nothing_but(hub_dir, path.name)


def test_bad_part_is_thrown_away(server, hub_dir):
    hub_dir.mkdir(parents=True)
    (hub_dir / f"{NAME}.part").write_bytes(b"garbage" * 1000)
    (hub_dir / f"{NAME}.part.json").write_text('{"version": "\\"one\\""}')
    assert fetch(server.url(), progress=False).read_bytes() == CONTENT
    assert [requested for _, requested in server.requests] == ["bytes=7000-", None]


def test_stalled_transfer_is_resumed(server, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    server.drops, server.stall = [300_000], 5
    assert fetch(server.url(), progress=False).read_bytes() == CONTENT
    assert server.requests[-1][1] == "bytes=300000-"


def test_server_that_never_delivers(server, hub_dir):
    server.drops = [0] * 20
    with pytest.raises(DownloadError, match="0 of 1048576 bytes") as caught:
        fetch(server.url(), progress=False)
    assert server.url() in str(caught.value)
    assert len(server.requests) == module.ATTEMPTS
    assert not (hub_dir / NAME).exists()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirect(code, server):
    assert fetch(server.url(f"redirect/{code}/{NAME}"), progress=False).read_bytes() == CONTENT


def test_passing_failures_are_tried_again(server):
    server.failures = [503, 429, 500]
    assert fetch(server.url(), progress=False).read_bytes() == CONTENT


@pytest.mark.parametrize("code", [403, 404, 410])
def test_final_failures_are_not(code, server, hub_dir):
    server.failures = [code]
    with pytest.raises(DownloadError, match=f"HTTP {code}"):
        fetch(server.url(), progress=False)
    assert len(server.requests) == 1
    assert nothing_but(hub_dir)


def test_wrong_hash_in_the_name(server, hub_dir):
    server.content = b"something else"
    with pytest.raises(DownloadError, match=f"SHA-256 does not begin with {DIGEST[:8]}"):
        fetch(server.url(), progress=False)
    assert nothing_but(hub_dir)


def test_given_hash(server, hub_dir):
    with pytest.raises(DownloadError, match="SHA-256 does not begin with 12345678"):
        fetch(server.url("model.pth"), "12345678", progress=False)
    assert nothing_but(hub_dir)
    path = fetch(server.url("model.pth"), DIGEST.upper(), progress=False)
    with pytest.raises(DownloadError, match="remove one of them"):
        fetch(server.url("model.pth"), "12345678", progress=False)
    assert path.exists()


def test_damaged_file_in_the_cache_is_fetched_again(server, hub_dir):
    hub_dir.mkdir(parents=True)
    (hub_dir / NAME).write_bytes(CONTENT[:1000])
    assert fetch(server.url(), progress=False).read_bytes() == CONTENT


def test_web_page_in_place_of_the_file(server, hub_dir):
    server.content = b"<!DOCTYPE html><html>Please log in</html>"
    with pytest.raises(DownloadError, match="web page"):
        fetch(server.url("model.pth"), progress=False)
    assert nothing_but(hub_dir)


def test_nobody_there():
    with pytest.raises(DownloadError, match="refused"):
        fetch("http://127.0.0.1:9/model.pth", progress=False)


def test_same_name_of_two_files(server):
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


def test_cache_that_only_others_may_write_to(server, monkeypatch):
    path = fetch(server.url(), progress=False)

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module, "FileLock", forbidden)
    assert fetch(server.url(), progress=False) == path
    with pytest.raises(DownloadError, match=r"other\.pth cannot be stored at .*Permission denied"):
        fetch(server.url("other.pth"), progress=False)


def test_full_disk_is_no_matter_of_patience(server, hub_dir):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(CONTENT) // 2, hard))
    try:
        with pytest.raises(DownloadError, match=r"cannot be stored at .*File too large"):
            fetch(server.url(), progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(server.requests) == 1
    assert not (hub_dir / NAME).exists()
    # What was stored is not fetched again once there is room.
    assert fetch(server.url(), progress=False).read_bytes() == CONTENT
    assert server.requests[-1][1] is not None


@pytest.mark.parametrize("url", ["http:///model.pth", "http://127.0.0.1:port/model.pth"])
def test_senseless_url_is_not_tried_again(url, monkeypatch):
    monkeypatch.setattr(module.time, "sleep", lambda seconds: pytest.fail("tried again"))
    with pytest.raises(DownloadError, match=f"{url} cannot be fetched"):
        fetch(url, progress=False)


@pytest.mark.parametrize(
    ("path", "asked"),
    [("my model.pth", "/my%20model.pth"), ("modèle.pth", "/mod%C3%A8le.pth"), ("a%20b.pth", "/a%20b.pth")],
)
def test_urls_are_escaped(path, asked, server):
    assert fetch(server.url(path), progress=False).read_bytes() == CONTENT
    assert server.requests[0][0] == asked

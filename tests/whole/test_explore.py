"""The explorer as strangers would use it: hostile requests are answered 4xx and leave the server up, others with what is asked."""

import io
import json
import re
import signal
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import sleep

import httpx
import numpy as np
import pytest
from PIL import Image

from dinoforge.base.errors import ConfigError, RunError, UserError
from dinoforge.data.sources.paths import Paths
from dinoforge.explore.stored import NAMES
from dinoforge.verbs.explore import _folder as kept_by_default
from explorer import HOSTILE, ROWS, dropped, page, place, sent, start  # noqa: F401 - fixtures

MOST = 20 * 2**20


def is_up(page):  # noqa: F811
    return page.ask.get("/api/search?row=1&count=3").status_code == 200


def png(width, height, pixels=b""):
    """A PNG file whose header says that size."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def head(page, line, *more):  # noqa: F811
    return "\r\n".join([line, f"Host: 127.0.0.1:{page.port}", *more, "", ""]).encode()


VIEWS = {
    "/": "/api/collection", "/search?row=1": "/api/search?row=1", "/copies": "/api/copies", "/outliers": "/api/outliers",
    "/region?row=1&left=0&top=0&right=0.5&bottom=0.5": "/api/region?row=1&left=0&top=0&right=0.5&bottom=0.5",
    "/parts?rows=1,2": "/api/parts?rows=1,2", "/match?row=1&other=2": "/api/match?row=1&other=2", "/map": "/api/map",
    "/contains?row=1": "/api/contains?row=1",
}  # fmt: skip


@pytest.mark.parametrize("path", VIEWS)
def test_a_page_shows_what_its_twin_answers(page, path):  # noqa: F811
    """Every row that is in the JSON is a link or picture of the page, and the other way round."""
    html, answer = page.ask.get(path), page.ask.get(VIEWS[path])
    assert (html.status_code, answer.status_code) == (200, 200)
    assert answer.headers["content-type"] == "application/json"
    rows = {int(row) for row in re.findall(r'"row": (\d+)', answer.text)}
    assert {int(row) for row in re.findall(r"(?:row/|\?row=|rows=)(\d+)", html.text)} - {1} == rows - {1}
    assert VIEWS[path].partition("?")[0] in page.ask.get("/openapi.json").json()["paths"]


def test_what_is_known_is_answered(page):  # noqa: F811
    whole = page.ask.get("/api/collection").json()
    assert (whole["total"], whole["matching"], whole["pages"]) == (ROWS, ROWS, 1)
    moths = page.ask.get("/api/collection", params={"label": "moth", "find": "1"}).json()["images"]
    assert {one["label_name"] for one in moths} == {"moth"}
    assert all("1" in one["id"] for one in moths)
    assert len(moths) < ROWS / 3
    twins = [one["row"] for one in page.ask.get("/api/copies").json()["groups"][0]["images"]]
    nearest = page.ask.get(f"/api/search?row={twins[0]}").json()["hits"][0]
    assert nearest["image"]["row"] == twins[1]
    assert nearest["similarity"] == pytest.approx(1, abs=2e-3)
    held = page.ask.get(f"/api/contains?row={twins[0]}").json()
    assert held["contained"]
    assert {match["kind"] for match in held["matches"]} == {"exact"}
    assert {job["state"] for job in page.ask.get("/api/progress").json()["jobs"]} == {"done"}


def test_an_upload_is_searched_for_and_not_in_the_training_set(page):  # noqa: F811
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(99).integers(0, 255, (20, 30, 3), np.uint8)).save(file, "PNG")
    key = page.ask.post("/api/upload", files={"file": ("a.png", file.getvalue())}).json()["upload"]
    found = page.ask.get(f"/api/search?upload={key}&count=5").json()
    assert (found["image"]["row"], len(found["hits"])) == (None, 5)
    assert not page.ask.get(f"/api/contains?upload={key}").json()["contained"]
    picture = page.ask.get(f"/picture/upload/{key}")
    assert picture.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(picture.content)).size == (30, 20)
    assert page.ask.get(f"/picture/upload/{key}", headers={"if-none-match": picture.headers["etag"]}).status_code == 304


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/picture/row/..%2f..%2fetc%2fpasswd", "/picture/upload/../../etc/passwd",
        "/style.css/../../../pyproject.toml", "/picture/row/-1", "/picture/row/1e3", "/picture/row/99999999999999999999",
        "/picture/row/999", "/picture/row/1?size=9999", f"/picture/upload/{'0' * 24}", "/picture/upload/zzz", "/search?row=abc",
        "/search?row=-1", "/search?row=1&upload=" + "a" * 24, f"/search?upload={'a' * 24}", "/search?row=1&count=1000000",
        "/search?row=1&file=/etc/passwd", "/search?row=1&row=x", "/search?row=%00", "/region?row=1&left=nan&top=0&right=1&bottom=1",
        "/region?row=1&left=0.5&top=0&right=0.5&bottom=1", "/region?row=1&left=-1&top=0&right=1&bottom=1", "/region?row=1&left=0",
        "/parts?rows=1,,2", "/parts?rows=" + ",".join("1" * 99), "/parts?rows=1,999", "/match?row=1&other=999", "/map?colour=secret",
        "/map?points=99999999", "/outliers?count=0", "/copies?page=0", "/?page=x", "/contains?row=1e9", "/docs", "/redoc",
    ],
)  # fmt: skip
def test_wrong_words_are_told_in_one_line(page, path):  # noqa: F811
    for wanted in (
        path,
        f"/api{path}" if path.startswith(("/search", "/region", "/parts", "/match", "/map")) else path,
    ):
        status, answer = sent(page.port, head(page, f"GET {wanted} HTTP/1.1"))
        assert 400 <= status < 500, (wanted, status, answer[:80])
        assert b"root:" not in answer
        assert b"Traceback" not in answer
        if wanted.startswith("/api"):
            (line,) = json.loads(answer).values()
            assert isinstance(line, str)
            assert "\n" not in line


@pytest.mark.parametrize(
    "host",
    [
        "evil.example:PORT",
        "127.0.0.1.nip.io:PORT",
        "evil.example",
        "evil.example:80",
        "127.0.0.1:1",
        "localhost.evil.example",
        "",
        "[::1",
        "127.0.0.1.nip.io",
    ],
)
def test_a_wrong_host_is_refused(page, host):  # noqa: F811
    """A foreign name that is made to point here (DNS rebinding) gets nothing, wherever it asks."""
    for path in ("/", "/api/collection", "/style.css", "/picture/row/1"):
        answer = page.ask.get(path, headers={"host": host.replace("PORT", str(page.port))})
        assert answer.status_code == 400
        assert "moth" not in answer.text


def test_other_names_of_this_machine_are_taken(page):  # noqa: F811
    for name in ("localhost", "127.0.0.1", "127.1.2.3", "[::1]"):
        assert page.ask.get("/api/progress", headers={"host": f"{name}:{page.port}"}).status_code == 200
    assert sent(page.port, b"GET / HTTP/1.0\r\n\r\n")[0] == 400


def test_other_sites_are_refused_unless_they_link(page):  # noqa: F811
    image = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    assert page.ask.get("/picture/row/1", headers=image).status_code == 403
    assert page.ask.get("/api/search?row=1", headers={"origin": "http://evil.example"}).status_code == 403
    assert page.ask.post("/upload", headers={"origin": "null"}, files={"file": b"x"}).status_code == 403
    link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert page.ask.get("/search?row=1", headers=link).status_code == 200


def test_every_answer_says_what_a_browser_may_do(page):  # noqa: F811
    for path, code in {"/": 200, "/api/search": 422, "/nowhere": 404, "/picture/row/1": 200, "/style.css": 200}.items():
        answer = page.ask.get(path)
        assert answer.status_code == code
        rules = answer.headers["content-security-policy"]
        assert "default-src 'self'" in rules
        assert "unsafe" not in rules
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
    assert "access-control-allow-origin" not in page.ask.get("/", headers={"origin": page.url}).headers
    html = page.ask.get("/").text
    assert HOSTILE not in html
    assert "&#34;&gt;&lt;img src=x onerror=alert(1)&gt;" in html


BOMBS = {
    "many pixels": png(60_000, 60_000),
    "more than an upload may have": png(8000, 7000),
    "cut off": png(64, 64, b"\0" * 100),
    "a text": b"this is a text",
    "nothing": b"",
    "a page": b"<html><script>alert(1)</script></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "a gif of a million frames": b"GIF89a" + b"\xff\xff\xff\xff\xf7\x00\x00" + b"\0" * 64,
    "an array": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (99999999, 9999), }"
    + b" " * 40
    + b"\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_is_no_image_is_refused(page, name):  # noqa: F811
    for path in ("/upload", "/api/upload"):
        answer = page.ask.post(path, files={"file": ("../../a.png", BOMBS[name])})
        assert 400 <= answer.status_code < 500, answer.text
    assert is_up(page)


def test_long_bodies_are_refused_before_they_are_read(page):  # noqa: F811
    """Announced, streamed without a length, and with a length that is a lie; the client that sends all of it learns why too."""
    announced = head(
        page, "POST /api/upload HTTP/1.1", "Content-Length: 100000000", "Content-Type: multipart/form-data; boundary=x"
    )
    status, answer = sent(page.port, announced)
    assert (status, b"bytes are not taken" in answer) == (413, True)

    def stream():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield bytes(1_000_000)

    form = {"content-type": "multipart/form-data; boundary=x"}
    for path in ("/api/upload", "/upload"):
        assert page.ask.post(path, content=stream(), headers=form).status_code == 413
    assert page.ask.post("/api/upload", content=bytes(100_000_000), headers=form).status_code == 413
    assert page.ask.post("/api/upload", files={"file": bytes(MOST)}).status_code == 413
    assert page.ask.request("GET", "/api/search?row=1", content=stream()).status_code in {200, 413}
    lie = head(
        page, "POST /upload HTTP/1.1", "Content-Length: 5", "Content-Type: multipart/form-data; boundary=x"
    ) + bytes(99)
    assert 400 <= sent(page.port, lie)[0] < 500
    assert is_up(page)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Starlette leaves a part without an end to the collector
def test_half_sent_uploads_leave_the_server_up(page):  # noqa: F811
    """The client goes in the middle, or says a wrong length, or sends what is no form."""
    kind = "Content-Type: multipart/form-data; boundary=x"
    begun = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + png(64, 64)[:40]
    for _ in range(8):
        dropped(page.port, head(page, "POST /upload HTTP/1.1", "Content-Length: 5000", kind) + begun)
        dropped(page.port, head(page, "POST /upload HTTP/1.1", "Transfer-Encoding: chunked", kind) + b"fff\r\n" + begun)
    whole = head(page, "POST /api/upload HTTP/1.1", f"Content-Length: {len(begun)}", kind) + begun
    assert 400 <= sent(page.port, whole)[0] < 500
    for words in ([], ["Content-Type: multipart/form-data"], ["Content-Type: application/json"]):
        asked = head(page, "POST /api/upload HTTP/1.1", "Content-Length: 2", *words) + b"{}"
        assert 400 <= sent(page.port, asked)[0] < 500
    assert is_up(page)


def test_a_head_has_a_deadline_and_limits_can_be_set(place):  # noqa: F811
    """Half a head is answered 408, of a first request and of a later one; a connection without a byte is closed."""
    explored = start(place, **{"web.patience": 0.3, "web.upload_bytes": 1000, "web.upload_pixels": 4095})
    port = int(explored.url.rstrip("/").rpartition(":")[2])
    whole = f"GET /style.css HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    try:
        assert sent(port, whole[:20])[0] == 408
        with socket.create_connection(("127.0.0.1", port), timeout=20) as silent:
            assert silent.recv(1) == b""
        with socket.create_connection(("127.0.0.1", port), timeout=20) as kept:
            kept.sendall(whole)
            assert kept.recv(15) == b"HTTP/1.1 200 OK"
            kept.sendall(whole[:20])
            assert b"HTTP/1.1 408" in b"".join(iter(lambda: kept.recv(65_536), b""))
        with httpx.Client(base_url=explored.url) as client:
            assert client.post("/api/upload", files={"file": bytes(2000)}).status_code == 413
            told = client.post("/api/upload", files={"file": png(64, 64)})
            assert (told.status_code // 100, "more than 4,095; web.upload_pixels sets the limit" in told.text) == (
                4,
                True,
            )
    finally:
        explored.close()
    with pytest.raises(ConfigError, match=r"web.patience"):
        start(place, **{"web.patience": 0})
    with pytest.raises(ConfigError, match=r"web.upload_pixels must be at most 50000000; got 50000001"):
        start(place, **{"web.upload_pixels": "50000001"})
    with pytest.raises(ConfigError, match=r"Unknown setting 'web.pacience'. Did you mean 'web.patience'\?"):
        start(place, **{"web.pacience": 1})


def test_beyond_this_machine_a_token_is_asked_for(place):  # noqa: F811
    """Drawn where none is given; in the address once, then in a cookie that no script reads and no other site sends."""
    explored = start(place, host="0.0.0.0")
    try:
        drawn = explored.url.partition("?token=")[2]
        assert len(drawn) >= 24
        port = int(explored.url.rpartition("/?")[0].rpartition(":")[2])
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            for path in (
                "/",
                "/api/collection",
                "/style.css",
                "/picture/row/1",
                "/openapi.json",
                "/?token=wrong",
                "/?token=",
            ):
                assert client.get(path).status_code == 401, path
            assert client.post(f"/api/upload?token={drawn}", files={"file": b"x"}).status_code == 401
            assert client.get("/", headers={"authorization": "Bearer wrong"}).status_code == 401
            assert client.get("/", headers={"cookie": f"dinoforge_{port}=wrong; a=b"}).status_code == 401
            assert client.get("/api/progress", headers={"authorization": f"Bearer {drawn}"}).status_code == 200
            first = client.get(f"/search?row=1&token={drawn}")
            assert (first.status_code, first.headers["location"]) == (303, "/search?row=1")
            kept = first.headers["set-cookie"]
            assert {"HttpOnly", "SameSite=Strict"} <= {*kept.split("; ")}
            assert client.get("/api/progress").status_code == 200  # the client has the cookie now
            again = client.get(f"/search?row=1&token={drawn}")
            assert (again.status_code, again.headers["location"]) == (303, "/search?row=1")
            assert client.get(again.headers["location"]).status_code in {200, 202}
            away = client.get(f"//evil.example/?token={drawn}", headers={"cookie": ""}).headers.get("location", "/")
            assert not away.startswith("//")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {drawn}"}) as client:
            assert client.get("/", headers={"host": f"evil.example:{port}"}).status_code == 400
    finally:
        explored.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"port": "many"}, "port takes a whole number"),
        ({"port": "99999"}, "port must be 0 to 65535"),
        ({"host": "203.0.113.1"}, "give another port or host"),
        ({"token": "short"}, "16 characters or more"),
        ({"token": "a token with spaces and;semicolons"}, "letters, digits"),
        ({"roots": "/tmp"}, "has no effect"),
        ({"descriptor": "b"}, "has no effect without manifest="),
        ({"manifest": "nowhere"}, "does not exist"),
    ],
)
def test_wrong_settings_are_one_line(place, settings, message):  # noqa: F811
    with pytest.raises(ConfigError, match=message):
        start(place, **settings)


def test_what_cannot_be_opened_is_told_before_anything_is_served(place, tmp_path):  # noqa: F811
    (tmp_path / "f" / "features").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no features; give another folder"):
        start(place, out=str(tmp_path / "f"))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a\.png"):
        start(place, data=str(tmp_path / "broken"), out=str(tmp_path / "g"))


@pytest.mark.parametrize("name", NAMES)
def test_files_of_mine_are_not_replaced(place, tmp_path, name):  # noqa: F811
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name} exists and was not written by explore; give another folder"):
        start(place, out=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_all_that_is_replaced_is_looked_for(page, place):  # noqa: F811
    assert {path.stem for path in (place / "features").glob("*.of")} == {*NAMES} - {"places.faiss"}  # of many patches


def test_nothing_is_written_where_pictures_are_read(place):  # noqa: F811
    """Else the next start would take features for images."""
    before = {*place.rglob("*")}
    with pytest.raises(ConfigError, match=r"out=\S+ lies within data=\S+; give a folder beside it"):
        start(place, out=str(place / "images" / "moth" / "f"))
    assert {*place.rglob("*")} == before


def test_features_of_another_working_directory_lie_elsewhere(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    ours = kept_by_default("b" * 16, "d" * 16, "images")
    assert kept_by_default("b" * 16, "d" * 16, str(tmp_path / "a" / "images")) == ours
    monkeypatch.chdir(tmp_path / "b")
    assert kept_by_default("b" * 16, "d" * 16, "images") != ours


def test_one_that_is_closed_while_it_computes_leaves_its_folder_free(place, tmp_path, monkeypatch):  # noqa: F811
    reads = Paths.encoded
    monkeypatch.setattr(Paths, "encoded", lambda *args: (sleep(0.2), reads(*args))[1])
    monkeypatch.setattr("dinoforge.explore.web.desk._BEGINS", 0.5)
    before = {thread.ident for thread in threading.enumerate()}
    start(place, out=str(tmp_path / "f")).close()
    left = [thread for thread in threading.enumerate() if thread.ident not in before]
    assert not any(thread.name.startswith("explore") for thread in left)
    monkeypatch.undo()
    again = start(place, out=str(tmp_path / "f"))
    assert httpx.get(f"{again.url}api/search?row=1&count=3", timeout=60).status_code == 200
    again.close()


def test_a_server_that_does_not_start_is_told(place, monkeypatch):  # noqa: F811
    import uvicorn

    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: None)
    with pytest.raises(RunError, match="did not start"):
        start(place)


def test_an_upload_needs_no_disk(page, monkeypatch):  # noqa: F811
    """Nothing of it is written, however large: a folder for temporary files that is full or gone is not asked."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (800, 900, 3), np.uint8)).save(file, "PNG")
    assert len(file.getvalue()) > 2 * 2**20
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert page.ask.post("/api/upload", files={"file": file.getvalue()}).status_code == 200


def test_a_port_that_is_taken_is_told(page, place):  # noqa: F811
    with pytest.raises(ConfigError, match=r"port=\d+ cannot be listened on: .*in use; give another"):
        start(place, port=page.port)


def test_a_missing_extra_is_named(place, monkeypatch):  # noqa: F811
    monkeypatch.setattr("dinoforge.verbs.explore.find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(ConfigError, match=r"explore needs uvicorn: pip install 'dinoforge\[explore\]'"):
        start(place)


@pytest.mark.parametrize("way", ["folder", "list", "link"])
def test_a_manifest_shows_nothing_beyond_its_roots(place, tmp_path, monkeypatch, way):  # noqa: F811
    import dinoforge

    inside = tmp_path / "mine"
    inside.mkdir()
    secret = place / "images" / "moth"
    source = secret
    if way == "list":
        source = inside / "list.txt"
        source.write_text("\n".join(str(path) for path in secret.iterdir()))
    elif way == "link":
        source = inside / "link"
        source.symlink_to(secret)
    dinoforge.scan(data=str(source), out=str(inside / "m.parquet"), workers=1)
    monkeypatch.chdir(inside)
    with pytest.raises(ConfigError, match=r"which is below none of .*roots= takes further folders"):
        start(place, data=str(inside / "m.parquet"), out=str(tmp_path / "f"))
    explored = start(place, data=str(inside / "m.parquet"), out=str(tmp_path / "f"), roots=str(secret.parent))
    explored.close()


def test_no_request_of_the_kinds_that_are_described_breaks_it(page):  # noqa: F811
    """schemathesis over the OpenAPI: words that fit the description, and words that do not."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis.errors import Unsatisfiable

    asked, answered = set(), []
    how = settings(
        max_examples=5, database=None, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate]
    )
    for found in schemathesis.openapi.from_url(f"{page.url}/openapi.json").get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:

            @seed(0)
            @how
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case):
                for words in (case.query, case.path_parameters):  # most numbers are no row
                    for name in {"row", "other"} & {*(words or ())}:
                        if isinstance(words[name], int):
                            words[name] %= ROWS
                answer = case.call()
                answered.append(answer.status_code)
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)
                asked.add(case.path)

            with suppress(Unsatisfiable):  # where nothing is asked, nothing can be asked wrongly
                check()
    assert answered.count(200) >= len(asked)  # most were answered, not refused for a row that is not there
    assert len(asked) == len(page.ask.get("/openapi.json").json()["paths"])
    assert is_up(page)


@pytest.mark.long
def test_a_thousand_requests_of_sixteen_clients_lose_none(page):  # noqa: F811
    paths = [*VIEWS, *VIEWS.values(), "/picture/row/4", "/style.css"]

    def client(number):
        with httpx.Client(base_url=page.url, timeout=120) as ask:
            return [ask.get(paths[(number + 7 * turn) % len(paths)]).status_code for turn in range(63)]

    with ThreadPoolExecutor(16) as pool:
        codes = [code for codes in pool.map(client, range(16)) for code in codes]
    assert len(codes) >= 1000
    assert {*codes} == {200}


@pytest.mark.long
def test_the_command_tells_its_address_and_ends_when_asked(place, started):  # noqa: F811
    process = started(
        "explore",
        f"backbone={place / 'backbone'}",
        f"data={place / 'images'}",
        f"out={place / 'own'}",
        "port=0",
        "--json",
    )
    url = json.loads(process.stdout.readline())["url"]
    assert httpx.get(f"{url}api/progress", timeout=60).status_code == 200
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0

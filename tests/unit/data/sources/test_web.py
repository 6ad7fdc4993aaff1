"""Reading over http: lists, tars, Parquet, retries, and what is refused."""

import base64
import io
import pickle
import socket
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dinoforge.base.errors import ConfigError, DataError
from dinoforge.data.decode import Broken
from dinoforge.data.sources import storage
from dinoforge.data.sources.table import open_source
from dinoforge.data.sources.web import is_public


def png(level):
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (level, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.001)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tar(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return file.getvalue()


def table(**columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def test_a_list_a_tar_and_a_table_of_the_web(web):
    web.files = {
        "/in/l.txt": f"a.png\t1\n{web.url}/b.png\t2\n/b.png\t3\n".encode(), "/in/a.png": png(10), "/b.png": png(20),
        "/t.tar": tar({"1.png": png(30), "1.cls": b"4"}), "/p.parquet": table(image=[png(40), png(50)]),
        "/paths.parquet": table(path=["in/a.png"]), "/s-0.tar": tar({"x.png": png(0)}), "/s-1.tar": tar({"y.png": png(1)}),
    }  # fmt: skip
    lists = open_source(f"{web.url}/in/l.txt?allow_private=true")
    assert lists.columns["id"].tolist() == ["a.png", f"{web.url}/b.png", "/b.png"]
    assert lists.columns["label"].tolist() == [1, 2, 3]
    assert [int(lists.pixels(row)[0, 0, 0]) for row in range(3)] == [10, 20, 20]
    shard = pickle.loads(pickle.dumps(open_source(f"{web.url}/t.tar?allow_private=true")))
    assert (shard.pixels(0)[0, 0, 0], shard.columns["label"].tolist()) == (30, [4])
    parquet = pickle.loads(pickle.dumps(open_source(f"{web.url}/p.parquet?allow_private=true")))
    assert [int(parquet.pixels(row)[0, 0, 0]) for row in range(2)] == [40, 50]
    assert open_source(f"{web.url}/paths.parquet?allow_private=true").pixels(0)[0, 0, 0] == 10
    both = open_source(f"{web.url}/s-{{0..1}}.tar?allow_private=true")
    assert both.columns["id"].tolist() == ["s-0.tar/x.png", "s-1.tar/y.png"]


def test_errors_that_pass_are_retried_and_others_are_not(web):
    web.files = {"/l.txt": b"a.png\n", "/a.png": png(10)}
    source = open_source(f"{web.url}/l.txt?allow_private=true")
    web.seen.clear()
    web.failures = [503, 429, 500, 504]
    assert source.pixels(0)[0, 0, 0] == 10
    assert len(web.seen) == storage.TRIES == 5
    web.failures, web.seen = [503] * 5, web.seen[:0]
    with pytest.raises(Broken, match=r"^the file cannot be read: HTTP 503 Service Unavailable \(tried 5 times\)$"):
        source.pixels(0)
    web.failures = [403]
    web.seen.clear()
    with pytest.raises(Broken, match=r"^the file cannot be read: HTTP 403 Forbidden$"):
        source.pixels(0)
    assert len(web.seen) == 1


@pytest.mark.parametrize(
    "ip",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "::1",
     "fe80::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::"],
)  # fmt: skip
def test_what_is_not_public(ip):
    assert not is_public(ip)


@pytest.mark.parametrize("ip", ["8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8"])
def test_what_is_public(ip):
    assert is_public(ip)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]"])
def test_private_machines_are_refused_however_they_are_written(host, web):
    web.files = {"/l.txt": b"a.png\n"}
    with pytest.raises(DataError, match=r"which is no public address; \?allow_private=true reads it"):
        open_source(f"http://{host}:{web.server_port}/l.txt")
    assert web.seen == []


def test_a_redirect_to_a_private_machine_is_refused(web, monkeypatch):
    """The first host is public as far as its name goes; its answer leads to the machine itself."""
    real = socket.getaddrinfo
    connect = socket.create_connection
    monkeypatch.setattr(
        socket, "getaddrinfo",
        lambda host, *words, **more: real("93.184.215.14" if host == "public.example" else host, *words, **more),
    )  # fmt: skip
    monkeypatch.setattr(socket, "create_connection", lambda _place, **more: connect(web.server_address, **more))
    web.files, web.redirects = {"/l.txt": b"a.png\n", "/secret": b"b.png"}, {"/r.txt": f"{web.url}/secret"}
    assert len(open_source(f"http://public.example:{web.server_port}/l.txt")) == 1
    web.seen.clear()
    with pytest.raises(DataError, match=r"127.0.0.1 is 127.0.0.1, which is no public address"):
        open_source(f"http://public.example:{web.server_port}/r.txt")
    assert [path for path, _ in web.seen] == ["/r.txt"]


def test_a_list_of_the_web_names_no_file_of_this_machine(web, tmp_path):
    (tmp_path / "own.png").write_bytes(png(1))
    web.files = {"/l.txt": f"{tmp_path}/own.png\nfile://{tmp_path}/own.png\ns3://bucket/x.png\n".encode()}
    source = open_source(f"{web.url}/l.txt?allow_private=true")
    for row, reason in enumerate(("HTTP 404", "may name only web addresses", "may name only web addresses")):
        with pytest.raises(Broken, match=reason):
            source.encoded(row)


def test_credentials_and_signatures_are_used_and_never_shown(web):
    web.files = {
        "/l.txt": f"{web.url}/a.png?X-Amz-Signature=s3cr3t\n{web.url}/gone.png?sig=s3cr3t".encode(),
        "/a.png": png(9),
    }
    place = web.url.removeprefix("http://")
    source = open_source(f"http://user:pa%3Ass@{place}/l.txt?sig=t0ken&allow_private=true")
    path, headers = web.seen[-1]
    assert path == "/l.txt?sig=t0ken"
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"user:pa:ss"
    assert source.address == f"{web.url}/l.txt?allow_private=true"
    assert source.columns["id"].tolist() == [f"{web.url}/a.png", f"{web.url}/gone.png"]
    assert source.pixels(0)[0, 0, 0] == 9
    assert web.seen[-1][0] == "/a.png?X-Amz-Signature=s3cr3t"
    with pytest.raises(Broken) as broken:
        source.pixels(1)
    with pytest.raises(DataError) as missing:
        open_source(f"http://user:pass@{place}/none.tar?sig=t0ken&allow_private=true")
    for text in (str(broken.value), str(missing.value)):
        assert not any(word in text for word in ("s3cr3t", "t0ken", "pass", "user"))
    assert "/none.tar cannot be opened: the file cannot be read: HTTP 404" in str(missing.value)


def test_servers_without_ranges_redirects_without_end_and_odd_addresses(web):
    web.files, web.ranges, web.redirects = {"/t.tar": tar({"1.png": png(1)})}, False, {"/loop.txt": "/loop.txt"}
    for address, reason in (
        (f"{web.url}/t.tar", "the server sends no parts of files; download it"),
        (f"{web.url}/loop.txt", "the server redirects more than 5 times"),
        ("http:///l.txt", "this is no web address"),
        ("http://host:port/l.txt", "this is no web address"),
        ("http://no-such-host.invalid/l.txt", "the host no-such-host.invalid is unknown|Temporary failure"),
        (f"{web.url}/folder/", "is a file but no Parquet file, tar, list or image"),
    ):
        with pytest.raises(DataError, match=reason):
            open_source(f"{address}?allow_private=true")
    with pytest.raises(ConfigError, match=r"Unknown option of a source 'lable'. Did you mean 'label'"):
        open_source(f"{web.url}/t.tar?lable=x")


def test_an_answer_that_is_cut_off_is_retried(web, monkeypatch):
    web.files = {"/l.txt": b"a.png\n", "/a.png": png(10)}
    source = open_source(f"{web.url}/l.txt?allow_private=true")
    answer, cut = web.RequestHandlerClass.answer, []

    def once(handler, status, headers, body):
        if cut:
            answer(handler, status, headers, body)
            return
        cut.append(True)
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[:20])

    monkeypatch.setattr(web.RequestHandlerClass, "answer", once)
    assert source.pixels(0)[0, 0, 0] == 10

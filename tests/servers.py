"""Servers on this machine: object storage that speaks S3, in a process of its own, and a web server."""

import http.server
import os
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from pathlib import Path

import pytest


class Storage:
    """Object storage for tests."""

    def __init__(self, endpoint):
        self.endpoint = endpoint

    def put(self, bucket, folder):
        """Every file of a folder."""
        self._ask(bucket, b"", method="PUT")
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                self._ask(f"{bucket}/{path.relative_to(folder).as_posix()}", path.read_bytes(), method="PUT")

    def fail(self, count, status=503):
        """Answer the next reads of objects with an error."""
        self._ask(f"-fail/{status}/{count}")

    def fail_every(self, nth, status=503):
        """Answer the nth, 2nth … read of each object with an error; 0 ends it."""
        self._ask(f"-every/{status}/{nth}")

    def reads(self):
        """Reads of objects since the last call, failed ones included."""
        return int(self._ask("-reads"))

    def _ask(self, path, data=None, method="GET"):
        request = urllib.request.Request(
            f"{self.endpoint}/{path}", data, {"Content-Type": "application/octet-stream"}, method=method
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.read()


@pytest.fixture(scope="session")
def object_storage():
    """An S3 server that the environment points to, as a user's would."""
    own = {
        "AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, __file__],
        stdout=subprocess.PIPE,
        env={**os.environ, **own},
        text=True,
        stderr=subprocess.DEVNULL,
    )
    before = dict(os.environ)
    try:
        os.environ.update(own, AWS_ENDPOINT_URL=f"http://127.0.0.1:{int(process.stdout.readline())}")
        yield Storage(os.environ["AWS_ENDPOINT_URL"])
    finally:
        os.environ.clear()
        os.environ.update(before)
        process.kill()
        process.communicate()


def serve_objects():
    """Serve S3 on a free port, which is printed; some of the requests fail when asked to."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    class Failing:
        def __init__(self):
            self.app, self.left, self.status, self.reads = DomainDispatcherApplication(create_backend_app), 0, "503", 0
            self.every, self.of_each = 0, Counter()
            self.lock = threading.Lock()

        def __call__(self, environment, start):
            path = environment["PATH_INFO"]
            if path.startswith("/-fail/"):
                _, _, self.status, left = path.split("/")
                self.left = int(left)
                start("200 OK", [])
                return [b""]
            if path.startswith("/-every/"):
                _, _, self.status, every = path.split("/")
                self.every = int(every)
                start("200 OK", [])
                return [b""]
            if path == "/-reads":
                found, self.reads = self.reads, 0
                start("200 OK", [])
                return [str(found).encode()]
            with self.lock:
                is_read = environment["REQUEST_METHOD"] == "GET" and path.count("/") > 1
                self.reads += is_read
                fails = is_read and self.left > 0
                self.left -= fails
                self.of_each[path] += is_read
                fails |= is_read and self.every > 0 and self.of_each[path] % self.every == 0
            if fails:
                start(f"{self.status} Made so", [("Content-Type", "text/xml")])
                return [b"<Error><Code>ServiceUnavailable</Code><Message>made so</Message></Error>"]
            return self.app(environment, start)

    server = make_server("127.0.0.1", 0, Failing(), threaded=True)
    print(server.server_port, flush=True)
    server.serve_forever()


class Web(http.server.BaseHTTPRequestHandler):
    """Serves the server's ``files`` by ranges; follows its ``redirects``; fails as ``failures`` says."""

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, dict(self.headers)))
        path = self.path.partition("?")[0]
        if server.failures:
            self.answer(server.failures.pop(), {}, b"")
        elif path in server.redirects:
            self.answer(302, {"Location": server.redirects[path]}, b"")
        elif path not in server.files:
            self.answer(404, {}, b"")
        elif "Range" in self.headers and server.ranges:
            whole = server.files[path]
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = whole[int(first) : int(last) + 1]
            self.answer(206, {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(whole)}"}, part)
        else:
            self.answer(200, {}, server.files[path])

    def answer(self, status, headers, body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(body)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass


@pytest.fixture
def web():
    """A web server on loopback; ``web.url`` is its address, without a slash."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.files, server.redirects, server.failures, server.seen, server.ranges = {}, {}, [], [], True
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


if __name__ == "__main__":
    serve_objects()

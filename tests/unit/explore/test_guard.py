"""What stands before the explorer's pages, asked without a network."""

import asyncio

import pytest
from starlette.formparsers import MultiPartException

from dinoforge.explore.web import guard
from dinoforge.explore.web.guard import Guard, Rules, is_loopback


def rules(**changes):
    return Rules(**{"host": "127.0.0.1", "port": 8600, "token": None, "bytes": 100, "patience": 0.05, **changes})


@pytest.mark.parametrize(
    ("host", "asked", "fits"),
    [
        ("127.0.0.1", "127.0.0.1:8600", True), ("127.0.0.1", "localhost:8600", True), ("127.0.0.1", "[::1]:8600", True),
        ("127.0.0.1", "LOCALHOST:8600", True), ("127.0.0.1", "127.0.0.1", False), ("127.0.0.1", "127.0.0.1:80", False),
        ("127.0.0.1", "10.0.0.1:8600", False), ("127.0.0.1", "evil.example:8600", False), ("127.0.0.1", "", False),
        ("127.0.0.1", "user@127.0.0.1:8600", False), ("127.0.0.1", "127.0.0.1:8600, evil.example", False),
        ("127.0.0.1", "[::1:8600", False), ("127.0.0.1", "127.0.0.1:99999999", False), ("box.lan", "box.lan:8600", True),
        ("0.0.0.0", "10.0.0.1:8600", True), ("0.0.0.0", "evil.example:8600", False), ("::", "[fe80::1]:8600", True),
    ],
)  # fmt: skip
def test_which_names_are_ours(host, asked, fits):
    """An address cannot be a name that a stranger made to point here; a name can."""
    assert rules(host=host).names(asked) is fits


def test_the_name_of_this_machine_is_known_beforehand(monkeypatch):
    """No name server is asked while somebody waits."""
    monkeypatch.setattr("socket.getfqdn", lambda *_: pytest.fail("a name server was asked"))
    ours = rules(host="0.0.0.0", called=frozenset({"box.lan"}))
    assert ours.names("BOX.lan:8600")
    assert not ours.names("other.lan:8600")


def test_port_80_need_not_be_said():
    assert rules(port=80).names("127.0.0.1")


def test_what_is_this_machine_alone():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


def test_tokens():
    ours = rules(token="abc")
    assert ours.admits("abc")
    assert not any(map(ours.admits, (None, "", "ab", "abcd", "äbc")))
    assert rules().admits(None)


def asked(app, messages, *, silent=False, headers=(), limits=None, pause=0):
    """What a guarded application sends for the parts of a body; after them nothing comes."""
    sent, waiting = [], list(messages)

    async def receive():
        await asyncio.sleep(pause)
        if waiting:
            return waiting.pop(0)
        await asyncio.sleep(3600 if silent else 0)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    about = [(b"host", b"127.0.0.1:8600"), *headers]
    scope = {"type": "http", "method": "POST", "path": "/upload", "query_string": b"", "headers": about}
    asyncio.run(Guard(app, limits or rules())(scope, receive, send))
    return sent


async def reads(scope, receive, send):
    """Takes a whole body, and says how long it was."""
    length, status = 0, 200
    try:
        while True:
            message = await receive()
            length += len(message.get("body", b""))
            if not message.get("more_body"):
                break
    except MultiPartException:
        status = 400  # as Starlette would answer
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def part(size, more=True):
    return {"type": "http.request", "body": bytes(size), "more_body": more}


CHUNKED = [(b"transfer-encoding", b"chunked")]


def test_a_body_is_counted_as_it_comes():
    fits = asked(reads, [part(50), part(50, more=False)], headers=CHUNKED)
    assert (fits[0]["status"], fits[1]["body"]) == (200, b"100")
    long = asked(reads, [part(50), part(51), *[part(50)] * 10, part(1, more=False)], headers=CHUNKED)
    assert long[0]["status"] == 413
    assert (b"connection", b"close") in long[0]["headers"]
    assert [message.get("more_body", False) for message in long[1:]] == [
        True,
        False,
    ]  # the rest was read before the end


def test_a_length_that_is_too_long_never_reaches_the_application():
    async def never(scope, receive, send):
        raise AssertionError

    sent = asked(never, [part(101, more=False)], headers=[(b"content-length", b"101")])
    assert sent[0]["status"] == 413


def test_a_silent_body_is_ended(monkeypatch):
    monkeypatch.setattr(guard, "_SILENT", 0.05)
    sent = asked(reads, [part(10)], silent=True, headers=CHUNKED)
    assert sent[0]["status"] == 408


def test_a_body_that_ends_too_early_is_no_body():
    sent = asked(reads, [part(10)], headers=CHUNKED)
    assert sent[0]["status"] == 400
    assert b"ended too early" in sent[1]["body"]


def test_an_application_that_fails_over_a_body_is_answered_for():
    async def fails(scope, receive, send):
        while True:
            await receive()

    sent = asked(fails, [part(101)], headers=CHUNKED)
    assert sent[0]["status"] == 413


def test_a_body_that_trickles_is_ended(monkeypatch):
    monkeypatch.setattr(guard, "_SILENT", 0.05)
    sent = asked(reads, [part(1)] * 60, pause=0.02, headers=CHUNKED, limits=rules(whole=0.1, patience=5))
    assert sent[0]["status"] == 408
    assert b"not here after 0.1 seconds" in sent[1]["body"]


@pytest.mark.parametrize("others", ['a={"x":1}; ', "a b; ", ";;=; ", ""])
def test_odd_cookies_of_others_do_no_harm(others):
    about = [(b"cookie", f"{others}dinoforge_8600=abc; b=[1]".encode()), (b"content-length", b"0")]
    assert asked(reads, [part(0, more=False)], headers=about, limits=rules(token="abc"))[0]["status"] == 200


def test_nothing_but_http_is_spoken():
    async def never(scope, receive, send):
        raise AssertionError

    asyncio.run(Guard(never, rules())({"type": "websocket", "headers": []}, None, None))

"""``explore``: a collection and a backbone in a browser."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from dataclasses import InitVar, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from dinoforge.base.config import fingerprint, paths, with_settings
from dinoforge.base.errors import ConfigError, unknown
from dinoforge.base.home import at_home
from dinoforge.base.log import say
from dinoforge.data.sources.options import placed, shown
from dinoforge.explore.collection import open_collection
from dinoforge.explore.membership import Training, training_of
from dinoforge.explore.roots import open_below
from dinoforge.explore.web.settings import PageConfig, WebConfig
from dinoforge.features.extract import reading
from dinoforge.recipes.settle import lines_of
from dinoforge.verbs.describing import describer_of
from dinoforge.verbs.looking import whole
from dinoforge.verbs.manifests import stored_at
from dinoforge.verbs.opening import opened
from dinoforge.verbs.places import refuse_within
from dinoforge.verbs.settings import Settings


@dataclass(frozen=True)
class Explored:
    """A page that is served until ``close``, or the end of this process."""

    url: str
    """Address to open; beyond this machine the token stands in it."""
    images: int
    """Of the source; those that cannot be used are set aside."""
    out: str
    """Folder that keeps the features."""
    server: InitVar[Any]
    desk: InitVar[Any]
    _server: ClassVar[Any]
    _desk: ClassVar[Any]

    def __post_init__(self, server: Any, desk: Any) -> None:
        object.__setattr__(self, "_server", server)
        object.__setattr__(self, "_desk", desk)

    def wait(self) -> None:
        """Serve until this process is asked to end.

        Raises:
            UserError: The collection cannot be opened.
        """
        try:
            self._server.wait(self._desk.failed)
        finally:
            self.close()

    def close(self) -> None:
        """End it, and what is being computed; the folder is free then."""
        self._server.close()
        self._desk.jobs.close()


def explore(
    *, backbone: str, data: str, host: str = "127.0.0.1", port: str | int = 8600, token: str | None = None,
    manifest: str | None = None, descriptor: str | None = None, trust_sha256: str | None = None, roots: str = "",
    out: str | None = None, **settings: Any,
) -> Explored:  # fmt: skip
    """Serve a local page: search by image or by a part of one, parts in colours, matches, near copies, outliers, a map.

    Features that are missing in out are computed first, and the page says how far it is. Ctrl-C ends it.

    Args:
        backbone: A backbone folder, a run, weights in any layout that convert reads, hf:FOLDER or timm:NAME.
        data: Images: a folder, a Parquet file, toy://species.
        host: Address to listen on; any but this machine's own asks for a token.
        port: Port to listen on; 0 takes a free one.
        token: What a request must bring [beyond this machine: drawn; it stands in the url].
        manifest: What the backbone was trained on, to ask whether an image was: a folder of curate, its manifest, or a run.
        descriptor: The file or backbone that curate looked for copies with, where it had one.
        trust_sha256: SHA-256 of that file where it is TorchScript, a program that is run then.
        roots: Where data is a manifest: where its images may lie besides its own and the working directory, joined by commas.
        out: Folder that keeps the features [~/.cache/dinoforge/explore/…].
    """
    _require()
    from dinoforge.explore.web.app import application
    from dinoforge.explore.web.desk import Desk, Facts
    from dinoforge.explore.web.serve import Server, listening, rules_for
    from dinoforge.explore.web.uploads import Uploads

    limits = _limits(settings)
    if token is not None and not _is_token(token):
        raise ConfigError("token must have 16 characters or more, letters, digits, - and _ alone.")
    number = _port(port)
    if out is not None:
        refuse_within(out, data, name="data")
    source = open_below(data, [root.strip() for root in roots.split(",") if root.strip()])
    found = opened(backbone)
    training = _training(manifest, descriptor, trust_sha256)
    folder = _folder(found.fingerprint, source.fingerprint, source.address) if out is None else Path(out)
    sock = listening(host, number)
    rules = rules_for(sock, host, token, limits)
    uploads = Uploads(limits.uploads_kept, reading(found.preprocessing), limits.upload_pixels)
    desk = Desk(
        Facts(source.address, shown(backbone)), lambda tell: open_collection(found, source, folder, tell=tell),
        uploads, limits, training,
    )  # fmt: skip
    app = application(desk)  # before anything is computed: filters of warnings are shared by all threads
    try:
        desk.begin()
        server = Server(app, sock, rules, connections=limits.connections)
    except BaseException:
        sock.close()
        desk.jobs.close()
        raise
    say(f"Open {server.url} (Ctrl-C ends it).")
    return Explored(server.url, len(source), str(folder), server, desk)


def _require() -> None:
    """See that what serves pages is installed.

    Raises:
        ConfigError: It is not.
    """
    for name in ("fastapi", "uvicorn", "python_multipart"):
        if find_spec(name) is None:
            raise ConfigError(f"explore needs {name.replace('_', '-')}: pip install 'dinoforge[explore]'.")


def _limits(settings: Mapping[str, Any]) -> WebConfig:
    """Limits of the page, from what was typed besides the verb's keys."""
    known = [path for path, _ in paths(PageConfig())]
    for name in settings:
        if name not in known:
            raise unknown("setting", name, [*_own(), *known])
    return with_settings(PageConfig(), settings).web


def _own() -> dict[str, Any]:
    """Keys of the verb with their defaults."""
    found = inspect.signature(explore).parameters
    return {name: one.default for name, one in found.items() if one.kind is one.KEYWORD_ONLY}


def _described(words: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    own = _own()
    limits = _limits({name: value for name, value in words.items() if name not in own})
    found = {name: words.get(name, default) for name, default in own.items()} | dict(paths(PageConfig(web=limits)))
    return {name: (value, "command line" if name in words else "default") for name, value in found.items()}


def _lines() -> Iterator[str]:
    yield from lines_of(PageConfig())


SETTINGS = Settings(_described, _lines)


def _is_token(token: str) -> bool:
    """Whether it can stand in an address and a cookie as it is, and cannot be guessed at once."""
    return len(token) >= 16 and token.isascii() and all(letter.isalnum() or letter in "-_" for letter in token)


def _port(port: str | int) -> int:
    number = whole("port", port)
    if not 0 <= number <= 65_535:
        raise ConfigError(f"port must be 0 to 65535; got {port}.")
    return number


def _training(manifest: str | None, descriptor: str | None, trust_sha256: str | None) -> Training | None:
    """What the backbone was trained on, if that was said.

    Raises:
        ConfigError: No manifest, or settings that would be ignored without one.
    """
    if manifest is None:
        for name, value in (("descriptor", descriptor), ("trust_sha256", trust_sha256)):
            if value is not None:
                raise ConfigError(f"{name}={value} has no effect without manifest=.")
        return None
    path, stored = stored_at("manifest", Path(manifest))
    network = describer_of(path, stored, descriptor, trust_sha256=trust_sha256, precision="auto")
    return training_of(stored, embed=None if network is None else network.embed)


def _folder(backbone: str, data: str, address: str) -> Path:
    """Where features are kept for later starts."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return at_home(cache) / "dinoforge" / "explore" / fingerprint([backbone, data, placed(address)])

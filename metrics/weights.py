"""Published weights of feature networks: one file, known by its SHA-256, never replaced by another one.

Looked for at a given path, where an environment variable points, in the usual cache, and then fetched. A file
that is not the published one is refused, so that a score which carries the network's name is that network's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class Unavailable(Exception):
    """The true weights are not at hand; the message says why and gives the command that gets them."""


@dataclass(frozen=True)
class Published:
    """A file of published weights.

    what: the network, for people. digest: the first digits of the file's SHA-256. url, folder: where it is
    published and in which folder it is kept. names: what it may be called there, the first for a download.
    environment: the variable that may hold its path.
    """

    what: str
    digest: str
    names: tuple[str, ...]
    environment: str
    url: Callable[[], str]
    folder: Callable[[], Path]

    def remedy(self) -> str:
        """The command that gets the file. The home folder is written `~`: this text enters run records."""
        target = self.folder() / self.names[0]
        if target.is_relative_to(Path.home()):
            target = Path("~") / target.relative_to(Path.home())
        return f"curl -L --create-dirs -o {target} {self.url()}"

    def is_genuine(self, path: Path) -> bool:
        """Whether a file holds the published weights, by its SHA-256."""
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest().startswith(self.digest)

    def check(self, path: Path, named: str = "") -> Path:
        """The path, if its content is the published one, else Unavailable. named: where it comes from."""
        said = f"{named} ({path})" if named else f"'{path}'"
        try:
            genuine = self.is_genuine(path)
        except OSError as error:
            reason = error.strerror or error
            raise Unavailable(f"{said} cannot be read ({reason}); get it with: {self.remedy()}") from error
        if not genuine:
            raise Unavailable(
                f"{said} is not the published {self.what} file, whose SHA-256 begins with {self.digest}; "
                f"get it with: {self.remedy()}"
            )
        return path

    def find(self, path: Path | str | None = None, download: bool = True, timeout: float = 5.0) -> Path:
        """The file: `path`, else the environment variable's, else the cache's, else a download.

        A path that is named but wrong is an error, never skipped over. Raises Unavailable, whose message
        holds the command that gets the weights.
        """
        for source, named in (("the given path", path), (self.environment, os.environ.get(self.environment))):
            if not named:
                continue
            if not Path(named).is_file():
                raise Unavailable(f"{source} names no file ({named}); get the weights with: {self.remedy()}")
            return self.check(Path(named), source)
        for name in self.names:
            cached = self.folder() / name
            with contextlib.suppress(OSError):  # one that cannot be read is as good as none
                if cached.is_file() and self.is_genuine(cached):
                    return cached
        if not download:
            raise Unavailable(
                f"the {self.what} weights are not on this machine; get them with: {self.remedy()}"
            )
        target = self.folder() / self.names[0]
        try:
            self._download(target, timeout)
        except (OSError, ValueError, Unavailable) as error:
            reason = getattr(error, "reason", None) or error
            raise Unavailable(
                f"the {self.what} weights could not be fetched ({reason}); get them with: {self.remedy()}"
            ) from None
        return target

    def _download(self, target: Path, timeout: float) -> None:
        """Fetch the file to `target` through a temporary one; raises OSError or Unavailable."""
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=target.parent, suffix=".part")
        try:
            with (
                os.fdopen(handle, "wb") as file,
                urllib.request.urlopen(self.url(), timeout=timeout) as reply,
            ):
                while block := reply.read(1 << 20):
                    file.write(block)
            if not self.is_genuine(Path(temporary)):
                raise Unavailable(f"what was downloaded is not the published {self.what} file")
            os.replace(temporary, target)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)

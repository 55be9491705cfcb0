"""Whole files on a local disk or an object store: they appear complete or not at all. Remote stores get retries."""

import contextlib
import io
import os
import re
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from gcsr import InvalidInputError
from gcsr.files import write_atomically

__all__ = ["Files", "one_line"]

T = TypeVar("T")
_NO_URI = re.compile(r"(s3|gs|gcs|abfss?|hdfs|viewfs|https?|file):(?!//)|[a-z][a-z0-9+.-]*:/(?!/)")  # but meant as one
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # control characters, and bytes that are no text
_ATTEMPTS = 5  # of one operation on a remote store
_BACK_OFF_SECONDS = 0.5  # before the second; doubles
_IN_MEMORY = 64 << 20  # bytes of a file being written to a remote store
_ONE_REQUEST = 4 << 20  # bytes of a file that Arrow sends by one request: S3's parts have 5 MiB at least
_CHUNK = 1 << 20  # bytes
_DELAYED = "allow_delayed_open=true"  # of S3: a small file is one request, not the three of a multi-part upload
_SOMEWHERE = "region=us-east-1"  # of S3: else Arrow asks Amazon for the bucket's


class Files:
    """A folder of pyarrow's filesystems.

    On a local disk a file is written under a temporary name, flushed to the disk and renamed. On a remote store a small
    file is one request, which is done whole or not at all; a larger one is uploaded in parts, under a temporary name,
    too. What the network does to a request is tried again with growing pauses.

    Args:
        location: a path, or a URI such as ``s3://bucket/prefix``.
        field: what an error calls it.
        offline: only see whether the location can be understood: of an S3 bucket nobody is asked where it is.

    Raises:
        InvalidInputError: the location cannot be understood.
    """

    def __init__(self, location: str, field: str = "out", *, offline: bool = False) -> None:
        if not location or _UNUSABLE.search(location):
            raise InvalidInputError(
                f"{field}: {location[:80]!r} is not allowed; expected a path, or a URI as s3://bucket/name"
            )
        if _NO_URI.match(location):
            raise InvalidInputError(
                f"{field}: {location!r} is not allowed; expected a path, or SCHEME://… as s3://bucket/name"
            )
        # pyarrow leaves out what follows; elsewhere its options follow a question mark.
        unsaid = {"#": "%23"} | ({"?": "%3F"} if location.startswith("file:") else {})
        for sign, code in unsaid.items():
            if "://" in location and sign in location:
                raise InvalidInputError(f"{field}: {location!r} is not allowed; expected {code} in place of {sign}")
        uri = _with_s3_option(location, _DELAYED)
        if offline:
            uri = _with_s3_option(uri, _SOMEWHERE)
        try:
            if "://" in location:
                self.filesystem, root = pafs.FileSystem.from_uri(uri)
            else:
                self.filesystem, root = pafs.LocalFileSystem(), os.path.abspath(location)
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            reason = one_line(error).replace(uri.removeprefix(location), "")
            raise InvalidInputError(f"{field}: {location!r} is no path or URI that pyarrow knows: {reason}") from None
        self.is_local = isinstance(self.filesystem, pafs.LocalFileSystem)
        self.root: str = root.rstrip("/") or "/"
        if not self.is_local and self.root == "/":
            raise InvalidInputError(f"{field}: {location!r} names no bucket; expected SCHEME://… as s3://bucket/name")
        if not self.is_local and "//" in self.root:  # pyarrow refuses it later, once it is used
            raise InvalidInputError(f"{field}: {location!r} is not allowed; expected a name between any two slashes")
        self._made: set[str] = set()  # folders that are there: asking again costs a remote store three requests
        self._making = threading.Lock()

    def info(self, path: str) -> pafs.FileInfo:
        """What is at a path."""
        return self._patiently(lambda: self.filesystem.get_file_info(path))

    def list(self, path: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
        """What is in a folder, or also below it, by name; nothing if there is no such folder."""
        if self.info(path).type == pafs.FileType.NotFound:
            return []
        what = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
        found = self._patiently(lambda: self.filesystem.get_file_info(what))
        return sorted(found, key=lambda info: info.path)

    @contextlib.contextmanager
    def reading(self, path: str) -> Iterator[pa.NativeFile]:
        """The file's content, to be read anywhere."""
        if self.is_local:
            with self.filesystem.open_input_file(path) as file:
                yield file
            return

        def fetched() -> pa.Buffer:
            with self.filesystem.open_input_file(path) as file:
                return file.read_buffer()

        yield pa.BufferReader(self._patiently(fetched))

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[IO[bytes]]:
        """A file that takes its name when the block ends well, and leaves nothing otherwise."""
        if self.is_local:
            with write_atomically(Path(path)) as file:
                yield file
            return
        parent, _, base = path.rpartition("/")
        self._make(parent)
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as spooled:
            yield spooled
            if spooled.tell() <= _ONE_REQUEST:
                spooled.seek(0)
                content = io.BytesIO(spooled.read())
                _shielded(lambda: self._patiently(lambda: self._put(content, path)))
            else:
                self._upload(spooled, path, f"{parent}/.{base}.{uuid.uuid4().hex}.part")

    def _upload(self, content: IO[bytes], path: str, part: str) -> None:
        try:
            self._patiently(lambda: self._put(content, part))
            self.move(part, path)
        except BaseException:
            with contextlib.suppress(OSError):
                self.filesystem.delete_file(part)
            raise

    def _put(self, content: IO[bytes], path: str) -> None:
        content.seek(0)
        stream = self.filesystem.open_output_stream(path)
        try:
            while chunk := content.read(_CHUNK):
                stream.write(chunk)
            stream.close()
        except BaseException:
            # Arrow completes an upload that broke off, with what it has got, once nobody holds the stream: that is to
            # be now, and not when a later attempt has succeeded.
            with contextlib.suppress(OSError):
                stream.close()
            del stream
            raise

    def remove(self, path: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._patiently(lambda: self.filesystem.delete_file(path))

    def move(self, path: str, target: str) -> None:
        """Give a file another name; where that is not atomic, it has both for a moment."""
        parent = target.rpartition("/")[0]
        self._make(parent)
        self._patiently(lambda: self.filesystem.move(path, target))

    def _make(self, folder: str) -> None:
        if self.is_local:
            self.filesystem.create_dir(folder, recursive=True)
            return
        with self._making:  # several threads write at once
            if folder not in self._made:
                self._patiently(lambda: self.filesystem.create_dir(folder, recursive=True))
                self._made.add(folder)

    def _patiently(self, operation: Callable[[], T]) -> T:
        attempt, pause = 1, _BACK_OFF_SECONDS
        while True:
            try:
                return operation()
            except (FileNotFoundError, PermissionError):
                raise
            except OSError:
                if self.is_local or attempt == _ATTEMPTS:
                    raise
            time.sleep(pause)
            attempt, pause = attempt + 1, 2 * pause


def _shielded(work: Callable[[], None]) -> None:
    """Do it in a thread that Ctrl-C does not reach: it would leave half of the work done."""
    if threading.current_thread() is not threading.main_thread():
        return work()
    with ThreadPoolExecutor(1, "gcsr-write") as thread:
        return thread.submit(work).result()


def _with_s3_option(location: str, option: str) -> str:
    """The URI, if it is one of S3, with an option of Arrow's that it does not have yet."""
    if not location.startswith("s3://") or f"{option.partition('=')[0]}=" in location:
        return location
    return f"{location}{'&' if '?' in location else '?'}{option}"


def one_line(error: BaseException, length: int = 160) -> str:
    """An error's text as one line of at most ``length`` characters."""
    return (" ".join(str(error).split()) or type(error).__name__)[:length]

"""Shards that lie elsewhere: a URL for each, streamed through the `webdataset` library."""

import contextlib
import importlib
import os
import select
import shlex
from collections.abc import Generator
from typing import Any
from urllib.parse import quote

CHUNK_BYTES = 1 << 20
STALL_SEC = 60.0
"""A stream that gives nothing for so long is given up."""
CURL = {6: "host not found", 7: "no connection", 18: "cut off", 22: "refused, as by 404 or 403", 28: "timed out"}
"""What the exit codes of curl mean, which webdataset runs for http and https."""


def shard_url(template: str, dataset: str, name: str) -> str:
    """The URL of one shard or sidecar.

    Args:
        template: `reader.url`: {name} and {dataset} are replaced; without {name} it stands for a folder.
        dataset: the name of the data set's folder.
        name: the shard's name in its manifest, such as `shards/shard-000000.tar`.
    """
    escape = shlex.quote if template.startswith("pipe:") else quote
    if "{name}" not in template:
        template = template.rstrip("/") + "/{name}"
    return template.replace("{dataset}", escape(dataset)).replace("{name}", escape(name))


def stream(url: str) -> Generator[bytes, None, None]:
    """The content of `url`, in pieces. A reader that stops early ends the transfer.

    Raises:
        OSError: it cannot be opened, ends with an error, or gives nothing for `STALL_SEC`.
    """
    opened = _open(url)
    file = getattr(opened, "stream", opened)  # webdataset wraps the output of a process
    try:
        while True:
            if not select.select([file], [], [], STALL_SEC)[0]:
                raise TimeoutError(f"{url}: no data for {STALL_SEC:g} s")
            chunk = os.read(file.fileno(), CHUNK_BYTES)
            if not chunk:
                break
            yield chunk
    except BaseException:
        if process := getattr(opened, "proc", None):
            process.kill()
        with contextlib.suppress(OSError):
            opened.close()
        raise
    try:
        opened.close()
    except OSError:  # the exit code of the process decides whether what came was all
        code = opened.status
        meaning = f" ({CURL[code]})" if url.startswith("http") and code in CURL else ""
        raise OSError(f"{url}: ended with exit code {code}{meaning}") from None


def _open(url: str) -> Any:
    # Imported here: it imports torch, and most runs read local shards.
    library = importlib.import_module("webdataset.gopen")
    if url.startswith("s3://") and "s3" not in library.gopen_schemes:
        url = f"pipe:aws s3 cp --only-show-errors {shlex.quote(url)} -"
    try:
        return library.gopen(url, "rb")
    except ValueError as error:
        raise OSError(str(error)) from None

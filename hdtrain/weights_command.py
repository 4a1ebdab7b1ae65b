"""`hdtrain weights`: the one place that downloads weights, on a machine with a network and when asked to.

    hdtrain weights list
    hdtrain weights fetch NAME [--url URL] [--sha256 HASH]
    hdtrain weights add NAME FILE [--link] [--sha256 HASH]
    hdtrain weights check [NAME…]

Exit code 2 where a hash is wrong or a file is missing; nothing but these commands changes the store.
"""

import argparse
import os
import re
import shutil
from pathlib import Path
from typing import Any

from hdtrain.errors import WeightsError
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.weights_registry import KNOWN, TIMM, KnownWeights, find_known
from hdtrain.formats.weights_store import Entry, WeightsStore, check_name, how_to_get
from hdtrain.progress import Progress

CHUNK_BYTES = 1 << 20
TIMEOUT_SEC = 60.0


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The four actions, with what each takes; each sets `act`."""
    actions: Any = command.add_subparsers(metavar="ACTION", required=True)

    def action(name: str, summary: str, function: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = actions.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        parser.set_defaults(act=function, overrides=[])
        return parser

    action("list", "what is known by name, and what is in the store", list_weights)
    fetch = action("fetch", "download weights, compare their sha256, and put them into the store", fetch_weights)
    fetch.add_argument("name", metavar="NAME", help=f"one that `list` shows, or {TIMM}MODEL")
    fetch.add_argument("--url", help="take it from here: a mirror, or file:///…")
    add = action("add", "put a file that you have into the store", add_weights)
    add.add_argument("name", metavar="NAME", help="one that `list` shows, or any other")
    add.add_argument("file", type=Path, metavar="FILE")
    add.add_argument("--link", action="store_true", help="a symbolic link instead of a copy")
    for parser in (fetch, add):
        parser.add_argument("--sha256", type=_digest, metavar="HASH", help="refuse a file of another hash")
    check = action("check", "hash what is in the store again, and name what is altered or missing", check_weights)
    check.add_argument("names", nargs="*", metavar="NAME", help="these alone")


def run(args: argparse.Namespace) -> int:
    """Run the action and return the exit code."""
    return int(args.act(args, WeightsStore.default()))


def list_weights(args: argparse.Namespace, store: WeightsStore) -> int:
    """One line a name: in the store or not, size, sha256, what for."""
    entries = store.entries()
    rows = [("name", "in the store", "bytes", "sha256", "for")]
    for name in [*KNOWN, *(name for name in entries if name not in KNOWN)]:
        entry, known = entries.get(name), find_known(name)
        there = "no" if entry is None else "yes" if (store.folder / entry.file).is_file() else "gone"
        size = entry.size_bytes if entry else known.size_bytes if known else None
        digest = (entry.sha256 if entry else known.sha256 if known else None) or ""
        rows.append((name, there, f"{size:,}" if size else "", digest[:16], known.purpose if known else "yours"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"and {TIMM}MODEL: any model of timm's on the Hugging Face hub\nstore: {store.folder}")
    return 0


def fetch_weights(args: argparse.Namespace, store: WeightsStore) -> int:
    """Download to a temporary name, compare, rename. What is there already and whole is left alone."""
    known = find_known(args.name)
    if known is None:
        raise WeightsError(f"no weights are known as '{args.name}'; {how_to_get(args.name)}")
    entry = store.entries().get(args.name)
    if entry and not _fault(store, entry, args.name) and entry.sha256.startswith(args.sha256 or ""):
        print(f"{args.name} is there: {store.folder / entry.file}")
        return 0
    url = args.url or known.url
    print(f"{args.name} from {url}\nlicence: {known.licence}")
    temporary = _temporary(store, known.file)
    try:
        _download(url, temporary, known)
        entry = store.publish(args.name, temporary, known.file, url, args.sha256)
        _report(store, args.name, entry, known, args.sha256)
    finally:
        temporary.unlink(missing_ok=True)
    return 0


def add_weights(args: argparse.Namespace, store: WeightsStore) -> int:
    """Copy or link a file into the store under a name, if its hash is that of the name."""
    check_name(args.name)
    source = args.file.expanduser().absolute()
    if not source.is_file():
        raise WeightsError(f"{source}: no such file")
    known = find_known(args.name)
    file = known.file if known else args.name.replace("/", "--") + "".join(source.suffixes[-1:])
    if known and known.name.startswith(TIMM):  # torch files are welcome too
        file = Path(file).with_suffix("").name + source.suffix
    temporary = _temporary(store, file)
    if source == store.folder / file:
        raise WeightsError(f"{source} lies in the store itself; move it elsewhere, then add it")
    try:
        if args.link:
            temporary.symlink_to(source)
        else:
            shutil.copyfile(source, temporary)
        entry = store.publish(args.name, temporary, file, str(source), args.sha256)
        _report(store, args.name, entry, known, args.sha256)
    finally:
        temporary.unlink(missing_ok=True)
    return 0


def check_weights(args: argparse.Namespace, store: WeightsStore) -> int:
    """Hash every file again; 2 if one is missing, altered, or not what its name says."""
    entries = store.entries()
    unknown = [name for name in args.names if name not in entries]
    if unknown:
        raise WeightsError(f"not in {store.folder}: {', '.join(unknown)}; {how_to_get(unknown[0])}")
    faults = []
    for name in args.names or entries:
        fault = _fault(store, entries[name], name)
        print(f"{name}: {fault or 'whole'}", flush=True)
        faults += [name] if fault else []
    if faults:
        raise WeightsError(f"{len(faults)} of {len(args.names or entries)} are not whole; {how_to_get(faults[0])}")
    print(f"{len(args.names or entries)} whole in {store.folder}")
    return 0


def _fault(store: WeightsStore, entry: Entry, name: str) -> str | None:
    path = store.folder / entry.file
    if not path.is_file():
        return f"missing: {path}" + (f" leads to {path.readlink()}" if path.is_symlink() else "")
    found, known = sha256_file(path), find_known(name)
    if found != entry.sha256:
        return f"altered: {path} has sha256 {found}, it had {entry.sha256}"
    if known and not known.fits(found):
        return f"not these weights: {path} has sha256 {found}, expected {known.sha256}"
    return None


def _temporary(store: WeightsStore, file: str) -> Path:
    """A name of this process's own, in the store's folder, which is made."""
    store.folder.mkdir(parents=True, exist_ok=True)
    return store.folder / f".{file}.{os.getpid()}.tmp"


def _download(url: str, target: Path, known: KnownWeights) -> None:
    import urllib.error
    import urllib.request  # a tenth of a second that no other command should wait for

    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SEC) as answer, target.open("wb") as stream:
            announced = int(answer.headers.get("Content-Length") or 0)
            with Progress(f"fetch {known.name}", announced or known.size_bytes or 0, "B") as progress:
                while chunk := answer.read(CHUNK_BYTES):
                    stream.write(chunk)
                    progress.update(len(chunk))
            stream.flush()
            os.fsync(stream.fileno())
    except (urllib.error.URLError, TimeoutError, ConnectionError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise WeightsError(
            f"{url} cannot be fetched: {reason}; on a machine with a network fetch it by any means, "
            f"then `hdtrain weights add {known.name} {known.file}`"
        ) from None
    size = target.stat().st_size
    if announced and size != announced:
        raise WeightsError(f"{url} ended after {size:,} of {announced:,} bytes; run the same command again")


def _report(store: WeightsStore, name: str, entry: Entry, known: KnownWeights | None, given: str | None) -> None:
    expected = given or (known.sha256 if known else None)
    compared = f"agrees with {expected}" if expected else "recorded; no hash of it was known before"
    print(f"{name}: {store.folder / entry.file}\nsha256 {entry.sha256}: {compared}")


def _digest(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", text):
        raise argparse.ArgumentTypeError(f"expected 8 to 64 hexadecimal digits, got '{text}'")
    return text.lower()

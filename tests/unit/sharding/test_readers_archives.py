import io
import os
import shutil
import stat
import struct
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from reader_helpers import described, listed, make_tar, make_zip, opened, outcome

from hdtrain.errors import DataError
from hdtrain.formats.tar import TarWriter
from sharding.inputs import ByteRange
from sharding.readers.tar_walk import walk

TAR_FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


MODES: dict[str, Any] = {"gunzip": "w:gz", "bunzip2": "w:bz2", "unxz": "w:xz"}


def archives_of(folder: Path, to: Path) -> list[Path]:
    """The same images packed in every way that is read."""
    made = []
    for number, (top, method) in enumerate([("", zipfile.ZIP_STORED), ("NCT-CRC-HE-100K", zipfile.ZIP_DEFLATED)]):
        (to / f"zip{number}").mkdir()
        made.append(make_zip(folder, to / f"zip{number}" / f"{folder.name}.zip", top, method))
    for number, (top, layout) in enumerate(zip((".", "NCT-CRC-HE-100K", "./top"), TAR_FORMATS, strict=True)):
        (to / f"tar{number}").mkdir()
        made.append(make_tar(folder, to / f"tar{number}" / f"{folder.name}.tar", top, layout))
    return made


def test_an_archive_gives_what_its_folder_gives(make_images: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_images("raw", {"ADI": 3, "TUM": 2, "TUM/below": 1})
    (folder / "ADI" / "odd.GIF").write_bytes(b"GIF89a")
    (folder / "ADI" / "notes.txt").write_bytes(b"no image")
    (folder / "ADI" / "empty.png").write_bytes(b"")
    expected = described(listed(folder))
    assert len(expected) == 8
    for archive in archives_of(folder, tmp_path):
        assert opened(archive).source.name == "raw"
        assert opened(archive).classes == ["ADI", "TUM"]
        assert described(listed(archive)) == expected
        assert described(listed(archive, 2)) == expected
        assert described(listed(archive, layout="flat")) == described(listed(folder, layout="flat"))


def test_real_class_folders_survive_packing(real_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kather"
    for name in ("01_TUMOR", "08_EMPTY"):
        files = sorted((real_data / "kather2016_crc8" / "test" / name).iterdir())[:12]
        (folder / name).mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder / name)
    expected = described(listed(folder))
    assert {row[2] for row in expected} == {"01_TUMOR", "08_EMPTY"}
    for archive in archives_of(folder, tmp_path):
        assert described(listed(archive)) == expected


def test_large_members_are_cut_into_tiles(make_images: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_images("raw", {"a": 2, "b": 1}, size_px=40)
    Image.new("RGB", (16, 16)).save(folder / "b" / "small.png")
    expected = described(listed(folder, tile_images=True, tile_px=16))
    assert len(expected) == 13
    for archive in archives_of(folder, tmp_path):
        assert described(listed(archive, tile_images=True, tile_px=16)) == expected


def test_stored_members_are_ranges_of_the_archive_whatever_its_local_headers_hold(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for name in ("a/1.png", "b/2.png"):
            info = zipfile.ZipInfo(name)
            info.extra = struct.pack("<HH", 0xCAFE, 40) + bytes(40)
            made.writestr(info, name.encode() * 9)
            info.extra = b""  # the directory at the end has none, as of zips made by Info-ZIP
    items = listed(archive)
    assert [outcome(item) for item in items] == [b"a/1.png" * 9, b"b/2.png" * 9]
    for item in items:
        assert isinstance(item.content, ByteRange)
        with archive.open("rb") as stream:
            stream.seek(item.content.offset)
            assert stream.read(item.content.size) == outcome(item)


def test_what_macos_and_windows_add_is_left_out(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        names = [
            "top/a/1.png",
            "top/b/2.png",
            "__MACOSX/top/a/._1.png",
            "top/a/._1.png",
            "top/.DS_Store",
            "top/.x/3.png",
        ]
        for name in names:
            made.writestr(name, name)
        windows = zipfile.ZipInfo("top/b/3.png")
        windows.filename = "top\\b\\3.png"
        made.writestr(windows, "written by Windows")
    assert [(item.path, item.label) for item in listed(archive)] == [
        ("a/1.png", "a"),
        ("b/2.png", "b"),
        ("b/3.png", "b"),
    ]


def test_of_two_members_of_one_name_the_later_counts(tmp_path: Path) -> None:
    for data in (b"old", b"newer"):
        info = tarfile.TarInfo("1.png")
        info.size = len(data)
        with tarfile.open(tmp_path / "a.tar", "a") as tar:
            tar.addfile(info, io.BytesIO(data))
        with warnings.catch_warnings(), zipfile.ZipFile(tmp_path / "a.zip", "a") as made:
            warnings.simplefilter("ignore", UserWarning)  # it warns of the second name
            made.writestr("1.png", data)
    for name in ("a.zip", "a.tar"):
        assert [outcome(item) for item in listed(tmp_path / name)] == [b"newer"]


def test_members_that_cannot_be_read_are_refused_with_the_reason(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("bzip2.png", b"x" * 50, zipfile.ZIP_BZIP2)
        made.writestr("flipped.png", b"here a byte is changed", zipfile.ZIP_STORED)
        made.writestr("inflated.png", b"y" * 500, zipfile.ZIP_DEFLATED)
        link = zipfile.ZipInfo("link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "bzip2.png")
        made.writestr("locked.png", b"z" * 50)
        made.infolist()[-1].flag_bits |= 1
        deflated_at = made.getinfo("inflated.png").header_offset
    data = bytearray(archive.read_bytes().replace(b"is changed", b"is chanGed"))
    data[deflated_at + 30 + len("inflated.png")] ^= 0xFF
    archive.write_bytes(data)
    assert {item.path: outcome(item) for item in listed(archive)} == {
        "bzip2.png": "refused: unsupported compression: bzip2",
        "flipped.png": "refused: truncated or damaged",
        "inflated.png": "refused: truncated or damaged",
        "link.png": "refused: a link in a zip archive",
        "locked.png": "refused: encrypted",
    }


def test_an_empty_class_of_an_archive_is_named(make_images: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_images("raw", {"a": 1, "b": 0})
    for archive in archives_of(folder, tmp_path):
        with pytest.raises(DataError, match="empty class 'b'"):
            listed(archive)


def test_an_archive_of_other_data_says_that_it_has_to_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "fold_1.zip", "w") as made:
        made.writestr("Fold 1/images/fold1/images.npy", b"")
        made.writestr("Fold 1/README.md", b"")
    with pytest.raises(DataError, match=r"no images, but Fold 1/images/fold1/images\.npy: unpack the archive"):
        listed(tmp_path / "fold_1.zip")
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as made:
        made.writestr("README.md", b"")
    with pytest.raises(DataError, match=r"text\.zip: no images; expected files ending in"):
        listed(tmp_path / "text.zip")


@pytest.mark.parametrize(
    ("name", "command"), [("a.tar.gz", "gunzip"), ("a.tgz", "gunzip"), ("a.tar.bz2", "bunzip2"), ("a.tar.xz", "unxz")]
)
def test_a_compressed_tar_says_how_to_decompress_it(
    make_images: Callable[..., Path], tmp_path: Path, name: str, command: str
) -> None:
    with tarfile.open(tmp_path / name, MODES[command]) as made:
        made.add(make_images("raw", 1) / "000.png", "a/000.png")
    for layout in ("auto", "class-folders", "flat", "webdataset"):
        with pytest.raises(DataError, match=f"compressed, so it cannot be read at random.*: {command} '"):
            listed(tmp_path / name, layout=layout)
    (tmp_path / name).rename(tmp_path / "named.tar")
    with pytest.raises(DataError, match=command):
        listed(tmp_path / "named.tar")


def test_a_damaged_zip_is_named(make_images: Callable[..., Path], tmp_path: Path) -> None:
    archive = make_zip(make_images("raw", {"a": 3, "b": 1}), tmp_path / "a.zip")
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"a\.zip: not a zip archive, or a truncated one"):
        listed(archive)


def test_a_zip_whose_members_lie_elsewhere_has_refused_members(
    make_images: Callable[..., Path], tmp_path: Path
) -> None:
    archive = make_zip(make_images("raw", {"a": 1, "b": 1}), tmp_path / "a.zip")
    archive.write_bytes(archive.read_bytes().replace(b"PK\3\4", b"PK\0\0"))
    assert {outcome(item) for item in listed(archive)} == {"refused: truncated or damaged"}


@pytest.mark.parametrize("cut", [600, 512 * 5 + 3, -1024, -1000])
def test_a_truncated_tar_is_named_with_the_place(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as stream:
        writer = TarWriter(stream)
        for number in range(3):
            writer.add(f"{number}.png", b"x" * 700)
        writer.close()
    whole = path.read_bytes()
    assert [member.name for member in walk(path)] == ["0.png", "1.png", "2.png"]
    data = whole[:cut]
    path.write_bytes(data)
    seen: list[str] = []
    with pytest.raises(DataError, match=rf"a\.tar: truncated: it ends at byte {len(data)} "):
        seen.extend(member.name for member in walk(path))
    assert seen == [f"{number}.png" for number in range(3) if number * 1536 + 512 + 700 <= len(data)]


def test_a_changed_header_is_found(make_images: Callable[..., Path], tmp_path: Path) -> None:
    archive = make_tar(make_images("raw", {"a": 2, "b": 2}), tmp_path / "a.tar")
    places = [member.start for member in walk(archive)]
    data = bytearray(archive.read_bytes())
    data[places[3] + 5] ^= 1
    archive.write_bytes(data)
    with pytest.raises(DataError, match=rf"a\.tar: damaged: no header of a member at byte {places[3]}"):
        listed(archive)
    archive.write_bytes(b"text" * 500)
    with pytest.raises(DataError, match=r"a\.tar: not a tar"):
        listed(archive)
    archive.write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.tar: truncated: it ends at byte 0"):
        listed(archive)


def test_tars_joined_end_to_end_are_an_error(make_images: Callable[..., Path], tmp_path: Path) -> None:
    archive = make_tar(make_images("raw", 2), tmp_path / "a.tar")
    archive.write_bytes(archive.read_bytes() * 2)
    with pytest.raises(DataError, match="more data behind the end of the archive"):
        listed(archive)


@pytest.mark.parametrize("layout", TAR_FORMATS)
def test_the_walk_finds_what_tarfile_finds(tmp_path: Path, layout: int) -> None:
    """Names of every length, in every format that Python writes; empty members, folders, links."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=layout) as made:
        for length in (1, 99, 100, 101, 154, 180, *((300,) if layout != tarfile.USTAR_FORMAT else ())):
            name = f"{'d' * (length // 2)}/{'n' * (length - length // 2)}"
            info = tarfile.TarInfo(name if layout == tarfile.USTAR_FORMAT else f"é{name}")
            info.size, info.mtime = length * 7, 1.5
            made.addfile(info, io.BytesIO(os.urandom(info.size)))
        for kind, link in ((tarfile.DIRTYPE, ""), (tarfile.LNKTYPE, "é" * 70), (tarfile.FIFOTYPE, "")):
            info = tarfile.TarInfo(f"kind{kind.decode()}")
            info.type, info.linkname = kind, link[: 40 if layout == tarfile.USTAR_FORMAT else None]
            made.addfile(info)
        made.addfile(tarfile.TarInfo("empty.png"))
    with tarfile.open(path) as reference:
        wanted = [member for member in reference if not member.isfifo()]
    found = list(walk(path))
    assert [member.name.rstrip("/") for member in found] == [member.name for member in wanted]
    files = [(ours.offset, ours.size) for ours, theirs in zip(found, wanted, strict=True) if theirs.isreg()]
    assert files == [(member.offset_data, member.size) for member in wanted if member.isreg()]
    assert [m.link for m in found if m.link is not None] == [member.linkname for member in wanted if member.islnk()]
    assert [member.start for member in found] == sorted(member.start for member in found)


def test_a_size_beyond_octal_is_understood(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("large.png")
    info.size = 8**11 + 5
    for layout in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        header = info.tobuf(layout)
        with path.open("wb") as stream:
            stream.write(header)
            stream.truncate(len(header) + info.size + -info.size % 512 + 1024)  # a hole
        ((name, size),) = [(member.name, member.size) for member in walk(path)]
        assert (name, size) == ("large.png", 8**11 + 5)


def test_links_in_a_tar_stand_for_the_image_they_lead_to(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "a"
    folder.mkdir(parents=True)
    (folder / "1.png").write_bytes(b"the image")
    os.link(folder / "1.png", folder / "2.png")
    (folder / "3.png").symlink_to("1.png")
    (folder / "4.png").symlink_to("../gone.png")
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", tmp_path / "raw", "a"], check=True)
    outcomes = {item.path: outcome(item) for item in listed(tmp_path / "a.tar")}
    refused = "refused: a link to what is not in the archive"
    assert outcomes == {"1.png": b"the image", "2.png": b"the image", "3.png": b"the image", "4.png": refused}


@pytest.mark.parametrize("layout", ["gnu", "oldgnu", "posix"])
def test_sparse_members_are_refused_and_those_behind_them_found(tmp_path: Path, layout: str) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    with (folder / "1.png").open("wb") as stream:
        for hole in range(30):  # more pieces than fit into one header
            stream.seek(hole * 100_000)
            stream.write(b"x" * 5000)
    (folder / "2.png").write_bytes(b"behind it")
    command = ["tar", f"--format={layout}", "--sparse", "-cf", tmp_path / "a.tar", "-C", folder, "1.png", "2.png"]
    subprocess.run(command, check=True)
    outcomes = {item.path.rpartition("/")[2]: outcome(item) for item in listed(tmp_path / "a.tar", layout="flat")}
    assert outcomes == {"1.png": "refused: sparse member", "2.png": b"behind it"}


def test_an_archive_that_changes_is_noticed(make_images: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_images("raw", {"a": 2, "b": 2})
    archive = make_zip(folder, tmp_path / "a.zip")
    (first, second) = opened(archive).units()
    before = opened(archive).state(first)
    make_zip(folder, archive, "top")
    os.utime(archive, ns=(1, 1))
    assert opened(archive).state(first) != before
    assert opened(archive).state(second) != opened(archive).state(first)

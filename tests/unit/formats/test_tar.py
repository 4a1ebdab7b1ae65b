"""Our ustar archives as GNU tar and Python's tarfile see them."""

import hashlib
import io
import subprocess
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdtrain.formats.tar import CHUNK_BYTES, TarWriter, member_header

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=("Cs", "Cc")), min_size=1, max_size=24)


def archive(members: dict[str, bytes]) -> tuple[bytes, dict[str, int]]:
    stream = io.BytesIO()
    writer = TarWriter(stream)
    offsets = {name: writer.add(name, data) for name, data in members.items()}
    writer.close()
    assert writer.offset == len(stream.getvalue())
    return stream.getvalue(), offsets


@given(st.dictionaries(NAMES, st.binary(max_size=1200), max_size=4))
def test_tarfile_reads_names_and_bytes_where_the_offsets_say(members):
    data, offsets = archive(members)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        found = {info.name: (info.offset_data, info.mtime, info.mode, info.uid, info.size) for info in tar}
    assert found == {name: (offsets[name], 0, 0o644, 0, len(members[name])) for name in members}
    assert all(data[offsets[name] :].startswith(content) for name, content in members.items())


def test_gnu_tar_extracts_what_was_put_in(tmp_path):
    members = {"a.jpg": b"x" * 1000, "a.json": b"{}", "n" * 96 + ".txt": b"", "ü.png": bytes(range(256))}
    data, _ = archive(members)
    (tmp_path / "a.tar").write_bytes(data)
    done = subprocess.run(["tar", "-xf", "a.tar"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert not done.stderr
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "a.tar"} == members


def test_the_bytes_of_an_archive_never_change():
    """Published shards are compared by hash: whoever changes these bytes changes every shard."""
    members = {"a.jpg": b"x" * 1000, "a.json": b"{}", "n" * 96 + ".txt": b"", "ü.png": bytes(range(256))}
    data, _ = archive(members | {"b.cls": b"3", "c.npy": bytes(512)})
    assert hashlib.sha256(data).hexdigest() == "2674d731c7989e7c42b9d2f26718f091d6a960ebc9a5a70c8105e15c140dc990"


@given(NAMES | st.sampled_from(["~" * 100, "\U0010ffff" * 25]), st.integers(0, 8**11 - 1))
def test_a_headers_checksum_is_the_sum_of_its_bytes_with_blanks_in_its_place(name, size):
    header = member_header(name, size)
    info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")  # refuses a wrong checksum
    assert (info.name, info.size, len(header)) == (name, size, 512)


class Pieces(list):
    """A stream that keeps what each write was given."""

    def write(self, data):
        self.append(data)


def test_members_larger_than_a_chunk_are_written_in_their_place_and_uncopied():
    sizes = [5, CHUNK_BYTES - 600, 700, CHUNK_BYTES - 1, CHUNK_BYTES, 0, 3 * CHUNK_BYTES + 5, 512]
    members = {f"{i}.bin": bytes([i + 1]) * size for i, size in enumerate(sizes)}
    pieces = Pieces()
    writer = TarWriter(pieces)
    offsets = {name: writer.add(name, data) for name, data in members.items()}
    writer.close()
    data = b"".join(pieces)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        assert {info.name: (info.offset_data, tar.extractfile(info).read()) for info in tar} == {
            name: (offsets[name], content) for name, content in members.items()
        }
    assert any(piece is members["6.bin"] for piece in pieces)
    assert writer.offset == len(data)


def test_many_small_members_reach_the_stream_in_few_writes_of_about_a_chunk():
    pieces = Pieces()
    writer = TarWriter(pieces)
    for i in range(300):
        writer.add(f"{i}.jpg", b"x" * 30_000)
    writer.close()
    assert len(pieces) <= 10
    assert max(map(len, pieces)) <= CHUNK_BYTES + 31_000


@pytest.mark.parametrize("kind", [bytearray, lambda data: memoryview(bytearray(data))])
def test_a_buffer_may_be_reused_right_after_it_was_added(kind):
    stream, buffer = io.BytesIO(), kind(b"first")
    writer = TarWriter(stream)
    at = writer.add("a", buffer)
    buffer[:] = b"other"
    writer.close()
    assert stream.getvalue()[at : at + 5] == b"first"


def test_a_member_that_was_refused_leaves_the_archive_as_it_was():
    stream = io.BytesIO()
    writer = TarWriter(stream)
    writer.add("a", b"1")
    with pytest.raises(ValueError, match="ustar holds"):
        writer.add("n" * 101, b"2")
    writer.add("b", b"3")
    writer.close()
    assert stream.getvalue() == archive({"a": b"1", "b": b"3"})[0]


@pytest.mark.parametrize(("name", "size"), [("n" * 101, 1), ("", 1), ("ü" * 51, 1), ("a", 8**11)])
def test_what_ustar_cannot_hold_is_refused(name, size):
    with pytest.raises(ValueError, match="ustar holds"):
        member_header(name, size)

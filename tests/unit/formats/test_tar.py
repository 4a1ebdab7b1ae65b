"""Our ustar archives as GNU tar and Python's tarfile see them."""

import io
import subprocess
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hdtrain.formats.tar import TarWriter, member_header

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


@pytest.mark.parametrize(("name", "size"), [("n" * 101, 1), ("", 1), ("ü" * 51, 1), ("a", 8**11)])
def test_what_ustar_cannot_hold_is_refused(name, size):
    with pytest.raises(ValueError, match="ustar holds"):
        member_header(name, size)

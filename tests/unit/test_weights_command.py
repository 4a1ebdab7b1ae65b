"""`hdtrain weights`: what comes into the store is what its name says, and configs name it without a path."""

import http.server
import json
import threading
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import save_file

from hdtrain.config.stages import STAGES
from hdtrain.errors import ConfigError
from hdtrain.formats.atomic import sha256_file
from hdtrain.formats.weights_registry import KNOWN
from hdtrain.prepare import resolve


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("HDTRAIN_WEIGHTS", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def weights_file(tmp_path):
    save_file({"w": np.arange(50_000, dtype=np.float32)}, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; /cut/NAME announces the whole file and sends half."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        if not self.path.startswith("/cut/"):
            return super().do_GET()
        content = (self.directory_path / self.path.removeprefix("/cut/")).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2])
        return None

    def __init__(self, *args, directory, **kwargs):
        self.directory_path = directory
        super().__init__(*args, directory=str(directory), **kwargs)


@pytest.fixture
def url(tmp_path):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def left_over(store):
    return sorted(path.name for path in store.iterdir() if path.name not in (".lock", "index.json"))


@pytest.mark.parametrize("way", ["http", "file"])
def test_weights_are_fetched_compared_and_recorded(hdtrain, store, weights_file, url, way):
    place = f"{url}/mine.safetensors" if way == "http" else weights_file.as_uri()
    digest = sha256_file(weights_file)
    said = hdtrain("weights", "fetch", "timm/test_vit", "--url", place, "--sha256", digest[:12]).out
    assert (store / "timm--test_vit.safetensors").read_bytes() == weights_file.read_bytes()
    assert f"sha256 {digest}: agrees with {digest[:12]}" in said
    entry = json.loads((store / "index.json").read_text())["weights"]["timm/test_vit"]
    assert (entry["sha256"], entry["source"], entry["size_bytes"]) == (digest, place, weights_file.stat().st_size)
    assert "timm/test_vit" in hdtrain("weights", "list").out


def test_weights_that_are_there_and_whole_are_not_fetched_again(hdtrain, store, weights_file):
    hdtrain("weights", "fetch", "timm/test_vit", "--url", weights_file.as_uri())
    weights_file.unlink()
    assert "is there" in hdtrain("weights", "fetch", "timm/test_vit", "--url", weights_file.as_uri()).out
    (store / "timm--test_vit.safetensors").write_bytes(b"altered")
    said = hdtrain("weights", "fetch", "timm/test_vit", "--url", weights_file.as_uri(), code=2).err
    assert "cannot be fetched" in said  # it was tried again


def test_a_file_of_another_hash_is_refused_with_both_hashes_and_leaves_nothing(hdtrain, store, weights_file, url):
    for action in (("fetch", "vgg16", "--url", f"{url}/mine.safetensors"), ("add", "vgg16", weights_file)):
        said = hdtrain("weights", *action, code=2).err
        assert sha256_file(weights_file) in said
        assert KNOWN["vgg16"].sha256 in said
        assert left_over(store) == []
    assert " no " in next(line for line in hdtrain("weights", "list").out.splitlines() if line.startswith("vgg16"))


def test_of_some_weights_the_first_digits_of_the_hash_are_known_and_compared(hdtrain, weights_file):
    said = hdtrain("weights", "add", "alexnet", weights_file, code=2).err
    assert "expected 7be5be79" in said


def test_a_download_that_ends_early_is_no_weights_file(hdtrain, store, weights_file, url):
    said = hdtrain("weights", "fetch", "timm/test_vit", "--url", f"{url}/cut/mine.safetensors", code=2).err
    size = weights_file.stat().st_size
    assert f"ended after {size // 2:,} of {size:,} bytes" in said
    assert left_over(store) == []


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/x", "/missing.pth", "file:///missing.pth"])
def test_where_nothing_can_be_fetched_the_way_without_a_network_is_said(hdtrain, store, place):
    said = hdtrain("weights", "fetch", "vgg16", "--url", place, code=2).err
    assert "hdtrain weights add vgg16 vgg16-397923af.pth" in said
    assert said.startswith("error: ")
    assert left_over(store) == []


def test_own_weights_are_copied_or_linked_under_any_name(hdtrain, store, weights_file):
    hdtrain("weights", "add", "lab/encoder-3", weights_file)
    hdtrain("weights", "add", "linked", weights_file, "--link")
    assert (store / "lab--encoder-3.safetensors").read_bytes() == weights_file.read_bytes()
    assert (store / "linked.safetensors").readlink() == weights_file
    assert "2 whole" in hdtrain("weights", "check").out


def test_check_names_what_is_altered_or_missing(hdtrain, store, weights_file):
    for name in ("a", "b", "c"):
        hdtrain("weights", "add", name, weights_file)
    altered = bytearray(weights_file.read_bytes())
    altered[1000] ^= 1
    (store / "a.safetensors").write_bytes(altered)
    (store / "b.safetensors").unlink()
    said = hdtrain("weights", "check", code=2)
    lines = said.out.splitlines()
    assert lines[0].startswith("a: altered")
    assert sha256_file(store / "a.safetensors") in lines[0]
    assert sha256_file(weights_file) in lines[0]
    assert lines[1].startswith("b: missing")
    assert lines[2] == "c: whole"
    assert "2 of 3" in said.err
    assert hdtrain("weights", "check", "c").out.startswith("c: whole")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fetch", "vgg61"), "did you mean 'vgg16'?"),
        (("add", "../up", "mine.safetensors"), "is no name for weights"),
        (("add", "mine", "missing.pth"), "no such file"),
        (("check", "vgg16"), "hdtrain weights fetch vgg16"),
    ],
)
def test_a_mistake_gets_one_message(hdtrain, weights_file, arguments, message):
    said = hdtrain("weights", *arguments, code=2)
    assert message in said.err
    assert said.err.count("error:") == 1


def test_two_names_do_not_share_a_file(hdtrain, weights_file):
    hdtrain("weights", "add", "lab/x", weights_file)
    assert "'lab/x' already" in hdtrain("weights", "add", "lab--x", weights_file, code=2).err


def test_a_broken_index_is_named(hdtrain, store):
    store.mkdir()
    (store / "index.json").write_text("{")
    assert "index.json cannot be read" in hdtrain("weights", "list", code=2).err


TRAIN_VAE = ("duration.images=6", "batch.global_batch_size=6", "perceptual.kind=lpips-vgg", "images=[nowhere]")


def test_a_config_names_weights_that_are_not_there_and_is_told_the_command(hdtrain):
    said = hdtrain("train-vae", *TRAIN_VAE, "perceptual.weights=weights:vgg16", "--out", "vae", code=2).err
    assert "perceptual.weights: weights 'vgg16' are not in" in said
    assert "`hdtrain weights fetch vgg16`" in said


def test_a_name_in_a_config_becomes_the_file_in_the_store_if_that_is_whole(hdtrain, store, weights_file):
    hdtrain("weights", "add", "lab/vgg", weights_file)
    tree = {
        "images": ["nowhere"],
        "duration": {"images": 6},
        "perceptual": {"kind": "lpips-vgg", "weights": "weights:lab/vgg"},
    }
    config = resolve(STAGES["train-vae"].config, tree, "x.yaml")
    assert config.perceptual.weights == store / "lab--vgg.safetensors"
    (store / "lab--vgg.safetensors").write_bytes(b"cut off")
    with pytest.raises(ConfigError, match=r"perceptual.weights: weights 'lab/vgg': .* has 7 bytes"):
        resolve(STAGES["train-vae"].config, tree, "x.yaml")

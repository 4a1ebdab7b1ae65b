"""Captions and sentences through a text tower. Needs the extra `text`."""

import json

import numpy as np
import pytest
import torch
from prior_helpers import CLASSES, prior_config, publish_grids, toy_grids
from safetensors.torch import save_file
from tiny_chain import run_here

from hdtrain.config.prior import PriorConditions, TextTowerConfig
from hdtrain.errors import ConfigError, ManifestError, WeightsError
from hdtrain.features.text_tower import load_text_tower
from hdtrain.formats.manifest import read_manifest
from hdtrain.sampling.prior import sample_grids

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[UNK]", "[PAD]", "flat", "stripes", "tissue", "with", "end"]
SENTENCES = {"flat": "flat tissue end", "stripes": "tissue with stripes end"}


def tower_folder(folder, seed: int = 0, width: int = 16):
    """CLIP's text half, tiny, with random weights, as `save_pretrained` writes it."""
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]", model_max_length=16
    ).save_pretrained(folder)
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=8,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=12,
        max_position_embeddings=16,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=6,
    )
    model = transformers.CLIPTextModelWithProjection(config).eval()
    model.save_pretrained(folder)
    return model


def test_a_sentence_has_the_vector_that_transformers_gives_it(tmp_path):
    model = tower_folder(tmp_path / "clip")
    tower = load_text_tower(TextTowerConfig(folder=tmp_path / "clip"))
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[4, 5, 3, 6]])).text_embeds.numpy()
    assert tower(["tissue with stripes end", "flat"])[:1] == pytest.approx(expected, abs=1e-6)
    assert tower.name == "CLIPTextModelWithProjection"


def test_open_clips_text_half_is_taken_with_its_weights_or_not_at_all(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    text = {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "image_size": 16}
    config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    model = open_clip.CLIP(**config).eval()
    settings = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    tower = TextTowerConfig(kind="open_clip", folder=tmp_path)
    with pytest.raises(WeightsError, match="no open_clip model that can be loaded"):
        load_text_tower(tower)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    with torch.no_grad():
        expected = model.encode_text(open_clip.SimpleTokenizer(context_length=16)(["much necrosis"])).numpy()
    assert load_text_tower(tower)(["much necrosis"]) == pytest.approx(expected, abs=1e-6)


def test_a_folder_without_a_model_is_one_message(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(WeightsError, match="no transformers model that can be loaded"):
        load_text_tower(TextTowerConfig(folder=tmp_path / "empty"))


def test_a_sentence_gives_grids_of_the_class_that_the_captions_describe(tmp_path):
    tower_folder(tmp_path / "clip")
    grids = toy_grids(12)
    (tmp_path / "captions.json").write_text(json.dumps({grid.name: SENTENCES[grid.label] for grid in grids}))
    text = {"captions": str(tmp_path / "captions.json"), "tower": {"folder": str(tmp_path / "clip")}}
    run = publish_grids(tmp_path / "grids", grids)
    prior = tmp_path / "prior"
    assert run_here("train-prior", prior, prior_config(run, 100 * 8, class_conditional=False, text=text)) == 0
    assert read_manifest(prior).info["text"]["tower"]["name"] == "CLIPTextModelWithProjection"
    for label, name in enumerate(CLASSES):
        found = sample_grids(prior, PriorConditions(text=SENTENCES[name]), 6, steps=40)
        signs = [float(np.sign(grid.embeddings[..., 0].mean())) for grid in found]
        assert signs == [2.0 * label - 1] * 6

    tower_folder(tmp_path / "other", seed=1)
    other = PriorConditions(text="flat", tower={"folder": tmp_path / "other"})
    with pytest.raises(ManifestError, match=r"the text tower is CLIPTextModelWithProjection .*was trained with"):
        sample_grids(prior, other)
    (tmp_path / "clip").rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"say where it is: tower\.folder=FOLDER"):
        sample_grids(prior, PriorConditions(text="flat"))
    moved = PriorConditions(text=SENTENCES["flat"], tower={"folder": tmp_path / "moved"})
    assert sample_grids(prior, moved, 1, steps=40)[0].embeddings[..., 0].mean() < 0

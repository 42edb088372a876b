"""Text models that are tiny and untrained, but real: config, weights and tokenizer in a folder, loaded as a user's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from icis_deploy.descriptors.text_encoder import describe_with_model, load_text_encoder
from icis_deploy.errors import DescriptorError, MissingDependencyError, UsageError

WORDS = ["a", "an", "photo", "of", "the", "okapi", "zebra", "great", "white", "shark", ".", "striped", "animal"]
DIM = 16


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT with a WordPiece tokenizer."""
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=12).save_pretrained(folder)
    sizes = {"hidden_size": DIM, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(vocabulary), max_position_embeddings=12, **sizes)
    torch.manual_seed(0)
    transformers.BertForMaskedLM(config).save_pretrained(folder)  # as most BERTs come: with a head that is not wanted
    return folder


def clip_tokenizer(folder):
    """Write a CLIP tokenizer of letters: byte-level BPE without merges."""
    letters = [chr(code) for code in range(33, 127)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    tokenizer = transformers.CLIPTokenizerFast(**files, model_max_length=40)
    tokenizer.save_pretrained(folder)
    return tokenizer


def clip_text_config(tokenizer, **more):
    sizes = {"hidden_size": DIM, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=40, projection_dim=8, **sizes, **ids, **more
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A whole CLIP: the text tower, its projection, and an image tower that is not used."""
    folder = tmp_path_factory.mktemp("clip")
    text = clip_text_config(clip_tokenizer(folder)).to_dict()
    sizes = {"hidden_size": DIM, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def reference_bert(folder, text):
    """The mean of the last hidden states of one text alone, without padding."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        output = transformers.BertModel.from_pretrained(folder)(**tokenizer(text, return_tensors="pt"))
    return unit(output.last_hidden_state[0].mean(0).numpy())


def reference_clip(folder, text):
    """The projected state at the end of one text alone."""
    tokenizer, model = (kind.from_pretrained(folder) for kind in (transformers.AutoTokenizer, transformers.CLIPModel))
    with torch.inference_mode():
        output = model.text_model(**tokenizer(text, return_tensors="pt"))
        return unit(model.text_projection(output.pooler_output)[0].numpy())


def test_an_encoder_gives_the_mean_over_a_texts_own_tokens(bert):
    texts = {"n1": ["okapi"], "n2": ["great white shark"]}

    made = describe_with_model(texts, str(bert))

    assert made.class_names == ("n1", "n2")
    np.testing.assert_allclose(
        made.values, [reference_bert(bert, text) for (text,) in texts.values()], rtol=1e-4, atol=1e-5
    )


def test_a_clip_gives_its_projected_text_features_of_a_photo(clip):
    made = describe_with_model({"n1": ["okapi"], "n2": ["great white shark"]}, str(clip))

    prompts = ["a photo of a okapi.", "a photo of a great white shark."]
    assert made.descriptor_dim == 8
    np.testing.assert_allclose(made.values, [reference_clip(clip, prompt) for prompt in prompts], rtol=1e-4, atol=1e-5)


def test_prompts_and_texts_are_averaged_at_unit_length(bert):
    made = describe_with_model({"n1": ["okapi", "striped animal"]}, str(bert), templates=["a photo of {}", "the {}."])

    prompts = ["a photo of okapi", "the okapi.", "a photo of striped animal", "the striped animal."]
    expected = unit(np.mean([reference_bert(bert, prompt) for prompt in prompts], axis=0))
    np.testing.assert_allclose(made.values, [expected], rtol=1e-4, atol=1e-5)


def test_a_text_tower_saved_alone_keeps_its_projection(clip, tmp_path):
    tokenizer = clip_tokenizer(tmp_path)
    whole = transformers.CLIPModel.from_pretrained(clip)
    tower = transformers.CLIPTextModelWithProjection(clip_text_config(tokenizer))
    tower.load_state_dict(whole.state_dict(), strict=False)
    tower.save_pretrained(tmp_path)

    texts = {"n1": ["okapi"], "n2": ["zebra"]}
    made, expected = (describe_with_model(texts, str(folder)) for folder in (tmp_path, clip))

    np.testing.assert_allclose(made.values, expected.values, rtol=1e-5, atol=1e-6)


def test_a_bare_text_tower_gives_its_pooled_output(clip, tmp_path):
    clip_tokenizer(tmp_path)
    transformers.CLIPTextModel.from_pretrained(clip).save_pretrained(tmp_path)

    made = describe_with_model({"n1": ["okapi"]}, str(tmp_path))

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with torch.inference_mode():
        output = transformers.CLIPTextModel.from_pretrained(tmp_path)(**tokenizer("okapi", return_tensors="pt"))
    np.testing.assert_allclose(made.values[0], unit(output.pooler_output[0].numpy()), rtol=1e-5, atol=1e-6)


def test_many_texts_are_read_in_batches(bert, monkeypatch):
    texts = {f"n{index}": [" ".join(WORDS[index : index + 3])] for index in range(7)}
    whole = describe_with_model(texts, str(bert))
    monkeypatch.setattr("icis_deploy.descriptors.text_encoder.BATCH_SIZE", 2)

    np.testing.assert_allclose(describe_with_model(texts, str(bert)).values, whole.values, rtol=1e-4, atol=1e-6)


def test_a_prompt_that_would_be_cut_off_is_refused(bert):
    with pytest.raises(DescriptorError, match=r"reads 12 tokens, and these prompts have more: 'okapi okapi.*Shorten"):
        describe_with_model({"n1": ["zebra"], "n2": ["okapi " * 11]}, str(bert))


def test_a_model_in_a_folder_is_read_and_refuses_without_a_word_of_its_libraries(bert, tmp_path):
    """Run apart: bars are drawn by what is on stderr when a process first imports tqdm."""
    (tmp_path / "classes.txt").write_text("zebra\n" + "okapi " * 11)
    command = ["describe", str(tmp_path / "classes.txt"), "--model", str(bert), "--out", str(tmp_path / "made.npz")]
    finished = subprocess.run(
        [sys.executable, "-m", "icis_deploy.cli.main", *command], capture_output=True, text=True, check=False
    )

    assert finished.returncode == 3
    (line,) = finished.stderr.splitlines()
    assert "reads 12 tokens, and these prompts have more" in line


@pytest.mark.parametrize("template", ["a photo", "{} and {}"])
def test_a_template_needs_one_place_for_the_text(bert, template):
    with pytest.raises(UsageError, match=r"needs one \{\}"):
        describe_with_model({"n1": ["okapi"]}, str(bert), templates=[template])


def test_a_path_that_is_no_folder_is_never_looked_up_on_the_hub(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    for path in (tmp_path / "missing", file):
        with pytest.raises(DescriptorError, match="There is no folder"):
            load_text_encoder(str(path))


def test_a_folder_without_a_model_says_what_is_expected(tmp_path):
    with pytest.raises(DescriptorError, match=r"Cannot load a text model from .* Expected a folder with config\.json"):
        load_text_encoder(str(tmp_path))


def test_a_model_without_some_of_its_weights_is_refused_instead_of_filled_up_at_random(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "partial")
    weights = load_file(bert / "model.safetensors")
    dropped = sorted(name for name in weights if "encoder.layer.1." in name)
    save_file(
        {name: value for name, value in weights.items() if name not in dropped},
        tmp_path / "partial" / "model.safetensors",
        metadata={"format": "pt"},
    )

    with pytest.raises(DescriptorError, match=rf"lack {len(dropped)} of the network's weights, which would be random"):
        load_text_encoder(str(tmp_path / "partial"))


def test_a_model_that_cannot_be_loaded_without_its_own_code_is_refused(bert, tmp_path):
    config = {"model_type": "custom", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")

    with pytest.raises(DescriptorError, match="Cannot load a text model"):
        load_text_encoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def test_a_sentence_transformers_folder_is_pooled_as_it_states(bert, tmp_path):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    folder = shutil.copytree(bert, tmp_path / "st")
    module = "sentence_transformers.models"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": DIM, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))

    made = describe_with_model({"n1": ["okapi"], "n2": ["great white shark"]}, str(folder))

    tokenizer, model = (kind.from_pretrained(bert) for kind in (transformers.AutoTokenizer, transformers.BertModel))
    with torch.inference_mode():
        states = [model(**tokenizer(text, return_tensors="pt")) for text in ("okapi", "great white shark")]
    expected = [unit(state.last_hidden_state[0, 0].numpy()) for state in states]
    np.testing.assert_allclose(made.values, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("library", "message"), [("transformers", "need transformers"), ("sentence_transformers", "")])
def test_a_missing_library_is_named_with_the_extra(bert, tmp_path, monkeypatch, library, message):
    (tmp_path / "modules.json").write_text("[]")
    monkeypatch.setitem(__import__("sys").modules, library, None)

    with pytest.raises(MissingDependencyError, match=rf"{message}.*pip install 'icis-deploy\[text\]'"):
        load_text_encoder(str(tmp_path))


def test_a_sentence_transformers_model_refuses_prompts_that_it_would_cut_off(bert, tmp_path):
    pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    folder = shutil.copytree(bert, tmp_path / "st")
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    (folder / "modules.json").write_text(json.dumps([module]))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 5}))

    with pytest.raises(DescriptorError, match="reads 5 tokens, and these prompts have more: 'great white shark okapi'"):
        describe_with_model({"n1": ["zebra"], "n2": ["great white shark okapi"]}, str(folder))

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

from igsearch_env.episode import Document
from igsearch_env.retrieval.encoder import EncoderSettings, SentenceEncoder, Vectors, preset_of

TEXTS = ["Who wrote The Raven?", "Lima is the capital of Peru.", "short", "a b c " * 30]


@pytest.mark.parametrize(
    ("model", "preset"),
    [
        ("intfloat/e5-base-v2", "e5"),
        ("/models/e5-large/", "e5"),
        ("intfloat/multilingual-e5-small", "e5"),
        ("intfloat/multilingual-e5-large-instruct", "plain"),
        ("intfloat/e5-mistral-7b-instruct", "plain"),
        ("BAAI/bge-small-en-v1.5", "bge"),
        ("BAAI/bge-m3", "plain"),
        ("facebook/contriever-msmarco", "contriever"),
        ("/e5-base/all-MiniLM-L6-v2", "plain"),
    ],
)
def test_the_name_of_a_model_says_its_preset(model: str, preset: str) -> None:
    assert preset_of(model) == preset == EncoderSettings(model).preset


def by_hand(model: str, texts: list[str], pooling: str, normalize: bool) -> Vectors:
    """Vectors without sentence-transformers, one text at a time."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model)
    rows = []
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=256)
        with torch.no_grad():
            states = encoder(**tokens).last_hidden_state[0]  # (tokens, dimension)
        vector = (states[0] if pooling == "cls" else states.mean(dim=0)).numpy()
        rows.append(vector / np.sqrt(vector @ vector) if normalize else vector)
    return np.stack(rows)


@pytest.mark.parametrize(
    ("preset", "query", "passage", "pooling", "normalize"),
    [
        (None, "", "", "mean", True),
        ("e5", "query: ", "passage: ", "mean", True),
        ("bge", "Represent this sentence for searching relevant passages: ", "", "cls", True),
        ("contriever", "", "", "mean", False),
    ],
)
def test_vectors_are_those_of_the_model_with_prefix_and_pooling(
    minilm: str, preset: str | None, query: str, passage: str, pooling: str, normalize: bool
) -> None:
    encoder = SentenceEncoder(EncoderSettings(minilm, preset), device="cpu")
    assert encoder.dimension == 384
    expected = by_hand(minilm, [query + text for text in TEXTS], pooling, normalize)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), expected, atol=2e-5)
    documents = [Document("1", "Lima", "A city."), Document("2", "", "No title.")]
    texts = [f"{passage}Lima\nA city.", f"{passage}No title."]
    expected = by_hand(minilm, texts, pooling, normalize)
    np.testing.assert_allclose(encoder.encode_documents(documents), expected, atol=2e-5)


def test_long_texts_are_cut(minilm: str) -> None:
    encoder = SentenceEncoder(EncoderSettings(minilm, max_length=8), device="cpu")
    short, long = encoder.encode_queries(["a b c d e f", "a b c d e f g h i j k"])
    np.testing.assert_allclose(short, long, atol=1e-6)


def test_any_transformers_encoder_will_do(minilm: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=32, intermediate_size=32, num_attention_heads=2)
    config.num_hidden_layers = 1
    BertModel(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(minilm).save_pretrained(tmp_path)
    encoder = SentenceEncoder(EncoderSettings(str(tmp_path)), device="cpu")
    expected = by_hand(str(tmp_path), TEXTS, "mean", normalize=True)
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("said", "query", "passage"),
    [
        ({"prompts": {"query": "find: ", "document": "page: "}}, "find: ", "page: "),
        ({"prompts": {"query": "find: ", "passage": "text: "}}, "find: ", "text: "),
        ({"prompts": {"query": "find: "}, "default_prompt_name": "query"}, "find: ", ""),
        ({"prompts": {"sts": "alike: "}, "default_prompt_name": "sts"}, "", ""),
    ],
)
def test_a_models_own_prompts_are_its_prefixes(
    minilm: str, tmp_path: Path, said: dict[str, object], query: str, passage: str
) -> None:
    shutil.copytree(minilm, tmp_path / "model")
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(json.dumps(said))
    model = str(tmp_path / "model")
    encoder = SentenceEncoder(EncoderSettings(model), device="cpu")
    expected = by_hand(model, [query + TEXTS[0], f"{passage}Lima\nA city."], "mean", True)
    documents = [Document("1", "Lima", "A city.")]
    found = np.concatenate([encoder.encode_queries(TEXTS[:1]), encoder.encode_documents(documents)])
    np.testing.assert_allclose(found, expected, atol=2e-5)
    parameters = encoder.parameters
    assert (parameters["query_prefix"], parameters["passage_prefix"]) == (query, passage)
    own = SentenceTransformer(model, device="cpu").encode_query(TEXTS[:1])
    np.testing.assert_allclose(found[:1], own, atol=2e-5)
    e5 = SentenceEncoder(EncoderSettings(model, "e5"), device="cpu")  # a preset has its own instead
    expected = by_hand(model, ["query: " + TEXTS[0]], "mean", True)
    np.testing.assert_allclose(e5.encode_queries(TEXTS[:1]), expected, atol=2e-5)


def test_a_prompt_may_be_left_out_of_the_pooling(minilm: str, tmp_path: Path) -> None:
    shutil.copytree(minilm, tmp_path / "model")
    (tmp_path / "model" / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": {"query": "find this: "}})
    )
    pooling = tmp_path / "model" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps(json.loads(pooling.read_text()) | {"include_prompt": False}))
    model = str(tmp_path / "model")
    own = SentenceTransformer(model, device="cpu").encode_query(TEXTS)
    found = SentenceEncoder(EncoderSettings(model), device="cpu").encode_queries(TEXTS)
    np.testing.assert_allclose(found, own, atol=2e-5)
    with_it = by_hand(model, ["find this: " + text for text in TEXTS], "mean", True)
    assert np.abs(found - with_it).max() > 1e-3


def test_the_hash_is_of_the_weights(
    encoder: SentenceEncoder, minilm: str, other_model: str
) -> None:
    again = SentenceEncoder(EncoderSettings(minilm, "e5"), device="cpu", precision="bfloat16")
    assert again.sha256 == encoder.sha256
    other = SentenceEncoder(EncoderSettings(other_model), device="cpu")
    assert other.sha256 != encoder.sha256
    assert other.parameters["dimension"] == encoder.parameters["dimension"] == 384


def test_half_precision_is_close(encoder: SentenceEncoder, minilm: str) -> None:
    half = SentenceEncoder(EncoderSettings(minilm), device="cpu", precision="bfloat16")
    found = half.encode_queries(TEXTS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    similarity = (found * encoder.encode_queries(TEXTS)).sum(axis=1)
    assert similarity.min() > 0.99
    assert similarity.min() < 0.999999  # it is half precision


def test_threads_nothing_and_odd_text(encoder: SentenceEncoder) -> None:
    assert encoder.encode_queries([]).shape == (0, 384)
    assert np.isfinite(encoder.encode_queries(["", "lone \ud800 half"])).all()
    expected = encoder.encode_queries(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(encoder.encode_queries, [TEXTS] * 12):
            np.testing.assert_array_equal(found, expected)


def test_what_cannot_be_used_is_named(minilm: str, tmp_path: Path) -> None:
    for arguments, message in (
        ({"preset": "e6"}, "unknown preset 'e6': expected plain, e5"),
        ({"max_length": 0}, "max_length must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            EncoderSettings(minilm, **arguments)
    with pytest.raises(ValueError, match="unknown precision 'int8': expected float32"):
        SentenceEncoder(EncoderSettings(minilm), precision="int8")
    with pytest.raises(ValueError, match=r"cannot load '.*' as an encoder: expected"):
        SentenceEncoder(EncoderSettings(str(tmp_path)), device="cpu")

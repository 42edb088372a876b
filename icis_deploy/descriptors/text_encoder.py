"""Descriptors from a text model of transformers or sentence-transformers, in a local folder or on the Hugging Face hub.

How a text becomes one vector depends on the model, by the first of these that fits:

1. a folder with `modules.json` is a sentence-transformers model: that library loads and pools it;
2. a text tower that was trained against images (CLIP, SigLIP, ...): `get_text_features` or `text_embeds`;
3. a bare text tower (`clip_text_model`, `siglip_text_model`): its pooled output;
4. any other encoder: the mean of its last hidden states over the tokens of the text.

Every prompt's vector is brought to unit length, those of a class are averaged over prompts and texts, and the mean is
brought to unit length (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
section 3.1.4). Only a model named by its hub name is ever downloaded, and no code that comes with a model is run.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from icis_deploy.common.arrays import Float32
from icis_deploy.descriptors.class_texts import ClassTexts
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import DescriptorError, MissingDependencyError, UsageError
from icis_deploy.head.class_names import quoted

if TYPE_CHECKING:
    from torch import Tensor

BATCH_SIZE = 64
INSTALL = "pip install 'icis-deploy[text]'"
DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""What reads class names where nobody chose a source: 91 MB, fast without a GPU, under the Apache-2.0 licence."""

SENTENCE_TEMPLATES = ("{}",)
IMAGE_TEXT_TEMPLATES = ("a photo of a {}.",)
"""What CLIP was evaluated with; a bare noun is rare among the captions that it was trained on."""

_AWAY_FROM_THE_HUB = (
    f"Without internet, copy the folder of {DEFAULT_MODEL} from another machine and give it as `model`; or give "
    f"another source: `tags` or `vectors`."
)
_NOT_FOUND = (
    "Check the name or path. Without a network, download the model where there is one (hf download NAME), and give its "
    "folder."
)
_UNUSED_WEIGHTS = ("pooler.", "vision_model.", "visual_projection.", "logit_")
"""Prefixes of weights that no text goes through. Files often lack BERT's `pooler`; its last states are averaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextEncoder:
    """A loaded text model."""

    encode: Callable[[Sequence[str]], Float32]
    """`(num_texts,)` texts -> `(num_texts, descriptor_dim)` float32, of any length."""

    num_tokens: Callable[[Sequence[str]], list[int]]
    """`(num_texts,)` texts -> number of tokens of each, special ones included."""

    max_tokens: int
    """Tokens that the model reads; a longer text would be cut off."""

    templates: tuple[str, ...]
    """Prompts that suit the model, `{}` standing for the text."""


def describe_with_model(texts: ClassTexts, model: str, *, templates: Sequence[str] = ()) -> Descriptors:
    """Return a descriptor of each class: the mean of the model's vectors of all prompts with all its texts.

    Args:
        texts: One or more texts for each class name.
        model: A local folder, or a name on the Hugging Face hub, which is then downloaded.
        templates: Prompts with one `{}` each; by default the bare text, or "a photo of a {}." for a text tower that was
            trained against images.

    Raises:
        UsageError: If a template has no `{}`.
        DescriptorError: If the model cannot be loaded, or a prompt is longer than it can read.
        MissingDependencyError: If the library that the model needs is not installed.
    """
    bad = [template for template in templates if template.count("{}") != 1]
    if bad:
        raise UsageError(
            f"The template {bad[0]!r} needs one {{}}, where the class's text goes.",
            found=bad[0],
            expected="one {} in each template",
            hint="Write {} once, as in 'a photo of a {}.'.",
        )
    encoder = load_text_encoder(model)
    prompts = [
        (index, template.replace("{}", text))
        for index, each in enumerate(texts.values())
        for text in each
        for template in templates or encoder.templates
    ]
    _check_lengths(encoder, [prompt for _, prompt in prompts], model)
    values = _unit(encoder.encode([prompt for _, prompt in prompts]))  # (num_prompts, descriptor_dim)
    sums = np.zeros((len(texts), values.shape[1]), dtype=np.float64)
    np.add.at(sums, [index for index, _ in prompts], values)
    return Descriptors(values=_unit(sums), class_names=tuple(texts))


def load_text_encoder(model: str) -> TextEncoder:
    """Load a text model.

    Args:
        model: A local folder, or a name on the Hugging Face hub.

    Raises:
        DescriptorError: If there is no such model, or it is not a text model.
        MissingDependencyError: If the library that it needs is not installed.
    """
    try:
        import torch
        import transformers  # noqa: F401
        from transformers.utils.hub import has_file
    except ImportError as error:
        raise MissingDependencyError(
            "Descriptors from a text model need transformers and torch.",
            hint=f"Install them: {INSTALL}.",
        ) from error
    if model == DEFAULT_MODEL:
        model = _local_copy(model) or model
    # os.path and not pathlib, which raises where a name is too long.
    is_folder = os.path.isdir(model)  # noqa: PTH112
    is_there = os.path.exists(model)  # noqa: PTH110
    if not is_folder and (is_there or model.startswith((".", "/", "~")) or model.count("/") > 1):
        raise DescriptorError(
            f"There is no folder {model}. Expected the folder of a text model (with config.json, tokenizer and "
            f"weights), or a name on the Hugging Face hub such as openai/clip-vit-base-patch32.",
            found="no folder",
            expected="the folder of a text model, or a name on the Hugging Face hub",
            where=model,
            hint="Check the path, or download the model and give its folder.",
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with _loading(model), _silent_bars() if is_folder else _silent_retries():
        if has_file(model, "modules.json", local_files_only=is_folder):
            return _load_sentence_transformer(model, device, is_folder)
        return _load_transformer(model, device, is_folder)


def _local_copy(model: str) -> str | None:
    """Return the folder of a model that was downloaded before: who did not choose it need not be online to use it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, local_files_only=True))
    except (LocalEntryNotFoundError, OSError):
        return None
    return str(folder) if (folder / "modules.json").is_file() and (folder / "model.safetensors").is_file() else None


@contextmanager
def _loading(model: str) -> Iterator[None]:
    try:
        yield
    except (MissingDependencyError, DescriptorError):
        raise
    except Exception as error:  # transformers, tokenizers, safetensors and the hub raise two dozen types
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DescriptorError(
            f"Cannot load a text model from {model}: {reason[0].rstrip('.')}. Expected a folder with config.json, "
            f"tokenizer and weights, or a name on the Hugging Face hub that this machine can reach.",
            found=reason[0],
            expected="a text model",
            where=model,
            hint=_AWAY_FROM_THE_HUB if model == DEFAULT_MODEL else _NOT_FOUND,
        ) from error


@contextmanager
def _silent_retries() -> Iterator[None]:
    """Keep what the hub's client says of each attempt off stderr; the error says what the last one met."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(level)


@contextmanager
def _silent_bars() -> Iterator[None]:
    """Keep progress bars off stderr while a local model is read, which takes a moment; downloads keep theirs."""
    from transformers.utils import logging

    was_enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if was_enabled:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@contextmanager
def _silent_report() -> Iterator[None]:
    """Keep transformers' table of missing and unexpected weights off stderr; `_check_complete` reads it."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _check_complete(missing_keys: Collection[str], model: str) -> None:
    """Raise `DescriptorError` if weights that a text goes through are missing; transformers draws them at random."""
    if missing_keys:
        raise DescriptorError(
            f"The files of {model} lack {len(missing_keys)} of the network's weights, which would be random: "
            f"{quoted(sorted(missing_keys))}.",
            found=tuple(sorted(missing_keys)),
            expected=(),
            where=model,
            hint="Fetch it again, or correct 'architectures' in its config.json.",
        )


def _load_sentence_transformer(model: str, device: str, is_folder: bool) -> TextEncoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingDependencyError(
            f"{model} is a sentence-transformers model, which needs sentence-transformers.",
            where=model,
            hint=f"Install it: {INSTALL}.",
        ) from error
    loaded = SentenceTransformer(model, device=device, local_files_only=is_folder)

    def encode(texts: Sequence[str]) -> Float32:
        vectors = loaded.encode(list(texts), batch_size=BATCH_SIZE, show_progress_bar=False, convert_to_numpy=True)
        return np.asarray(vectors, dtype=np.float32)

    return TextEncoder(
        encode=encode,
        num_tokens=lambda texts: [
            len(ids) for ids in loaded.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        ],
        max_tokens=loaded.max_seq_length or loaded.tokenizer.model_max_length,
        templates=SENTENCE_TEMPLATES,
    )


def _load_transformer(model: str, device: str, is_folder: bool) -> TextEncoder:
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(model, local_files_only=is_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=is_folder)
    # AutoModel would leave out the projection of a text tower that was saved alone.
    name = next(iter(config.architectures or ()), "")
    kind = getattr(transformers, name) if name.endswith("TextModelWithProjection") else transformers.AutoModel
    with _silent_report():
        network, loading = kind.from_pretrained(model, local_files_only=is_folder, output_loading_info=True)
    is_encoder_decoder = getattr(config, "is_encoder_decoder", False)
    unused = (*_UNUSED_WEIGHTS, "decoder.") if is_encoder_decoder else _UNUSED_WEIGHTS
    _check_complete([name for name in loading["missing_keys"] if not name.startswith(unused)], model)
    network = network.to(device).eval()
    if is_encoder_decoder:
        network = network.get_encoder()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    max_tokens = min(tokenizer.model_max_length, config.get_text_config().max_position_embeddings)
    # SigLIP was trained on texts padded to full length and without a mask, and counts on it.
    is_siglip = config.model_type.startswith("siglip")

    def encode(texts: Sequence[str]) -> Float32:
        batches = []
        for start in range(0, len(texts), BATCH_SIZE):
            inputs = tokenizer(
                list(texts[start : start + BATCH_SIZE]),
                padding="max_length" if is_siglip else True,
                max_length=max_tokens if is_siglip else None,
                return_tensors="pt",
            ).to(device)
            with torch.inference_mode():
                batches.append(_pooled(network, inputs, config.model_type).float().cpu().numpy())
        return np.concatenate(batches)

    return TextEncoder(
        encode=encode,
        num_tokens=lambda texts: [
            len(ids) for ids in tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        ],
        max_tokens=max_tokens,
        templates=IMAGE_TEXT_TEMPLATES if _is_image_text(network) else SENTENCE_TEMPLATES,
    )


def _is_image_text(network: Any) -> bool:
    return hasattr(network, "get_text_features") or hasattr(network, "text_projection")


def _pooled(network: Any, inputs: Any, model_type: str) -> Tensor:
    """Return one vector for each text, `(batch, dim)`."""
    if hasattr(network, "get_text_features"):
        features = network.get_text_features(**inputs)
        # A tensor before transformers 5.
        return features.pooler_output if hasattr(features, "pooler_output") else features  # type: ignore[no-any-return]
    output = network(**inputs)
    if getattr(output, "text_embeds", None) is not None:
        return output.text_embeds  # type: ignore[no-any-return]
    if model_type.endswith("_text_model"):
        return output.pooler_output  # type: ignore[no-any-return]
    states = output.last_hidden_state  # (batch, num_tokens, dim)
    mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)  # (batch, num_tokens, 1)
    return (states * mask).sum(1) / mask.sum(1)  # type: ignore[no-any-return]


def _check_lengths(encoder: TextEncoder, prompts: Sequence[str], model: str) -> None:
    """Raise `DescriptorError` if a prompt would be cut off."""
    longest = [
        prompt
        for prompt, num_tokens in zip(prompts, encoder.num_tokens(prompts), strict=True)
        if num_tokens > encoder.max_tokens
    ]
    if longest:
        raise DescriptorError(
            f"{model} reads {encoder.max_tokens} tokens, and these prompts have more: {quoted(longest)}.",
            found=tuple(longest),
            expected=f"at most {encoder.max_tokens} tokens",
            where=model,
            hint="Shorten the texts, or split them: a class may have several, which are averaged.",
        )


def _unit(values: NDArray[np.floating]) -> NDArray[np.floating]:
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(lengths > 0, lengths, 1)

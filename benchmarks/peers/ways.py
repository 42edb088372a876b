"""The other ways to have the same classes, each ready to answer, and each with what it takes to add more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.bench.opened import OpenTarget, float_input, noise, open_bundle
from benchmarks.peers.torch_programs import add_arbiter, add_rows, compiled, load_module, runner, save_as_onnx
from icis_deploy.bundle.manifest import Bundle
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.descriptors.descriptors import Descriptors
from icis_deploy.errors import ICISDeployError, UsageError
from icis_deploy.runtime.sessions.choice import Runtime
from icis_deploy.runtime.sessions.onnxruntime_session import load_session

if TYPE_CHECKING:
    from torch.nn import Module

Add = Callable[["NewClasses"], Callable[[], Float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewClasses:
    """Classes to add, in the forms that peers take."""

    rows: Float32
    """`(num_added, feature_dim + 1)` float32, `[weight | bias]`."""

    descriptors: Float32
    """`(num_added, descriptor_dim)` float32; no columns where there are no descriptors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adding:
    """How a peer adds classes."""

    add: Add
    """From new classes to what adds them and answers once."""

    how: str
    """What a user has to do for it, in words."""

    num_times: int
    """Number of repetitions that are timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way, ready to answer."""

    target: OpenTarget
    """Answers images with the classes of the first bundle."""

    adding: Adding | None
    """How it adds classes; None where it has no way of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerBase:
    """What all peers are made of: one bundle, its original model, and their rows."""

    first: OpenTarget
    """The first of the bundles that are compared, in ONNX Runtime."""

    folder: Path
    """Folder of the first bundle."""

    bundle: Bundle
    """Manifest of the first bundle."""

    model: Path
    """The model that the bundle was made from, as the user gave it: `.onnx` or `.pt2`."""

    onnx_path: Path
    """The same model as an ONNX file."""

    seen_rows: Float32
    """`(num_seen, feature_dim + 1)` float32, the rows of the original head."""

    added_rows: Float32
    """`(num_classes - num_seen, feature_dim + 1)` float32, the rows that the bundle has besides."""

    added_arbiter: Float32
    """`(num_classes - num_seen, 5)` float32, what the logits of these rows follow from an image's statistics."""

    descriptors: Descriptors | None
    """Descriptors of all classes, seen and added; None where the user gave none."""

    num_threads: int | None
    """Threads inside one operator, for every runtime; None lets each choose."""

    work_folder: Path
    """A temporary folder for models that peers export."""

    @property
    def image(self) -> Images:
        """One prepared image."""
        return noise(float_input(self.bundle), 1)

    def load_module(self) -> Module:
        """Return the torch model with the classes of the first bundle.

        Raises:
            ICISDeployError: If there is no torch model, or its head is not found.
        """
        module = load_module(self.model)
        self.give_classes(module)
        return module

    def give_classes(self, module: Module, more: Float32 | None = None) -> None:
        """Give a torch model the classes of the first bundle, and more after them, `(num_more, feature_dim + 1)`.

        More classes follow the arbiter that is there, as a class that a device is taught does.
        """
        more = self.added_rows[:0] if more is None else more
        add_rows(module, self.seen_rows, np.concatenate([self.added_rows, more]))
        if self.added_arbiter.any():
            last = np.repeat(self.added_arbiter[-1:], len(more), axis=0)
            add_arbiter(module, self.seen_rows, np.concatenate([self.added_arbiter, last]))

    def target(self, name: str, answer: Callable[[Images], Float32], *, runtime: str, file: Path) -> OpenTarget:
        """Return another way as a target: the classes of the first bundle, answered in another way."""
        return replace(
            self.first,
            name=name,
            head_kind="other",
            precision="fp32",
            runtime=runtime,
            provider=None,
            capacity=0,
            files=(file,),
            model_files=(file,),
            added_bytes=0,
            answer=answer,
            bundle=None,
            phases=None,
            score_kind="logits",
            model_input=float_input(self.bundle),
        )

    def new_classes(self, num_classes: int, *, seed: int) -> NewClasses:
        """Return classes as likely as the seen ones: seeded mixtures of their rows and descriptors."""
        random = np.random.default_rng(seed)
        shares = random.dirichlet(np.ones(4), num_classes).astype(np.float32)
        mixed = random.integers(0, len(self.seen_rows), (num_classes, 4))
        described = np.empty((self.first.num_seen, 0), dtype=np.float32)
        if self.descriptors is not None:
            described = self.descriptors.select(self.first.class_names[: self.first.num_seen]).values
        return NewClasses(
            rows=np.einsum("nk,nkd->nd", shares, self.seen_rows[mixed]),
            descriptors=np.einsum("nk,nkd->nd", shares, described[mixed]),
        )


def make_peers(base: PeerBase) -> tuple[list[Peer], Mapping[str, str]]:
    """Return every peer that can run here, and for the others why they cannot."""
    peers, left_out = [], {}
    for name, make in PEERS.items():
        try:
            peers.append(make(base, name))
        except ICISDeployError as error:
            left_out[name] = str(error)
    return peers, left_out


def openvino_peer(base: PeerBase, name: str) -> Peer:
    """Return the first bundle in OpenVINO."""
    runtime = Runtime(name="openvino", num_threads=base.num_threads)
    return Peer(target=open_bundle(base.folder, name=name, runtime=runtime), adding=None)


def eager_peer(base: PeerBase, name: str) -> Peer:
    """Return the torch model with all rows, as it is."""
    module = base.load_module()
    answer = runner(module, base.num_threads)

    def add(new: NewClasses) -> Callable[[], Float32]:
        def call() -> Float32:
            base.give_classes(module, new.rows)
            return answer(base.image)

        return call

    target = base.target(name, answer, runtime="torch", file=base.model)
    how = "rows concatenated to the last layer, in the running process"
    return Peer(target=target, adding=Adding(add=add, how=how, num_times=20))


def compiled_peer(base: PeerBase, name: str) -> Peer:
    """Return the torch model with all rows, compiled."""
    module = base.load_module()

    def add(new: NewClasses) -> Callable[[], Float32]:
        def call() -> Float32:
            base.give_classes(module, new.rows)
            return runner(compiled(module), base.num_threads)(base.image)

        return call

    target = base.target(name, runner(compiled(module), base.num_threads), runtime="torch", file=base.model)
    how = "rows concatenated to the last layer, and compiled again"
    return Peer(target=target, adding=Adding(add=add, how=how, num_times=1))


def reexport_peer(base: PeerBase, name: str) -> Peer:
    """Return the torch model with all rows, exported by torch to ONNX."""
    module = base.load_module()
    path = base.work_folder / "exported_again.onnx"
    shape = float_input(base.bundle).shape

    def export() -> Callable[[Images], Float32]:
        save_as_onnx(module, shape, path)
        session = load_session(path, num_threads=base.num_threads)
        return lambda images: session.run(images).logits

    def add(new: NewClasses) -> Callable[[], Float32]:
        def call() -> Float32:
            base.give_classes(module, new.rows)
            return export()(base.image)

        return call

    target = base.target(name, export(), runtime="onnxruntime", file=path)
    how = "rows concatenated to the last layer, exported by torch to ONNX, and a new session"
    return Peer(target=target, adding=Adding(add=add, how=how, num_times=1))


def conse_peer(base: PeerBase, name: str) -> Peer:
    """Return the original model with descriptors compared in numpy."""
    if base.descriptors is None:
        raise UsageError("it compares descriptors, and none were given")
    names, num_seen = base.first.class_names, base.first.num_seen
    head = conse_from(base.descriptors, names[:num_seen], names[num_seen:])
    session = load_session(base.onnx_path, num_threads=base.num_threads)

    def add(new: NewClasses) -> Callable[[], Float32]:
        return lambda: head.with_classes(new.descriptors).scores(session.run(base.image).logits)

    def answer(images: Images) -> Float32:
        return head.scores(session.run(images).logits)

    target = base.target(name, answer, runtime="onnxruntime and numpy", file=base.onnx_path)
    return Peer(target=target, adding=Adding(add=add, how="descriptors appended to an array", num_times=50))


PEERS: Mapping[str, Callable[[PeerBase, str], Peer]] = {
    "OpenVINO": openvino_peer,
    "PyTorch eager": eager_peer,
    "torch.compile": compiled_peer,
    "re-export": reexport_peer,
    "ConSE": conse_peer,
}


NUM_COMBINED = 10


def conse_from(descriptors: Descriptors, seen_names: Sequence[str], other_names: Sequence[str]) -> ConSE:
    """Return a head that knows the seen classes, and others after them.

    Raises:
        DescriptorError: If a class has no descriptor.
    """
    seen = unit_length(descriptors.select(seen_names).values)
    if not other_names:
        return ConSE(seen=seen, known=seen)
    return ConSE(seen=seen, known=seen).with_classes(descriptors.select(other_names).values)


def unit_length(vectors: Float32) -> Float32:
    """Return vectors of length 1; one that is zero stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConSE:
    """Zero-shot classes by descriptor similarity, without rows; what a user could do in a page of Python.

    An image becomes the mean of the descriptors of its most probable seen classes, weighted by their probabilities; the
    class whose descriptor is most similar to it (cosine) wins. Chosen among all classes, seen ones compete in the same
    way.

    Source: M. Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", ICLR 2014, with
    T = 10.
    """

    seen: Float32
    """`(num_seen, descriptor_dim)`, of length 1, in the order of the original model's logits."""

    known: Float32
    """`(num_classes, descriptor_dim)`, of length 1: all classes that it chooses among."""

    def with_classes(self, descriptors: Float32) -> ConSE:
        """Return a head that knows more classes, after those it knows.

        Args:
            descriptors: `(num_added, descriptor_dim)`.
        """
        return replace(self, known=np.concatenate([self.known, unit_length(descriptors)]))

    def scores(self, logits: Float32) -> Float32:
        """Return the similarity of images to every class.

        Args:
            logits: `(batch, num_seen)`, of the original model.

        Returns:
            `(batch, num_classes)` cosines.
        """
        num_combined = min(NUM_COMBINED, logits.shape[1])
        best = np.argpartition(logits, -num_combined, axis=1)[:, -num_combined:]
        chosen = np.take_along_axis(logits, best, axis=1)
        weights = np.exp(chosen - chosen.max(axis=1, keepdims=True))  # the mean's length cancels in the cosine
        combined = np.einsum("bt,btd->bd", weights, self.seen[best])
        return np.asarray(unit_length(combined) @ self.known.T)

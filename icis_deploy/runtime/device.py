"""A device: a bundle that is open, answers, and takes class updates.

Rules:

1. A request takes the open bundle and its head state once, when it starts; an answer belongs to exactly one version.
2. Everything that changes the state is the updater's; see `changes/updater.py`.
"""

# Why: docs/decisions/0024 and 0077 (hand-over), docs/decisions/0078 (processes), docs/decisions/0035 (self-test at
# opening), docs/decisions/0057 (late imports).

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, SupportsIndex

import numpy as np
from numpy import ndarray
from numpy.typing import ArrayLike

from icis_deploy.bundle.arbiter_constants import ArbiterConstants
from icis_deploy.bundle.manifest import Bundle, check_files, load_manifest
from icis_deploy.bundle.slot_files import exported_slots
from icis_deploy.common.arrays import Float32, Images
from icis_deploy.common.background_call import BackgroundCall
from icis_deploy.common.files import path_from
from icis_deploy.common.given import check_flag
from icis_deploy.common.terminal_text import shown
from icis_deploy.errors import (
    ICISDeployError,
    IncompatibleError,
    RuntimeFailureError,
    UsageError,
)
from icis_deploy.head.class_names import check_unique
from icis_deploy.runtime.answers import Logits, Prediction, predictions_from_topk, top_predictions
from icis_deploy.runtime.changes.updater import AppliedUpdate, Updater
from icis_deploy.runtime.open_bundle import (
    OpenBundle,
    check_same_head,
    input_form,
    manifest_stamp,
    prepare_inputs,
    run_logits,
    run_with_features,
)
from icis_deploy.runtime.sessions.choice import Runtime, import_library, open_session, runtime_from
from icis_deploy.runtime.sessions.protocol import Session
from icis_deploy.runtime.state.head_state import HeadState, make_head_state
from icis_deploy.runtime.state.journal import HistoryEntry, continues
from icis_deploy.runtime.state.store import Store
from icis_deploy.runtime.teaching.cached_generator import CachedGenerator

if TYPE_CHECKING:
    from types import TracebackType

    from icis_deploy.head.class_update import ClassUpdate
    from icis_deploy.images.python_values import PythonInputs
    from icis_deploy.images.sources import InputValue

__all__ = ["AppliedUpdate", "Device", "Logits", "Prediction"]


def _utc_now() -> datetime:
    return datetime.now(timezone.utc)


STREAM_BATCH = 32
"""Inputs of an iterator that are prepared and run at once."""


def prepare_named(device: Device, named: Sequence[tuple[str, InputValue]]) -> Images:
    """Return inputs as one batch of a device's model; see `prepare_inputs`."""
    return prepare_inputs(device._opened, named)


def session_of(device: Device) -> Session:
    """Return the model of a device, loaded in its runtime."""
    return device._opened.session


def runtime_of(device: Device) -> Runtime:
    """Return where a device runs its model."""
    return device._opened.runtime


def state_of(device: Device) -> HeadState:
    """Return the head that the next request to a device will get."""
    return device._opened.updater.held.state


class Device:
    """A bundle that is open and answers; safe to use from several threads.

    Every answer carries the version of the head that gave it, and comes from exactly one.

    A process that is forked cannot use the session and the locks of its parent, whose threads it does not have: there a
    device opens its bundle again with its first call, as `open` does, whatever the parent was doing. It pickles to the
    path, the runtime and the trusted keys that it was opened with, so that `multiprocessing`'s spawn, Ray and Spark
    open it again.

    Example:
        device = icis_deploy.Device.open("bundle")
        (prediction,) = device.predict(["okapi.jpg"])
        device.apply("new.icis")
    """

    def __init__(
        self,
        *,
        folder: Path,
        bundle: Bundle,
        session: Session,
        state: HeadState,
        store: Store | None = None,
        clock: Callable[[], datetime] = _utc_now,
        runtime: Runtime | None = None,
    ) -> None:
        self._changing = threading.RLock()
        _DEVICES.add(self)
        self._opened = OpenBundle(
            runtime=Runtime() if runtime is None else runtime,
            named=folder,
            stamp=None,
            trust=None,
            folder=folder,
            bundle=bundle,
            session=session,
            generator=CachedGenerator(folder, bundle),
            updater=Updater(
                folder=folder,
                bundle=bundle,
                session=session,
                state=state,
                store=Store(folder) if store is None else store,
                constants=ArbiterConstants(folder, bundle),
                clock=clock,
            ),
        )

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        runtime: Runtime | str = "onnxruntime",
        num_threads: int | None = None,
        trust: Sequence[str | Path] | None = None,
    ) -> Device:
        """Open a bundle with the head it had when it was last changed.

        Args:
            folder: The bundle's folder.
            runtime: Where its model is loaded: a name, as `Runtime.name`, or a `Runtime`, which says more.
            num_threads: Threads inside one operator, where `runtime` does not say it.
            trust: Files of public keys, from outside of the bundle, one of which must have signed it
                (`icis_deploy.sign_bundle`); `None` takes it signed or not, and believes whoever wrote its folder.

        Raises:
            BundleError: If it is not a complete bundle.
            SignatureError: If `trust` is given and none of its keys signed the bundle.
            CorruptFileError: If a file has another hash than its manifest or the journal states.
            IncompatibleError: If its state belongs to another bundle.
            ModelLoadError: If the runtime cannot load the model.
            MissingDependencyError: If the runtime, or the device that it needs, is not there.
            SelfTestError: If the runtime does not compute with the slots that it is given.
            UsageError: If there is no such runtime, or `trust` is one path.
        """
        named = path_from(folder, name="folder")
        # Before the link is resolved: if it is pointed elsewhere meanwhile, the first `refresh` looks again.
        stamp = manifest_stamp(named)
        # What a link leads to now: files of one bundle are read and written, wherever the link leads meanwhile.
        folder = Path(os.path.realpath(named)) if os.path.isdir(named) else named  # noqa: PTH112 - see `replace`
        chosen = runtime_from(runtime, num_threads=num_threads)
        keys: list[Path] | None = None
        if trust is not None:
            from icis_deploy.runtime.state.bundle_trust import verify_bundle_signature
            from icis_deploy.updates.signing import key_paths

            keys = [Path(os.path.abspath(path)) for path in key_paths(trust, name="trust")]  # noqa: PTH100
            verify_bundle_signature(folder, keys)
        bundle = load_manifest(folder)
        # Reading and hashing leave Python's lock to the import, which takes longer. Nothing of the bundle but its
        # manifest is used before the comparison has ended, so what cannot be trusted is not loaded.
        check = BackgroundCall(partial(check_files, folder, bundle))
        import_library(chosen)
        check.result()
        device = cls.from_parts(folder, bundle, runtime=chosen)
        device._opened.updater.take_over(self_test=not chosen.is_reference)
        device._opened = replace(
            device._opened,
            named=Path(os.path.abspath(named)),  # noqa: PTH100
            stamp=stamp,
            trust=None if keys is None else tuple(keys),
        )
        return device

    @classmethod
    def from_parts(
        cls,
        folder: Path,
        bundle: Bundle,
        *,
        runtime: Runtime | None = None,
    ) -> Device:
        """Open the files of a bundle as it was exported, whatever was committed since.

        So the parity gate runs a bundle that has no manifest yet, and `rollback` gets away from a damaged state.

        Args:
            folder: The bundle's files.
            bundle: What its manifest says, or will say.
            runtime: Where its model is loaded; `None` for the default.

        Raises:
            ICISDeployError: As `open`.
        """
        runtime = Runtime() if runtime is None else runtime
        session = open_session(folder, bundle, runtime)
        table = exported_slots(folder, bundle)
        state = make_head_state(bundle, session, table=table, version=bundle.head_version)
        if state.slots is not None and not runtime.is_reference:
            from icis_deploy.runtime.changes.self_test import verify_computed

            # The gate saw these slots in the reference alone; another runtime may not read the ones that it is given.
            verify_computed(session, bundle, *state.slots, seed=0, constants=ArbiterConstants(folder, bundle))
        return cls(folder=folder, bundle=bundle, session=session, state=state, runtime=runtime)

    def __reduce__(self) -> tuple[Callable[..., Device], tuple[Path, Runtime, tuple[Path, ...] | None]]:
        opened = self._opened
        return _open_again, (opened.named, opened.runtime, opened.trust)

    def __getattr__(self, name: str) -> object:
        # Called for attributes that are not there: what is open, in a process that was forked.
        inherited = self.__dict__.get("_inherited") if name == "_opened" else None
        if name == "_opened" and (closed := self.__dict__.get("_closed")) is not None:
            raise UsageError(
                f"The device of {closed} is closed.",
                found="a closed device",
                expected="an open one",
                where=closed,
                hint="Open it again with Device.open.",
            )
        if inherited is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        with self._changing:
            if "_opened" not in self.__dict__:
                self._opened = _open_again(inherited.named, inherited.runtime, inherited.trust)._opened
            return self.__dict__["_opened"]

    def __enter__(self) -> Device:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the model and what it holds; the device cannot be used afterwards, and is closed again at will.

        A request that is in flight in another thread ends with what it started with.
        """
        with self._changing:
            # In a process that was forked, what the parent has open may not have been opened again yet.
            held = [self.__dict__.pop(name, None) for name in ("_opened", "_inherited")]
            self._closed = self.__dict__.get("_closed") or next(one.named for one in held if one is not None)

    def __repr__(self) -> str:
        if (closed := self.__dict__.get("_closed")) is not None:
            return f"<Device {str(closed)!r}, closed>"
        opened = self.__dict__.get("_opened") or self.__dict__.get("_inherited")
        if opened is None:  # while it is made
            return "<Device, not open>"
        state, bundle = opened.updater.held.state, opened.bundle
        num_slots = 0 if state.table is None else len(state.table.filled_names)
        slots = f", {num_slots} of {bundle.capacity} slots filled" if bundle.capacity else ""
        disabled = f", {len(disabled)} disabled" if (disabled := _disabled(state)) else ""
        return (
            f"<Device {str(opened.named)!r}: version {state.version}, {len(state.class_names)} classes"
            f"{slots}{disabled}, takes {bundle.model_input.shape} {bundle.model_input.dtype}, {opened.runtime.name}>"
        )

    def _forget_parent(self) -> None:
        """Leave what the parent had open, in a process that was forked."""
        self._changing = threading.RLock()
        # Kept for ever: to end a session would wait for threads that are not in this process.
        self._inherited = self.__dict__.pop("_opened", None) or self.__dict__.get("_inherited")

    @property
    def bundle(self) -> Bundle:
        """What the bundle's manifest says."""
        return self._opened.bundle

    @property
    def version(self) -> int:
        """Version of the head that the next request will get."""
        return self._opened.updater.held.state.version

    def classes(self) -> tuple[str, ...]:
        """Return the classes that the next request will choose among, in the order of the logits."""
        return self._opened.updater.held.state.class_names

    def disabled_classes(self) -> tuple[str, ...]:
        """Return the classes that the head knows and no answer chooses, because they were disabled."""
        return _disabled(self._opened.updater.held.state)

    def logits(self, images: Images) -> Logits:
        """Return the logits of a batch of prepared images.

        Where the model ends in a softmax, these are its logarithms, which are logits as well; where it ends in a
        sigmoid, the logarithms of each class's own probability.

        Args:
            images: `(batch, *input_shape)` in the dtype of the model's input.

        Raises:
            RuntimeFailureError: If the runtime fails, which includes images of another shape or dtype.
        """
        opened = self._opened
        state = opened.updater.held.state
        return Logits(values=run_logits(opened, images, state), class_names=state.class_names, version=state.version)

    def predict(self, images: PythonInputs, *, top: int = 5) -> list[Prediction]:
        """Return the most probable classes of each image.

        One image is a path, the bytes of an image file, a Pillow image, an array or a tensor; several are a list of
        these, what yields them, an array with one more dimension, a table of numbers, or the path of a file of arrays.
        Images are prepared as the bundle states: files, Pillow images, and uint8 arrays `(height, width, channels)`,
        red before green before blue. Other arrays are taken as the model takes them. What an iterator yields is read
        and answered `STREAM_BATCH` at a time.

        Args:
            images: One or several. A prepared batch `(batch, *input_shape)` is the fastest.
            top: How many classes per image, at least 1; fewer where the head has fewer.

        Raises:
            ImageError: If a file is no image, or an array is none that the model takes.
            IncompatibleError: If images are given and the bundle does not state its preprocessing.
            UsageError: If something is no image.
            RuntimeFailureError: If the runtime fails.
        """
        if type(top) is not int or top < 1:
            top = _checked_top(top)
        opened = self._opened
        taken = opened.bundle.model_input
        # A look at the type is enough for most, and takes 4 us less than `isinstance` while caches are cold.
        is_batch = type(images) is ndarray and images.shape[1:] == taken.shape
        if is_batch and images.dtype == np.dtype(taken.dtype):
            batch = images
        elif isinstance(images, Iterator):
            return [one for part in _parts(images) for one in self.predict(part, top=top)]
        else:
            batch = self.prepare(images)
        state = opened.updater.held.state
        # Where more classes are asked for than the model selects, or one is disabled, they are selected here.
        if top <= state.max_model_top:
            topk = opened.session.top(batch, state.buffers)
            answers = topk and predictions_from_topk(topk, state.score_names, state.version, top)
            if answers is not None:
                return answers
        return top_predictions(
            run_logits(opened, batch, state),
            top,
            class_names=state.class_names,
            version=state.version,
            independent=opened.bundle.score_kind == "sigmoid",
        )

    def prepare(self, images: PythonInputs) -> Images:
        """Return images as one batch of the model's input, `(batch, *input_shape)`.

        Args:
            images: In any form of `predict`.

        Raises:
            ImageError, UsageError: As `predict`.
            IncompatibleError: If the bundle does not state its preprocessing.
        """
        from icis_deploy.images.python_values import single_values

        return prepare_named(self, list(single_values(images, input_form(self._opened.bundle))))

    def embed(self, images: PythonInputs) -> Float32:
        """Return the features of images: what the head multiplies, and what classes are taught by.

        Args:
            images: As `predict`.

        Returns:
            `(batch, feature_dim)` float32.

        Example:
            features = device.embed(["okapi.jpg", "zebra.jpg"])

        Raises:
            ImageError: If a file is no image.
            IncompatibleError: If the model gives no features, or as `predict`.
            RuntimeFailureError: If the runtime fails, or the features are no finite numbers.
        """
        batch, opened = self.prepare(images), self._opened
        features = run_with_features(opened, batch, opened.updater.held.state)[1]
        if not np.isfinite(features).all():
            raise RuntimeFailureError(
                "The model's features of an image are no finite numbers.",
                found="NaN or infinity",
                expected="finite features",
                hint="Check that the image is finite: NaN, or values out of the model's range, give such features.",
            )
        return features

    def history(self) -> tuple[HistoryEntry, ...]:
        """Return the last changes committed to the bundle, by this process or another, the oldest first.

        Raises:
            BundleError, CorruptFileError: If the journal cannot be read.
        """
        return self._opened.updater.history()

    def apply(
        self,
        update: str | Path | bytes | bytearray | memoryview | ClassUpdate,
        *,
        allow_unsigned: bool = False,
        allow_changed_answers: bool = False,
    ) -> AppliedUpdate:
        """Take a class update, or a set of trusted keys: all of it, or nothing.

        One that is in effect already changes nothing, and `AppliedUpdate.changed` says so; so whoever does not know
        whether it arrived can apply it again. An older one is refused.

        Args:
            update: The file, its bytes, or a class update, which nobody has signed.
            allow_unsigned: Whether a class update that nobody signed is taken; the history says so.
            allow_changed_answers: Whether one is taken that changes more answers on known classes than the bundle
                allows; the history says so.

        Raises:
            LoadError: If the file cannot be read.
            IntegrityError: If it cannot be trusted, is too old or expired; see `changes/rules.py`.
            IncompatibleError: If it does not fit this head.
            GuardError: If it changes more answers on known classes than the bundle allows; see `changes/guard.py`.
            SelfTestError: If the slots do not hold their rows after writing.
            StorageError: If the disk refuses.
            RuntimeFailureError: If the runtime fails in the self-test.
        """
        check_flag(allow_unsigned, name="allow_unsigned")
        check_flag(allow_changed_answers, name="allow_changed_answers")
        with self._changing:
            self._follow()
            return self._opened.updater.apply(
                update, allow_unsigned=allow_unsigned, allow_changed_answers=allow_changed_answers
            )

    def teach(
        self,
        class_name: str,
        descriptor: ArrayLike | Mapping[str, ArrayLike] | None = None,
        *,
        images: PythonInputs | None = None,
        skip_unreadable: bool = False,
        allow_changed_answers: bool = False,
    ) -> HistoryEntry:
        """Learn a class from its descriptor, with the bundle's generator, from photos, or from both.

        The row that the generator makes is checked against the seen ones and put into a slot by the same transaction as
        a class update. It spends no version: a signed update that adds a class of the same name replaces it. Photos
        move that row, or make one alone: see `icis_deploy.few_shot.refining`. All classes that were taught by photos
        have one offset, which is set anew with each of them, so that together they cost the seen classes no more than
        the bundle allows.

        Args:
            class_name: What to call it; a class that was taught before is taught anew.
            descriptor: `(descriptor_dim,)`, made like those of the seen classes; where these have several blocks, also
                `(width,)` by name of the block, and a block that is left out says nothing of the class.
            images: Photos of the class, 1 to 100, in any form of `predict`. The history keeps their hashes, and nothing
                keeps the photos.
            skip_unreadable: Whether to leave out photos that cannot be read, with a warning.
            allow_changed_answers: As `apply`.

        Warns `ICISDeployWarning` where the model is sure that the photos show a class that it knows, where some were
        left out, and where the bundle's reference is not of images.

        Example:
            device.teach("okapi", images=["1.jpg", "2.jpg"])

        Raises:
            UsageError: If there is neither a descriptor nor a photo, or there are too many of these.
            DescriptorError: If the descriptor is no finite vector of the right width.
            ImageError: If a photo cannot be read, or the model makes no finite features of it.
            OutlierError: If the descriptor, or its row, is unlike those of the seen classes.
            GuardError: As `apply`.
            ClassConflictError: If the head knows the class, or another one is described or looks alike; it is named.
            IncompatibleError: If the bundle has no generator or no slots, or no slot is free (CapacityError); with
                photos, if it was exported without what these need.
            SelfTestError, StorageError, RuntimeFailureError: As `apply`; the device keeps the state it had.
        """
        if descriptor is None and images is None:
            raise UsageError(
                f"Nothing says what {class_name!r} is.",
                found="neither a descriptor nor photos",
                expected="a descriptor, photos, or both",
                hint="Give `descriptor` or `images`.",
            )
        from icis_deploy.runtime.teach import teach_by_photos, teach_described

        check_unique((class_name,))
        check_flag(skip_unreadable, name="skip_unreadable")
        check_flag(allow_changed_answers, name="allow_changed_answers")
        with self._changing:
            self._follow()
            if images is None:
                assert descriptor is not None
                return teach_described(
                    self._opened, class_name, descriptor, allow_changed_answers=allow_changed_answers
                )
            return teach_by_photos(
                self._opened,
                class_name,
                descriptor,
                images,
                skip_unreadable=skip_unreadable,
                allow_changed_answers=allow_changed_answers,
            )

    def rollback(self, *, allow_revoked: bool = False) -> HistoryEntry:
        """Go back to the state before the last class update that is still in effect.

        The current state need not be readable. Its version stays spent: only a newer update is taken afterwards.

        Args:
            allow_revoked: Whether to go back even if that brings back classes signed by a key that is not trusted any
                more; the history then says so.

        Raises:
            UsageError: If no state before the current one is kept.
            SignatureError: If it would bring back classes of such a key, and that is not allowed.
            SelfTestError, StorageError, RuntimeFailureError: As `apply`; the device keeps the state it had.
        """
        check_flag(allow_revoked, name="allow_revoked")
        with self._changing:
            self._follow()
            return self._opened.updater.rollback(allow_revoked=allow_revoked)

    def enable(self, class_name: str) -> bool:
        """Let answers choose a class again; return whether that changed anything.

        Raises:
            ClassConflictError: If the head does not know the class.
            StorageError: If the disk refuses; nothing changes.
        """
        with self._changing:
            self._follow()
            return self._opened.updater.switch(class_name, enabled=True)

    def disable(self, class_name: str) -> bool:
        """Leave a class out of all answers, whether baked or in a slot; return whether that changed anything.

        A seen class that is disabled takes no part in the arbiters of new ones either.

        Raises:
            ClassConflictError: If the head does not know the class, or no other is enabled.
            StorageError: If the disk refuses; nothing changes.
        """
        with self._changing:
            self._follow()
            return self._opened.updater.switch(class_name, enabled=False)

    def refresh(self) -> bool:
        """Take over what another process committed since; return whether there was anything.

        Where the path that was opened leads to another bundle by now, because a link was pointed at one that a process
        went over to with `replace`, this device goes over to it as well, whole. Every change looks for that too.

        Cheap when there is nothing (three calls of `stat`), so a server can call it between any two requests.

        Raises:
            BundleError, CorruptFileError: If the new state cannot be read; the device keeps the state it had.
            WrongBaseError, IncompatibleError: If the path leads to a bundle of another head, or one that does not
                remember what this device does; the device keeps the bundle it had.
            SelfTestError, RuntimeFailureError: If its slots fail the self-test; the device keeps the state it had.
        """
        opened = self._opened
        if opened.updater.is_behind() or (opened.stamp is not None and manifest_stamp(opened.named) != opened.stamp):
            with self._changing:
                return self._follow() or self._opened.updater.refresh()
        return False

    def _follow(self) -> bool:
        """Go over to the bundle that the opened path leads to now; return whether it is another one.

        The caller holds `_changing`.
        """
        opened = self._opened
        if opened.stamp is None or (stamp := manifest_stamp(opened.named)) == opened.stamp:
            return False
        bundle = load_manifest(opened.named)
        is_same_bundle = bundle.manifest_sha256 == opened.bundle.manifest_sha256
        if is_same_bundle and os.path.realpath(opened.named) == os.path.realpath(opened.folder):
            self._opened = replace(opened, stamp=stamp)
            return False
        check_same_head(opened, bundle, opened.named)
        new = Device.open(opened.named, runtime=opened.runtime, trust=opened.trust)._opened
        check_same_head(opened, new.bundle, opened.named)
        if not continues(new.updater.held.journal, opened.updater.held.journal):
            raise IncompatibleError(
                f"{opened.named} leads to another bundle by now, which does not remember what this device does "
                f"(spent versions, replaced keys, disabled classes). The device keeps the bundle it had.",
                found=new.bundle.manifest_sha256,
                expected=opened.bundle.manifest_sha256,
                where=opened.named,
                hint="Go over to it by Device.replace, which carries that over, or open it as a device of its own.",
            )
        self._opened = new
        return True

    def replace(
        self,
        folder: str | Path,
        *,
        runtime: Runtime | str = "onnxruntime",
        num_threads: int | None = None,
        trust: Sequence[str | Path] | None = None,
    ) -> HistoryEntry:
        """Switch to another bundle of the same head, such as a compacted one, without a pause.

        It is loaded and tested while this device answers from the old one; then one assignment swaps them. Requests in
        flight end with what they started with. What lies outside the rollback stack is committed to the new bundle
        first: the highest version, the last time seen, newer trusted keys, disabled classes, the
        history. The old bundle is not changed; which of the two a restart opens is up to who keeps the path.

        Args:
            folder: The new bundle, in a folder of its own.
            runtime: As `open`.
            num_threads: As `open`.
            trust: As `open`; `None` asks for the keys that this device was opened with, if it was.

        Raises:
            UsageError: If it is the folder that is open already.
            WrongBaseError: If its original head is another one.
            VersionRollbackError: If it holds an older version than this device.
            ClassConflictError: If it lacks a class that this device was taught.
            ICISDeployError: As `open` and `apply`; the device keeps the bundle it had.
        """
        folder = path_from(folder, name="folder")
        # os.path and not pathlib, which raises where the system refuses to look, such as at a name that is too long.
        if os.path.isdir(folder) and os.path.samefile(folder, self._opened.folder):  # noqa: PTH112, PTH121
            raise UsageError(
                f"{folder} is open already.",
                where=folder,
                hint="Put the new bundle into a folder of its own.",
            )
        # Whoever opened the device with keys wants signed bundles: not to ask again is no wish for others.
        keys = self._opened.trust if trust is None else trust
        new = Device.open(folder, runtime=runtime, num_threads=num_threads, trust=keys)._opened
        with self._changing:
            if os.path.realpath(self._opened.named) != os.path.realpath(folder):
                # What another process went over to remembers more; else this device's own memory goes along.
                with suppress(ICISDeployError):
                    self._follow()
            with self._opened.updater.locked() as journal:
                check_same_head(self._opened, new.bundle, folder)
                entry = new.updater.inherit(journal)
                self._opened = new
        return entry


def _checked_top(top: object) -> int:
    """Return how many classes are asked for, which may be a whole number of any library."""
    # A class has the methods of its values, and cannot be asked.
    number = top.__index__() if isinstance(top, SupportsIndex) and not isinstance(top, type) else None
    if number is None or number < 1:
        raise UsageError(
            f"top is {shown(top)}; at least one class must be asked for, by a whole number.",
            found=shown(top) if number is None else number,
            expected="a whole number, at least 1",
            hint="Give `top` as 1 or more.",
        )
    return number


def _parts(images: Iterator[object]) -> Iterator[list[object]]:
    while part := list(islice(images, STREAM_BATCH)):
        yield part


def _disabled(state: HeadState) -> tuple[str, ...]:
    answered = set(state.class_names)
    return tuple(name for name in state.score_names if name is not None and name not in answered)


def _open_again(folder: Path, runtime: Runtime, trust: tuple[Path, ...] | None) -> Device:
    return Device.open(folder, runtime=runtime, trust=trust)


_DEVICES: weakref.WeakSet[Device] = weakref.WeakSet()
_LEFT_TO_PARENTS: list[object] = []


def _forget_parents() -> None:
    for device in tuple(_DEVICES):
        device._forget_parent()
        _LEFT_TO_PARENTS.append(device._inherited)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parents)

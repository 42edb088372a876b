"""Every error that icis-deploy raises on purpose, and the exit code each one ends the command line with.

    ICISDeployError                     1-6
    ├── VerdictError                    1   a valid negative answer: the work was done, the result is "no"
    │   ├── GateFailedError                 an export disagrees with its reference
    │   ├── SeenLossError                   new classes cost the seen ones more accuracy than is allowed
    │   ├── RegressionError                 a benchmark is worse than its baseline
    │   ├── OutlierError                    a class to be taught on a device is unlike those that its generator knows
    │   ├── GuardError                      a change of classes would change too many answers of a device
    │   └── UntrustworthyError              an injection that its own estimate calls no better than chance (`strict`)
    ├── UsageError                      2   an argument is wrong, or arguments contradict each other
    │   └── AmbiguousHeadError              several layers could be the head; `head_node` chooses one
    ├── LoadError                       3   an input cannot be read
    │   ├── ModelLoadError                  a model
    │   ├── DescriptorError                 a descriptor file, or descriptors that do not fit
    │   ├── ImageError                      an image, or a list of images
    │   └── BundleError                     a bundle
    ├── IncompatibleError               3   inputs that are valid, and do not fit together
    │   ├── WrongBaseError                  a class update made for another head
    │   ├── CapacityError                   more classes than slots
    │   ├── ClassConflictError              a class added twice, or replaced or removed where it is not
    │   └── EngineMismatchError             an engine from another version, GPU architecture or platform
    ├── RuntimeFailureError             4   it should have worked: a runtime, the disk, a device
    │   ├── StorageError                    a file could not be written; what was there before is still there
    │   ├── SelfTestError                   a self-test of the slots failed; a change was taken back
    │   ├── ExportError                     a conversion failed
    │   ├── LanguageModelError              a language model's server failed, or did not answer
    │   └── TransferError                   a server of files failed, or gave others than were asked for
    ├── MissingDependencyError          5   an extra or a device that is not there; names the command that installs it
    └── IntegrityError                  6   refused: the bytes are not to be trusted
        ├── SignatureError                  unsigned, or not signed by a trusted key
        ├── VersionRollbackError            older than what the device holds
        ├── UpdateOrderError                made for a state that the device is not in: an update was left out
        ├── ExpiredError                    past its expiry
        └── CorruptFileError                a file does not have the hash that its manifest states

    ICISDeployWarning                   -   a `UserWarning`, not raised: a reason to doubt what is returned

A message says what failed, what was found, what was expected, where, and what to do next. It speaks of the library:
what to do next names parameters and functions in backticks, as `preprocess`, `head='updatable'` or
`Device.rollback()`, which the command line shows as its own options and commands; see `icis_deploy.cli.hints`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from os import PathLike

    from icis_deploy.metrics.accuracy import AccuracyReport
    from icis_deploy.metrics.parity import ParityReport

ErrorT = TypeVar("ErrorT", bound="ICISDeployError")


class ICISDeployError(Exception):
    """Base of every error that icis-deploy raises on purpose.

    An error can be copied and pickled if what was found and expected can.

    Args:
        what: What failed, as one or more sentences that also say what was found and what was expected.
        found: What was found, as a value for programs: a number, a text, or a tuple of them; `None` if not stated.
        expected: What was expected instead: a value of the same kind, a limit, a tuple of the allowed values, or words.
        where: The file, folder, model or other thing in which it was found.
        hint: What to do next, as one or more sentences.

    Attributes:
        what: As given.
        found: As given.
        expected: As given.
        where: As given.
        hint: As given.

    Example:
        try:
            device = icis_deploy.Device.open("bundle")
        except icis_deploy.ICISDeployError as error:
            print(error)
    """

    exit_code = 4

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        where: str | PathLike[str] | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.found = found
        self.expected = expected
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        return self.what if self.hint is None else f"{self.what} {self.hint}"

    @classmethod
    def at(cls: type[ErrorT], where: str | PathLike[str], error: ICISDeployError) -> ErrorT:
        """Return an error of this class that says where another one was met, and carries all else that it does.

        Args:
            where: The file, folder or other thing, put before what failed.
            error: What was met there; it may be of another class.
        """
        return cls(f"{where}: {error.what}", found=error.found, expected=error.expected, where=where, hint=error.hint)


class ICISDeployWarning(UserWarning):
    """What a public function could not do as asked, or a reason to doubt what it returns.

    Example:
        >>> issubclass(icis_deploy.ICISDeployWarning, UserWarning)  # so that `warnings.simplefilter` takes it
        True
    """


class VerdictError(ICISDeployError):
    """The work was done and its result is negative."""

    exit_code = 1


class GateFailedError(VerdictError):
    """An export disagrees with its reference; where it was being written, no bundle was left.

    Args:
        what: As of every error.
        found: As of every error.
        expected: As of every error.
        where: As of every error.
        hint: As of every error.
        reports: A report for each comparison of models, at least one of them negative; empty where none was made.

    Attributes:
        reports: As given.
    """

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        where: str | PathLike[str] | None = None,
        hint: str | None = None,
        reports: tuple[ParityReport, ...] = (),
    ) -> None:
        super().__init__(what, found=found, expected=expected, where=where, hint=hint)
        self.reports = reports


class SeenLossError(VerdictError):
    """New classes cost the seen ones more accuracy than is allowed.

    Args:
        what: As of every error.
        found: As of every error.
        expected: As of every error.
        where: As of every error.
        hint: As of every error.
        report: What was measured; `None` where the error is of something else than an evaluation.

    Attributes:
        report: As given.
    """

    def __init__(
        self,
        what: str,
        *,
        found: object = None,
        expected: object = None,
        where: str | PathLike[str] | None = None,
        hint: str | None = None,
        report: AccuracyReport | None = None,
    ) -> None:
        super().__init__(what, found=found, expected=expected, where=where, hint=hint)
        self.report = report


class RegressionError(VerdictError):
    """A benchmark is worse than its baseline by more than the allowed amount."""


class OutlierError(VerdictError):
    """A class to be taught on a device, or its row, is unlike those that the generator knows; nothing was changed."""


class GuardError(VerdictError):
    """A change of classes would change more answers on known classes than its bundle allows; nothing was changed."""


class UntrustworthyError(VerdictError):
    """An injection is, by its own estimate, no better than chance."""


class UsageError(ICISDeployError):
    """An argument is wrong, or arguments contradict each other."""

    exit_code = 2


class AmbiguousHeadError(UsageError):
    """Several layers could be the head; the message lists them, and `head_node` chooses one."""


class LoadError(ICISDeployError):
    """An input cannot be read."""

    exit_code = 3


class ModelLoadError(LoadError):
    """A model cannot be loaded, or has no usable head."""


class DescriptorError(LoadError):
    """Descriptors cannot be read, or do not fit the classes asked for."""


class ImageError(LoadError):
    """An image, or a list of images, cannot be read."""


class BundleError(LoadError):
    """A bundle is incomplete or not a bundle."""


class IncompatibleError(ICISDeployError):
    """Inputs that are valid each by itself, and do not fit together."""

    exit_code = 3


class WrongBaseError(IncompatibleError):
    """A class update was made for another head."""


class CapacityError(IncompatibleError):
    """A class update needs more slots than are free."""


class ClassConflictError(IncompatibleError):
    """A class is added where it is already known, or replaced or removed where it is not."""


class EngineMismatchError(IncompatibleError):
    """An engine was built for another runtime version, GPU architecture or platform."""


class RuntimeFailureError(ICISDeployError):
    """Something that should have worked did not."""

    exit_code = 4


class StorageError(RuntimeFailureError):
    """A file could not be written; what was there before is still there."""


class SelfTestError(RuntimeFailureError):
    """A self-test of the slots failed; where that was after a change, the change was taken back."""


class ExportError(RuntimeFailureError):
    """A conversion failed."""


class LanguageModelError(RuntimeFailureError):
    """The server of a language model cannot be reached, fails, or does not answer what it was asked."""


class TransferError(RuntimeFailureError):
    """A server that carries updates cannot be reached, does not have what it was asked for, or breaks off."""


class MissingDependencyError(ICISDeployError):
    """An extra or a device is missing; the message names the command that installs it."""

    exit_code = 5


class IntegrityError(ICISDeployError):
    """Bytes were refused because they cannot be trusted."""

    exit_code = 6


class SignatureError(IntegrityError):
    """A class update is unsigned, or not signed by a trusted key."""


class VersionRollbackError(IntegrityError):
    """A class update is older than what the device holds."""


class UpdateOrderError(IntegrityError):
    """A class update follows a state that the device is not in: one before it was not delivered, or rolled back."""


class ExpiredError(IntegrityError):
    """A class update is past its expiry."""


class CorruptFileError(IntegrityError):
    """A file does not have the hash that its manifest states."""

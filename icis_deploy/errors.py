"""Every error that icis-deploy raises on purpose, and the exit code each one ends the command line with.

    ICISDeployError                     1-6
    ├── VerdictError                    1   a valid negative answer: the work was done, the result is "no"
    │   ├── GateFailedError                 an export disagrees with its reference
    │   ├── RegressionError                 a benchmark is worse than its baseline
    │   ├── OutlierError                    a class to be taught on a device is unlike those that its generator knows
    │   └── UntrustworthyError              an injection that its own estimate calls no better than chance (--strict)
    ├── UsageError                      2   what was asked for makes no sense
    │   └── AmbiguousHeadError              several layers could be the head; an option chooses one
    ├── LoadError                       3   an input cannot be read
    │   ├── ModelLoadError                  a model
    │   ├── DescriptorError                 a descriptor file, or descriptors that do not fit
    │   ├── ImageError                      an image, or a list of images
    │   └── BundleError                     a bundle
    ├── IncompatibleError               3   two good things that do not go together
    │   ├── WrongBaseError                  a class update made for another head
    │   ├── CapacityError                   more classes than slots
    │   ├── ClassConflictError              a class added twice, or replaced or removed where it is not
    │   └── EngineMismatchError             an engine from another version, GPU architecture or platform
    ├── RuntimeFailureError             4   it should have worked: a runtime, the disk, a device
    │   ├── StorageError                    a file could not be written; what was there before is still there
    │   ├── SelfTestError                   a probe of the slots gave a wrong answer; a change was taken back
    │   └── ExportError                     a conversion failed
    ├── MissingDependencyError          5   an extra or a device that is not there; names the command that installs it
    └── IntegrityError                  6   refused: the bytes are not to be trusted
        ├── SignatureError                  unsigned, or not signed by a trusted key
        ├── VersionRollbackError            older than what the device holds
        ├── ExpiredError                    past its expiry
        └── CorruptFileError                a file does not have the hash that its manifest states

A message says what failed, what was found, what was expected, where, and what to do next.
"""


class ICISDeployError(Exception):
    """Base of every error that icis-deploy raises on purpose.

    Example:
        try:
            device = icis_deploy.Device.open("bundle")
        except icis_deploy.ICISDeployError as error:
            print(error)
    """

    exit_code = 4


class VerdictError(ICISDeployError):
    """The work was done and its result is negative."""

    exit_code = 1


class GateFailedError(VerdictError):
    """An export disagrees with its reference; no bundle was left."""


class RegressionError(VerdictError):
    """A benchmark is worse than its baseline by more than the allowed amount."""


class OutlierError(VerdictError):
    """A class to be taught on a device, or its row, is unlike those that the generator knows; nothing was changed."""


class UntrustworthyError(VerdictError):
    """An injection is, by its own estimate, no better than chance."""


class UsageError(ICISDeployError):
    """What was asked for makes no sense."""

    exit_code = 2


class AmbiguousHeadError(UsageError):
    """Several layers could be the head; the message lists them and names the option that chooses one."""


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
    """Two good inputs that do not go together."""

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
    """A probe of the slots gave a wrong answer; where that was after a change, the change was taken back."""


class ExportError(RuntimeFailureError):
    """A conversion failed."""


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


class ExpiredError(IntegrityError):
    """A class update is past its expiry."""


class CorruptFileError(IntegrityError):
    """A file does not have the hash that its manifest states."""

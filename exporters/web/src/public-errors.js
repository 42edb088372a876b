// The errors that a page may meet.

export {
  BundleError, CapacityError, ClassConflictError, CorruptFileError, ExpiredError, GuardError, ICISDeployError, ImageError,
  IncompatibleError, IntegrityError, LoadError, MissingDependencyError, ModelLoadError, RuntimeFailureError, SelfTestError,
  SignatureError, StorageError, UpdateOrderError, UsageError, VerdictError, VersionRollbackError, WrongBaseError,
} from './errors.js';

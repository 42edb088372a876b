// A classifier in the browser that takes signed class updates and rolls them back; see docs/web.md.

export { openBundle } from './device.js';
export { indexedDBStorage, memoryStorage } from './storage.js';
export {
  BundleError, CapacityError, ClassConflictError, CorruptFileError, ExpiredError, GuardError, ICISDeployError, ImageError,
  IncompatibleError, IntegrityError, LoadError, MissingDependencyError, ModelLoadError, RuntimeFailureError, SelfTestError,
  SignatureError, StorageError, UpdateOrderError, UsageError, VerdictError, VersionRollbackError, WrongBaseError,
} from './errors.js';

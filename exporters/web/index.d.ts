/** Reads a file of a bundle, at most `maxBytes` of it. */
export type BundleSource = (name: string, maxBytes: number) => Promise<Uint8Array>;

/** Where a device keeps its journal and the slots that it names. */
export interface Storage {
  /** The bytes of a file, or null. */
  read(name: string): Promise<Uint8Array | null>;
  /**
   * Put files, replace the journal and remove files: all of it or nothing. False, and nothing is changed, where the
   * journal is no longer `expected` (null: there is none).
   */
  commit(change: {
    expected: Uint8Array | null;
    journal: Uint8Array;
    put: Map<string, Uint8Array>;
    remove: string[];
  }): Promise<boolean>;
}

export interface OpenOptions {
  /**
   * Public keys (PEM, Ed25519) from outside of the bundle, by one of which it must be signed. Without them the bundle is
   * believed as it is served. The keys that sign class updates are the bundle's own, those of its `trust/` folder.
   */
  trust?: readonly string[];
  /** By default in IndexedDB, in a database for this URL and this head. */
  storage?: Storage;
  /** The module of onnxruntime-web; by default `import('onnxruntime-web')`. */
  runtime?: unknown;
  /** The time in milliseconds since 1970; by default `Date.now`. */
  clock?: () => number;
}

/** A version of a head; a bigint beyond 2^53. */
export type Version = number | bigint;

/** RGBA pixels, as ImageData has them. */
export interface Pixels {
  data: Uint8Array | Uint8ClampedArray;
  width: number;
  height: number;
}

export interface Prediction {
  /** Of the head that answered. */
  version: Version;
  /** The most probable classes, the greatest first; each probability by itself where the model ends in a sigmoid. */
  classes: { name: string; probability: number }[];
}

/** A committed change, by the names of the Python device's history. */
export interface HistoryLine {
  sequence: number;
  /** In UTC, as `2026-11-23T09:00:00Z`. */
  time: string;
  action: 'apply' | 'rollback' | 'trust' | 'replace';
  version: Version;
  num_added: number;
  num_replaced: number;
  num_removed: number;
  class_name: string | null;
  payload_sha256: string | null;
  signed_by: string | null;
  /** Share of the answers on reference images that the change changed, 0..1, where the bundle has a guard. */
  changed_answers?: number;
  /** Whether the guard refused the change and an operator allowed it. */
  allowed_past_guard?: boolean;
  /** Whether a rollback brought back classes by a key that was not trusted any more, and an operator allowed it. */
  allowed_revoked?: boolean;
}

export interface Applied {
  kind: 'class update' | 'trusted keys';
  version: Version;
  added: string[];
  replaced: string[];
  removed: string[];
  entry: HistoryLine;
  /** False where the file was in effect already, since `entry`. */
  changed: boolean;
}

export interface Device {
  readonly version: Version;
  readonly bundle: {
    /** Classes baked into the model, seen ones first. */
    classNames: string[];
    numSeen: number;
    featureDim: number;
    capacity: number;
    scoreKind: 'logits' | 'probabilities' | 'log-probabilities' | 'sigmoid';
    input: { name: string; shape: number[]; dtype: string };
    baseFingerprint: string;
  };
  /** The classes that an answer chooses among, in the order of the logits. */
  classes(): string[];
  /** The last changes, the oldest first. */
  history(): Promise<HistoryLine[]>;
  /**
   * The most probable classes of one image.
   * @throws ImageError, UsageError, IncompatibleError, RuntimeFailureError
   */
  predict(image: Pixels | Blob | ImageBitmapSource, options?: { top?: number }): Promise<Prediction>;
  /** Logits `(batch, numClasses)` of prepared images `(batch, ...shape)`, in the model's type. */
  logits(values: Float32Array | Uint8Array): Promise<{ values: Float32Array; classNames: string[]; version: Version }>;
  /**
   * Take a class update or a set of trusted keys: the file, its bytes, or its URL.
   * @throws IntegrityError, IncompatibleError, GuardError, SelfTestError, StorageError; nothing was changed then
   */
  apply(
    update: Blob | ArrayBuffer | Uint8Array | string | URL,
    options?: { allowUnsigned?: boolean; allowChangedAnswers?: boolean },
  ): Promise<Applied>;
  /**
   * Go back to the state before; its version stays spent. With `allowRevoked` also where that brings back classes
   * signed by a key that is not trusted any more; the history says so.
   * @throws UsageError, SignatureError; nothing was changed then
   */
  rollback(options?: { allowRevoked?: boolean }): Promise<HistoryLine>;
  /** Take over what another page committed; whether there was anything. */
  refresh(): Promise<boolean>;
}

/**
 * Open a bundle that was exported with `--target web`.
 * @throws BundleError, IntegrityError, MissingDependencyError, ModelLoadError, StorageError
 */
export function openBundle(source: string | URL | BundleSource, options?: OpenOptions): Promise<Device>;

/** A storage in IndexedDB, one database for a name; a change is one transaction, also between pages. */
export function indexedDBStorage(name: string): Storage;

/** A storage that forgets everything, spent versions as well: for tests. */
export function memoryStorage(): Storage;

/** Base of every error that is thrown on purpose. The message is `what` with `hint`. */
export class ICISDeployError extends Error {
  readonly what: string;
  readonly found?: unknown;
  readonly expected?: unknown;
  readonly where?: string;
  readonly hint?: string;
}
export class VerdictError extends ICISDeployError {}
export class GuardError extends VerdictError {}
export class UsageError extends ICISDeployError {}
export class LoadError extends ICISDeployError {}
export class ModelLoadError extends LoadError {}
export class ImageError extends LoadError {}
export class BundleError extends LoadError {}
export class IncompatibleError extends ICISDeployError {}
export class WrongBaseError extends IncompatibleError {}
export class CapacityError extends IncompatibleError {}
export class ClassConflictError extends IncompatibleError {}
export class RuntimeFailureError extends ICISDeployError {}
export class StorageError extends RuntimeFailureError {}
export class SelfTestError extends RuntimeFailureError {}
export class MissingDependencyError extends ICISDeployError {}
export class IntegrityError extends ICISDeployError {}
export class SignatureError extends IntegrityError {}
export class VersionRollbackError extends IntegrityError {}
export class UpdateOrderError extends IntegrityError {}
export class ExpiredError extends IntegrityError {}
export class CorruptFileError extends IntegrityError {}

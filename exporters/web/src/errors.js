// Every error that this package throws on purpose, by the names of the Python device (icis_deploy/errors.py).

export class ICISDeployError extends Error {
  /**
   * @param {string} what What failed, found and expected included.
   * @param {{found?: unknown, expected?: unknown, where?: string, hint?: string, cause?: unknown}} [details]
   */
  constructor(what, { found, expected, where, hint, cause } = {}) {
    super(hint === undefined ? what : `${what} ${hint}`, cause === undefined ? undefined : { cause });
    this.name = new.target.name;
    this.what = what;
    this.found = found;
    this.expected = expected;
    this.where = where;
    this.hint = hint;
  }
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

// What a file or a class is called in a message: short, in quotes, with escapes for what is not visible.
export function shown(value, maxLength = 60) {
  const json = JSON.stringify(value, (_, item) => (typeof item === 'bigint' ? String(item) : item));
  let text = typeof value === 'bigint' ? String(value) : json ?? String(value);
  text = text.replace(/[^\x20-\x7e\u00a1-\u024f\u0370-\u03ff\u0400-\u04ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]/g, (character) =>
    `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`);
  return text.length > maxLength ? `${text.slice(0, maxLength)}…` : text;
}

// The first few names in quotes, and how many more there are.
export function quoted(names) {
  const first = names.slice(0, 5).map((name) => shown(name)).join(', ');
  return names.length > 5 ? `${first} and ${names.length - 5} more` : first;
}

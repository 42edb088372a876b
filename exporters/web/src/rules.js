// What a device does with a file: the rules of the Python device (icis_deploy/runtime/changes/rules.py), by its
// numbers, on bytes and values. Nothing is stored here.
//
// 1. A file larger than any update for this bundle is refused before it is parsed.
// 2. It must be signed by a trusted key; unsigned, a class update passes only where the operator allows it.
// 3. Only then is the payload parsed.
// 4. A class update must be for this head, for this bundle where it names bundles, and for the state that it follows.
// 5. Its version must be greater than every one the device ever held.
// 6. It must not have expired, by the clock or by the last time the device saw.
// 7. Its classes must fit.
// 8. Trusted keys must be signed by a key trusted now, or by as many root keys as their threshold says.
// 9. `rollback` goes to the state before the current one.
// 11. A bundle that takes the place of another one is of the same head and no older version; spent versions, replaced
//     keys and the last time seen are carried over.
// 13. A file that is in effect is no news and no error.

import { sha256Hex } from './bytes.js';
import { MAX_NAME_BYTES, MAX_TRUSTED_KEYS_BYTES, NUM_STATISTICS, parseContent } from './class-update.js';
import { MAX_SIGNATURE_BYTES, parseEnvelope, TRUSTED_KEYS_TYPE, verifySignature } from './envelope.js';
import { CorruptFileError, ExpiredError, IncompatibleError, quoted, shown, SignatureError, UpdateOrderError, UsageError, VersionRollbackError, WrongBaseError } from './errors.js';
import { currentState, initialJournal, MAX_HISTORY, MAX_STATES } from './journal.js';
import { timeText } from './json.js';
import { publicKeyFromPem } from './keys.js';
import { broughtBack, originsAfterUpdate } from './origins.js';

const PROVENANCE_BYTES = 1 << 20;

export function maxUpdateBytes({ capacity, featureDim }) {
  const rows = capacity * (4 * (featureDim + 1 + NUM_STATISTICS) + 2 * MAX_NAME_BYTES);
  return Math.floor((Math.max(rows, MAX_TRUSTED_KEYS_BYTES) + PROVENANCE_BYTES) / 3) * 4 + MAX_SIGNATURE_BYTES;
}

const keysOf = async (pems) => {
  const keys = [];
  for (const pem of pems) keys.push(await publicKeyFromPem(pem));
  return keys;
};

/** What a file holds, if it may be believed (rules 1, 2, 3 and 8): `{content, payloadSha256, signedBy}`. */
export async function verifyFile(data, { bundle, journal, trustedKeys, allowUnsigned }) {
  const limit = maxUpdateBytes(bundle);
  if (data.length > limit) {
    throw new CorruptFileError(`The file has ${data.length} bytes, more than any update for this bundle (${bundle.capacity} slots): at most ${limit} are read.`, {
      found: data.length,
      expected: limit,
    });
  }
  const envelope = parseEnvelope(data);
  let signedBy = null;
  if (envelope.signatures.size || !allowUnsigned) {
    const isRoots = journal.rootKeys.length > 0 && envelope.payloadType === TRUSTED_KEYS_TYPE;
    signedBy = isRoots
      ? await verifySignature(envelope, await keysOf(journal.rootKeys), journal.rootThreshold)
      : await verifySignature(envelope, await keysOf(journal.trustedKeys ?? trustedKeys));
  }
  const content = await parseContent(envelope, { isVerified: signedBy !== null });
  if (content.kind === 'trusted keys' && signedBy === null) {
    throw new SignatureError('Trusted keys must be signed by a key that is trusted now.', {
      found: 'no signature',
      expected: 'a signature by a trusted key',
      hint: 'Sign them with `icis-deploy sign`; `allowUnsigned` is for updates.',
    });
  }
  if (content.kind === 'trusted keys' && content.rootKeys.length) {
    await verifySignature(envelope, await keysOf(content.rootKeys), content.rootThreshold); // new roots must sign too
  }
  return { content, payloadSha256: await sha256Hex(envelope.payload), signedBy };
}

/** The line of the history of a file that is in effect (rule 13), with what it holds; else null. */
export async function inEffect(data, { bundle, journal, knownNames }) {
  if (data.length > maxUpdateBytes(bundle)) return null;
  try {
    const envelope = parseEnvelope(data);
    const digest = await sha256Hex(envelope.payload);
    const entry = journal.history.findLast((line) => line.payload_sha256 === digest);
    if (entry === undefined) return null;
    const content = await parseContent(envelope, { isVerified: true });
    const names = new Set(knownNames);
    const isCurrent = content.kind === 'trusted keys'
      ? content.version === journal.trustVersion && String(content.publicKeys) === String(journal.trustedKeys)
      : content.version === currentState(journal).version && content.classNames.every((name) => names.has(name)) && !content.removed.some((name) => names.has(name));
    return isCurrent ? { content, entry } : null;
  } catch (error) {
    if (error instanceof CorruptFileError) return null;
    throw error;
  }
}

/** The clock's time, or the last time the device saw if the clock was set back, in milliseconds of whole seconds. */
export function trustedTime(journal, clock) {
  const now = Math.floor(clock / 1000) * 1000;
  return journal.lastSeen === null ? now : Math.max(now, journal.lastSeen);
}

/** The slots after a class update (rules 4 to 7). */
export async function planUpdate(journal, update, { table, bundle, clock }) {
  if (table === null) {
    throw new IncompatibleError("The bundle's head is fused: it has no slots for a class update.", {
      found: 'fused',
      expected: 'updatable',
      hint: 'Export it with `--head updatable`.',
    });
  }
  if (update.baseFingerprint !== bundle.baseFingerprint) {
    throw new WrongBaseError(`The class update was made for the head ${update.baseFingerprint.slice(0, 16)}…; this device's is ${bundle.baseFingerprint.slice(0, 16)}….`, {
      found: update.baseFingerprint,
      expected: bundle.baseFingerprint,
      hint: "Inject again with this device's model and class list.",
    });
  }
  if (update.targets.length && !update.targets.includes(bundle.targetDigest)) {
    throw new WrongBaseError(`The class update was signed for other bundles (${update.targets.slice(0, 4).map((target) => target.slice(0, 16))}); this one is ${bundle.targetDigest.slice(0, 16)}: its model or the preparation of its images is another.`, {
      found: bundle.targetDigest,
      expected: update.targets,
      hint: 'Sign it for this bundle with `icis-deploy sign --bundle`.',
    });
  }
  checkVersion(update.version, journal.highestVersion, 'class update');
  checkExpiry(update.expires, journal, clock, 'class update');
  await checkFollows(update, journal, table);
  if (!bundle.arbiter && (update.arbiter ?? []).some((value) => value !== 0)) {
    throw new IncompatibleError(`The rows of ${quoted(update.classNames)} have an arbiter, and this bundle's model takes none.`, {
      found: 'rows with an arbiter',
      expected: 'rows with constant offsets',
      hint: 'Export it again with `--arbiter auto`, or inject with `--arbiter off`.',
    });
  }
  return table.apply(update, new Set(bundle.classNames));
}

async function checkFollows(update, journal, table) {
  if (update.follows === null) return;
  const found = await table.digest();
  if (found === update.follows.digest) return;
  const held = currentState(journal).version;
  const missing = update.follows.version;
  throw new UpdateOrderError(`Class update ${update.version} follows version ${missing} (${update.follows.digest.slice(0, 16)}…); this device is at version ${held} (${found.slice(0, 16)}…), whose classes differ.`, {
    found: [held, found],
    expected: [missing, update.follows.digest],
    hint: missing > journal.highestVersion
      ? `Deliver version ${missing} first, or an update that was signed as complete.`
      : `Sign it for the classes of version ${held}, or sign a complete update, which any state takes.`,
  });
}

function checkVersion(version, held, what) {
  if (version > held) return;
  const next = BigInt(held) + 1n;
  throw new VersionRollbackError(`The ${what} has version ${version}; this device has held version ${held}, so it takes ${next} or greater.`, {
    found: version,
    expected: `at least ${next}`,
    hint: 'Sign the change again with a greater version; `rollback()` undoes the last update.',
  });
}

function checkExpiry(expires, journal, clock, what) {
  const now = trustedTime(journal, clock);
  if (expires === null || now < expires) return;
  const reason = clock < now - 999 ? ` (its clock says ${timeText(clock)}, which is before the last change it committed)` : '';
  throw new ExpiredError(`The ${what} expired at ${timeText(expires)}; for this device it is ${timeText(now)}${reason}.`, {
    found: timeText(expires),
    expected: `later than ${timeText(now)}`,
    hint: 'Sign it again with a later expiry.',
  });
}

/** A line of the history. */
export function lineOf(journal, action, clock, fields) {
  return {
    sequence: journal.history.length ? journal.history[journal.history.length - 1].sequence + 1 : 1,
    time: timeText(trustedTime(journal, clock)),
    action,
    version: currentState(journal).version,
    num_added: 0,
    num_replaced: 0,
    num_removed: 0,
    class_name: null,
    payload_sha256: null,
    signed_by: null,
    ...fields,
  };
}

function recorded(journal, entry) {
  const lines = [...journal.history, entry];
  const recent = lines.slice(-MAX_HISTORY);
  // Of every signer of a class that a state has, the last line stays, however old it is.
  const wanted = new Set(journal.states.flatMap(({ origins }) => origins.map(({ signed_by: signedBy }) => signedBy)));
  const kept = [];
  for (const line of [...lines].reverse()) {
    if (line.action === 'apply' && wanted.delete(line.signed_by) && !recent.includes(line)) kept.unshift(line);
  }
  return { ...journal, history: [...kept, ...recent], lastSeen: Date.parse(entry.time) };
}

export function afterUpdate(journal, entry, state) {
  const highestVersion = state.version > journal.highestVersion ? state.version : journal.highestVersion;
  return recorded({ ...journal, states: [...journal.states, state].slice(-MAX_STATES), highestVersion }, entry);
}

/** The journal after a new set of trusted keys (rule 8). */
export function afterTrustedKeys(journal, { content: keys, payloadSha256, signedBy }, { bundle, clock }) {
  checkVersion(keys.version, journal.trustVersion, 'set of trusted keys');
  checkExpiry(keys.expires, journal, clock, 'set of trusted keys');
  const both = keys.rootKeys.length ? [] : keys.publicKeys.filter((key) => journal.rootKeys.includes(key));
  if (both.length) {
    throw new IncompatibleError(`${both.length} keys of the set are root keys of this device: whoever steals one would have both roles.`, {
      found: both.length,
      expected: 'other keys than its root keys',
      hint: 'Let another key sign updates, or bring new root keys with the set.',
    });
  }
  let changed = { ...journal, trustVersion: keys.version, trustedKeys: keys.publicKeys };
  if (keys.rootKeys.length) changed = { ...changed, rootKeys: keys.rootKeys, rootThreshold: keys.rootThreshold };
  if (keys.highestVersion !== null) {
    if (!journal.rootKeys.length) {
      throw new SignatureError('The set of trusted keys gives versions back, and this device has no root keys, which alone may do that.', {
        found: 'no root keys',
        expected: 'root keys',
        hint: 'Install the bundle again, with root keys.',
      });
    }
    const kept = changed.states.filter((state) => state.version <= keys.highestVersion);
    const states = kept.length ? kept : initialJournal(bundle).states;
    const highestVersion = states.reduce((most, state) => (state.version > most ? state.version : most), keys.highestVersion);
    changed = { ...changed, states, highestVersion };
  }
  return recorded(changed, lineOf(journal, 'trust', clock, { version: currentState(changed).version, payload_sha256: payloadSha256, signed_by: signedBy }));
}

/** The origins of the classes after an update, where each is among the model's scores. */
export function originsAfter(journal, update, { table, bundle, signedBy }) {
  const columnOf = (slot) => bundle.classNames.length + slot;
  const written = new Set(update.classNames);
  return originsAfterUpdate(currentState(journal).origins, {
    written: table.filled.filter((slot) => written.has(table.classNames[slot])).map(columnOf),
    kept: [...bundle.classNames.keys(), ...table.filled.map(columnOf)],
    signedBy,
  });
}

/** The journal after going back to the state before (rule 9). */
export async function afterRollback(journal, clock, { trustedKeys, rewritten, allowRevoked }) {
  if (journal.states.length < 2) {
    throw new UsageError(`There is nothing to roll back to: version ${currentState(journal).version} is the oldest state that this device keeps (at most ${MAX_STATES}).`, {
      found: currentState(journal).version,
    });
  }
  const changed = { ...journal, states: journal.states.slice(0, -1) };
  const signers = broughtBack(currentState(journal).origins, currentState(changed).origins, rewritten);
  // Keys are read only where they matter: a rollback must work where most else does not.
  const trusted = signers.size ? new Set((await keysOf(journal.trustedKeys ?? trustedKeys)).map(({ keyId }) => keyId)) : signers;
  const revoked = [...signers].filter((keyId) => !trusted.has(keyId));
  if (revoked.length && !allowRevoked) {
    throw new SignatureError(`The state before, version ${currentState(changed).version}, would bring back classes signed by ${revoked.sort().slice(0, 4).map((keyId) => shown(keyId, 16)).join(', ')}, which this device does not trust any more. Nothing was changed.`, {
      found: revoked,
      expected: 'classes by keys that are trusted now',
      hint: 'Apply an update with the classes that are wanted; where this state is meant, give `allowRevoked`, and the history says so.',
    });
  }
  return recorded(changed, lineOf(journal, 'rollback', clock, { version: currentState(changed).version, ...(revoked.length ? { allowed_revoked: true } : {}) }));
}

/** The journal of a bundle that takes the place of another one of the same head (rule 11). */
export function afterReplacement(former, bundle, clock) {
  const journal = initialJournal(bundle);
  const [version, held] = [bundle.headVersion, currentState(former).version];
  if (version < held) {
    throw new VersionRollbackError(`The bundle holds version ${version}; this device holds version ${held}, of an earlier bundle of the same head.`, {
      found: version,
      expected: held,
      hint: 'Publish a bundle that has all the updates: `icis-deploy compact`, or `icis-deploy export --update`.',
    });
  }
  const merged = {
    ...journal,
    highestVersion: former.highestVersion > journal.highestVersion ? former.highestVersion : journal.highestVersion,
    lastSeen: former.lastSeen,
    trustVersion: former.trustVersion,
    trustedKeys: former.trustedKeys,
    rootKeys: former.rootKeys,
    rootThreshold: former.rootThreshold,
    history: former.history,
  };
  return recorded(merged, lineOf(merged, 'replace', clock, { version }));
}

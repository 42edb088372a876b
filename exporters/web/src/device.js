// A device: an open bundle that answers, takes class updates and rolls them back.
//
// A change is: verify, plan, self-test, guard, commit, publish. Whatever fails before the commit leaves storage and
// memory as they were. A request takes the head state once, when it starts, and ends with it.

import { readSafetensors, sha256Hex } from './bytes.js';
import { parseEnvelope, STATEMENT_TYPE, verifySignature } from './envelope.js';
import { BundleError, CorruptFileError, ICISDeployError, IncompatibleError, IntegrityError, LoadError, RuntimeFailureError, shown, SignatureError, StorageError, UsageError } from './errors.js';
import { Guard, parseReference } from './guard.js';
import { pixelsOf } from './images.js';
import { afterReplacement, afterRollback, afterTrustedKeys, afterUpdate, inEffect, lineOf, maxUpdateBytes, originsAfter, planUpdate, verifyFile } from './rules.js';
import { currentState, initialJournal, parseJournal, serializeJournal, slotsName } from './journal.js';
import { asList, asObject, asText, asTexts, parseStrict } from './json.js';
import { publicKeyFromPem } from './keys.js';
import { ARBITER_NAME, INJECTED_NAME, MANIFEST_NAME, MAX_MANIFEST_BYTES, parseManifest, readStated, REFERENCE_NAME, SIGNATURE_NAME, SLOTS_NAME, WEB_KEYS_NAME, WEB_MODEL_NAME } from './manifest.js';
import { prepare } from './preprocessing.js';
import { verifyComputed } from './self-test.js';
import { Session } from './session.js';
import { parseSlots, serializeSlots, SlotTable } from './slots.js';
import { indexedDBStorage, isSame, JOURNAL_NAME } from './storage.js';

const MAX_ATTEMPTS = 5;
const MAX_SIGNATURE_FILE_BYTES = 1 << 16;
const [FIRST_TIME, LAST_TIME] = [Date.parse('0001-01-01T00:00:00Z'), Date.parse('9999-12-31T23:59:59Z')];
const TINY_FLOAT = 1.1754943508222875e-38;

/**
 * Open a bundle that was exported with `--target web`.
 *
 * @param {string | URL | ((name: string, maxBytes: number) => Promise<Uint8Array>)} source URL of the bundle's folder,
 *   or what reads a file of it.
 * @param {object} [options] See `index.d.ts`.
 */
export async function openBundle(source, { trust, storage, runtime, clock = Date.now } = {}) {
  const base = typeof source === 'function' ? null : folderUrl(source);
  const read = base === null ? source : fetching(base);
  const manifest = await read(MANIFEST_NAME, MAX_MANIFEST_BYTES);
  if (trust !== undefined) await verifyBundle(read, manifest, trust);
  const bundle = await parseManifest(manifest);
  const names = [
    WEB_MODEL_NAME,
    WEB_KEYS_NAME,
    ...(bundle.capacity ? [SLOTS_NAME] : []),
    ...(bundle.arbiter ? [ARBITER_NAME] : []),
    ...(bundle.maxChangedAnswers === null ? [] : [REFERENCE_NAME, ...(bundle.files.has(INJECTED_NAME) ? [INJECTED_NAME] : [])]),
  ];
  const files = new Map(await Promise.all(names.map(async (name) => [name, await readStated(read, bundle, name)])));
  const session = await Session.load(files.get(WEB_MODEL_NAME), bundle, runtime);
  const kept = storage ?? indexedDBStorage(stateName(base, bundle));
  const device = new Device({ bundle, files, session, storage: kept, clock });
  await device.refresh();
  return device;
}

/** The IndexedDB database of a bundle: one for each place and head, so that a new bundle there finds spent versions. */
function stateName(base, bundle) {
  if (base === null) throw new UsageError('A bundle that is no URL needs a `storage`.', { expected: 'a storage', hint: 'Give `folderStorage(path)` or `memoryStorage()`.' });
  return `icis-deploy ${base} ${bundle.baseFingerprint.slice(0, 16)}`;
}

function folderUrl(source) {
  const url = urlOf(source);
  if (!url.pathname.endsWith('/')) url.pathname += '/';
  for (const part of ['username', 'password', 'search', 'hash']) url[part] = '';
  urlOf(MANIFEST_NAME, url.href); // one like `data:` has no files in it
  return url.href;
}

function urlOf(text, base = globalThis.location?.href) {
  try {
    return new URL(text, base);
  } catch (error) {
    throw new UsageError(`${shown(String(text))} is no URL${base === undefined ? '' : ` in ${shown(base)}`}.`, {
      found: String(text),
      expected: 'a URL, as https://example.org/bundle/',
      hint: 'For a folder in Node, give `folderSource(path)` or the bytes of a file.',
      cause: error,
    });
  }
}

function fetching(base) {
  return async (name, maxBytes) => {
    const where = new URL(name, base).href;
    let response;
    try {
      response = await fetch(where, { cache: 'no-cache' });
    } catch (error) {
      throw new BundleError(`${where} could not be fetched: ${error.message}.`, {
        found: error.message,
        where,
        hint: 'Is the server there, and does it let this page read its files (Access-Control-Allow-Origin)? A page that was opened as a file may read none: serve it.',
        cause: error,
      });
    }
    if (!response.ok) {
      throw new BundleError(`${where} could not be fetched: the server answered ${response.status} ${response.statusText}.`, {
        found: response.status,
        expected: 200,
        where,
        hint: 'Name the folder that `icis-deploy export --target web` wrote.',
      });
    }
    try {
      return await readCapped(response, maxBytes, where);
    } catch (error) {
      if (error instanceof ICISDeployError) throw error;
      throw new BundleError(`${where} was not fetched whole: ${error.message}.`, { found: error.message, expected: 'a whole file', where, hint: 'Try again.', cause: error });
    }
  };
}

async function readCapped(response, maxBytes, where) {
  if (response.body === null) return new Uint8Array(); // as that of the answer 204
  const parts = [];
  let size = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    size += part.value.length;
    if (size > maxBytes) {
      await reader.cancel();
      throw new CorruptFileError(`${where} has more than the ${maxBytes} bytes that are expected of it. Not read further.`, {
        found: `more than ${maxBytes} bytes`,
        expected: maxBytes,
        where,
        hint: 'Fetch the bundle again.',
      });
    }
    parts.push(part.value);
  }
  const data = new Uint8Array(size);
  let at = 0;
  for (const part of parts) {
    data.set(part, at);
    at += part.length;
  }
  return data;
}

// The bundle's signature, with keys from outside of it: the manifest must be what was signed, and it has the hashes of
// all files that are read here, the keys included.
async function verifyBundle(read, manifest, trust) {
  if (!Array.isArray(trust)) throw new UsageError(`\`trust\` is ${shown(trust)}; expected a list of keys.`, { found: trust, expected: 'a list of public keys, PEM', hint: 'Leave it out to believe whoever serves the bundle.' });
  const keys = [];
  for (const pem of trust) keys.push(await publicKeyFromPem(pem));
  let signature;
  try {
    signature = await read(SIGNATURE_NAME, MAX_SIGNATURE_FILE_BYTES);
  } catch (error) {
    if (!(error instanceof BundleError)) throw error;
    throw new SignatureError('The bundle is not signed.', {
      found: error.message,
      expected: `${SIGNATURE_NAME}, signed by a trusted key`,
      hint: 'Sign it with `icis-deploy sign`, or open it without `trust`, which believes whoever serves it.',
      cause: error,
    });
  }
  const envelope = parseEnvelope(signature, [STATEMENT_TYPE]);
  await verifySignature(envelope, keys);
  let stated;
  try {
    const statement = asObject(parseStrict(envelope.payload), 'statement');
    if (statement._type !== 'https://in-toto.io/Statement/v1' || statement.predicateType !== 'https://icis-deploy/bundle/v1') throw new TypeError('it is a statement about something else');
    const subjects = asList(statement.subject, 'subject').filter((subject) => asText(asObject(subject, 'subject').name, 'name') === MANIFEST_NAME);
    if (subjects.length !== 1) throw new TypeError('it does not name the manifest once');
    stated = asText(asObject(subjects[0].digest, 'digest').sha256, 'sha256');
  } catch (error) {
    if (!(error instanceof SyntaxError || error instanceof TypeError)) throw error;
    throw new CorruptFileError(`The bundle's signature holds no statement of its files: ${error.message}.`, { found: error.message, expected: 'an in-toto statement', cause: error });
  }
  const found = await sha256Hex(manifest);
  if (found !== stated) {
    throw new CorruptFileError(`${MANIFEST_NAME} was changed after the bundle was signed.`, { found, expected: stated, where: MANIFEST_NAME, hint: 'Fetch the bundle again.' });
  }
}

class Device {
  #bundle;
  #session;
  #storage;
  #clock;
  #exported;
  #trustedKeys;
  #guard = null;
  #rowLengths = null;
  #held = null;
  #changing = Promise.resolve();

  constructor({ bundle, files, session, storage, clock }) {
    this.#bundle = bundle;
    this.#session = session;
    this.#storage = storage;
    this.#clock = clock;
    this.#exported = bundle.capacity ? parseSlots(files.get(SLOTS_NAME), bundle) : null;
    this.#trustedKeys = trustedKeys(files.get(WEB_KEYS_NAME));
    if (bundle.arbiter) this.#rowLengths = rowLengths(files.get(ARBITER_NAME), bundle);
    if (bundle.maxChangedAnswers !== null && bundle.capacity) {
      const injected = files.get(INJECTED_NAME);
      const baked = injected === undefined ? null : parseSlots(injected, { capacity: bundle.classNames.length - bundle.numSeen, featureDim: bundle.featureDim });
      this.#guard = new Guard(bundle, parseReference(files.get(REFERENCE_NAME), bundle), baked);
    }
  }

  /** Version of the last class update in the head. */
  get version() {
    return this.#held.state.version;
  }

  /** The settings of the images, and sizes, as the manifest states them. */
  get bundle() {
    const { classNames, numSeen, featureDim, capacity, scoreKind, input, baseFingerprint } = this.#bundle;
    return { classNames: [...classNames], numSeen, featureDim, capacity, scoreKind, input: { ...input }, baseFingerprint };
  }

  /** The classes that an answer chooses among, in the order of the logits. */
  classes() {
    return [...this.#held.state.classNames];
  }

  /** The last changes, the oldest first, by this page or another. */
  async history() {
    const data = await this.#storage.read(JOURNAL_NAME);
    return (data === null ? [] : (await this.#journalOf(data)).history).map((line) => ({ ...line }));
  }

  /**
   * The most probable classes of one image.
   * @param {object} image RGBA pixels, or what a browser draws: a Blob, File, image, canvas, video.
   * @returns {Promise<{version: number | bigint, classes: {name: string, probability: number}[]}>}
   */
  async predict(image, { top = 5 } = {}) {
    const { preprocessing, input } = this.#bundle;
    if (preprocessing === null) {
      throw new IncompatibleError('The bundle does not say how images are prepared.', { expected: 'preprocessing', hint: 'Export it with `--preprocess`, or give `logits` prepared values.' });
    }
    const pixels = await pixelsOf(image, preprocessing);
    const { values, classNames, version } = await this.logits(prepare(pixels, preprocessing, { asPixels: input.dtype === 'uint8' }));
    return { version, classes: mostProbable(values, classNames, top, this.#bundle.scoreKind === 'sigmoid') };
  }

  /**
   * The logits of prepared images, `(batch, numClasses)`, with the classes and the version that they belong to.
   * @param {Float32Array | Uint8Array} values (batch, ...shape), in the model's type
   */
  async logits(values) {
    const { input, scoreKind } = this.#bundle;
    const size = input.shape.reduce((product, length) => product * length, 1);
    const Values = input.dtype === 'uint8' ? Uint8Array : Float32Array;
    if (!(values instanceof Values) || !values.length || values.length % size) {
      throw new UsageError(`The input is ${values?.length} values of ${values?.constructor?.name}; expected ${input.dtype}, ${size} for each image.`, {
        found: values?.length,
        expected: size,
      });
    }
    const { state } = this.#held;
    const batch = values.length / size;
    const { scores } = await this.#session.run(values, batch, state.table);
    const [numOutputs, numClasses] = [scores.length / batch, state.columns.length];
    const isProbability = scoreKind === 'probabilities' || scoreKind === 'sigmoid';
    const found = new Float32Array(batch * numClasses);
    for (let image = 0; image < batch; image += 1) {
      state.columns.forEach((column, index) => {
        const score = scores[image * numOutputs + column];
        found[image * numClasses + index] = isProbability ? Math.log(Math.max(score, TINY_FLOAT)) : score;
      });
    }
    return { values: found, classNames: [...state.classNames], version: state.version };
  }

  /**
   * Take a class update or a set of trusted keys; or find that it is in effect already.
   * @param {Blob | ArrayBuffer | Uint8Array | string | URL} update The file, or its URL.
   */
  async apply(update, { allowUnsigned = false, allowChangedAnswers = false } = {}) {
    const data = await this.#bytesOf(update);
    return this.#change(async (journal) => {
      const clock = this.#now();
      try {
        const verified = await verifyFile(data, { bundle: this.#bundle, journal, trustedKeys: this.#trustedKeys, allowUnsigned });
        const { content } = verified;
        if (content.kind === 'trusted keys') {
          const after = afterTrustedKeys(journal, verified, { bundle: this.#bundle, clock });
          return { after, result: applied(content, after, true) };
        }
        const { table: before } = this.#held.state;
        const table = await planUpdate(journal, content, { table: before, bundle: this.#bundle, clock });
        await verifyComputed(this.#session, this.#bundle, table, { seed: content.seed, rowLengths: this.#rowLengths });
        const judged = this.#guard === null ? {} : this.#guard.judge(before, table, content.classNames, { allowed: allowChangedAnswers });
        const slots = serializeSlots(table);
        const entry = lineOf(journal, 'apply', clock, {
          version: content.version,
          num_added: content.added.length,
          num_replaced: content.replaced.length,
          num_removed: content.removed.length,
          payload_sha256: verified.payloadSha256,
          signed_by: verified.signedBy,
          ...judged,
        });
        const state = { version: content.version, slots: { sha256: await sha256Hex(slots), size_bytes: slots.length }, taught: [], origins: originsAfter(journal, content, { table, bundle: this.#bundle, signedBy: verified.signedBy }) };
        const after = afterUpdate(journal, entry, state);
        return { after, table, put: new Map([[slotsName(state.slots), slots]]), result: applied(content, after, true) };
      } catch (error) {
        if (!(error instanceof IntegrityError || error instanceof IncompatibleError)) throw error;
        const found = await inEffect(data, { bundle: this.#bundle, journal, knownNames: this.#held.state.classNames });
        if (found === null) throw error;
        return { result: { ...applied(found.content, journal, false), entry: { ...found.entry } } };
      }
    });
  }

  /**
   * Go back to the state before; its version stays spent. Returns the line of the history.
   * Classes by a key that is not trusted any more come back with `allowRevoked` alone.
   */
  async rollback({ allowRevoked = false } = {}) {
    return this.#change(async (journal) => {
      const { table: now } = this.#held.state;
      const [then] = journal.states.slice(-2, -1);
      const slots = now === null || then === undefined ? [] : now.differing(await this.#tableOf(then));
      const rewritten = new Set(slots.map((slot) => this.#bundle.classNames.length + slot));
      const after = await afterRollback(journal, this.#now(), { trustedKeys: this.#trustedKeys, rewritten, allowRevoked });
      return { after, result: { ...after.history[after.history.length - 1] } };
    });
  }

  /** Take over what another page committed; whether there was anything. */
  async refresh() {
    return this.#alone(async () => {
      const data = await this.#storage.read(JOURNAL_NAME);
      if (this.#held !== null && isSame(data, this.#held.data)) return false;
      await this.#takeOver(data);
      return true;
    });
  }

  async #bytesOf(update) {
    const limit = maxUpdateBytes(this.#bundle);
    if (update instanceof Uint8Array) return update;
    if (update instanceof ArrayBuffer) return new Uint8Array(update);
    if (typeof Blob === 'function' && update instanceof Blob) {
      // What is longer is refused by its length; none of it is read.
      if (update.size > limit) throw new CorruptFileError(`The file has ${update.size} bytes; no update for this bundle has more than ${limit}.`, { found: update.size, expected: limit, where: update.name });
      return new Uint8Array(await update.arrayBuffer());
    }
    if (typeof update === 'string' || update instanceof URL) {
      const where = urlOf(update).href;
      try {
        const response = await fetch(where, { cache: 'no-cache' });
        if (!response.ok) throw new Error(`the server answered ${response.status} ${response.statusText}`);
        return await readCapped(response, limit, where);
      } catch (error) {
        if (error instanceof ICISDeployError) throw error;
        throw new LoadError(`The class update ${where} could not be fetched: ${error.message}.`, { found: error.message, where, cause: error });
      }
    }
    throw new UsageError('An update is a file, its bytes, or a URL.', { found: typeof update, expected: 'a Blob, a Uint8Array, or a URL' });
  }

  // Beyond these years a time has another form, which no journal is read with.
  #now() {
    const clock = this.#clock();
    if (!(clock >= FIRST_TIME && clock <= LAST_TIME)) {
      throw new UsageError(`The clock says ${shown(clock)}; expected milliseconds since 1970, of the years 1 to 9999. Nothing was changed.`, { found: clock, expected: 'milliseconds since 1970', hint: 'Set the clock.' });
    }
    return clock;
  }

  // One change after the other, in this page.
  #alone(work) {
    const running = this.#changing.then(work);
    this.#changing = running.catch(() => undefined);
    return running;
  }

  // Decide on a change and commit it; where another page was faster, decide again on what that left.
  #change(decide) {
    return this.#alone(async () => {
      for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt += 1) {
        const data = await this.#storage.read(JOURNAL_NAME);
        if (!isSame(data, this.#held.data)) await this.#takeOver(data);
        const { journal, state } = this.#held;
        let decided;
        let next;
        try {
          decided = await decide(journal);
          if (decided.after === undefined) return decided.result;
          next = decided.table;
          next ??= currentState(decided.after) === currentState(journal) ? state.table : await this.#tableOf(currentState(decided.after));
        } catch (error) {
          if (await this.#isOutdated(data, error)) continue;
          throw error;
        }
        const { after, table, put = new Map(), result } = decided;
        if (table === undefined && next !== state.table && next !== null) await verifyComputed(this.#session, this.#bundle, next, { rowLengths: this.#rowLengths });
        const named = new Set(after.states.map(({ slots }) => (slots === null ? null : slotsName(slots))));
        const remove = journal.states.filter(({ slots }) => slots !== null && !named.has(slotsName(slots))).map(({ slots }) => slotsName(slots));
        const bytes = await serializeJournal(after);
        if (await this.#storage.commit({ expected: data, journal: bytes, put, remove })) {
          this.#held = this.#heldOf(bytes, after, next);
          return result;
        }
      }
      throw new StorageError(`Other pages changed the device ${MAX_ATTEMPTS} times in a row. Nothing was changed.`, { hint: 'Try again.' });
    });
  }

  async #takeOver(data) {
    let journal = data === null ? initialJournal(this.#bundle) : await this.#journalOf(data);
    let held = data;
    if (journal.bundleSha256 !== this.#bundle.sha256) {
      const former = journal;
      journal = afterReplacement(former, this.#bundle, this.#now());
      held = await serializeJournal(journal);
      const remove = former.states.filter(({ slots }) => slots !== null).map(({ slots }) => slotsName(slots));
      if (!(await this.#storage.commit({ expected: data, journal: held, put: new Map(), remove }))) {
        throw new StorageError('Another page changed the device meanwhile. Nothing was changed.', { hint: 'Try again.' });
      }
    }
    let table;
    try {
      table = await this.#tableOf(currentState(journal));
    } catch (error) {
      if (!(await this.#isOutdated(held, error))) throw error;
      await this.#takeOver(await this.#storage.read(JOURNAL_NAME));
      return;
    }
    if (table !== null) await verifyComputed(this.#session, this.#bundle, table, { rowLengths: this.#rowLengths });
    this.#held = this.#heldOf(held, journal, table);
  }

  // Whether slots are missing because another page changed the journal after it was read, and removed what it named.
  async #isOutdated(data, error) {
    return error instanceof CorruptFileError && !isSame(await this.#storage.read(JOURNAL_NAME), data);
  }

  async #journalOf(data) {
    const journal = await parseJournal(data);
    if (journal.baseFingerprint !== this.#bundle.baseFingerprint) {
      throw new IncompatibleError(`The state that was kept is of another head (${journal.baseFingerprint.slice(0, 16)}…; this bundle's is ${this.#bundle.baseFingerprint.slice(0, 16)}…).`, {
        found: journal.baseFingerprint,
        expected: this.#bundle.baseFingerprint,
        hint: 'Give each head a `storage` of its own.',
      });
    }
    if (journal.disabled.length || journal.states.some(({ taught }) => taught.length)) {
      throw new IncompatibleError('The state that was kept disables classes, or holds taught ones, which this device cannot do.', { hint: 'Give this device a `storage` of its own.' });
    }
    return journal;
  }

  async #tableOf({ slots }) {
    if (slots === null || this.#exported === null) return this.#exported;
    const name = slotsName(slots);
    const data = await this.#storage.read(name);
    if (data === null || data.length !== slots.size_bytes || (await sha256Hex(data)) !== slots.sha256) {
      throw new CorruptFileError(`The slots ${name} that the journal names are ${data === null ? 'not there' : 'damaged'}.`, {
        found: data === null ? null : data.length,
        expected: slots.size_bytes,
        where: name,
        hint: "Delete this page's data to start again from the classes that the bundle was exported with; that forgets spent versions and replaced keys.",
      });
    }
    return parseSlots(data, this.#bundle);
  }

  #heldOf(data, journal, table) {
    const numBaked = this.#bundle.classNames.length;
    return {
      data,
      journal,
      state: {
        table,
        version: currentState(journal).version,
        classNames: [...this.#bundle.classNames, ...(table?.filledNames ?? [])],
        columns: [...this.#bundle.classNames.keys(), ...(table?.filled ?? []).map((slot) => numBaked + slot)],
      },
    };
  }
}

function applied(content, journal, changed) {
  const { kind, version, added = [], replaced = [], removed = [] } = content;
  return { kind, version, added, replaced, removed, entry: { ...journal.history[journal.history.length - 1] }, changed };
}

function trustedKeys(data) {
  try {
    return asTexts(asObject(parseStrict(data), 'keys').public_keys, 'public_keys');
  } catch (error) {
    throw new CorruptFileError(`${WEB_KEYS_NAME} is no list of keys: ${error.message}.`, { found: error.message, where: WEB_KEYS_NAME, hint: 'Export the bundle again.', cause: error });
  }
}

function rowLengths(data, { numSeen }) {
  try {
    const { tensors } = readSafetensors(data);
    const { row_lengths: lengths } = tensors;
    if (Object.keys(tensors).length !== 1 || lengths?.dtype !== 'F32' || String(lengths.shape) !== String([numSeen]) || !lengths.values.every((value) => value >= 0 && Number.isFinite(value))) {
      throw new TypeError(`expected a length for each of ${numSeen} classes`);
    }
    return lengths.values;
  } catch (error) {
    throw new CorruptFileError(`${ARBITER_NAME} is damaged: ${error.message}.`, { found: error.message, where: ARBITER_NAME, hint: 'Fetch the bundle again.', cause: error });
  }
}

// The greatest first; equal ones in the order of the head.
function mostProbable(logits, classNames, top, isIndependent) {
  if (!Number.isSafeInteger(top) || top < 1) throw new UsageError(`${shown(top)} classes were asked for; expected at least 1.`, { found: top, expected: 'at least 1' });
  if (!logits.every((logit) => logit < Infinity)) {
    throw new RuntimeFailureError('The model gave a score for the image that is no answer.', { found: 'NaN or infinity', expected: 'finite scores', hint: 'Check that the image is finite.' });
  }
  const greatest = logits.reduce((most, logit) => Math.max(most, logit), -Infinity);
  const exponentials = Float64Array.from(logits, (logit) => Math.exp(isIndependent ? logit : logit - greatest));
  const total = isIndependent ? 1 : exponentials.reduce((sum, value) => sum + value, 0);
  const order = [...logits.keys()].sort((left, right) => logits[right] - logits[left] || left - right);
  return order.slice(0, top).map((index) => ({ name: classNames[index], probability: exponentials[index] / total }));
}

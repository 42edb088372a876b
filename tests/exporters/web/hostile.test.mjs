// `node --test hostile.test.mjs`: what a file, a server, a browser or a caller may give is refused with an error of this
// package, and in time. Needs nothing but Node.

import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { afterEach, test } from 'node:test';

const source = (name) => import(new URL(`../../../exporters/web/src/${name}`, import.meta.url));
const { openBundle, indexedDBStorage, memoryStorage } = await source('index.js');
const { publicKeyFromPem } = await source('keys.js');
const { parseManifest } = await source('manifest.js');
const { asTime, parseStrict, Fraction } = await source('json.js');
const { shown } = await source('errors.js');
const { prepare, preprocessingFromJson } = await source('preprocessing.js');
const { Session } = await source('session.js');
const { parseEnvelope, UPDATE_TYPE, verifySignature } = await source('envelope.js');

const storage = memoryStorage();
const found = globalThis.indexedDB;
afterEach(() => {
  globalThis.indexedDB = found;
});

test('a key of nothing but blanks is refused as fast as others are read', async () => {
  const good = await readFile(new URL('../../golden/v1/release-key.pub', import.meta.url), 'utf8');
  const seconds = async (work) => {
    const start = performance.now();
    await work();
    return performance.now() - start;
  };
  const reading = await seconds(async () => {
    for (let count = 0; count < 200; count += 1) await publicKeyFromPem(good);
  });
  const blank = `-----BEGIN PUBLIC KEY-----${' '.repeat(3000)}`;
  const refusing = await seconds(() => assert.rejects(publicKeyFromPem(blank), { name: 'SignatureError' }));
  assert.ok(refusing < 20 * reading, `${refusing} ms, ${reading} ms`);
});

test('keys are read with any blanks around and within', async () => {
  const good = await readFile(new URL('../../golden/v1/release-key.pub', import.meta.url), 'utf8');
  const { pem } = await publicKeyFromPem(good);
  for (const text of [good.trim(), `\n ${good}\n`, good.replaceAll('\n', '\r\n'), good.replace('\n', '\n\n  ')]) {
    assert.equal((await publicKeyFromPem(text)).pem, pem);
  }
});

test('one key has one text: bits that stand for nothing make no second one', async () => {
  const good = await readFile(new URL('../../golden/v1/release-key.pub', import.meta.url), 'utf8');
  const last = good.indexOf('=') - 1;
  const other = good.slice(0, last) + String.fromCharCode(good.charCodeAt(last) + 1) + good.slice(last + 1);
  await assert.rejects(publicKeyFromPem(other), { name: 'SignatureError' });
});

test('a key that everybody can sign with is none', async () => {
  const [neutral, ofOrder8] = ['01' + '00'.repeat(31), '26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85'];
  for (const raw of ['00'.repeat(32), neutral, `ec${'ff'.repeat(30)}7f`, `ed${'ff'.repeat(31)}`, `ee${'ff'.repeat(30)}7f`, ofOrder8]) {
    const spki = Buffer.from(`302a300506032b6570032100${raw}`, 'hex').toString('base64');
    const text = `-----BEGIN PUBLIC KEY-----\n${spki}\n-----END PUBLIC KEY-----\n`;
    await assert.rejects(publicKeyFromPem(text), { name: 'SignatureError', message: /small order/ });
  }
});

test('a browser without Ed25519 is told so, whatever else it lacks', async () => {
  const text = await readFile(new URL('../../golden/v1/release-key.pub', import.meta.url), 'utf8');
  const prototype = Object.getPrototypeOf(Uint8Array.prototype);
  const method = Object.getOwnPropertyDescriptor(prototype, 'toReversed');
  crypto.subtle.importKey = () => Promise.reject(new DOMException('unknown', 'NotSupportedError'));
  delete prototype.toReversed;
  try {
    await assert.rejects(publicKeyFromPem(text), { name: 'MissingDependencyError' });
  } finally {
    delete crypto.subtle.importKey;
    if (method) Object.defineProperty(prototype, 'toReversed', method);
  }
});

test('what stands around a key is for people, as in Python', async () => {
  const good = await readFile(new URL('../../golden/v1/release-key.pub', import.meta.url), 'utf8');
  const { pem } = await publicKeyFromPem(good);
  for (const text of [`of the release of May\n${good}`, `${good}by hand`, `${good}${' '.repeat(5000)}`]) {
    assert.equal((await publicKeyFromPem(text)).pem, pem);
  }
});

for (const given of ['nothing', 'http://[', undefined, 'data:text/plain,x']) {
  test(`a bundle at ${given}, which is no place with files`, async () => {
    await assert.rejects(openBundle(given, { storage }), { name: 'UsageError', message: /is no URL.*folderSource/ });
  });
}

test('a bundle by the URL of a file is looked for there', async () => {
  await assert.rejects(openBundle('file:///nowhere/bundle?x#y', { storage }), {
    name: 'BundleError',
    message: /^file:\/\/\/nowhere\/bundle\/manifest\.json could not be fetched/,
  });
});

test('keys that are no list', async () => {
  for (const trust of [null, 'a key']) {
    await assert.rejects(openBundle(async () => new Uint8Array(), { storage, trust }), { name: 'UsageError', message: /a list of keys/ });
  }
});

test('a server that breaks off, or has nothing to say', async () => {
  const server = createServer(({ url }, response) => {
    if (url.startsWith('/empty/')) return response.writeHead(204).end();
    response.writeHead(200, { 'Content-Length': 1000 });
    return response.write('abc', () => response.destroy());
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    const base = `http://127.0.0.1:${server.address().port}`;
    await assert.rejects(openBundle(`${base}/empty/`, { storage }), { name: 'BundleError', message: /manifest is none/ });
    await assert.rejects(openBundle(`${base}/cut/`, { storage }), { name: 'BundleError', message: /could not be fetched|was not fetched whole/ });
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

const closed = {
  transaction() {
    throw new DOMException('The database connection is closing.', 'InvalidStateError');
  },
};
for (const [what, database, expected] of [
  ['is none', null, /There is no IndexedDB here/],
  ['is denied', { open: () => { throw new DOMException('denied', 'SecurityError'); } }, /could not open .*: denied/],
  ['was closed meanwhile', { open() {
    const request = { result: closed };
    queueMicrotask(() => request.onsuccess());
    return request;
  } }, /could not (read|write) .* is closing/],
]) {
  test(`an IndexedDB that ${what}`, async () => {
    globalThis.indexedDB = database;
    const kept = indexedDBStorage('name');
    const change = { expected: null, journal: new Uint8Array(), put: new Map(), remove: [] };
    for (const call of [() => kept.read('journal.json'), () => kept.commit(change)]) {
      await assert.rejects(call, { name: 'StorageError', message: expected });
    }
  });
}

test('values in messages, whatever they hold', async () => {
  assert.equal(shown(parseStrict('{"a": [18446744073709551616, 1.50]}')), '{"a":["18446744073709551616","1.50"]}');
  assert.equal(shown(new Fraction('2.0')), '"2.0"');
  const manifest = new TextEncoder().encode('{"schema_version": {"a": 18446744073709551616}}');
  await assert.rejects(parseManifest(manifest), { name: 'BundleError', message: /its schema version is \{"a":"18446744073/ });
});

test('a time of the year 0, which Python has not', () => {
  assert.equal(asTime('0001-01-01T00:00:00Z', 'expires'), -62135596800000);
  assert.throws(() => asTime('0000-01-01T00:00:00Z', 'expires'), { name: 'TypeError', message: /has not the form/ });
});

test('an image whose sides are none', () => {
  const settings = preprocessingFromJson(parseStrict('{"resize": null, "crop": 1, "mean": [0], "std": [1], "color": "RGB", "layout": "NCHW"}'));
  for (const [width, height] of [[-1, -1], [2, 0.5]]) {
    assert.throws(() => prepare({ data: new Uint8Array(4), width, height }, settings, { asPixels: true }), { name: 'ImageError' });
  }
});

test('a model of another type of input', async () => {
  await assert.rejects(Session.load(new Uint8Array(), { input: { name: 'x', shape: [3], dtype: 'float16' }, capacity: 0 }, {}), {
    name: 'IncompatibleError',
    message: /takes "float16"/,
  });
});

test('lists and objects within each other, to the depth that Python takes', () => {
  const nested = (depth) => '['.repeat(depth - 1) + '{"a": 1}' + ']'.repeat(depth - 1);
  parseStrict(nested(256));
  assert.throws(() => parseStrict(nested(257)), { name: 'SyntaxError', message: /^its values are nested too deeply/ });
});

test('a key id that is no text is a stranger\'s, and a list is none', async () => {
  const file = (keyid) => JSON.stringify({ payload: '', payloadType: UPDATE_TYPE, signatures: [{ keyid, sig: 'AAAA' }] });
  const read = async (keyid) => verifySignature(parseEnvelope(new TextEncoder().encode(file(keyid))), []);
  for (const keyid of [null, 7, 1.5, true, '']) await assert.rejects(read(keyid), { name: 'SignatureError', message: /^The file is signed by / });
  for (const keyid of [undefined, [], {}]) await assert.rejects(read(keyid), { name: 'CorruptFileError', message: /no key id/ });
});

// Calls of a JavaScript device by lines of JSON: `node driver.mjs SOURCES RUNTIME`, with the folder of the package's
// sources and the module of onnxruntime-web.

import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';
import { join } from 'node:path';

const [sources, runtimePath] = process.argv.slice(2);
const module = (name) => import(pathToFileURL(join(sources, name)).href);
const { openBundle, memoryStorage, ICISDeployError } = await module('index.js');
const { folderSource, folderStorage } = await module('node.js');
const { verifyFile } = await module('rules.js');
const { parseManifest } = await module('manifest.js');
const { initialJournal } = await module('journal.js');
const { preprocessingFromJson, prepare } = await module('preprocessing.js');
const { parseStrict } = await module('json.js');
const { sha256Hex } = await module('bytes.js');
const runtime = await import(pathToFileURL(runtimePath).href);

const devices = [];
const bytes = (text) => new Uint8Array(Buffer.from(text, 'base64'));
const importKey = crypto.subtle.importKey.bind(crypto.subtle);

const calls = {
  async open({ folder, url, state, trust, clock }) {
    const storage = state === null || state === undefined ? memoryStorage() : folderStorage(state);
    const source = url ?? folderSource(folder);
    devices.push(await openBundle(source, { trust, storage, runtime, ...(clock === undefined ? {} : { clock: () => clock }) }));
    return devices.length - 1;
  },
  apply: ({ device, data, options }) => devices[device].apply(bytes(data), options),
  rollback: ({ device, ...options }) => devices[device].rollback(options),
  refresh: ({ device }) => devices[device].refresh(),
  history: ({ device }) => devices[device].history(),
  classes: ({ device }) => devices[device].classes(),
  version: ({ device }) => devices[device].version,
  predict: ({ device, pixels, width, height, top }) => devices[device].predict({ data: bytes(pixels), width, height }, { top }),
  async logits({ device, values, dtype }) {
    const found = await devices[device].logits(dtype === 'uint8' ? Uint8Array.from(values) : Float32Array.from(values));
    return { ...found, values: [...found.values] };
  },
  async prepared({ settings, pixels, width, height, asPixels }) {
    const image = { data: bytes(pixels), width, height };
    const found = prepare(image, preprocessingFromJson(parseStrict(settings)), { asPixels });
    return Buffer.from(found.buffer, found.byteOffset, found.byteLength).toString('base64');
  },
  // What a device believes each of these files to hold, or the error that it throws.
  async verify({ folder, keys, files }) {
    const bundle = await parseManifest(await folderSource(folder)('manifest.json', 1 << 26));
    const found = [];
    for (const file of files) {
      try {
        const { content } = await verifyFile(bytes(file), { bundle, journal: initialJournal(bundle), trustedKeys: keys, allowUnsigned: false });
        const { rows, arbiter, ...fields } = content;
        const digest = async (values) => (values ? sha256Hex(new Uint8Array(values.buffer)) : null);
        found.push({ content: { ...fields, rows: await digest(rows), arbiter: await digest(arbiter) } });
      } catch (error) {
        found.push({ error: error.name, isOurs: error instanceof ICISDeployError, message: String(error.message) });
      }
    }
    return found;
  },
  // A page reads the journal; before it reads the slots, another page goes back, and removes them.
  async overtaken({ folder, data }) {
    const storage = memoryStorage();
    const open = (kept) => openBundle(folderSource(folder), { storage: kept, runtime });
    const other = await open(storage);
    for (const update of data) await other.apply(bytes(update));
    let isFirst = true;
    const read = async (name) => {
      if (name !== 'journal.json' && isFirst) {
        isFirst = false;
        await other.rollback();
      }
      return storage.read(name);
    };
    return (await open({ ...storage, read })).classes();
  },
  // A page goes back; before it reads the slots that it goes back to, another page goes back twice, and removes them.
  async overtakenGoingBack({ folder, data }) {
    const storage = memoryStorage();
    const open = (kept) => openBundle(folderSource(folder), { storage: kept, runtime });
    const other = await open(storage);
    for (const update of data) await other.apply(bytes(update));
    let isGoingBack = false;
    const read = async (name) => {
      if (name !== 'journal.json' && isGoingBack) {
        isGoingBack = false;
        await other.rollback();
        await other.rollback();
      }
      return storage.read(name);
    };
    const page = await open({ ...storage, read });
    isGoingBack = true;
    const { version } = await page.rollback();
    return { version, classes: page.classes(), actions: (await page.history()).map(({ action }) => action) };
  },
  // What the browser without Ed25519 does: importKey refuses the algorithm.
  async withoutEd25519({ device, data }) {
    crypto.subtle.importKey = async (...given) => {
      if (given[2].name === 'Ed25519') throw new DOMException('Unrecognized algorithm name', 'NotSupportedError');
      return importKey(...given);
    };
    try {
      return await devices[device].apply(bytes(data));
    } finally {
      crypto.subtle.importKey = importKey;
    }
  },
};

const json = (value) => JSON.stringify(value, (_, item) => (typeof item === 'bigint' ? String(item) : item));
for await (const line of createInterface({ input: process.stdin })) {
  const { call, ...values } = JSON.parse(line);
  try {
    console.log(json({ value: (await calls[call](values)) ?? null }));
  } catch (error) {
    console.log(json({ error: { name: error.name, message: String(error.message), isOurs: error instanceof ICISDeployError } }));
  }
}
process.exit(0); // onnxruntime-web's threads would keep it

// A bundle's folder, and a folder for a device's state, in Node.

import { mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { BundleError, CorruptFileError, StorageError } from './errors.js';
import { isSame, JOURNAL_NAME } from './storage.js';

/** What `openBundle` reads a bundle in a folder with. */
export function folderSource(folder) {
  return async (name, maxBytes) => {
    const where = join(folder, name);
    try {
      const { size } = await stat(where);
      if (size > maxBytes) {
        throw new CorruptFileError(`${where} has ${size} bytes; ${maxBytes} are expected of it.`, { found: size, expected: maxBytes, where, hint: 'Fetch the bundle again.' });
      }
      return new Uint8Array(await readFile(where));
    } catch (error) {
      if (error instanceof CorruptFileError) throw error;
      throw new BundleError(`${where} could not be read: ${error.message}.`, { found: error.code, where, hint: 'Name the folder that `icis-deploy export --target web` wrote.', cause: error });
    }
  };
}

/** A storage in a folder, for one process: files are synced before the journal that names them takes its place. */
export function folderStorage(folder) {
  let committing = Promise.resolve();
  const read = async (name) => {
    try {
      return new Uint8Array(await readFile(join(folder, name)));
    } catch (error) {
      if (error.code === 'ENOENT') return null;
      throw failure(folder, error);
    }
  };
  const write = async (name, data) => {
    const temporary = join(folder, `.${name}.tmp`);
    const file = await open(temporary, 'w', 0o600);
    try {
      await file.writeFile(data);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, join(folder, name));
  };
  const commit = async ({ expected, journal, put, remove }) => {
    if (!isSame(await read(JOURNAL_NAME), expected)) return false;
    try {
      await mkdir(folder, { recursive: true });
      for (const [name, data] of put) await write(name, data);
      await syncFolder(folder);
      await write(JOURNAL_NAME, journal);
      await syncFolder(folder);
    } catch (error) {
      throw failure(folder, error);
    }
    for (const name of remove) await rm(join(folder, name), { force: true }).catch(() => undefined); // nothing names them
    return true;
  };
  return {
    read,
    commit(change) {
      const running = committing.then(() => commit(change));
      committing = running.catch(() => undefined);
      return running;
    },
  };
}

async function syncFolder(folder) {
  const handle = await open(folder, 'r');
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

function failure(folder, error) {
  return new StorageError(`The state in ${folder} could not be read or written: ${error.message}.`, { found: error.code, where: folder, cause: error });
}

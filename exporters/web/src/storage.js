// Where a device keeps its state: a journal, and the slot tables that it names.
//
// A storage has two functions:
//
//     read(name)                 the bytes of a file, or null
//     commit({expected, journal, put, remove})
//
// `commit` puts the files of `put` (a Map of bytes), replaces the journal, and removes the names of `remove`: all of it
// or nothing. It returns false, and changes nothing, where the journal is no longer `expected` (null: there is none),
// because somebody else changed it.

import { equalBytes } from './bytes.js';
import { StorageError } from './errors.js';

export const JOURNAL_NAME = 'journal.json';
const STORE = 'state';

export const isSame = (left, right) => (left === null || right === null ? left === right : equalBytes(left, right));

/** A storage that forgets everything with the page: spent versions as well. For tests and trials. */
export function memoryStorage() {
  const files = new Map();
  return {
    async read(name) {
      return files.get(name) ?? null;
    },
    async commit({ expected, journal, put, remove }) {
      if (!isSame(files.get(JOURNAL_NAME) ?? null, expected)) return false;
      for (const [name, data] of put) files.set(name, data);
      files.set(JOURNAL_NAME, journal);
      for (const name of remove) files.delete(name);
      return true;
    },
  };
}

/** A storage in IndexedDB, one database for a name; a change is one transaction, also between pages. */
export function indexedDBStorage(name) {
  const opened = openDatabase(name);
  opened.catch(() => undefined); // said by the first call
  return {
    async read(key) {
      const database = await opened;
      return promised('read', (resolve, reject) => {
        const request = database.transaction(STORE).objectStore(STORE).get(key);
        request.onsuccess = () => resolve(request.result ?? null);
        request.onerror = () => reject(failure('read', request.error));
      });
    },
    async commit({ expected, journal, put, remove }) {
      const database = await opened;
      return promised('write', (resolve, reject) => {
        let changed = false;
        const transaction = database.transaction(STORE, 'readwrite', { durability: 'strict' });
        const store = transaction.objectStore(STORE);
        const found = store.get(JOURNAL_NAME);
        found.onsuccess = () => {
          if (!isSame(found.result ?? null, expected)) return;
          for (const [key, data] of put) store.put(data, key);
          store.put(journal, JOURNAL_NAME);
          for (const key of remove) store.delete(key);
          changed = true;
        };
        transaction.oncomplete = () => resolve(changed);
        transaction.onabort = () => reject(failure('write', transaction.error));
      });
    },
  };
}

function openDatabase(name) {
  if ((globalThis.indexedDB ?? null) === null) {
    return Promise.reject(new StorageError('There is no IndexedDB here, so nothing would be kept of what this device held.', {
      expected: 'IndexedDB',
      hint: 'Give a `storage`: `folderStorage` in Node, or `memoryStorage`, which forgets spent versions.',
    }));
  }
  return promised('open', (resolve, reject) => {
    const request = indexedDB.open(name, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(failure('open', request.error));
    request.onblocked = () => reject(failure('open', new Error('another page holds an older version')));
  });
}

// A browser throws at once where a page may keep nothing, or its database was closed or deleted meanwhile.
function promised(what, start) {
  return new Promise(start).catch((error) => {
    throw error instanceof StorageError ? error : failure(what, error);
  });
}

function failure(what, error) {
  return new StorageError(`The browser could not ${what} the state of the device: ${error?.message ?? error}. Nothing was changed.`, {
    found: String(error?.message ?? error),
    hint: 'Load the page again; free some space, and leave private windows, which may keep nothing.',
    cause: error,
  });
}

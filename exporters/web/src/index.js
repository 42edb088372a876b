// A classifier in the browser that takes signed class updates and rolls them back; see docs/web.md.

export { openBundle } from './device.js';
export { indexedDBStorage, memoryStorage } from './storage.js';
export * from './public-errors.js';

import type { BundleSource, Storage } from './index.js';

/** What `openBundle` reads a bundle in a folder with. */
export function folderSource(folder: string): BundleSource;

/** A storage in a folder, for one process: files are synced before the journal that names them takes its place. */
export function folderStorage(folder: string): Storage;

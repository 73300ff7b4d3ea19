// A bundle's folder on disk, as lib/manifest.mjs reads one.

import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile, realpath, stat } from 'node:fs/promises';
import { join, sep } from 'node:path';
import { pipeline } from 'node:stream/promises';

import { BrokenBundleError } from './lib/errors.mjs';
import { MANIFEST } from './lib/manifest.mjs';

const MISSING = new Set(['ENOENT', 'ENOTDIR']);

async function unlessMissing(promise) {
  try {
    return await promise;
  } catch (error) {
    if (MISSING.has(error.code)) return null;
    throw error;
  }
}

export class Folder {
  constructor(path) {
    this.path = path;
  }

  /** The file's place on disk, null where there is none. Throws BrokenBundleError where a link leads out. */
  async place(file) {
    const root = await unlessMissing(realpath(this.path));
    const place = root && (await unlessMissing(realpath(join(root, file))));
    if (place && !place.startsWith(root.endsWith(sep) ? root : root + sep)) {
      throw new BrokenBundleError(`${MANIFEST}: '${file}' leads out of the bundle`);
    }
    return place;
  }

  async read(file) {
    const place = await this.place(file);
    return place && readFile(place);
  }

  async bytes(file) {
    const place = await this.place(file);
    const found = place && (await stat(place));
    return found?.isFile() ? found.size : null;
  }

  async sha256(file) {
    const hash = createHash('sha256');
    await pipeline(createReadStream(await this.place(file)), hash);
    return hash.digest('hex');
  }
}

// A bundle that lies beside the page, as lib/manifest.mjs reads one. Bytes are kept from when they are held to their
// hash until they are used, so nothing is fetched twice and what is used is what was verified.

import { BrokenBundleError, UnsupportedError } from './lib/errors.mjs';

function hex(buffer) {
  return Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, '0')).join('');
}

export class Served {
  #kept = new Map();

  /** `base` is the bundle's address, with a slash at its end. */
  constructor(base) {
    this.base = base;
  }

  async #fetched(file) {
    const address = new URL(file.split('/').map(encodeURIComponent).join('/'), this.base);
    const response = await fetch(address, { cache: 'no-cache' });
    if (response.status === 404) return null;
    if (!response.ok) throw new BrokenBundleError(`${file}: the server answers ${response.status}`);
    return new Uint8Array(await response.arrayBuffer());
  }

  async read(file) {
    if (!this.#kept.has(file)) this.#kept.set(file, await this.#fetched(file));
    return this.#kept.get(file);
  }

  /** Read it for the last time. */
  async take(file) {
    const bytes = await this.read(file);
    this.#kept.delete(file);
    return bytes;
  }

  async bytes(file) {
    return (await this.read(file))?.length ?? null;
  }

  async sha256(file) {
    if (!globalThis.crypto?.subtle) {
      throw new UnsupportedError('a browser computes SHA-256 on secure pages only: serve it over https, or from localhost');
    }
    return hex(await crypto.subtle.digest('SHA-256', await this.read(file)));
  }
}

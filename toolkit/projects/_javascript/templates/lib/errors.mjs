// What goes wrong with a bundle, by kind. Messages are for people; `name` and the class are for programs.

export class BundleError extends Error {
  constructor(message, options) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** A file of the bundle is missing, changed, broken, or of a newer schema. */
export class BrokenBundleError extends BundleError {}

/** A tensor is not what the model takes. */
export class InputError extends BundleError {}

/** The runtime here cannot run the bundle's graph, or lacks a library. */
export class UnsupportedError extends BundleError {}

/** It ran, and its answers are too far from the reference's. */
export class DriftError extends BundleError {}

export function reasonOf(error) {
  return error instanceof Error ? error.message : String(error);
}

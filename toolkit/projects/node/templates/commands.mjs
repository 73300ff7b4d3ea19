// What the examples share: a bundle is opened, its errors are said in a line, and it is closed.

import { BundleError, openBundle, reasonOf } from './bundle.mjs';

/** Exit code 1 where the bundle or the work on it fails, 2 where `usage` was not followed. */
export async function withBundle(usage, least, work) {
  const [folder, ...given] = process.argv.slice(2);
  if (!folder || given.length < least) {
    console.error(`usage: node ${usage}`);
    process.exit(2);
  }
  let bundle;
  try {
    bundle = await openBundle(folder);
    await work(bundle, given);
  } catch (error) {
    if (!(error instanceof BundleError) && !error.code) throw error;
    console.error(reasonOf(error));
    process.exitCode = 1;
  } finally {
    await bundle?.close();
  }
}

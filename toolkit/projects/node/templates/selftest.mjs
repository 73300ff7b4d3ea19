// node selftest.mjs BUNDLE: exit code 0 passed, 1 failed, 2 called wrongly.

import { Folder, reasonOf, runtime } from './bundle.mjs';
import { selftest } from './lib/selftest.mjs';

const [folder, ...more] = process.argv.slice(2);
if (!folder || more.length || folder.startsWith('-')) {
  console.error('usage: node selftest.mjs BUNDLE');
  process.exit(2);
}
try {
  await selftest(new Folder(folder), runtime, console.log);
  console.log('selftest passed');
} catch (error) {
  console.log(`selftest FAILED: ${reasonOf(error)}`);
  console.error(reasonOf(error));
  process.exitCode = 1;
}

// node classify.mjs BUNDLE PICTURE…: the five likeliest classes of binary PPM or PGM files.

import { readFile } from 'node:fs/promises';

import { withBundle } from './commands.mjs';
import { classify } from './lib/answers.mjs';
import { parsePnm } from './lib/pixels.mjs';

await withBundle('classify.mjs BUNDLE PICTURE…', 1, async (bundle, pictures) => {
  for (const path of pictures) {
    const classes = await classify(bundle, parsePnm(await readFile(path)));
    const said = classes.slice(0, 5).map(({ label, share }) => `${label} ${(100 * share).toFixed(2)}%`);
    console.log(`${path}: ${said.join(', ')}`);
  }
});

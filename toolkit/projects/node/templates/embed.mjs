// node embed.mjs BUNDLE TEXT…: each text's cosine with the first. With --json the vectors, a line each.

import { withBundle } from './commands.mjs';
import { cosine, embed } from './lib/answers.mjs';
import { tokenizerOf } from './lib/tokenizer.mjs';

await withBundle('embed.mjs BUNDLE TEXT… [--json]', 1, async (bundle, given) => {
  const texts = given.filter((text) => text !== '--json');
  const vectors = await embed(bundle, await tokenizerOf(bundle), texts);
  for (const [index, vector] of vectors.entries()) {
    console.log(given.includes('--json') ? JSON.stringify(vector) : `${cosine(vectors[0], vector).toFixed(4)}  ${texts[index]}`);
  }
});

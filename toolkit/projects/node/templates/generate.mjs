// node generate.mjs BUNDLE PROMPT [TOKENS]: the greedy answer, as it comes. The prompt is sent as it is: a chat model
// wants it in its own template, which is a Jinja program that nothing here runs.

import { withBundle } from './commands.mjs';
import { Decoder, streamed } from './lib/decoder.mjs';
import { tokenizerOf } from './lib/tokenizer.mjs';

const TOKENS = 64;

await withBundle('generate.mjs BUNDLE PROMPT [TOKENS]', 1, async (bundle, [prompt, count = TOKENS]) => {
  const tokenizer = await tokenizerOf(bundle);
  const ids = tokenizer.ids(prompt);
  const decoder = new Decoder(bundle, ids.length + Number(count));
  for await (const piece of streamed(decoder.generate(ids, Number(count)), tokenizer)) process.stdout.write(piece);
  process.stdout.write('\n');
});

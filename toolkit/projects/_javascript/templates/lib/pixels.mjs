// Pixels as the graph before a vision model takes them: uint8 [height, width, channels].

import { InputError } from './errors.mjs';

/** From red, green and blue to grey by ITU-R BT.601, in the 16-bit arithmetic that Pillow uses. */
function grey(red, green, blue) {
  return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
}

/** The picture with 1 channel or 3; a fourth, alpha, is left out. */
export function inChannels({ dims: [height, width, has], data }, wanted) {
  if (has === wanted) return { type: 'uint8', dims: [height, width, wanted], data };
  if (![1, 3].includes(wanted)) throw new InputError(`a picture of ${has} channels cannot be given as ${wanted}`);
  const result = new Uint8Array(height * width * wanted);
  for (let pixel = 0; pixel < height * width; pixel++) {
    const [red, green, blue] = has === 1 ? new Array(3).fill(data[pixel]) : data.subarray(pixel * has, pixel * has + 3);
    result.set(wanted === 1 ? [has === 1 ? red : grey(red, green, blue)] : [red, green, blue], pixel * wanted);
  }
  return { type: 'uint8', dims: [height, width, wanted], data: result };
}

/** The picture as it is, without its alpha where no pixel is transparent: a canvas always has one, a file need not. */
export function withoutAlpha(picture) {
  if (picture.dims[2] !== 4) return { type: 'uint8', dims: picture.dims, data: picture.data };
  for (let at = 3; at < picture.data.length; at += 4) {
    if (picture.data[at] !== 255) return { type: 'uint8', dims: picture.dims, data: picture.data };
  }
  return inChannels(picture, 3);
}

/** A binary PPM (P6) or PGM (P5) of 8 bits a channel, as Netpbm describes them. Throws InputError for anything else. */
export function parsePnm(bytes) {
  const text = new TextDecoder('latin1').decode(bytes.subarray(0, 1024));
  const match = /^P([56])\s(?:#[^\n]*\n|\s)*(\d+)(?:#[^\n]*\n|\s)+(\d+)(?:#[^\n]*\n|\s)+(\d+)\s/.exec(text);
  if (!match || Number(match[4]) !== 255) throw new InputError('no binary PPM or PGM of 8 bits a channel');
  const [width, height, channels] = [Number(match[2]), Number(match[3]), match[1] === '6' ? 3 : 1];
  const data = bytes.subarray(match[0].length, match[0].length + width * height * channels);
  if (data.length !== width * height * channels) throw new InputError('the picture ends too early');
  return { dims: [height, width, channels], data };
}

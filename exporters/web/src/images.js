// Pictures of a browser as RGBA pixels. A page decodes files with the browser's own decoders: JPEG may differ from
// Pillow's by a level or two, and where a picture is transparent its colours come back rounded, as a canvas keeps them
// multiplied with their transparency.

import { ImageError, UsageError } from './errors.js';
import { MAX_PIXELS } from './preprocessing.js';

/**
 * Pixels of an ImageData, or of anything that a browser draws: a Blob or File, a canvas, an image, a video.
 * @returns {Promise<{data: Uint8ClampedArray, width: number, height: number}>}
 */
export async function pixelsOf(picture, { exifOrientation }) {
  if (picture?.data !== undefined && picture.width !== undefined) return picture;
  if (typeof globalThis.createImageBitmap !== 'function') {
    throw new UsageError('There is no decoder for images here.', { expected: 'pixels', hint: 'Give `{data, width, height}` with RGBA pixels.' });
  }
  const source = picture instanceof Blob && !exifOrientation ? await withoutExif(picture) : picture;
  let bitmap;
  try {
    bitmap = await createImageBitmap(source, { colorSpaceConversion: 'none', premultiplyAlpha: 'none' });
  } catch (error) {
    throw new ImageError(`The browser cannot decode the image: ${error.message}.`, { found: error.message, where: picture?.name, cause: error });
  }
  const { width, height } = bitmap;
  if (width * height > MAX_PIXELS) {
    bitmap.close();
    throw new ImageError(`The image has ${width} x ${height} pixels; at most ${MAX_PIXELS} are taken.`, { found: [width, height], expected: MAX_PIXELS, hint: 'Scale it down.' });
  }
  const canvas = typeof OffscreenCanvas === 'function' ? new OffscreenCanvas(width, height) : Object.assign(document.createElement('canvas'), { width, height });
  const context = canvas.getContext('2d', { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

/** A JPEG file without its EXIF segments: browsers turn pictures as EXIF says, and no longer let a page refuse that. */
export async function withoutExif(blob) {
  const data = new Uint8Array(await blob.arrayBuffer());
  if (data[0] !== 0xff || data[1] !== 0xd8) return blob;
  const parts = [data.subarray(0, 2)];
  let at = 2;
  while (at + 4 <= data.length && data[at] === 0xff && data[at + 1] !== 0xda) {
    const end = at + 2 + ((data[at + 2] << 8) | data[at + 3]);
    const isExif = data[at + 1] === 0xe1 && String.fromCharCode(...data.subarray(at + 4, at + 8)) === 'Exif';
    if (!isExif) parts.push(data.subarray(at, end));
    at = end;
  }
  parts.push(data.subarray(at));
  return new Blob(parts, { type: blob.type });
}

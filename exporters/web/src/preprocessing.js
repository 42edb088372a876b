// From pixels to a model's input, by the settings in the manifest (icis_deploy/images/preprocessing.py):
//
//     pixels -> colour -> [padded to a square] -> resized -> cropped -> * rescale - mean, / std
//
// With the same pixels the result is that of Python: to the last bit where `antialias` is `pillow`.

import { ImageError, IncompatibleError } from './errors.js';
import { asBoolean, asCount, asInteger, asList, asNumber, asObject, asText, checkFields } from './json.js';
import { resizeAsPillow, resizeAsTorch } from './resampling.js';

export const MAX_PIXELS = 1 << 26;
const EIGHT_BITS = 1 / 255;
const CHANNELS = { RGB: 3, BGR: 3, L: 1 };
const INTERPOLATIONS = {
  pillow: ['nearest', 'bilinear', 'bicubic', 'lanczos', 'box', 'hamming'],
  torch: ['bilinear', 'bicubic'],
  off: ['nearest', 'bilinear', 'bicubic'],
};
const OPTIONAL = ['channels', 'interpolation', 'antialias', 'crop_rounding', 'rescale', 'pad_to_square', 'fill', 'exif_orientation'];

/** Settings as a manifest states them. Throws TypeError where one is unknown or out of range. */
export function preprocessingFromJson(value) {
  const json = asObject(value, 'preprocessing');
  checkFields(json, ['resize', 'crop', 'mean', 'std', 'color', 'layout'], OPTIONAL);
  const size = (item, where) => (Array.isArray(item) ? item.map((length) => asCount(length, where)) : asCount(item, where));
  const crop = size(json.crop, 'crop');
  const settings = {
    resize: json.resize === null ? null : size(json.resize, 'resize'),
    crop: Array.isArray(crop) ? crop : [crop, crop],
    mean: asList(json.mean, 'mean').map((item) => asNumber(item, 'mean')),
    std: asList(json.std, 'std').map((item) => asNumber(item, 'std')),
    color: asText(json.color, 'color'),
    layout: asText(json.layout, 'layout'),
    repeat: (json.channels ?? null) === null ? 1 : asCount(json.channels, 'channels'),
    interpolation: asText(json.interpolation ?? 'bilinear', 'interpolation'),
    antialias: asText(json.antialias ?? 'pillow', 'antialias'),
    cropRounding: asText(json.crop_rounding ?? 'even', 'crop_rounding'),
    rescale: json.rescale === undefined ? EIGHT_BITS : asNumber(json.rescale, 'rescale'),
    padToSquare: asBoolean(json.pad_to_square ?? false, 'pad_to_square'),
    fill: asList(json.fill ?? [0], 'fill').map((item) => Number(asInteger(item, 'fill'))),
    exifOrientation: asBoolean(json.exif_orientation ?? false, 'exif_orientation'),
  };
  const sizes = [settings.crop, settings.resize ?? 1].flat();
  const known =
    sizes.every((length) => length >= 1) && settings.crop.length === 2 && (!Array.isArray(settings.resize) || settings.resize.length === 2) &&
    ['NCHW', 'NHWC'].includes(settings.layout) && ['even', 'down'].includes(settings.cropRounding) &&
    Object.hasOwn(INTERPOLATIONS, settings.antialias) && INTERPOLATIONS[settings.antialias].includes(settings.interpolation) &&
    settings.rescale > 0 && settings.std.every((item) => item > 0) && settings.mean.length === settings.std.length;
  if (!known) throw new TypeError('preprocessing: a setting is unknown, or out of range');
  return settings;
}

/**
 * One image as the model's input, without the batch.
 * @param {{data: Uint8Array | Uint8ClampedArray, width: number, height: number}} image RGBA, as ImageData has it.
 *   Transparency is dropped.
 * @param {boolean} asPixels Whether the model takes pixels, and does the rest itself.
 * @returns {Float32Array | Uint8Array}
 */
export function prepare(image, settings, { asPixels }) {
  const { data, width, height } = image;
  if (!(data instanceof Uint8Array || data instanceof Uint8ClampedArray) || ![width, height].every((side) => Number.isSafeInteger(side) && side > 0) || data.length !== 4 * width * height) {
    throw new ImageError(`The image is no RGBA pixels: ${data?.length} values for ${width} x ${height}.`, {
      found: data?.length,
      expected: 'width * height * 4 values',
      hint: 'Give an ImageData, or a picture or file in a browser.',
    });
  }
  if (!Object.hasOwn(CHANNELS, settings.color)) {
    throw new IncompatibleError(`The model takes ${settings.color} images, which this runtime does not make of RGB.`, { found: settings.color, expected: Object.keys(CHANNELS) });
  }
  const side = Math.max(width, height);
  const padded = settings.padToSquare ? [side, side] : [width, height];
  const scaled = scaledSize(padded, settings.resize);
  for (const [across, down] of [[width, height], padded, scaled]) {
    if (across * down > MAX_PIXELS) {
      throw new ImageError(`The image has, or is resized to, ${across} x ${down} pixels; at most ${MAX_PIXELS} are taken.`, {
        found: [across, down],
        expected: MAX_PIXELS,
        hint: 'Scale it down, or cut out what it is to be asked about.',
      });
    }
  }
  let coloured = toColor(image, settings.color);
  if (padded[0] !== width || padded[1] !== height) coloured = pad(coloured, side, settings.fill);
  const resized = settings.antialias === 'pillow'
    ? resizeAsPillow(coloured, ...scaled, settings.interpolation)
    : resizeAsTorch(coloured, ...scaled, settings.interpolation, settings.antialias === 'torch');
  const cropped = crop(resized, settings);
  return asPixels ? repeated(cropped, settings.repeat) : standardized(cropped, settings);
}

function toColor({ data, width, height }, color) {
  const channels = CHANNELS[color];
  const pixels = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    if (channels === 1) {
      pixels[to++] = (data[from] * 19595 + data[from + 1] * 38470 + data[from + 2] * 7471 + 0x8000) >> 16; // Pillow's L24
    } else {
      pixels[to++] = data[from];
      pixels[to++] = data[from + 1];
      pixels[to++] = data[from + 2];
    }
  }
  return { data: pixels, width, height, channels };
}

function pad(image, side, fill) {
  const { channels } = image;
  const colour = fill.length === 1 ? new Array(channels).fill(fill[0]) : fill;
  const data = Uint8Array.from({ length: side * side * channels }, (_, index) => colour[index % channels]);
  const left = Math.floor((side - image.width) / 2);
  const top = Math.floor((side - image.height) / 2);
  for (let row = 0; row < image.height; row += 1) {
    data.set(image.data.subarray(row * image.width * channels, (row + 1) * image.width * channels), ((top + row) * side + left) * channels);
  }
  return { data, width: side, height: side, channels };
}

function scaledSize([width, height], resize) {
  if (resize === null) return [width, height];
  if (Array.isArray(resize)) return [resize[1], resize[0]];
  const longSide = (long, short) => Math.floor((resize * long) / short);
  return width <= height ? [resize, longSide(height, width)] : [longSide(width, height), resize];
}

function cropStart(length, side, rounding) {
  const difference = length - side;
  if (rounding === 'down') return Math.floor(difference / 2);
  if (difference < 0) return -Math.floor(-difference / 2);
  const half = Math.floor(difference / 2);
  return difference % 2 && half % 2 ? half + 1 : half; // Python rounds halves to even
}

function crop(image, { crop: [height, width], cropRounding }) {
  const left = cropStart(image.width, width, cropRounding);
  const top = cropStart(image.height, height, cropRounding);
  const { channels } = image;
  const data = new image.data.constructor(width * height * channels);
  for (let row = Math.max(0, -top); row < Math.min(height, image.height - top); row += 1) {
    const first = Math.max(0, -left);
    const last = Math.min(width, image.width - left);
    if (last <= first) break;
    const from = ((top + row) * image.width + left) * channels;
    data.set(image.data.subarray(from + first * channels, from + last * channels), (row * width + first) * channels);
  }
  return { data, width, height, channels };
}

function repeated({ data, channels }, times) {
  if (times === 1 || channels !== 1) return data;
  return Uint8Array.from({ length: data.length * times }, (_, index) => data[Math.floor(index / times)]);
}

function standardized({ data, width, height, channels }, settings) {
  const { mean, std, rescale, layout, color, repeat } = settings;
  const numChannels = channels === 1 ? repeat : channels;
  const values = new Float32Array(width * height * numChannels);
  const numPixels = width * height;
  const { fround } = Math;
  for (let channel = 0; channel < numChannels; channel += 1) {
    const source = channels === 1 ? 0 : color === 'BGR' ? channels - 1 - channel : channel;
    const [shift, scale] = [fround(mean[channel]), fround(std[channel])];
    for (let pixel = 0; pixel < numPixels; pixel += 1) {
      const value = fround(data[pixel * channels + source]);
      const scaled = rescale === EIGHT_BITS ? fround(value / 255) : fround(value * rescale);
      const at = layout === 'NCHW' ? channel * numPixels + pixel : pixel * numChannels + channel;
      values[at] = fround(scaled - shift) / scale;
    }
  }
  return values;
}

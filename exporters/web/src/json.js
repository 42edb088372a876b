// Strict JSON, as icis_deploy/common/json_fields.py reads it: no key twice, no byte order mark, no NaN, whole numbers
// apart from fractions, and numbers of 64 bits without loss.

// Lists and objects within each other.
const MAX_DEPTH = 256;
const MAX_VALUES = 1 << 21;
const MAX_DIGITS = 4300;
const NUMBER = /-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?/y;
const PLAIN_STRING = /"([^"\\\u0000-\u001f]*)"/y;
const BLANK = /[ \t\n\r]*/y;
const ESCAPES = { '"': '"', '\\': '\\', '/': '/', b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' };

// A number that is written with a fraction or an exponent. It keeps its text, so that it is written as it was read.
export class Fraction {
  constructor(text) {
    this.text = text;
    this.value = Number(text);
  }

  toJSON() {
    return this.text;
  }
}

// The value of a JSON text: objects without a prototype, whole numbers as number, beyond 2^53 as bigint, others as
// `Fraction`. Throws SyntaxError.
export function parseStrict(data, maxValues = MAX_VALUES) {
  const text = typeof data === 'string' ? data : decodeText(data);
  if (hasMoreValues(text, maxValues)) throw new SyntaxError(`it holds more than ${maxValues} JSON values`);
  return new Parser(text).document();
}

// UTF-8 without a byte order mark; anything else throws SyntaxError.
export function decodeText(data) {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(data);
  } catch {
    throw new SyntaxError('it is no text in UTF-8');
  }
}

function hasMoreValues(text, limit) {
  if (text.length <= limit) return false;
  let count = 0;
  for (const mark of ['[', '{', ',']) {
    for (let index = text.indexOf(mark); index >= 0; index = text.indexOf(mark, index + 1)) {
      count += 1;
      if (count > limit) return true;
    }
  }
  return false;
}

class Parser {
  constructor(text) {
    this.text = text;
    this.at = 0;
  }

  document() {
    const value = this.value(0);
    this.blank();
    if (this.at !== this.text.length) throw this.error('more follows the value');
    return value;
  }

  error(reason) {
    return new SyntaxError(`${reason} at character ${this.at}`);
  }

  blank() {
    BLANK.lastIndex = this.at;
    BLANK.exec(this.text);
    this.at = BLANK.lastIndex;
  }

  value(depth) {
    this.blank();
    const character = this.text[this.at];
    if (character === '{' || character === '[') {
      if (depth === MAX_DEPTH) throw this.error('its values are nested too deeply');
      return character === '{' ? this.object(depth) : this.array(depth);
    }
    if (character === '"') return this.string();
    for (const [word, value] of [['true', true], ['false', false], ['null', null]]) {
      if (this.text.startsWith(word, this.at)) {
        this.at += word.length;
        return value;
      }
    }
    return this.number();
  }

  object(depth) {
    const object = Object.create(null);
    this.at += 1;
    this.blank();
    if (this.take('}')) return object;
    do {
      this.blank();
      if (this.text[this.at] !== '"') throw this.error('a key is missing');
      const key = this.string();
      if (key in object) throw this.error('a key occurs twice in an object');
      this.blank();
      if (!this.take(':')) throw this.error('a colon is missing');
      object[key] = this.value(depth + 1);
      this.blank();
    } while (this.take(','));
    if (!this.take('}')) throw this.error('an object has no end');
    return object;
  }

  array(depth) {
    const array = [];
    this.at += 1;
    this.blank();
    if (this.take(']')) return array;
    do {
      array.push(this.value(depth + 1));
      this.blank();
    } while (this.take(','));
    if (!this.take(']')) throw this.error('a list has no end');
    return array;
  }

  take(character) {
    if (this.text[this.at] !== character) return false;
    this.at += 1;
    return true;
  }

  string() {
    PLAIN_STRING.lastIndex = this.at;
    const plain = PLAIN_STRING.exec(this.text);
    if (plain !== null) {
      this.at = PLAIN_STRING.lastIndex;
      return wellFormed(plain[1]);
    }
    const parts = [];
    let start = this.at + 1;
    for (let index = start; index < this.text.length; index += 1) {
      const code = this.text.charCodeAt(index);
      if (code === 0x22) {
        parts.push(this.text.slice(start, index));
        this.at = index + 1;
        return wellFormed(parts.join(''));
      }
      if (code < 0x20) break;
      if (code !== 0x5c) continue;
      parts.push(this.text.slice(start, index));
      const escape = this.text[index + 1];
      if (escape === 'u') {
        const digits = this.text.slice(index + 2, index + 6);
        if (!/^[0-9a-fA-F]{4}$/.test(digits)) break;
        parts.push(String.fromCharCode(parseInt(digits, 16)));
        index += 5;
      } else if (Object.hasOwn(ESCAPES, escape ?? '')) {
        parts.push(ESCAPES[escape]);
        index += 1;
      } else {
        break;
      }
      start = index + 1;
    }
    throw this.error('a text is no JSON');
  }

  number() {
    NUMBER.lastIndex = this.at;
    const found = NUMBER.exec(this.text);
    if (found === null) throw this.error('there is no JSON value');
    this.at = NUMBER.lastIndex;
    const [text, fraction, exponent] = found;
    if (fraction !== undefined || exponent !== undefined) return new Fraction(text);
    if (text.length > MAX_DIGITS) throw this.error('a number has too many digits');
    const number = Number(text);
    return Number.isSafeInteger(number) ? number + 0 : BigInt(text);
  }
}

// Half of a surrogate pair is no text that UTF-8 can hold.
function wellFormed(text) {
  if (/\p{Surrogate}/u.test(text)) throw new SyntaxError('a text holds half of a surrogate pair');
  return text;
}

// JSON with sorted keys, as Python's json.dumps writes it: compact, or with blanks where `spaced`; ASCII alone.
export function dumps(value, { spaced = false } = {}) {
  const [comma, colon] = spaced ? [', ', ': '] : [',', ':'];
  const write = (item) => {
    if (item === null || item === true || item === false) return String(item);
    if (typeof item === 'string') return asciiString(item);
    if (typeof item === 'bigint' || Number.isSafeInteger(item)) return String(item);
    if (item instanceof Fraction) return item.text;
    if (Array.isArray(item)) return `[${item.map(write).join(comma)}]`;
    if (typeof item === 'object') {
      const entries = Object.keys(item).sort().map((key) => `${asciiString(key)}${colon}${write(item[key])}`);
      return `{${entries.join(comma)}}`;
    }
    throw new TypeError(`${String(item)} is no JSON value`);
  };
  return write(value);
}

function asciiString(text) {
  return JSON.stringify(text).replace(/[\u007f-\uffff]/g, (character) =>
    `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`);
}

function wrongType(value, expected, where) {
  const found = value === null ? 'null' : Array.isArray(value) ? 'a list' : typeof value === 'object' ? 'an object' : String(value).slice(0, 40);
  return new TypeError(`${where}: expected ${expected}, found ${found}`);
}

export function isContainer(value) {
  return typeof value === 'object' && value !== null && !(value instanceof Fraction);
}

export function asText(value, where) {
  if (typeof value !== 'string') throw wrongType(value, 'a text', where);
  return value;
}

export function asBoolean(value, where) {
  if (typeof value !== 'boolean') throw wrongType(value, 'true or false', where);
  return value;
}

export function asInteger(value, where) {
  if (typeof value !== 'bigint' && !Number.isSafeInteger(value)) throw wrongType(value, 'a whole number', where);
  return value;
}

// A whole number that counts something in memory.
export function asCount(value, where, most = 2 ** 31 - 1) {
  if (!Number.isSafeInteger(value) || value < 0 || value > most) throw wrongType(value, `a whole number from 0 to ${most}`, where);
  return value;
}

export function asNumber(value, where) {
  const number = value instanceof Fraction ? value.value : typeof value === 'bigint' ? Number(value) : value;
  if (typeof number !== 'number' || !Number.isFinite(number)) throw wrongType(value, 'a number', where);
  return number;
}

export function asList(value, where) {
  if (!Array.isArray(value)) throw wrongType(value, 'a list', where);
  return value;
}

export function asTexts(value, where) {
  return asList(value, where).map((item) => asText(item, where));
}

export function asObject(value, where) {
  if (typeof value !== 'object' || value === null || Array.isArray(value) || value instanceof Fraction) throw wrongType(value, 'an object', where);
  return value;
}

// Throws where an object lacks a field, or has one that is unknown.
export function checkFields(object, required, optional = []) {
  const missing = required.filter((name) => !(name in object));
  const unknown = Object.keys(object).filter((name) => !required.includes(name) && !optional.includes(name));
  if (missing.length || unknown.length) {
    throw new TypeError(`its fields differ from the format: it lacks [${missing}], and has the unknown [${unknown.map((name) => name.slice(0, 40))}]`);
  }
}

const TIME = /^(?!0000)\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/;

// A time as milliseconds since 1970, from `2026-11-23T09:00:00Z`, the only form that is read.
export function asTime(value, where) {
  const text = asText(value, where);
  const time = Date.parse(text);
  // Date.parse takes the 30th of February and 24 o'clock for the day after; written again they are another text.
  if (!TIME.test(text) || Number.isNaN(time) || timeText(time) !== text) throw new TypeError(`${where}: the time ${text.slice(0, 40)} has not the form 2026-11-23T09:00:00Z`);
  return time;
}

export function timeText(milliseconds) {
  return `${new Date(Math.floor(milliseconds / 1000) * 1000).toISOString().slice(0, 19)}Z`;
}

/* See icis_update.h. Formats: DSSE protocol 1.0 (secure-systems-lab/dsse), safetensors, icis_deploy/updates/payload.py. */
#include "icis_update.h"

#include <math.h>
#include <string.h>

#include <openssl/evp.h>

#define PAYLOAD_TYPE "application/vnd.icis-deploy.class-update.v1+safetensors"
#define TRUSTED_KEYS_TYPE "application/vnd.icis-deploy.trusted-keys.v1+json"
#define PAE_START "DSSEv1 55 " PAYLOAD_TYPE " "
#define MAX_PAE_BYTES (sizeof(PAE_START) + 24)
#define MAX_INTEGER_DIGITS 4300
#define MAX_TARGETS 64
#define MAX_ROW_VALUE 1e30f
#define DIGEST_BYTES 32
#define SIGNATURE_BYTES 64 /* of Ed25519 */

_Static_assert(sizeof(PAYLOAD_TYPE) - 1 == 55, "the length of the type is in PAE_START");

/* ------------------------------------------------------------------------------------------------ JSON, in place */

typedef struct {
    const uint8_t *text;
    size_t at;
    size_t end;
    int depth;
    size_t num_keys;            /* keys of all objects that are open */
    size_t keys[ICIS_MAX_KEYS]; /* where they start */
} json;

typedef struct { /* a JSON string between its quotes, escapes and all */
    const uint8_t *bytes;
    size_t size;
} span;

static void json_open(json *reader, const uint8_t *text, size_t size) {
    reader->text = text;
    reader->at = 0;
    reader->end = size;
    reader->depth = 0;
    reader->num_keys = 0;
}

static int peek(const json *reader) { return reader->at < reader->end ? reader->text[reader->at] : -1; }

static void skip_blanks(json *reader) {
    int next;
    while ((next = peek(reader)) == ' ' || next == '\t' || next == '\n' || next == '\r') reader->at++;
}

static int take(json *reader, char expected) {
    skip_blanks(reader);
    if (peek(reader) != (uint8_t)expected) return 0;
    reader->at++;
    return 1;
}

static int hex_digit(int byte) {
    if (byte >= '0' && byte <= '9') return byte - '0';
    if (byte >= 'a' && byte <= 'f') return byte - 'a' + 10;
    if (byte >= 'A' && byte <= 'F') return byte - 'A' + 10;
    return -1;
}

/* Read \uXXXX after its u; -1 where it is none. */
static int32_t escaped_unit(span text, size_t at) {
    int32_t unit = 0;
    if (at + 4 > text.size) return -1;
    for (size_t index = 0; index < 4; index++) {
        int digit = hex_digit(text.bytes[at + index]);
        if (digit < 0) return -1;
        unit = unit * 16 + digit;
    }
    return unit;
}

static size_t put_utf8(uint32_t point, uint8_t *out) {
    if (point < 0x80) {
        out[0] = (uint8_t)point;
        return 1;
    }
    if (point < 0x800) {
        out[0] = (uint8_t)(0xC0 | point >> 6);
        out[1] = (uint8_t)(0x80 | (point & 0x3F));
        return 2;
    }
    if (point < 0x10000) {
        out[0] = (uint8_t)(0xE0 | point >> 12);
        out[1] = (uint8_t)(0x80 | (point >> 6 & 0x3F));
        out[2] = (uint8_t)(0x80 | (point & 0x3F));
        return 3;
    }
    out[0] = (uint8_t)(0xF0 | point >> 18);
    out[1] = (uint8_t)(0x80 | (point >> 12 & 0x3F));
    out[2] = (uint8_t)(0x80 | (point >> 6 & 0x3F));
    out[3] = (uint8_t)(0x80 | (point & 0x3F));
    return 4;
}

/* Decode what is at `*at`, one character, into at most 4 bytes of UTF-8; return their number, 0 where it is no text.
 * The bytes of a character are never more than those that stand for it. Half of a surrogate pair is no text. */
static size_t decode_one(span text, size_t *at, uint8_t out[4]) {
    uint8_t byte = text.bytes[*at];
    if (byte != '\\') {
        out[0] = byte;
        *at += 1;
        return 1;
    }
    if (*at + 1 >= text.size) return 0;
    byte = text.bytes[*at + 1];
    if (byte == 'u') {
        int32_t unit = escaped_unit(text, *at + 2);
        if (unit < 0 || (unit >= 0xDC00 && unit < 0xE000)) return 0;
        *at += 6;
        if (unit < 0xD800 || unit >= 0xE000) return put_utf8((uint32_t)unit, out);
        if (*at + 6 > text.size || text.bytes[*at] != '\\' || text.bytes[*at + 1] != 'u') return 0;
        int32_t low = escaped_unit(text, *at + 2);
        if (low < 0xDC00 || low >= 0xE000) return 0;
        *at += 6;
        return put_utf8(0x10000 + ((uint32_t)(unit - 0xD800) << 10) + (uint32_t)(low - 0xDC00), out);
    }
    static const char escapes[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    const char *found = byte ? strchr(escapes, byte) : NULL;
    if (!found) return 0;
    out[0] = (uint8_t)values[found - escapes];
    *at += 2;
    return 1;
}

/* Whether a string's text is these bytes. */
static int text_is(span text, const char *expected, size_t size) {
    size_t at = 0, done = 0;
    while (at < text.size) {
        uint8_t out[4];
        size_t count = decode_one(text, &at, out);
        if (!count || done + count > size || memcmp(expected + done, out, count) != 0) return 0;
        done += count;
    }
    return done == size;
}

#define TEXT_IS(text, literal) text_is((text), (literal), sizeof(literal) - 1)

static int same_text(span one, span other) {
    size_t first = 0, second = 0;
    uint8_t left[4], right[4];
    while (first < one.size && second < other.size) {
        size_t count = decode_one(one, &first, left);
        if (!count || count != decode_one(other, &second, right) || memcmp(left, right, count) != 0) return 0;
    }
    return first == one.size && second == other.size;
}

/* Read a string; its escapes are checked, but not whether they are halves of a surrogate pair. */
static int take_string(json *reader, span *text) {
    if (!take(reader, '"')) return 0;
    size_t start = reader->at;
    for (;;) {
        int byte = peek(reader);
        if (byte < 0x20) return 0;
        if (byte == '"') break;
        reader->at++;
        if (byte != '\\') continue;
        byte = peek(reader);
        if (byte <= 0 || !strchr("\"\\/bfnrtu", byte)) return 0;
        reader->at++;
        if (byte != 'u') continue;
        span rest = {reader->text, reader->end};
        if (escaped_unit(rest, reader->at) < 0) return 0;
        reader->at += 4;
    }
    text->bytes = reader->text + start;
    text->size = reader->at - start;
    reader->at++;
    return 1;
}

/* Return the string that was read before and starts there. */
static span string_at(const json *reader, size_t start) {
    span text = {reader->text + start + 1, 0};
    while (text.bytes[text.size] != '"') text.size += text.bytes[text.size] == '\\' ? 2 : 1;
    return text;
}

static int is_digit(int byte) { return byte >= '0' && byte <= '9'; }

/* Whether a decimal number rounds to infinity in a double: the greatest that does not is below 1.7976931348623158079e308. */
static int is_infinite(span number) {
    static const char least[] = "17976931348623158079";
    long before = 0, exponent = 0, leading = 0;
    size_t at = 0, num_significant = 0;
    char significant[sizeof(least) - 1];
    int seen_point = 0, negative = 0;
    for (; at < number.size && number.bytes[at] != 'e' && number.bytes[at] != 'E'; at++) {
        int byte = number.bytes[at];
        if (byte == '.') seen_point = 1;
        if (!is_digit(byte)) continue;
        if (!num_significant && byte == '0') {
            if (seen_point) leading++;
            continue;
        }
        if (!seen_point) before++;
        if (num_significant < sizeof(significant)) significant[num_significant++] = (char)byte;
    }
    if (!num_significant) return 0;
    for (; at < number.size; at++) {
        if (number.bytes[at] == '-') negative = 1;
        if (is_digit(number.bytes[at]) && exponent < 100000000) exponent = exponent * 10 + (number.bytes[at] - '0');
    }
    long magnitude = (before ? before - 1 : -leading - 1) + (negative ? -exponent : exponent);
    if (magnitude != 308) return magnitude > 308;
    while (num_significant < sizeof(significant)) significant[num_significant++] = '0';
    return memcmp(significant, least, sizeof(significant)) >= 0;
}

/* Read a number; `is_whole` says whether it is an integer. */
static int take_number(json *reader, span *number, int *is_whole) {
    skip_blanks(reader);
    size_t start = reader->at;
    if (peek(reader) == '-') reader->at++;
    if (!is_digit(peek(reader))) return 0;
    size_t first = reader->at;
    if (peek(reader) == '0')
        reader->at++;
    else
        while (is_digit(peek(reader))) reader->at++;
    size_t num_digits = reader->at - first;
    *is_whole = 1;
    if (peek(reader) == '.') {
        reader->at++;
        if (!is_digit(peek(reader))) return 0;
        while (is_digit(peek(reader))) reader->at++;
        *is_whole = 0;
    }
    if (peek(reader) == 'e' || peek(reader) == 'E') {
        reader->at++;
        if (peek(reader) == '+' || peek(reader) == '-') reader->at++;
        if (!is_digit(peek(reader))) return 0;
        while (is_digit(peek(reader))) reader->at++;
        *is_whole = 0;
    }
    if (*is_whole && num_digits > MAX_INTEGER_DIGITS) return 0;
    number->bytes = reader->text + start;
    number->size = reader->at - start;
    return 1;
}

static int take_word(json *reader, const char *word) {
    size_t size = strlen(word);
    skip_blanks(reader);
    if (reader->end - reader->at < size || memcmp(reader->text + reader->at, word, size) != 0) return 0;
    reader->at += size;
    return 1;
}

/* Walk an object: `open_object`, then `next_key` until it returns 0 (the end) or -1 (no JSON, or a key twice). */
static int open_object(json *reader, size_t *num_before) {
    *num_before = reader->num_keys;
    return reader->depth < ICIS_MAX_DEPTH && take(reader, '{') && ++reader->depth;
}

static int next_key(json *reader, size_t num_before, int *is_first, span *key) {
    if (take(reader, '}')) {
        reader->depth--;
        reader->num_keys = num_before;
        return 0;
    }
    if (!*is_first && !take(reader, ',')) return -1;
    *is_first = 0;
    skip_blanks(reader);
    size_t start = reader->at;
    if (!take_string(reader, key) || !take(reader, ':') || reader->num_keys == ICIS_MAX_KEYS) return -1;
    for (size_t index = num_before; index < reader->num_keys; index++)
        if (same_text(string_at(reader, reader->keys[index]), *key)) return -1;
    reader->keys[reader->num_keys++] = start;
    return 1;
}

static int open_array(json *reader) { return reader->depth < ICIS_MAX_DEPTH && take(reader, '[') && ++reader->depth; }

/* Whether another value follows: 1, 0 at the end, -1 where it is no JSON. */
static int next_value(json *reader, int *is_first) {
    if (take(reader, ']')) {
        reader->depth--;
        return 0;
    }
    if (!*is_first && !take(reader, ',')) return -1;
    *is_first = 0;
    return 1;
}

/* Skip a value of any kind. With `plain` set it must be what Python writes again: no infinity, no half character. */
static int skip_value(json *reader, int plain) {
    span text;
    int is_first = 1, is_whole, more;
    skip_blanks(reader);
    switch (peek(reader)) {
        case '"':
            if (!take_string(reader, &text)) return 0;
            for (size_t at = 0; plain && at < text.size;) {
                uint8_t out[4];
                if (!decode_one(text, &at, out)) return 0;
            }
            return 1;
        case '{': {
            size_t num_before;
            span key;
            if (!open_object(reader, &num_before)) return 0;
            while ((more = next_key(reader, num_before, &is_first, &key)) > 0) {
                for (size_t at = 0; plain && at < key.size;) {
                    uint8_t out[4];
                    if (!decode_one(key, &at, out)) return 0;
                }
                if (!skip_value(reader, plain)) return 0;
            }
            return more == 0;
        }
        case '[':
            if (!open_array(reader)) return 0;
            while ((more = next_value(reader, &is_first)) > 0)
                if (!skip_value(reader, plain)) return 0;
            return more == 0;
        case 't': return take_word(reader, "true");
        case 'f': return take_word(reader, "false");
        case 'n': return take_word(reader, "null");
        default: return take_number(reader, &text, &is_whole) && !(plain && !is_whole && is_infinite(text));
    }
}

static int at_end(json *reader) {
    skip_blanks(reader);
    return reader->at == reader->end;
}

/* Read a whole number from 0 to INT64_MAX. */
static int take_count(json *reader, int64_t *count) {
    span number;
    int is_whole;
    if (!take_number(reader, &number, &is_whole) || !is_whole) return 0;
    *count = 0;
    size_t at = number.bytes[0] == '-';
    if (at && !(number.size == 2 && number.bytes[1] == '0')) return 0; /* -0 is 0 */
    for (; at < number.size; at++) {
        int digit = number.bytes[at] - '0';
        if (*count > (INT64_MAX - digit) / 10) return 0;
        *count = *count * 10 + digit;
    }
    return 1;
}

static int is_utf8(const uint8_t *text, size_t size) {
    for (size_t at = 0; at < size;) {
        uint8_t byte = text[at];
        size_t count = byte < 0x80 ? 1 : byte >= 0xC2 && byte < 0xE0 ? 2 : byte >= 0xE0 && byte < 0xF0 ? 3 : byte >= 0xF0 && byte < 0xF5 ? 4 : 0;
        if (!count || count > size - at) return 0;
        for (size_t index = 1; index < count; index++)
            if ((text[at + index] & 0xC0) != 0x80) return 0;
        if (byte == 0xE0 && text[at + 1] < 0xA0) return 0;
        if (byte == 0xED && text[at + 1] >= 0xA0) return 0;
        if (byte == 0xF0 && text[at + 1] < 0x90) return 0;
        if (byte == 0xF4 && text[at + 1] >= 0x90) return 0;
        at += count;
    }
    return 1;
}

/* ------------------------------------------------------------------------------------------------------- envelope */

static int base64_digit(uint8_t byte, int is_url) {
    if (byte >= 'A' && byte <= 'Z') return byte - 'A';
    if (byte >= 'a' && byte <= 'z') return byte - 'a' + 26;
    if (byte >= '0' && byte <= '9') return byte - '0' + 52;
    if (byte == (is_url ? '-' : '+')) return 62;
    if (byte == (is_url ? '_' : '/')) return 63;
    return -1;
}

/* Decode a JSON string of base64 with padding; return the number of bytes, or -1. Nothing is written where `out` is NULL. */
static int64_t base64_decode(span text, int is_url, uint8_t *out, size_t room) {
    size_t at = 0, size = 0, num_digits = 0, num_pads = 0;
    uint32_t bits = 0;
    while (at < text.size) {
        uint8_t byte[4];
        if (decode_one(text, &at, byte) != 1) return -1;
        if (byte[0] == '=') {
            if (++num_pads > 2) return -1;
            continue;
        }
        int digit = base64_digit(byte[0], is_url);
        if (digit < 0 || num_pads) return -1;
        bits = bits << 6 | (uint32_t)digit;
        if (++num_digits % 4 == 0) {
            if (room - size < 3) return -1;
            if (out) {
                out[size] = (uint8_t)(bits >> 16);
                out[size + 1] = (uint8_t)(bits >> 8);
                out[size + 2] = (uint8_t)bits;
            }
            size += 3;
            bits = 0;
        }
    }
    size_t rest = num_digits % 4;
    if (rest == 1 || (rest ? num_pads != 4 - rest : num_pads != 0)) return -1;
    if (rest && room - size < rest - 1) return -1;
    if (rest && out) out[size] = (uint8_t)(bits >> (rest == 2 ? 4 : 10));
    if (rest == 3 && out) out[size + 1] = (uint8_t)(bits >> 2);
    return (int64_t)(rest ? size + rest - 1 : size);
}

static void put_hex(const uint8_t *bytes, size_t size, char *out) {
    for (size_t index = 0; index < size; index++) {
        out[2 * index] = "0123456789abcdef"[bytes[index] >> 4];
        out[2 * index + 1] = "0123456789abcdef"[bytes[index] & 15];
    }
    out[2 * size] = '\0';
}

/* The id of a key: SHA-256 of its canonical JSON, as securesystemslib computes it. */
static int key_id(const uint8_t key[ICIS_KEY_BYTES], char out[65]) {
    static const char start[] = "{\"keytype\":\"ed25519\",\"keyval\":{\"public\":\"", end[] = "\"},\"scheme\":\"ed25519\"}";
    char text[sizeof(start) + 2 * ICIS_KEY_BYTES + sizeof(end)];
    uint8_t digest[DIGEST_BYTES];
    memcpy(text, start, sizeof(start) - 1);
    put_hex(key, ICIS_KEY_BYTES, text + sizeof(start) - 1);
    memcpy(text + sizeof(start) - 1 + 2 * ICIS_KEY_BYTES, end, sizeof(end));
    if (!EVP_Digest(text, strlen(text), digest, NULL, EVP_sha256(), NULL)) return 0;
    put_hex(digest, DIGEST_BYTES, out);
    return 1;
}

/* Whether a key is one of the points whose order divides eight, in any encoding: everybody can sign with it. */
static int is_of_small_order(const uint8_t key[ICIS_KEY_BYTES]) {
    static const uint8_t order_8[2][ICIS_KEY_BYTES] = {
        {0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
         0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05},
        {0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f,
         0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a},
    };
    uint8_t y[ICIS_KEY_BYTES];
    int all_zero = 1, all_ones = 1;
    memcpy(y, key, ICIS_KEY_BYTES);
    y[ICIS_KEY_BYTES - 1] &= 0x7f; /* the sign of x */
    for (size_t index = 1; index < ICIS_KEY_BYTES; index++) {
        all_zero &= y[index] == 0;
        all_ones &= y[index] == (index + 1 == ICIS_KEY_BYTES ? 0x7f : 0xff);
    }
    if (all_zero) return y[0] <= 1;
    if (all_ones) return y[0] >= 0xec && y[0] <= 0xee; /* -1, and 0 and 1 once more, as 2^255 - 19 is the field */
    return memcmp(y, order_8[0], ICIS_KEY_BYTES) == 0 || memcmp(y, order_8[1], ICIS_KEY_BYTES) == 0;
}

/* Whether a signature by a key fits; -1 where libcrypto fails. */
static int signature_fits(const uint8_t key[ICIS_KEY_BYTES], const uint8_t *signature, size_t signature_size,
                          const uint8_t *message, size_t size) {
    int fits = -1;
    EVP_PKEY *public_key = EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, NULL, key, ICIS_KEY_BYTES);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    if (public_key && context && EVP_DigestVerifyInit(context, NULL, NULL, NULL, public_key) == 1)
        fits = EVP_DigestVerify(context, signature, signature_size, message, size) == 1;
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(public_key);
    return fits;
}

typedef struct {
    span payload;
    span type;
    size_t signatures; /* where the list starts */
    int has_type;
    int has_signatures;
} envelope;

static icis_status read_envelope(json *reader, envelope *found) {
    size_t num_before;
    int is_first = 1, more, has_payload = 0;
    span key;
    memset(found, 0, sizeof(*found));
    if (!open_object(reader, &num_before)) return ICIS_CORRUPT;
    while ((more = next_key(reader, num_before, &is_first, &key)) > 0) {
        if (TEXT_IS(key, "payload") && (has_payload = 1)) {
            if (!take_string(reader, &found->payload)) return ICIS_CORRUPT;
        } else if (TEXT_IS(key, "payloadType") && (found->has_type = 1)) {
            if (!take_string(reader, &found->type)) return ICIS_CORRUPT;
        } else {
            if (TEXT_IS(key, "signatures")) {
                found->has_signatures = 1;
                found->signatures = reader->at;
            }
            if (!skip_value(reader, 0)) return ICIS_CORRUPT;
        }
    }
    if (more < 0 || !at_end(reader) || !has_payload || !found->has_type || !found->has_signatures) return ICIS_CORRUPT;
    if (TEXT_IS(found->type, TRUSTED_KEYS_TYPE)) return ICIS_OTHER_CONTENT;
    return TEXT_IS(found->type, PAYLOAD_TYPE) ? ICIS_OK : ICIS_CORRUPT;
}

/* Read one signature; its id must be a text, and its bytes base64 of either alphabet. */
static int take_signature(json *reader, span *id, span *signature) {
    size_t num_before;
    int is_first = 1, more, has_id = 0, has_signature = 0;
    span key;
    if (!open_object(reader, &num_before)) return 0;
    while ((more = next_key(reader, num_before, &is_first, &key)) > 0) {
        if (TEXT_IS(key, "keyid") && (has_id = 1)) {
            if (!take_string(reader, id)) return 0;
        } else if (TEXT_IS(key, "sig") && (has_signature = 1)) {
            if (!take_string(reader, signature)) return 0;
        } else if (!skip_value(reader, 0)) {
            return 0;
        }
    }
    return more == 0 && has_id && has_signature;
}

/* Check that every signature is one, that no key id stands twice, and that one by a trusted key fits. */
static icis_status check_signatures(const icis_device *device, json *reader, const envelope *found,
                                    const uint8_t *message, size_t message_size, char signed_by[65]) {
    int is_first = 1, more, fits = 0;
    reader->at = found->signatures;
    reader->depth = 0;
    reader->num_keys = 0;
    if (!open_array(reader)) return ICIS_CORRUPT;
    while ((more = next_value(reader, &is_first)) > 0) {
        span id, text;
        uint8_t signature[SIGNATURE_BYTES];
        size_t start = reader->at;
        if (!take_signature(reader, &id, &text)) return ICIS_CORRUPT;
        json earlier = *reader;
        earlier.at = found->signatures;
        int earlier_first = 1;
        if (!open_array(&earlier)) return ICIS_CORRUPT;
        while (next_value(&earlier, &earlier_first) > 0 && earlier.at < start) {
            span other, ignored;
            skip_blanks(&earlier);
            if (earlier.at >= start) break;
            if (!take_signature(&earlier, &other, &ignored) || same_text(other, id)) return ICIS_CORRUPT;
        }
        if (text.size > ICIS_SIGNATURE_BYTES) return ICIS_CORRUPT;
        int is_url = base64_decode(text, 0, NULL, SIZE_MAX) < 0;
        int64_t size = base64_decode(text, is_url, NULL, SIZE_MAX);
        if (size < 0) return ICIS_CORRUPT;
        if (size != SIGNATURE_BYTES) continue; /* by a key of another kind, whose signatures may be of any size */
        base64_decode(text, is_url, signature, sizeof(signature));
        for (size_t index = 0; index < device->num_keys && !fits; index++) {
            char trusted[65];
            if (!key_id(device->keys[index], trusted)) return ICIS_FAULT;
            if (!text_is(id, trusted, 64) || is_of_small_order(device->keys[index])) continue;
            int outcome = signature_fits(device->keys[index], signature, (size_t)size, message, message_size);
            if (outcome < 0) return ICIS_FAULT;
            if (outcome) {
                fits = 1;
                memcpy(signed_by, trusted, 65);
            }
        }
    }
    if (more < 0) return ICIS_CORRUPT;
    return fits ? ICIS_OK : ICIS_UNSIGNED;
}

/* ----------------------------------------------------------------------------------------------- what is in it */

typedef struct { /* a class name, decoded */
    const char *bytes;
    size_t size;
} name;

typedef struct {
    int64_t schema, version, expires, follows_version;
    int has_expiry, has_follows, complete, has_targets, is_target, states_arbiter;
    uint8_t *follows_digest; /* 64 characters */
    span base_fingerprint;
    name *names; /* added, then replaced, then removed */
    size_t num_added, num_replaced, num_removed;
    const uint8_t *rows, *arbiter; /* float32, little-endian, perhaps unaligned; arbiter is NULL where there is none */
    size_t num_rows, width;
} update;

static int is_sha256(span text) {
    if (text.size != 64) return 0;
    for (size_t index = 0; index < 64; index++) {
        int byte = text.bytes[index];
        if (!is_digit(byte) && !(byte >= 'a' && byte <= 'f')) return 0;
    }
    return 1;
}

/* Read a string into `room` bytes; return its size, or -1 where it is no text or does not fit. */
static int64_t decode_text(span text, uint8_t *out, size_t room) {
    size_t size = 0;
    for (size_t at = 0; at < text.size;) {
        uint8_t bytes[4];
        size_t count = decode_one(text, &at, bytes);
        if (!count || size + count > room) return -1;
        memcpy(out + size, bytes, count);
        size += count;
    }
    return (int64_t)size;
}

/* Read a text of 64 hexadecimal digits, which escapes may stand for. */
static int take_sha256(json *reader, uint8_t out[64]) {
    span text;
    if (!take_string(reader, &text) || decode_text(text, out, 64) != 64) return 0;
    span decoded = {out, 64};
    return is_sha256(decoded);
}

/* Read a list of names and decode them where they stand. */
static int take_names(json *reader, uint8_t *text, name *names, size_t room, size_t *count) {
    int is_first = 1, more;
    *count = 0;
    if (!open_array(reader)) return 0;
    while ((more = next_value(reader, &is_first)) > 0) {
        span raw;
        if (!take_string(reader, &raw) || *count == room) return 0;
        uint8_t *out = text + (raw.bytes - text);
        int64_t size = decode_text(raw, out, raw.size); /* in place: no character grows */
        if (size <= 0 || size > ICIS_MAX_NAME_BYTES) return 0;
        names[*count].bytes = (const char *)out;
        names[*count].size = (size_t)size;
        *count += 1;
    }
    return more == 0;
}

static int days_in_month(int year, int month) {
    static const int days[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    int is_leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    return days[month - 1] + (month == 2 && is_leap);
}

/* Read a time such as 2026-11-23T09:00:00Z as seconds since 1970. */
static int take_time(json *reader, int64_t *seconds) {
    static const char form[] = "dddd-dd-ddTdd:dd:ddZ";
    uint8_t text[sizeof(form) - 1];
    span raw;
    if (!take_string(reader, &raw) || decode_text(raw, text, sizeof(text)) != (int64_t)sizeof(text)) return 0;
    for (size_t index = 0; index < sizeof(text); index++)
        if (form[index] == 'd' ? !is_digit(text[index]) : text[index] != (uint8_t)form[index]) return 0;
#define TWO(at) ((text[at] - '0') * 10 + (text[(at) + 1] - '0'))
    int year = TWO(0) * 100 + TWO(2), month = TWO(5), day = TWO(8), hour = TWO(11), minute = TWO(14), second = TWO(17);
#undef TWO
    if (year < 1 || month < 1 || month > 12 || day < 1 || day > days_in_month(year, month)) return 0;
    if (hour > 23 || minute > 59 || second > 59) return 0;
    int64_t before = year - 1, days = before * 365 + before / 4 - before / 100 + before / 400 - 719162;
    for (int each = 1; each < month; each++) days += days_in_month(year, each);
    *seconds = ((days + day - 1) * 24 + hour) * 3600 + minute * 60 + second;
    return 1;
}

static int take_flag(json *reader, int *flag) {
    *flag = take_word(reader, "true");
    return *flag || take_word(reader, "false");
}

static int take_follows(json *reader, update *found, uint8_t digest[64]) {
    size_t num_before;
    int is_first = 1, more, has_version = 0, has_digest = 0;
    span key;
    if (take_word(reader, "null")) return 1;
    found->has_follows = 1;
    if (!open_object(reader, &num_before)) return 0;
    while ((more = next_key(reader, num_before, &is_first, &key)) > 0) {
        if (TEXT_IS(key, "version") && (has_version = 1)) {
            if (!take_count(reader, &found->follows_version)) return 0;
        } else if (TEXT_IS(key, "digest") && (has_digest = 1)) {
            if (!take_sha256(reader, digest)) return 0;
        } else {
            return 0;
        }
    }
    found->follows_digest = digest;
    return more == 0 && has_version && has_digest;
}

static int take_targets(json *reader, update *found, const icis_device *device) {
    int is_first = 1, more, count = 0;
    if (!open_array(reader)) return 0;
    while ((more = next_value(reader, &is_first)) > 0) {
        uint8_t digest[64];
        if (!take_sha256(reader, digest) || ++count > MAX_TARGETS) return 0;
        found->has_targets = 1;
        if (device->target_digest && memcmp(digest, device->target_digest, 64) == 0) found->is_target = 1;
    }
    return more == 0;
}

/* Whether this key is the one that `bit` stands for; notes that it was there. */
static int is_field(span key, const char *field, unsigned bit, unsigned *fields) {
    if (!text_is(key, field, strlen(field))) return 0;
    *fields |= bit;
    return 1;
}

enum { PLAIN_FIELDS = 0x3FF, ARBITER_FIELDS = 0x7FF, BOUND_FIELDS = 0x3FFF };

typedef struct {
    uint8_t base[64], follows[64];
} digests;

/* Read the JSON of the metadata entry `class_update`, whose bytes may be overwritten. */
static int read_fields(const icis_device *device, uint8_t *text, size_t size, name *names, size_t room, digests *held,
                       update *found) {
    json reader;
    size_t num_before, start;
    unsigned fields = 0;
    int is_first = 1, more, is_whole;
    size_t lists[3] = {0, 0, 0}; /* where the lists of names start: they are decoded last, as that changes the text */
    span key, number;
    json_open(&reader, text, size);
    if (!open_object(&reader, &num_before)) return 0;
    while ((more = next_key(&reader, num_before, &is_first, &key)) > 0) {
        start = reader.at;
        if (is_field(key, "schema_version", 0x1, &fields)) {
            if (!take_count(&reader, &found->schema)) return 0;
        } else if (is_field(key, "base_fingerprint", 0x2, &fields)) {
            if (!take_sha256(&reader, held->base)) return 0;
        } else if (is_field(key, "rows_sha256", 0x4, &fields)) { /* finds damage in what nobody signed */
            if (!skip_value(&reader, 0)) return 0;
        } else if (is_field(key, "added", 0x8, &fields)) {
            lists[0] = start;
            if (!skip_value(&reader, 1)) return 0;
        } else if (is_field(key, "replaced", 0x10, &fields)) {
            lists[1] = start;
            if (!skip_value(&reader, 1)) return 0;
        } else if (is_field(key, "removed", 0x20, &fields)) {
            lists[2] = start;
            if (!skip_value(&reader, 1)) return 0;
        } else if (is_field(key, "version", 0x40, &fields)) {
            if (!take_count(&reader, &found->version) || found->version < 1) return 0;
        } else if (is_field(key, "expires", 0x80, &fields)) {
            found->has_expiry = !take_word(&reader, "null");
            if (found->has_expiry && !take_time(&reader, &found->expires)) return 0;
        } else if (is_field(key, "probe_seed", 0x100, &fields)) { /* of the self-test of another reader */
            if (!take_number(&reader, &number, &is_whole) || !is_whole) return 0;
            if (number.bytes[0] == '-' && !(number.size == 2 && number.bytes[1] == '0')) return 0;
        } else if (is_field(key, "provenance", 0x200, &fields)) {
            skip_blanks(&reader);
            if (peek(&reader) != '{' || !skip_value(&reader, 1)) return 0;
        } else if (is_field(key, "arbiter_sha256", 0x400, &fields)) {
            found->states_arbiter = !take_word(&reader, "null");
            if (found->states_arbiter && !skip_value(&reader, 0)) return 0;
        } else if (is_field(key, "follows", 0x800, &fields)) {
            if (!take_follows(&reader, found, held->follows)) return 0;
        } else if (is_field(key, "complete", 0x1000, &fields)) {
            if (!take_flag(&reader, &found->complete)) return 0;
        } else if (is_field(key, "targets", 0x2000, &fields)) {
            if (!take_targets(&reader, found, device)) return 0;
        } else {
            return 0;
        }
    }
    if (more < 0 || !at_end(&reader)) return 0;
    static const unsigned expected[] = {PLAIN_FIELDS, ARBITER_FIELDS, BOUND_FIELDS};
    if (found->schema < 1 || found->schema > 3 || fields != expected[found->schema - 1]) return 0;
    if (found->schema == 2 && !found->states_arbiter) return 0;
    size_t counts[3], total = 0;
    for (size_t list = 0; list < 3; list++) {
        json_open(&reader, text, size);
        reader.at = lists[list];
        if (!take_names(&reader, text, names + total, room - total, &counts[list])) return 0;
        total += counts[list];
    }
    found->names = names;
    found->num_added = counts[0];
    found->num_replaced = counts[1];
    found->num_removed = counts[2];
    for (size_t one = 0; one < total; one++)
        for (size_t other = 0; other < one; other++)
            if (names[one].size == names[other].size && memcmp(names[one].bytes, names[other].bytes, names[one].size) == 0) return 0;
    if (!total && !found->complete) return 0;
    return !found->complete || (!found->num_replaced && !found->num_removed && !found->has_follows);
}

typedef struct {
    int64_t rows, columns, start, end;
    int is_there;
} tensor;

static int take_pair(json *reader, int64_t *first, int64_t *second) {
    int is_first = 1;
    return open_array(reader) && next_value(reader, &is_first) > 0 && take_count(reader, first) &&
           next_value(reader, &is_first) > 0 && take_count(reader, second) && next_value(reader, &is_first) == 0;
}

static int take_tensor(json *reader, tensor *found) {
    size_t num_before;
    int is_first = 1, more;
    unsigned fields = 0;
    span key, type;
    if (found->is_there++ || !open_object(reader, &num_before)) return 0;
    while ((more = next_key(reader, num_before, &is_first, &key)) > 0) {
        if (is_field(key, "dtype", 1, &fields)) {
            if (!take_string(reader, &type) || !TEXT_IS(type, "F32")) return 0;
        } else if (is_field(key, "shape", 2, &fields)) {
            if (!take_pair(reader, &found->rows, &found->columns)) return 0;
        } else if (is_field(key, "data_offsets", 4, &fields)) {
            if (!take_pair(reader, &found->start, &found->end)) return 0;
        } else {
            return 0;
        }
    }
    return more == 0 && fields == 7;
}

/* Read `__metadata__`, whose one entry is the text of the update. */
static int take_metadata(json *reader, span *text) {
    size_t num_before;
    int is_first = 1, more, is_there = 0;
    span key, other;
    if (!open_object(reader, &num_before)) return 0;
    while ((more = next_key(reader, num_before, &is_first, &key)) > 0) {
        if (TEXT_IS(key, "class_update")) is_there = 1;
        if (!take_string(reader, TEXT_IS(key, "class_update") ? text : &other)) return 0;
    }
    return more == 0 && is_there;
}

static float float_at(const uint8_t *bytes) {
    uint32_t word = (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
    float value;
    memcpy(&value, &word, sizeof(value));
    return value;
}

static int are_in_range(const uint8_t *bytes, size_t count) {
    for (size_t index = 0; index < count; index++)
        if (!(fabsf(float_at(bytes + 4 * index)) <= MAX_ROW_VALUE)) return 0; /* no number is in no range */
    return 1;
}

/* Read a payload, whose bytes may be overwritten; a signature over it was checked. */
static icis_status read_payload(const icis_device *device, uint8_t *payload, size_t size, name *names, size_t room,
                                digests *held, update *found) {
    json reader;
    uint64_t header_size = 0;
    size_t num_before;
    int is_first = 1, more, has_metadata = 0;
    span key, text = {NULL, 0};
    tensor rows = {0, 0, 0, 0, 0}, arbiter = {0, 0, 0, 0, 0};
    if (size < 8) return ICIS_CORRUPT;
    for (size_t index = 0; index < 8; index++) header_size |= (uint64_t)payload[index] << (8 * index);
    if (header_size > ICIS_MAX_HEADER_BYTES || header_size > size - 8) return ICIS_CORRUPT;
    uint8_t *header = payload + 8, *body = header + header_size;
    size_t body_size = size - 8 - (size_t)header_size;
    /* Blanks may come after a header, but not before it. */
    if (!header_size || header[0] != '{' || !is_utf8(header, (size_t)header_size)) return ICIS_CORRUPT;
    json_open(&reader, header, (size_t)header_size);
    if (!open_object(&reader, &num_before)) return ICIS_CORRUPT;
    while ((more = next_key(&reader, num_before, &is_first, &key)) > 0) {
        if (TEXT_IS(key, "__metadata__") && (has_metadata = 1)) {
            if (!take_metadata(&reader, &text)) return ICIS_CORRUPT;
        } else if (TEXT_IS(key, "rows")) {
            if (!take_tensor(&reader, &rows)) return ICIS_CORRUPT;
        } else if (TEXT_IS(key, "arbiter")) {
            if (!take_tensor(&reader, &arbiter)) return ICIS_CORRUPT;
        } else {
            return ICIS_CORRUPT;
        }
    }
    if (more < 0 || !at_end(&reader) || !has_metadata || !rows.is_there) return ICIS_CORRUPT;
    uint8_t *fields = header + (text.bytes - header);
    int64_t fields_size = decode_text(text, fields, text.size); /* in place */
    if (fields_size < 0 || !read_fields(device, fields, (size_t)fields_size, names, room, held, found))
        return ICIS_CORRUPT;
    if (found->states_arbiter != arbiter.is_there) return ICIS_CORRUPT;
    const tensor *tensors[] = {&rows, &arbiter};
    uint64_t total = 0;
    for (size_t index = 0; index < (arbiter.is_there ? 2u : 1u); index++) {
        const tensor *each = tensors[index];
        uint64_t limit = body_size / 4;
        if (each->columns && (uint64_t)each->rows > limit / (uint64_t)each->columns) return ICIS_CORRUPT;
        uint64_t bytes = 4 * (uint64_t)each->rows * (uint64_t)each->columns;
        if (each->start > each->end || (uint64_t)(each->end - each->start) != bytes || (uint64_t)each->end > body_size)
            return ICIS_CORRUPT;
        total += bytes;
    }
    /* One after the other, without a hole, to the end. */
    if (total != body_size) return ICIS_CORRUPT;
    if (arbiter.is_there ? !((rows.start == 0 && arbiter.start == rows.end) || (arbiter.start == 0 && rows.start == arbiter.end)) : rows.start != 0)
        return ICIS_CORRUPT;
    size_t num_rows = found->num_added + found->num_replaced;
    if ((uint64_t)rows.rows != num_rows || rows.columns < 2) return ICIS_CORRUPT;
    if (arbiter.is_there && ((uint64_t)arbiter.rows != num_rows || arbiter.columns != ICIS_NUM_STATISTICS)) return ICIS_CORRUPT;
    found->num_rows = num_rows;
    found->width = (size_t)rows.columns;
    found->rows = body + rows.start;
    found->arbiter = arbiter.is_there ? body + arbiter.start : NULL;
    if (!are_in_range(found->rows, num_rows * found->width)) return ICIS_CORRUPT;
    if (found->arbiter && !are_in_range(found->arbiter, num_rows * ICIS_NUM_STATISTICS)) return ICIS_CORRUPT;
    return ICIS_OK;
}

/* ------------------------------------------------------------------------------------------------------- slots */

static int is_named(const icis_name *slot, const name *wanted) {
    return slot->length == wanted->size && memcmp(slot->bytes, wanted->bytes, wanted->size) == 0;
}

static size_t slot_of(const icis_device *device, const icis_slots *slots, const name *wanted) {
    for (size_t slot = 0; slot < device->capacity; slot++)
        if (is_named(&slots->names[slot], wanted)) return slot;
    return device->capacity;
}

static void clear_slot(const icis_device *device, icis_slots *slots, size_t slot) {
    memset(slots->weight + slot * device->feature_dim, 0, device->feature_dim * sizeof(float));
    slots->bias[slot] = ICIS_EMPTY_BIAS;
    if (slots->arbiter) memset(slots->arbiter + slot * ICIS_NUM_STATISTICS, 0, ICIS_NUM_STATISTICS * sizeof(float));
    slots->names[slot].length = 0;
}

void icis_clear_slots(const icis_device *device, icis_slots *slots) {
    for (size_t slot = 0; slot < device->capacity; slot++) clear_slot(device, slots, slot);
}

static int add_floats(EVP_MD_CTX *context, const float *values, size_t count) {
    for (size_t index = 0; index < count; index++) {
        uint32_t word;
        memcpy(&word, &values[index], sizeof(word));
        uint8_t bytes[4] = {(uint8_t)word, (uint8_t)(word >> 8), (uint8_t)(word >> 16), (uint8_t)(word >> 24)};
        if (!EVP_DigestUpdate(context, bytes, 4)) return 0;
    }
    return 1;
}

static int comes_before(const icis_name *one, const icis_name *other) {
    size_t shorter = one->length < other->length ? one->length : other->length;
    int order = memcmp(one->bytes, other->bytes, shorter);
    return order ? order < 0 : one->length < other->length;
}

/* The SHA-256 of the classes in slots, in the order of their names, as `SlotTable.digest` computes it. */
static int digest_of(const icis_device *device, const icis_slots *slots, char out[65]) {
    static const float none[ICIS_NUM_STATISTICS];
    uint8_t digest[DIGEST_BYTES];
    const icis_name *last = NULL;
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    int done = context && EVP_DigestInit_ex(context, EVP_sha256(), NULL) && EVP_DigestUpdate(context, "icis-deploy slots 1", 19);
    while (done) {
        size_t next = device->capacity;
        for (size_t slot = 0; slot < device->capacity; slot++) {
            const icis_name *each = &slots->names[slot];
            if (!each->length || (last && !comes_before(last, each))) continue;
            if (next == device->capacity || comes_before(each, &slots->names[next])) next = slot;
        }
        if (next == device->capacity) break;
        last = &slots->names[next];
        uint8_t size[4] = {(uint8_t)last->length, (uint8_t)(last->length >> 8), 0, 0};
        const float *arbiter = slots->arbiter ? slots->arbiter + next * ICIS_NUM_STATISTICS : none;
        done = EVP_DigestUpdate(context, size, 4) && EVP_DigestUpdate(context, last->bytes, last->length) &&
               add_floats(context, slots->weight + next * device->feature_dim, device->feature_dim) &&
               add_floats(context, &slots->bias[next], 1) && add_floats(context, arbiter, ICIS_NUM_STATISTICS);
    }
    done = done && EVP_DigestFinal_ex(context, digest, NULL);
    EVP_MD_CTX_free(context);
    if (done) put_hex(digest, DIGEST_BYTES, out);
    return done;
}

static void write_row(const icis_device *device, const update *change, size_t row, icis_slots *slots, size_t slot) {
    const uint8_t *values = change->rows + 4 * row * change->width;
    const name *called = &change->names[row];
    for (size_t index = 0; index < device->feature_dim; index++)
        slots->weight[slot * device->feature_dim + index] = float_at(values + 4 * index);
    slots->bias[slot] = float_at(values + 4 * device->feature_dim);
    if (slots->arbiter)
        for (size_t index = 0; index < ICIS_NUM_STATISTICS; index++)
            slots->arbiter[slot * ICIS_NUM_STATISTICS + index] =
                change->arbiter ? float_at(change->arbiter + 4 * (row * ICIS_NUM_STATISTICS + index)) : 0.0f;
    slots->names[slot].length = (uint16_t)called->size;
    memcpy(slots->names[slot].bytes, called->bytes, called->size);
}

static icis_status write_change(const icis_device *device, const update *change, const icis_slots *before, icis_slots *after) {
    size_t num_rows = change->num_rows, next = 0;
    if (change->width != device->feature_dim + 1) return ICIS_CONFLICT;
    memcpy(after->weight, before->weight, device->capacity * device->feature_dim * sizeof(float));
    memcpy(after->bias, before->bias, device->capacity * sizeof(float));
    if (after->arbiter) memcpy(after->arbiter, before->arbiter, device->capacity * ICIS_NUM_STATISTICS * sizeof(float));
    memcpy(after->names, before->names, device->capacity * sizeof(icis_name));
    if (change->complete) icis_clear_slots(device, after);
    for (size_t row = 0; row < change->num_added; row++) { /* against what was there: none of them may be removed here */
        for (size_t baked = 0; baked < device->num_baked; baked++)
            if (is_named(&device->baked_names[baked], &change->names[row])) return ICIS_CONFLICT;
        if (slot_of(device, after, &change->names[row]) < device->capacity) return ICIS_CONFLICT;
    }
    for (size_t index = change->num_added; index < num_rows + change->num_removed; index++)
        if (slot_of(device, after, &change->names[index]) == device->capacity) return ICIS_CONFLICT;
    for (size_t index = num_rows; index < num_rows + change->num_removed; index++)
        clear_slot(device, after, slot_of(device, after, &change->names[index]));
    for (size_t row = change->num_added; row < num_rows; row++)
        write_row(device, change, row, after, slot_of(device, after, &change->names[row]));
    for (size_t row = 0; row < change->num_added; row++) {
        while (next < device->capacity && after->names[next].length) next++;
        if (next == device->capacity) return ICIS_NO_ROOM;
        write_row(device, change, row, after, next);
    }
    return ICIS_OK;
}

/* ------------------------------------------------------------------------------------------------------- public */

static size_t rounded_up(size_t size) { return (size + 15) / 16 * 16; }

/* The size of the largest payload; 0 where the device's sizes make no sense. */
static size_t max_payload_bytes(const icis_device *device) {
    const size_t most = SIZE_MAX / 16;
    if (!device->capacity || !device->feature_dim || device->feature_dim > most / 4 - 1024) return 0;
    size_t row = 4 * (device->feature_dim + 1 + ICIS_NUM_STATISTICS) + 2 * ICIS_MAX_NAME_BYTES;
    if (device->capacity > (most - ICIS_PROVENANCE_BYTES) / row) return 0;
    size_t rows = device->capacity * row;
    return (rows > ICIS_TRUSTED_KEYS_BYTES ? rows : ICIS_TRUSTED_KEYS_BYTES) + ICIS_PROVENANCE_BYTES;
}

size_t icis_max_file_bytes(const icis_device *device) {
    size_t payload = max_payload_bytes(device);
    return payload ? payload / 3 * 4 + ICIS_SIGNATURE_BYTES : 0;
}

size_t icis_work_bytes(const icis_device *device) {
    size_t file = icis_max_file_bytes(device);
    if (!file || device->capacity > SIZE_MAX / 16 / (3 * sizeof(name))) return 0;
    return rounded_up(3 * device->capacity * sizeof(name)) + MAX_PAE_BYTES + file / 4 * 3 + 3;
}

static size_t put_decimal(size_t number, char *out) {
    char digits[24];
    size_t count = 0;
    do digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    for (size_t index = 0; index < count; index++) out[index] = digits[count - 1 - index];
    return count;
}

static size_t count_marks(const uint8_t *bytes, size_t size) {
    size_t count = 0;
    for (size_t at = 0; at < size; at++) count += bytes[at] == '[' || bytes[at] == '{' || bytes[at] == ',';
    return count;
}

icis_status icis_apply(const icis_device *device, const uint8_t *file, size_t file_size, void *work, size_t work_size,
                       const icis_slots *before, icis_slots *after, icis_result *result) {
    json reader;
    envelope found;
    update change;
    digests held;
    char digest[65];
    size_t limit = icis_max_file_bytes(device);
    if (!limit || !work || !before || !after || !result || before->weight == after->weight) return ICIS_FAULT;
    if (!before->arbiter != !after->arbiter) return ICIS_FAULT;
    size_t names_bytes = rounded_up(3 * device->capacity * sizeof(name));
    if (file_size > limit || work_size < names_bytes + MAX_PAE_BYTES) return ICIS_TOO_LARGE;
    if (!is_utf8(file, file_size)) return ICIS_CORRUPT;
    json_open(&reader, file, file_size);
    icis_status status = read_envelope(&reader, &found);
    if (status != ICIS_OK) return status;
    /* A bound for what else is in an envelope, as the other reader has it. */
    if (count_marks(file, file_size) - count_marks(found.payload.bytes, found.payload.size) > ICIS_MAX_ENVELOPE_MARKS)
        return ICIS_CORRUPT;
    /* The payload is decoded once, behind room for what is signed before it. */
    uint8_t *message = (uint8_t *)work + names_bytes, *payload = message + MAX_PAE_BYTES;
    size_t room = work_size - names_bytes - MAX_PAE_BYTES;
    if (found.payload.size / 4 > room / 3) return ICIS_TOO_LARGE;
    int64_t payload_size = base64_decode(found.payload, 0, payload, room);
    if (payload_size < 0) return ICIS_CORRUPT;
    char size_text[32];
    size_t num_digits = put_decimal((size_t)payload_size, size_text);
    size_text[num_digits++] = ' ';
    message = payload - num_digits - (sizeof(PAE_START) - 1);
    memcpy(message, PAE_START, sizeof(PAE_START) - 1);
    memcpy(message + sizeof(PAE_START) - 1, size_text, num_digits);
    size_t message_size = sizeof(PAE_START) - 1 + num_digits + (size_t)payload_size;
    memset(result, 0, sizeof(*result));
    status = check_signatures(device, &reader, &found, message, message_size, result->signed_by);
    if (status != ICIS_OK) return status;
    memset(&change, 0, sizeof(change));
    status = read_payload(device, payload, (size_t)payload_size, work, 3 * device->capacity, &held, &change);
    if (status != ICIS_OK) return status;
    if (memcmp(held.base, device->base_fingerprint, 64) != 0) return ICIS_WRONG_BASE;
    if (change.has_targets && !change.is_target) return ICIS_WRONG_TARGET;
    if (change.version <= device->highest_version) return ICIS_OLD_VERSION;
    if (change.has_expiry && device->now >= change.expires) return ICIS_EXPIRED;
    if (change.has_follows) {
        if (!digest_of(device, before, digest)) return ICIS_FAULT;
        if (memcmp(digest, change.follows_digest, 64) != 0) return ICIS_WRONG_ORDER;
    }
    if (change.arbiter && !after->arbiter)
        for (size_t index = 0; index < change.num_rows * ICIS_NUM_STATISTICS; index++)
            if (float_at(change.arbiter + 4 * index) != 0.0f) return ICIS_NO_ARBITER;
    status = write_change(device, &change, before, after);
    result->version = change.version;
    result->num_added = change.num_added;
    result->num_replaced = change.num_replaced;
    result->num_removed = change.num_removed;
    return status;
}

const char *icis_status_text(icis_status status) {
    static const char *const texts[] = {
        "taken",
        "larger than any update for this device",
        "no class update, or a damaged one",
        "a set of trusted keys and no class update",
        "no signature by a trusted key that fits the file",
        "made for another head",
        "signed for other bundles",
        "not newer than every version that this device held",
        "expired",
        "follows a state that this device is not in",
        "rows with an arbiter, which this model does not take",
        "classes that do not go with those of this device",
        "more classes than empty slots",
        "libcrypto failed, or an argument makes no sense",
    };
    return (size_t)status < sizeof(texts) / sizeof(texts[0]) ? texts[status] : "unknown";
}

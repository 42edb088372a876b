/* libFuzzer's entry: files, and payloads that are signed here, so that a fuzzer gets behind the signature.
 *
 *     clang -g -O1 -fsanitize=fuzzer,address,undefined fuzz.c icis_update.c -lcrypto -o fuzz
 *     ./fuzz -max_total_time=60 corpus
 *
 * The first byte of an input says which: even, a file as it comes; odd, a payload. With -DICIS_FILES instead of
 * -fsanitize=fuzzer any compiler makes a program that tries the files that it is given.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/evp.h>

#include "icis_update.h"

#define CAPACITY 4
#define FEATURE_DIM 3
#define TYPE "application/vnd.icis-deploy.class-update.v1+safetensors"

static const uint8_t secret[32] = {1};
static uint8_t key[1][ICIS_KEY_BYTES];
static char key_name[65];

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void prepare(void) {
    size_t size = ICIS_KEY_BYTES;
    unsigned char digest[32];
    char text[256], hexadecimal[65];
    EVP_PKEY *private_key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, secret, 32);
    EVP_PKEY_get_raw_public_key(private_key, key[0], &size);
    EVP_PKEY_free(private_key);
    for (int index = 0; index < 32; index++) snprintf(hexadecimal + 2 * index, 3, "%02x", key[0][index]);
    snprintf(text, sizeof(text), "{\"keytype\":\"ed25519\",\"keyval\":{\"public\":\"%s\"},\"scheme\":\"ed25519\"}", hexadecimal);
    EVP_Digest(text, strlen(text), digest, NULL, EVP_sha256(), NULL);
    for (int index = 0; index < 32; index++) snprintf(key_name + 2 * index, 3, "%02x", digest[index]);
}

/* Return a file with this payload, signed by the key that is trusted here. */
static uint8_t *signed_file(const uint8_t *payload, size_t size, size_t *file_size) {
    size_t signature_size = 64;
    uint8_t signature[64];
    char start[128];
    int start_size = snprintf(start, sizeof(start), "DSSEv1 %zu " TYPE " %zu ", strlen(TYPE), size);
    uint8_t *message = malloc((size_t)start_size + size);
    memcpy(message, start, (size_t)start_size);
    if (size) memcpy(message + start_size, payload, size);
    EVP_PKEY *private_key = EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, NULL, secret, 32);
    EVP_MD_CTX *context = EVP_MD_CTX_new();
    EVP_DigestSignInit(context, NULL, NULL, NULL, private_key);
    EVP_DigestSign(context, signature, &signature_size, message, (size_t)start_size + size);
    EVP_MD_CTX_free(context);
    EVP_PKEY_free(private_key);
    free(message);
    unsigned char base64[96];
    EVP_EncodeBlock(base64, signature, 64);
    char *file = malloc((size + 2) / 3 * 4 + 512);
    size_t at = (size_t)sprintf(file, "{\"payload\":\"");
    at += (size_t)EVP_EncodeBlock((unsigned char *)file + at, payload, (int)size);
    at += (size_t)sprintf(file + at, "\",\"payloadType\":\"" TYPE "\",\"signatures\":[{\"keyid\":\"%s\",\"sig\":\"%s\"}]}", key_name, (char *)base64);
    *file_size = at;
    return (uint8_t *)file;
}

#ifdef ICIS_FILES /* where there is no libFuzzer: each argument is an input */
int main(int num_arguments, char **paths) {
    for (int index = 1; index < num_arguments; index++) {
        static uint8_t data[1 << 20];
        FILE *file = fopen(paths[index], "rb");
        if (!file) return 2;
        size_t size = fread(data, 1, sizeof(data), file);
        fclose(file);
        LLVMFuzzerTestOneInput(data, size);
    }
    return 0;
}
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static char base[65];
    static float weight[2][CAPACITY * FEATURE_DIM], bias[2][CAPACITY], arbiter[2][CAPACITY * 5];
    static icis_name names[2][CAPACITY], baked[1];
    icis_result result;
    if (!size) return 0;
    if (!key_name[0]) {
        prepare();
        memset(base, 'a', 64);
        baked[0].length = 5;
        memcpy(baked[0].bytes, "horse", 5);
    }
    icis_device device = {CAPACITY, FEATURE_DIM, base, base, baked, 1, (const uint8_t(*)[ICIS_KEY_BYTES])key, 1, 0, 0};
    icis_slots before = {weight[0], bias[0], arbiter[0], names[0]}, after = {weight[1], bias[1], arbiter[1], names[1]};
    icis_clear_slots(&device, &before);
    memcpy(names[0][1].bytes, "zebra", 5);
    names[0][1].length = 5;
    /* Files and work memory of exactly their sizes, so that a byte too many is found. */
    size_t file_size = size - 1, work_size = icis_work_bytes(&device);
    uint8_t *file = data[0] % 2 ? signed_file(data + 1, size - 1, &file_size) : malloc(file_size ? file_size : 1);
    if (data[0] % 2 == 0 && file_size) memcpy(file, data + 1, file_size);
    void *work = malloc(work_size);
    icis_status status = icis_apply(&device, file, file_size, work, work_size, &before, &after, &result);
    if (status == ICIS_OK && data[0] % 2 == 0) { /* nobody but this program has the key */
        for (size_t slot = 0; slot < CAPACITY; slot++)
            if (names[1][slot].length > ICIS_MAX_NAME_BYTES) abort();
    }
    if (status == ICIS_OK && result.version < 1) abort();
    free(work);
    free(file);
    return 0;
}

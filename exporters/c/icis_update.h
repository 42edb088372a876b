/* Read a signed class update of icis-deploy on a device without Python, and write its rows into slots.
 *
 * One file, C99, libcrypto for Ed25519 and SHA-256. All memory is the caller's: nothing is allocated here, before or
 * after the signature is checked (libcrypto allocates what its own contexts need). No function keeps a pointer, writes
 * to the file that it reads, or has state of its own, so that threads need no lock.
 *
 * The rules, and their order, are those of icis_deploy/runtime/changes/rules.py. An update is read only after a trusted
 * key's signature over it was checked. What is left to the caller: the journal (versions, the last time seen, states to
 * roll back to), sets of trusted keys, the guard, and classes that were taught or disabled on the device.
 *
 * This reader is stricter than the one in Python where that keeps it simple: ICIS_MAX_DEPTH, ICIS_MAX_KEYS, key ids
 * that are texts, at most 64 entries of `targets`, at most three names for each slot.
 */
#ifndef ICIS_UPDATE_H
#define ICIS_UPDATE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define ICIS_MAX_NAME_BYTES 1024      /* of a class name, in UTF-8 */
#define ICIS_NUM_STATISTICS 5         /* coefficients of a row's arbiter */
#define ICIS_KEY_BYTES 32             /* of an Ed25519 public key, as it is in the last bytes of its DER */
#define ICIS_EMPTY_BIAS (-60000.0f)   /* bias of an empty slot */
#define ICIS_MAX_DEPTH 64             /* of JSON */
#define ICIS_MAX_KEYS 1024            /* of JSON objects that are open at once */
#define ICIS_MAX_ENVELOPE_MARKS 4096  /* '[', '{' and ',' in an envelope besides its payload */
#define ICIS_MAX_HEADER_BYTES (1u << 24)
#define ICIS_PROVENANCE_BYTES (1u << 20)
#define ICIS_SIGNATURE_BYTES (1u << 16)
#define ICIS_TRUSTED_KEYS_BYTES (1u << 16) /* sets of trusted keys bound the size of a file as well */

typedef enum {
    ICIS_OK = 0,
    ICIS_TOO_LARGE,     /* larger than any update for this device, or than the work memory: not read further */
    ICIS_CORRUPT,       /* no envelope, or no class update in it */
    ICIS_OTHER_CONTENT, /* a set of trusted keys, which this reader leaves to others */
    ICIS_UNSIGNED,      /* no signature by a trusted key that fits */
    ICIS_WRONG_BASE,    /* made for another head */
    ICIS_WRONG_TARGET,  /* signed for other bundles */
    ICIS_OLD_VERSION,   /* not newer than every version that the device ever held */
    ICIS_EXPIRED,
    ICIS_WRONG_ORDER,   /* follows a state that the device is not in */
    ICIS_NO_ARBITER,    /* rows with an arbiter, for a model that takes none */
    ICIS_CONFLICT,      /* an added class is known, or a replaced or removed one is in no slot; or rows of another width */
    ICIS_NO_ROOM,       /* more classes than empty slots */
    ICIS_FAULT          /* libcrypto failed, or an argument makes no sense */
} icis_status;

typedef struct {
    uint16_t length; /* in bytes; 0: the slot is empty */
    char bytes[ICIS_MAX_NAME_BYTES]; /* UTF-8, not terminated; a name may hold any byte */
} icis_name;

typedef struct { /* the slots of a head; the caller's memory, `capacity` of each */
    float *weight;    /* capacity x feature_dim: what the model's input `slot_weight` is fed */
    float *bias;      /* capacity: `slot_bias` */
    float *arbiter;   /* capacity x 5: `slot_arbiter`; NULL for a model without that input */
    icis_name *names; /* capacity */
} icis_slots;

typedef struct { /* what a device is, from its manifest, and what it remembers */
    size_t capacity;
    size_t feature_dim;
    const char *base_fingerprint; /* 64 hexadecimal digits */
    const char *target_digest;    /* the same; NULL refuses every update that names bundles */
    const icis_name *baked_names; /* classes that are in the model itself */
    size_t num_baked;
    const uint8_t (*keys)[ICIS_KEY_BYTES]; /* trusted keys */
    size_t num_keys;
    int64_t highest_version; /* the greatest that it ever held, rolled back or not */
    int64_t now; /* seconds since 1970: its clock, or the last time it saw if the clock is behind that */
} icis_device;

typedef struct {
    int64_t version; /* to be kept before the slots are used */
    size_t num_added;
    size_t num_replaced;
    size_t num_removed;
    char signed_by[65]; /* key id: SHA-256, terminated */
} icis_result;

/* Return how many bytes of work memory the largest file for this device needs; 0 where its sizes make no sense. */
size_t icis_work_bytes(const icis_device *device);

/* Return the size of the largest file that is looked at; 0 where the sizes make no sense. */
size_t icis_max_file_bytes(const icis_device *device);

/* Empty all slots, as an export without new classes leaves them. */
void icis_clear_slots(const icis_device *device, icis_slots *slots);

/* Verify a file and write `before` with its change into `after`.
 *
 * `before` is only read; `after` is other memory, whose contents mean something only after ICIS_OK: so a device that
 * flips a pointer between two requests never answers with half a change. `work` is aligned as malloc's memory is.
 */
icis_status icis_apply(const icis_device *device, const uint8_t *file, size_t file_size, void *work, size_t work_size,
                       const icis_slots *before, icis_slots *after, icis_result *result);

/* Return a status in words, for a log. */
const char *icis_status_text(icis_status status);

#ifdef __cplusplus
}
#endif
#endif

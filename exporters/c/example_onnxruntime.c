/* Classify prepared images with an updatable model in ONNX Runtime's C API, before and after a class update.
 *
 *     cc -std=c11 example_onnxruntime.c icis_update.c -I onnxruntime/include -L onnxruntime/lib -lonnxruntime -lcrypto
 *     ./a.out bundle/model.onnx KEY BASE_FINGERPRINT FEATURE_DIM CAPACITY update.icis < image.f32
 *
 * KEY is the public key in 64 hexadecimal digits, the fingerprint and the sizes are in bundle/manifest.json; image.f32 is
 * one prepared image, float32, in the shape of the model's input. Exit code 1: refused or failed, 2: not called like this.
 * A device would keep the version in memory that outlives it before it uses new slots (here: result.version), and the
 * classes of the model itself in `baked_names`. What ends the process early is left to the system to free.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <onnxruntime_c_api.h>

#include "icis_update.h"

static const OrtApi *ort;

static void check(OrtStatus *status) {
    if (!status) return;
    fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
    exit(1);
}

static OrtValue *tensor(OrtMemoryInfo *memory, float *values, const int64_t *shape, size_t rank) {
    OrtValue *value = NULL;
    size_t count = 1;
    for (size_t axis = 0; axis < rank; axis++) count *= (size_t)shape[axis];
    check(ort->CreateTensorWithDataAsOrtValue(memory, values, count * sizeof(float), shape, rank, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &value));
    return value;
}

static void *memory_of(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) {
        fprintf(stderr, "no memory for %zu x %zu bytes\n", count, size);
        exit(1);
    }
    return memory;
}

/* Without an input for arbiters the slots have none: an update that needs them is then refused, not half applied. */
static icis_slots new_slots(const icis_device *device, int has_arbiter) {
    icis_slots slots = {memory_of(device->capacity * device->feature_dim, sizeof(float)), memory_of(device->capacity, sizeof(float)),
                        has_arbiter ? memory_of(device->capacity * ICIS_NUM_STATISTICS, sizeof(float)) : NULL,
                        memory_of(device->capacity, sizeof(icis_name))};
    icis_clear_slots(device, &slots);
    return slots;
}

static void free_slots(icis_slots *slots) {
    free(slots->weight);
    free(slots->bias);
    free(slots->arbiter);
    free(slots->names);
}

/* Print the output with the greatest score: a class of the model, or the name of a slot. */
static void classify(OrtSession *session, OrtMemoryInfo *memory, float *image, const int64_t *shape, size_t rank,
                     const char *const *names, size_t num_inputs, const icis_device *device, const icis_slots *slots) {
    const int64_t rows[] = {(int64_t)device->capacity, (int64_t)device->feature_dim};
    const int64_t coefficients[] = {(int64_t)device->capacity, ICIS_NUM_STATISTICS};
    OrtValue *inputs[] = {tensor(memory, image, shape, rank), tensor(memory, slots->weight, rows, 2),
                          tensor(memory, slots->bias, rows, 1), slots->arbiter ? tensor(memory, slots->arbiter, coefficients, 2) : NULL};
    OrtValue *output = NULL;
    OrtAllocator *allocator = NULL;
    OrtTensorTypeAndShapeInfo *info = NULL;
    char *scores_name = NULL;
    float *scores = NULL;
    size_t count = 0, best = 0;
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    check(ort->SessionGetOutputName(session, 0, allocator, &scores_name));
    const char *outputs[] = {scores_name};
    check(ort->Run(session, NULL, names, (const OrtValue *const *)inputs, num_inputs, outputs, 1, &output));
    check(ort->GetTensorMutableData(output, (void **)&scores));
    check(ort->GetTensorTypeAndShape(output, &info));
    check(ort->GetTensorShapeElementCount(info, &count));
    for (size_t index = 1; index < count; index++) best = scores[index] > scores[best] ? index : best;
    if (best < count - device->capacity)
        printf("class %zu of the model, score %g\n", best, scores[best]);
    else {
        const icis_name *name = &slots->names[best - (count - device->capacity)];
        printf("%.*s, score %g\n", name->length, name->bytes, scores[best]);
    }
    check(ort->AllocatorFree(allocator, scores_name));
    ort->ReleaseTensorTypeAndShapeInfo(info);
    ort->ReleaseValue(output);
    for (size_t index = 0; index < 4; index++) ort->ReleaseValue(inputs[index]);
}

int main(int count, char **given) {
    if (count != 7 || strlen(given[2]) != 2 * ICIS_KEY_BYTES || strlen(given[3]) != 64) return 2;
    uint8_t key[1][ICIS_KEY_BYTES];
    for (size_t index = 0; index < ICIS_KEY_BYTES; index++)
        if (sscanf(given[2] + 2 * index, "%2hhx", &key[0][index]) != 1) return 2;
    icis_device device = {0};
    device.base_fingerprint = given[3];
    device.feature_dim = strtoul(given[4], NULL, 10);
    device.capacity = strtoul(given[5], NULL, 10);
    device.keys = (const uint8_t(*)[ICIS_KEY_BYTES])key;
    device.num_keys = 1;
    device.now = (int64_t)time(NULL);
    size_t work_size = icis_work_bytes(&device), file_limit = icis_max_file_bytes(&device);
    if (!work_size) return 2;

    OrtEnv *env = NULL;
    OrtSessionOptions *options = NULL;
    OrtSession *session = NULL;
    OrtMemoryInfo *memory = NULL;
    OrtAllocator *allocator = NULL;
    OrtTypeInfo *type = NULL;
    const OrtTensorTypeAndShapeInfo *input = NULL;
    char *input_name = NULL;
    ort = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (!ort) return 1;
    /* Not warnings: one says of every slot that it is an input with a default, which is what slots are. */
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "icis", &env));
    check(ort->CreateSessionOptions(&options));
    check(ort->CreateSession(env, given[1], options, &session));
    check(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    check(ort->GetAllocatorWithDefaultOptions(&allocator));
    check(ort->SessionGetInputName(session, 0, allocator, &input_name));
    check(ort->SessionGetInputTypeInfo(session, 0, &type));
    check(ort->CastTypeInfoToTensorInfo(type, &input));
    size_t rank = 0, image_size = 1, num_overridable = 0;
    int64_t shape[8];
    check(ort->GetDimensionsCount(input, &rank));
    if (rank > 8) return 1;
    check(ort->GetDimensions(input, shape, rank));
    for (size_t axis = 0; axis < rank; axis++) image_size *= (size_t)(shape[axis] = shape[axis] < 0 ? 1 : shape[axis]);
    check(ort->SessionGetOverridableInitializerCount(session, &num_overridable));
    float *image = memory_of(image_size, sizeof(float));
    if (fread(image, sizeof(float), image_size, stdin) != image_size) return 2;

    const char *names[] = {input_name, "slot_weight", "slot_bias", "slot_arbiter"};
    size_t num_inputs = 1 + num_overridable; /* the last one where the model takes arbiters */
    if (num_inputs != 3 && num_inputs != 4) {
        fprintf(stderr, "the model has no slots: export it with --head updatable\n");
        return 1;
    }
    icis_slots slots = new_slots(&device, num_inputs == 4), next = new_slots(&device, num_inputs == 4);
    classify(session, memory, image, shape, rank, names, num_inputs, &device, &slots);
    FILE *file = fopen(given[6], "rb");
    if (!file) return 2;
    uint8_t *bytes = memory_of(file_limit + 1, 1), *work = memory_of(work_size, 1);
    size_t size = fread(bytes, 1, file_limit + 1, file);
    fclose(file);
    icis_result result;
    icis_status status = icis_apply(&device, bytes, size, work, work_size, &slots, &next, &result);
    if (status != ICIS_OK)
        fprintf(stderr, "refused: %s\n", icis_status_text(status));
    else {
        printf("version %lld by %.16s\n", (long long)result.version, result.signed_by);
        classify(session, memory, image, shape, rank, names, num_inputs, &device, &next);
    }

    free(work);
    free(bytes);
    free_slots(&next);
    free_slots(&slots);
    free(image);
    check(ort->AllocatorFree(allocator, input_name));
    ort->ReleaseTypeInfo(type);
    ort->ReleaseMemoryInfo(memory);
    ort->ReleaseSession(session);
    ort->ReleaseSessionOptions(options);
    ort->ReleaseEnv(env);
    return status == ICIS_OK ? 0 : 1;
}

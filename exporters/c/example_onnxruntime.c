/* Classify prepared images with an updatable model in ONNX Runtime's C API, before and after a class update.
 *
 *     cc -std=c11 example_onnxruntime.c icis_update.c -I onnxruntime/include -L onnxruntime/lib -lonnxruntime -lcrypto
 *     ./a.out bundle/model.onnx KEY BASE_FINGERPRINT FEATURE_DIM CAPACITY update.icis < image.f32
 *
 * KEY is the public key in 64 hexadecimal digits, the fingerprint and the sizes are in bundle/manifest.json; image.f32 is
 * one prepared image, float32, in the shape of the model's input. A device would keep the version in memory that
 * outlives it before it uses new slots (here: result.version), and the classes of the model itself in `baked_names`.
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

static icis_slots new_slots(const icis_device *device) {
    icis_slots slots = {calloc(device->capacity * device->feature_dim, sizeof(float)), calloc(device->capacity, sizeof(float)),
                        calloc(device->capacity * ICIS_NUM_STATISTICS, sizeof(float)), calloc(device->capacity, sizeof(icis_name))};
    if (!slots.weight || !slots.bias || !slots.arbiter || !slots.names) exit(1);
    icis_clear_slots(device, &slots);
    return slots;
}

/* Print the output with the greatest score: a class of the model, or the name of a slot. */
static void classify(OrtSession *session, OrtMemoryInfo *memory, float *image, const int64_t *shape, size_t rank,
                     const char *const *names, size_t num_inputs, const icis_device *device, const icis_slots *slots) {
    const int64_t rows[] = {(int64_t)device->capacity, (int64_t)device->feature_dim};
    const int64_t coefficients[] = {(int64_t)device->capacity, ICIS_NUM_STATISTICS};
    OrtValue *inputs[] = {tensor(memory, image, shape, rank), tensor(memory, slots->weight, rows, 2),
                          tensor(memory, slots->bias, rows, 1), tensor(memory, slots->arbiter, coefficients, 2)};
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
    check(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "icis", &env));
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
    float *image = calloc(image_size, sizeof(float));
    if (!image || fread(image, sizeof(float), image_size, stdin) != image_size) return 2;

    const char *names[] = {input_name, "slot_weight", "slot_bias", "slot_arbiter"};
    size_t num_inputs = 1 + num_overridable; /* the last one where the model takes arbiters */
    icis_slots slots = new_slots(&device), next = new_slots(&device);
    classify(session, memory, image, shape, rank, names, num_inputs, &device, &slots);
    FILE *file = fopen(given[6], "rb");
    uint8_t *bytes = malloc(file_limit + 1), *work = malloc(work_size);
    if (!file || !bytes || !work) return 2;
    size_t size = fread(bytes, 1, file_limit + 1, file);
    icis_result result;
    icis_status status = icis_apply(&device, bytes, size, work, work_size, &slots, &next, &result);
    if (status != ICIS_OK) {
        fprintf(stderr, "refused: %s\n", icis_status_text(status));
        return 1;
    }
    printf("version %lld by %.16s\n", (long long)result.version, result.signed_by);
    classify(session, memory, image, shape, rank, names, num_inputs, &device, &next);
    return 0;
}

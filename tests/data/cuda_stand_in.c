/* A stand-in for the library of NVIDIA's driver, libcuda.so.1, as far as this plugin calls it. The memory of its GPUs is malloc's, and a
 * copy is done when somebody waits for it.
 *
 * The file that CUDA_STAND_IN names says, read anew for each call, how it behaves: lines of NAME=NUMBER.
 *   count     GPUs (1)
 *   version   newest CUDA that the driver runs (13000 for 13.0)
 *   major, minor
 *             compute capability (9, 0); major@N for GPU N alone
 *   total     bytes of each GPU (8 GiB)
 *   context   bytes that a context takes of it (300 MiB)
 *   others    bytes that other processes have of it (0)
 *   limit     bytes that can be allocated on each GPU; what is beyond is out of memory (what is free)
 *   pinnable  bytes of host memory that can be allocated as pinned (all)
 *   lost      what each call that needs a context returns, as after a kernel that failed (0: nothing is lost)
 *   download  what copies of rows to the host return (0)
 *   loading   how kernels are loaded (2: when they are wanted; 1: at once)
 *   flags     of a GPU's primary context before anybody has set any (0)
 *   any function's name
 *             what it returns in place of success, having done nothing; NAME@N for GPU N alone
 *
 * The file CUDA_STAND_IN_LOG gets a line for each load of the library ("load"), each cuInit ("init"), flags that a primary context is to have
 * ("flags@0=4"), and a balance whenever that changes: "contexts=1 allocations=2 bytes=64 pinned=1 pins=0 streams=1 events=1 modules=0".
 *
 * What no driver forgives ends the process with a line on stderr: a copy beyond an allocation, what is freed twice or was never there, a
 * call without a context, a context that is given back while something is in it, a GPU number that cuDeviceGet never gave.
 *
 * A module is a library that the compiler's stand-in (nvrtc_stand_in.c) has made; its kernel runs on the processor, one thread after another.
 *
 * Compiled with -DWITHOUT_EVENTS it lacks functions, with -DWITHOUT_LATER_FUNCTIONS those that may be missing; with -DFOR_GSTREAMER it has what
 * GStreamer's library for CUDA wants besides, whose contexts are its own.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201,
    CONTEXT_IS_DESTROYED = 709, ALREADY_REGISTERED = 712
};
enum { GPUS = 8, DEPTH = 16 };

typedef unsigned long long Address;
typedef struct { int gpu, retained, destroyed; } Context;
enum Kind { ALLOCATION, PINNED, PIN, STREAM, EVENT, MODULE, KINDS };
typedef struct Thing { enum Kind kind; Context *context; char *start; size_t bytes; struct Thing *next; } Thing;
/* What a module has. */
typedef void Run(const void *argument, const unsigned blocks[2], const unsigned threads[2]);
/* A stream is a thing with a list of copies and runs of kernels; an event is one that knows its stream. */
typedef struct Copy {
    void *to;
    const void *from;
    size_t bytes;
    Thing *stream;
    Run *run; /* with the argument at `to`, in place of a copy */
    unsigned blocks[2], threads[2];
    struct Copy *next;
} Copy;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int initialized;
static Context *primary[GPUS];
static Thing *things;
static Copy *copies;
static _Thread_local Context *stack[DEPTH];
static _Thread_local int depth;

static void note(const char *what) {
    const char *name = getenv("CUDA_STAND_IN_LOG");
    FILE *log = name ? fopen(name, "a") : NULL;
    if (log) {
        fprintf(log, "%s\n", what);
        fclose(log);
    }
}

static void misuse(const char *call, const char *what) {
    fprintf(stderr, "libcuda stand-in: %s: %s\n", call, what);
    abort();
}

__attribute__((constructor)) static void loaded(void) { note("load"); }

static long long control(const char *name, long long otherwise) {
    const char *file = getenv("CUDA_STAND_IN");
    FILE *control = file ? fopen(file, "r") : NULL;
    char line[100];
    if (!control) return otherwise;
    while (fgets(line, sizeof line, control)) {
        size_t length = strlen(name);
        if (!strncmp(line, name, length) && line[length] == '=') otherwise = atoll(line + length + 1);
    }
    fclose(control);
    return otherwise;
}

static long long of_gpu(const char *name, int gpu, long long otherwise) {
    char of_one[60];
    snprintf(of_one, sizeof of_one, "%s@%d", name, gpu);
    return control(of_one, control(name, otherwise));
}

static int outcome(const char *call, int gpu) { return initialized ? (int)of_gpu(call, gpu, SUCCESS) : NOT_INITIALIZED; }

static int gpus(void) {
    int count = (int)control("count", 1);
    return count < GPUS ? count : GPUS;
}

static size_t held(const Context *context, enum Kind kind) {
    size_t bytes = 0;
    for (Thing *thing = things; thing; thing = thing->next)
        if (thing->kind == kind && (!context || thing->context == context)) bytes += thing->bytes;
    return bytes;
}

static void note_balance(void) {
    int contexts = 0, count[KINDS] = {0};
    char line[200];
    for (int gpu = 0; gpu < GPUS; gpu++) contexts += primary[gpu] != NULL;
    for (Thing *thing = things; thing; thing = thing->next) count[thing->kind]++;
    snprintf(line, sizeof line, "contexts=%d allocations=%d bytes=%zu pinned=%d pins=%d streams=%d events=%d modules=%d", contexts, count[ALLOCATION],
             held(NULL, ALLOCATION), count[PINNED], count[PIN], count[STREAM], count[EVENT], count[MODULE]);
    note(line);
}

static Context *current(const char *call) {
    if (!depth) misuse(call, "no context is current");
    return stack[depth - 1];
}

/* What a call that needs a context returns before it does anything. */
static int in_context(const char *call) {
    Context *context = current(call);
    int lost = (int)of_gpu("lost", context->gpu, SUCCESS);
    if (context->destroyed) return CONTEXT_IS_DESTROYED;
    return lost ? lost : outcome(call, context->gpu);
}

static Thing *add(const char *call, enum Kind kind, char *start, size_t bytes) {
    Thing *thing = malloc(sizeof *thing);
    *thing = (Thing){kind, current(call), start, bytes, things};
    if (!thing->start) thing->start = (char *)thing;
    things = thing;
    note_balance();
    return thing;
}

static Thing *find(const char *call, enum Kind kind, const void *start) {
    for (Thing *thing = things; thing; thing = thing->next)
        if (thing->kind == kind && thing->start == start) {
            if (thing->context != current(call)) misuse(call, "of another context");
            return thing;
        }
    misuse(call, "of what is not there");
    return NULL;
}

static void forget(Thing *gone) {
    Thing **place = &things;
    while (*place != gone) place = &(*place)->next;
    *place = gone->next;
    if (gone->kind == ALLOCATION || gone->kind == PINNED) free(gone->start);
    free(gone);
}

static int give_back(const char *call, enum Kind kind, void *start) {
    int result = in_context(call);
    Thing *thing = find(call, kind, start);
    if (result != SUCCESS) return result;
    for (Copy *copy = copies; copy; copy = copy->next)
        if (copy->stream == thing) misuse(call, "copies are under way");
    forget(thing);
    note_balance();
    return SUCCESS;
}

/* The context and all that is in it is gone; its handle still points to something. */
static void destroy(Context *context) {
    Thing *next;
    context->destroyed = 1;
    primary[context->gpu] = NULL;
    for (Thing *thing = things; thing; thing = next) {
        next = thing->next;
        if (thing->context == context) forget(thing);
    }
    note_balance();
}

/* One call at a time. */
#define LOCKED(body)                 \
    do {                             \
        int result_;                 \
        pthread_mutex_lock(&lock);   \
        result_ = (body);            \
        pthread_mutex_unlock(&lock); \
        return result_;              \
    } while (0)

int cuInit(unsigned flags) {
    int result = (int)control("cuInit", SUCCESS);
    (void)flags;
    note("init");
    if (result == SUCCESS && gpus() == 0) result = NO_DEVICE;
    initialized |= result == SUCCESS;
    return result;
}

int cuDriverGetVersion(int *version) {
    *version = (int)control("version", 13000);
    return (int)control("cuDriverGetVersion", SUCCESS);
}

int cuGetErrorName(int code, const char **name) {
    static const struct { int code; const char *name; } names[] = {
        {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"}, {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"}, {NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
        {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"}, {700, "CUDA_ERROR_ILLEGAL_ADDRESS"}, {999, "CUDA_ERROR_UNKNOWN"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].code == code) {
            *name = names[i].name;
            return SUCCESS;
        }
    *name = NULL;
    return INVALID_VALUE;
}

int cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : code == NO_DEVICE ? "no CUDA-capable device is detected" : NULL;
    return *text ? SUCCESS : INVALID_VALUE;
}

/* NVIDIA's compiler asks the driver for more than is written down, where there is one, and does without. */
int cuGetExportTable(const void **table, const void *id) { return (void)id, *table = NULL, 500; }

int cuDeviceGetCount(int *count) {
    *count = gpus();
    return outcome("cuDeviceGetCount", 0);
}

/* A device's number is 100 more than the GPU's; GStreamer takes them for the same. */
#ifdef FOR_GSTREAMER
enum { FIRST_DEVICE = 0 };
#else
enum { FIRST_DEVICE = 100 };
#endif

int cuDeviceGet(int *device, int gpu) {
    *device = gpu + FIRST_DEVICE;
    return gpu < 0 || gpu >= gpus() ? INVALID_DEVICE : outcome("cuDeviceGet", gpu);
}

static int gpu_of(const char *call, int device) {
    if (device < FIRST_DEVICE || device >= FIRST_DEVICE + GPUS) misuse(call, "no device");
    return device - FIRST_DEVICE;
}

int cuDeviceGetName(char *name, int bytes, int device) {
    int gpu = gpu_of("cuDeviceGetName", device);
    snprintf(name, (size_t)bytes, "Stand-in %d", gpu);
    return outcome("cuDeviceGetName", gpu);
}

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    int gpu = gpu_of("cuDeviceGetAttribute", device);
#ifdef FOR_GSTREAMER
    enum { TEXTURE_ALIGNMENT = 14 };
    if (attribute == TEXTURE_ALIGNMENT) return *value = 512, SUCCESS;
    if (attribute != 75 && attribute != 76) return *value = 0, SUCCESS;
#endif
    if (attribute != 75 && attribute != 76) misuse("cuDeviceGetAttribute", "not known to this stand-in");
    *value = (int)(attribute == 75 ? of_gpu("major", gpu, 9) : of_gpu("minor", gpu, 0));
    return outcome("cuDeviceGetAttribute", gpu);
}

int cuDeviceGetPCIBusId(char *id, int bytes, int device) {
    int gpu = gpu_of("cuDeviceGetPCIBusId", device);
    snprintf(id, (size_t)bytes, "0000:%02x:00.0", gpu + 1);
    return outcome("cuDeviceGetPCIBusId", gpu);
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    int gpu = gpu_of("cuDevicePrimaryCtxGetState", device);
    *flags = (unsigned)of_gpu("flags", gpu, 0);
    *active = primary[gpu] != NULL;
    return outcome("cuDevicePrimaryCtxGetState", gpu);
}

static int retain(void **context, int device) {
    int gpu = gpu_of("cuDevicePrimaryCtxRetain", device), result = outcome("cuDevicePrimaryCtxRetain", gpu);
    if (result != SUCCESS) return result;
    if (!primary[gpu]) {
        primary[gpu] = calloc(1, sizeof *primary[gpu]);
        primary[gpu]->gpu = gpu;
        note_balance();
    }
    primary[gpu]->retained++;
    *context = primary[gpu];
    return SUCCESS;
}

int cuDevicePrimaryCtxRetain(void **context, int device) { LOCKED(retain(context, device)); }

static int release(int device) {
    int gpu = gpu_of("cuDevicePrimaryCtxRelease", device);
    Context *context = primary[gpu];
    int lost = (int)of_gpu("lost", gpu, SUCCESS);
    if (!context) return INVALID_CONTEXT;
    if (--context->retained) return lost;
    for (Thing *thing = things; thing && !lost; thing = thing->next)
        if (thing->context == context) misuse("cuDevicePrimaryCtxRelease", "something is left in the context");
    destroy(context);
    return lost;
}

int cuDevicePrimaryCtxRelease_v2(int device) { LOCKED(release(device)); }

/* What an application may do under everybody: for tests. */
static int reset(int device) {
    Context *context = primary[gpu_of("cuDevicePrimaryCtxReset", device)];
    if (context) destroy(context);
    return SUCCESS;
}

int cuDevicePrimaryCtxReset_v2(int device) { LOCKED(reset(device)); }

int cuCtxPushCurrent_v2(void *handle) {
    Context *context = handle;
    int result = outcome("cuCtxPushCurrent_v2", context->gpu);
    if (context->destroyed) return CONTEXT_IS_DESTROYED;
    if (result != SUCCESS) return result;
    if (depth == DEPTH) misuse("cuCtxPushCurrent", "contexts pile up");
    stack[depth++] = context;
    return SUCCESS;
}

int cuCtxPopCurrent_v2(void **context) {
    Context *was = current("cuCtxPopCurrent");
    if (context) *context = was;
    depth--;
    return SUCCESS;
}

/* For tests: null where none is. */
int cuCtxGetCurrent(void **context) {
    *context = depth ? stack[depth - 1] : NULL;
    return SUCCESS;
}

static size_t room(const Context *context) {
    long long total = control("total", 8LL << 30), taken = control("context", 300 << 20) + control("others", 0);
    long long room = total - taken - (long long)held(context, ALLOCATION);
    return room > 0 ? (size_t)room : 0;
}

static int info(size_t *available, size_t *total) {
    int result = in_context("cuMemGetInfo_v2");
    if (result != SUCCESS) return result;
    *available = room(current("cuMemGetInfo_v2"));
    *total = (size_t)control("total", 8LL << 30);
    return SUCCESS;
}

int cuMemGetInfo_v2(size_t *available, size_t *total) { LOCKED(info(available, total)); }

static int allocate(Address *address, size_t bytes) {
    const char *call = "cuMemAlloc_v2";
    int result = in_context(call);
    char *start;
    Context *context = current(call);
    if (result != SUCCESS) return result;
    if (!bytes) return INVALID_VALUE;
    if (bytes > room(context)) return OUT_OF_MEMORY;
    if (held(context, ALLOCATION) + bytes > (unsigned long long)control("limit", 1LL << 60)) return OUT_OF_MEMORY;
    start = malloc(bytes);
    if (!start) return OUT_OF_MEMORY;
    memset(start, 0xa5, bytes);
    *address = (Address)(size_t)add(call, ALLOCATION, start, bytes)->start;
    return SUCCESS;
}

int cuMemAlloc_v2(Address *address, size_t bytes) { LOCKED(allocate(address, bytes)); }

int cuMemFree_v2(Address address) { LOCKED(give_back("cuMemFree_v2", ALLOCATION, (void *)(size_t)address)); }

static int allocate_pinned(void **start, size_t bytes) {
    const char *call = "cuMemHostAlloc";
    int result = in_context(call);
    if (result != SUCCESS) return result;
    if (!bytes) return INVALID_VALUE;
    if (held(NULL, PINNED) + bytes > (unsigned long long)control("pinnable", 1LL << 60)) return OUT_OF_MEMORY;
    *start = malloc(bytes);
    if (!*start) return OUT_OF_MEMORY;
    memset(*start, 0xa5, bytes);
    add(call, PINNED, *start, bytes);
    return SUCCESS;
}

int cuMemHostAlloc(void **start, size_t bytes, unsigned flags) {
    (void)flags;
    LOCKED(allocate_pinned(start, bytes));
}

int cuMemFreeHost(void *start) { LOCKED(give_back("cuMemFreeHost", PINNED, start)); }

static int pin(void *start, size_t bytes) {
    const char *call = "cuMemHostRegister_v2";
    int result = in_context(call);
    if (result != SUCCESS) return result;
    if (!start || !bytes) return INVALID_VALUE;
    for (Thing *thing = things; thing; thing = thing->next) {
        int is_host = thing->kind == PIN || thing->kind == PINNED;
        if (is_host && thing->start < (char *)start + bytes && (char *)start < thing->start + thing->bytes) return ALREADY_REGISTERED;
    }
    add(call, PIN, start, bytes);
    return SUCCESS;
}

int cuMemHostRegister_v2(void *start, size_t bytes, unsigned flags) {
    (void)flags;
    LOCKED(pin(start, bytes));
}

int cuMemHostUnregister(void *start) { LOCKED(give_back("cuMemHostUnregister", PIN, start)); }

static int make(const char *call, enum Kind kind, void **handle) {
    int result = in_context(call);
    if (result == SUCCESS) *handle = add(call, kind, NULL, 0);
    return result;
}

int cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    LOCKED(make("cuStreamCreate", STREAM, stream));
}

int cuStreamDestroy_v2(void *stream) { LOCKED(give_back("cuStreamDestroy_v2", STREAM, stream)); }

/* Memory of a GPU, of any context where none is named. */
static void expect_allocated(const char *call, const char *start, size_t bytes, const Context *context) {
    int inside = 0;
    for (Thing *thing = things; thing; thing = thing->next)
        inside |= thing->kind == ALLOCATION && (!context || thing->context == context) && start >= thing->start &&
                  start + bytes <= thing->start + thing->bytes;
    if (!inside || !bytes) misuse(call, "a copy beyond what was allocated");
}

static void append(Copy copy) {
    Copy **end = &copies;
    while (*end) end = &(*end)->next;
    *end = malloc(sizeof copy);
    **end = copy;
}

static int enqueue(const char *call, void *to, const void *from, size_t bytes, const char *on_gpu, void *stream) {
    int result = in_context(call);
    Thing *queue = find(call, STREAM, stream);
    expect_allocated(call, on_gpu, bytes, NULL);
    if (result == SUCCESS) append((Copy){.to = to, .from = from, .bytes = bytes, .stream = queue});
    return result;
}

int cuMemcpyHtoDAsync_v2(Address to, const void *from, size_t bytes, void *stream) {
    char *on_gpu = (char *)(size_t)to;
    LOCKED(enqueue("cuMemcpyHtoDAsync_v2", on_gpu, from, bytes, on_gpu, stream));
}

/* At once; what an application calls. */
static int upload(Address to, const void *from, size_t bytes) {
    const char *call = "cuMemcpyHtoD_v2";
    int result = in_context(call);
    expect_allocated(call, (char *)(size_t)to, bytes, current(call));
    if (result == SUCCESS) memcpy((void *)(size_t)to, from, bytes);
    return result;
}

int cuMemcpyHtoD_v2(Address to, const void *from, size_t bytes) { LOCKED(upload(to, from, bytes)); }

int cuMemcpyDtoHAsync_v2(void *to, Address from, size_t bytes, void *stream) {
    const char *on_gpu = (const char *)(size_t)from;
    LOCKED(enqueue("cuMemcpyDtoHAsync_v2", to, on_gpu, bytes, on_gpu, stream));
}

static int enqueue_on_gpu(const char *call, Address to, Context *to_context, Address from, Context *from_context, size_t bytes, void *stream) {
    expect_allocated(call, (char *)(size_t)from, bytes, from_context);
    expect_allocated(call, (char *)(size_t)to, bytes, to_context);
    return enqueue(call, (char *)(size_t)to, (char *)(size_t)from, bytes, (char *)(size_t)to, stream);
}

int cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void *stream) {
    const char *call = "cuMemcpyDtoDAsync_v2";
    LOCKED(enqueue_on_gpu(call, to, current(call), from, current(call), bytes, stream));
}

int cuMemcpyPeerAsync(Address to, void *to_context, Address from, void *from_context, size_t bytes, void *stream) {
    LOCKED(enqueue_on_gpu("cuMemcpyPeerAsync", to, to_context, from, from_context, bytes, stream));
}

/* The image is the name of a library. */
static int load(void **module, const char *image) {
    const char *call = "cuModuleLoadData", *mark = "stand-in:";
    int result = in_context(call);
    void *library;
    if (result != SUCCESS) return result;
    if (strncmp(image, mark, strlen(mark)) || !(library = dlopen(image + strlen(mark), RTLD_NOW))) return 200;
    /* Several modules may be one library: it stands where others have their bytes. */
    *module = add(call, MODULE, NULL, (size_t)library);
    return SUCCESS;
}

int cuModuleLoadData(void **module, const void *image) { LOCKED(load(module, image)); }

int cuModuleUnload(void *module) { LOCKED(give_back("cuModuleUnload", MODULE, module)); }

/* What stands for a kernel: `NAME_run` of the library, and the size of its argument. They stay, as there are few. */
typedef struct { Run *run; size_t bytes; } Function;

static int function(void **handle, void *module, const char *name) {
    const char *call = "cuModuleGetFunction";
    int result = in_context(call);
    void *library = (void *)find(call, MODULE, module)->bytes;
    char run[100];
    if (result != SUCCESS) return result;
    snprintf(run, sizeof run, "%s_run", name);
    Run *found = (Run *)dlsym(library, run);
    const size_t *bytes = dlsym(library, "argument_bytes");
    if (!found || !bytes) return 500;
    Function *kernel = malloc(sizeof *kernel);
    *kernel = (Function){found, *bytes};
    *handle = kernel;
    return SUCCESS;
}

int cuModuleGetFunction(void **handle, void *module, const char *name) { LOCKED(function(handle, module, name)); }

static int launch(const Function *kernel, const unsigned blocks[2], const unsigned threads[2], void *stream, void **arguments) {
    const char *call = "cuLaunchKernel";
    int result = in_context(call);
    Thing *queue = find(call, STREAM, stream);
    void *argument;
    if (result != SUCCESS) return result;
    /* Copied at once, as the driver does. */
    argument = malloc(kernel->bytes);
    memcpy(argument, arguments[0], kernel->bytes);
    append((Copy){.to = argument, .stream = queue, .run = kernel->run, .blocks = {blocks[0], blocks[1]}, .threads = {threads[0], threads[1]}});
    return SUCCESS;
}

int cuLaunchKernel(void *handle, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y, unsigned block_z,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    const unsigned blocks[2] = {grid_x, grid_y}, threads[2] = {block_x, block_y};
    if (grid_z != 1 || block_z != 1 || shared || extra || block_x * block_y > 1024) return INVALID_VALUE;
    LOCKED(launch(handle, blocks, threads, stream, arguments));
}

/* What the stream has to do is done. */
static void drain(Thing *stream) {
    for (Copy **place = &copies; *place;) {
        Copy *copy = *place;
        if (copy->stream != stream) {
            place = &copy->next;
            continue;
        }
        if (copy->run) {
            copy->run(copy->to, copy->blocks, copy->threads);
            free(copy->to);
        } else {
            memcpy(copy->to, copy->from, copy->bytes);
        }
        *place = copy->next;
        free(copy);
    }
}

static int wait_for_stream(void *stream) {
    int result = in_context("cuStreamSynchronize");
    /* The default stream, on which nothing waits here. */
    if (!stream) return result;
    Thing *queue = find("cuStreamSynchronize", STREAM, stream);
    if (result == SUCCESS) drain(queue);
    return result;
}

int cuStreamSynchronize(void *stream) { LOCKED(wait_for_stream(stream)); }

#ifndef WITHOUT_EVENTS
int cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    LOCKED(make("cuEventCreate", EVENT, event));
}

int cuEventDestroy_v2(void *event) { LOCKED(give_back("cuEventDestroy_v2", EVENT, event)); }

/* Streams and events: `start` of an event's thing is its own address, so that the stream stands in `bytes`. */
static int record(void *event, void *stream) {
    int result = in_context("cuEventRecord");
    Thing *queue = find("cuEventRecord", STREAM, stream), *thing = find("cuEventRecord", EVENT, event);
    if (result == SUCCESS) thing->bytes = (size_t)queue;
    return result;
}

int cuEventRecord(void *event, void *stream) { LOCKED(record(event, stream)); }

static int wait_for_event(void *event) {
    int result = in_context("cuEventSynchronize");
    Thing *thing = find("cuEventSynchronize", EVENT, event);
    if (result == SUCCESS && thing->bytes) drain((Thing *)thing->bytes);
    return result;
}

int cuEventSynchronize(void *event) { LOCKED(wait_for_event(event)); }
#endif

#ifndef WITHOUT_LATER_FUNCTIONS
int cuDevicePrimaryCtxSetFlags_v2(int device, unsigned flags) {
    int gpu = gpu_of("cuDevicePrimaryCtxSetFlags", device);
    char line[40];
    if (primary[gpu]) misuse("cuDevicePrimaryCtxSetFlags", "somebody uses the context already");
    snprintf(line, sizeof line, "flags@%d=%u", gpu, flags);
    note(line);
    return outcome("cuDevicePrimaryCtxSetFlags_v2", gpu);
}

int cuModuleGetLoadingMode(int *mode) {
    *mode = (int)control("loading", 2);
    return outcome("cuModuleGetLoadingMode", 0);
}
#endif

/* A context that is not the GPU's primary one, as an application or a decoder makes it. It becomes the thread's current one. */
static int create(void **handle, int device) {
    Context *context = calloc(1, sizeof *context);
    context->gpu = gpu_of("cuCtxCreate_v2", device);
    context->retained = 1;
    if (depth == DEPTH) misuse("cuCtxCreate_v2", "contexts pile up");
    stack[depth++] = context;
    *handle = context;
    return outcome("cuCtxCreate_v2", context->gpu);
}

int cuCtxCreate_v2(void **handle, unsigned flags, int device) {
    (void)flags;
    LOCKED(create(handle, device));
}

/* What is in it goes with it. */
static int end(Context *context) {
    for (Thing *thing = things, *next; thing; thing = next) {
        next = thing->next;
        if (thing->context == context) forget(thing);
    }
    if (depth && stack[depth - 1] == context) depth--;
    context->destroyed = 1;
    return SUCCESS;
}

int cuCtxDestroy_v2(void *handle) { LOCKED(end(handle)); }

#ifdef FOR_GSTREAMER
/* As the driver's header has it. */
typedef struct {
    size_t from_x, from_y;
    int from_kind; /* 1 is the host's, 2 a GPU's */
    const void *from_host;
    Address from;
    void *from_array;
    size_t from_pitch, to_x, to_y;
    int to_kind;
    void *to_host;
    Address to;
    void *to_array;
    size_t to_pitch, bytes, rows;
} Copy2D;

static int copy_rows(const Copy2D *copy) {
    const char *call = "cuMemcpy2D_v2";
    int result = in_context(call);
    if (result == SUCCESS && copy->to_kind == 1) result = (int)control("download", SUCCESS);
    if (result != SUCCESS) return result;
    const char *from = copy->from_kind == 1 ? copy->from_host : (const char *)(size_t)copy->from;
    char *to = copy->to_kind == 1 ? copy->to_host : (char *)(size_t)copy->to;
    for (size_t row = 0; row < copy->rows; row++) {
        const char *start = from + (copy->from_y + row) * copy->from_pitch + copy->from_x;
        char *end = to + (copy->to_y + row) * copy->to_pitch + copy->to_x;
        if (copy->from_kind == 2) expect_allocated(call, start, copy->bytes, current(call));
        if (copy->to_kind == 2) expect_allocated(call, end, copy->bytes, current(call));
        memcpy(end, start, copy->bytes);
    }
    return SUCCESS;
}

int cuMemcpy2D_v2(const Copy2D *copy) { LOCKED(copy_rows(copy)); }
int cuMemcpy2DAsync_v2(const Copy2D *copy, void *stream) {
    (void)stream;
    LOCKED(copy_rows(copy));
}

int cuMemAllocPitch_v2(Address *address, size_t *pitch, size_t bytes, size_t rows, unsigned element) {
    (void)element;
    *pitch = (bytes + 511) / 512 * 512;
    LOCKED(allocate(address, *pitch * rows));
}

int cuMemAllocHost_v2(void **start, size_t bytes) { LOCKED(allocate_pinned(start, bytes)); }
int cuStreamDestroy(void *stream) { LOCKED(give_back("cuStreamDestroy", STREAM, stream)); }
int cuDeviceCanAccessPeer(int *can, int one, int other) { return (void)one, (void)other, *can = 0, SUCCESS; }

/* Wanted to be there, by 1.22 or 1.26. */
#define REFUSE(name) \
    int name(void) { return 801; }
REFUSE(cuCtxEnablePeerAccess) REFUSE(cuCtxDisablePeerAccess) REFUSE(cuGLGetDevices_v2) REFUSE(cuGraphicsGLRegisterBuffer)
REFUSE(cuGraphicsGLRegisterImage) REFUSE(cuGraphicsMapResources) REFUSE(cuGraphicsResourceGetMappedPointer_v2)
REFUSE(cuGraphicsResourceSetMapFlags_v2) REFUSE(cuGraphicsSubResourceGetMappedArray) REFUSE(cuGraphicsUnmapResources)
REFUSE(cuGraphicsUnregisterResource) REFUSE(cuTexObjectCreate) REFUSE(cuTexObjectDestroy) REFUSE(cuCtxGetLimit) REFUSE(cuCtxSetLimit)
REFUSE(cuCtxSynchronize) REFUSE(cuDestroyExternalMemory) REFUSE(cuDestroyExternalSemaphore) REFUSE(cuExternalMemoryGetMappedBuffer)
REFUSE(cuExternalMemoryGetMappedMipmappedArray) REFUSE(cuImportExternalMemory) REFUSE(cuImportExternalSemaphore)
REFUSE(cuIpcCloseMemHandle) REFUSE(cuIpcGetEventHandle) REFUSE(cuIpcGetMemHandle) REFUSE(cuIpcOpenEventHandle) REFUSE(cuIpcOpenMemHandle)
REFUSE(cuMemAddressFree) REFUSE(cuMemAddressReserve) REFUSE(cuMemAllocAsync) REFUSE(cuMemAllocFromPoolAsync) REFUSE(cuMemCreate)
REFUSE(cuMemExportToShareableHandle) REFUSE(cuMemFreeAsync) REFUSE(cuMemGetAccess) REFUSE(cuMemGetAllocationGranularity)
REFUSE(cuMemGetAllocationPropertiesFromHandle) REFUSE(cuMemImportFromShareableHandle) REFUSE(cuMemMap) REFUSE(cuMemPoolCreate)
REFUSE(cuMemPoolDestroy) REFUSE(cuMemPoolGetAttribute) REFUSE(cuMemPoolSetAttribute) REFUSE(cuMemRelease)
REFUSE(cuMemRetainAllocationHandle) REFUSE(cuMemSetAccess) REFUSE(cuMemUnmap) REFUSE(cuMemcpyDtoD_v2) REFUSE(cuMemcpyDtoH_v2)
REFUSE(cuMemsetD2D16Async) REFUSE(cuMemsetD2D16_v2) REFUSE(cuMemsetD2D32Async) REFUSE(cuMemsetD2D32_v2)
REFUSE(cuMemsetD2D8Async) REFUSE(cuMemsetD2D8_v2) REFUSE(cuSignalExternalSemaphoresAsync) REFUSE(cuWaitExternalSemaphoresAsync)
#endif

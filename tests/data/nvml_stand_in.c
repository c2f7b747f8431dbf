/* A stand-in for NVIDIA's management library, as far as this plugin calls it.
 *
 * The file that NVML_STAND_IN names says, read anew for each call, how it behaves: lines of NAME=NUMBER.
 *   count     GPUs (2)
 *   init, devices, handle, memory, compute, graphics
 *             what the call returns in place of success; memory@N and handle@N for GPU N alone
 *   total, used
 *             bytes of each GPU, plus the GPU's index
 *   growth    bytes that `used` grows by with each question for it
 *   context   bytes of a context: `used` has those that cuda_stand_in.c has, by its log, and what is allocated there
 *   pid       a process that both computes and draws on each GPU; 0 for none
 *   own_compute, own_graphics
 *             bytes that it holds by either list; -1 for not known; absent for not listed
 * The file NVML_STAND_IN_LOG gets a line for each load of the library, initialisation and shutdown.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
typedef struct { unsigned pid; unsigned long long used; unsigned instance, compute_instance; } Process;

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7 };

/* By so many that have not shut it down, as the real one counts them. */
static int initialized;
static unsigned long long growth;

static void note(const char *what) {
    const char *name = getenv("NVML_STAND_IN_LOG");
    FILE *log = name ? fopen(name, "a") : NULL;
    if (log) {
        fprintf(log, "%s\n", what);
        fclose(log);
    }
}

__attribute__((constructor)) static void loaded(void) { note("load"); }

/* Whether the control file has the name. */
static int look_up(const char *name, long long *value) {
    const char *file = getenv("NVML_STAND_IN");
    FILE *control = file ? fopen(file, "r") : NULL;
    char line[100];
    int found = 0;
    if (!control) return 0;
    while (fgets(line, sizeof line, control)) {
        size_t length = strlen(name);
        if (!strncmp(line, name, length) && line[length] == '=') {
            *value = atoll(line + length + 1);
            found = 1;
        }
    }
    fclose(control);
    return found;
}

static long long control(const char *name, long long otherwise) {
    long long value;
    return look_up(name, &value) ? value : otherwise;
}

static unsigned long long of_driver(void) {
    const char *name = getenv("CUDA_STAND_IN_LOG");
    unsigned long long context = (unsigned long long)control("context", 0), contexts = 0, bytes = 0;
    FILE *log = name && context ? fopen(name, "r") : NULL;
    char line[200];
    if (!log) return 0;
    /* The latest holds. */
    while (fgets(line, sizeof line, log)) sscanf(line, "contexts=%llu allocations=%*d bytes=%llu", &contexts, &bytes);
    fclose(log);
    return contexts * context + bytes;
}

static int outcome(const char *name, size_t index) {
    char of_one[40];
    snprintf(of_one, sizeof of_one, "%s@%zu", name, index);
    if (!initialized) return UNINITIALIZED;
    return (int)control(of_one, control(name, SUCCESS));
}

int nvmlInit_v2(void) {
    int result = (int)control("init", SUCCESS);
    note(result == SUCCESS ? "init" : "init failed");
    initialized += result == SUCCESS;
    return result;
}

#ifndef WITHOUT_SHUTDOWN
int nvmlShutdown(void) {
    note("shutdown");
    initialized -= initialized > 0;
    return SUCCESS;
}
#endif

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    snprintf(version, length, "550.54.15");
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)control("count", 2);
    note("count");
    return outcome("devices", 0);
}

/* A handle is the GPU's index plus one. */
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    *device = (void *)(size_t)(index + 1);
    return outcome("handle", index);
}

/* The bus number is the index plus one. */
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) {
    size_t bus;
    if (sscanf(id, "0000:%zx:00.0", &bus) != 1) return INVALID_ARGUMENT;
    *device = (void *)bus;
    return outcome("handle", bus - 1);
}

int nvmlDeviceGetIndex(void *device, unsigned *index) {
    *index = (unsigned)(size_t)device - 1;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory *memory) {
    size_t index = (size_t)device - 1;
    if (memory->version != (sizeof *memory | 2u << 24)) return INVALID_ARGUMENT;
    memory->total = (unsigned long long)control("total", 8000) + index;
    growth += (unsigned long long)control("growth", 0);
    memory->used = (unsigned long long)control("used", 500) + index + growth + of_driver();
    memory->reserved = 0;
    memory->free = memory->total - memory->used;
    return outcome("memory", index);
}

/* A stranger first, then the process in question, which holds the same on each GPU. */
static int processes(const char *kind, const char *own, void *device, unsigned *count, Process *list) {
    long long held;
    int is_listed = look_up(own, &held);
    unsigned room = *count, length = 1 + (unsigned)is_listed;
    int result = outcome(kind, (size_t)device - 1);
    if (result != SUCCESS) return result;
    *count = length;
    if (room < length) return INSUFFICIENT_SIZE;
    list[0] = (Process){1, 300, ~0u, ~0u};
    if (is_listed) list[1] = (Process){(unsigned)control("pid", 0), (unsigned long long)held, ~0u, ~0u};
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, Process *list) {
    return processes("compute", "own_compute", device, count, list);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *count, Process *list) {
    return processes("graphics", "own_graphics", device, count, list);
}

/* A stand-in for NVIDIA's compiler, libnvrtc.so: this plugin's kernel is compiled by the machine's C compiler, as the library of a module that
 * the driver's stand-in (cuda_stand_in.c) runs on the processor.
 *
 * The file that CUDA_STAND_IN names says how it behaves: NAME=NUMBER, where NAME is a function's, has that return NUMBER in place of success,
 * having done nothing. What is compiled lies beside that file.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *source, image[500], log[2000];
} Program;

/* What is CUDA's alone. */
static const char BEFORE[] =
    "#include <stddef.h>\n#include <string.h>\n"
    "#define KERNEL static\n#define DEVICE static\n"
    "static _Thread_local struct { unsigned x, y; } blockIdx, blockDim, threadIdx;\n"
    "static unsigned short half_bits(float value) {\n"
    "    _Float16 half = (_Float16)value; unsigned short bits; memcpy(&bits, &half, 2); return bits;\n"
    "}\n#line 1\n";
static const char AFTER[] =
    "\nconst size_t argument_bytes = sizeof(struct Frame);\n"
    "void letterbox_run(const void *argument, const unsigned blocks[2], const unsigned threads[2]) {\n"
    "    struct Frame frame; memcpy(&frame, argument, sizeof frame);\n"
    "    blockDim.x = threads[0]; blockDim.y = threads[1];\n"
    "    for (blockIdx.y = 0; blockIdx.y < blocks[1]; blockIdx.y++) for (blockIdx.x = 0; blockIdx.x < blocks[0]; blockIdx.x++)\n"
    "        for (threadIdx.y = 0; threadIdx.y < threads[1]; threadIdx.y++)\n"
    "            for (threadIdx.x = 0; threadIdx.x < threads[0]; threadIdx.x++) letterbox(frame);\n"
    "}\n";

static int outcome(const char *call) {
    const char *file = getenv("CUDA_STAND_IN");
    FILE *control = file ? fopen(file, "r") : NULL;
    char line[100];
    int result = 0;
    if (!control) return 0;
    while (fgets(line, sizeof line, control)) {
        size_t length = strlen(call);
        if (!strncmp(line, call, length) && line[length] == '=') result = atoi(line + length + 1);
    }
    fclose(control);
    return result;
}

static const int KNOWN[] = {75, 80, 86, 89, 90, 100, 120};

int nvrtcGetNumSupportedArchs(int *count) { return *count = sizeof KNOWN / sizeof *KNOWN, outcome("nvrtcGetNumSupportedArchs"); }
int nvrtcGetSupportedArchs(int *known) { return memcpy(known, KNOWN, sizeof KNOWN), outcome("nvrtcGetSupportedArchs"); }

int nvrtcCreateProgram(Program **program, const char *source, const char *name, int headers, const char **texts, const char **names) {
    (void)name, (void)headers, (void)texts, (void)names;
    *program = calloc(1, sizeof **program);
    (*program)->source = strdup(source);
    return outcome("nvrtcCreateProgram");
}

int nvrtcDestroyProgram(Program **program) {
    free((*program)->source);
    free(*program);
    *program = NULL;
    return 0;
}

int nvrtcCompileProgram(Program *program, int count, const char *const *options) {
    static int number;
    const char *file = getenv("CUDA_STAND_IN");
    char folder[300], command[1000];
    FILE *text;
    int result = outcome("nvrtcCompileProgram");
    if (result) return snprintf(program->log, sizeof program->log, "letterbox.cu(1): error: it was told to fail\n"), result;
    if (count != 1 || strncmp(options[0], "--gpu-architecture=", 19)) return 5;
    snprintf(folder, sizeof folder, "%.*s", (int)(strrchr(file, '/') - file), file);
    snprintf(program->image, sizeof program->image, "stand-in:%s/%s-%d.so", folder, strchr(options[0], '=') + 1, number++);
    snprintf(command, sizeof command, "cc -O1 -shared -fPIC -w -x c -o '%s' - >/dev/null 2>&1", strchr(program->image, ':') + 1);
    text = popen(command, "w");
    if (!text) return 6;
    fprintf(text, "%s%s%s", BEFORE, program->source, AFTER);
    if (pclose(text)) return snprintf(program->log, sizeof program->log, "the C compiler refuses it\n"), 6;
    return 0;
}

int nvrtcGetProgramLogSize(Program *program, size_t *bytes) { return *bytes = strlen(program->log) + 1, 0; }
int nvrtcGetProgramLog(Program *program, char *log) { return strcpy(log, program->log), 0; }
int nvrtcGetCUBINSize(Program *program, size_t *bytes) { return *bytes = strlen(program->image) + 1, outcome("nvrtcGetCUBINSize"); }
int nvrtcGetCUBIN(Program *program, char *image) { return strcpy(image, program->image), 0; }
int nvrtcGetPTXSize(Program *program, size_t *bytes) { return nvrtcGetCUBINSize(program, bytes); }
int nvrtcGetPTX(Program *program, char *image) { return nvrtcGetCUBIN(program, image); }

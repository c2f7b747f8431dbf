/* One frame to a model's input, `[3, height, width]`, in one pass: resized, converted, scaled and padded, as
 * `preprocess::convert` does it on the processor, by the same tables (`preprocess::recipe`).
 *
 * One thread for each pixel of the model's input. Compiled when the first frame comes; `Frame` has a twin in `kernel.rs`.
 *
 * What is CUDA's alone stands in KERNEL, DEVICE and half_bits: the rest is plain C, and the tests run it as such. */

#ifndef KERNEL
#define KERNEL extern "C" __global__
#define DEVICE static __device__

DEVICE unsigned short half_bits(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

struct Tap {
    unsigned int near, far;
    float weight; /* of far */
};

struct Component {
    const unsigned char *samples;
    const struct Tap *x, *y;
    unsigned int row_stride, pixel_stride;
};

struct Frame {
    struct Component components[3];
    void *out;
    unsigned int count; /* of components */
    unsigned int width, height;
    unsigned int left, top, picture_width, picture_height;
    unsigned int halves; /* out is of 16 bits */
    float gains[3][3], bias[3];
    float max, padding;
};

DEVICE float in_row(const unsigned char *row, struct Tap x, unsigned int pixel_stride) {
    float near = row[x.near * pixel_stride], far = row[x.far * pixel_stride];
    return near + (far - near) * x.weight;
}

DEVICE float sample(const struct Component *component, unsigned int column, unsigned int row) {
    struct Tap x = component->x[column], y = component->y[row];
    unsigned long long stride = component->row_stride;
    float near = in_row(component->samples + y.near * stride, x, component->pixel_stride);
    float far = in_row(component->samples + y.far * stride, x, component->pixel_stride);
    return near + (far - near) * y.weight;
}

KERNEL void letterbox(struct Frame frame) {
    unsigned int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y * blockDim.y + threadIdx.y;
    unsigned int column = x - frame.left, row = y - frame.top; /* huge where that is less than 0 */
    unsigned long long channel = (unsigned long long)frame.width * frame.height, at = (unsigned long long)y * frame.width + x;
    float values[3] = {0, 0, 0};
    int inside = column < frame.picture_width && row < frame.picture_height;
    if (x >= frame.width || y >= frame.height) return;
    if (inside)
        for (unsigned int i = 0; i < 3 && i < frame.count; i++) values[i] = sample(&frame.components[i], column, row);
    for (int i = 0; i < 3; i++, at += channel) {
        const float *gains = frame.gains[i];
        float value = values[0] * gains[0] + values[1] * gains[1] + values[2] * gains[2] + frame.bias[i];
        value = inside ? (value < 0 ? 0 : value > frame.max ? frame.max : value) : frame.padding;
        if (frame.halves)
            ((unsigned short *)frame.out)[at] = half_bits(value);
        else
            ((float *)frame.out)[at] = value;
    }
}

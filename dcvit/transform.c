/* The batch transform of CPUs in one pass over a pair of partners; `transform.reference` says what it computes.

   Nothing but a row's worth of two images is written on the way, so that it stays in a core's first cache. The loops
   over columns are plain, which is what compilers make vectors of. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { COLUMNS = 1024 };  /* of a row that are taken at a time */

/* (pixel - mean) / std, and 0 where it is erased */
static void normalise(const uint8_t *restrict pixel, const uint8_t *restrict kept, float mean, float inverse,
                      float *restrict out, int64_t n)
{
    if (kept)
        for (int64_t x = 0; x < n; x++)
            out[x] = ((float)pixel[x] - mean) * inverse * (float)kept[x];
    else
        for (int64_t x = 0; x < n; x++)
            out[x] = ((float)pixel[x] - mean) * inverse;
}

/* Erased pixels take their noise, of which there is so much up to `end`; gives what is left of it. */
static const float *fill(float *restrict out, const uint8_t *restrict kept, const float *restrict noise,
                         const float *end, int64_t n)
{
    const uint8_t *from = kept, *stop = kept + n;
    while (noise < end && (from = memchr(from, 0, (size_t)(stop - from)))) {
        const uint8_t *to = from;
        while (to < stop && to - from < end - noise && !*to)
            to++;
        memcpy(out + (from - kept), noise, (size_t)(to - from) * sizeof *out);
        noise += to - from;
        from = to;
    }
    return noise;
}

/* Both partners at once. */
static void mix(const float *restrict one, const float *restrict other, const float *restrict weight,
                float *restrict out, float *restrict other_out, int64_t n)
{
    for (int64_t x = 0; x < n; x++) {
        const float a = one[x], b = other[x], w = weight[x], v = 1.0f - w;
        out[x] = w * a + v * b;
        other_out[x] = w * b + v * a;
    }
}

/* pixels, out: (B, C, H, W) in groups of `size`, an image's partner being the one as far from the other end.
   kept: (B, R, W), or NULL where nothing is erased. noise: NULL for zeros, else what fills the erased pixels in the
   order of channels, rows and columns, that of image i from begins[i] on. map: (G, H, W). mean, inverse: (C). */
void transform(const uint8_t *pixels, const uint8_t *kept, const float *noise, const int64_t *begins,
               const float *map, const float *mean, const float *inverse, float *out, int64_t groups, int64_t size,
               int64_t channels, int64_t height, int64_t width, int64_t bands)
{
    float row[2][COLUMNS];
    for (int64_t group = 0; group < groups; group++)
        for (int64_t pair = 0; 2 * pair < size; pair++) {
            const int64_t image[2] = {group * size + pair, (group + 1) * size - 1 - pair};
            const int sides = image[0] == image[1] ? 1 : 2;  /* in the middle of an odd group one is its own partner */
            const float *next[2] = {NULL, NULL};
            if (noise)
                for (int side = 0; side < sides; side++)
                    next[side] = noise + begins[image[side]];
            for (int64_t c = 0; c < channels; c++)
                for (int64_t y = 0; y < height; y++)
                    for (int64_t x = 0; x < width; x += COLUMNS) {
                        const int64_t n = width - x < COLUMNS ? width - x : COLUMNS;
                        const float *weight = map + (group * height + y) * width + x;
                        for (int side = 0; side < sides; side++) {
                            const uint8_t *pixel = pixels + ((image[side] * channels + c) * height + y) * width + x;
                            const uint8_t *here = NULL;
                            if (kept)
                                here = kept + (image[side] * bands + y / (height / bands)) * width + x;
                            normalise(pixel, here, mean[c], inverse[c], row[side], n);
                            if (kept && noise)
                                next[side] = fill(row[side], here, next[side], noise + begins[image[side] + 1], n);
                        }
                        float *to[2];
                        for (int side = 0; side < 2; side++)
                            to[side] = out + ((image[side] * channels + c) * height + y) * width + x;
                        if (sides == 2)
                            mix(row[0], row[1], weight, to[0], to[1], n);
                        else
                            mix(row[0], row[0], weight, to[0], row[1], n);
                    }
        }
}

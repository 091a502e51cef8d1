// The renderer of `reference.py` for one processor: crop, resize, flip, jitter, grayscale, blur, solarize, normalise; or,
// in place of the colours, the programs of operations that policies draw (`operations.py`).
//
// A view is one task, so its pixels depend on its own parameters only, whatever the batch and the number of threads.
// Pixels are float levels 0..255 in planes [C][h][w]. Compiled on first use by `native.py`; standard C++17, no library.
// specs/view_engine.md 3.1 to 3.4.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <exception>
#include <new>
#include <thread>
#include <vector>

namespace {

// --- the record ------------------------------------------------------------------------------------------------------

// One row of the packed record; `native.py` writes these columns in this order. `order` is -1 without jitter.
struct View {
  float bicubic, top, left, h, w, flip, order, brightness, contrast, saturation, hue, gray, sigma, solarize;
};

struct Image {
  const uint8_t* pixels;  // [h][w][C], a row every `stride` bytes
  int64_t height, width, stride;
};

struct Target {
  int channels, height, width;
  const float *scale, *shift;  // normalised = level * scale - shift, a channel
};

// --- geometry --------------------------------------------------------------------------------------------------------

// Eight rows of a view are computed as the eight lanes of a vector.
constexpr int LANES = 8;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Order __attribute__((vector_size(LANES * sizeof(int32_t))));

#ifdef __clang__
#define INTERLEAVE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define INTERLEAVE(a, b, ...) __builtin_shuffle(a, b, (Order){__VA_ARGS__})
#endif

inline void transpose(Lanes rows[LANES]) {
  // Interleaving the first half of the rows with the second, once for each bit of the index, exchanges the axes.
  for (int round = 0; round < 3; ++round) {
    Lanes next[LANES];
    for (int i = 0; i < LANES / 2; ++i) {
      next[2 * i] = INTERLEAVE(rows[i], rows[i + 4], 0, 8, 1, 9, 2, 10, 3, 11);
      next[2 * i + 1] = INTERLEAVE(rows[i], rows[i + 4], 4, 12, 5, 13, 6, 14, 7, 15);
    }
    std::copy(next, next + LANES, rows);
  }
}

inline Lanes load(const float* from) {
  Lanes lanes;
  __builtin_memcpy(&lanes, from, sizeof lanes);
  return lanes;
}

inline void store(float* to, Lanes lanes) { __builtin_memcpy(to, &lanes, sizeof lanes); }

// One axis of the resize: output o is the sum of weight[o * most + k] * source[first[o] + k] over k < count[o].
struct Taps {
  std::vector<int> first, count;
  std::vector<float> weight;
  int most = 0, begin = 0, end = 0;  // source pixels [begin, end) take part

  // A learned box has fractional ends: every pixel of the source whose centre lies in it takes part.
  static int first_pixel(float lo) { return std::max(0, int(std::floor(lo - 0.5f)) + 1); }
  static int last_pixel(float lo, float length, int64_t source) {
    return std::min(int(source), int(std::ceil(lo + length - 0.5f)));
  }

  void set(float lo, float length, int out, int64_t source, bool bicubic, bool flip) {
    begin = first_pixel(lo), end = last_pixel(lo, length, source);
    const float step = length / out, wide = std::max(1.0f, step), narrow = 1 / wide, reach = (bicubic ? 2 : 1) * wide;
    most = std::min(end - begin, 2 * int(std::ceil(reach)) + 1);
    first.resize(out), count.resize(out), weight.resize(size_t(out) * most);
    for (int o = 0; o < out; ++o) {
      const int row = flip ? out - 1 - o : o;
      const float centre = lo + (row + 0.5f) * step - 0.5f;
      const int from = std::max(begin, int(std::ceil(centre - reach)));
      const int taps = std::min(end, int(std::floor(centre + reach)) + 1) - from;
      float* const w = &weight[size_t(o) * most];
      float sum = 0;
      for (int k = 0; k < taps; ++k) sum += w[k] = kernel(std::fabs(from + k - centre) * narrow, bicubic);
      for (int k = 0; k < taps; ++k) w[k] *= 1 / sum;
      first[o] = from, count[o] = taps;
    }
  }

  static float kernel(float t, bool bicubic) {
    if (!bicubic) return std::max(0.0f, 1 - t);
    const float near = std::min(t, 1.0f), far = std::min(std::max(t, 1.0f), 2.0f);
    return ((1.5f * near - 2.5f) * near) * near + 1 + ((-0.5f * far + 2.5f) * far - 4) * far + 2;
  }
};

struct Scratch {
  Taps down, across;
  std::vector<float> rows, turned, plane, line, weights;
};

// Row `o` of the vertical pass over `n` interleaved values, four source rows at a time.
void blend_rows(const Image& image, const Taps& down, int o, int64_t offset, int n, float* __restrict to) {
  const float* const w = &down.weight[size_t(o) * down.most];
  const int count = down.count[o];
  for (int k = 0; k < count; k += 4) {
    const uint8_t* row[4];
    float weight[4];
    for (int j = 0; j < 4; ++j) {
      row[j] = image.pixels + (down.first[o] + std::min(k + j, count - 1)) * image.stride + offset;
      weight[j] = k + j < count ? w[k + j] : 0;
    }
    const uint8_t *a = row[0], *b = row[1], *c = row[2], *d = row[3];
    const float wa = weight[0], wb = weight[1], wc = weight[2], wd = weight[3];
    if (k == 0)
      for (int x = 0; x < n; ++x) to[x] = wa * a[x] + wb * b[x] + wc * c[x] + wd * d[x];
    else
      for (int x = 0; x < n; ++x) to[x] += wa * a[x] + wb * b[x] + wc * c[x] + wd * d[x];
  }
}

// The horizontal pass over eight rows, the lanes of `from`, for some channels that lie beside each other.
template <int TOGETHER>
void blend_columns(const float* from, int channels, const Taps& across, int width, int lines, size_t plane, float* to) {
  const Lanes black = {}, white = black + 255;
  for (int x = 0; x < width; x += LANES) {
    const int columns = std::min(LANES, width - x);
    Lanes block[TOGETHER][LANES] = {};
    for (int i = 0; i < columns; ++i) {
      const float* const w = &across.weight[size_t(x + i) * across.most];
      const float* pixel = from + size_t(across.first[x + i] - across.begin) * channels * LANES;
      const int count = across.count[x + i];
      Lanes sum[TOGETHER] = {};
      for (int k = 0; k < count; ++k, pixel += channels * LANES)
        for (int c = 0; c < TOGETHER; ++c) sum[c] += w[k] * load(pixel + c * LANES);
      for (int c = 0; c < TOGETHER; ++c) {
        const Lanes above = sum[c] < black ? black : sum[c];
        block[c][i] = above > white ? white : above;
      }
    }
    for (int c = 0; c < TOGETHER; ++c) {
      transpose(block[c]);
      for (int r = 0; r < lines; ++r) {
        float* const row = to + c * plane + size_t(r) * width + x;
        if (columns == LANES)
          store(row, block[c][r]);
        else
          for (int i = 0; i < columns; ++i) row[i] = block[c][r][i];
      }
    }
  }
}

// Crop, resize and flip into planes of levels.
void geometry(const Image& image, const View& view, const Target& target, Scratch& scratch, float* out) {
  const int channels = target.channels, height = target.height, width = target.width;
  Taps &down = scratch.down, &across = scratch.across;
  down.set(view.top, view.h, height, image.height, view.bicubic != 0, false);
  across.set(view.left, view.w, width, image.width, view.bicubic != 0, view.flip != 0);
  const int begin = across.begin, n = (across.end - begin) * channels, padded = (n + LANES - 1) / LANES * LANES;
  scratch.rows.resize(size_t(padded) * LANES);
  scratch.turned.resize(size_t(padded) * LANES);
  float *const rows = scratch.rows.data(), *const turned = scratch.turned.data();

  for (int y = 0; y < height; y += LANES) {
    const int lines = std::min(LANES, height - y);
    for (int r = 0; r < lines; ++r)
      blend_rows(image, down, y + r, int64_t(begin) * channels, n, rows + size_t(r) * padded);
    for (int x = 0; x < padded; x += LANES) {
      Lanes block[LANES];
      for (int r = 0; r < LANES; ++r) block[r] = load(rows + size_t(r) * padded + x);
      transpose(block);
      for (int i = 0; i < LANES; ++i) store(turned + size_t(x + i) * LANES, block[i]);
    }
    for (int c = 0; c < channels; c += channels == 3 ? 3 : 1) {
      const float* const from = turned + size_t(c) * LANES;
      float* const to = out + (size_t(c) * height + y) * width;
      if (channels == 3)
        blend_columns<3>(from, channels, across, width, lines, size_t(height) * width, to);
      else
        blend_columns<1>(from, channels, across, width, lines, size_t(height) * width, to);
    }
  }
}

// --- colour ----------------------------------------------------------------------------------------------------------

// Pixels of one tile: it stays in the first cache while operation after operation passes over it.
constexpr int TILE = 512;
constexpr float RED = 0.2989f, GREEN = 0.587f, BLUE = 0.114f;

inline float clamp(float x) { return std::min(255.0f, std::max(0.0f, x)); }
inline float luma(float r, float g, float b) { return RED * r + GREEN * g + BLUE * b; }

enum Kind { NOTHING, BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAY, BLUR, SOLARIZE, NORMALISE };

struct Step {
  Kind kind;
  float amount;
};

void brightness(float* __restrict x, int n, float factor) {
  for (int i = 0; i < n; ++i) x[i] = std::min(255.0f, x[i] * factor);
}

void contrast(float* __restrict x, int n, float factor, float mean) {
  const float add = (1 - factor) * mean;
  for (int i = 0; i < n; ++i) x[i] = clamp(x[i] * factor + add);
}

void saturation(float* __restrict r, float* __restrict g, float* __restrict b, int n, float factor) {
  for (int i = 0; i < n; ++i) {
    const float gray = (1 - factor) * luma(r[i], g[i], b[i]);
    r[i] = clamp(r[i] * factor + gray), g[i] = clamp(g[i] * factor + gray), b[i] = clamp(b[i] * factor + gray);
  }
}

inline float wheel(float sextant, float offset) {
  const float share = 2 - std::fabs(std::fabs(sextant + offset) - 3);
  return std::min(1.0f, std::max(0.0f, share));
}

void hue(float* __restrict r, float* __restrict g, float* __restrict b, int n, float turns) {
  for (int i = 0; i < n; ++i) {
    const float red = r[i], green = g[i], blue = b[i];
    const float value = std::max(std::max(red, green), blue), low = std::min(std::min(red, green), blue);
    const float chroma = value - low;
    // Green equals blue in every clipped pixel: such a one has a side as well.
    const float side = green >= blue ? 1.0f : -1.0f;
    float sextant = side * (value + green + blue - red - 2 * low) / (chroma + 1e-6f) + 6 * turns;
    sextant -= sextant > 3 ? 6.0f : 0.0f;
    sextant += sextant < -3 ? 6.0f : 0.0f;
    r[i] = value - chroma * wheel(sextant, 0);
    g[i] = value - chroma * wheel(sextant, -2);
    b[i] = value - chroma * wheel(sextant, 2);
  }
}

void grayscale(float* __restrict r, float* __restrict g, float* __restrict b, int n) {
  for (int i = 0; i < n; ++i) r[i] = g[i] = b[i] = luma(r[i], g[i], b[i]);
}

void solarize(float* __restrict x, int n, float threshold) {
  // Half a thousandth of a level of slack, as the reference.
  const float level = 255 * threshold - 5e-4f;
  for (int i = 0; i < n; ++i) x[i] = x[i] >= level ? 255 - x[i] : x[i];
}

void normalise(float* __restrict x, int n, float scale, float shift) {
  for (int i = 0; i < n; ++i) x[i] = x[i] * scale - shift;
}

float total(const float* x, int n) {
  float lanes[LANES] = {}, sum = 0;
  int i = 0;
  for (; i + LANES <= n; i += LANES)
    for (int l = 0; l < LANES; ++l) lanes[l] += x[i + l];
  for (; i < n; ++i) sum += x[i];
  for (float lane : lanes) sum += lane;
  return sum;
}

// Three sigma, or what mirroring at the border allows.
int blur_radius(float sigma, const Target& target) {
  return int(std::min(std::ceil(3 * sigma), float(std::min(target.height, target.width) - 1)));
}

// Separable, reflected at the border, symmetric weights.
void blur(float* plane, int height, int width, float sigma, int radius, Scratch& scratch) {
  std::vector<float>& weights = scratch.weights;
  weights.resize(radius + 1);
  const float s = std::max(sigma, 1e-3f);
  float sum = 0;
  for (int k = 0; k <= radius; ++k) sum += (k ? 2 : 1) * (weights[k] = std::exp(-float(k * k) / (2 * s * s)));
  for (float& weight : weights) weight /= sum;

  scratch.plane.resize(size_t(height) * width);
  scratch.line.resize(width + 2 * radius);
  float *const half = scratch.plane.data(), *const line = scratch.line.data();
  for (int y = 0; y < height; ++y) {
    const float* const from = plane + size_t(y) * width;
    float* __restrict const to = half + size_t(y) * width;
    std::copy(from, from + width, line + radius);
    for (int k = 1; k <= radius; ++k) {
      line[radius - k] = from[k];
      line[radius + width - 1 + k] = from[width - 1 - k];
    }
    const float* const centre = line + radius;
    for (int x = 0; x < width; ++x) to[x] = weights[0] * centre[x];
    for (int k = 1; k <= radius; ++k) {
      const float weight = weights[k];
      for (int x = 0; x < width; ++x) to[x] += weight * (centre[x - k] + centre[x + k]);
    }
  }
  for (int y = 0; y < height; ++y) {
    float* __restrict const to = plane + size_t(y) * width;
    const float* const here = half + size_t(y) * width;
    for (int x = 0; x < width; ++x) to[x] = weights[0] * here[x];
    for (int k = 1; k <= radius; ++k) {
      const int above = std::abs(y - k), below = y + k < height ? y + k : 2 * (height - 1) - (y + k);
      const float *a = half + size_t(above) * width, *b = half + size_t(below) * width, weight = weights[k];
      for (int x = 0; x < width; ++x) to[x] += weight * (a[x] + b[x]);
    }
  }
}

// What a view goes through after the crop, in its own order. Hue, saturation and gray are of three channels.
int steps_of(const View& view, bool rgb, Step steps[]) {
  int n = 0;
  steps[n++] = {NOTHING, 0};  // so that something stands before a first contrast, which needs the mean
  if (view.order >= 0) {
    int operations[4] = {0, 1, 2, 3};
    for (int i = 0; i < int(view.order); ++i) std::next_permutation(operations, operations + 4);
    const Step all[4] = {{BRIGHTNESS, view.brightness}, {CONTRAST, view.contrast},
                         {SATURATION, view.saturation}, {HUE, view.hue}};
    for (int operation : operations)
      if (operation < 2 || rgb) steps[n++] = all[operation];
  }
  if (view.gray != 0 && rgb) steps[n++] = {GRAY, 0};
  if (view.sigma > 0) steps[n++] = {BLUR, view.sigma};
  if (view.solarize <= 1) steps[n++] = {SOLARIZE, view.solarize};
  steps[n++] = {NORMALISE, 0};
  return n;
}

void apply(const Step& step, const Target& target, float* const planes[], int n, float mean) {
  float *r = planes[0], *g = planes[1], *b = planes[2];
  if (step.kind == SATURATION) return saturation(r, g, b, n, step.amount);
  if (step.kind == HUE) return hue(r, g, b, n, step.amount);
  if (step.kind == GRAY) return grayscale(r, g, b, n);
  for (int c = 0; c < target.channels; ++c) {
    if (step.kind == BRIGHTNESS) brightness(planes[c], n, step.amount);
    if (step.kind == CONTRAST) contrast(planes[c], n, step.amount, mean);
    if (step.kind == SOLARIZE) solarize(planes[c], n, step.amount);
    if (step.kind == NORMALISE) normalise(planes[c], n, target.scale[c], target.shift[c]);
  }
}

void colour(const View& view, const Target& target, Scratch& scratch, float* out) {
  const int channels = target.channels, pixels = target.height * target.width;
  const bool rgb = channels == 3;
  const float weights[3] = {RED, GREEN, BLUE};
  Step steps[9];
  const int count = steps_of(view, rgb, steps);
  std::vector<float*> planes(std::max(3, channels));
  double mean = 0;
  // Contrast needs the mean of the whole view and blur its neighbours: between them, all steps tile by tile.
  for (int start = 0, end; start < count; start = end) {
    end = start + 1;
    if (steps[start].kind == BLUR) {
      for (int c = 0; c < channels; ++c)
        blur(out + size_t(c) * pixels, target.height, target.width, steps[start].amount,
             blur_radius(steps[start].amount, target), scratch);
      continue;
    }
    while (end < count && steps[end].kind != CONTRAST && steps[end].kind != BLUR) ++end;
    const bool summed = end < count && steps[end].kind == CONTRAST;
    double sum = 0;
    for (int from = 0; from < pixels; from += TILE) {
      const int n = std::min(TILE, pixels - from);
      for (int c = 0; c < channels; ++c) planes[c] = out + size_t(c) * pixels + from;
      for (int i = start; i < end; ++i) apply(steps[i], target, planes.data(), n, float(mean));
      for (int c = 0; summed && c < channels; ++c) sum += total(planes[c], n) * (rgb ? weights[c] : 1.0f / channels);
    }
    mean = sum / pixels;
  }
}

// --- programs --------------------------------------------------------------------------------------------------------

// In the order of OPERATIONS of `native.py`; none is -1.
enum Operation {
  IDENTITY, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y, ROTATE, BRIGHTEN, CONTRAST_OF, SATURATE, TURN_HUE, BLEND_GRAY,
  BLUR_OF, SOLARIZE_OF, SHARPEN, AUTOCONTRAST, EQUALIZE, POSTERIZE
};

// One stage of a view's program. `reach` is what magnitude 1 does, with the drawn sign where there are two directions.
struct Stage {
  float operation, magnitude, reach;
};

constexpr float PI = 3.14159265358979f;

// A place on one axis, mirrored at the outer edges of the first and last pixel.
inline float mirrored(float at, int size) {
  const float from = std::fabs(at + 0.5f), turns = std::floor(from / size), rest = from - turns * size;
  const float inside = (int(turns) % 2 ? size - rest : rest) - 0.5f;
  return std::min(float(size - 1), std::max(0.0f, inside));
}

// How far away each pixel is read: (dx, dy) = (xx, yx) * across + (xy, yy) * down + (x, y), from the centre, in pixels.
struct Move {
  float xx, xy, x, yx, yy, y;
};

Move move_of(Operation operation, float amount, const Target& target) {
  if (operation == SHEAR_X) return {0, amount, 0, 0, 0, 0};
  if (operation == SHEAR_Y) return {0, 0, 0, amount, 0, 0};
  if (operation == TRANSLATE_X) return {0, 0, amount * target.width, 0, 0, 0};
  if (operation == TRANSLATE_Y) return {0, 0, 0, 0, 0, amount * target.height};
  const float angle = amount * PI / 180, less = std::cos(angle) - 1, sine = std::sin(angle);
  return {less, -sine, 0, sine, less, 0};
}

// Bilinear, all planes alike.
void displace(const Move& move, const Target& target, Scratch& scratch, float* out) {
  const int height = target.height, width = target.width, channels = target.channels, pixels = height * width;
  scratch.plane.assign(out, out + size_t(channels) * pixels);
  for (int y = 0; y < height; ++y) {
    const float down = y - (height - 1) * 0.5f;
    for (int x = 0; x < width; ++x) {
      const float across = x - (width - 1) * 0.5f;
      const float at_x = mirrored(x + move.xx * across + move.xy * down + move.x, width);
      const float at_y = mirrored(y + move.yx * across + move.yy * down + move.y, height);
      const int left = int(at_x), top = int(at_y);
      const int right = std::min(left + 1, width - 1), bottom = std::min(top + 1, height - 1);
      const float w = at_x - left, v = at_y - top;
      for (int c = 0; c < channels; ++c) {
        const float* const from = scratch.plane.data() + size_t(c) * pixels;
        const float *const upper = from + size_t(top) * width, *const lower = from + size_t(bottom) * width;
        out[size_t(c) * pixels + y * width + x] = (1 - v) * ((1 - w) * upper[left] + w * upper[right]) +
                                                  v * ((1 - w) * lower[left] + w * lower[right]);
      }
    }
  }
}

// The chroma of television turned, luma kept.
void turn_hue(float* __restrict r, float* __restrict g, float* __restrict b, int n, float turns) {
  constexpr float U = 0.492f, V = 0.877f;
  const float angle = 2 * PI * turns, less = std::cos(angle) - 1, sine = std::sin(angle);
  for (int i = 0; i < n; ++i) {
    const float gray = luma(r[i], g[i], b[i]), u = U * (b[i] - gray), v = V * (r[i] - gray);
    const float blue = (less * u - sine * v) / U, red = (sine * u + less * v) / V;
    const float green = -(RED * red + BLUE * blue) / GREEN;
    r[i] = clamp(r[i] + red), g[i] = clamp(g[i] + green), b[i] = clamp(b[i] + blue);
  }
}

void blend_gray(float* __restrict r, float* __restrict g, float* __restrict b, int n, float share) {
  for (int i = 0; i < n; ++i) {
    const float gray = luma(r[i], g[i], b[i]);
    r[i] += share * (gray - r[i]), g[i] += share * (gray - g[i]), b[i] += share * (gray - b[i]);
  }
}

void autocontrast(float* __restrict x, int n, float share) {
  float low = 255, high = 0;
  for (int i = 0; i < n; ++i) low = std::min(low, x[i]), high = std::max(high, x[i]);
  if (high - low < 1) return;
  const float stretch = 255 / (high - low);
  for (int i = 0; i < n; ++i) x[i] = clamp(x[i] + share * ((x[i] - low) * stretch - x[i]));
}

void equalize(float* x, int n, float share) {
  int counts[256] = {}, below[256], highest = 0, seen = 0;
  for (int i = 0; i < n; ++i) ++counts[int(std::nearbyint(x[i]))];
  for (int level = 0; level < 256; ++level) {
    below[level] = seen, seen += counts[level];
    if (counts[level]) highest = below[level];
  }
  if (highest == 0) return;
  float rank[256];
  for (int level = 0; level < 256; ++level) rank[level] = 255.0f * below[level] / highest;
  for (int i = 0; i < n; ++i) x[i] = clamp(x[i] + share * (rank[int(std::nearbyint(x[i]))] - x[i]));
}

void posterize(float* __restrict x, int n, float share) {
  for (int i = 0; i < n; ++i) {
    const float step = std::min(3.0f, std::floor(x[i] * (4 / 255.0f)));
    x[i] = clamp(x[i] + share * (step * 85 - x[i]));
  }
}

// The distance to the 3 x 3 smoothed plane (weights 1, in the middle 5, of 13) grows by a share of it.
void sharpen(float* plane, int height, int width, float share, Scratch& scratch) {
  scratch.plane.assign(plane, plane + size_t(height) * width);
  scratch.line.resize(width + 2);
  for (int y = 0; y < height; ++y) {
    const float* const here = scratch.plane.data() + size_t(y) * width;
    const float *const above = y > 0 ? here - width : here, *const under = y + 1 < height ? here + width : here;
    float* const line = scratch.line.data() + 1;
    for (int x = 0; x < width; ++x) line[x] = above[x] + here[x] + under[x];
    line[-1] = line[0], line[width] = line[width - 1];
    float* __restrict const to = plane + size_t(y) * width;
    for (int x = 0; x < width; ++x) {
      const float smooth = (line[x - 1] + line[x] + line[x + 1] + 4 * here[x]) * (1 / 13.0f);
      to[x] = clamp(here[x] + share * (here[x] - smooth));
    }
  }
}

float mean_gray(const Target& target, const float* out) {
  const int pixels = target.height * target.width, channels = target.channels;
  const float weights[3] = {RED, GREEN, BLUE};
  double sum = 0;
  for (int c = 0; c < channels; ++c)
    sum += total(out + size_t(c) * pixels, pixels) * (channels == 3 ? weights[c] : 1.0f / channels);
  return float(sum / pixels);
}

void operate(const Stage& stage, const Target& target, Scratch& scratch, float* out) {
  const Operation operation = Operation(int(stage.operation));
  const int height = target.height, width = target.width, n = height * width;
  const float magnitude = stage.magnitude, amount = stage.reach * magnitude;
  if (operation == IDENTITY || magnitude == 0) return;
  if (operation >= SHEAR_X && operation <= ROTATE)
    return displace(move_of(operation, amount, target), target, scratch, out);
  float *const r = out, *const g = out + n, *const b = g + n;
  if (operation == SATURATE) return saturation(r, g, b, n, 1 + amount);
  if (operation == TURN_HUE) return turn_hue(r, g, b, n, amount);
  if (operation == BLEND_GRAY) return blend_gray(r, g, b, n, magnitude);
  const float mean = operation == CONTRAST_OF ? mean_gray(target, out) : 0;
  // Of a blur, one support for all magnitudes.
  const float widest = std::max(0.5f, stage.reach * std::min(height, width) / 224);
  for (int c = 0; c < target.channels; ++c) {
    float* const plane = out + size_t(c) * n;
    switch (operation) {
      case BRIGHTEN: brightness(plane, n, 1 + amount); break;
      case CONTRAST_OF: contrast(plane, n, 1 + amount, mean); break;
      case BLUR_OF:
        blur(plane, height, width, 0.05f + widest * magnitude, blur_radius(widest, target), scratch);
        break;
      case SOLARIZE_OF: solarize(plane, n, 1.02f - 1.02f * magnitude); break;
      case SHARPEN: sharpen(plane, height, width, amount, scratch); break;
      case AUTOCONTRAST: autocontrast(plane, n, magnitude); break;
      case EQUALIZE: equalize(plane, n, magnitude); break;
      case POSTERIZE: posterize(plane, n, magnitude); break;
      default: break;
    }
  }
}

// Variance of the pixels in [0, 1], the mean over channels.
float spread(const Target& target, const float* out) {
  const int pixels = target.height * target.width;
  double sum = 0;
  for (int c = 0; c < target.channels; ++c) {
    const float* const plane = out + size_t(c) * pixels;
    const double mean = total(plane, pixels) / pixels;
    float lanes[LANES] = {};
    for (int i = 0; i + LANES <= pixels; i += LANES)
      for (int l = 0; l < LANES; ++l) lanes[l] += (plane[i + l] - float(mean)) * (plane[i + l] - float(mean));
    for (int i = pixels / LANES * LANES; i < pixels; ++i) lanes[0] += (plane[i] - float(mean)) * (plane[i] - float(mean));
    for (float lane : lanes) sum += lane;
  }
  return float(sum / pixels / target.channels / (255.0 * 255.0));
}

}  // namespace

// Renders `count` views into out [count][C][h][w]; view v is of image v % images. With `stages`, each goes through its
// program [count][stages] between crop and colours, and `spreads` [count][2] tells its spread before and after. Returns
// the number of the first view whose box leaves its image or holds no pixel of it, -1 when there is none, and -2 when
// memory did not suffice.
extern "C" int64_t belvedere_render(const uint8_t* const* pixels, const int64_t* layout, int64_t images,
                                    const float* record, int64_t count, int channels, int height, int width,
                                    const float* scale, const float* shift, int threads, float* out,
                                    const float* program, int stages, float* spreads) {
  const View* const views = reinterpret_cast<const View*>(record);
  const Stage* const programs = reinterpret_cast<const Stage*>(program);
  const Target target = {channels, height, width, scale, shift};
  auto image = [&](int64_t v) {
    const int64_t* const shape = layout + v % images * 3;
    return Image{pixels[v % images], shape[0], shape[1], shape[2]};
  };
  for (int64_t v = 0; v < count; ++v) {
    const View& view = views[v];
    const Image of = image(v);
    const bool inside = view.top > -0.5f && view.left > -0.5f && view.top + view.h < of.height + 0.5f &&
                        view.left + view.w < of.width + 0.5f;
    if (!inside || Taps::first_pixel(view.top) >= Taps::last_pixel(view.top, view.h, of.height) ||
        Taps::first_pixel(view.left) >= Taps::last_pixel(view.left, view.w, of.width))
      return v;
  }
  std::atomic<int64_t> next{0};
  std::atomic<bool> failed{false};
  auto work = [&] {
    try {
      Scratch scratch;
      for (int64_t v; (v = next++) < count;) {
        float* const to = out + size_t(v) * channels * height * width;
        geometry(image(v), views[v], target, scratch, to);
        if (stages) {
          spreads[2 * v] = spread(target, to);
          for (int stage = 0; stage < stages; ++stage) {
            const Stage& one = programs[v * stages + stage];
            if (one.operation >= 0) operate(one, target, scratch, to);
          }
          spreads[2 * v + 1] = spread(target, to);
        }
        colour(views[v], target, scratch, to);
      }
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  };
  std::vector<std::thread> helpers;
  try {
    for (int t = 1; t < std::min<int64_t>(threads, count); ++t) helpers.emplace_back(work);
  } catch (const std::exception&) {
    // Without further threads this one does the rest.
  }
  work();
  for (std::thread& helper : helpers) helper.join();
  return failed ? -2 : -1;
}

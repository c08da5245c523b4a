// SwiGLU and its gradients, tile by tile of the rows, so that what lies between its two products never leaves the cache.
// NUMBER is the type of all operands, COLUMNS how much of the inner width, a multiple of it, is in the cache at a time. Products are
// oneDNN's microkernels, which add up in float32.

#include <torch/csrc/inductor/cpp_prefix.h>

#include <ATen/native/CPUBlas.h>

#include <cstdlib>
#include <memory>
#include <type_traits>

namespace {

using Number = NUMBER;
constexpr bool PAIRS = std::is_same_v<Number, at::BFloat16>;  // the microkernels want the right operand's rows in pairs
constexpr int64_t GROUP = PAIRS ? 2 : 1;                      // rows of a right operand that lie together, column by column
constexpr int64_t ROWS = 64;                                  // of a tile

template <class T>
struct Buffer {
    std::unique_ptr<T[], decltype(&std::free)> memory;
    explicit Buffer(int64_t size)
        : memory(static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64)), &std::free) {}
    operator T*() const { return memory.get(); }
};

constexpr int64_t padded(int64_t size) { return (size + GROUP - 1) / GROUP * GROUP; }

// c [m, n] = a [m, k] b [k, n], or added to it
inline void product(int64_t m, int64_t n, int64_t k, const Number* a, int64_t lda, const Number* b, int64_t ldb, float* c, int64_t ldc,
                    bool add) {
    at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, PAIRS);
}

#ifdef __AVX512BF16__
inline __m512i rounded(__m512 low, __m512 high) { return (__m512i)_mm512_cvtne2ps_pbh(high, low); }
#else  // never called
static_assert(!PAIRS, "bfloat16 needs AVX-512 BF16");
inline __m512i rounded(__m512, __m512) { return _mm512_setzero_si512(); }
#endif

inline void store(Number* to, const __m512* values) {  // 32 in a row
    if constexpr (PAIRS) {
        _mm512_store_si512(to, rounded(values[0], values[1]));
    } else {
        _mm512_store_ps(to, values[0]);
        _mm512_store_ps(to + 16, values[1]);
    }
}

inline void round_to(Number* to, const float* from, int64_t size) {
    if constexpr (!PAIRS) {
        std::copy_n(from, size, to);
        return;
    }
    int64_t i = 0;
    for (; i + 32 <= size; i += 32) _mm512_storeu_si512(to + i, rounded(_mm512_loadu_ps(from + i), _mm512_loadu_ps(from + i + 16)));
    for (; i < size; ++i) to[i] = static_cast<Number>(from[i]);
}

// rows of `k` numbers, each followed by zeros up to padded(k): as they are, or copied into `room`
inline const Number* padded_rows(const Number* from, int64_t rows, int64_t k, Number* room) {
    if (padded(k) == k) return from;
    for (int64_t r = 0; r < rows; ++r) {
        std::copy_n(from + r * k, k, room + r * padded(k));
        std::fill(room + r * padded(k) + k, room + (r + 1) * padded(k), Number(0));
    }
    return room;
}

// right operand [k, n] from its transpose `from` [n, k]; by all threads
void pack_transposed(const Number* from, int64_t n, int64_t k, Number* to) {
    constexpr int64_t BLOCK = 16;
    const int64_t units = padded(k) / GROUP;  // of 32 bits
    Buffer<Number> room(BLOCK * padded(k));
#pragma omp for
    for (int64_t i = 0; i < n; i += BLOCK) {
        const int64_t rows = std::min(BLOCK, n - i);
        const auto* block = reinterpret_cast<const float*>(padded_rows(from + i * k, rows, k, room));
        at::vec::transpose_mxn<float>(block, units, reinterpret_cast<float*>(to) + i, n, static_cast<int>(rows), static_cast<int>(units));
    }
}

// right operand [k, n] from `from` [k, n]; by all threads
const Number* pack(const Number* from, int64_t k, int64_t n, Number* to) {
    if constexpr (!PAIRS) return from;
    Buffer<Number> zeros(n);
    std::fill_n(static_cast<Number*>(zeros), n, Number(0));
#pragma omp for
    for (int64_t i = 0; i < k; i += 2) {
        const Number *first = from + i * n, *second = i + 1 < k ? first + n : zeros;
        for (int64_t j = 0; j < n; ++j) {
            to[i * n + 2 * j] = first[j];
            to[i * n + 2 * j + 1] = second[j];
        }
    }
    return to;
}

// [columns, ROWS] from [rows, columns]; the rows up to padded(rows) are zero
inline void transpose(const Number* from, int64_t rows, int64_t columns, Number* to) {
    constexpr int64_t BLOCK = PAIRS ? 32 : 16;
    for (int64_t i = 0; i < rows; i += BLOCK)
        for (int64_t j = 0; j < columns; j += BLOCK)
            at::vec::transpose_mxn<Number>(from + i * columns + j, columns, to + j * ROWS + i, ROWS,
                                           static_cast<int>(std::min(BLOCK, rows - i)), static_cast<int>(std::min(BLOCK, columns - j)));
    if (padded(rows) > rows)
        for (int64_t j = 0; j < columns; ++j) to[j * ROWS + rows] = Number(0);
}

// 1 / (1 + exp(-x)), to the last bit or two of a Number
inline __m512 sigmoid(__m512 x) {
    // beyond 130 both ends are reached, and `whole` of much larger numbers is too coarse; what is not a number stays so
    const __m512 bound = _mm512_set1_ps(130), least = _mm512_set1_ps(-130);
    const __m512 y = _mm512_max_ps(least, _mm512_min_ps(bound, _mm512_sub_ps(_mm512_setzero_ps(), x)));
    const __m512 whole = _mm512_roundscale_ps(_mm512_mul_ps(y, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    // y - whole * log(2), in two steps
    const __m512 rest = _mm512_fnmadd_ps(whole, _mm512_set1_ps(-2.12194440e-4f), _mm512_fnmadd_ps(whole, _mm512_set1_ps(0.693359375f), y));
    constexpr float series[] = {1, 1, 1.f / 2, 1.f / 6, 1.f / 24, 1.f / 120, 1.f / 720, 1.f / 5040};
    constexpr int degree = PAIRS ? 4 : 7;
    __m512 power = _mm512_set1_ps(series[degree]);
    for (int i = degree - 1; i >= 0; --i) power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(series[i]));
    const __m512 below = _mm512_add_ps(_mm512_set1_ps(1), _mm512_scalef_ps(power, whole));
    return PAIRS ? _mm512_rcp14_ps(below) : _mm512_div_ps(_mm512_set1_ps(1), below);
}

// 16 columns of two rows of a tile: as a right operand wants them, and as they lie
inline void two_rows(const __m512* values, int64_t at, Number* pairs, Number* rows) {
    if constexpr (PAIRS) {
        const __m512i both = rounded(values[0], values[1]);
        const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
                                               18, 2, 17, 1, 16, 0);
        const int64_t row = at / COLUMNS * COLUMNS;
        _mm512_store_si512(pairs + row + 2 * (at - row), _mm512_permutexvar_epi16(order, both));
        if (rows) {
            _mm256_store_si256(reinterpret_cast<__m256i*>(rows + at), _mm512_castsi512_si256(both));
            _mm256_store_si256(reinterpret_cast<__m256i*>(rows + at + COLUMNS), _mm512_extracti64x4_epi64(both, 1));
        }
    } else {
        if (!rows) rows = pairs;
        _mm512_store_ps(rows + at, values[0]);
        _mm512_store_ps(rows + at + COLUMNS, values[1]);
    }
}

}  // namespace

// out [n, o] = (silu(x gate') * (x up')) down' with x [n, k], gate_up [2 i, k] and down [o, i]
extern "C" void forward(const Number* x, const Number* gate_up, const Number* down, Number* out, int64_t n, int64_t k, int64_t i, int64_t o,
                        int64_t threads) {
    const int64_t kp = padded(k);
    Buffer<Number> gate_up_b(kp * 2 * i), down_b(i * o);
#pragma omp parallel num_threads(threads)
    {
        pack_transposed(gate_up, 2 * i, k, gate_up_b);
        pack_transposed(down, o, i, down_b);
        Buffer<float> gate(ROWS * COLUMNS), up(ROWS * COLUMNS), sum(ROWS * o);
        Buffer<Number> inner(ROWS * COLUMNS), room(ROWS * kp);
#pragma omp for
        for (int64_t r = 0; r < n; r += ROWS) {
            const int64_t rows = std::min(ROWS, n - r);
            const Number* tile = padded_rows(x + r * k, rows, k, room);
            for (int64_t c = 0; c < i; c += COLUMNS) {
                product(rows, COLUMNS, kp, tile, kp, gate_up_b + c * GROUP, 2 * i, gate, COLUMNS, false);
                product(rows, COLUMNS, kp, tile, kp, gate_up_b + (i + c) * GROUP, 2 * i, up, COLUMNS, false);
                for (int64_t j = 0; j < rows * COLUMNS; j += 32) {
                    __m512 value[2];
                    for (int h = 0; h < 2; ++h) {
                        const __m512 g = _mm512_load_ps(gate + j + 16 * h);
                        value[h] = _mm512_mul_ps(_mm512_mul_ps(g, sigmoid(g)), _mm512_load_ps(up + j + 16 * h));
                    }
                    store(inner + j, value);
                }
                product(rows, o, COLUMNS, inner, COLUMNS, down_b + c * o, o, sum, o, c > 0);
            }
            round_to(out + r * o, sum, rows * o);
        }
        at::native::cpublas::brgemm_release(PAIRS);
    }
}

// The gradients of x, gate_up and down, given that of out.
extern "C" void backward(const Number* x, const Number* gate_up, const Number* down, const Number* d_out, Number* d_x, Number* d_gate_up,
                         Number* d_down, int64_t n, int64_t k, int64_t i, int64_t o, int64_t threads) {
    const int64_t kp = padded(k), op = padded(o);
    Buffer<Number> gate_up_t(kp * 2 * i), down_b(op * i), gate_up_b(2 * i * k);
    Buffer<float> sums_gate_up(threads * k * 2 * i), sums_down(threads * o * i);
    int64_t team = 1;  // there may be fewer threads
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
        team = omp_get_num_threads();
        pack_transposed(gate_up, 2 * i, k, gate_up_t);
        const Number* right_down = pack(down, o, i, down_b);
        const Number* right_gate_up = pack(gate_up, 2 * i, k, gate_up_b);
        float* sum_gate_up = sums_gate_up + omp_get_thread_num() * k * 2 * i;  // [k, 2 i]
        float* sum_down = sums_down + omp_get_thread_num() * o * i;
        std::fill_n(sum_gate_up, k * 2 * i, 0.0f);
        std::fill_n(sum_down, o * i, 0.0f);
        constexpr int64_t TILE = ROWS * COLUMNS;
        Buffer<float> gate(TILE), up(TILE), d_inner(TILE), sum(ROWS * k);
        Buffer<Number> inner(TILE), d_gate(TILE), d_up(TILE), d_gate_pairs(TILE), d_up_pairs(TILE);
        Buffer<Number> room(ROWS * kp), d_room(ROWS * op), x_t(k * ROWS), d_out_t(o * ROWS);
#pragma omp for
        for (int64_t r = 0; r < n; r += ROWS) {
            const int64_t rows = std::min(ROWS, n - r);
            transpose(x + r * k, rows, k, x_t);
            transpose(d_out + r * o, rows, o, d_out_t);
            const Number* tile = padded_rows(x + r * k, rows, k, room);
            const Number* d_tile = padded_rows(d_out + r * o, rows, o, d_room);
            if (padded(rows) > rows)  // a row that is not there
                for (float* buffer : {static_cast<float*>(gate), static_cast<float*>(up), static_cast<float*>(d_inner)})
                    std::fill_n(buffer + rows * COLUMNS, COLUMNS, 0.0f);
            for (int64_t c = 0; c < i; c += COLUMNS) {
                product(rows, COLUMNS, kp, tile, kp, gate_up_t + c * GROUP, 2 * i, gate, COLUMNS, false);
                product(rows, COLUMNS, kp, tile, kp, gate_up_t + (i + c) * GROUP, 2 * i, up, COLUMNS, false);
                product(rows, COLUMNS, op, d_tile, op, right_down + c * GROUP, i, d_inner, COLUMNS, false);
                for (int64_t row = 0; row < rows; row += 2)
                    for (int64_t j = row * COLUMNS; j < (row + 1) * COLUMNS; j += 16) {
                        __m512 value[2], of_gate[2], of_up[2];  // of two rows, below one another
                        for (int h = 0; h < 2; ++h) {
                            const int64_t at = j + h * COLUMNS;
                            const __m512 g = _mm512_load_ps(gate + at), u = _mm512_load_ps(up + at), d = _mm512_load_ps(d_inner + at);
                            const __m512 share = sigmoid(g), silu = _mm512_mul_ps(g, share);
                            value[h] = _mm512_mul_ps(silu, u);
                            of_up[h] = _mm512_mul_ps(d, silu);
                            // d u (share + silu (1 - share))
                            of_gate[h] = _mm512_mul_ps(_mm512_mul_ps(d, u), _mm512_fmadd_ps(silu, _mm512_sub_ps(_mm512_set1_ps(1), share), share));
                        }
                        two_rows(value, j, inner, nullptr);
                        two_rows(of_gate, j, d_gate_pairs, d_gate);
                        two_rows(of_up, j, d_up_pairs, d_up);
                    }
                const Number *right_gate = PAIRS ? d_gate_pairs : d_gate, *right_up = PAIRS ? d_up_pairs : d_up;
                product(rows, k, COLUMNS, d_gate, COLUMNS, right_gate_up + c * k, k, sum, k, c > 0);
                product(rows, k, COLUMNS, d_up, COLUMNS, right_gate_up + (i + c) * k, k, sum, k, true);
                product(k, COLUMNS, padded(rows), x_t, ROWS, right_gate, COLUMNS, sum_gate_up + c, 2 * i, true);
                product(k, COLUMNS, padded(rows), x_t, ROWS, right_up, COLUMNS, sum_gate_up + i + c, 2 * i, true);
                product(o, COLUMNS, padded(rows), d_out_t, ROWS, inner, COLUMNS, sum_down + c, i, true);
            }
            round_to(d_x + r * k, sum, rows * k);
        }
        // the threads' sums together, in their order
        const auto total = [&](const float* sums, int64_t size, int64_t at) {
            float value = sums[at];
            for (int64_t t = 1; t < team; ++t) value += sums[t * size + at];
            return static_cast<Number>(value);
        };
#pragma omp for nowait
        for (int64_t row = 0; row < 2 * i; ++row)
            for (int64_t j = 0; j < k; ++j) d_gate_up[row * k + j] = total(sums_gate_up, k * 2 * i, j * 2 * i + row);
#pragma omp for
        for (int64_t j = 0; j < o * i; ++j) d_down[j] = total(sums_down, o * i, j);
        at::native::cpublas::brgemm_release(PAIRS);
    }
}

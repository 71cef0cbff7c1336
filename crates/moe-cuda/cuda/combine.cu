// Rows to experts and back: a gather, and a weighted sum of the rows of each token in a fixed order.
// Each is the other's backward. No atomics on floats: every output value has one writer.
//
// not yet run on a GPU

// x_td[token_n[n]] for every row n < *rows. One warp per row.
template <typename T>
__device__ inline void gather_rows(const T *x_td, const int *token_n, T *x_nd, const int *rows, int d) {
  constexpr int lanes = Pack<T>::lanes;
  for (long long n = blockIdx.x * warps() + warp(); n < *rows; n += gridDim.x * warps()) {
    const T *from = x_td + static_cast<long long>(token_n[n]) * d;
    T *to = x_nd + n * d;
    if (d % lanes == 0) {
      for (int i = lane() * lanes; i < d; i += WARP * lanes) store(to + i, load(from + i));
    } else {
      for (int i = lane(); i < d; i += WARP) to[i] = from[i];
    }
  }
}

// The rows of a token: k of them at row_i[t * k], or those between two offsets. -1 is none.
struct Span {
  long long begin, end;
};

__device__ inline Span rows_of(const long long *offset_t, int k, long long t) {
  Span span = {t * k, t * k + k};
  if (offset_t != nullptr) span.begin = offset_t[t], span.end = offset_t[t + 1];
  return span;
}

// out_td[t] = sum over the token's rows of weight_n[row] (a_nd[row] + b_nd[row]), in f32; without weights
// each counts once, and b_nd may be missing. One block per token.
template <typename T>
__device__ inline void gather_sum(const T *a_nd, const T *b_nd, const float *weight_n, const int *row_i,
                                  const long long *offset_t, int k, T *out_td, int tokens, int d) {
  constexpr int lanes = Pack<T>::lanes;
  for (long long t = blockIdx.x; t < tokens; t += gridDim.x) {
    Span span = rows_of(offset_t, k, t);
    if (d % lanes == 0) {
      for (int i = threadIdx.x * lanes; i < d; i += blockDim.x * lanes) {
        float sum[lanes] = {};
        for (long long at = span.begin; at < span.end; ++at) {
          long long row = row_i[at];
          if (row < 0) continue;
          float w = weight_n == nullptr ? 1.0f : weight_n[row];
          Pack<T> a = load(a_nd + row * d + i);
          for (int j = 0; j < lanes; ++j) sum[j] += w * to_float(a.value[j]);
          if (b_nd == nullptr) continue;
          Pack<T> b = load(b_nd + row * d + i);
          for (int j = 0; j < lanes; ++j) sum[j] += w * to_float(b.value[j]);
        }
        Pack<T> out;
        for (int j = 0; j < lanes; ++j) out.value[j] = from_float<T>(sum[j]);
        store(out_td + t * d + i, out);
      }
      continue;
    }
    for (int i = threadIdx.x; i < d; i += blockDim.x) {
      float sum = 0.0f;
      for (long long at = span.begin; at < span.end; ++at) {
        long long row = row_i[at];
        if (row < 0) continue;
        float w = weight_n == nullptr ? 1.0f : weight_n[row];
        sum += w * to_float(a_nd[row * d + i]);
        if (b_nd != nullptr) sum += w * to_float(b_nd[row * d + i]);
      }
      out_td[t * d + i] = from_float<T>(sum);
    }
  }
}

// Zeros for experts without rows, whose part of a grouped product some libraries leave as it was
// (pytorch/pytorch#172439). w_e_i holds `each` values per expert.
template <typename T> __device__ inline void clear_empty(T *w_e_i, const int *end_e, int each) {
  int e = blockIdx.y, start = e == 0 ? 0 : end_e[e - 1];
  if (end_e[e] > start) return;
  int stride = gridDim.x * blockDim.x;
  T *own = w_e_i + static_cast<long long>(e) * each;
  for (long long i = blockIdx.x * blockDim.x + threadIdx.x; i < each; i += stride)
    own[i] = from_float<T>(0.0f);
}

#define COMBINE(T, name)                                                                             \
  extern "C" __global__ void gather_rows_##name(const T *x_td, const int *token_n, T *x_nd,          \
                                                const int *rows, int d) {                            \
    gather_rows(x_td, token_n, x_nd, rows, d);                                                       \
  }                                                                                                  \
  extern "C" __global__ void gather_sum_##name(const T *a_nd, const T *b_nd, const float *weight_n,  \
                                               const int *row_i, const long long *offset_t, int k,   \
                                               T *out_td, int tokens, int d) {                       \
    gather_sum(a_nd, b_nd, weight_n, row_i, offset_t, k, out_td, tokens, d);                         \
  }                                                                                                  \
  extern "C" __global__ void clear_empty_##name(T *w_e_i, const int *end_e, int each) {              \
    clear_empty(w_e_i, end_e, each);                                                                 \
  }

COMBINE(float, f32)
COMBINE(bf16, bf16)

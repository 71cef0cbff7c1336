// The hidden layer between the two products: ReLU and GELU of one matrix, SwiGLU and GEGLU of two.
// Rows past `*rows` do not exist: what lies there is neither read nor written.
//
// not yet run on a GPU

enum Activation { RELU, GELU, SWIGLU, GEGLU };

__device__ inline float normal_cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }
__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The nonlinearity itself, and its slope.
__device__ inline float bend(int kind, float x) {
  if (kind == RELU) return fmaxf(x, 0.0f);
  if (kind == SWIGLU) return x * sigmoid(x);
  return x * normal_cdf(x);
}

__device__ inline float slope(int kind, float x) {
  if (kind == RELU) return x > 0.0f ? 1.0f : 0.0f;
  if (kind == SWIGLU) {
    float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  }
  return normal_cdf(x) + x * 0.39894228f * expf(-0.5f * x * x);
}

// a = bend(gate) * up, or bend(up) without a gate.
__device__ inline float hidden(int kind, bool gated, float gate, float up) {
  return gated ? bend(kind, gate) * up : bend(kind, up);
}

template <typename T>
__device__ inline void activation_forward(const T *gate_nh, const T *up_nh, T *a_nh, const int *rows,
                                          int h, int kind) {
  constexpr int lanes = Pack<T>::lanes;
  long long count = static_cast<long long>(*rows) * h;
  long long stride = static_cast<long long>(gridDim.x) * blockDim.x * lanes;
  long long own = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * lanes;
  bool gated = gate_nh != nullptr;
  for (long long i = own; i < count; i += stride) {
    if (i + lanes > count) {
      // The tail: the number of values need not be a multiple of the pack.
      for (long long j = i; j < count; ++j) {
        float gate = gated ? to_float(gate_nh[j]) : 0.0f;
        a_nh[j] = from_float<T>(hidden(kind, gated, gate, to_float(up_nh[j])));
      }
      continue;
    }
    Pack<T> up = load(up_nh + i), gate = gated ? load(gate_nh + i) : up, a;
    for (int j = 0; j < lanes; ++j)
      a.value[j] = from_float<T>(hidden(kind, gated, to_float(gate.value[j]), to_float(up.value[j])));
    store(a_nh + i, a);
  }
}

// What one value hands down: da is the gradient of a without the row's weight w.
//   dgate = w da bend'(gate) up     dup = w da bend(gate)     scaled = w a     dweight += da a
struct Down {
  float dgate, dup, scaled, dweight;
};

__device__ inline Down step_down(int kind, bool gated, float gate, float up, float da, float w) {
  float bent = bend(kind, gated ? gate : up), a = gated ? bent * up : bent;
  float steep = slope(kind, gated ? gate : up) * w * da;
  Down down = {gated ? steep * up : 0.0f, gated ? w * da * bent : steep, w * a, da * a};
  return down;
}

// One warp per row, since dweight is a sum over it.
template <typename T>
__device__ inline void activation_backward(const T *gate_nh, const T *up_nh, const T *da_nh,
                                           const float *weight_n, T *dgate_nh, T *dup_nh, T *scaled_nh,
                                           float *dweight_n, const int *rows, int h, int kind) {
  constexpr int lanes = Pack<T>::lanes;
  bool gated = gate_nh != nullptr, packed = h % lanes == 0;
  for (long long n = blockIdx.x * warps() + warp(); n < *rows; n += gridDim.x * warps()) {
    long long base = n * h;
    float w = weight_n[n], sum = 0.0f;
    if (packed) {
      for (int i = lane() * lanes; i < h; i += WARP * lanes) {
        Pack<T> up = load(up_nh + base + i), da = load(da_nh + base + i);
        Pack<T> gate = gated ? load(gate_nh + base + i) : up, dgate, dup, scaled;
        for (int j = 0; j < lanes; ++j) {
          Down down = step_down(kind, gated, to_float(gate.value[j]), to_float(up.value[j]),
                                to_float(da.value[j]), w);
          dgate.value[j] = from_float<T>(down.dgate);
          dup.value[j] = from_float<T>(down.dup);
          scaled.value[j] = from_float<T>(down.scaled);
          sum += down.dweight;
        }
        if (gated) store(dgate_nh + base + i, dgate);
        store(dup_nh + base + i, dup);
        store(scaled_nh + base + i, scaled);
      }
    } else {
      for (long long i = base + lane(); i < base + h; i += WARP) {
        float gate = gated ? to_float(gate_nh[i]) : 0.0f;
        Down down = step_down(kind, gated, gate, to_float(up_nh[i]), to_float(da_nh[i]), w);
        if (gated) dgate_nh[i] = from_float<T>(down.dgate);
        dup_nh[i] = from_float<T>(down.dup);
        scaled_nh[i] = from_float<T>(down.scaled);
        sum += down.dweight;
      }
    }
    sum = warp_sum(sum);
    if (lane() == 0) dweight_n[n] = sum;
  }
}

#define ACTIVATION(T, name)                                                                          \
  extern "C" __global__ void activation_forward_##name(const T *gate_nh, const T *up_nh, T *a_nh,    \
                                                       const int *rows, int h, int kind) {           \
    activation_forward(gate_nh, up_nh, a_nh, rows, h, kind);                                         \
  }                                                                                                  \
  extern "C" __global__ void activation_backward_##name(                                             \
      const T *gate_nh, const T *up_nh, const T *da_nh, const float *weight_n, T *dgate_nh,          \
      T *dup_nh, T *scaled_nh, float *dweight_n, const int *rows, int h, int kind) {                 \
    activation_backward(gate_nh, up_nh, da_nh, weight_n, dgate_nh, dup_nh, scaled_nh, dweight_n,     \
                        rows, h, kind);                                                              \
  }

ACTIVATION(float, f32)
ACTIVATION(bf16, bf16)

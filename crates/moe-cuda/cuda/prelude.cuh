// What all kernels share. The compiler gets this text before theirs: no header of the CUDA toolkit is
// needed, neither here nor for bf16, which is converted with integers. The same text compiles as plain
// C++ for the emulator, so that what tests run on a CPU is what runs on a GPU.
//
// Axis letters: g groups, t tokens of a group, d width, h hidden width, e experts, k choices, n routed
// rows sorted by expert, q queues (one for each expert and group), c chunks of a group's tokens.

typedef unsigned int u32;

struct bf16 {
  unsigned short bits;
};

// 16 bytes: the widest load and store of a thread.
template <typename T> struct alignas(16) Pack {
  static constexpr int lanes = 16 / sizeof(T);
  T value[lanes];
};

static constexpr int WARP = 32;
static constexpr u32 ALL_LANES = 0xffffffffu;

// The emulator has its own way to share memory between the threads of a block.
#ifndef SHARED_INTS
#define SHARED_INTS(name) extern __shared__ int name[]
#endif

__device__ inline float infinity() { return __uint_as_float(0x7f800000u); }

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(bf16 value) { return __uint_as_float(u32(value.bits) << 16); }

template <typename T> __device__ inline T from_float(float value);
template <> __device__ inline float from_float<float>(float value) { return value; }
template <> __device__ inline bf16 from_float<bf16>(float value) {
  u32 bits = __float_as_uint(value);
  // Rounding would carry a NaN's payload into its exponent and sign.
  bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  u32 rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  bf16 result = {static_cast<unsigned short>((nan ? bits | 0x00400000u : rounded) >> 16)};
  return result;
}

template <typename T> __device__ inline Pack<T> load(const T *at) {
  return *reinterpret_cast<const Pack<T> *>(at);
}
template <typename T> __device__ inline void store(T *at, const Pack<T> &pack) {
  *reinterpret_cast<Pack<T> *>(at) = pack;
}

// Every lane gets the same bits: both partners of an exchange add the same two numbers.
__device__ inline float warp_sum(float value) {
  for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(ALL_LANES, value, step);
  return value;
}

__device__ inline float warp_max(float value) {
  for (int step = WARP / 2; step > 0; step /= 2)
    value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, step));
  return value;
}

__device__ inline int lane() { return threadIdx.x % WARP; }
__device__ inline int warp() { return threadIdx.x / WARP; }
__device__ inline int warps() { return blockDim.x / WARP; }

// Tokens of one chunk: what one block routes, counts and scatters.
static constexpr int CHUNK = 32;

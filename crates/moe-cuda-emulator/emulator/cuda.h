// CUDA's words in C++: each thread of a block is a fiber of its own, and a barrier lets the others run
// until all have come to it. Blocks run one after the other.
#pragma once

#include <cmath>
#include <cstring>

#define __global__
#define __device__

struct Index {
  unsigned x, y, z;
};

namespace emulator {
// The thread that runs now, and its block.
Index thread_index();
Index block_index();
Index block_size();
Index grid_size();
int *shared_ints();
// Waits for all threads of the block, or of the warp.
void block_barrier();
void warp_barrier();
// What this thread shows to its warp, and what another lane shows.
void show(unsigned bits);
unsigned seen(unsigned lane);
unsigned own_lane();
}  // namespace emulator

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())
#define SHARED_INTS(name) int *name = emulator::shared_ints()

inline void __syncthreads() { emulator::block_barrier(); }
inline void __syncwarp() { emulator::warp_barrier(); }

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <typename T> T __shfl_xor_sync(unsigned, T value, int mask) {
  static_assert(sizeof(T) == 4, "one register");
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  emulator::show(bits);
  emulator::warp_barrier();
  bits = emulator::seen(emulator::own_lane() ^ static_cast<unsigned>(mask));
  // Nobody shows something else before all have looked.
  emulator::warp_barrier();
  std::memcpy(&value, &bits, sizeof bits);
  return value;
}

// Fibers change places at barriers only, so that nothing comes between reading and writing.
inline int atomicAdd(int *at, int value) {
  int before = *at;
  *at += value;
  return before;
}

inline int min(int a, int b) { return a < b ? a : b; }

// Runs the kernels: fibers for threads, and a table of kernels by name.

#include "cuda.h"

#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#include "prelude.cuh"

#include "activation.cu"
#include "combine.cu"
#include "plan.cu"
#include "route.cu"

namespace emulator {

constexpr size_t STACK = 64 * 1024;
// What shared memory holds at first, and words behind it that nobody may write to.
constexpr int GARBAGE = static_cast<int>(0xdeadbeef);
constexpr size_t GUARD = 1024;

struct Barrier {
  unsigned expected = 0, arrived = 0, generation = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[STACK]};
  Index thread;
  unsigned shown = 0;
  bool done = false;
};

// One launch; launches of different threads of the process do not meet.
struct Run {
  Index grid, block, at;
  std::vector<int> shared;
  std::vector<Fiber> fibers;
  std::vector<Barrier> warps;
  Barrier all;
  Fiber *now = nullptr;
  ucontext_t scheduler;
  // Counts every arrival at a barrier and every end: a turn without one is a deadlock.
  uint64_t progress = 0;
  void (*kernel)(void **) = nullptr;
  void **arguments = nullptr;
};

thread_local Run *run = nullptr;

Index thread_index() { return run->now->thread; }
Index block_index() { return run->at; }
Index block_size() { return run->block; }
Index grid_size() { return run->grid; }
int *shared_ints() { return run->shared.data(); }
unsigned own_lane() { return run->now->thread.x % WARP; }
void show(unsigned bits) { run->now->shown = bits; }
unsigned seen(unsigned lane) { return run->fibers[run->now->thread.x / WARP * WARP + lane].shown; }

static void wait(Barrier &barrier) {
  unsigned generation = barrier.generation;
  ++run->progress;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) swapcontext(&run->now->context, &run->scheduler);
}

void block_barrier() { wait(run->all); }
void warp_barrier() { wait(run->warps[run->now->thread.x / WARP]); }

static void begin() {
  run->kernel(run->arguments);
  run->now->done = true;
  ++run->progress;
  swapcontext(&run->now->context, &run->scheduler);
}

static void prepare(Run &it) {
  // What another block left, and what a device holds at first, is not zero.
  for (int &word : it.shared) word = GARBAGE;
  for (unsigned x = 0; x < it.block.x; ++x) {
    Fiber &fiber = it.fibers[x];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    fiber.thread = {x, 0, 0};
    fiber.done = false;
    makecontext(&fiber.context, begin, 0);
  }
  for (Barrier &warp : it.warps) warp = Barrier{WARP};
  it.all = Barrier{it.block.x};
}

static bool guard_is_whole(const Run &it) {
  for (size_t i = it.shared.size() - GUARD; i < it.shared.size(); ++i)
    if (it.shared[i] != GARBAGE) return false;
  return true;
}

// 0, or what moe_emulate says.
static int run_block(Run &it, bool backwards) {
  prepare(it);
  for (;;) {
    uint64_t before = it.progress;
    bool done = true;
    for (unsigned i = 0; i < it.block.x; ++i) {
      Fiber &fiber = it.fibers[backwards ? it.block.x - 1 - i : i];
      if (fiber.done) continue;
      done = false;
      it.now = &fiber;
      swapcontext(&it.scheduler, &fiber.context);
    }
    if (done) return guard_is_whole(it) ? 0 : 3;
    if (it.progress == before) return 2;
  }
}

template <typename... A, size_t... I>
void call(void (*kernel)(A...), void **arguments, std::index_sequence<I...>) {
  kernel(*static_cast<A *>(arguments[I])...);
}

template <typename... A> void call(void (*kernel)(A...), void **arguments) {
  call(kernel, arguments, std::index_sequence_for<A...>());
}

struct Entry {
  const char *name;
  void (*kernel)(void **);
};

#define ENTRY(name) {#name, [](void **arguments) { call(name, arguments); }}

static const Entry ENTRIES[] = {
    ENTRY(route_f32),
    ENTRY(route_bf16),
    ENTRY(route_backward_f32),
    ENTRY(route_backward_bf16),
    ENTRY(count_choices),
    ENTRY(prefix_chunks),
    ENTRY(prefix_queues),
    ENTRY(scatter_choices),
    ENTRY(activation_forward_f32),
    ENTRY(activation_forward_bf16),
    ENTRY(activation_backward_f32),
    ENTRY(activation_backward_bf16),
    ENTRY(gather_rows_f32),
    ENTRY(gather_rows_bf16),
    ENTRY(gather_sum_f32),
    ENTRY(gather_sum_bf16),
    ENTRY(clear_empty_f32),
    ENTRY(clear_empty_bf16),
};

static void (*find(const char *name))(void **) {
  for (const Entry &entry : ENTRIES)
    if (std::strcmp(entry.name, name) == 0) return entry.kernel;
  return nullptr;
}

}  // namespace emulator

extern "C" int moe_emulates(const char *name) { return emulator::find(name) != nullptr; }

// 0: done. 1: no such kernel. 2: threads wait for others that never come. 3: a write past shared memory. `backwards` runs blocks and threads in
// falling order, which no result may depend on.
extern "C" int moe_emulate(const char *name, unsigned grid_x, unsigned grid_y, unsigned block,
                           unsigned shared_bytes, void **arguments, int backwards) {
  using namespace emulator;
  void (*kernel)(void **) = find(name);
  if (kernel == nullptr) return 1;
  Run it;
  it.grid = {grid_x, grid_y, 1};
  it.block = {block, 1, 1};
  it.shared.resize(shared_bytes / sizeof(int) + GUARD);
  it.fibers = std::vector<Fiber>(block);
  it.warps.resize(block / WARP);
  it.kernel = kernel;
  it.arguments = arguments;
  run = &it;
  unsigned blocks = grid_x * grid_y;
  int code = 0;
  for (unsigned i = 0; i < blocks && code == 0; ++i) {
    unsigned at = backwards != 0 ? blocks - 1 - i : i;
    it.at = {at % grid_x, at / grid_x, 0};
    code = run_block(it, backwards != 0);
  }
  run = nullptr;
  return code;
}

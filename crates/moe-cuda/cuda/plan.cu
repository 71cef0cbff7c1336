// From choices to rows sorted by expert, then by group, then by token, then by choice: a stable counting
// sort. Choices are counted by chunk, the counts summed over the chunks of a queue, the queues' lengths
// summed over the queues, and each choice then knows its row. A capacity keeps the first places of each
// queue. No sum depends on which block comes first.
//
// not yet run on a GPU

// Choices that queue nowhere have the expert -1.
extern "C" __global__ void count_choices(const int *expert_gtk, int *count_qc, int tokens, int experts,
                                         int k) {
  SHARED_INTS(count_e);
  for (int e = threadIdx.x; e < experts; e += blockDim.x) count_e[e] = 0;
  __syncthreads();
  int group = blockIdx.y, first = blockIdx.x * CHUNK, end = min(first + CHUNK, tokens);
  const int *choice = expert_gtk + static_cast<long long>(group) * tokens * k;
  for (int i = first * k + threadIdx.x; i < end * k; i += blockDim.x)
    if (choice[i] >= 0) atomicAdd(&count_e[choice[i]], 1);
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += blockDim.x)
    count_qc[(static_cast<long long>(e) * gridDim.y + group) * gridDim.x + blockIdx.x] = count_e[e];
}

// The sum of the values of earlier threads, and in `total` that of all. `room` holds a number per
// thread.
__device__ inline int prefix_in_block(int value, int *room, int *total) {
  int own = threadIdx.x, threads = blockDim.x;
  room[own] = value;
  __syncthreads();
  for (int step = 1; step < threads; step *= 2) {
    int earlier = own >= step ? room[own - step] : 0;
    __syncthreads();
    room[own] += earlier;
    __syncthreads();
  }
  *total = room[threads - 1];
  int before = room[own] - value;
  __syncthreads();
  return before;
}

// Counts of one queue become the numbers of choices in earlier chunks. One block per queue.
extern "C" __global__ void prefix_chunks(int *count_qc, int *length_q, int chunks) {
  SHARED_INTS(room);
  int *count_c = count_qc + static_cast<long long>(blockIdx.x) * chunks;
  int sum = 0;
  for (int first = 0; first < chunks; first += blockDim.x) {
    int c = first + threadIdx.x, total;
    int before = prefix_in_block(c < chunks ? count_c[c] : 0, room, &total);
    if (c < chunks) count_c[c] = sum + before;
    sum += total;
  }
  if (threadIdx.x == 0) length_q[blockIdx.x] = sum;
}

// Where the rows of each queue start, where those of each expert end, and how many it has. One block.
extern "C" __global__ void prefix_queues(const int *length_q, int *start_q, int *end_e, long long *load_e,
                                         int experts, int groups, int capacity) {
  SHARED_INTS(room);
  int sum = 0;
  for (int first = 0; first < experts * groups; first += blockDim.x) {
    int q = first + threadIdx.x, total;
    int length = q < experts * groups ? min(length_q[q], capacity) : 0;
    int start = sum + prefix_in_block(length, room, &total);
    if (q < experts * groups) {
      start_q[q] = start;
      if (q % groups == groups - 1) end_e[q / groups] = start + length;
    }
    sum += total;
  }
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += blockDim.x)
    load_e[e] = end_e[e] - (e == 0 ? 0 : end_e[e - 1]);
}

// Each choice to its row; -1 in row_gtk for one that has none. `count_qc` is what prefix_chunks left.
extern "C" __global__ void scatter_choices(const int *expert_gtk, const float *gate_gtk,
                                           const int *count_qc, const int *start_q, int *token_n,
                                           float *weight_n, int *row_gtk, int tokens, int k,
                                           int capacity) {
  SHARED_INTS(expert_i);
  int group = blockIdx.y, first = blockIdx.x * CHUNK, end = min(first + CHUNK, tokens);
  long long base = (static_cast<long long>(group) * tokens + first) * k;
  int choices = (end - first) * k;
  for (int i = threadIdx.x; i < choices; i += blockDim.x) expert_i[i] = expert_gtk[base + i];
  __syncthreads();
  for (int i = threadIdx.x; i < choices; i += blockDim.x) {
    int expert = expert_i[i], row = -1;
    if (expert >= 0) {
      int queue = expert * gridDim.y + group;
      int place = count_qc[static_cast<long long>(queue) * gridDim.x + blockIdx.x];
      for (int j = 0; j < i; ++j) place += expert_i[j] == expert;
      if (place < capacity) row = start_q[queue] + place;
    }
    row_gtk[base + i] = row;
    if (row < 0) continue;
    token_n[row] = group * tokens + first + i / k;
    weight_n[row] = gate_gtk[base + i];
  }
}

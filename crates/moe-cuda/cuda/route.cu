// Scores, the k best experts of each token, their gates, and how many choices each expert has in each
// chunk; and the way back. One warp per token.
//
// not yet run on a GPU

// An integer that is larger for a larger score: the key of the total order, zeros alike. The least
// integer stays free: it marks what is taken.
__device__ inline int sort_key(float score) {
  int bits = score == 0.0f ? 0 : static_cast<int>(__float_as_uint(score));
  int key = bits ^ (bits < 0 ? 0x7fffffff : 0);
  return key == -0x7fffffff - 1 ? key + 1 : key;
}

// The expert with the largest key, the lower index among equals; the same in all lanes.
__device__ inline int warp_best(const int *key_e, int experts) {
  int best = -0x7fffffff - 1, at = experts;
  for (int e = lane(); e < experts; e += WARP)
    if (key_e[e] > best) best = key_e[e], at = e;
  for (int step = WARP / 2; step > 0; step /= 2) {
    int other = __shfl_xor_sync(ALL_LANES, best, step);
    int other_at = __shfl_xor_sync(ALL_LANES, at, step);
    if (other > best || (other == best && other_at < at)) best = other, at = other_at;
  }
  return at;
}

// score_te[e] of one token: softmax over the experts, or the sigmoid of each.
template <typename T>
__device__ inline void score_token(const T *logit_e, float *score_e, int experts, bool sigmoid) {
  if (sigmoid) {
    for (int e = lane(); e < experts; e += WARP) score_e[e] = 1.0f / (1.0f + expf(-to_float(logit_e[e])));
    return;
  }
  float most = -infinity(), sum = 0.0f;
  for (int e = lane(); e < experts; e += WARP) most = fmaxf(most, to_float(logit_e[e]));
  most = warp_max(most);
  for (int e = lane(); e < experts; e += WARP) sum += expf(to_float(logit_e[e]) - most);
  sum = warp_sum(sum);
  for (int e = lane(); e < experts; e += WARP) score_e[e] = expf(to_float(logit_e[e]) - most) / sum;
}

// Chooses by logit: both scores grow with it, and it has not been rounded.
template <typename T>
__device__ inline void route_token(const T *logit_e, float *score_e, int *expert_k, float *gate_k,
                                   int *key_e, int *count_e, int experts, int k, bool sigmoid,
                                   bool renormalise) {
  score_token(logit_e, score_e, experts, sigmoid);
  for (int e = lane(); e < experts; e += WARP) key_e[e] = sort_key(to_float(logit_e[e]));
  __syncwarp();
  float sum = 0.0f;
  for (int choice = 0; choice < k; ++choice) {
    int best = warp_best(key_e, experts);
    sum += score_e[best];
    __syncwarp();
    if (lane() == 0) {
      key_e[best] = -0x7fffffff - 1;
      expert_k[choice] = best;
      atomicAdd(&count_e[best], 1);
    }
    __syncwarp();
  }
  for (int choice = lane(); choice < k; choice += WARP)
    gate_k[choice] = score_e[expert_k[choice]] / (renormalise ? sum : 1.0f);
  __syncwarp();
}

template <typename T>
__device__ inline void route(const T *logit_gte, float *score_gte, int *expert_gtk, float *gate_gtk,
                             int *count_qc, int tokens, int experts, int k, int sigmoid,
                             int renormalise) {
  SHARED_INTS(shared);
  int *count_e = shared, *key_e = shared + experts * (1 + warp());
  for (int e = threadIdx.x; e < experts; e += blockDim.x) count_e[e] = 0;
  __syncthreads();
  int group = blockIdx.y, first = blockIdx.x * CHUNK, end = min(first + CHUNK, tokens);
  for (int t = first + warp(); t < end; t += warps()) {
    long long token = static_cast<long long>(group) * tokens + t;
    route_token(logit_gte + token * experts, score_gte + token * experts, expert_gtk + token * k,
                gate_gtk + token * k, key_e, count_e, experts, k, sigmoid != 0, renormalise != 0);
  }
  __syncthreads();
  for (int e = threadIdx.x; e < experts; e += blockDim.x)
    count_qc[(static_cast<long long>(e) * gridDim.y + group) * gridDim.x + blockIdx.x] = count_e[e];
}

// Gradient of a token's logits from those of its gates, and of its scores where losses read them.
//   gate_i = s_i / S   ds_i = (dgate_i - sum_j dgate_j gate_j) / S
//   softmax            dl_i = s_i (ds_i - sum_j ds_j s_j)
//   sigmoid            dl_i = ds_i s_i (1 - s_i)
template <typename T>
__device__ inline void route_token_backward(const float *score_e, const int *expert_k,
                                            const float *gate_k, const float *dgate_k,
                                            const float *dscore_e, T *dlogit_e, float *ds_e, int experts,
                                            int k, bool sigmoid, bool renormalise) {
  for (int e = lane(); e < experts; e += WARP) ds_e[e] = dscore_e == nullptr ? 0.0f : dscore_e[e];
  __syncwarp();
  float sum = 0.0f, inner = 0.0f;
  for (int choice = 0; choice < k; ++choice) {
    sum += score_e[expert_k[choice]];
    inner += dgate_k[choice] * gate_k[choice];
  }
  for (int choice = lane(); choice < k; choice += WARP)
    ds_e[expert_k[choice]] += renormalise ? (dgate_k[choice] - inner) / sum : dgate_k[choice];
  __syncwarp();
  float mean = 0.0f;
  for (int e = lane(); e < experts; e += WARP) mean += ds_e[e] * score_e[e];
  mean = warp_sum(mean);
  for (int e = lane(); e < experts; e += WARP) {
    float s = score_e[e];
    dlogit_e[e] = from_float<T>(sigmoid ? ds_e[e] * s * (1.0f - s) : s * (ds_e[e] - mean));
  }
  __syncwarp();
}

template <typename T>
__device__ inline void route_backward(const float *score_te, const int *expert_tk, const float *gate_tk,
                                      const float *dgate_tk, const float *dscore_te, T *dlogit_te,
                                      int tokens, int experts, int k, int sigmoid, int renormalise) {
  SHARED_INTS(shared);
  float *ds_e = reinterpret_cast<float *>(shared) + experts * warp();
  for (long long t = blockIdx.x * warps() + warp(); t < tokens; t += gridDim.x * warps()) {
    const float *dscore_e = dscore_te == nullptr ? nullptr : dscore_te + t * experts;
    route_token_backward(score_te + t * experts, expert_tk + t * k, gate_tk + t * k, dgate_tk + t * k,
                         dscore_e, dlogit_te + t * experts, ds_e, experts, k, sigmoid != 0,
                         renormalise != 0);
  }
}

#define ROUTE(T, name)                                                                               \
  extern "C" __global__ void route_##name(const T *logit_gte, float *score_gte, int *expert_gtk,     \
                                          float *gate_gtk, int *count_qc, int tokens, int experts,   \
                                          int k, int sigmoid, int renormalise) {                     \
    route(logit_gte, score_gte, expert_gtk, gate_gtk, count_qc, tokens, experts, k, sigmoid,         \
          renormalise);                                                                              \
  }                                                                                                  \
  extern "C" __global__ void route_backward_##name(                                                  \
      const float *score_te, const int *expert_tk, const float *gate_tk, const float *dgate_tk,      \
      const float *dscore_te, T *dlogit_te, int tokens, int experts, int k, int sigmoid,             \
      int renormalise) {                                                                             \
    route_backward(score_te, expert_tk, gate_tk, dgate_tk, dscore_te, dlogit_te, tokens, experts, k, \
                   sigmoid, renormalise);                                                            \
  }

ROUTE(float, f32)
ROUTE(bf16, bf16)

// The few functions of libtorch that the C interface of torch-sys lacks. Every function catches what
// libtorch throws and hands it back as text; Rust owns that text and gives it back to moe_free_text.

#include <ATen/Context.h>
#include <ATen/TensorIterator.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/edge.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

using at::Tensor;
using torch::autograd::variable_list;

extern "C" {
// Gradient of the output -> gradients of the inputs, null where there is none; ownership of the
// tensors passes to the caller. Returns null, or why it failed, to be freed by moe_free_text.
typedef char *(*moe_backward)(void *state, Tensor *grad, Tensor **grads, size_t count);
typedef void (*moe_drop)(void *state);
}

namespace {

char *text(const std::string &message) {
  char *copy = static_cast<char *>(std::malloc(message.size() + 1));
  if (copy != nullptr) std::memcpy(copy, message.c_str(), message.size() + 1);
  return copy;
}

template <typename F> char *guarded(F &&f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception &error) {
    return text(error.what());
  } catch (...) {
    return text("an exception of unknown type");
  }
}

// One step of the graph whose derivative is computed by Rust.
struct RustNode : public torch::autograd::Node {
  RustNode(moe_backward backward, moe_drop drop, void *state, size_t inputs)
      : backward_(backward), drop_(drop), state_(state), inputs_(inputs) {}

  ~RustNode() override { release_variables(); }

  std::string name() const override { return "RustNode"; }

  variable_list apply(variable_list &&grads) override {
    TORCH_CHECK(state_ != nullptr, "backward through a fused layer for the second time");
    if (!grads[0].defined()) return variable_list(inputs_);
    std::vector<Tensor *> found(inputs_, nullptr);
    char *error = backward_(state_, &grads[0], found.data(), inputs_);
    variable_list result(inputs_);
    for (size_t i = 0; i < inputs_; ++i) {
      if (found[i] == nullptr) continue;
      result[i] = *found[i];
      delete found[i];
    }
    if (error != nullptr) {
      std::string message(error);
      std::free(error);
      TORCH_CHECK(false, message);
    }
    return result;
  }

  // Called after a backward that keeps no graph: what the forward saved goes at once.
  void release_variables() override {
    if (state_ != nullptr) drop_(state_);
    state_ = nullptr;
  }

  moe_backward backward_;
  moe_drop drop_;
  void *state_;
  size_t inputs_;
};

std::vector<Tensor> list(Tensor *const *tensors, size_t count) {
  std::vector<Tensor> all;
  all.reserve(count);
  for (size_t i = 0; i < count; ++i) all.push_back(*tensors[i]);
  return all;
}

// `x W^T` with oneDNN's own choice of kernel, whatever the strides of the factors.
using OneDnnLinear = Tensor(const Tensor &, const Tensor &, const std::optional<Tensor> &,
                            std::string_view, c10::List<std::optional<at::Scalar>>,
                            std::optional<std::string_view>);

std::optional<c10::OperatorHandle> onednn_linear() {
  return c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
}

}  // namespace

extern "C" {

void moe_free_text(char *text) { std::free(text); }

// Makes a copy of `text` that moe_free_text can free.
char *moe_copy_text(const char *bytes, size_t count) { return text(std::string(bytes, count)); }

// Whether a function of these inputs has to be put on the graph now.
bool moe_wants_graph(Tensor *const *inputs, size_t count) {
  if (!at::GradMode::is_enabled()) return false;
  for (size_t i = 0; i < count; ++i)
    if (inputs[i]->requires_grad()) return true;
  return false;
}

// The leaf's own gradient, zeros if it had none; the caller owns the handle.
char *moe_own_grad(Tensor *leaf, Tensor **grad) {
  return guarded([&] {
    if (!leaf->grad().defined()) leaf->mutable_grad() = at::zeros_like(leaf->detach());
    *grad = new Tensor(leaf->grad());
  });
}

// `output`, computed from `inputs` without a graph, as a step of the graph. Takes `state` in any case.
char *moe_attach(Tensor *output, Tensor *const *inputs, size_t count, moe_backward backward,
                 moe_drop drop, void *state, Tensor **attached) {
  return guarded([&] {
    std::shared_ptr<RustNode> node(new RustNode(backward, drop, state, count),
                                   torch::autograd::deleteNode);
    auto all = list(inputs, count);
    node->set_next_edges(torch::autograd::collect_next_edges(all));
    Tensor result = output->detach();
    torch::autograd::set_history(result, node);
    *attached = new Tensor(std::move(result));
  });
}

// The stream that libtorch uses now on a CUDA device, as the driver knows it. Without a CUDA part in the
// process there is none, and libtorch says so.
char *moe_current_stream(int device, void **stream) {
  return guarded([&] {
    c10::impl::VirtualGuardImpl cuda(c10::DeviceType::CUDA);
    c10::Device at(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device));
    *stream = cuda.getStream(at).native_handle();
  });
}

// One fused AdamW step over `count` parameters; gradients are divided by `grad_scale` first.
char *moe_fused_adamw(Tensor *const *params, Tensor *const *grads, Tensor *const *m, Tensor *const *v,
                      Tensor *const *steps, size_t count, double lr, double beta1, double beta2,
                      double weight_decay, double eps, Tensor *grad_scale) {
  return guarded([&] {
    at::NoGradGuard guard;
    auto p = list(params, count), g = list(grads, count), a = list(m, count), b = list(v, count),
         s = list(steps, count);
    std::optional<Tensor> scale;
    if (grad_scale != nullptr) scale = *grad_scale;
    at::_fused_adamw_(p, g, a, b, {}, s, lr, beta1, beta2, weight_decay, eps, false, false, scale,
                      std::nullopt);
    // The kernel writes behind the back of version counters; whoever keeps a copy reads them.
    for (auto *written : {&p, &a, &b})
      for (auto &tensor : *written) tensor.unsafeGetTensorImpl()->bump_version();
  });
}

// Whether this libtorch has oneDNN's linear layer.
bool moe_has_onednn() { return at::globalContext().hasMKLDNN() && onednn_linear().has_value(); }

// `x_ni weight_oi^T` through oneDNN, without a graph; the caller owns the handle.
char *moe_onednn_linear(Tensor *x_ni, Tensor *weight_oi, Tensor **y_no) {
  return guarded([&] {
    at::NoGradGuard guard;
    static const auto linear = onednn_linear().value().typed<OneDnnLinear>();
    c10::List<std::optional<at::Scalar>> none;
    *y_no = new Tensor(linear.call(*x_ni, *weight_oi, std::nullopt, "none", none, std::nullopt));
  });
}

// Calls `call(state)` `count` times on libtorch's threads, at once as far as there are threads. The loop is
// that of an operation over `count` values: at::parallel_for is a template, and whoever instantiates it
// has to be compiled and linked for the same threads as libtorch.
char *moe_parallel(size_t count, void (*call)(const void *), const void *state) {
  return guarded([&] {
    Tensor calls = at::empty({static_cast<int64_t>(count)}, at::kByte);
    auto iterator = at::TensorIterator::nullary_op(calls);
    iterator.for_each(
        [&](char **, const int64_t *, int64_t share) {
          for (int64_t i = 0; i < share; ++i) call(state);
        },
        /*grain_size=*/1);
  });
}

// libtorch's switch for algorithms that give the same bits every time.
char *moe_set_deterministic(bool on) {
  return guarded([&] { at::globalContext().setDeterministicAlgorithms(on, false); });
}
}

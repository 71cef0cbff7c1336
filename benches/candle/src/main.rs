//! A sparse layer by candle for `moe speed --program candle=target/release/candle-peer`.
//!
//! Softmax routing, the k best over their sum, SwiGLU experts one after the other: the algorithm of candle's own
//! Qwen3-MoE block, on random weights and tokens. Arguments and messages are those of every such program
//! (docs/performance.md).
//!
//! Axis letters: `t` tokens, `d` width, `h` hidden width, `e` experts, `k` choices of a token.

use anyhow::{Result, bail};
use candle_core::{D, Device, Tensor, Var};
use candle_nn::ops::{silu, softmax_last_dim};
use serde::Deserialize;
use std::io::BufRead;
use std::time::Instant;

/// Sizes of a layer.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Size {
    tokens: usize,
    width: usize,
    hidden: usize,
    experts: usize,
    top_k: usize,
}

/// One expert's matrices.
#[derive(Debug)]
struct Expert {
    gate_hd: Var,
    up_hd: Var,
    down_dh: Var,
}

/// The layer.
#[derive(Debug)]
struct Layer {
    router_ed: Var,
    experts: Vec<Expert>,
    top_k: usize,
}

/// Normal, each row of unit length on average.
fn random(rows: usize, columns: usize) -> Result<Var> {
    let std = (columns as f32).powf(-0.5);
    Ok(Var::from_tensor(&Tensor::randn(0.0_f32, std, (rows, columns), &Device::Cpu)?)?)
}

impl Expert {
    fn new(size: Size) -> Result<Self> {
        let (d, h) = (size.width, size.hidden);
        Ok(Self { gate_hd: random(h, d)?, up_hd: random(h, d)?, down_dh: random(d, h)? })
    }

    fn forward(&self, x_nd: &Tensor) -> Result<Tensor> {
        let gate_nh = silu(&x_nd.matmul(&self.gate_hd.t()?)?)?;
        let hidden_nh = (gate_nh * x_nd.matmul(&self.up_hd.t()?)?)?;
        Ok(hidden_nh.matmul(&self.down_dh.t()?)?)
    }
}

impl Layer {
    fn new(size: Size) -> Result<Self> {
        let experts = (0..size.experts).map(|_| Expert::new(size)).collect::<Result<_>>()?;
        Ok(Self { router_ed: random(size.experts, size.width)?, experts, top_k: size.top_k })
    }

    fn forward(&self, x_td: &Tensor) -> Result<Tensor> {
        let prob_te = softmax_last_dim(&x_td.matmul(&self.router_ed.t()?)?)?;
        let order_te = prob_te.arg_sort_last_dim(false)?;
        let expert_tk = order_te.narrow(D::Minus1, 0, self.top_k)?.contiguous()?;
        let weight_tk = prob_te.gather(&expert_tk, D::Minus1)?;
        let weight_tk = weight_tk.broadcast_div(&weight_tk.sum_keepdim(D::Minus1)?)?;
        let weight_n = weight_tk.flatten_all()?;
        let mut rows_e = vec![(Vec::new(), Vec::new()); self.experts.len()];
        for (token, chosen) in expert_tk.to_vec2::<u32>()?.into_iter().enumerate() {
            for (choice, expert) in chosen.into_iter().enumerate() {
                let (tokens, places) = &mut rows_e[expert as usize];
                tokens.push(token as u32);
                places.push((token * self.top_k + choice) as u32);
            }
        }
        let mut y_td = x_td.zeros_like()?;
        for (expert, (tokens, places)) in self.experts.iter().zip(rows_e) {
            if tokens.is_empty() {
                continue;
            }
            let token_n = Tensor::new(tokens, &Device::Cpu)?;
            let place_n = Tensor::new(places, &Device::Cpu)?;
            let weight_n1 = weight_n.index_select(&place_n, 0)?.unsqueeze(1)?;
            let y_nd = expert.forward(&x_td.index_select(&token_n, 0)?)?;
            y_td = y_td.index_add(&token_n, &y_nd.broadcast_mul(&weight_n1)?, 0)?;
        }
        Ok(y_td)
    }
}

fn say(message: &serde_json::Value) {
    println!("{message}");
}

fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
}

/// Seconds of one pass.
fn round(layer: &Layer, x_td: &Var, backward: bool) -> Result<f64> {
    let start = Instant::now();
    let y_td = if backward { layer.forward(x_td)? } else { layer.forward(&x_td.detach())? };
    if backward {
        y_td.sum_all()?.backward()?;
    }
    Ok(start.elapsed().as_secs_f64())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [size, dtype, pass, threads] = args.as_slice() else {
        bail!(
            "expected four arguments: size as JSON, f32 or bf16, forward or forward_backward, threads"
        );
    };
    if dtype != "f32" {
        say(&serde_json::json!({"missing": "products of bf16 on a CPU in candle"}));
        return Ok(());
    }
    // SAFETY: nothing has started a thread yet; candle reads it when it starts its own.
    unsafe { std::env::set_var("RAYON_NUM_THREADS", threads) };
    let size: Size = serde_json::from_str(size)?;
    let layer = Layer::new(size)?;
    // A decoding step meets new tokens, and so other experts, each time.
    let inputs = if size.tokens <= 16 { 16 } else { 2 };
    let token = |_| {
        Ok(Var::from_tensor(&Tensor::randn(
            0.0_f32,
            1.0,
            (size.tokens, size.width),
            &Device::Cpu,
        )?)?)
    };
    let inputs = (0..inputs).map(token).collect::<Result<Vec<_>>>()?;

    say(&serde_json::json!({"ready": "candle 0.11.1"}));
    for (number, line) in std::io::stdin().lock().lines().enumerate() {
        line?;
        let seconds = round(&layer, &inputs[number % inputs.len()], pass == "forward_backward")?;
        say(&serde_json::json!({"seconds": seconds, "peak_bytes": peak_bytes()}));
    }
    Ok(())
}

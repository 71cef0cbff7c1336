//! Experts as one batched matmul.
//!
//! Axis letters: `n` rows sorted by expert, `c` rows of the busiest expert, `d` width, `h` hidden
//! width, `e` experts.

use super::Experts;
use tch::{Kind, Tensor};

impl Experts {
    /// Rows to `[e, c, d]`, two or three batched products, and back. `[n, d] -> [n, d]`.
    pub(super) fn forward_padded(&self, x_nd: &Tensor, load_e: &Tensor) -> Tensor {
        let (e, d) = (self.count(), x_nd.size()[1]);
        if x_nd.size()[0] == 0 {
            return x_nd.zeros_like();
        }
        let c = load_e.max().int64_value(&[]);
        let slot_n = slots(load_e, c);
        let room_sd = Tensor::zeros([e * c, d], (x_nd.kind(), x_nd.device()));
        let x_ecd = room_sd.index_copy(0, &slot_n, x_nd).view([e, c, d]);
        let product = |x: &Tensor, w: &Tensor| x.bmm(&w.transpose(1, 2));
        let biased = |y: Tensor, b: &Option<Tensor>| match b {
            Some(b) => y + b.unsqueeze(1),
            None => y,
        };
        let up_ech = biased(product(&x_ecd, &self.w1_ehd), &self.b1_eh);
        let h_ech = match &self.gate_ehd {
            Some(gate) => self.activation.apply(&product(&x_ecd, gate)) * up_ech,
            None => self.activation.apply(&up_ech),
        };
        let y_ecd = biased(product(&h_ech, &self.w2_edh), &self.b2_ed);
        // `embedding`, whose backward is deterministic on every device.
        Tensor::embedding(&y_ecd.view([e * c, d]), &slot_n, -1, false, false)
    }
}

/// Where each row stands if every expert has `c` places, `[n]`.
fn slots(load_e: &Tensor, c: i64) -> Tensor {
    let expert_n = Tensor::repeat_interleave(load_e, None);
    let start_e = load_e.cumsum(0, Kind::Int64) - load_e;
    let row_n = Tensor::arange(expert_n.numel() as i64, (Kind::Int64, load_e.device()));
    &expert_n * c + row_n - start_e.index_select(0, &expert_n)
}

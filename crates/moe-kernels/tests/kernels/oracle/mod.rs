//! The experts in plain `f64` loops, in the order of their equations.
//!
//! Axis letters: `t` tokens, `n` routed rows, `d` width, `h` hidden width, `e` experts.

pub(crate) mod problem;
pub(crate) mod tolerance;

use moe_kernels::{Activation, Shape};
use std::f64::consts::{FRAC_1_SQRT_2, PI};

/// Values of everything that a gradient exists for; also those gradients.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Values {
    pub(crate) x_td: Vec<f64>,
    pub(crate) weight_n: Vec<f64>,
    pub(crate) w1_ehd: Vec<f64>,
    pub(crate) gate_ehd: Vec<f64>,
    pub(crate) w2_edh: Vec<f64>,
    pub(crate) b1_eh: Vec<f64>,
    pub(crate) b2_ed: Vec<f64>,
}

impl Values {
    /// All arrays with their names.
    pub(crate) fn all_mut(&mut self) -> [(&'static str, &mut Vec<f64>); 7] {
        [
            ("x_td", &mut self.x_td),
            ("weight_n", &mut self.weight_n),
            ("w1_ehd", &mut self.w1_ehd),
            ("gate_ehd", &mut self.gate_ehd),
            ("w2_edh", &mut self.w2_edh),
            ("b1_eh", &mut self.b1_eh),
            ("b2_ed", &mut self.b2_ed),
        ]
    }

    fn zeros(&self) -> Self {
        let mut zeros = self.clone();
        for (_, values) in zeros.all_mut() {
            values.fill(0.0);
        }
        zeros
    }
}

/// `a(x)` and `a'(x)`.
fn curve(activation: Activation, x: f64) -> [f64; 2] {
    match activation {
        Activation::Relu => [x.max(0.0), if x > 0.0 { 1.0 } else { 0.0 }],
        Activation::Gelu | Activation::Geglu => {
            let below = 0.5 * (1.0 + libm::erf(x * FRAC_1_SQRT_2));
            [x * below, below + x * (-0.5 * x * x).exp() / (2.0 * PI).sqrt()]
        }
        Activation::Swiglu => {
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            [x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid))]
        }
    }
}

/// A row on its way through an expert.
struct Row<'a> {
    shape: &'a Shape,
    values: &'a Values,
    expert: usize,
    token: usize,
}

impl Row<'_> {
    fn input(&self, d: usize) -> usize {
        self.token * self.shape.width + d
    }

    fn up(&self, h: usize, d: usize) -> usize {
        (self.expert * self.shape.hidden + h) * self.shape.width + d
    }

    fn down(&self, d: usize, h: usize) -> usize {
        (self.expert * self.shape.width + d) * self.shape.hidden + h
    }

    fn product(&self, matrix: &[f64], h: usize) -> f64 {
        (0..self.shape.width).map(|d| self.values.x_td[self.input(d)] * matrix[self.up(h, d)]).sum()
    }

    /// What the activation and the product see: `[a's argument, the up map or 1]`.
    fn pre(&self, h: usize) -> [f64; 2] {
        let bias = self.values.b1_eh.get(self.expert * self.shape.hidden + h).unwrap_or(&0.0);
        let up = self.product(&self.values.w1_ehd, h) + bias;
        match self.shape.activation.gated() {
            true => [self.product(&self.values.gate_ehd, h), up],
            false => [up, 1.0],
        }
    }

    fn hidden(&self) -> Vec<f64> {
        let value = |h| {
            let [x, up] = self.pre(h);
            curve(self.shape.activation, x)[0] * up
        };
        (0..self.shape.hidden).map(value).collect()
    }

    fn output(&self, hidden: &[f64], d: usize) -> f64 {
        let bias = self.values.b2_ed.get(self.expert * self.shape.width + d).unwrap_or(&0.0);
        let terms = hidden.iter().enumerate().map(|(h, x)| x * self.values.w2_edh[self.down(d, h)]);
        terms.sum::<f64>() + bias
    }

    /// Adds the gradients of `weight * (output . dy)`.
    fn back(&self, row: usize, dy_d: &[f64], grads: &mut Values) {
        let (hidden, weight) = (self.hidden(), self.values.weight_n[row]);
        for (d, dy) in dy_d.iter().enumerate() {
            grads.weight_n[row] += dy * self.output(&hidden, d);
            add(&mut grads.b2_ed, self.expert * self.shape.width + d, weight * dy);
            for (h, x) in hidden.iter().enumerate() {
                grads.w2_edh[self.down(d, h)] += weight * dy * x;
            }
        }
        for h in 0..self.shape.hidden {
            let terms =
                dy_d.iter().enumerate().map(|(d, dy)| dy * self.values.w2_edh[self.down(d, h)]);
            self.back_hidden(h, weight * terms.sum::<f64>(), grads);
        }
    }

    fn back_hidden(&self, h: usize, dh: f64, grads: &mut Values) {
        let [x, up] = self.pre(h);
        let [value, slope] = curve(self.shape.activation, x);
        let gated = self.shape.activation.gated();
        let (dgate, dup) = (dh * slope * up, if gated { dh * value } else { dh * slope });
        add(&mut grads.b1_eh, self.expert * self.shape.hidden + h, dup);
        for d in 0..self.shape.width {
            let (input, at) = (self.input(d), self.up(h, d));
            grads.w1_ehd[at] += dup * self.values.x_td[input];
            grads.x_td[input] += dup * self.values.w1_ehd[at];
            if gated {
                grads.gate_ehd[at] += dgate * self.values.x_td[input];
                grads.x_td[input] += dgate * self.values.gate_ehd[at];
            }
        }
    }
}

fn add(bias: &mut [f64], at: usize, value: f64) {
    if let Some(bias) = bias.get_mut(at) {
        *bias += value;
    }
}

/// All rows, `(row, expert, token)`.
fn rows<'a>(
    offset_e: &'a [usize],
    token_n: &'a [u32],
) -> impl Iterator<Item = (usize, usize, usize)> + 'a {
    let spans = offset_e.windows(2).enumerate();
    spans.flat_map(move |(expert, span)| {
        (span[0]..span[1]).map(move |row| (row, expert, token_n[row] as usize))
    })
}

/// The weighted sum of experts of every token, `[t, d]`.
pub(crate) fn forward(
    shape: &Shape,
    values: &Values,
    offset_e: &[usize],
    token_n: &[u32],
) -> Vec<f64> {
    let mut y_td = vec![0.0; values.x_td.len()];
    for (row, expert, token) in rows(offset_e, token_n) {
        let at = Row { shape, values, expert, token };
        let hidden = at.hidden();
        for d in 0..shape.width {
            y_td[at.input(d)] += values.weight_n[row] * at.output(&hidden, d);
        }
    }
    y_td
}

/// The largest sum of magnitudes that a routing weight's gradient `dy . E(x)` is a sum of.
pub(crate) fn weight_terms(
    shape: &Shape,
    values: &Values,
    offset_e: &[usize],
    token_n: &[u32],
    dy_td: &[f64],
) -> f64 {
    let terms = rows(offset_e, token_n).map(|(_, expert, token)| {
        let at = Row { shape, values, expert, token };
        let hidden = at.hidden();
        (0..shape.width).map(|d| (dy_td[at.input(d)] * at.output(&hidden, d)).abs()).sum()
    });
    terms.fold(0.0, f64::max)
}

/// The largest root of the sum of squares of what rows add to one gradient, for each array in the order of
/// [`Values::all_mut`]. Where a problem has few sums, all of them may have cancelled; what was rounded has not.
pub(crate) fn row_terms(
    shape: &Shape,
    values: &Values,
    offset_e: &[usize],
    token_n: &[u32],
    dy_td: &[f64],
) -> [f64; 7] {
    let mut squares = values.zeros();
    let mut of_row = values.zeros();
    for (row, expert, token) in rows(offset_e, token_n) {
        let dy_d = &dy_td[token * shape.width..][..shape.width];
        Row { shape, values, expert, token }.back(row, dy_d, &mut of_row);
        for ((_, squares), (_, of_row)) in squares.all_mut().into_iter().zip(of_row.all_mut()) {
            for (square, of_row) in squares.iter_mut().zip(of_row) {
                *square += std::mem::take(of_row).powi(2);
            }
        }
    }
    squares.all_mut().map(|(_, squares)| squares.iter().fold(0.0, |most, &x| x.max(most)).sqrt())
}

/// The gradients of `forward . dy_td`.
pub(crate) fn backward(
    shape: &Shape,
    values: &Values,
    offset_e: &[usize],
    token_n: &[u32],
    dy_td: &[f64],
) -> Values {
    let mut grads = values.zeros();
    for (row, expert, token) in rows(offset_e, token_n) {
        let dy_d = &dy_td[token * shape.width..][..shape.width];
        Row { shape, values, expert, token }.back(row, dy_d, &mut grads);
    }
    grads
}

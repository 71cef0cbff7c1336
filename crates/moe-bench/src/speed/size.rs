//! Sizes of layers.

use super::Pass;
use crate::error::Misuse;

/// A sparse layer with SwiGLU experts and the tokens it gets.
#[derive(Debug, Clone, PartialEq)]
pub struct Size {
    /// Name in tables.
    pub name: String,
    /// Tokens of one group.
    pub tokens: i64,
    /// Model width.
    pub width: i64,
    /// Hidden width of an expert.
    pub hidden: i64,
    /// Number of experts.
    pub experts: i64,
    /// Experts of a token.
    pub top_k: i64,
}

/// Sizes by name: (tokens, width, hidden, experts, k).
const NAMED: [(&str, [i64; 5]); 5] = [
    ("A", [2048, 512, 2048, 16, 2]),
    ("B", [4096, 1024, 1024, 64, 8]),
    ("C1", [1, 1024, 1024, 64, 8]),
    ("C8", [8, 1024, 1024, 64, 8]),
    // For a GPU: the layer of Qwen3-30B-A3B, as published figures have it.
    ("H", [32_768, 2048, 768, 128, 8]),
];

/// At most this many tokens are a decoding step, bound by memory rather than arithmetic.
const DECODE: i64 = 16;

impl Size {
    /// Sizes by name, or as `tokens/width/hidden/experts/k`.
    ///
    /// # Errors
    /// A name that is none, or numbers that make no layer.
    pub fn parse_list(names: &[String]) -> Result<Vec<Self>, Misuse> {
        names.iter().map(|name| Self::parse(name)).collect()
    }

    fn parse(text: &str) -> Result<Self, Misuse> {
        let named = NAMED.iter().find(|(name, _)| *name == text).map(|(_, numbers)| *numbers);
        let numbers = named.or_else(|| {
            let numbers: Vec<i64> =
                text.split('/').map(|n| n.parse().ok()).collect::<Option<_>>()?;
            numbers.try_into().ok()
        });
        let names: Vec<_> = NAMED.iter().map(|(name, _)| *name).collect();
        let Some([tokens, width, hidden, experts, top_k]) = numbers else {
            return Err(Misuse::new(format!(
                "--sizes {text}: choose of {}, or give tokens/width/hidden/experts/k",
                names.join(", ")
            )));
        };
        let positive =
            [tokens, width, hidden, experts, top_k].iter().all(|n| (1..1 << 24).contains(n));
        if !positive || top_k > experts {
            return Err(Misuse::new(format!(
                "--sizes {text}: numbers must be positive, and k at most the number of experts"
            )));
        }
        Ok(Self { name: text.into(), tokens, width, hidden, experts, top_k })
    }

    /// Whether this is a decoding step.
    pub fn decode(&self) -> bool {
        self.tokens <= DECODE
    }

    /// Rows that experts compute.
    pub fn rows(&self) -> i64 {
        self.tokens * self.top_k
    }

    /// Operations of the experts' products in one pass; `None` for routing, which has none, and for a
    /// training step, which has more.
    pub fn flops(&self, pass: Pass) -> Option<f64> {
        let forward = (self.rows() * 2 * self.width * self.hidden * 3) as f64;
        match pass {
            Pass::Forward => Some(forward),
            Pass::ForwardBackward => Some(3.0 * forward),
            Pass::Route | Pass::Step => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_named_sizes_have_the_published_work() {
        let size = |name: &str| Size::parse(name).unwrap();
        let giga = |name: &str| size(name).flops(Pass::Forward).unwrap() / 1e9;
        assert!((giga("A") - 25.77).abs() < 0.01 && (giga("B") - 206.16).abs() < 0.01);
        assert!((giga("C1") - 0.0503).abs() < 1e-4 && size("C8").decode() && !size("A").decode());
        // 32768 tokens, 8 experts each, three products of 2 * 2048 * 768 operations.
        assert!((giga("H") - 2473.9).abs() < 0.1);
        assert_eq!(size("64/8/16/4/2").rows(), 128);
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bad in ["D", "1/2/3", "0/1/1/1/1", "4/4/4/2/3", "4/4/4/2/x"] {
            assert!(Size::parse(bad).unwrap_err().to_string().contains(bad));
        }
    }
}

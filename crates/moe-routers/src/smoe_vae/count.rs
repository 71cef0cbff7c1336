//! Parameters of the release's networks for 1 x 28 x 28 images.

use super::GATE_HIDDEN;
use crate::config::ConfigError;

/// A convolution of this kernel side, with bias.
fn convolution(from: u128, to: u128, side: u128) -> u128 {
    from * to * side * side + to
}

/// A linear map, with bias.
fn linear(from: u128, to: u128) -> u128 {
    from * to + to
}

/// Of encoder `medium` or `lite`.
///
/// # Errors
/// Another name.
pub fn encoder(name: &str, latent: u128) -> Result<u128, ConfigError> {
    match name {
        "medium" => {
            let body = convolution(1, 32, 3) + convolution(32, 64, 3) + convolution(64, 128, 3);
            Ok(body + 2 * linear(128 * 7 * 7, latent))
        }
        "lite" => Ok(convolution(1, 16, 3) + convolution(16, 8, 3) + 2 * linear(8 * 7 * 7, latent)),
        _ => Err(ConfigError::setting("encoder", format!("`{name}` is neither medium nor lite"))),
    }
}

/// Of one decoder: `lite`, `medium` or `full`.
///
/// # Errors
/// Another name.
pub fn decoder(name: &str, latent: u128) -> Result<u128, ConfigError> {
    match name {
        "lite" => Ok(linear(latent, 8 * 7 * 7) + convolution(8, 16, 3) + convolution(16, 1, 3)),
        "medium" => {
            let body = convolution(32, 64, 3) + convolution(64, 32, 3) + convolution(32, 1, 3);
            Ok(linear(latent, 32 * 7 * 7) + body)
        }
        "full" => {
            let body = convolution(128, 64, 4) + convolution(64, 32, 4) + convolution(32, 1, 3);
            Ok(linear(latent, 128 * 7 * 7) + body)
        }
        _ => {
            let reason = format!("`{name}` is none of lite, medium and full");
            Err(ConfigError::setting("decoder", reason))
        }
    }
}

/// Of the gate.
pub fn gate(latent: u128, experts: u128) -> u128 {
    let [first, second] = GATE_HIDDEN.map(u128::from);
    linear(latent, first) + linear(first, second) + linear(second, experts)
}

//! Progress bars on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Read};

use indicatif::{ProgressBar, ProgressStyle};

use crate::say::tell;

/// A bar over bytes; where it cannot be shown, a line that says what is under way.
pub(crate) fn bytes(label: &str, total: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        tell(format_args!("{label} ({})", size(total)));
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total).with_message(label.to_owned());
    bar.set_style(style());
    bar
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{msg} [{bar:24}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A size for people.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::DecimalBytes(bytes).to_string()
}

/// Moves a bar by what is read.
pub(crate) struct Watched<'a, R> {
    inner: R,
    bar: &'a ProgressBar,
}

impl<'a, R> Watched<'a, R> {
    /// A reader that moves `bar`.
    pub(crate) fn new(inner: R, bar: &'a ProgressBar) -> Self {
        Self { inner, bar }
    }
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bar.inc(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_moves_the_bar() {
        let bar = ProgressBar::hidden();
        let mut text = String::new();
        Watched::new(&b"twelve bytes"[..], &bar).read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), bar.position()), ("twelve bytes", 12));
    }
}

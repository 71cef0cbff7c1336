//! Which tokens of an attacked text are those of the clean one.
//!
//! Letters: `t` tokens.

use std::ops::Range;

use super::text::AttackedText;

/// Clean tokens and the attacked ones that stand for them, with windows of both that begin at the same place of
/// the text. A token stands for another if it has the same id and covers the same bytes, none of which the
/// attack touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// The attacked token of every clean one.
    same_t: Vec<Option<usize>>,
    /// Where each window begins among the attacked tokens; a clean one begins at its number times `len`.
    starts: Vec<usize>,
    len: usize,
    attacked_tokens: usize,
}

/// Tokens with the bytes that each of them covers.
pub(crate) struct Spans<'a> {
    pub(crate) ids: &'a [u32],
    pub(crate) bytes_t: Vec<Range<usize>>,
}

impl Alignment {
    /// Aligns windows of `len` tokens.
    pub(crate) fn new(
        clean: &Spans<'_>,
        attacked: &Spans<'_>,
        text: &AttackedText,
        len: usize,
    ) -> Self {
        let mut same_t = vec![None; clean.ids.len()];
        for kept in text.kept() {
            let first = clean.bytes_t.partition_point(|span| span.start < kept.clean);
            let inside = |t: &usize| clean.bytes_t[*t].end <= kept.clean + kept.bytes;
            for t in (first..clean.ids.len()).take_while(inside) {
                let span = &clean.bytes_t[t];
                let move_to = |byte: usize| byte - kept.clean + kept.attacked;
                same_t[t] = find(attacked, move_to(span.start)..move_to(span.end), clean.ids[t]);
            }
        }
        let windows = clean.ids.len().saturating_sub(1) / len;
        let start = |window: usize| {
            let byte = text.moved(clean.bytes_t[window * len].start);
            same_t[window * len]
                .unwrap_or_else(|| attacked.bytes_t.partition_point(|span| span.start < byte))
        };
        let starts = (0..windows).map(start);
        let fits = |start: &usize| start + len < attacked.ids.len();
        let starts = starts.take_while(fits).collect();
        Self { starts, len, attacked_tokens: attacked.ids.len(), same_t }
    }

    /// Where the windows begin among the attacked tokens.
    pub(crate) fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Windows of the attacked text that have a clean one.
    pub fn windows(&self) -> usize {
        self.starts.len()
    }

    /// Whether every token stayed at its place in the row of all tokens.
    pub fn is_in_place(&self) -> bool {
        let in_place = |(t, same): (usize, &Option<usize>)| same.is_none_or(|same| same == t);
        self.attacked_tokens == self.same_t.len()
            && self.same_t.iter().enumerate().all(in_place)
            && self.starts.iter().enumerate().all(|(window, &start)| start == window * self.len)
    }

    /// Places of the same tokens in a window: in the clean one and in the attacked one.
    ///
    /// # Panics
    ///
    /// If there is no such window.
    pub fn pairs(&self, window: usize) -> impl Iterator<Item = (usize, usize)> + '_ {
        let start = self.starts[window];
        (0..self.len).filter_map(move |place| {
            let same = self.same_t[window * self.len + place]?;
            let there = same.checked_sub(start).filter(|there| *there < self.len)?;
            Some((place, there))
        })
    }
}

/// The attacked token with this id that covers these bytes.
fn find(attacked: &Spans<'_>, bytes: Range<usize>, id: u32) -> Option<usize> {
    let t = attacked.bytes_t.partition_point(|span| span.start < bytes.start);
    (attacked.bytes_t.get(t) == Some(&bytes) && attacked.ids[t] == id).then_some(t)
}

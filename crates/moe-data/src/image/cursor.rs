//! Reading a binary file from its start: every read is checked against the bytes there are.

use crate::error::DataError;

/// A place in the bytes of a file.
pub(crate) struct Cursor<'a> {
    place: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The start of `bytes`; `place` names the file in errors.
    pub(crate) fn new(place: &'a str, bytes: &'a [u8]) -> Self {
        Self { place, bytes, at: 0 }
    }

    /// The next `count` bytes, which are `what`.
    pub(crate) fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], DataError> {
        let rest = &self.bytes[self.at..];
        if count > rest.len() {
            let found = rest.len();
            return Err(self.error(format!("expected {count} bytes of {what}, found {found}")));
        }
        self.at += count;
        Ok(&rest[..count])
    }

    /// The next `N` bytes, which are `what`.
    pub(crate) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], DataError> {
        Ok(self.take(N, what)?.try_into().expect("as many bytes as asked for"))
    }

    /// Refuses bytes after the last one that was read.
    pub(crate) fn end(&self, what: &str) -> Result<(), DataError> {
        match self.bytes.len() - self.at {
            0 => Ok(()),
            more => Err(self.error(format!("expected the end of the {what}, found {more} bytes"))),
        }
    }

    /// What is wrong here.
    pub(crate) fn error(&self, problem: String) -> DataError {
        self.error_at(self.at, problem)
    }

    /// What is wrong at another byte.
    pub(crate) fn error_at(&self, offset: usize, problem: String) -> DataError {
        DataError::Format { place: self.place.to_owned(), offset, problem }
    }
}

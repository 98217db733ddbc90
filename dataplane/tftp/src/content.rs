//! The octets of a transfer: the file as it is, or a text whose line ends are converted while it is sent (netascii).
//!
//! Nothing is copied whole: a text keeps the place in the file where the first unconfirmed block begins, and each
//! window is converted from there. What is no short text is refused: a converted loader would be of no use to firmware,
//! and counting its octets would be work that anybody can ask for.

use bytes::Bytes;

/// The longest text that is converted: many times a boot script.
const TEXT_BYTES_MAX: usize = 16 * 1024;

#[derive(Debug)]
pub(crate) enum Content {
    Octets(Bytes),
    Text {
        file: Bytes,
        /// Octets as they are sent.
        bytes: u64,
        /// Where block `block` begins.
        place: Place,
        block: u64,
    },
}

/// A place in a converted text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Place {
    at: usize,
    /// The second octet of a pair whose first was read.
    second: Option<u8>,
}

impl Place {
    /// LF becomes CR LF, a lone CR becomes CR NUL; CR LF stays (RFC 764).
    fn next(&mut self, file: &[u8]) -> Option<u8> {
        if let Some(second) = self.second.take() {
            return Some(second);
        }
        let octet = *file.get(self.at)?;
        self.at += 1;
        match octet {
            b'\n' => {
                self.second = Some(b'\n');
                Some(b'\r')
            }
            b'\r' if file.get(self.at) == Some(&b'\n') => {
                self.at += 1;
                self.second = Some(b'\n');
                Some(b'\r')
            }
            b'\r' => {
                self.second = Some(0);
                Some(b'\r')
            }
            other => Some(other),
        }
    }

    fn skip(&mut self, file: &[u8], octets: u64) {
        for _ in 0..octets {
            if self.next(file).is_none() {
                return;
            }
        }
    }
}

impl Content {
    /// `file` as a text. None: it is none, or too long.
    pub fn text(file: Bytes) -> Option<Self> {
        if file.len() > TEXT_BYTES_MAX || file.contains(&0) {
            return None;
        }
        let (mut place, mut bytes) = (Place::default(), 0);
        while place.next(&file).is_some() {
            bytes += 1;
        }
        Some(Self::Text {
            file,
            bytes,
            place: Place::default(),
            block: 1,
        })
    }

    /// Octets as they are sent.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Octets(file) => file.len() as u64,
            Self::Text { bytes, .. } => *bytes,
        }
    }

    /// The octets from block `first` on. `kept`: the first block that may be asked for again; it never falls.
    pub fn reader(&mut self, kept: u64, first: u64, block_bytes: u16) -> Reader<'_> {
        let bytes_of = |blocks: u64| blocks * u64::from(block_bytes);
        match self {
            Self::Octets(file) => {
                let start = usize::try_from(bytes_of(first - 1)).unwrap_or(usize::MAX);
                Reader::Octets(file.get(start..).unwrap_or_default())
            }
            Self::Text {
                file, place, block, ..
            } => {
                place.skip(file, bytes_of(kept.saturating_sub(*block)));
                *block = kept.max(*block);
                let mut place = *place;
                place.skip(file, bytes_of(first.saturating_sub(*block)));
                Reader::Text { file, place }
            }
        }
    }
}

/// Reads on from one block.
pub(crate) enum Reader<'a> {
    Octets(&'a [u8]),
    Text { file: &'a [u8], place: Place },
}

impl Reader<'_> {
    /// Fills `out`, which is no longer than what is left.
    pub fn read(&mut self, out: &mut [u8]) {
        match self {
            Self::Octets(rest) => {
                let (here, later) = rest.split_at(out.len().min(rest.len()));
                out[..here.len()].copy_from_slice(here);
                *rest = later;
            }
            Self::Text { file, place } => {
                for octet in out {
                    *octet = place.next(file).unwrap_or(0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(content: &mut Content) -> Vec<u8> {
        let mut out = vec![0; content.bytes() as usize];
        content.reader(1, 1, 512).read(&mut out);
        out
    }

    #[test]
    fn line_ends_of_a_text_are_converted() {
        let mut text = Content::text(Bytes::from_static(b"a\nb\r\nc\rd")).unwrap();
        assert_eq!(whole(&mut text), b"a\r\nb\r\nc\r\0d");
        assert_eq!(text.bytes(), 10);
    }

    /// Blocks of one octet cut every pair, and windows begin anywhere.
    #[test]
    fn netascii_blocks_are_the_same_wherever_they_are_read_from() {
        let file: Vec<u8> = b"ab\n\r\r\n\n\n\rx\n".repeat(7);
        let want = whole(&mut Content::text(file.clone().into()).unwrap());
        for block_bytes in [1u16, 2, 3, 8] {
            let mut text = Content::text(file.clone().into()).unwrap();
            let blocks = want.len().div_ceil(usize::from(block_bytes)) as u64;
            for kept in 1..=blocks {
                for first in kept..=blocks.min(kept + 3) {
                    let start = (first - 1) as usize * usize::from(block_bytes);
                    let end = want.len().min(start + usize::from(block_bytes));
                    let mut out = vec![0; end - start];
                    text.reader(kept, first, block_bytes).read(&mut out);
                    assert_eq!(out, want[start..end], "{block_bytes} {kept} {first}");
                }
            }
        }
    }

    #[test]
    fn what_is_no_short_text_is_not_converted() {
        assert!(Content::text(Bytes::from_static(b"MZ\0\0")).is_none());
        assert!(Content::text(vec![b'a'; TEXT_BYTES_MAX + 1].into()).is_none());
        assert!(Content::text(vec![b'\n'; TEXT_BYTES_MAX].into()).is_some());
        assert!(Content::text(Bytes::new()).is_some());
    }
}

//! Options that came in parts, put together (RFC 3396 §7): a fixed room, used again for every message.

use super::{ParseError, code};

/// Octets of all options of one message at most: more than fits the datagrams we take.
pub const JOINED_BYTES_MAX: usize = 2048;
/// Codes but pad and end.
const CODES_MAX: usize = 254;

/// Codes of fixed length that a server reads: they cannot come in parts.
const SINGLE: [u8; 10] = [
    code::REQUESTED_ADDRESS,
    code::LEASE_TIME,
    code::OVERLOAD,
    code::MESSAGE_TYPE,
    code::SERVER_ID,
    code::MESSAGE_BYTES_MAX,
    code::RENEWAL_TIME,
    code::REBINDING_TIME,
    code::RAPID_COMMIT,
    code::SUBNET_SELECTION,
];

pub(super) fn is_single(code: u8) -> bool {
    SINGLE.contains(&code)
}

#[derive(Clone, Copy, Default)]
struct Entry {
    code: u8,
    start: u16,
    length: u16,
}

/// Room for one message's options. Make it once.
pub struct Joined {
    octets: Box<[u8; JOINED_BYTES_MAX]>,
    entries: Box<[Entry; CODES_MAX]>,
    count: usize,
}

impl Default for Joined {
    fn default() -> Self {
        Self {
            octets: Box::new([0; JOINED_BYTES_MAX]),
            entries: Box::new([Entry::default(); CODES_MAX]),
            count: 0,
        }
    }
}

impl Joined {
    pub(super) fn get(&self, index: usize) -> Option<(u8, &[u8])> {
        let entry = self.entries[..self.count].get(index)?;
        let start = usize::from(entry.start);
        let octets = self.octets.get(start..start + usize::from(entry.length))?;
        Some((entry.code, octets))
    }

    /// Takes the options in the order of their first parts.
    pub(super) fn fill<'a>(
        &mut self,
        options: impl Iterator<Item = (u8, &'a [u8])> + Clone,
    ) -> Result<(), ParseError> {
        self.count = 0;
        let mut end = 0;
        for (code, _) in options.clone() {
            let known = &self.entries[..self.count];
            if known.iter().any(|entry| entry.code == code) {
                continue;
            }
            let start = end;
            let parts = options.clone().filter(|(found, _)| *found == code);
            let most = if is_single(code) { 1 } else { usize::MAX };
            for (_, part) in parts.take(most) {
                self.octets
                    .get_mut(end..end + part.len())
                    .ok_or(ParseError::OptionsTooLong)?
                    .copy_from_slice(part);
                end += part.len();
            }
            // Neither exceeds JOINED_BYTES_MAX; there are no more codes than entries.
            self.entries[self.count] = Entry {
                code,
                start: start as u16,
                length: (end - start) as u16,
            };
            self.count += 1;
        }
        Ok(())
    }
}

//! Options that came in parts, put together (RFC 3396 §7): a fixed room, used again for every message.

use super::{ParseError, code};

/// Octets of all options of one message at most: more than fits the datagrams we take.
pub const JOINED_BYTES_MAX: usize = 2048;
/// Codes but pad and end.
const CODES_MAX: usize = 254;
/// In place of an entry's index.
const NO_ENTRY: u8 = u8::MAX;

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

    /// Takes the options in the order of their first parts. Two walks, however many there are: strangers send them.
    pub(super) fn fill<'a>(
        &mut self,
        options: impl Iterator<Item = (u8, &'a [u8])> + Clone,
    ) -> Result<(), ParseError> {
        self.count = 0;
        let mut places = [NO_ENTRY; 256];
        let mut total = 0;
        for (code, part) in options.clone() {
            let place = &mut places[usize::from(code)];
            if *place == NO_ENTRY {
                // There are no more codes than entries, and fewer than NO_ENTRY.
                *place = self.count as u8;
                self.entries[self.count] = Entry {
                    code,
                    ..Entry::default()
                };
                self.count += 1;
            } else if is_single(code) {
                continue;
            }
            total += part.len();
            if total > JOINED_BYTES_MAX {
                return Err(ParseError::OptionsTooLong);
            }
            self.entries[usize::from(*place)].length += part.len() as u16; // at most the total
        }
        let mut end = 0;
        for entry in &mut self.entries[..self.count] {
            entry.start = end;
            end += entry.length;
            entry.length = 0;
        }
        for (code, part) in options {
            let place = &mut places[usize::from(code)];
            let Some(entry) = self.entries[..self.count].get_mut(usize::from(*place)) else {
                continue;
            };
            let from = usize::from(entry.start + entry.length);
            self.octets[from..from + part.len()].copy_from_slice(part);
            entry.length += part.len() as u16;
            if is_single(code) {
                *place = NO_ENTRY;
            }
        }
        Ok(())
    }
}

//! The id of a machine or rack: six lower-case alphanumerics, as in MAAS (`g8xyqs`).

use std::fmt;
use std::str::FromStr;

use crate::ParseError;

const LENGTH: usize = 6;
const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";

/// A machine's or rack's `system_id`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemId([u8; LENGTH]);

impl SystemId {
    /// The id that this random number stands for. It begins with a letter, so that it never looks like a
    /// number. Two billion ids: the caller retries when the store says that one is taken.
    pub fn from_random(mut random: u64) -> Self {
        let mut id = [0; LENGTH];
        id[0] = ALPHABET[10 + (random % 26) as usize];
        random /= 26;
        for place in &mut id[1..] {
            *place = ALPHABET[(random % 36) as usize];
            random /= 36;
        }
        Self(id)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("the alphabet is ASCII")
    }
}

impl FromStr for SystemId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new(text, "a system id (six lower-case letters and digits)");
        let id: [u8; LENGTH] = text.as_bytes().try_into().map_err(|_| wrong())?;
        if id.iter().all(|c| ALPHABET.contains(c)) {
            Ok(Self(id))
        } else {
            Err(wrong())
        }
    }
}

impl AsRef<str> for SystemId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_parse_again() {
        for random in [0, 1, 25, 26, 12_345_678, u64::MAX] {
            let id = SystemId::from_random(random);
            assert_eq!(id.as_str().parse(), Ok(id), "{random}");
            assert!(
                id.as_str().starts_with(|c: char| c.is_ascii_lowercase()),
                "{id}"
            );
        }
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "", "abc12", "abc1234", "ABC123", "abc-12", "äbc12", "abc12\0",
        ] {
            assert!(text.parse::<SystemId>().is_err(), "{text}");
        }
    }
}

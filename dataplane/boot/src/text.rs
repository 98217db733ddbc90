//! A short string without an allocation: for what goes into a DHCP reply.

use std::fmt;

/// At most 127 octets: what DHCP's `file` field holds beside its NUL.
#[derive(Clone, Copy)]
pub struct Text {
    octets: [u8; Self::BYTES_MAX],
    length: u8,
}

impl Text {
    pub const BYTES_MAX: usize = 127;

    pub const EMPTY: Self = Self {
        octets: [0; Self::BYTES_MAX],
        length: 0,
    };

    /// None if the text is too long.
    pub fn format(text: fmt::Arguments<'_>) -> Option<Self> {
        let mut written = Self::EMPTY;
        fmt::write(&mut written, text).ok()?;
        Some(written)
    }

    pub fn as_str(&self) -> &str {
        // Only whole strings were written, so it is UTF-8.
        std::str::from_utf8(&self.octets[..usize::from(self.length)]).unwrap_or_default()
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let start = usize::from(self.length);
        let place = self
            .octets
            .get_mut(start..start + part.len())
            .ok_or(fmt::Error)?;
        place.copy_from_slice(part.as_bytes());
        self.length += part.len() as u8; // at most BYTES_MAX
        Ok(())
    }
}

impl PartialEq for Text {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Text {}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_is_kept_and_what_does_not_is_refused() {
        let longest = "x".repeat(127);
        assert_eq!(
            Text::format(format_args!("{longest}")).unwrap().as_str(),
            longest
        );
        assert_eq!(Text::format(format_args!("{longest}y")), None);
        assert_eq!(
            Text::format(format_args!("a{}b", 1)).unwrap().as_str(),
            "a1b"
        );
    }
}

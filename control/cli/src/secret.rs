//! Passwords and keys: typed at a terminal without being shown, or read from a file or a pipe.

use std::io::{IsTerminal, Read, Write};

use anyhow::{Context, bail};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};

const BYTES_MAX: usize = 4096;

/// One secret from standard input.
pub fn read(prompt: &str) -> anyhow::Result<String> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        let mut text = String::new();
        let read = stdin
            .lock()
            .take(BYTES_MAX as u64)
            .read_to_string(&mut text);
        read.context("reading standard input")?;
        return Ok(text);
    }
    let quiet = Quiet::begin()?;
    let _ = write!(std::io::stderr(), "{prompt}");
    let line = type_line(&mut stdin.lock());
    drop(quiet);
    let _ = writeln!(std::io::stderr());
    line
}

/// The terminal neither shows nor interprets what is typed, until this is dropped: an interrupt comes as a key, so that
/// no way out leaves the terminal so.
struct Quiet(Termios);

impl Quiet {
    fn begin() -> anyhow::Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("asking the terminal for its modes")?;
        let mut quiet = before.clone();
        quiet.local_modes &= !(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &quiet)
            .context("keeping the terminal from showing what is typed")?;
        Ok(Quiet(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// A line as it is typed: backspace and ^U mend it, ^C ends it all, ^D the line.
fn type_line(keys: &mut impl Read) -> anyhow::Result<String> {
    let mut line = Vec::new();
    let mut key = [0];
    while keys.read(&mut key).context("reading the terminal")? == 1 {
        match key[0] {
            b'\r' | b'\n' | 0x04 => break,
            0x03 => bail!("interrupted"),
            0x15 => line.clear(),
            0x08 | 0x7f => {
                // A character may be several octets.
                while line.pop().is_some_and(|octet: u8| octet & 0xc0 == 0x80) {}
            }
            octet if line.len() < BYTES_MAX => line.push(octet),
            _ => bail!("longer than {BYTES_MAX} octets"),
        }
    }
    String::from_utf8(line).context("what was typed is not UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_secret_can_be_mended_and_given_up() {
        for (keys, want) in [
            (&b"hush\r"[..], Some("hush")),
            (b"hush\nmore", Some("hush")),
            (b"hux\x7fsh\r", Some("hush")),
            (b"wrong\x15hush\r", Some("hush")),
            ("ä\u{7f}hush\r".as_bytes(), Some("hush")),
            (b"\x7f\x08hush\x04", Some("hush")),
            (b"hush", Some("hush")),
            (b"hu\x03sh\r", None),
            (b"\xff\r", None),
        ] {
            let line = type_line(&mut &keys[..]).ok();
            assert_eq!(line.as_deref(), want, "{keys:?}");
        }
        assert!(type_line(&mut &[b'x'; BYTES_MAX + 1][..]).is_err());
    }
}

//! Paths as firmware writes them, made plain: one form per file, and none that leaves the root.

use std::borrow::Cow;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("empty path")]
    Empty,
    #[error("path longer than {PATH_BYTES_MAX} octets")]
    TooLong,
    #[error("path with a control character")]
    Control,
    #[error("path that climbs out of the root")]
    Climbs,
    #[error("path with a scheme or a drive")]
    Absolute,
}

const PATH_BYTES_MAX: usize = 512;

/// `\grub\grub.cfg` and `//grub/./grub.cfg` become `grub/grub.cfg`. Nothing is decoded: percent signs stay.
pub fn clean_path(path: &str) -> Result<Cow<'_, str>, PathError> {
    if path.len() > PATH_BYTES_MAX {
        return Err(PathError::TooLong);
    }
    if path.chars().any(char::is_control) {
        return Err(PathError::Control);
    }
    let is_separator = |c| matches!(c, '/' | '\\');
    let relative = path.trim_start_matches(is_separator);
    // "http://..", "tftp://..", "C:\..": no loader of ours has a colon before its first separator, but for
    // GRUB's MAC names, where it stands behind a name with a dash.
    let first = relative.split(is_separator).next().unwrap_or_default();
    if let Some((before, _)) = first.split_once(':')
        && !before.contains('-')
    {
        return Err(PathError::Absolute);
    }
    if relative.split(is_separator).any(|part| part == "..") {
        return Err(PathError::Climbs);
    }
    let plain = |part: &&str| !part.is_empty() && *part != ".";
    let clean = !relative.contains('\\') && relative.split('/').all(|part| plain(&part));
    let cleaned = if clean {
        Cow::Borrowed(relative)
    } else {
        Cow::Owned(
            relative
                .split(is_separator)
                .filter(plain)
                .collect::<Vec<_>>()
                .join("/"),
        )
    };
    if cleaned.is_empty() {
        Err(PathError::Empty)
    } else {
        Ok(cleaned)
    }
}

/// GRUB's module lists (command.lst, fs.lst, crypto.lst, terminal.lst): where one is missing, an empty file
/// spares a GRUB with built-in modules its complaints.
pub fn is_empty_when_missing(path: &str) -> bool {
    path.ends_with(".lst")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_plain_or_are_refused() {
        let long = "x".repeat(513);
        let cases = [
            ("lpxelinux.0", Ok("lpxelinux.0")),
            ("/grub/grub.cfg", Ok("grub/grub.cfg")),
            (
                "\\grub\\x86_64-efi\\http.mod",
                Ok("grub/x86_64-efi/http.mod"),
            ),
            ("//grub/./grub.cfg", Ok("grub/grub.cfg")),
            ("grub//grub.cfg/", Ok("grub/grub.cfg")),
            (
                "grub/grub.cfg-52:54:00:00:01:00",
                Ok("grub/grub.cfg-52:54:00:00:01:00"),
            ),
            (
                "ipxe.cfg-52:54:00:00:01:00",
                Ok("ipxe.cfg-52:54:00:00:01:00"),
            ),
            ("a/..b/c", Ok("a/..b/c")),
            ("", Err(PathError::Empty)),
            ("/", Err(PathError::Empty)),
            ("../etc/passwd", Err(PathError::Climbs)),
            ("grub/../../etc/passwd", Err(PathError::Climbs)),
            ("grub\\..\\secret", Err(PathError::Climbs)),
            ("lpxelinux.0\0.txt", Err(PathError::Control)),
            ("a\nb", Err(PathError::Control)),
            ("http://elsewhere/x", Err(PathError::Absolute)),
            ("C:\\boot", Err(PathError::Absolute)),
            (&long, Err(PathError::TooLong)),
        ];
        for (path, want) in cases {
            assert_eq!(
                clean_path(path).as_deref(),
                want.as_ref().map(|path| *path),
                "{path:?}"
            );
        }
    }

    #[test]
    fn lists_may_be_missing() {
        assert!(is_empty_when_missing("grub/x86_64-efi/command.lst"));
        assert!(!is_empty_when_missing("grub/x86_64-efi/http.mod"));
    }
}

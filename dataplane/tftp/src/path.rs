//! Requested names to names we serve. There is no file system behind them, but nothing that climbs is ever looked up.

/// Longest name looked up.
const PATH_BYTES_MAX: usize = 255;

/// The name without leading slashes, or `None`: access violation (RFC 1350 error 2).
///
/// grub asks with a leading slash, so that is no crime. Backslashes of Windows loaders become slashes.
/// `scratch` holds the result when something had to be changed.
pub fn clean_path<'a>(file: &'a [u8], scratch: &'a mut String) -> Option<&'a str> {
    let name = str::from_utf8(file).ok()?;
    if name.len() > PATH_BYTES_MAX || name.chars().any(char::is_control) {
        return None;
    }
    let name = if name.contains('\\') {
        scratch.clear();
        scratch.extend(
            name.chars()
                .map(|letter| if letter == '\\' { '/' } else { letter }),
        );
        scratch.as_str()
    } else {
        name
    };
    let name = name.trim_start_matches('/');
    let climbs = name.split('/').any(|part| part == "..");
    // "C:/..." of another system's absolute paths; a colon elsewhere is part of a MAC.
    let drive = name.as_bytes().get(1..3) == Some(b":/");
    (!climbs && !drive && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cases: [(&[u8], Option<&str>); 13] = [
            (b"lpxelinux.0", Some("lpxelinux.0")),
            (b"/grub/grub.cfg", Some("grub/grub.cfg")),
            (b"//grub/grub.cfg", Some("grub/grub.cfg")),
            (
                b"grub\\x86_64-efi\\http.mod",
                Some("grub/x86_64-efi/http.mod"),
            ),
            (
                b"/grub/grub.cfg-52:54:00:00:01:00",
                Some("grub/grub.cfg-52:54:00:00:01:00"),
            ),
            (b"a..b/c", Some("a..b/c")),
            (b"..", None),
            (b"../etc/shadow", None),
            (b"a\\..\\b", None),
            (b"C:\\boot.ini", None),
            (b"/", None),
            (b"a\nb", None),
            (b"\xff\xfe", None),
        ];
        for (file, want) in cases {
            let mut scratch = String::new();
            assert_eq!(clean_path(file, &mut scratch), want, "{file:?}");
        }
        assert_eq!(clean_path(&[b'a'; 256], &mut String::new()), None);
    }
}

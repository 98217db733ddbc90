//! Requested names to names we serve. There is no file system behind them, but nothing that climbs is ever looked up.

/// Longest name looked up.
const PATH_BYTES_MAX: usize = 255;

/// The name without leading slashes, or `None`: access violation (RFC 1350 error 2).
///
/// grub asks with a leading slash, so that is no crime. Backslashes of Windows loaders become slashes.
/// `scratch` holds the result when something had to be changed.
pub fn clean_path<'a>(file: &'a [u8], scratch: &'a mut String) -> Option<&'a str> {
    let name = str::from_utf8(without_tail(file)).ok()?;
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

/// Without what firmware reads beyond the end of DHCP's option 67: the end option (FF), the code or length of the next
/// one. No name that anybody gave a file ends in such octets, but one in UTF-8 may end in a letter above 7F.
fn without_tail(file: &[u8]) -> &[u8] {
    let is_text = str::from_utf8(file).is_ok();
    let is_tail = |octet: u8| octet.is_ascii_control() || (!is_text && octet >= 0x80);
    let end = file.iter().rposition(|octet| !is_tail(*octet));
    &file[..end.map_or(0, |last| last + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_firmware_reads_behind_the_boot_file_name_is_dropped() {
        let cases: [(&[u8], Option<&str>); 8] = [
            (b"bootx64.efi\xff", Some("bootx64.efi")),
            (b"bootx64.efi\xff\xff\xff", Some("bootx64.efi")),
            (b"lpxelinux.0\x11", Some("lpxelinux.0")),
            (b"lpxelinux.0\xd2\x08", Some("lpxelinux.0")),
            (b"/bootx64.efi\r\n", Some("bootx64.efi")),
            ("grub/\u{e9}".as_bytes(), Some("grub/\u{e9}")),
            (b"a\xffb", None),
            (b"\xff", None),
        ];
        for (file, want) in cases {
            let mut scratch = String::new();
            assert_eq!(clean_path(file, &mut scratch), want, "{file:?}");
        }
    }

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

//! Which paths are boot configurations, and of whom.

use wire::ethernet::Mac;

use crate::path::{PathError, clean_path};

/// Whose syntax the script is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConfigKind {
    Pxelinux,
    Grub,
    Ipxe,
}

/// A request for a boot configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigRequest {
    pub kind: ConfigKind,
    pub selector: Selector,
}

/// Whose configuration is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The script that makes the loader ask again with its MAC: [`crate::render_preloader`].
    Preloader,
    Mac(Mac),
    /// The SMBIOS UUID, lower case.
    Uuid(String),
    /// Nobody's: the client fell through its own names. It is who its address says, or unknown.
    Default {
        /// In Debian's words; "amd64" where the path does not say.
        arch: String,
        /// None where the path does not say.
        subarch: Option<String>,
    },
}

/// Reads the path of a TFTP or HTTP request. None: not a boot configuration, so a file or nothing.
///
/// pxelinux's names by address in hexadecimal (`pxelinux.cfg/0A6300C1`) are nobody's: the client tries the next.
pub fn route(path: &str) -> Result<Option<ConfigRequest>, PathError> {
    let path = clean_path(path)?;
    let found = if let Some(name) = path.strip_prefix("pxelinux.cfg/") {
        pxelinux(name).map(|selector| (ConfigKind::Pxelinux, selector))
    } else if let Some(name) = path.strip_prefix("grub/grub.cfg") {
        by_suffix(name).map(|selector| (ConfigKind::Grub, selector))
    } else if let Some(name) = path.strip_prefix("ipxe.cfg") {
        by_suffix(name).map(|selector| (ConfigKind::Ipxe, selector))
    } else {
        None
    };
    Ok(found.map(|(kind, selector)| ConfigRequest { kind, selector }))
}

fn pxelinux(name: &str) -> Option<Selector> {
    if let Some(mac) = name.strip_prefix("01-") {
        return parse_mac(mac).map(Selector::Mac);
    }
    if let Some(rest) = name.strip_prefix("default") {
        return default_of(rest);
    }
    is_uuid(name).then(|| Selector::Uuid(name.to_ascii_lowercase()))
}

/// What follows `grub.cfg` or `ipxe.cfg`.
fn by_suffix(suffix: &str) -> Option<Selector> {
    if suffix.is_empty() {
        return Some(Selector::Preloader);
    }
    let name = suffix.strip_prefix('-')?;
    match name.strip_prefix("default") {
        Some(rest) => default_of(rest),
        None => parse_mac(name).map(Selector::Mac),
    }
}

/// The architectures that a region has images for, in Debian's words. Others are not asked for.
pub fn is_known_arch(arch: &str) -> bool {
    const KNOWN: [&str; 9] = [
        "amd64", "arm64", "armhf", "i386", "loong64", "ppc64el", "ppc64", "riscv64", "s390x",
    ];
    KNOWN.contains(&arch)
}

/// What follows `default`: nothing, or `-<arch>[-<subarch>]` (pxelinux also writes a dot).
fn default_of(rest: &str) -> Option<Selector> {
    let default = |arch: &str, subarch: Option<&str>| Selector::Default {
        arch: arch.to_string(),
        subarch: subarch.map(str::to_string),
    };
    if rest.is_empty() {
        return Some(default("amd64", None));
    }
    let names = rest.strip_prefix(['-', '.'])?;
    let (arch, subarch) = match names.split_once('-') {
        Some((arch, subarch)) => (arch, Some(subarch)),
        None => (names, None),
    };
    let is_word = |word: &str| {
        !word.is_empty()
            && word.len() <= 64
            && word
                .bytes()
                .all(|octet| octet.is_ascii_alphanumeric() || b"_.-".contains(&octet))
    };
    if !is_word(arch) || !subarch.is_none_or(is_word) {
        return None;
    }
    // Loaders name their own build: GRUB says x86_64, iPXE on BIOS says i386 on any x86.
    let arch = match arch {
        "x86_64" | "i386" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    Some(default(arch, subarch))
}

/// Six octets with dashes or colons.
fn parse_mac(text: &str) -> Option<Mac> {
    let mut octets = [0; 6];
    let mut parts = text.split([':', '-']);
    for octet in &mut octets {
        let part = parts.next().filter(|part| part.len() == 2)?;
        // from_str_radix would take a sign.
        if !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(Mac(octets))
}

fn is_uuid(name: &str) -> bool {
    name.len() == 36
        && name.bytes().enumerate().all(|(at, octet)| match at {
            8 | 13 | 18 | 23 => octet == b'-',
            _ => octet.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use ConfigKind::{Grub, Ipxe, Pxelinux};

    use super::*;

    #[test]
    fn requests_as_loaders_make_them() {
        let mac = || Selector::Mac(Mac([0x52, 0x54, 0, 0, 1, 0xab]));
        let default = |arch: &str| Selector::Default {
            arch: arch.into(),
            subarch: None,
        };
        let uuid = "12345678-9abc-def0-1234-56789abcdef0";
        let cases = [
            ("pxelinux.cfg/01-52-54-00-00-01-ab", Some((Pxelinux, mac()))),
            (
                "/pxelinux.cfg/01-52-54-00-00-01-AB",
                Some((Pxelinux, mac())),
            ),
            ("pxelinux.cfg/default", Some((Pxelinux, default("amd64")))),
            (
                "pxelinux.cfg/default-arm64",
                Some((Pxelinux, default("arm64"))),
            ),
            (
                "pxelinux.cfg/default.amd64",
                Some((Pxelinux, default("amd64"))),
            ),
            (
                "pxelinux.cfg/default-arm64-xgene",
                Some((
                    Pxelinux,
                    Selector::Default {
                        arch: "arm64".into(),
                        subarch: Some("xgene".into()),
                    },
                )),
            ),
            ("pxelinux.cfg/0A6300C1", None),
            ("pxelinux.cfg/0", None),
            ("pxelinux.cfg/01-52-54-00-00-01", None),
            ("pxelinux.cfg/01-52-54-00-00-01-a+", None),
            ("pxelinux.cfg/20-52-54-00-00-01-ab", None),
            ("/grub/grub.cfg", Some((Grub, Selector::Preloader))),
            ("/grub/grub.cfg-52:54:00:00:01:ab", Some((Grub, mac()))),
            ("/grub/grub.cfg-52-54-00-00-01-ab", Some((Grub, mac()))),
            (
                "/grub/grub.cfg-default-x86_64",
                Some((Grub, default("amd64"))),
            ),
            (
                "/grub/grub.cfg-default-amd64",
                Some((Grub, default("amd64"))),
            ),
            ("\\grub\\grub.cfg", Some((Grub, Selector::Preloader))),
            ("/grub/x86_64-efi/command.lst", None),
            ("/grub/grub.cfgx", None),
            ("/grub/grub.cfg-", None),
            ("ipxe.cfg", Some((Ipxe, Selector::Preloader))),
            ("/ipxe.cfg-52:54:00:00:01:ab", Some((Ipxe, mac()))),
            ("/ipxe.cfg-default-i386", Some((Ipxe, default("amd64")))),
            ("ipxe.cfg-default-a b", None),
            ("lpxelinux.0", None),
            ("bootx64.efi", None),
        ];
        for (path, want) in cases {
            let want = want.map(|(kind, selector)| ConfigRequest { kind, selector });
            assert_eq!(route(path), Ok(want), "{path}");
        }
        let by_uuid = route(&format!("pxelinux.cfg/{}", uuid.to_uppercase()))
            .unwrap()
            .unwrap();
        assert_eq!(by_uuid.selector, Selector::Uuid(uuid.into()));
    }

    #[test]
    fn tricks_are_refused_before_they_are_routed() {
        assert_eq!(route("pxelinux.cfg/../../secret"), Err(PathError::Climbs));
        assert_eq!(route("grub/grub.cfg\0-x"), Err(PathError::Control));
        assert_eq!(route("http://x/ipxe.cfg"), Err(PathError::Absolute));
    }
}

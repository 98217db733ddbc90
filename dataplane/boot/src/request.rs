//! Which paths are boot configurations, and of whom.

use std::fmt;

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
    /// 1, and more where pxelinux tries again: `pxelinux.cfg/try-2/...`.
    pub attempt: u8,
}

/// Whose configuration is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The script that makes the loader ask again with its MAC: [`crate::render_preloader`].
    Preloader,
    Mac {
        mac: Mac,
        /// What the loader is built for, in Debian's words; "" where the path does not say.
        arch: String,
    },
    /// The SMBIOS UUID, lower case.
    Uuid(String),
    /// Nobody's: the client fell through its own names. It is who its address says, or unknown.
    Default {
        /// In Debian's words; "" where the path does not say.
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
    let mut attempt = 1;
    let found = if let Some(name) = path.strip_prefix("pxelinux.cfg/") {
        let name = match again(name) {
            Some((number, name)) => {
                attempt = number;
                name
            }
            None => name,
        };
        pxelinux(name).map(|selector| (ConfigKind::Pxelinux, selector))
    } else if let Some(name) = path.strip_prefix("grub/grub.cfg") {
        by_suffix(name).map(|selector| (ConfigKind::Grub, selector))
    } else if let Some(name) = path.strip_prefix("ipxe.cfg") {
        by_suffix(name).map(|selector| (ConfigKind::Ipxe, selector))
    } else {
        None
    };
    Ok(found.map(|(kind, selector)| ConfigRequest {
        kind,
        selector,
        attempt,
    }))
}

/// `try-2/<name>`.
fn again(name: &str) -> Option<(u8, &str)> {
    let (number, name) = name.strip_prefix("try-")?.split_once('/')?;
    let number = match number.as_bytes() {
        [digit @ b'1'..=b'9'] => digit - b'0',
        _ => return None,
    };
    Some((number, name))
}

/// As pxelinux writes it behind `pxelinux.cfg/`.
impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preloader => Ok(()),
            Self::Mac { mac, .. } => {
                f.write_str("01")?;
                mac.0.iter().try_for_each(|octet| write!(f, "-{octet:02x}"))
            }
            Self::Uuid(uuid) => f.write_str(uuid),
            Self::Default { arch, subarch } => {
                f.write_str("default")?;
                let words = [Some(arch), subarch.as_ref()].into_iter().flatten();
                let mut words = words.filter(|word| !word.is_empty());
                words.try_for_each(|word| write!(f, "-{word}"))
            }
        }
    }
}

fn pxelinux(name: &str) -> Option<Selector> {
    if let Some(mac) = name.strip_prefix("01-") {
        return parse_mac(mac).map(|mac| Selector::Mac {
            mac,
            arch: String::new(),
        });
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
        None => mac_and_arch(name),
    }
}

/// `52-54-00-00-01-ab`, and what our own first script adds to it: `52-54-00-00-01-ab-arm64`. A loader that does not know
/// its architecture adds the dash alone.
fn mac_and_arch(name: &str) -> Option<Selector> {
    const MAC_BYTES: usize = 17;
    let mac = parse_mac(name.get(..MAC_BYTES)?)?;
    let arch = match &name[MAC_BYTES..] {
        "" | "-" => "",
        rest => rest.strip_prefix('-').filter(|arch| is_word(arch))?,
    };
    let arch = in_debians_words(arch).to_string();
    Some(Selector::Mac { mac, arch })
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
    if matches!(rest, "" | "-") {
        return Some(default("", None));
    }
    let names = rest.strip_prefix(['-', '.'])?;
    let (arch, subarch) = match names.split_once('-') {
        Some((arch, subarch)) => (arch, Some(subarch)),
        None => (names, None),
    };
    if !is_word(arch) || !subarch.is_none_or(is_word) {
        return None;
    }
    Some(default(in_debians_words(arch), subarch))
}

fn is_word(word: &str) -> bool {
    let is_of_word = |octet: u8| octet.is_ascii_alphanumeric() || b"_.-".contains(&octet);
    !word.is_empty() && word.len() <= 64 && word.bytes().all(is_of_word)
}

/// Loaders name their own build: GRUB says x86_64, iPXE on BIOS says i386 on any x86.
fn in_debians_words(arch: &str) -> &str {
    match arch {
        "x86_64" | "i386" => "amd64",
        "aarch64" => "arm64",
        "arm" | "arm32" => "armhf",
        "loongarch64" => "loong64",
        "powerpc" | "powerpc64le" => "ppc64el",
        other => other,
    }
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
        let of = |arch: &str| Selector::Mac {
            mac: Mac([0x52, 0x54, 0, 0, 1, 0xab]),
            arch: arch.into(),
        };
        let mac = || of("");
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
            ("pxelinux.cfg/default", Some((Pxelinux, default("")))),
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
            ("/ipxe.cfg-default-", Some((Ipxe, default("")))),
            ("/ipxe.cfg-default-arm32", Some((Ipxe, default("armhf")))),
            (
                "/ipxe.cfg-52-54-00-00-01-ab-arm64",
                Some((Ipxe, of("arm64"))),
            ),
            (
                "/ipxe.cfg-52-54-00-00-01-ab-i386",
                Some((Ipxe, of("amd64"))),
            ),
            (
                "/ipxe.cfg-52-54-00-00-01-ab-mips64",
                Some((Ipxe, of("mips64"))),
            ),
            ("/ipxe.cfg-52-54-00-00-01-ab-", Some((Ipxe, mac()))),
            (
                "/grub/grub.cfg-52:54:00:00:01:ab-x86_64",
                Some((Grub, of("amd64"))),
            ),
            (
                "/grub/grub.cfg-52:54:00:00:01:ab-arm64",
                Some((Grub, of("arm64"))),
            ),
            ("/ipxe.cfg-52-54-00-00-01-ab-a;b", None),
            ("/ipxe.cfg-52-54-00-00-01-\u{e9}", None),
            ("pxelinux.cfg/try-2/01-52-54-00-00-01", None),
            ("pxelinux.cfg/try-0/default", None),
            ("pxelinux.cfg/try-12/default", None),
            ("pxelinux.cfg/try-2", None),
            ("ipxe.cfg-default-a b", None),
            ("lpxelinux.0", None),
            ("bootx64.efi", None),
        ];
        for (path, want) in cases {
            let want = want.map(|(kind, selector)| ConfigRequest {
                kind,
                selector,
                attempt: 1,
            });
            assert_eq!(route(path), Ok(want), "{path}");
        }
        let by_uuid = route(&format!("pxelinux.cfg/{}", uuid.to_uppercase()))
            .unwrap()
            .unwrap();
        assert_eq!(by_uuid.selector, Selector::Uuid(uuid.into()));
    }

    #[test]
    fn pxelinux_tries_again_for_the_same_machine() {
        let uuid = "12345678-9abc-def0-1234-56789abcdef0";
        for name in [
            "01-52-54-00-00-01-ab",
            uuid,
            "default",
            "default-arm64",
            "default-arm64-xgene",
        ] {
            let first = route(&format!("pxelinux.cfg/{name}")).unwrap().unwrap();
            assert_eq!(first.selector.to_string(), name);
            for attempt in 2..=9 {
                let path = format!("pxelinux.cfg/try-{attempt}/{}", first.selector);
                let want = ConfigRequest {
                    attempt,
                    ..first.clone()
                };
                assert_eq!(route(&path), Ok(Some(want)));
            }
        }
    }

    #[test]
    fn tricks_are_refused_before_they_are_routed() {
        assert_eq!(route("pxelinux.cfg/../../secret"), Err(PathError::Climbs));
        assert_eq!(route("grub/grub.cfg\0-x"), Err(PathError::Control));
        assert_eq!(route("http://x/ipxe.cfg"), Err(PathError::Absolute));
    }
}

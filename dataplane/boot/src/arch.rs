//! What a client's processor and firmware are: option 93 (RFC 4578 §2.1), or `Arch:00007` in the class of option 60
//! where that one is missing or malformed (PXE 2.1 §2.2.3).

use std::fmt;

/// A number of IANA's "Processor Architecture Types".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arch(pub u16);

/// In the order of their numbers: what IANA calls it, and whose images run there, in Debian's words. An architecture that
/// no image can be for has a name all the same: it must not be taken for another.
const TYPES: [(&str, &str); 0x2a] = [
    ("x86 BIOS", "amd64"),
    ("NEC/PC98", "pc98"),
    ("Itanium", "ia64"),
    ("DEC Alpha", "alpha"),
    ("Arc x86", "arc"),
    ("Intel Lean Client", "lean"),
    // A processor that could not run amd64 has not been made for long, its firmware has.
    ("x86 UEFI", "amd64"),
    ("x64 UEFI", "amd64"),
    ("EFI Xscale", "xscale"),
    // What firmware of x64 machines sent before the numbers of RFC 4578 were corrected.
    ("EBC", "amd64"),
    ("ARM 32-bit UEFI", "armhf"),
    ("ARM 64-bit UEFI", "arm64"),
    ("PowerPC Open Firmware", "ppc64el"),
    ("PowerPC ePAPR", "ppc64"),
    ("POWER OPAL v3", "ppc64el"),
    ("x86 UEFI by HTTP", "amd64"),
    ("x64 UEFI by HTTP", "amd64"),
    ("EBC by HTTP", "amd64"),
    ("ARM 32-bit UEFI by HTTP", "armhf"),
    ("ARM 64-bit UEFI by HTTP", "arm64"),
    ("x86 BIOS by HTTP", "amd64"),
    ("ARM 32-bit U-Boot", "armhf"),
    ("ARM 64-bit U-Boot", "arm64"),
    ("ARM 32-bit U-Boot by HTTP", "armhf"),
    ("ARM 64-bit U-Boot by HTTP", "arm64"),
    ("RISC-V 32-bit UEFI", "riscv32"),
    ("RISC-V 32-bit UEFI by HTTP", "riscv32"),
    ("RISC-V 64-bit UEFI", "riscv64"),
    ("RISC-V 64-bit UEFI by HTTP", "riscv64"),
    ("RISC-V 128-bit UEFI", "riscv128"),
    ("RISC-V 128-bit UEFI by HTTP", "riscv128"),
    ("s390 Basic", "s390x"),
    ("s390 Extended", "s390x"),
    ("MIPS 32-bit UEFI", "mips"),
    ("MIPS 64-bit UEFI", "mips64"),
    ("Sunway 32-bit UEFI", "sunway32"),
    ("Sunway 64-bit UEFI", "sunway64"),
    ("LoongArch 32-bit UEFI", "loong32"),
    ("LoongArch 32-bit UEFI by HTTP", "loong32"),
    ("LoongArch 64-bit UEFI", "loong64"),
    ("LoongArch 64-bit UEFI by HTTP", "loong64"),
    ("ARM rpiboot", "arm64"),
];

impl Arch {
    /// Firmware from before RFC 4578.
    pub const BIOS: Self = Self(0);

    /// Whose images run there; "amd64".
    pub fn of_images(self) -> &'static str {
        TYPES
            .get(usize::from(self.0))
            .map_or("unassigned", |(_, images)| images)
    }

    /// The same machine, as its firmware calls itself that boots by HTTP: some says `HTTPClient` and the other number.
    pub(crate) fn by_http(self) -> Self {
        Self(match self.0 {
            0x00 => 0x14,
            0x06 => 0x0f,
            0x07 | 0x09 => 0x10,
            0x0a => 0x12,
            0x0b => 0x13,
            0x15 => 0x17,
            0x16 => 0x18,
            0x19 => 0x1a,
            0x1b => 0x1c,
            0x1d => 0x1e,
            0x25 => 0x26,
            0x27 => 0x28,
            other => other,
        })
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = TYPES
            .get(usize::from(self.0))
            .map_or("no assigned architecture", |(name, _)| name);
        write!(f, "{name} (0x{:02x})", self.0)
    }
}

/// The architectures that a client names, the one it likes best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said<'a> {
    /// Pairs of octets, at least one.
    Listed(&'a [u8]),
    One(Arch),
}

impl<'a> Said<'a> {
    /// `None`: it says something, and nobody knows what. One that says nothing at all is a PC BIOS.
    ///
    /// A list is taken at its word. Where it has an odd octet or none, the class knows better; without that, its whole
    /// pairs count.
    pub fn of(list: Option<&'a [u8]>, class: &[u8]) -> Option<Self> {
        let pairs = list.map_or(&[][..], |list| &list[..list.len() & !1]);
        if list.is_some_and(|list| !list.is_empty() && list.len() == pairs.len()) {
            return Some(Self::Listed(pairs));
        }
        match InClass::of(class) {
            InClass::Arch(arch) => Some(Self::One(arch)),
            InClass::Absent if list.is_none() => Some(Self::One(Arch::BIOS)),
            _ if !pairs.is_empty() => Some(Self::Listed(pairs)),
            _ => None,
        }
    }

    pub fn iter(self) -> impl Iterator<Item = Arch> + 'a {
        let (pairs, one) = match self {
            Self::Listed(pairs) => (pairs, None),
            Self::One(arch) => (&[][..], Some(arch)),
        };
        let listed = pairs.as_chunks::<2>().0.iter();
        listed
            .map(|pair| Arch(u16::from_be_bytes(*pair)))
            .chain(one)
    }

    pub fn first(self) -> Arch {
        self.iter().next().unwrap_or(Arch::BIOS)
    }
}

/// What a class says: `PXEClient:Arch:00007:UNDI:003016`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InClass {
    Arch(Arch),
    Absent,
    Malformed,
}

impl InClass {
    fn of(class: &[u8]) -> Self {
        let rest = class
            .strip_prefix(b"PXEClient")
            .or_else(|| class.strip_prefix(b"HTTPClient"));
        let Some(text) = rest.and_then(|rest| rest.strip_prefix(b":Arch:")) else {
            return Self::Absent;
        };
        let digits = text.split(|octet| matches!(octet, b':' | 0)).next();
        let digits = digits.and_then(|digits| str::from_utf8(digits).ok());
        // parse would take a sign.
        let number = digits
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok());
        number.map_or(Self::Malformed, |number| Self::Arch(Arch(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_architecture_is_read_from_the_list_else_from_the_class() {
        let class = b"PXEClient:Arch:00007:UNDI:003016";
        type Case<'a> = (Option<&'a [u8]>, &'a [u8], Option<&'a [u16]>);
        let cases: [Case<'_>; 22] = [
            (None, b"", Some(&[0])),
            (None, b"PXEClient", Some(&[0])),
            (None, b"anaconda", Some(&[0])),
            (None, class, Some(&[7])),
            (None, b"PXEClient:Arch:00011", Some(&[11])),
            (None, b"PXEClient:Arch:00011\0", Some(&[11])),
            (None, b"HTTPClient:Arch:00016:UNDI:003001", Some(&[16])),
            (None, b"PXEClient:Arch:7:UNDI:003016", Some(&[7])),
            (None, b"PXEClient:Arch:", None),
            (None, b"PXEClient:Arch:x64:UNDI:003016", None),
            (None, b"PXEClient:Arch:+0007:UNDI", None),
            (None, b"PXEClient:Arch:99999", None),
            (Some(&[0, 7]), b"", Some(&[7])),
            (Some(&[0, 6]), class, Some(&[6])),
            (Some(&[0, 6, 0, 7]), b"PXEClient", Some(&[6, 7])),
            // Malformed: the class knows better, else the whole pairs count.
            (Some(&[]), class, Some(&[7])),
            (Some(&[7]), class, Some(&[7])),
            (Some(&[0, 11, 0]), class, Some(&[7])),
            (Some(&[0, 11, 0]), b"PXEClient", Some(&[11])),
            (Some(&[]), b"PXEClient", None),
            (Some(&[7]), b"PXEClient", None),
            (Some(&[7]), b"PXEClient:Arch:x", None),
        ];
        for (list, class, want) in cases {
            let said = Said::of(list, class);
            let found = said.map(|said| said.iter().map(|arch| arch.0).collect::<Vec<_>>());
            let text = String::from_utf8_lossy(class);
            assert_eq!(found.as_deref(), want, "{list:?} {text}");
            if let (Some(said), Some(want)) = (said, want) {
                assert_eq!(said.first().0, want[0]);
            }
        }
    }

    #[test]
    fn no_architecture_is_taken_for_another() {
        for number in 0..=u16::MAX {
            let arch = Arch(number);
            let images = arch.of_images();
            let is_x86 = [0, 6, 7, 9, 0x0f, 0x10, 0x11, 0x14].contains(&number);
            assert_eq!(images == "amd64", is_x86, "{arch}");
            let is_arm64 = [0x0b, 0x13, 0x16, 0x18, 0x29].contains(&number);
            assert_eq!(images == "arm64", is_arm64, "{arch}");
            assert_eq!(arch.by_http().of_images(), images, "{arch}");
        }
        assert_eq!(Arch(0x1b).to_string(), "RISC-V 64-bit UEFI (0x1b)");
        assert_eq!(Arch(0x2a).to_string(), "no assigned architecture (0x2a)");
    }
}

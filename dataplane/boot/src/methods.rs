//! Which architecture boots which loader, and why one boots none.

use std::fmt;

use crate::arch::Arch;

/// How a boot method names its file.
#[derive(Clone, Copy)]
pub(crate) enum Name {
    /// By TFTP, relative to its root.
    Tftp(&'static str),
    /// By TFTP, with option 210.
    Prefixed(&'static str, &'static str),
    /// lpxelinux by TFTP, everything after it by HTTP from the rack's root.
    LpxeLinux,
    /// By HTTP under /images/, class "HTTPClient".
    Http(&'static str),
}

/// A boot method: whose it is, MAAS's name of it (or one in its manner), how its file is named, and the loader that has
/// to be there.
pub(crate) struct Method {
    pub arch: Arch,
    pub method: &'static str,
    pub name: Name,
    pub loader: &'static str,
}

const fn method(arch: u16, method: &'static str, name: Name, loader: &'static str) -> Method {
    Method {
        arch: Arch(arch),
        method,
        name,
        loader,
    }
}

const fn tftp(arch: u16, method_name: &'static str, loader: &'static str) -> Method {
    method(arch, method_name, Name::Tftp(loader), loader)
}

const fn http(arch: u16, method_name: &'static str, loader: &'static str) -> Method {
    method(arch, method_name, Name::Http(loader), loader)
}

/// An architecture that is not listed boots nothing here. Of UEFI's the loaders have the names that UEFI gives them on a
/// disk (§3.5.1.1): whoever imports one has its architecture boot.
pub(crate) const METHODS: [Method; 18] = [
    method(0x00, "pxe", Name::LpxeLinux, "lpxelinux.0"),
    tftp(0x06, "uefi_ia32_tftp", "bootia32.efi"),
    tftp(0x07, "uefi_amd64_tftp", "bootx64.efi"),
    tftp(0x09, "uefi_ebc_tftp", "bootx64.efi"),
    tftp(0x0a, "uefi_armhf_tftp", "bootarm.efi"),
    tftp(0x0b, "uefi_arm64_tftp", "bootaa64.efi"),
    tftp(0x0c, "open-firmware_ppc64el", "bootppc64.bin"),
    method(
        0x0e,
        "powernv",
        Name::Prefixed("pxelinux.0", "ppc64el/"),
        "ppc64el/pxelinux.0",
    ),
    http(0x0f, "uefi_ia32_http", "bootia32.efi"),
    http(0x10, "uefi_amd64_http", "bootx64.efi"),
    http(0x12, "uefi_armhf_http", "bootarm.efi"),
    http(0x13, "uefi_arm64_http", "bootaa64.efi"),
    tftp(0x1b, "uefi_riscv64_tftp", "bootriscv64.efi"),
    http(0x1c, "uefi_riscv64_http", "bootriscv64.efi"),
    method(
        0x1f,
        "s390x",
        Name::Prefixed("boots390x.bin", "s390x/"),
        "s390x/boots390x.bin",
    ),
    tftp(0x20, "s390x_partition", "s390x_partition/maas"),
    tftp(0x27, "uefi_loong64_tftp", "bootloongarch64.efi"),
    http(0x28, "uefi_loong64_http", "bootloongarch64.efi"),
];

/// Why a firmware gets no boot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// Options 93 and 60 say nothing that can be read.
    Unreadable,
    /// Nothing is known to boot it.
    Unknown(Arch),
    /// The loader is not among those that were imported.
    NoLoader { arch: Arch, loader: &'static str },
    /// The subnet does not give this boot method.
    Disabled { method: &'static str },
    /// The rack has no address there.
    NoServer,
}

impl fmt::Display for Unserved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => {
                f.write_str("no boot file: its architecture (options 93 and 60) cannot be read")
            }
            Self::Unknown(arch) => write!(f, "no boot file: nothing here boots {arch}"),
            Self::NoLoader { arch, loader } => write!(
                f,
                "no boot file: {arch} boots {loader}, which is not among the imported loaders"
            ),
            Self::Disabled { method } => {
                write!(f, "no boot file: its subnet does not give {method}")
            }
            Self::NoServer => f.write_str("no boot file: this rack has no address there"),
        }
    }
}

/// Method -> the iPXE in place of its loader where another server hands out the addresses. shim's GRUB 2.06 looks for its
/// configuration at that server; iPXE keeps to whoever told it what to boot. A site may have none: its firmware may insist
/// on signed loaders.
pub(crate) const IPXE_BESIDE: [(&str, &str); 3] = [
    ("uefi_amd64_tftp", "ipxe.efi"),
    ("uefi_ebc_tftp", "ipxe.efi"),
    ("uefi_arm64_tftp", "ipxe-arm64.efi"),
];

//! Which loader a firmware gets, told by options 93, 60, 77 and 175 (RFC 4578, RFC 3004, iPXE's own).

use std::net::{IpAddr, SocketAddr};

use wire::dhcp4::{Field, View, code};

use crate::command_line::RACK_HTTP_PORT;
use crate::text::Text;

/// What a client says about its firmware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Firmware<'a> {
    /// Option 93, the first architecture. None: not a network boot, or one from before RFC 4578.
    pub arch: Option<u16>,
    /// Option 60.
    pub vendor_class: &'a [u8],
    /// Option 77.
    pub user_class: &'a [u8],
    /// Option 175; None where it is absent.
    pub ipxe: Option<IpxeFeatures>,
}

/// The features in iPXE's option 175 that decide whether it can boot a kernel by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IpxeFeatures {
    /// Sub-option 19.
    pub http: bool,
    /// Sub-option 24: Linux kernels on BIOS.
    pub bzimage: bool,
    /// Sub-option 36: EFI executables.
    pub efi: bool,
}

impl IpxeFeatures {
    fn parse(octets: &[u8]) -> Self {
        let mut features = Self::default();
        for (code, value) in Field(octets).map_while(Result::ok) {
            let on = value.iter().any(|octet| *octet != 0);
            match code {
                19 => features.http = on,
                24 => features.bzimage = on,
                36 => features.efi = on,
                _ => {}
            }
        }
        features
    }
}

impl<'a> Firmware<'a> {
    /// What `query` says.
    pub fn of(query: &View<'a>) -> Self {
        Self {
            arch: query.arch(),
            vendor_class: query.vendor_class().unwrap_or_default(),
            user_class: query.user_class().unwrap_or_default(),
            ipxe: query.option(code::IPXE).map(IpxeFeatures::parse),
        }
    }

    /// It announces itself as firmware that boots from the network (an operating system's client does not).
    pub fn is_network_boot(&self) -> bool {
        let classes: [&[u8]; 2] = [b"PXEClient", b"HTTPClient"];
        self.arch.is_some()
            || self.ipxe.is_some()
            || classes
                .iter()
                .any(|class| self.vendor_class.starts_with(class))
    }

    /// An iPXE that can fetch a script by HTTP and boot the kernel in it. It says so in option 175; one that
    /// sends only its user class is taken at its word.
    fn is_able_ipxe(&self) -> bool {
        match self.ipxe {
            Some(features) => features.http && (features.bzimage || features.efi),
            None => self.is_ipxe(),
        }
    }

    /// Option 175, or the user class: bare "iPXE", or counted as RFC 3004 §4 has it.
    fn is_ipxe(&self) -> bool {
        self.ipxe.is_some() || matches!(self.user_class, b"iPXE" | b"\x04iPXE")
    }

    /// Switch hardware in its installer environment.
    fn is_onie(&self) -> bool {
        self.user_class.ends_with(b"onie_dhcp_user_class")
    }
}

/// What a DHCP reply says about booting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootFile {
    /// MAAS's name of the boot method.
    pub method: &'static str,
    /// The `file` field, or option 67. Empty for ONIE.
    pub file: Text,
    /// Option 210.
    pub path_prefix: Option<Text>,
    /// Option 60: HTTP boot insists on it; PXE must not get any.
    pub vendor_class: Option<&'static str>,
    /// Option 125: ONIE's installer.
    pub vendor_identifying: Option<VendorIdentifying>,
}

impl BootFile {
    fn plain(method: &'static str, file: Text) -> Self {
        Self {
            method,
            file,
            path_prefix: None,
            vendor_class: None,
            vendor_identifying: None,
        }
    }

    fn named(method: &'static str, name: Name, rack: SocketAddr) -> Option<Self> {
        let mut boot = Self::plain(method, Text::EMPTY);
        match name {
            Name::Tftp(file) => boot.file = Text::format(format_args!("{file}"))?,
            Name::Prefixed(file, prefix) => {
                boot.file = Text::format(format_args!("{file}"))?;
                boot.path_prefix = Text::format(format_args!("{prefix}"));
            }
            Name::LpxeLinux => {
                boot.file = Text::format(format_args!("lpxelinux.0"))?;
                boot.path_prefix = Text::format(format_args!("http://{rack}/"));
            }
            Name::Http(file) => {
                boot.file = Text::format(format_args!("http://{rack}/images/{file}"))?;
                boot.vendor_class = Some("HTTPClient");
            }
        }
        Some(boot)
    }
}

/// One vendor's part of option 125 (RFC 3925 §4): enterprise number, length, one sub-option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VendorIdentifying {
    octets: [u8; 7 + Text::BYTES_MAX],
    length: usize,
}

impl VendorIdentifying {
    /// Where ONIE (enterprise 42623) finds its installer: sub-option 1.
    fn onie_installer(url: Text) -> Self {
        let url = url.as_str().as_bytes();
        let mut octets = [0; 7 + Text::BYTES_MAX];
        octets[..4].copy_from_slice(&42_623u32.to_be_bytes());
        octets[4..7].copy_from_slice(&[url.len() as u8 + 2, 1, url.len() as u8]); // at most 127
        octets[7..7 + url.len()].copy_from_slice(url);
        Self {
            octets,
            length: 7 + url.len(),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.octets[..self.length]
    }
}

/// How a boot method names its file.
#[derive(Clone, Copy)]
enum Name {
    /// By TFTP, relative to its root.
    Tftp(&'static str),
    /// By TFTP, with option 210.
    Prefixed(&'static str, &'static str),
    /// lpxelinux by TFTP, everything after it by HTTP from the rack's root.
    LpxeLinux,
    /// By HTTP under /images/, class "HTTPClient".
    Http(&'static str),
}

/// Option 93 -> (method, name). The first row is also that of every architecture not listed.
const METHODS: [(u16, &str, Name); 11] = [
    (0x00, "pxe", Name::LpxeLinux),
    (0x07, "uefi_amd64_tftp", Name::Tftp("bootx64.efi")),
    (0x09, "uefi_ebc_tftp", Name::Tftp("bootx64.efi")),
    (0x0b, "uefi_arm64_tftp", Name::Tftp("bootaa64.efi")),
    (0x0c, "open-firmware_ppc64el", Name::Tftp("bootppc64.bin")),
    (0x0e, "powernv", Name::Prefixed("pxelinux.0", "ppc64el/")),
    (0x10, "uefi_amd64_http", Name::Http("bootx64.efi")),
    (0x13, "uefi_arm64_http", Name::Http("bootaa64.efi")),
    (0x1f, "s390x", Name::Prefixed("boots390x.bin", "s390x/")),
    (0x20, "s390x_partition", Name::Tftp("s390x_partition/maas")),
    // IANA's older number of x86-64 UEFI, RFC 4578 §2.1.
    (0x06, "uefi_amd64_tftp", Name::Tftp("bootx64.efi")),
];

/// Method -> the iPXE in place of its loader where another server hands out the addresses. shim's GRUB 2.06 looks for its
/// configuration at that server; iPXE keeps to whoever told it what to boot. A site may have none: its firmware may insist
/// on signed loaders.
const IPXE_BESIDE: [(&str, &str); 3] = [
    ("uefi_amd64_tftp", "ipxe.efi"),
    ("uefi_ebc_tftp", "ipxe.efi"),
    ("uefi_arm64_tftp", "ipxe-arm64.efi"),
];

/// Every boot file of the rack at one address, written once.
#[derive(Clone, Debug)]
pub struct BootFiles {
    ipxe: Option<BootFile>,
    /// In the order of `IPXE_BESIDE`.
    ipxe_beside: [Option<BootFile>; IPXE_BESIDE.len()],
    onie: Option<BootFile>,
    /// In the order of `METHODS`.
    by_arch: [Option<BootFile>; METHODS.len()],
}

impl BootFiles {
    /// Of the rack at `server`.
    pub fn of(server: IpAddr) -> Self {
        let rack = SocketAddr::new(server, RACK_HTTP_PORT);
        let url = |path| Text::format(format_args!("http://{rack}/{path}"));
        Self {
            ipxe: url("ipxe.cfg").map(|file| BootFile::plain("ipxe", file)),
            ipxe_beside: IPXE_BESIDE
                .map(|(method, file)| BootFile::named(method, Name::Tftp(file), rack)),
            onie: url("MAAS/a/v3/nos-installer").map(|url| BootFile {
                vendor_identifying: Some(VendorIdentifying::onie_installer(url)),
                ..BootFile::plain("onie", Text::EMPTY)
            }),
            by_arch: METHODS.map(|(_, method, name)| BootFile::named(method, name, rack)),
        }
    }

    /// The one for this firmware; `disabled` are the boot methods that the subnet does not give. None: no boot file,
    /// so the firmware goes on to its next device.
    pub fn choose(&self, firmware: &Firmware<'_>, disabled: &[String]) -> Option<&BootFile> {
        let enabled = |file: &&BootFile| is_enabled(file.method, disabled);
        if firmware.is_able_ipxe()
            && let Some(script) = self.ipxe.as_ref().filter(enabled)
        {
            return Some(script);
        }
        if firmware.is_onie() {
            // It boots from its own flash: without the installer it gets nothing.
            return self.onie.as_ref().filter(enabled);
        }
        let arch = firmware.arch.unwrap_or(0);
        let row = METHODS.iter().position(|(listed, ..)| *listed == arch);
        self.by_arch[row.unwrap_or(0)].as_ref().filter(enabled)
    }

    /// The same on a link whose addresses somebody else hands out; `has` says whether the rack has a file.
    pub fn choose_beside(
        &self,
        firmware: &Firmware<'_>,
        disabled: &[String],
        has: impl Fn(&str) -> bool,
    ) -> Option<&BootFile> {
        let file = self.choose(firmware, disabled)?;
        // An iPXE that gets no script would get itself for ever.
        if firmware.is_ipxe() || !is_enabled("ipxe", disabled) {
            return Some(file);
        }
        let row = IPXE_BESIDE
            .iter()
            .position(|(method, _)| *method == file.method);
        let ipxe = row.and_then(|row| self.ipxe_beside[row].as_ref());
        ipxe.filter(|ipxe| has(ipxe.file.as_str())).or(Some(file))
    }
}

fn is_enabled(method: &str, disabled: &[String]) -> bool {
    !disabled.iter().any(|name| name == method)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot_file(firmware: &Firmware<'_>, server: IpAddr, disabled: &[String]) -> Option<BootFile> {
        BootFiles::of(server).choose(firmware, disabled).copied()
    }

    const RACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 99, 0, 1));

    fn method(firmware: Firmware<'_>, disabled: &[&str]) -> Option<(&'static str, String)> {
        let disabled: Vec<String> = disabled.iter().map(ToString::to_string).collect();
        boot_file(&firmware, RACK, &disabled).map(|boot| (boot.method, boot.file.to_string()))
    }

    #[test]
    fn each_architecture_gets_its_loader() {
        let cases = [
            (None, "pxe", "lpxelinux.0"),
            (Some(0x00), "pxe", "lpxelinux.0"),
            (Some(0x06), "uefi_amd64_tftp", "bootx64.efi"),
            (Some(0x07), "uefi_amd64_tftp", "bootx64.efi"),
            (Some(0x09), "uefi_ebc_tftp", "bootx64.efi"),
            (Some(0x0b), "uefi_arm64_tftp", "bootaa64.efi"),
            (Some(0x0c), "open-firmware_ppc64el", "bootppc64.bin"),
            (Some(0x0e), "powernv", "pxelinux.0"),
            (
                Some(0x10),
                "uefi_amd64_http",
                "http://10.99.0.1:5248/images/bootx64.efi",
            ),
            (
                Some(0x13),
                "uefi_arm64_http",
                "http://10.99.0.1:5248/images/bootaa64.efi",
            ),
            (Some(0x1f), "s390x", "boots390x.bin"),
            (Some(0x20), "s390x_partition", "s390x_partition/maas"),
            (Some(0x1b), "pxe", "lpxelinux.0"),
        ];
        for (arch, want_method, want_file) in cases {
            let firmware = Firmware {
                arch,
                ..Firmware::default()
            };
            assert_eq!(
                method(firmware, &[]),
                Some((want_method, want_file.into())),
                "{arch:?}"
            );
            assert_eq!(method(firmware, &[want_method]), None, "{arch:?} disabled");
        }
    }

    #[test]
    fn prefixes_and_classes() {
        let boot = |arch| {
            boot_file(
                &Firmware {
                    arch: Some(arch),
                    ..Firmware::default()
                },
                RACK,
                &[],
            )
            .unwrap()
        };
        assert_eq!(
            boot(0).path_prefix.unwrap().as_str(),
            "http://10.99.0.1:5248/"
        );
        assert_eq!(boot(0x0e).path_prefix.unwrap().as_str(), "ppc64el/");
        assert_eq!((boot(7).path_prefix, boot(7).vendor_class), (None, None));
        assert_eq!(boot(0x10).vendor_class, Some("HTTPClient"));
        let rack = "fd99::1".parse().unwrap();
        let firmware = Firmware {
            arch: Some(0x10),
            ..Firmware::default()
        };
        let file = boot_file(&firmware, rack, &[]).unwrap().file;
        assert_eq!(file.as_str(), "http://[fd99::1]:5248/images/bootx64.efi");
    }

    #[test]
    fn ipxe_gets_its_script_if_it_can_boot_from_it() {
        let script = Some(("ipxe", "http://10.99.0.1:5248/ipxe.cfg".to_string()));
        let pxe = Some(("pxe", "lpxelinux.0".to_string()));
        let features = |http, bzimage, efi| Firmware {
            arch: Some(0),
            user_class: b"iPXE",
            ipxe: Some(IpxeFeatures { http, bzimage, efi }),
            ..Firmware::default()
        };
        let by_class = |user_class| Firmware {
            user_class,
            ..Firmware::default()
        };
        assert_eq!(method(features(true, true, false), &[]), script);
        assert_eq!(method(features(true, false, true), &[]), script);
        assert_eq!(method(features(true, false, false), &[]), pxe);
        assert_eq!(method(features(false, true, true), &[]), pxe);
        assert_eq!(method(features(true, true, false), &["ipxe"]), pxe);
        assert_eq!(method(by_class(b"iPXE"), &[]), script);
        assert_eq!(method(by_class(b"\x04iPXE"), &[]), script);
        assert_eq!(method(by_class(b"gPXE"), &[]), pxe);
    }

    #[test]
    fn beside_another_server_uefi_gets_ipxe_where_the_rack_has_one() {
        let files = BootFiles::of(RACK);
        let choose = |firmware: Firmware<'_>, disabled: &[&str], has: &[&str]| {
            let disabled: Vec<String> = disabled.iter().map(ToString::to_string).collect();
            let has = |file: &str| has.contains(&file);
            let file = files.choose_beside(&firmware, &disabled, has);
            file.map(|file| (file.method, file.file.to_string()))
        };
        let of = |arch| Firmware {
            arch: Some(arch),
            ..Firmware::default()
        };
        let all = ["ipxe.efi", "ipxe-arm64.efi", "bootx64.efi"];
        for (arch, disabled, has, want) in [
            (7, &[][..], &all[..], Some(("uefi_amd64_tftp", "ipxe.efi"))),
            (9, &[], &all, Some(("uefi_ebc_tftp", "ipxe.efi"))),
            (11, &[], &all, Some(("uefi_arm64_tftp", "ipxe-arm64.efi"))),
            (7, &[], &[], Some(("uefi_amd64_tftp", "bootx64.efi"))),
            (
                11,
                &[],
                &all[..1],
                Some(("uefi_arm64_tftp", "bootaa64.efi")),
            ),
            (0, &[], &all, Some(("pxe", "lpxelinux.0"))),
            (7, &["ipxe"], &all, Some(("uefi_amd64_tftp", "bootx64.efi"))),
            (7, &["uefi_amd64_tftp"], &all, None),
        ] {
            let found = choose(of(arch), disabled, has);
            let found = found
                .as_ref()
                .map(|(method, file)| (*method, file.as_str()));
            assert_eq!(found, want, "{arch} {disabled:?}");
        }
        let weak = Firmware {
            ipxe: Some(IpxeFeatures::default()),
            ..of(7)
        };
        let shim = Some(("uefi_amd64_tftp", "bootx64.efi".to_string()));
        assert_eq!(choose(weak, &[], &all), shim, "not itself again");
        let able = Firmware {
            user_class: b"iPXE",
            ..of(7)
        };
        assert_eq!(choose(able, &[], &all).unwrap().0, "ipxe");
    }

    #[test]
    fn onie_gets_its_installer_by_option_125() {
        for user_class in [
            &b"onie_dhcp_user_class"[..],
            &b"\x14onie_dhcp_user_class"[..],
        ] {
            let firmware = Firmware {
                user_class,
                ..Firmware::default()
            };
            let boot = boot_file(&firmware, RACK, &[]).unwrap();
            assert_eq!((boot.method, boot.file.as_str()), ("onie", ""));
            let option = boot.vendor_identifying.unwrap();
            let url = b"http://10.99.0.1:5248/MAAS/a/v3/nos-installer";
            let head = [0, 0, 0xa6, 0x7f, url.len() as u8 + 2, 1, url.len() as u8];
            assert_eq!(option.as_bytes(), [&head[..], url].concat());
            assert_eq!(boot_file(&firmware, RACK, &["onie".into()]), None);
        }
    }

    #[test]
    fn captured_firmware() {
        macro_rules! capture {
            ($name:literal) => {
                include_bytes!(concat!("../../wire/tests/data/", $name, "-discover.bin"))
            };
        }
        let cases: [(&str, &[u8], &str); 6] = [
            // The ipxe-qemu ROMs announce http, and bzImage or EFI.
            ("iPXE on BIOS", capture!("ipxe-bios"), "ipxe"),
            ("iPXE on UEFI", capture!("ipxe-uefi"), "ipxe"),
            ("OVMF PXEv4", capture!("ovmf-pxe"), "uefi_amd64_tftp"),
            ("OVMF HTTPv4", capture!("ovmf-http"), "uefi_amd64_http"),
            ("initramfs", capture!("ipconfig"), "pxe"),
            ("dhclient", capture!("dhclient"), "pxe"),
        ];
        for (case, octets, want) in cases {
            let query = View::parse(octets).unwrap();
            let found = boot_file(&Firmware::of(&query), RACK, &[]).unwrap();
            assert_eq!(found.method, want, "{case}");
        }
    }
}

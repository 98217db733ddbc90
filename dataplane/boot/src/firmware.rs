//! Which loader a firmware gets, told by options 93, 60, 77 and 175 (RFC 4578, RFC 3004, iPXE's own).

use std::net::{IpAddr, SocketAddr};

use wire::dhcp4::{Field, View, code};

use crate::arch::{Arch, Said};
use crate::command_line::RACK_HTTP_PORT;
use crate::methods::{IPXE_BESIDE, METHODS, Method, Name, Unserved};
use crate::text::Text;

/// What a client says about its firmware.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Firmware<'a> {
    /// Option 93 as it came. None: not a network boot, or one from before RFC 4578.
    pub archs: Option<&'a [u8]>,
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
            archs: query.option(code::CLIENT_ARCH),
            vendor_class: query.vendor_class().unwrap_or_default(),
            user_class: query.user_class().unwrap_or_default(),
            ipxe: query.option(code::IPXE).map(IpxeFeatures::parse),
        }
    }

    /// It announces itself as firmware that boots from the network (an operating system's client does not).
    pub fn is_network_boot(&self) -> bool {
        let classes: [&[u8]; 2] = [b"PXEClient", b"HTTPClient"];
        self.archs.is_some()
            || self.ipxe.is_some()
            || classes
                .iter()
                .any(|class| self.vendor_class.starts_with(class))
    }

    /// What it is, where it says so in a way that can be read.
    pub fn arch(&self) -> Option<Arch> {
        self.said().map(Said::first)
    }

    fn said(&self) -> Option<Said<'a>> {
        Said::of(self.archs, self.vendor_class)
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
            by_arch: METHODS.map(|method| BootFile::named(method.method, method.name, rack)),
        }
    }

    /// The one for this firmware; `disabled` are the boot methods that the subnet does not give, and `has` says whether
    /// the rack has a loader. An error: no boot file, so the firmware goes on to its next device.
    pub fn choose(
        &self,
        firmware: &Firmware<'_>,
        disabled: &[String],
        has: impl Fn(&str) -> bool,
    ) -> Result<&BootFile, Unserved> {
        if firmware.is_able_ipxe()
            && let Ok(script) = given(&self.ipxe, "ipxe", disabled)
        {
            return Ok(script);
        }
        if firmware.is_onie() {
            // It boots from its own flash: without the installer it gets nothing.
            return given(&self.onie, "onie", disabled);
        }
        let said = firmware.said().ok_or(Unserved::Unreadable)?;
        let by_http = firmware.vendor_class.starts_with(b"HTTPClient");
        let mut why = None;
        for arch in said.iter() {
            let arch = if by_http { arch.by_http() } else { arch };
            match self.of_arch(arch, disabled, &has) {
                Ok(file) => return Ok(file),
                // What it likes best is what is wrong.
                Err(unserved) => why = why.or(Some(unserved)),
            }
        }
        Err(why.unwrap_or(Unserved::Unreadable))
    }

    fn of_arch(
        &self,
        arch: Arch,
        disabled: &[String],
        has: impl Fn(&str) -> bool,
    ) -> Result<&BootFile, Unserved> {
        let row = METHODS.iter().position(|method| method.arch == arch);
        let row = row.ok_or(Unserved::Unknown(arch))?;
        let Method { method, loader, .. } = METHODS[row];
        let file = given(&self.by_arch[row], method, disabled)?;
        match has(loader) {
            true => Ok(file),
            false => Err(Unserved::NoLoader { arch, loader }),
        }
    }

    /// The same on a link whose addresses somebody else hands out.
    pub fn choose_beside(
        &self,
        firmware: &Firmware<'_>,
        disabled: &[String],
        has: impl Fn(&str) -> bool,
    ) -> Result<&BootFile, Unserved> {
        // An iPXE that gets no script would get itself for ever.
        let may = !firmware.is_ipxe() && is_enabled("ipxe", disabled);
        let ipxe = may.then(|| self.ipxe_for(firmware, disabled)).flatten();
        match ipxe.filter(|ipxe| has(ipxe.file.as_str())) {
            Some(ipxe) => Ok(ipxe),
            None => self.choose(firmware, disabled, has),
        }
    }

    /// The iPXE in place of this firmware's loader, be that one there or not.
    fn ipxe_for(&self, firmware: &Firmware<'_>, disabled: &[String]) -> Option<&BootFile> {
        let loader = self.choose(firmware, disabled, |_| true).ok()?;
        let row = IPXE_BESIDE
            .iter()
            .position(|(method, _)| *method == loader.method)?;
        self.ipxe_beside[row].as_ref()
    }
}

/// A file of a method that the subnet gives.
fn given<'a>(
    file: &'a Option<BootFile>,
    method: &'static str,
    disabled: &[String],
) -> Result<&'a BootFile, Unserved> {
    match is_enabled(method, disabled) {
        true => file.as_ref().ok_or(Unserved::NoServer),
        false => Err(Unserved::Disabled { method }),
    }
}

fn is_enabled(method: &str, disabled: &[String]) -> bool {
    !disabled.iter().any(|name| name == method)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot_file(
        firmware: &Firmware<'_>,
        server: IpAddr,
        disabled: &[String],
    ) -> Result<BootFile, Unserved> {
        let has_all = |_: &str| true;
        BootFiles::of(server)
            .choose(firmware, disabled, has_all)
            .copied()
    }

    const RACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 99, 0, 1));

    fn method(firmware: Firmware<'_>, disabled: &[&str]) -> Option<(&'static str, String)> {
        let disabled: Vec<String> = disabled.iter().map(ToString::to_string).collect();
        let boot = boot_file(&firmware, RACK, &disabled).ok()?;
        Some((boot.method, boot.file.to_string()))
    }

    /// One of these architectures, by option 93.
    fn of_archs(archs: &[u16]) -> Firmware<'static> {
        let octets: Vec<u8> = archs.iter().flat_map(|arch| arch.to_be_bytes()).collect();
        Firmware {
            archs: Some(octets.leak()),
            ..Firmware::default()
        }
    }

    fn of(arch: u16) -> Firmware<'static> {
        of_archs(&[arch])
    }

    /// Architecture, method, and the loader that it needs; for every number not listed nothing is known.
    const SERVED: [(u16, &str, &str); 18] = [
        (0x00, "pxe", "lpxelinux.0"),
        (0x06, "uefi_ia32_tftp", "bootia32.efi"),
        (0x07, "uefi_amd64_tftp", "bootx64.efi"),
        (0x09, "uefi_ebc_tftp", "bootx64.efi"),
        (0x0a, "uefi_armhf_tftp", "bootarm.efi"),
        (0x0b, "uefi_arm64_tftp", "bootaa64.efi"),
        (0x0c, "open-firmware_ppc64el", "bootppc64.bin"),
        (0x0e, "powernv", "ppc64el/pxelinux.0"),
        (0x0f, "uefi_ia32_http", "bootia32.efi"),
        (0x10, "uefi_amd64_http", "bootx64.efi"),
        (0x12, "uefi_armhf_http", "bootarm.efi"),
        (0x13, "uefi_arm64_http", "bootaa64.efi"),
        (0x1b, "uefi_riscv64_tftp", "bootriscv64.efi"),
        (0x1c, "uefi_riscv64_http", "bootriscv64.efi"),
        (0x1f, "s390x", "s390x/boots390x.bin"),
        (0x20, "s390x_partition", "s390x_partition/maas"),
        (0x27, "uefi_loong64_tftp", "bootloongarch64.efi"),
        (0x28, "uefi_loong64_http", "bootloongarch64.efi"),
    ];

    /// The number of the same machine that boots by HTTP.
    const BY_HTTP: [(u16, u16); 4] = [(0x07, 0x10), (0x09, 0x10), (0x0b, 0x13), (0x06, 0x0f)];

    /// Every architecture, in every way in which firmware says it: its own loader and no other's, or none and why.
    #[test]
    fn each_architecture_gets_its_own_loader_or_none_and_the_reason() {
        let files = BootFiles::of(RACK);
        // What Debian's loaders and MAAS's are.
        let usual = [
            "lpxelinux.0",
            "pxelinux.0",
            "bootx64.efi",
            "bootaa64.efi",
            "grubx64.efi",
        ];
        for number in 0..0x40u16 {
            let octets = number.to_be_bytes();
            let odd = [octets[0], octets[1], 0];
            let class = format!("PXEClient:Arch:{number:05}:UNDI:003016");
            let class = class.as_bytes();
            let says = |archs: Option<&'static [u8]>| Firmware {
                archs,
                vendor_class: class,
                ..Firmware::default()
            };
            let ways: [(&str, Firmware<'_>); 7] = [
                ("93", of(number)),
                (
                    "93 and 60",
                    Firmware {
                        vendor_class: class,
                        ..of(number)
                    },
                ),
                (
                    "93, and another in 60",
                    Firmware {
                        vendor_class: b"PXEClient:Arch:00000:UNDI:002001",
                        ..of(number)
                    },
                ),
                ("60", says(None)),
                ("60, 93 empty", says(Some(&[]))),
                ("60, 93 of one octet", says(Some(&[0]))),
                (
                    "93 of three octets",
                    Firmware {
                        archs: Some(&odd),
                        ..Firmware::default()
                    },
                ),
            ];
            let row = SERVED.iter().find(|(arch, ..)| *arch == number);
            for (way, firmware) in ways {
                let all = files.choose(&firmware, &[], |_| true);
                let some = files.choose(&firmware, &[], |loader| usual.contains(&loader));
                let none = files.choose(&firmware, &[], |_| false);
                let Some((_, method, loader)) = row else {
                    let want = Err(Unserved::Unknown(Arch(number)));
                    assert_eq!([all, some, none], [want; 3], "{number:#x} {way}");
                    continue;
                };
                let file = all.unwrap();
                assert_eq!(file.method, *method, "{number:#x} {way}");
                let named = loader.rsplit('/').next().unwrap();
                assert!(file.file.as_str().ends_with(named), "{}", file.file);
                let lacking = Unserved::NoLoader {
                    arch: Arch(number),
                    loader,
                };
                assert_eq!(none, Err(lacking), "{number:#x} {way}");
                let want = if usual.contains(loader) {
                    Ok(file)
                } else {
                    Err(lacking)
                };
                assert_eq!(some, want, "{number:#x} {way}");
                let off = files.choose(&firmware, &[method.to_string()], |_| true);
                assert_eq!(off, Err(Unserved::Disabled { method }), "{number:#x} {way}");
            }
        }
    }

    #[test]
    fn what_says_nothing_that_can_be_read_gets_nothing() {
        let malformed: [(Option<&[u8]>, &[u8]); 5] = [
            (Some(&[]), b"PXEClient"),
            (Some(&[7]), b""),
            (Some(&[7]), b"PXEClient:Arch:xx"),
            (None, b"PXEClient:Arch:0x07:UNDI:003016"),
            (None, b"HTTPClient:Arch:"),
        ];
        for (archs, vendor_class) in malformed {
            let firmware = Firmware {
                archs,
                vendor_class,
                ..Firmware::default()
            };
            assert_eq!(boot_file(&firmware, RACK, &[]), Err(Unserved::Unreadable));
            assert!(firmware.is_network_boot(), "worth telling");
        }
        // Firmware from before RFC 4578, and what is no firmware, say nothing.
        for vendor_class in [&b""[..], b"PXEClient", b"anaconda-Linux"] {
            let firmware = Firmware {
                vendor_class,
                ..Firmware::default()
            };
            assert_eq!(boot_file(&firmware, RACK, &[]).unwrap().method, "pxe");
        }
    }

    #[test]
    fn of_several_architectures_the_first_that_can_be_served_counts() {
        let files = BootFiles::of(RACK);
        let choose = |archs: &[u16], has: &str| {
            let file = files.choose(&of_archs(archs), &[], |loader| loader == has);
            file.map(|file| file.method)
        };
        assert_eq!(choose(&[6, 7], "bootx64.efi"), Ok("uefi_amd64_tftp"));
        assert_eq!(choose(&[6, 7], "bootia32.efi"), Ok("uefi_ia32_tftp"));
        assert_eq!(choose(&[0x22, 0, 7], "lpxelinux.0"), Ok("pxe"));
        let lacking = Unserved::NoLoader {
            arch: Arch(6),
            loader: "bootia32.efi",
        };
        assert_eq!(
            choose(&[6, 7, 0x22], ""),
            Err(lacking),
            "what it likes best"
        );
    }

    #[test]
    fn http_boot_is_told_by_its_class_where_its_number_is_the_others() {
        for (number, http) in BY_HTTP {
            let class = format!("HTTPClient:Arch:{number:05}:UNDI:003001");
            let by_class = Firmware {
                vendor_class: class.as_bytes(),
                ..Firmware::default()
            };
            let by_both = Firmware {
                vendor_class: b"HTTPClient",
                ..of(number)
            };
            let want = method(of(http), &[]);
            assert!(want.as_ref().unwrap().1.starts_with("http://"));
            assert_eq!(
                [method(by_class, &[]), method(by_both, &[])],
                [want.clone(), want]
            );
        }
        // A BIOS that boots by HTTP cannot read a loader for PXE.
        let bios = Firmware {
            vendor_class: b"HTTPClient:Arch:00000",
            ..Firmware::default()
        };
        assert_eq!(
            boot_file(&bios, RACK, &[]),
            Err(Unserved::Unknown(Arch(0x14)))
        );
    }

    #[test]
    fn a_reason_names_the_architecture_and_the_loader() {
        let lacking = Unserved::NoLoader {
            arch: Arch(6),
            loader: "bootia32.efi",
        };
        for (why, want) in [
            (
                lacking,
                "x86 UEFI (0x06) boots bootia32.efi, which is not among",
            ),
            (
                Unserved::Unknown(Arch(0x22)),
                "nothing here boots MIPS 64-bit UEFI (0x22)",
            ),
            (Unserved::Disabled { method: "pxe" }, "does not give pxe"),
            (Unserved::Unreadable, "(options 93 and 60) cannot be read"),
        ] {
            assert!(why.to_string().contains(want), "{why}");
        }
    }

    #[test]
    fn prefixes_and_classes() {
        let boot = |arch| boot_file(&of(arch), RACK, &[]).unwrap();
        assert_eq!(
            boot(0).path_prefix.unwrap().as_str(),
            "http://10.99.0.1:5248/"
        );
        assert_eq!(boot(0x0e).path_prefix.unwrap().as_str(), "ppc64el/");
        assert_eq!((boot(7).path_prefix, boot(7).vendor_class), (None, None));
        assert_eq!(boot(0x10).vendor_class, Some("HTTPClient"));
        let rack = "fd99::1".parse().unwrap();
        let file = boot_file(&of(0x10), rack, &[]).unwrap().file;
        assert_eq!(file.as_str(), "http://[fd99::1]:5248/images/bootx64.efi");
    }

    #[test]
    fn ipxe_gets_its_script_if_it_can_boot_from_it() {
        let script = Some(("ipxe", "http://10.99.0.1:5248/ipxe.cfg".to_string()));
        let pxe = Some(("pxe", "lpxelinux.0".to_string()));
        let features = |http, bzimage, efi| Firmware {
            user_class: b"iPXE",
            ipxe: Some(IpxeFeatures { http, bzimage, efi }),
            ..of(0)
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
            let file = file.ok()?;
            Some((file.method, file.file.to_string()))
        };
        let all = ["ipxe.efi", "ipxe-arm64.efi", "bootx64.efi", "lpxelinux.0"];
        for (arch, disabled, has, want) in [
            (7, &[][..], &all[..], Some(("uefi_amd64_tftp", "ipxe.efi"))),
            (9, &[], &all, Some(("uefi_ebc_tftp", "ipxe.efi"))),
            (11, &[], &all, Some(("uefi_arm64_tftp", "ipxe-arm64.efi"))),
            (7, &[], &all[..1], Some(("uefi_amd64_tftp", "ipxe.efi"))),
            (7, &[], &all[2..], Some(("uefi_amd64_tftp", "bootx64.efi"))),
            (7, &[], &[], None),
            (11, &[], &all[..1], None),
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
            let off = boot_file(&firmware, RACK, &["onie".into()]);
            assert_eq!(off, Err(Unserved::Disabled { method: "onie" }));
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

//! Scripts for pxelinux, GRUB and iPXE.
//!
//! Each loader reads quotes, braces and dollars in its own way; the functions that quote say how. A word that a
//! loader cannot be given at all is an error.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use crate::command_line::{RenderError, Token, command_line, url_path};
use crate::machine::{Machine, Purpose, Settings};
use crate::request::ConfigKind;

/// The script for `machine`, as it fetches it from the rack at `rack`:`http_port`.
pub fn render(
    kind: ConfigKind,
    machine: &Machine,
    rack: IpAddr,
    http_port: u16,
    settings: &Settings,
) -> Result<String, RenderError> {
    let rack = SocketAddr::new(rack, http_port);
    match machine.purpose {
        Purpose::Commissioning | Purpose::Enlist | Purpose::Xinstall => {
            let boot = Ephemeral {
                rack,
                kernel: url_path(&machine.kernel, "kernel")?,
                initrd: url_path(&machine.initrd, "initrd")?,
                line: command_line(machine, rack, settings)?,
            };
            match kind {
                ConfigKind::Pxelinux => Ok(boot.pxelinux()),
                ConfigKind::Grub => Ok(boot.grub()),
                ConfigKind::Ipxe => boot.ipxe(),
            }
        }
        Purpose::Local => Ok(local(kind, &machine.arch)),
        Purpose::Poweroff => Ok(poweroff(kind).to_string()),
    }
}

/// The script under a loader's fixed name, which makes it ask again by its MAC and then by its architecture.
/// None for pxelinux, which does that by itself.
pub fn render_preloader(kind: ConfigKind, rack: IpAddr, http_port: u16) -> Option<String> {
    let rack = SocketAddr::new(rack, http_port);
    match kind {
        ConfigKind::Pxelinux => None,
        // A configfile that is not there fails, and the next line is run.
        ConfigKind::Grub => Some(
            "set timeout=0\n\
             configfile /grub/grub.cfg-${net_default_mac}\n\
             configfile /grub/grub.cfg-default-${grub_cpu}\n"
                .to_string(),
        ),
        ConfigKind::Ipxe => Some(format!(
            "#!ipxe\n\
             chain http://{rack}/ipxe.cfg-${{mac:hexhyp}} || \
             chain http://{rack}/ipxe.cfg-default-${{buildarch}}\n"
        )),
    }
}

/// A boot into the ephemeral system; every value is checked.
struct Ephemeral<'a> {
    rack: SocketAddr,
    kernel: &'a str,
    initrd: &'a str,
    line: Vec<Token>,
}

impl Ephemeral<'_> {
    /// pxelinux takes the rest of the APPEND line as it is.
    fn pxelinux(&self) -> String {
        let line = self.words(
            |word| word.to_string(),
            "cc:{'datasource_list': ['MAAS']}end_cc",
        );
        let Self {
            rack,
            kernel,
            initrd,
            ..
        } = self;
        format!(
            "DEFAULT execute\n\
             \n\
             LABEL execute\n\
             \x20 SAY Booting as the region says...\n\
             \x20 KERNEL http://{rack}{kernel}\n\
             \x20 INITRD http://{rack}{initrd}\n\
             \x20 APPEND {line}\n\
             \x20 IPAPPEND 2\n"
        )
    }

    /// GRUB eats plain quotes (YAML does without them), and would pass escaped ones on with their backslash: so
    /// the datasource list's own are left for it to eat.
    fn grub(&self) -> String {
        let line = self.words(grub_quote, r"cc:\{'datasource_list': ['MAAS']\}end_cc");
        let Self {
            rack,
            kernel,
            initrd,
            ..
        } = self;
        format!(
            "set default=0\n\
             set timeout=0\n\
             insmod http\n\
             \n\
             menuentry 'Ephemeral' {{\n\
             \x20 echo 'Booting as the region says...'\n\
             \x20 linux (http,{rack}){kernel} {line} BOOTIF=01-${{net_default_mac}}\n\
             \x20 initrd (http,{rack}){initrd}\n\
             }}\n"
        )
    }

    fn ipxe(&self) -> Result<String, RenderError> {
        let operators = self.line.iter().filter_map(|token| match token {
            Token::Option(word) => Some(word.as_str()),
            Token::Plain(_) | Token::Datasource => None,
        });
        for word in operators {
            ipxe_check(word)?;
        }
        let line = self.words(
            |word| word.to_string(),
            "cc:{'datasource_list': ['MAAS']}end_cc",
        );
        let Self {
            rack,
            kernel,
            initrd,
            ..
        } = self;
        // An EFI kernel finds its initrd by the name that is given to it here.
        Ok(format!(
            "#!ipxe\n\
             kernel http://{rack}{kernel} initrd=initrd {line} BOOTIF=01-${{mac:hexhyp}}\n\
             initrd --name initrd http://{rack}{initrd}\n\
             boot\n"
        ))
    }

    fn words(&self, quote: impl Fn(&str) -> String, datasource: &str) -> String {
        let mut line = String::new();
        for (index, token) in self.line.iter().enumerate() {
            if index > 0 {
                line.push(' ');
            }
            match token {
                Token::Plain(word) => line.push_str(word),
                Token::Datasource => line.push_str(datasource),
                Token::Option(word) => line.push_str(&quote(word)),
            }
        }
        line
    }
}

/// A word as GRUB's shell has to see it: everything that is not surely plain behind a backslash.
fn grub_quote(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len());
    for c in word.chars() {
        if !(c.is_ascii_alphanumeric() || "=,.:/_-+%@~".contains(c)) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

/// iPXE has no quoting: what it would take for a setting, a comment or another command is refused.
fn ipxe_check(word: &str) -> Result<(), RenderError> {
    if word.contains("${") || word.starts_with('#') || matches!(word, "&&" | "||") {
        Err(RenderError::Unsafe {
            field: "kernel options for iPXE",
        })
    } else {
        Ok(())
    }
}

/// EFI loaders on a disk, the likeliest first; the architecture's own default name last.
const LOADERS_AMD64: [&str; 6] = [
    "/efi/ubuntu/shimx64.efi",
    "/efi/ubuntu/grubx64.efi",
    "/efi/debian/shimx64.efi",
    "/efi/centos/shimx64.efi",
    "/efi/redhat/shimx64.efi",
    "/efi/boot/bootx64.efi",
];
const LOADERS_ARM64: [&str; 5] = [
    "/efi/ubuntu/shimaa64.efi",
    "/efi/ubuntu/grubaa64.efi",
    "/efi/debian/shimaa64.efi",
    "/efi/centos/shimaa64.efi",
    "/efi/boot/bootaa64.efi",
];

/// Boots the disk.
fn local(kind: ConfigKind, arch: &str) -> String {
    match kind {
        // Without chain.c32 the BIOS tries its next device.
        ConfigKind::Pxelinux => "DEFAULT local\n\
             ONERROR next\n\
             \n\
             LABEL local\n\
             \x20 SAY Booting from the local disk...\n\
             \x20 KERNEL chain.c32\n\
             \x20 APPEND hd0\n\
             \n\
             LABEL next\n\
             \x20 LOCALBOOT 0\n"
            .to_string(),
        ConfigKind::Grub => {
            let loaders: &[&str] = if arch == "arm64" {
                &LOADERS_ARM64
            } else {
                &LOADERS_AMD64
            };
            let mut script = "set default=0\n\
                 set timeout=0\n\
                 \n\
                 menuentry 'Local' {\n\
                 \x20 echo 'Booting from the local disk...'\n"
                .to_string();
            for path in loaders {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    script,
                    "  if search --no-floppy --set=root --file {path}; then\n\
                     \x20   chainloader ($root){path}\n\
                     \x20   boot\n\
                     \x20 fi"
                );
            }
            // Back to the firmware: its next boot entry.
            script.push_str("  exit\n}\n");
            script
        }
        // On UEFI `exit` goes on to the next boot entry; sanboot is for BIOS.
        ConfigKind::Ipxe => "#!ipxe\n\
             iseq ${platform} efi && exit ||\n\
             sanboot --no-describe --drive 0x80 || exit\n"
            .to_string(),
    }
}

fn poweroff(kind: ConfigKind) -> &'static str {
    match kind {
        ConfigKind::Pxelinux => {
            "DEFAULT poweroff\n\
             \n\
             LABEL poweroff\n\
             \x20 SAY Powering off...\n\
             \x20 KERNEL poweroff.c32\n"
        }
        ConfigKind::Grub => {
            "set default=0\n\
             set timeout=0\n\
             \n\
             menuentry 'Power off' {\n\
             \x20 echo 'Powering off...'\n\
             \x20 halt\n\
             }\n"
        }
        ConfigKind::Ipxe => {
            "#!ipxe\n\
             poweroff\n"
        }
    }
}

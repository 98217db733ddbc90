//! Scripts for pxelinux, GRUB and iPXE.
//!
//! Each loader reads quotes, braces and dollars in its own way; the functions that quote say how. A word that a
//! loader cannot be given at all is an error.
//!
//! A rack may be busy for a moment, and a packet may be lost: a fetch that fails is tried again, [`TRIES`] times with a
//! longer pause each time. Then the script ends with a failure, with which the firmware goes on to its next device.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use crate::command_line::{RenderError, Token, command_line, url_path};
use crate::machine::{Machine, Purpose, Settings};
use crate::request::{ConfigKind, ConfigRequest};

/// Seconds between one try and the next.
const PAUSES_SECS: [u32; 4] = [1, 2, 4, 8];
const TRIES: usize = PAUSES_SECS.len() + 1;

/// The script for `machine`, as it fetches it from the rack at `rack`:`http_port`.
pub fn render(
    request: &ConfigRequest,
    machine: &Machine,
    rack: IpAddr,
    http_port: u16,
    settings: &Settings,
) -> Result<String, RenderError> {
    let (kind, rack) = (request.kind, SocketAddr::new(rack, http_port));
    match machine.purpose {
        _ if machine.lacks_image() => Ok(without_image(kind, &machine.arch)),
        Purpose::Commissioning | Purpose::Enlist | Purpose::Xinstall => {
            let boot = Ephemeral {
                rack,
                kernel: url_path(&machine.kernel, "kernel")?,
                initrd: url_path(&machine.initrd, "initrd")?,
                line: command_line(machine, rack, settings)?,
            };
            match kind {
                ConfigKind::Pxelinux => Ok(boot.pxelinux(request)),
                ConfigKind::Grub => Ok(boot.grub()),
                ConfigKind::Ipxe => boot.ipxe(),
            }
        }
        Purpose::Local => Ok(local(kind, &machine.arch)),
        Purpose::Poweroff => Ok(poweroff(request, rack)),
    }
}

/// The script under a loader's fixed name, which makes it ask again by its MAC and then by its architecture.
/// None for pxelinux, which does that by itself.
pub fn render_preloader(kind: ConfigKind, rack: IpAddr, http_port: u16) -> Option<String> {
    let rack = SocketAddr::new(rack, http_port);
    match kind {
        ConfigKind::Pxelinux => None,
        // A configfile that is not there fails, and the next line is run.
        ConfigKind::Grub => Some(format!(
            "set timeout=0\n\
             for pause in {pauses}; do\n\
             \x20 configfile /grub/grub.cfg-${{net_default_mac}}-${{grub_cpu}}\n\
             \x20 configfile /grub/grub.cfg-default-${{grub_cpu}}\n\
             \x20 sleep $pause\n\
             done\n\
             exit 1\n",
            pauses = grub_pauses()
        )),
        // Fetched first and then run: a script that ran and ended is not to be run again under its other name.
        ConfigKind::Ipxe => Some(ipxe_again(&format!(
            "imgfetch --name config http://{rack}/ipxe.cfg-${{mac:hexhyp}}-${{buildarch}} || \
             imgfetch --name config http://{rack}/ipxe.cfg-default-${{buildarch}} || goto failed_${{try}}\n\
             imgexec config || exit 1\n\
             exit\n"
        ))),
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
    fn pxelinux(&self, request: &ConfigRequest) -> String {
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
        let label = format!(
            "  SAY Booting as the region says...\n\
             \x20 KERNEL http://{rack}{kernel}\n\
             \x20 INITRD http://{rack}{initrd}\n\
             \x20 APPEND {line}\n\
             \x20 IPAPPEND 2\n"
        );
        pxelinux_again(request, *rack, &label)
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
             \x20 for pause in {pauses}; do\n\
             \x20   if linux (http,{rack}){kernel} {line} BOOTIF=01-${{net_default_mac}}; then\n\
             \x20     if initrd (http,{rack}){initrd}; then\n\
             \x20       boot\n\
             \x20     fi\n\
             \x20   fi\n\
             \x20   echo 'Not loaded.'\n\
             \x20   sleep $pause\n\
             \x20 done\n\
             \x20 echo 'On to the next boot device...'\n\
             \x20 exit 1\n\
             }}\n",
            pauses = grub_pauses()
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
        Ok(ipxe_again(&format!(
            "kernel http://{rack}{kernel} initrd=initrd {line} BOOTIF=01-${{mac:hexhyp}} || goto failed_${{try}}\n\
             initrd --name initrd http://{rack}{initrd} || goto failed_${{try}}\n\
             boot || goto failed_${{try}}\n"
        )))
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

/// The pauses of a GRUB loop, and none behind its last try.
fn grub_pauses() -> String {
    let mut pauses: Vec<String> = PAUSES_SECS.iter().map(u32::to_string).collect();
    pauses.push("0".into());
    pauses.join(" ")
}

/// iPXE counts in a setting, and jumps to the label that is made of it. `steps` go to `failed_${try}` where they fail.
fn ipxe_again(steps: &str) -> String {
    let mut script = format!("#!ipxe\nset try 1\n:again\n{steps}");
    for (try_, pause) in (1..).zip(PAUSES_SECS) {
        let next = try_ + 1;
        // Writing to a String cannot fail.
        let _ = write!(
            script,
            ":failed_{try_}\n\
             imgfree\n\
             echo Not loaded. Again in {pause} s...\n\
             sleep {pause} ||\n\
             set try {next}\n\
             goto again\n"
        );
    }
    let _ = write!(
        script,
        ":failed_{TRIES}\n\
         imgfree\n\
         echo Not loaded. On to the next boot device...\n\
         exit 1\n"
    );
    script
}

/// pxelinux has neither loops nor pauses. What fails is followed by ONERROR: there it reads its next configuration, whose
/// prompt waits for as long as the pause is. The folder behind CONFIG's file is where it stays in; without one it would
/// take the name of the label that failed for it.
fn pxelinux_again(request: &ConfigRequest, rack: SocketAddr, label: &str) -> String {
    let attempt = usize::from(request.attempt.max(1));
    let mut script = "DEFAULT execute\nONERROR next\n".to_string();
    // Writing to a String cannot fail.
    if let Some(pause) = attempt.checked_sub(2).and_then(|at| PAUSES_SECS.get(at)) {
        // Tenths of a second. Who touches a key gets no more than ten seconds.
        let _ = write!(
            script,
            "PROMPT 1\nTIMEOUT {}\nTOTALTIMEOUT {}\nONTIMEOUT execute\n",
            pause * 10,
            pause * 10 + 100
        );
    }
    let _ = write!(script, "\nLABEL execute\n{label}\nLABEL next\n");
    let _ = if attempt < TRIES {
        write!(
            script,
            "  SAY Not loaded. Again...\n\
             \x20 CONFIG http://{rack}/pxelinux.cfg/try-{}/{} http://{rack}/\n",
            attempt + 1,
            request.selector
        )
    } else {
        write!(
            script,
            "  SAY Not loaded. On to the next boot device...\n\
             \x20 LOCALBOOT 0\n"
        )
    };
    script
}

/// Says that nothing can be booted for this architecture, and leaves it to the firmware's next device.
fn without_image(kind: ConfigKind, arch: &str) -> String {
    let plain = |c: &char| c.is_ascii_alphanumeric() || "_.-".contains(*c);
    let arch: String = arch.chars().filter(plain).collect();
    let why = format!("There is no image to boot for {arch}.");
    match kind {
        ConfigKind::Pxelinux => format!(
            "DEFAULT none\n\
             \n\
             LABEL none\n\
             \x20 SAY {why}\n\
             \x20 LOCALBOOT 0\n"
        ),
        ConfigKind::Grub => format!(
            "set default=0\n\
             set timeout=0\n\
             \n\
             menuentry 'None' {{\n\
             \x20 echo '{why}'\n\
             \x20 sleep 5\n\
             \x20 exit 1\n\
             }}\n"
        ),
        ConfigKind::Ipxe => format!(
            "#!ipxe\n\
             echo {why}\n\
             sleep 5 ||\n\
             exit 1\n"
        ),
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
            script.push_str("  exit 1\n}\n");
            script
        }
        // On UEFI a failure goes on to the next boot entry, and a success to the menu; sanboot is for BIOS.
        ConfigKind::Ipxe => "#!ipxe\n\
             iseq ${platform} efi && exit 1 ||\n\
             sanboot --no-describe --drive 0x80 || exit 1\n"
            .to_string(),
    }
}

fn poweroff(request: &ConfigRequest, rack: SocketAddr) -> String {
    match request.kind {
        ConfigKind::Pxelinux => pxelinux_again(
            request,
            rack,
            "  SAY Powering off...\n\
             \x20 KERNEL poweroff.c32\n",
        ),
        ConfigKind::Grub => "set default=0\n\
             set timeout=0\n\
             \n\
             menuentry 'Power off' {\n\
             \x20 echo 'Powering off...'\n\
             \x20 halt\n\
             }\n"
        .to_string(),
        ConfigKind::Ipxe => "#!ipxe\n\
             poweroff\n"
            .to_string(),
    }
}

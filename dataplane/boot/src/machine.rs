//! What a script is made from: the machine's record in the rack's snapshot, and the region's settings.

use wire::ethernet::Mac;

/// What the region wants a machine to boot into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Its own disk.
    Local,
    /// The ephemeral system: commissioning, testing, rescue, erasing.
    Commissioning,
    /// The ephemeral system, as a machine the region does not know.
    Enlist,
    /// The ephemeral system, to install.
    Xinstall,
    Poweroff,
}

impl Purpose {
    pub fn is_ephemeral(self) -> bool {
        matches!(self, Self::Commissioning | Self::Enlist | Self::Xinstall)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Empty while it is not known (purpose `Enlist`).
    pub system_id: String,
    pub hostname: String,
    pub domain: String,
    pub macs: Vec<Mac>,
    pub purpose: Purpose,
    /// "amd64".
    pub arch: String,
    /// "generic".
    pub subarch: String,
    pub osystem: String,
    pub release: String,
    pub label: String,
    /// URL paths on the rack: `/images/<sha256>/<os>/<arch>/<subarch>/<release>/<label>/boot-kernel`.
    pub kernel: String,
    pub initrd: String,
    pub squashfs: String,
    /// Behind `---`: kept by an installation.
    pub extra_options: String,
    /// Before it, as `console=ttyS0`.
    pub ephemeral_options: String,
    /// The region expects this machine to boot now: its preseed may be answered.
    pub boot_window: bool,
}

impl Machine {
    /// A machine that nobody knows and nothing can be booted on.
    pub fn without_image(arch: &str) -> Self {
        Self {
            system_id: String::new(),
            hostname: String::new(),
            domain: String::new(),
            macs: Vec::new(),
            purpose: Purpose::Enlist,
            arch: arch.to_owned(),
            subarch: String::new(),
            osystem: String::new(),
            release: String::new(),
            label: String::new(),
            kernel: String::new(),
            initrd: String::new(),
            squashfs: String::new(),
            extra_options: String::new(),
            ephemeral_options: String::new(),
            boot_window: false,
        }
    }

    /// It is to boot the ephemeral system, and there is no image for it.
    pub fn lacks_image(&self) -> bool {
        let files = [&self.kernel, &self.initrd, &self.squashfs];
        self.purpose.is_ephemeral() && files.iter().any(|file| file.is_empty())
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Kernel options of every machine, before a machine's own extra options.
    pub kernel_options: String,
    /// "" for the rack itself.
    pub log_host: String,
    pub log_port: u16,
    /// Unknown machines may enlist.
    pub enlist: bool,
}

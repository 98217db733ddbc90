//! The boot loaders, from Debian's packages, in one folder under the names that firmware asks for.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// (what firmware asks for, where Debian has it).
const FILES: &[(&str, &str)] = &[
    ("lpxelinux.0", "/usr/lib/PXELINUX/lpxelinux.0"),
    ("pxelinux.0", "/usr/lib/PXELINUX/pxelinux.0"),
    ("ldlinux.c32", "/usr/lib/syslinux/modules/bios/ldlinux.c32"),
    (
        "libcom32.c32",
        "/usr/lib/syslinux/modules/bios/libcom32.c32",
    ),
    ("libutil.c32", "/usr/lib/syslinux/modules/bios/libutil.c32"),
    ("chain.c32", "/usr/lib/syslinux/modules/bios/chain.c32"),
    ("ifcpu64.c32", "/usr/lib/syslinux/modules/bios/ifcpu64.c32"),
    (
        "poweroff.c32",
        "/usr/lib/syslinux/modules/bios/poweroff.c32",
    ),
    ("reboot.c32", "/usr/lib/syslinux/modules/bios/reboot.c32"),
    ("bootx64.efi", "/usr/lib/shim/shimx64.efi.signed"),
    ("mmx64.efi", "/usr/lib/shim/mmx64.efi.signed"),
    (
        "grubx64.efi",
        "/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed",
    ),
];
const GRUB_MODULES: &str = "/usr/lib/grub/x86_64-efi";
/// What Debian's signed GRUB has not built in, and boot configurations use. Its lists go along whole.
const GRUB_MODULE_NAMES: &[&str] = &["http", "regexp", "chain", "progress"];

pub fn gather(folder: &Path) -> Result<()> {
    let modules = folder.join("grub/x86_64-efi");
    std::fs::create_dir_all(&modules).with_context(|| format!("making {}", modules.display()))?;
    for (name, source) in FILES {
        copy(Path::new(source), &folder.join(name))?;
    }
    for name in GRUB_MODULE_NAMES {
        let file = format!("{name}.mod");
        copy(&Path::new(GRUB_MODULES).join(&file), &modules.join(&file))?;
    }
    let mut lists = 0;
    for entry in
        std::fs::read_dir(GRUB_MODULES).with_context(|| format!("listing {GRUB_MODULES}"))?
    {
        let path = entry
            .with_context(|| format!("listing {GRUB_MODULES}"))?
            .path();
        // An empty list is as good as none: GRUB goes on without.
        let is_empty = std::fs::metadata(&path).is_ok_and(|file| file.len() == 0);
        if path.extension().is_some_and(|extension| extension == "lst") && !is_empty {
            copy(&path, &modules.join(path.file_name().unwrap_or_default()))?;
            lists += 1;
        }
    }
    ensure!(
        lists > 0,
        "{GRUB_MODULES} has no module lists: is grub-efi-amd64-bin whole?"
    );
    Ok(())
}

fn copy(source: &Path, target: &Path) -> Result<()> {
    std::fs::copy(source, target)
        .with_context(|| format!("copying {} to {}", source.display(), target.display()))?;
    Ok(())
}

//! Disks: what an operating system could be installed on, once each.
//!
//! A kernel shows much else as a block device: paths of one LUN, boot partitions of eMMC, a BMC's virtual media,
//! floppies, drives without a medium. MAAS counts a LUN's paths once too, and takes nothing below 4 MiB.

use std::collections::BTreeSet;

use serde_json::Value;
use store::inventory::Disk;

use super::notes::Notes;
use super::{is_true, items, number, small, text};

const DISKS_MAX: usize = 1024;
/// MAAS's `MIN_BLOCK_DEVICE_SIZE`.
const BYTES_MIN: i64 = 4 << 20;
const BLOCK_BYTES_MIN: i32 = 512;
const BLOCK_BYTES_MAX: i32 = 1 << 20;
/// An exbibyte: more is a number gone wrong.
const BYTES_MAX: i64 = 1 << 60;

/// Names of devices that are none: a kernel's own, or a part of another disk.
const NO_DISKS: [(&str, &str); 24] = [
    ("loop", "a loop device"),
    ("ram", "a RAM disk"),
    ("zram", "a RAM disk"),
    ("pmem", "persistent memory"),
    ("dm-", "made of other disks"),
    ("md", "made of other disks"),
    ("bcache", "made of other disks"),
    ("drbd", "made of other disks"),
    ("zd", "made of other disks"),
    ("nbd", "a network device"),
    ("rbd", "a network device"),
    ("fd", "a floppy"),
    ("sr", "an optical drive"),
    ("scd", "an optical drive"),
    ("mtdblock", "flash of the firmware"),
    ("mtd", "flash of the firmware"),
    ("ubiblock", "flash of the firmware"),
    ("ubi", "flash of the firmware"),
    ("st", "a tape"),
    ("nst", "a tape"),
    ("ublkb", "a device of a program"),
    ("nullb", "a device of a program"),
    ("rnbd", "a network device"),
    ("sg", "a device that is no disk"),
];

/// What only BMCs call a medium, on any bus; models and links of udev, in small letters with blanks.
const BMC_MEDIA: [&str; 15] = [
    "virtual floppy",
    "virtual cdrom",
    "virtual cd",
    "virtual dvd",
    "virtual fdd",
    "virtual hdisk",
    "virtual media",
    "lcdrive",
    "file-stor gadget",
    "file-cd gadget",
    "vkvm-mapped",
    "cimc-mapped",
    "imm remote",
    "rdoc",
    "ilo lun",
];
/// The same where it is on USB: other hypervisors and arrays have disks of such names elsewhere.
const BMC_MEDIA_ON_USB: [&str; 14] = [
    "virtual",
    "oemdrv",
    "secupd",
    "idrac",
    "irmc",
    "emulexrmc",
    "remote disk",
    "remote media",
    "openbmc",
    "pikvm",
    "jetkvm",
    "nanokvm",
    "composite kvm",
    "avocent",
];

/// LUNs by which arrays are managed: they can be read, and nothing can be installed there.
const ARRAY_DOORS: [&str; 2] = ["universal xport", "lunz"];

pub(super) fn disks(storage: &Value, notes: &mut Notes) -> Vec<Disk> {
    let mut names = BTreeSet::new();
    let mut found: Vec<Found> = Vec::new();
    for disk in items(&storage["disks"]) {
        let name = text(&disk["id"]);
        if name.is_empty() {
            notes.leave_out("a disk without a name", &text(&disk["model"]));
            continue;
        }
        if let Some(why) = no_disk(&name, disk) {
            // Every server has one of these; nobody misses it.
            if why != "an optical drive" && why != "a drive without a medium" {
                notes.leave_out(why, &name);
            }
            continue;
        }
        if !names.insert(name.clone()) {
            notes.leave_out("a disk named twice", &name);
            continue;
        }
        let path = Found::read(name, disk);
        if let Some(known) = found.iter_mut().find(|known| known.is_same(&path)) {
            known.add(path);
        } else if found.len() < DISKS_MAX {
            found.push(path);
        } else {
            notes.leave_out("more disks than are kept", &path.disk.name);
        }
    }
    for found in found.iter().filter(|found| found.disk.paths > 1) {
        let (name, paths) = (&found.disk.name, found.disk.paths);
        notes.say(format!("{name} is one disk on {paths} paths"));
    }
    found.into_iter().map(|found| found.disk).collect()
}

/// Why no operating system could be installed on it; `None`: it is a disk.
fn no_disk(name: &str, disk: &Value) -> Option<&'static str> {
    let size = number(&disk["size"]);
    if let Some(why) = no_disk_by_name(name) {
        return Some(why);
    }
    match text(&disk["type"]).to_ascii_lowercase().as_str() {
        "cdrom" | "rom" | "optical" => return Some("an optical drive"),
        "floppy" => return Some("a floppy"),
        "tape" => return Some("a tape"),
        _ => {}
    }
    if is_true(&disk["hidden"]) {
        return Some("a path of another disk");
    }
    if is_virtual_medium(disk) {
        return Some("a virtual medium of the BMC");
    }
    if is_array_door(disk) {
        return Some("an array's own device");
    }
    match size {
        ..=0 => Some("a drive without a medium"),
        1..BYTES_MIN => Some("smaller than 4 MiB"),
        BYTES_MIN..=BYTES_MAX if is_true(&disk["read_only"]) => Some("read-only"),
        BYTES_MIN..=BYTES_MAX => None,
        _ => Some("a disk of a size that cannot be"),
    }
}

fn no_disk_by_name(name: &str) -> Option<&'static str> {
    let past_digits = |text: &'_ str| -> usize {
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len())
    };
    if let Some(rest) = name.strip_prefix("nvme") {
        // nvme0c1n1: the way over controller 1 to nvme0n1, hidden by the kernel.
        let rest = &rest[past_digits(rest)..];
        return match rest.strip_prefix('n') {
            Some(namespace) if past_digits(namespace) == namespace.len() => None,
            Some(_) => Some("a part of another disk"),
            None if rest.starts_with('c') => Some("a path of another disk"),
            None => Some("a device that is no disk"),
        };
    }
    if let Some(rest) = name.strip_prefix("mmcblk") {
        // mmcblk0boot0, mmcblk0boot1, mmcblk0rpmb, mmcblk0gp0
        let rest = &rest[past_digits(rest)..];
        return (!rest.is_empty()).then_some("a boot partition of eMMC");
    }
    NO_DISKS.iter().find_map(|(prefix, why)| {
        let rest = name.strip_prefix(prefix)?;
        let numbered = rest.starts_with(|c: char| c.is_ascii_digit() || c == '_');
        numbered.then_some(*why)
    })
}

fn is_array_door(disk: &Value) -> bool {
    let model = text(&disk["model"]).to_lowercase().replace('_', " ");
    let words: Vec<&str> = model.split_whitespace().collect();
    let model = words.join(" ");
    // Hitachi's command devices: "OPEN-V-CM".
    ARRAY_DOORS.contains(&model.as_str())
        || model.starts_with("open-") && model.replace(' ', "").ends_with("-cm")
}

fn is_virtual_medium(disk: &Value) -> bool {
    let lower = |field: &str| text(&disk[field]).to_lowercase().replace('_', " ");
    let said = format!(
        "{} {} {}",
        lower("vendor"),
        lower("model"),
        lower("device_id")
    );
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let on_usb = disk["type"].as_str() == Some("usb")
        || lower("device_id").starts_with("usb-")
        || lower("device_path").contains("-usb-");
    BMC_MEDIA.iter().any(|word| said.contains(word))
        || on_usb && BMC_MEDIA_ON_USB.iter().any(|word| said.contains(word))
}

/// A disk, and what tells it from others.
struct Found {
    disk: Disk,
    wwn: String,
    /// Where it is plugged in, as udev says it; "" if it does not.
    path: String,
}

impl Found {
    fn read(name: String, disk: &Value) -> Self {
        let device_id = text(&disk["device_id"]);
        let disk_text = |field: &str| text(&disk[field]);
        Found {
            wwn: disk_text("wwn").to_ascii_lowercase(),
            path: disk_text("device_path"),
            disk: Disk {
                id_path: if device_id.is_empty()
                    || device_id.contains("..")
                    || device_id.contains('/')
                {
                    String::new()
                } else {
                    format!("/dev/disk/by-id/{device_id}")
                },
                model: disk_text("model"),
                serial: disk_text("serial"),
                size_bytes: number(&disk["size"]),
                block_bytes: match small(&disk["block_size"]) {
                    bytes @ BLOCK_BYTES_MIN..=BLOCK_BYTES_MAX if bytes & (bytes - 1) == 0 => bytes,
                    _ => BLOCK_BYTES_MIN,
                },
                rotary: small(&disk["rpm"]) > 0,
                firmware_version: disk_text("firmware_version"),
                numa_node: small(&disk["numa_node"]).max(0),
                paths: 1,
                name,
            },
        }
    }

    /// Whether both are paths of one disk: the same world-wide name, or, where an array has none, the same serial
    /// number and LUN in two places of a storage network. Serials alone do not tell: an array, a controller or a maker
    /// gives one to many.
    fn is_same(&self, other: &Found) -> bool {
        let (a, b) = (&self.disk, &other.disk);
        if a.size_bytes != b.size_bytes || a.model != b.model {
            return false;
        }
        // Bridges to USB give every disk their own name, and have one path.
        if self.is_on_usb() || other.is_on_usb() || self.is_beside(other) {
            return false;
        }
        if is_world_wide(&self.wwn) || is_world_wide(&other.wwn) {
            // A path that stands by may not tell the serial number.
            let one_serial = a.serial == b.serial || a.serial.is_empty() || b.serial.is_empty();
            return self.wwn == other.wwn && one_serial;
        }
        a.serial == b.serial
            && is_serial(&a.serial)
            && self.path != other.path
            && san_target(&self.path).is_some()
            && san_target(&self.path) == san_target(&other.path)
    }

    fn is_on_usb(&self) -> bool {
        self.path.contains("-usb-") || self.disk.id_path.starts_with("/dev/disk/by-id/usb-")
    }

    /// Two LUNs of one target, whatever they are called: flash of a board (UFS) gives one name to all of its own.
    fn is_beside(&self, other: &Found) -> bool {
        match (target(&self.path), target(&other.path)) {
            (Some((a, a_lun)), Some((b, b_lun))) => a == b && a_lun != b_lun,
            _ => false,
        }
    }

    fn add(&mut self, path: Found) {
        self.disk.paths = self.disk.paths.saturating_add(1);
        // Only one path has the link of udev.
        if self.disk.id_path.is_empty() {
            self.disk.id_path = path.disk.id_path;
        }
    }
}

/// A name by a registry or of a namespace; "t10." is a vendor's text with a serial in it.
fn is_world_wide(wwn: &str) -> bool {
    let Some((kind, rest)) = wwn.split_once('.') else {
        // "0x5000c500...", as udev writes it.
        return wwn
            .strip_prefix("0x")
            .is_some_and(|rest| rest.len() >= 16 && rest.bytes().any(|c| c != b'0'));
    };
    matches!(kind, "naa" | "eui" | "uuid" | "nvme" | "nguid")
        && rest.bytes().any(|c| c.is_ascii_alphanumeric() && c != b'0')
}

fn is_serial(serial: &str) -> bool {
    serial.len() >= 4 && serial.bytes().any(|c| c != serial.as_bytes()[0])
}

/// Target and LUN of a path: "pci-0000:03:00.0-fc-0x500a09838d1e1a2b-lun-3", "platform-1d84000.ufshc-scsi-0:0:0:4".
fn target(path: &str) -> Option<(&str, &str)> {
    path.rsplit_once("-lun-").or_else(|| {
        let (_, address) = path.rsplit_once("-scsi-")?;
        (address.split(':').count() == 4).then(|| path.rsplit_once(':'))?
    })
}

/// What paths to one LUN of an array have in common where it has no name: the LUN, and with iSCSI the target's name
/// (every server of a kind begins to count anew). Where disks are plugged in directly, each has its own LUN 0.
fn san_target(path: &str) -> Option<(&str, &str)> {
    let (before, lun) = path.rsplit_once("-lun-")?;
    match before.split_once("-iscsi-") {
        Some((_, name)) => Some((name, lun)),
        None => before.contains("-fc-").then_some(("", lun)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SIZE: u64 = 480_103_981_056;

    fn read(list: Value) -> (Vec<(String, i32)>, String) {
        let mut notes = Notes::default();
        let disks = disks(&json!({"disks": list}), &mut notes);
        let names = disks.into_iter().map(|disk| (disk.name, disk.paths));
        (names.collect(), notes.text().unwrap_or_default())
    }

    #[test]
    fn disks_that_are_none_are_left_out_and_said() {
        #[rustfmt::skip]
        let none = [
            (json!({"id": "nvme0c0n1"}), "a path of another disk"),
            (json!({"id": "nvme12c3n1"}), "a path of another disk"),
            (json!({"id": "nvme1n1", "hidden": true}), "a path of another disk"),
            (json!({"id": "nvme0n1p1"}), "a part of another disk"),
            (json!({"id": "nvme0"}), "a device that is no disk"),
            (json!({"id": "nvme-subsys0"}), "a device that is no disk"),
            (json!({"id": "nullb0"}), "a device of a program"),
            (json!({"id": "sdz", "type": "TAPE"}), "a tape"),
            (json!({"id": "sdb", "model": "Universal Xport", "size": 20_971_520}), "an array's own device"),
            (json!({"id": "sdb", "model": "LUNZ", "vendor": "DGC"}), "an array's own device"),
            (json!({"id": "sdb", "model": "OPEN-V      -CM", "vendor": "HITACHI"}), "an array's own device"),
            (json!({"id": "sdb", "vendor": "HP iLO", "model": "LUN 00 Media 0"}), "a virtual medium of the BMC"),
            (json!({"id": "sdb", "model": "OpenBMC_USB_Media", "type": "usb"}), "a virtual medium of the BMC"),
            (json!({"id": "sdb", "vendor": "PiKVM", "model": "CD-ROM Drive", "type": "usb"}), "a virtual medium of the BMC"),
            (json!({"id": "mmcblk0boot0"}), "a boot partition of eMMC"),
            (json!({"id": "mmcblk0boot1"}), "a boot partition of eMMC"),
            (json!({"id": "mmcblk0rpmb"}), "a boot partition of eMMC"),
            (json!({"id": "mmcblk1gp0"}), "a boot partition of eMMC"),
            (json!({"id": "fd0"}), "a floppy"),
            (json!({"id": "sdz", "type": "floppy"}), "a floppy"),
            (json!({"id": "loop3"}), "a loop device"),
            (json!({"id": "ram0"}), "a RAM disk"),
            (json!({"id": "zram1"}), "a RAM disk"),
            (json!({"id": "dm-0"}), "made of other disks"),
            (json!({"id": "md127"}), "made of other disks"),
            (json!({"id": "md_d0"}), "made of other disks"),
            (json!({"id": "bcache0"}), "made of other disks"),
            (json!({"id": "drbd1"}), "made of other disks"),
            (json!({"id": "zd0"}), "made of other disks"),
            (json!({"id": "nbd0"}), "a network device"),
            (json!({"id": "rbd0"}), "a network device"),
            (json!({"id": "pmem0"}), "persistent memory"),
            (json!({"id": "mtdblock0"}), "flash of the firmware"),
            (json!({"id": "sdb", "read_only": true}), "read-only"),
            (json!({"id": "sdb", "read_only": "1"}), "read-only"),
            (json!({"id": "sdb", "size": 1_474_560}), "smaller than 4 MiB"),
            (json!({"id": "sdb", "size": u64::MAX}), "a disk of a size that cannot be"),
            (json!({"id": "sdb", "model": "Virtual Floppy0", "vendor": "AMI"}), "a virtual medium of the BMC"),
            (json!({"id": "sdb", "model": "Virtual HDisk0"}), "a virtual medium of the BMC"),
            (json!({"id": "sdb", "model": "LCDRIVE", "vendor": "iDRAC"}), "a virtual medium of the BMC"),
            (json!({"id": "sdb", "model": "File-Stor Gadget"}), "a virtual medium of the BMC"),
            (json!({"id": "sdb", "model": "Cisco vKVM-Mapped vHDD"}), "a virtual medium of the BMC"),
            (json!({"id": "sdb", "model": "", "device_id": "usb-iDRAC_LCDRIVE_20120731-0:0"}), "a virtual medium of the BMC"),
            (json!({"id": "sdb", "model": "Virtual Disk", "type": "usb"}), "a virtual medium of the BMC"),
            (json!({"id": "sdb", "model": "OEMDRV", "device_path": "pci-0000:00:14.0-usb-0:14.1:1.0-scsi-0:0:0:0"}), "a virtual medium of the BMC"),
        ];
        for (mut disk, why) in none {
            if disk["size"].is_null() {
                disk["size"] = json!(SIZE);
            }
            let shown = disk.to_string();
            let (found, said) = read(json!([disk]));
            assert_eq!(found, [], "{shown}");
            assert!(
                said.starts_with(&format!("left out, {why}: ")),
                "{shown}: {said}"
            );
        }
        // What every server has is left out without a word: optical drives, card readers with no card.
        let (found, said) = read(json!([
            {"id": "sr0", "size": SIZE}, {"id": "x", "type": "cdrom", "size": SIZE}, {"id": "sdc", "size": 0},
            {"id": "sdd", "size": -1}, {"id": "sde"}, {"id": "sdf", "size": null},
        ]));
        assert_eq!((found.len(), said.as_str()), (0, ""));
    }

    #[test]
    fn what_can_be_installed_on_stays() {
        for disk in [
            json!({"id": "sda"}),
            json!({"id": "sdaa", "model": "Virtual disk", "vendor": "VMware", "type": "scsi"}),
            json!({"id": "sda", "model": "Virtual Disk", "vendor": "Msft"}),
            json!({"id": "sda", "model": "VIRTUAL-DISK", "vendor": "IET"}),
            json!({"id": "sda", "model": "Internal Dual SD", "type": "usb"}),
            json!({"id": "sda", "model": "Ultra Fit", "type": "usb", "removable": true}),
            json!({"id": "vda"}),
            json!({"id": "xvda"}),
            json!({"id": "mmcblk0"}),
            json!({"id": "nvme10n1"}),
            json!({"id": "dasda"}),
            json!({"id": "sfdv0n1"}),
            json!({"id": "rssda"}),
            json!({"id": "fioa"}),
            json!({"id": "sda", "model": "OPEN-V", "vendor": "HITACHI"}),
            json!({"id": "sda", "block_size": 0, "read_only": "0", "removable": "yes"}),
            json!({"id": "cciss!c0d0"}),
            json!({"id": "sda", "size": SIZE.to_string()}),
        ] {
            let mut disk = disk;
            if disk["size"].is_null() {
                disk["size"] = json!(SIZE);
            }
            let shown = disk.to_string();
            assert_eq!(read(json!([disk])).0.len(), 1, "{shown}");
        }
    }

    #[test]
    fn one_lun_on_four_paths_is_one_disk() {
        let fc = |id: &str, target: u32, lun: u32, more: Value| {
            let mut disk = json!({"id": id, "size": SIZE, "model": "LUN C-Mode", "serial": "80B1x+Nq",
                "device_path": format!("pci-0000:03:00.0-fc-0x500a0983000000{target:02}-lun-{lun}")});
            let fields = more.as_object().expect("fields").clone();
            disk.as_object_mut().expect("fields").extend(fields);
            disk
        };
        let naa = "naa.600a098038314a784a2b4e7144526c58";
        let by_wwn = |id, target| fc(id, target, 0, json!({"wwn": naa}));
        let (found, said) = read(json!([
            by_wwn("sda", 1), by_wwn("sdb", 2), by_wwn("sdc", 3), by_wwn("sdd", 4),
            {"id": "nvme0n1", "size": SIZE},
        ]));
        assert_eq!(found, [("sda".to_owned(), 4), ("nvme0n1".to_owned(), 1)]);
        assert_eq!(said, "sda is one disk on 4 paths");
        // No world-wide name: serial number and LUN in different places.
        let by_serial = |id, target, lun| fc(id, target, lun, json!({}));
        let (found, _) = read(json!([
            by_serial("sda", 1, 0),
            by_serial("sdb", 2, 0),
            by_serial("sdc", 1, 1),
            by_serial("sdd", 2, 1),
        ]));
        assert_eq!(
            found,
            [("sda".to_owned(), 2), ("sdc".to_owned(), 2)],
            "two LUNs of one array"
        );
        // A path that stands by and tells no serial number.
        let naa_only =
            |id, target, serial: &str| fc(id, target, 0, json!({"wwn": naa, "serial": serial}));
        let (found, _) = read(json!([
            naa_only("sda", 1, "80B1x+Nq"),
            naa_only("sdb", 2, "")
        ]));
        assert_eq!(found, [("sda".to_owned(), 2)]);
        // One target of iSCSI by two portals.
        let iscsi = |id: &str, portal: u32| {
            json!({"id": id, "size": SIZE, "model": "VIRTUAL-DISK", "serial": "beaf11",
                "device_path": format!("ip-10.0.0.{portal}:3260-iscsi-iqn.2001-05.com.example:a-lun-1")})
        };
        let (found, _) = read(json!([iscsi("sda", 1), iscsi("sdb", 2)]));
        assert_eq!(found, [("sda".to_owned(), 2)]);
        // The link of udev is found whichever path has it.
        let mut notes = Notes::default();
        let linked = fc(
            "sdb",
            2,
            0,
            json!({"wwn": naa, "device_id": "wwn-0x600a0980"}),
        );
        let list = json!({"disks": [by_wwn("sda", 1), linked]});
        let found = disks(&list, &mut notes);
        assert_eq!(found[0].id_path, "/dev/disk/by-id/wwn-0x600a0980");
    }

    #[test]
    fn disks_that_only_look_alike_stay_two() {
        let disk = |id: &str, fields: Value| {
            let mut disk = json!({"id": id, "size": SIZE, "model": "SSD 870"});
            let fields = fields.as_object().expect("fields").clone();
            disk.as_object_mut().expect("fields").extend(fields);
            disk
        };
        for (case, a, b) in [
            ("nothing known", json!({}), json!({})),
            (
                "a placeholder for a name",
                json!({"wwn": "eui.0000000000000000"}),
                json!({"wwn": "eui.0000000000000000"}),
            ),
            (
                "a name given twice",
                json!({"wwn": "eui.0100000000000000", "serial": "S1"}),
                json!({"wwn": "eui.0100000000000000", "serial": "S2"}),
            ),
            (
                "one serial, local",
                json!({"serial": "AA000000000000000489"}),
                json!({"serial": "AA000000000000000489"}),
            ),
            (
                "two namespaces",
                json!({"serial": "S1", "wwn": "eui.01"}),
                json!({"serial": "S1", "wwn": "eui.02"}),
            ),
            (
                "another size",
                json!({"wwn": "naa.5000c500a1b2c3d4"}),
                json!({"wwn": "naa.5000c500a1b2c3d4", "size": 5 << 30}),
            ),
            (
                "a controller that gives its own serial to each",
                json!({"serial": "PDNLH0BRH7V1", "device_path": "pci-0000:03:00.0-sas-phy0-lun-0"}),
                json!({"serial": "PDNLH0BRH7V1", "device_path": "pci-0000:03:00.0-sas-phy1-lun-0"}),
            ),
            (
                "two iSCSI servers that both count from 1",
                json!({"serial": "beaf11", "wwn": "t10.IET     00010001", "device_path": "ip-10.0.0.1:3260-iscsi-iqn.2001-05.com.example:a-lun-1"}),
                json!({"serial": "beaf11", "wwn": "t10.IET     00010001", "device_path": "ip-10.0.0.2:3260-iscsi-iqn.2001-05.com.example:b-lun-1"}),
            ),
            (
                "two LUNs of flash with one name",
                json!({"serial": "94LEP3340R", "wwn": "eui.8ce38e0000000000", "device_path": "platform-1d84000.ufshc-scsi-0:0:0:0"}),
                json!({"serial": "94LEP3340R", "wwn": "eui.8ce38e0000000000", "device_path": "platform-1d84000.ufshc-scsi-0:0:0:4"}),
            ),
            (
                "two bridges to USB of one maker",
                json!({"serial": "DD564198838B1", "wwn": "naa.5000000000000001", "device_id": "usb-JMicron_DD564198838B1-0:0"}),
                json!({"serial": "DD564198838B1", "wwn": "naa.5000000000000001", "device_path": "pci-0000:00:14.0-usb-0:2:1.0-scsi-0:0:0:0"}),
            ),
            (
                "a serial of zeros",
                json!({"serial": "0000", "device_path": "pci-1-sas-0x1-lun-0"}),
                json!({"serial": "0000", "device_path": "pci-1-sas-0x2-lun-0"}),
            ),
        ] {
            let (found, _) = read(json!([disk("sda", a), disk("sdb", b)]));
            assert_eq!(found.len(), 2, "{case}");
        }
    }

    #[test]
    fn more_disks_than_are_kept_are_said() {
        let list: Vec<Value> = (0..1500)
            .map(|n| json!({"id": format!("sd{n}"), "size": SIZE}))
            .collect();
        let (found, said) = read(json!(list));
        assert_eq!(found.len(), DISKS_MAX);
        assert!(
            said.contains("more disks than are kept: sd1024") && said.contains("and 468 more"),
            "{said}"
        );
    }
}

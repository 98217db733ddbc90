//! Machines and settings of the feed (and of a `bootConfig` answer) as `boot` takes them.

use boot::{Machine, Purpose, Settings};
use capnp::Error;
use rpc::muster_capnp as wire;

use super::wire::{self as words, text};

pub(super) fn read(reader: wire::machine::Reader<'_>) -> Result<Machine, Error> {
    use wire::BootPurpose as B;
    Ok(Machine {
        system_id: text(reader.get_system_id()?)?,
        hostname: text(reader.get_hostname()?)?,
        domain: text(reader.get_domain()?)?,
        macs: reader
            .get_macs()?
            .iter()
            .map(|mac| words::mac(mac?).map(::wire::ethernet::Mac))
            .collect::<Result<_, _>>()?,
        purpose: match reader.get_purpose() {
            Ok(B::Local) => Purpose::Local,
            Ok(B::Commissioning) => Purpose::Commissioning,
            Ok(B::Enlist) => Purpose::Enlist,
            Ok(B::Xinstall) => Purpose::Xinstall,
            Ok(B::Poweroff) => Purpose::Poweroff,
            // Of a newer region: the disk is the boot that can do no harm.
            Err(_) => Purpose::Local,
        },
        arch: text(reader.get_arch()?)?,
        subarch: text(reader.get_subarch()?)?,
        osystem: text(reader.get_osystem()?)?,
        release: text(reader.get_release()?)?,
        label: text(reader.get_label()?)?,
        kernel: text(reader.get_kernel()?)?,
        initrd: text(reader.get_initrd()?)?,
        squashfs: text(reader.get_squashfs()?)?,
        extra_options: text(reader.get_extra_options()?)?,
        ephemeral_options: text(reader.get_ephemeral_options()?)?,
        boot_window: reader.get_boot_window(),
    })
}

pub(super) fn settings(reader: wire::settings::Reader<'_>) -> Result<Settings, Error> {
    Ok(Settings {
        kernel_options: text(reader.get_kernel_options()?)?,
        log_host: text(reader.get_log_host()?)?,
        log_port: reader.get_log_port(),
        enlist: reader.get_enlist(),
    })
}

//! The feed's items: what one rack is told of a link, machine, file, ... and how that is written.

use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

use ipnetwork::IpNetwork;
use model::{MachineStatus, NodeType, Purpose};
use rpc::muster_capnp as wire;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;
use store::StoreError;
use store::dhcp::Trace;
use store::feed::{FileValue, ImageValue, MachineValue, ReservationValue, ServedVlan, SubnetValue};
use time::OffsetDateTime;

use super::dhcp;
use crate::wire::octets;

/// Subnets are in the region's one domain until they can be put in another.
const DOMAIN: &str = "maas";
/// The architecture that an unknown machine is taken for when it does not say.
const ARCH: &str = "amd64";

/// One keyed value; shared by the queues of all racks that get it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Item {
    Link(Link),
    Machine(Box<Machine>),
    File { file: FileValue, prefetch: bool },
    Loader { path: String, sha256: Vec<u8> },
    Settings(Settings),
    Reservation(ReservationValue),
}

impl Item {
    pub fn key(&self) -> String {
        match self {
            Item::Link(link) => link_key(link.at.vlan),
            Item::Machine(machine) => machine_key(&machine.system_id),
            Item::File { file, .. } => file_key(&hex::encode(&file.sha256)),
            Item::Loader { path, .. } => loader_key(path),
            Item::Settings(_) => "settings".into(),
            Item::Reservation(reservation) => {
                reservation_key(reservation.vlan, reservation.address)
            }
        }
    }

    /// About how many machines' worth of octets it has.
    pub fn weight(&self) -> usize {
        match self {
            Item::File { file, .. } => 1 + file.pieces.len() / 16,
            Item::Link(link) => 1 + link.subnets.len(),
            _ => 1,
        }
    }

    pub fn put(&self, mut builder: wire::feed_item::Builder<'_>) {
        builder.set_key(self.key());
        match self {
            Item::Link(link) => link.put(builder.init_link()),
            Item::Machine(machine) => machine.put(builder.init_machine()),
            Item::File { file, prefetch } => put_file(file, *prefetch, builder.init_file()),
            Item::Loader { path, sha256 } => {
                let mut builder = builder.init_loader();
                builder.set_path(path);
                builder.set_sha256(sha256);
            }
            Item::Settings(settings) => settings.put(builder.init_settings()),
            Item::Reservation(reservation) => {
                dhcp::put_reservation(reservation, builder.init_reservation());
            }
        }
    }
}

pub(crate) fn link_key(vlan: i32) -> String {
    format!("link:{vlan}")
}

pub(crate) fn machine_key(system_id: &str) -> String {
    format!("machine:{system_id}")
}

pub(crate) fn file_key(hex: &str) -> String {
    format!("file:{hex}")
}

pub(crate) fn loader_key(path: &str) -> String {
    format!("loader:{path}")
}

pub(crate) fn reservation_key(vlan: i32, address: IpAddr) -> String {
    format!("reservation:{vlan}:{address}")
}

// ---------------------------------------------------------------- links

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Link {
    pub at: ServedVlan,
    pub subnets: Rc<[SubnetValue]>,
    /// For subnets without their own.
    pub ntp_servers: Rc<[IpAddr]>,
}

impl Link {
    fn put(&self, mut builder: wire::link::Builder<'_>) {
        builder.set_vlan(self.at.vlan.unsigned_abs());
        builder.set_vid(self.at.vid);
        builder.set_interface(&self.at.interface);
        builder.set_server_address(&octets(self.at.server_address));
        builder.set_role(match self.at.is_primary {
            true => wire::LinkRole::Primary,
            false => wire::LinkRole::Secondary,
        });
        builder.set_mtu(self.at.mtu);
        builder.set_mode(match self.at.is_proxy {
            true => wire::DhcpMode::Proxy,
            false => wire::DhcpMode::Serve,
        });
        builder.set_rack(rendezvous_number(&self.at.rack));
        let mut peers = builder.reborrow().init_peers(self.at.peers.len() as u32);
        for (i, peer) in self.at.peers.iter().enumerate() {
            let mut builder = peers.reborrow().get(i as u32);
            builder.set_rack(rendezvous_number(&peer.rack));
            builder.set_server(&octets(peer.server_address));
            builder.set_alive(peer.alive);
        }
        let mut subnets = builder.init_subnets(self.subnets.len() as u32);
        for (i, subnet) in self.subnets.iter().enumerate() {
            self.put_subnet(subnet, subnets.reborrow().get(i as u32));
        }
    }

    fn put_subnet(&self, subnet: &SubnetValue, mut builder: wire::subnet::Builder<'_>) {
        builder.set_id(subnet.id.unsigned_abs());
        put_prefix(subnet.prefix, builder.reborrow().init_prefix());
        if let Some(gateway) = subnet.gateway {
            builder.set_gateway(&octets(gateway));
        }
        let ntp = match subnet.ntp_servers.is_empty() {
            true => &*self.ntp_servers,
            false => &*subnet.ntp_servers,
        };
        put_addresses(&subnet.dns_servers, |n| {
            builder.reborrow().init_dns_servers(n)
        });
        put_addresses(ntp, |n| builder.reborrow().init_ntp_servers(n));
        builder.set_domain(DOMAIN);
        builder.set_lease_secs(subnet.lease_secs);
        dhcp::put_ranges(&subnet.ranges, |n| builder.reborrow().init_ranges(n));
        dhcp::put_options(&subnet.options, |n| builder.reborrow().init_options(n));
        let mut archs = builder
            .reborrow()
            .init_disabled_archs(subnet.disabled_archs.len() as u32);
        for (i, arch) in subnet.disabled_archs.iter().enumerate() {
            archs.set(i as u32, arch);
        }
        builder.set_client_id_identity(subnet.client_id_identity);
    }
}

/// What stands for a rack in the rendezvous of its VLAN's racks: the same from every region process, of any version.
fn rendezvous_number(system_id: &str) -> u64 {
    let hash = Sha256::digest(system_id.as_bytes());
    let (first, _) = hash.split_at(8);
    first
        .iter()
        .fold(0, |number, octet| number << 8 | u64::from(*octet))
}

fn put_prefix(prefix: IpNetwork, mut builder: wire::prefix::Builder<'_>) {
    builder.set_address(&octets(prefix.ip()));
    builder.set_length(prefix.prefix());
}

fn put_addresses<'a>(
    addresses: &[IpAddr],
    init: impl FnOnce(u32) -> capnp::data_list::Builder<'a>,
) {
    let mut list = init(addresses.len() as u32);
    for (i, address) in addresses.iter().enumerate() {
        list.set(i as u32, &octets(*address));
    }
}

// ---------------------------------------------------------------- machines and images

/// How a machine boots from this rack.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Machine {
    /// "" while it is not known.
    pub system_id: String,
    hostname: String,
    domain: String,
    macs: Vec<[u8; 6]>,
    /// VLANs of its interfaces, 0 for an unknown one: decides which racks hear of it; not sent.
    pub vlans: Vec<i32>,
    purpose: Purpose,
    arch: String,
    subarch: String,
    osystem: String,
    release: String,
    label: String,
    /// URL paths; empty while there is no image.
    kernel: String,
    initrd: String,
    squashfs: String,
    boot_window: bool,
}

impl Machine {
    pub fn of(machine: &MachineValue, images: &Images) -> Machine {
        let (arch, subarch) = machine
            .architecture
            .split_once('/')
            .unwrap_or((&machine.architecture, "generic"));
        // A status of a newer region: the disk is the boot that can do no harm.
        let purpose = MachineStatus::from_number(machine.status).map_or(Purpose::Local, |status| {
            model::boot_purpose(status, NodeType::Machine, machine.netboot)
        });
        let own = match purpose {
            Purpose::Xinstall => images.of(&machine.osystem, &machine.distro_series, arch),
            _ => None,
        };
        let boots = matches!(
            purpose,
            Purpose::Commissioning | Purpose::Enlist | Purpose::Xinstall
        );
        // Nobody asked for this boot, and its preseed would be refused: it is not to stay on in the ephemeral system.
        let unasked = boots && !machine.has_boot;
        let (purpose, boots) = if unasked {
            (Purpose::Poweroff, false)
        } else {
            (purpose, boots)
        };
        let mut item = Machine {
            system_id: machine.system_id.clone(),
            hostname: machine.hostname.clone(),
            domain: machine.domain.clone(),
            macs: machine.macs.clone(),
            vlans: machine.vlans.clone(),
            purpose,
            arch: arch.into(),
            subarch: subarch.into(),
            osystem: machine.osystem.clone(),
            release: machine.distro_series.clone(),
            label: String::new(),
            kernel: String::new(),
            initrd: String::new(),
            squashfs: String::new(),
            boot_window: boots,
        };
        if boots && let Some(image) = own.or_else(|| images.default_for(arch)) {
            item.set_image(image);
        }
        item
    }

    /// A machine that the region has never seen: it may enlist.
    pub fn unknown(mac: [u8; 6], arch: &str, images: &Images) -> Machine {
        let arch = if arch.is_empty() { ARCH } else { arch };
        let mut item = Machine {
            system_id: String::new(),
            hostname: String::new(),
            domain: DOMAIN.into(),
            macs: vec![mac],
            vlans: Vec::new(),
            purpose: if images.enlist {
                Purpose::Enlist
            } else {
                Purpose::Local
            },
            arch: arch.into(),
            subarch: "generic".into(),
            osystem: String::new(),
            release: String::new(),
            label: String::new(),
            kernel: String::new(),
            initrd: String::new(),
            squashfs: String::new(),
            boot_window: images.enlist,
        };
        if let Some(image) = images.default_for(arch) {
            item.set_image(image);
        }
        item
    }

    fn set_image(&mut self, image: &ImageValue) {
        let path = |sha256: &[u8], file: &str| {
            let sha256 = hex::encode(sha256);
            let ImageValue {
                osystem,
                architecture,
                subarchitecture,
                release,
                label,
                ..
            } = image;
            format!(
                "/images/{sha256}/{osystem}/{architecture}/{subarchitecture}/{release}/{label}/{file}"
            )
        };
        self.osystem = image.osystem.clone();
        self.release = image.release.clone();
        self.label = image.label.clone();
        self.kernel = path(&image.kernel, "boot-kernel");
        self.initrd = path(&image.initrd, "boot-initrd");
        self.squashfs = path(&image.squashfs, "squashfs");
    }

    pub fn put(&self, mut builder: wire::machine::Builder<'_>) {
        builder.set_system_id(&self.system_id);
        builder.set_hostname(&self.hostname);
        builder.set_domain(&self.domain);
        let mut macs = builder.reborrow().init_macs(self.macs.len() as u32);
        for (i, mac) in self.macs.iter().enumerate() {
            macs.set(i as u32, mac);
        }
        builder.set_purpose(match self.purpose {
            Purpose::Local => wire::BootPurpose::Local,
            Purpose::Commissioning => wire::BootPurpose::Commissioning,
            Purpose::Enlist => wire::BootPurpose::Enlist,
            Purpose::Xinstall => wire::BootPurpose::Xinstall,
            Purpose::Poweroff => wire::BootPurpose::Poweroff,
        });
        builder.set_arch(&self.arch);
        builder.set_subarch(&self.subarch);
        builder.set_osystem(&self.osystem);
        builder.set_release(&self.release);
        builder.set_label(&self.label);
        builder.set_kernel(&self.kernel);
        builder.set_initrd(&self.initrd);
        builder.set_squashfs(&self.squashfs);
        builder.set_boot_window(self.boot_window);
    }
}

/// The images that machines can boot, and which one they boot without one of their own.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Images {
    /// Newest first.
    all: Vec<ImageValue>,
    /// The operator's choice: "os", "os/release", ... as far as it matters.
    default: Vec<String>,
    enlist: bool,
}

impl Images {
    pub async fn read(db: &mut PgConnection) -> Result<Images, StoreError> {
        let default = store::setting::text(&mut *db, "commissioning_image", "").await?;
        let enlist = store::setting::get(&mut *db, "enlist").await?;
        Ok(Images {
            all: store::feed::images(db).await?,
            default: default
                .split('/')
                .filter(|part| !part.is_empty())
                .map(Into::into)
                .collect(),
            enlist: enlist.and_then(|value| value.as_bool()).unwrap_or(true),
        })
    }

    /// The commissioning image of an architecture: the newest that fits the operator's choice, else the newest.
    fn default_for(&self, arch: &str) -> Option<&ImageValue> {
        let mut fitting = self.all.iter().filter(|image| image.architecture == arch);
        let chosen = fitting.clone().find(|image| {
            let parts = [
                &image.osystem,
                &image.release,
                &image.architecture,
                &image.subarchitecture,
                &image.label,
            ];
            self.default
                .iter()
                .zip(parts)
                .all(|(wanted, part)| wanted == part)
        });
        chosen.or_else(|| fitting.next())
    }

    fn of(&self, osystem: &str, release: &str, arch: &str) -> Option<&ImageValue> {
        self.all.iter().find(|image| {
            image.osystem == osystem && image.release == release && image.architecture == arch
        })
    }

    /// Whether racks should have this file before anyone asks: part of a default image.
    pub fn is_wanted_early(&self, sha256: &[u8]) -> bool {
        let mut archs: HashMap<&str, &ImageValue> = HashMap::new();
        for image in &self.all {
            if let Some(default) = self.default_for(&image.architecture) {
                archs.insert(&image.architecture, default);
            }
        }
        archs.values().any(|image| {
            [&image.kernel, &image.initrd, &image.squashfs]
                .into_iter()
                .any(|file| file == sha256)
        })
    }
}

fn put_file(file: &FileValue, prefetch: bool, mut builder: wire::file::Builder<'_>) {
    builder.set_sha256(&file.sha256);
    builder.set_size_bytes(file.size_bytes);
    builder.set_piece_bytes(file.piece_bytes);
    let mut pieces = builder.reborrow().init_pieces(file.pieces.len() as u32);
    for (i, piece) in file.pieces.iter().enumerate() {
        pieces.set(i as u32, piece);
    }
    builder.set_prefetch(prefetch);
}

// ---------------------------------------------------------------- settings

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    kernel_options: String,
    log_host: String,
    log_port: u16,
    enlist: bool,
    traces: Vec<Trace>,
    /// Goes into the links, not into the settings item.
    pub ntp_servers: Rc<[IpAddr]>,
}

impl Settings {
    pub async fn read(db: &mut PgConnection, images: &Images) -> Result<Settings, StoreError> {
        let syslog = store::setting::text(&mut *db, "remote_syslog", "").await?;
        let ntp = store::setting::text(&mut *db, "ntp_servers", "").await?;
        let (log_host, log_port) = host_and_port(&syslog);
        Ok(Settings {
            kernel_options: store::setting::text(&mut *db, "kernel_opts", "").await?,
            traces: store::dhcp::traces(db).await?,
            log_host,
            log_port,
            enlist: images.enlist,
            // Names are for machines' own configuration; DHCP option 42 takes addresses (RFC 2132 §8.3).
            ntp_servers: ntp
                .split([',', ' '])
                .filter_map(|server| server.parse().ok())
                .collect(),
        })
    }

    fn put(&self, mut builder: wire::settings::Builder<'_>) {
        builder.set_kernel_options(&self.kernel_options);
        builder.set_log_host(&self.log_host);
        builder.set_log_port(self.log_port);
        builder.set_enlist(self.enlist);
        let mut traces = builder.init_traces(self.traces.len() as u32);
        for (i, trace) in self.traces.iter().enumerate() {
            let mut builder = traces.reborrow().get(i as u32);
            builder.set_mac(&trace.mac);
            let left = trace.until - OffsetDateTime::now_utc();
            builder.set_remaining_ms(u64::try_from(left.whole_milliseconds()).unwrap_or(0));
        }
    }
}

/// "host", "host:port", "[v6]:port"; port 514 if none is given. Without a host it is the rack itself, on MAAS's port.
fn host_and_port(text: &str) -> (String, u16) {
    const SYSLOG: u16 = 514;
    const RACK_SYSLOG: u16 = 5247;
    if text.is_empty() {
        return (String::new(), RACK_SYSLOG);
    }
    if text.parse::<std::net::Ipv6Addr>().is_ok() {
        return (text.into(), SYSLOG);
    }
    match text.rsplit_once(':') {
        Some((host, port)) => (
            host.trim_start_matches('[').trim_end_matches(']').into(),
            port.parse().unwrap_or(SYSLOG),
        ),
        None => (text.into(), SYSLOG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(osystem: &str, release: &str, arch: &str, file: u8) -> ImageValue {
        ImageValue {
            osystem: osystem.into(),
            release: release.into(),
            architecture: arch.into(),
            subarchitecture: "generic".into(),
            label: "stable".into(),
            kernel: vec![file; 32],
            initrd: vec![file + 1; 32],
            squashfs: vec![file + 2; 32],
        }
    }

    fn images(default: &str) -> Images {
        Images {
            all: vec![
                image("ubuntu", "noble", "amd64", 1),
                image("ubuntu", "jammy", "amd64", 11),
                image("ubuntu", "jammy", "arm64", 21),
            ],
            default: default
                .split('/')
                .filter(|p| !p.is_empty())
                .map(Into::into)
                .collect(),
            enlist: true,
        }
    }

    fn machine(status: MachineStatus) -> MachineValue {
        MachineValue {
            system_id: "abc123".into(),
            hostname: "m1".into(),
            domain: "maas".into(),
            architecture: "amd64/generic".into(),
            status: status.number(),
            netboot: true,
            osystem: "ubuntu".into(),
            distro_series: "jammy".into(),
            has_boot: true,
            macs: vec![[2; 6]],
            vlans: vec![5001],
        }
    }

    #[test]
    fn the_image_follows_purpose_choice_and_architecture() {
        use MachineStatus as S;
        for (default, status, release, window) in [
            ("", S::Commissioning, "noble", true),
            ("ubuntu/jammy", S::Commissioning, "jammy", true),
            ("debian", S::Commissioning, "noble", true),
            ("", S::Deploying, "jammy", true),
        ] {
            let item = Machine::of(&machine(status), &images(default));
            assert_eq!(
                (&*item.release, item.boot_window),
                (release, window),
                "{default} {status:?}"
            );
            assert!(
                item.kernel
                    .ends_with(&format!("/{release}/stable/boot-kernel"))
            );
        }
        let ready = Machine::of(&machine(S::Ready), &images(""));
        assert_eq!(
            (ready.purpose, &*ready.kernel, ready.boot_window),
            (Purpose::Poweroff, "", false)
        );
        let unasked = MachineValue {
            has_boot: false,
            ..machine(S::New)
        };
        let unasked = Machine::of(&unasked, &images(""));
        assert_eq!(
            (unasked.purpose, unasked.boot_window),
            (Purpose::Poweroff, false)
        );
        let arm = Machine::unknown([2; 6], "arm64", &images(""));
        assert_eq!((arm.purpose, &*arm.release), (Purpose::Enlist, "jammy"));
        let odd = Machine::unknown([2; 6], "s390x", &images(""));
        assert_eq!(odd.kernel, "");
        assert_eq!(Machine::unknown([2; 6], "", &images("")).arch, "amd64");
    }

    #[test]
    fn default_images_are_fetched_early() {
        let images = images("");
        for (file, early) in [(1, true), (3, true), (11, false), (21, true), (99, false)] {
            assert_eq!(images.is_wanted_early(&[file; 32]), early, "{file}");
        }
    }

    #[test]
    fn a_racks_number_is_the_head_of_a_hash() {
        // SHA-256 of "abc" (FIPS 180-2, B.1).
        assert_eq!(rendezvous_number("abc"), 0xba78_16bf_8f01_cfea);
    }

    #[test]
    fn a_log_host_may_have_a_port() {
        for (text, host, port) in [
            ("", "", 5247),
            ("log", "log", 514),
            ("log:1514", "log", 1514),
            ("fd00::1", "fd00::1", 514),
            ("[fd00::1]:99", "fd00::1", 99),
        ] {
            assert_eq!(host_and_port(text), (host.to_owned(), port), "{text}");
        }
    }
}

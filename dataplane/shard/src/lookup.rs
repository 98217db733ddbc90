//! What a requested path means, for TFTP and HTTP alike, and the part of a shard that both sides share.
//!
//! Everything is answered from the snapshot, but a boot config of a machine that is not in it ([`Queries`]) and a file
//! that is not here yet: then the request waits, and is asked again when something has come.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use boot::{Arch, BootFile, ConfigRequest, Firmware, Selector, Unserved};
use bytes::Bytes;
use images::{Object, image_hash};
use wire::dhcp4::{View, code};

use crate::choices::Told;
use crate::config::Config;
use crate::events::Gate;
use crate::mailbox::{BootQuery, KEPT_FOR_LEASES, ShardMailbox, ToLink, ToWork};
use crate::queries::{Answer, Queries, Waiter};
use crate::shares::{Source, Standing};
use crate::snapshot::{Loader, Snapshot};
use crate::stats::Counters;

/// The same file is asked for at most so often.
const WANT_EVERY: Duration = Duration::from_secs(1);
/// Files asked for within that time.
const WANTS_MAX: usize = 1024;

/// Waiters noted before all of them look again: those who gave up meanwhile are forgotten by that.
const WAITING_MAX: usize = 16_384;

/// What the sides of a shard share.
pub(crate) struct Core {
    pub config: Config,
    pub now: Instant,
    pub snapshot: Arc<Snapshot>,
    pub mail: ShardMailbox,
    pub queries: Queries,
    /// Who waits for a file or a piece.
    waiting: Vec<Waiter>,
    /// Who is to look again in this turn.
    pub woken: Vec<Waiter>,
    wants: HashMap<[u8; 32], Instant>,
    /// Who may tell what.
    pub gate: Gate,
    pub counters: Counters,
}

/// A request for a path.
pub(crate) struct Asked<'a> {
    /// Without a leading slash.
    pub path: &'a str,
    pub client: IpAddr,
    /// Our address that was asked: the rack, as this client knows it.
    pub local: IpAddr,
    pub waiter: Waiter,
}

pub(crate) enum Lookup {
    Bytes {
        body: Bytes,
        text: bool,
    },
    Object(Arc<Object>),
    NotFound,
    /// The waiter will be woken.
    Later,
    Unavailable,
    NotOurs,
}

/// Folders that are ours: what is missing in them is missing, and not somebody else's.
const OUR_FOLDERS: [&str; 6] = [
    "images/",
    "pxelinux.cfg/",
    "grub/",
    "ppc64el/",
    "s390x/",
    "s390x_partition/",
];

impl Core {
    pub fn new(config: Config, snapshot: Arc<Snapshot>, mail: ShardMailbox, now: Instant) -> Self {
        let counters = Counters {
            restarts: config.restarts,
            ..Counters::default()
        };
        Self {
            queries: Queries::new(config.seed as u32), // any half of it
            config,
            now,
            snapshot,
            mail,
            waiting: Vec::new(),
            woken: Vec::new(),
            wants: HashMap::new(),
            gate: Gate::new(now),
            counters,
        }
    }

    /// Looks a path up. After `Later` the waiter is woken when there may be more to say.
    pub fn find(&mut self, asked: &Asked<'_>, engine: &dhcp::Engine) -> Lookup {
        let Ok(path) = boot::clean_path(asked.path) else {
            return Lookup::NotFound;
        };
        if path == "MAAS" || path.starts_with("MAAS/") {
            return Lookup::NotOurs;
        }
        if let Some(hash) = image_hash(&path) {
            return match self.snapshot.files.get(&hash) {
                Some(object) => Lookup::Object(Arc::clone(object)),
                None => Lookup::NotFound,
            };
        }
        if let Ok(Some(request)) = boot::route(&path) {
            return self.boot_config(&request, asked, engine);
        }
        if let Some(loader) = self.loader(&path) {
            return match loader.bytes.get() {
                Some(bytes) => Lookup::Bytes {
                    body: bytes.clone(),
                    text: false,
                },
                None => {
                    self.want(&loader.sha256);
                    self.note(asked.waiter);
                    Lookup::Later
                }
            };
        }
        if boot::is_empty_when_missing(&path) {
            return Lookup::Bytes {
                body: Bytes::new(),
                text: true,
            };
        }
        let ours = OUR_FOLDERS.iter().any(|folder| path.starts_with(folder));
        if ours {
            Lookup::NotFound
        } else {
            Lookup::NotOurs
        }
    }

    /// A loader by its own name, also below `images/`.
    pub fn loader(&self, path: &str) -> Option<Arc<Loader>> {
        let name = path.strip_prefix("images/").unwrap_or(path);
        self.snapshot.loaders.get(name).cloned()
    }

    fn boot_config(
        &mut self,
        request: &ConfigRequest,
        asked: &Asked<'_>,
        engine: &dhcp::Engine,
    ) -> Lookup {
        let port = self.config.http_port;
        // Whom the address is bound to, as far as this shard knows. A UUID decides nothing: boards of one make share theirs.
        let own = self.mac_at(asked.client, engine);
        let (mut mac, mut arch) = (own, "");
        match &request.selector {
            Selector::Preloader => {
                return match boot::render_preloader(request.kind, asked.local, port) {
                    Some(script) => Lookup::Bytes {
                        body: script.into(),
                        text: true,
                    },
                    None => Lookup::NotFound,
                };
            }
            Selector::Mac {
                mac: of,
                arch: built,
            } => {
                mac = Some(of.0);
                arch = built;
            }
            Selector::Uuid(_) => {}
            Selector::Default { arch: of, .. } => arch = of,
        }
        let known = mac
            .and_then(|mac| self.snapshot.machine_by_mac(&mac))
            .cloned();
        let (machine, called) = match known {
            Some(machine) => (machine, false),
            // No region has an image for it, and each such name would be asked for anew.
            None if !arch.is_empty() && !boot::is_known_arch(arch) => {
                (Arc::new(boot::Machine::without_image(arch)), false)
            }
            None => {
                let vlan = self.vlan_at(asked.client);
                let query = BootQuery {
                    mac,
                    arch: arch.to_owned(),
                    address: asked.client,
                    vlan,
                };
                match self.ask(query, mac == own, asked.waiter) {
                    Ok(machine) => (self.newest(machine), true),
                    Err(lookup) => return lookup,
                }
            }
        };
        let source = if called { "the region" } else { "the snapshot" };
        let told = format!("{:?} from {source}", machine.purpose).to_lowercase();
        self.event("BOOT_PARAMETERS", mac, asked.client, told);
        match boot::render(
            request,
            &machine,
            asked.local,
            port,
            &self.snapshot.settings,
        ) {
            Ok(script) => {
                self.counters.boot_configs += 1;
                self.counters.boot_configs_by_call += u64::from(called);
                let kind = format!("{:?}", request.kind).to_lowercase();
                let mut told = format!("{kind} {}", asked.path);
                if machine.lacks_image() {
                    told += &format!(": there is no image for {}", machine.arch);
                }
                self.event("BOOT_CONFIG", mac, asked.client, told);
                Lookup::Bytes {
                    body: script.into(),
                    text: true,
                }
            }
            Err(error) => {
                self.event(
                    "BOOT_CONFIG",
                    mac,
                    asked.client,
                    format!("no boot config: {error}"),
                );
                Lookup::NotFound
            }
        }
    }

    /// The region may have spoken before a change that the feed has brought since.
    fn newest(&self, answered: Arc<boot::Machine>) -> Arc<boot::Machine> {
        let mut macs = answered.macs.iter();
        let known = macs.find_map(|mac| self.snapshot.machine_by_mac(&mac.0));
        known.map_or(answered, Arc::clone)
    }

    /// The region's word on a machine that the snapshot does not have.
    fn ask(
        &mut self,
        query: BootQuery,
        is_own: bool,
        waiter: Waiter,
    ) -> Result<Arc<boot::Machine>, Lookup> {
        match self.queries.look_up(&query, is_own, waiter, self.now) {
            Answer::Machine(machine) => Ok(machine),
            Answer::Nothing => Err(Lookup::NotFound),
            Answer::Waiting => Err(Lookup::Later),
            Answer::Unavailable => Err(Lookup::Unavailable),
            Answer::Ask(ticket) => {
                let has_room = self.mail.to_link.free_slots() > KEPT_FOR_LEASES;
                let asked = ToLink::BootConfig { ticket, query };
                if has_room && self.mail.to_link.push(asked).is_ok() {
                    Err(Lookup::Later)
                } else {
                    self.queries.failed(ticket, self.now);
                    Err(Lookup::Unavailable)
                }
            }
        }
    }

    /// Asks the work thread for a file.
    pub fn want(&mut self, sha256: &[u8; 32]) {
        let asked = self
            .wants
            .get(sha256)
            .is_some_and(|at| self.now < *at + WANT_EVERY);
        if asked {
            return;
        }
        if self.wants.len() >= WANTS_MAX {
            let now = self.now;
            self.wants.retain(|_, at| now < *at + WANT_EVERY);
        }
        if self.mail.to_work.push(ToWork::Want(*sha256)).is_err() {
            self.counters.wants_lost += 1;
        } else if self.wants.len() < WANTS_MAX {
            self.wants.insert(*sha256, self.now);
        }
    }

    /// Notes who waits for a file.
    pub fn note(&mut self, waiter: Waiter) {
        if self.waiting.len() >= WAITING_MAX {
            self.wake_waiting();
        }
        self.waiting.push(waiter);
    }

    /// Everybody who waits for a file looks again.
    pub fn wake_waiting(&mut self) {
        self.woken.append(&mut self.waiting);
    }

    /// Whose address this is, where this shard knows it: its own bindings and all reservations. `None` leaves it to
    /// the rack, which knows all.
    pub fn mac_at(&self, address: IpAddr, engine: &dhcp::Engine) -> Option<[u8; 6]> {
        let IpAddr::V4(address) = address else {
            return None;
        };
        let vlan = self.snapshot.link_by_address(address)?.dhcp.vlan;
        let bound = engine.mac_at(vlan, address, self.now);
        bound
            .or_else(|| self.snapshot.reserved_mac(vlan, address))
            .map(|mac| mac.0)
    }

    /// Whether `address` was given to a machine that the region knows. No proof of who talks: whoever takes such an
    /// address takes that machine's place and nobody else's.
    pub fn standing(&self, address: IpAddr, engine: &dhcp::Engine) -> Standing {
        let mac = self.mac_at(address, engine);
        let mac = mac.or_else(|| self.config.bound.mac_at(address, self.now));
        match mac.and_then(|mac| self.snapshot.machine_by_mac(&mac)) {
            Some(_) => Standing::Known,
            None => Standing::Stranger,
        }
    }

    /// Who holds what a connection takes: on a link of the rack's own the card that opened it, else its address. A relay's
    /// card speaks for all behind it.
    pub fn source(&self, address: IpAddr, frame: Option<[u8; 6]>) -> Source {
        let IpAddr::V4(v4) = address.to_canonical() else {
            return address.into();
        };
        let link = self.snapshot.link_by_address(v4);
        match (link, frame) {
            (Some(link), Some(mac)) if !link.interface.is_empty() => Source::card(mac),
            _ => address.into(),
        }
    }

    fn vlan_at(&self, address: IpAddr) -> u32 {
        match address {
            IpAddr::V4(address) => self
                .snapshot
                .link_by_address(address)
                .map_or(0, |link| link.dhcp.vlan),
            IpAddr::V6(_) => 0,
        }
    }
}

/// What a DHCP client is told to boot.
pub(crate) struct Choice<'a> {
    server: Ipv4Addr,
    file: Result<&'a BootFile, Unserved>,
    hostname: &'a str,
    /// What it is, of firmware that can be read.
    arch: Option<Arch>,
    is_firmware: bool,
    /// An operator names its boot file.
    is_named: bool,
    /// Addresses are somebody else's there.
    pub is_proxied: bool,
}

/// Chooses by firmware and by the subnet's disabled methods.
pub(crate) fn boot_choice<'a>(
    query: &View<'_>,
    received: &dhcp::Received<'_>,
    snapshot: &'a Snapshot,
) -> Choice<'a> {
    // A relayed client is on the relay's link, and is served from that link's address.
    let home = dhcp::home(query, received, snapshot);
    let link = home.map_or(received.link, |(link, _)| link);
    let disabled = home.map_or(&[][..], |(_, subnet)| &subnet.disabled_archs);
    let machine = query.mac().and_then(|mac| snapshot.machine_by_mac(&mac.0));
    let firmware = Firmware::of(query);
    let is_proxied = link.mode == dhcp::Mode::Proxy;
    let files = snapshot.boot_files(link.server);
    let has = |loader: &str| snapshot.loaders.contains_key(loader);
    let file = files
        .ok_or(Unserved::NoServer)
        .and_then(|files| match is_proxied {
            false => files.choose(&firmware, disabled, has),
            true => files.choose_beside(&firmware, disabled, has),
        });
    let reserved = query
        .mac()
        .filter(|_| file.is_err())
        .and_then(|mac| dhcp::Config::reservation(snapshot, link.vlan, mac));
    let is_named = file.is_err()
        && home.is_some_and(|(_, subnet)| names_boot_file(subnet, reserved))
        && !is_proxied;
    Choice {
        server: link.server,
        file,
        arch: firmware.arch(),
        is_firmware: firmware.is_network_boot(),
        is_named,
        is_proxied,
        hostname: machine.map_or("", |machine| &machine.hostname),
    }
}

/// Whether an operator set option 67 for clients of this subnet, or of one of its ranges, or for this one.
fn names_boot_file(subnet: &dhcp::Subnet, host: Option<&dhcp::Reservation>) -> bool {
    let of_ranges = subnet.ranges.iter().flat_map(|range| range.options.iter());
    let of_host = host.iter().flat_map(|host| host.options.iter());
    let mut options = subnet.options.iter().chain(of_ranges).chain(of_host);
    options.any(|option| option.code == code::BOOTFILE && !option.value.is_empty())
}

impl Choice<'_> {
    pub fn reply(&self) -> dhcp::BootReply<'_> {
        let Ok(file) = self.file else {
            return dhcp::BootReply {
                hostname: self.hostname,
                ..dhcp::BootReply::default()
            };
        };
        dhcp::BootReply {
            next_server: Some(self.server),
            file: file.file.as_str(),
            vendor_class: file.vendor_class.map(str::as_bytes),
            vendor_options: None,
            vendor_identifying: file
                .vendor_identifying
                .as_ref()
                .map(boot::VendorIdentifying::as_bytes),
            path_prefix: file.path_prefix.as_ref().map(|prefix| prefix.as_str()),
            hostname: self.hostname,
        }
    }

    /// What a firmware client is told; Linux's DHCP clients do not boot from it.
    pub fn told(&self) -> Option<Told> {
        if !self.is_firmware {
            return None;
        }
        Some(Told {
            server: self.server,
            file: self.file.ok().map(|file| (file.method, file.file)),
            arch: self.arch.map(Arch::of_images),
        })
    }

    /// Why a firmware client gets no boot file.
    pub fn unserved(&self) -> Option<Unserved> {
        let why = self.file.err()?;
        (self.is_firmware && !self.is_named).then_some(why)
    }
}

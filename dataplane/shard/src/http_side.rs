//! HTTP between the driver's streams and their connections: accept, drive, time out, hand off.
//!
//! A connection has a place of one of three kinds, each with a bound of its own and a share for each source: without a
//! whole head, between requests, being served. So heads that never end take no place of those who are served, however
//! many addresses they come from.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use images::{Catalog, Connection, Found, Phase, Served, Step};

use crate::config::Config;
use crate::driver::{Close, Driver, Ends, StreamId};
use crate::lookup::{Asked, Core, Lookup};
use crate::mailbox::{TO_WORK_MAX, ToWork};
use crate::queries::Waiter;
use crate::shares::{Manner, Place, Room, Shares, Source, Standing};

/// How often deadlines of connections are looked at.
const SCAN_EVERY: Duration = Duration::from_millis(250);
pub(crate) struct HttpSide {
    limits: images::Limits,
    places: Places,
    hand_offs_max: usize,
    /// By the driver's index.
    table: Vec<Option<Box<Http>>>,
    count: usize,
    /// Connections being taken out of the driver for the work thread.
    takes: usize,
    next_scan: Instant,
    pub counters: images::Counters,
}

struct Places {
    new: Shares,
    idle: Shares,
    busy: Shares,
}

impl Places {
    fn new(config: &Config) -> Self {
        let (places, share) = (config.connections_max, config.connections_per_source_max);
        Self {
            new: Shares::new(places / 4, share / 4, Manner::Yields),
            idle: Shares::new(places / 4, share / 4, Manner::Yields),
            busy: Shares::new(places, share, Manner::Holds),
        }
    }

    fn of(&mut self, phase: Phase) -> &mut Shares {
        match phase {
            Phase::New => &mut self.new,
            Phase::Idle => &mut self.idle,
            Phase::Busy => &mut self.busy,
        }
    }
}

struct Http {
    stream: StreamId,
    source: Source,
    /// None once it is leaving.
    place: Option<(Phase, Place)>,
    ends: Ends,
    connection: Connection,
    /// Noted with those who wait for pieces.
    noted: bool,
    /// Being handed off; these octets were read before.
    leaving: Option<Vec<u8>>,
}

impl HttpSide {
    pub fn new(config: &Config, now: Instant) -> Self {
        Self {
            limits: config.http,
            places: Places::new(config),
            hand_offs_max: config.hand_offs_max,
            table: Vec::new(),
            count: 0,
            takes: 0,
            next_scan: now + SCAN_EVERY,
            counters: images::Counters::default(),
        }
    }

    pub fn connection_count(&self) -> usize {
        self.count
    }

    pub fn count_of(&self, phase: Phase) -> usize {
        match phase {
            Phase::New => self.places.new.count(),
            Phase::Idle => self.places.idle.count(),
            Phase::Busy => self.places.busy.count(),
        }
    }

    /// Nothing is being sent or waited for.
    pub fn is_quiet(&self) -> bool {
        self.table
            .iter()
            .flatten()
            .all(|http| http.connection.is_idle())
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        (self.count > 0).then_some(self.next_scan)
    }

    pub fn on_accepted(
        &mut self,
        stream: StreamId,
        ends: Ends,
        core: &mut Core,
        driver: &mut impl Driver,
    ) {
        if let Some(old) = self
            .table
            .get(stream.index as usize)
            .and_then(Option::as_ref)
        {
            let old = old.stream; // the driver has given it up
            self.remove(old);
        }
        let source = core.source(ends.peer.ip(), ends.frame);
        match self.places.new.room(source, Standing::Stranger) {
            Room::Free => {}
            Room::Instead(oldest) => self.displace(oldest, core, driver),
            Room::None => {
                driver.stream_close(stream, Close::Abort);
                return;
            }
        }
        let place = self
            .places
            .new
            .enter(source, Standing::Stranger, stream.index);
        let index = stream.index as usize;
        if self.table.len() <= index {
            self.table.resize_with(index + 1, || None);
        }
        if self.count == 0 {
            self.next_scan = core.now + SCAN_EVERY;
        }
        let http = Http {
            stream,
            source,
            place: Some((Phase::New, place)),
            ends,
            connection: Connection::new(self.limits, core.now),
            noted: false,
            leaving: None,
        };
        self.table[index] = Some(Box::new(http));
        self.count += 1;
    }

    /// Ends a connection for the sake of a newcomer.
    fn displace(&mut self, index: u32, core: &mut Core, driver: &mut impl Driver) {
        let Some(http) = self.table.get(index as usize).and_then(Option::as_ref) else {
            return;
        };
        let (stream, phase) = (http.stream, http.place.map(|(phase, _)| phase));
        let how = match phase {
            // The last answer may still be on its way.
            Some(Phase::Idle) => {
                core.counters.displaced_idle += 1;
                Close::Graceful
            }
            Some(Phase::Busy) => {
                core.counters.displaced_busy += 1;
                Close::Abort
            }
            Some(Phase::New) | None => {
                core.counters.displaced_new += 1;
                Close::Abort
            }
        };
        driver.stream_close(stream, how);
        self.remove(stream);
    }

    pub fn on_received(&mut self, stream: StreamId, octets: &[u8]) {
        let Some(http) = get(&mut self.table, stream) else {
            return;
        };
        match &mut http.leaving {
            Some(read) => read.extend_from_slice(octets),
            None => http.connection.on_bytes(octets, &mut self.counters),
        }
    }

    pub fn on_ended(&mut self, stream: StreamId, broken: bool, driver: &mut impl Driver) {
        let Some(http) = get(&mut self.table, stream) else {
            return;
        };
        if broken && http.leaving.is_none() {
            driver.stream_close(stream, Close::Abort);
            self.remove(stream);
        } else {
            http.connection.on_end();
        }
    }

    pub fn on_sent(&mut self, stream: StreamId, sent: u64) {
        if let Some(http) = get(&mut self.table, stream) {
            http.connection.on_sent(sent, &mut self.counters);
        }
    }

    pub fn on_woken(&mut self, stream: StreamId) {
        if let Some(http) = get(&mut self.table, stream) {
            http.noted = false;
        }
    }

    /// The driver gave the connection up: it goes to the work thread with every octet that was read.
    pub fn on_taken(&mut self, stream: StreamId, socket: OwnedFd, late: Vec<u8>, core: &mut Core) {
        let Some(http) = self.remove(stream) else {
            return;
        };
        self.takes -= usize::from(http.leaving.is_some());
        let mut read = http.leaving.unwrap_or_default();
        read.extend_from_slice(&late);
        let hand_off = ToWork::HandOff {
            socket,
            ends: http.ends,
            source: http.source,
            read,
        };
        // Room was there when the take began, and only we fill it.
        match core.mail.to_work.push(hand_off) {
            Ok(()) => core.counters.hand_offs += 1,
            Err(_) => core.counters.hand_offs_refused += 1,
        }
    }

    /// Lets a connection do all it can.
    pub fn drive(
        &mut self,
        stream: StreamId,
        core: &mut Core,
        engine: &dhcp::Engine,
        driver: &mut impl Driver,
    ) {
        loop {
            let Some(http) = get(&mut self.table, stream) else {
                return;
            };
            if http.leaving.is_some() {
                return;
            }
            let now = core.now;
            if http.connection.wants_queued(now) {
                http.connection.on_queued(driver.stream_queued(stream));
            }
            let mut catalog = HttpCatalog {
                client: http.ends.peer.ip(),
                local: http.ends.local.ip(),
                stream,
                core: &mut *core,
                engine,
                places: &self.places.busy,
                source: http.source,
                room: matches!(http.place, Some((Phase::Busy, _))).then_some(Room::Free),
                standing: Standing::Stranger,
            };
            let step = http.connection.step(now, &mut catalog, &mut self.counters);
            let (room, standing) = (catalog.room, catalog.standing);
            if let Some(served) = http.connection.take_served() {
                tell(&served, http.ends.peer.ip(), core, engine);
            }
            if let Some(victim) = settle(http, room, standing, &mut self.places) {
                self.displace(victim, core, driver);
            }
            let Some(http) = get(&mut self.table, stream) else {
                return;
            };
            match step {
                Step::Receive | Step::Busy | Step::WaitAnswer => return,
                Step::SendBytes { bytes, more } => {
                    driver.stream_send(stream, bytes, more);
                    return;
                }
                Step::SendFile {
                    object,
                    offset,
                    length,
                } => {
                    driver.stream_send_file(stream, object, offset, length);
                    return;
                }
                Step::WaitFor { object, want, .. } => {
                    if want {
                        core.want(object.sha256());
                    }
                    if !http.noted {
                        http.noted = true;
                        core.note(Waiter::Http(stream));
                    }
                    return;
                }
                Step::HandOff { read } => {
                    let waiting = TO_WORK_MAX - core.mail.to_work.free_slots();
                    if waiting + self.takes < self.hand_offs_max {
                        self.takes += 1;
                        http.leaving = Some(read);
                        if let Some((phase, place)) = http.place.take() {
                            self.places.of(phase).leave(place);
                        }
                        driver.stream_take(stream);
                        return;
                    }
                    core.counters.hand_offs_refused += 1;
                    http.connection.refuse(core.now, &mut self.counters);
                }
                Step::Close => {
                    driver.stream_close(stream, Close::Graceful);
                    self.remove(stream);
                    return;
                }
                Step::Abort => {
                    driver.stream_close(stream, Close::Abort);
                    self.remove(stream);
                    return;
                }
            }
        }
    }

    /// Looks at every connection whose deadline has passed, and wakes those who wait for pieces: a lost Progress
    /// costs a quarter of a second.
    pub fn scan(&mut self, core: &mut Core, engine: &dhcp::Engine, driver: &mut impl Driver) {
        self.next_scan = core.now + SCAN_EVERY;
        core.wake_waiting();
        for index in 0..self.table.len() {
            if let Some(http) = &self.table[index]
                && http.connection.deadline() <= core.now
            {
                self.drive(http.stream, core, engine, driver);
            }
        }
    }

    fn remove(&mut self, stream: StreamId) -> Option<Box<Http>> {
        get(&mut self.table, stream)?;
        self.count -= 1;
        let mut http = self.table[stream.index as usize].take()?;
        if let Some((phase, place)) = http.place.take() {
            self.places.of(phase).leave(place);
        }
        Some(http)
    }
}

fn get(table: &mut [Option<Box<Http>>], stream: StreamId) -> Option<&mut Http> {
    let http = table.get_mut(stream.index as usize)?.as_deref_mut()?;
    (http.stream == stream).then_some(http)
}

/// Moves a connection to the places of what it does now. `room`: what there is among those that are served, if it was
/// asked. Those that are not served have no standing: they yield. Returns whoever goes for it.
fn settle(
    http: &mut Http,
    room: Option<Room>,
    standing: Standing,
    places: &mut Places,
) -> Option<u32> {
    let (held, place) = http.place?;
    let phase = http.connection.phase();
    if phase == held {
        return None;
    }
    let (room, standing) = match (phase, room) {
        (Phase::Busy, Some(room)) if room != Room::None => (room, standing),
        // A refusal is on its way: that takes no place of those who are served.
        (Phase::Busy, _) => return None,
        (Phase::New | Phase::Idle, _) => {
            let stranger = Standing::Stranger;
            (places.of(phase).room(http.source, stranger), stranger)
        }
    };
    places.of(held).leave(place);
    let place = places
        .of(phase)
        .enter(http.source, standing, http.stream.index);
    http.place = Some((phase, place));
    match room {
        Room::Instead(victim) => Some(victim),
        Room::Free | Room::None => None,
    }
}

/// One line in the event log per file that left whole.
fn tell(served: &Served, client: IpAddr, core: &mut Core, engine: &dhcp::Engine) {
    let path = served.path.trim_start_matches('/');
    let kind = if served.sha256.is_some() {
        "IMAGE_SERVED"
    } else if core.loader(path).is_some() {
        "LOADER_SERVED"
    } else {
        return; // boot configs have their own event
    };
    let mac = core.mac_at(client, engine);
    let part = if served.whole { "" } else { " (a range)" };
    let detail = format!("{path} {} octets{part} by HTTP", served.bytes);
    core.event(kind, mac, client, detail);
}

struct HttpCatalog<'a> {
    core: &'a mut Core,
    engine: &'a dhcp::Engine,
    client: IpAddr,
    local: IpAddr,
    stream: StreamId,
    /// Those who are served, and what there is among them for this one: `Free` if it is one of them, and set by the first
    /// answer that needs a place.
    places: &'a Shares,
    source: Source,
    room: Option<Room>,
    /// Looked up with `room`.
    standing: Standing,
}

impl Catalog for HttpCatalog<'_> {
    fn find(&mut self, asked: &images::Asked<'_>) -> Found {
        let found = self.look_up(asked);
        if !matches!(found, Found::Object(_) | Found::Bytes { .. } | Found::Later) {
            return found;
        }
        if self.room.is_none() {
            self.standing = self.core.standing(self.client, self.engine);
        }
        let room = *self
            .room
            .get_or_insert_with(|| self.places.room(self.source, self.standing));
        if room == Room::None {
            self.core.counters.connections_refused += 1;
            return Found::Busy;
        }
        found
    }
}

impl HttpCatalog<'_> {
    fn look_up(&mut self, asked: &images::Asked<'_>) -> Found {
        let asked = Asked {
            path: asked.path.trim_start_matches('/'),
            client: self.client,
            local: self.local,
            waiter: Waiter::Http(self.stream),
        };
        match self.core.find(&asked, self.engine) {
            Lookup::Object(object) => Found::Object(object),
            Lookup::Bytes { body, text } => {
                let content_type = if text {
                    "text/plain; charset=utf-8"
                } else {
                    "application/octet-stream"
                };
                Found::Bytes { body, content_type }
            }
            Lookup::NotFound => Found::NotFound,
            Lookup::Later => Found::Later,
            Lookup::Unavailable => Found::Busy,
            Lookup::NotOurs => Found::NotOurs,
        }
    }
}

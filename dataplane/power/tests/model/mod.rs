//! A model BMC: IPMI v2.0 over UDP with cipher suites 17 and 3, for tests and the lab.
//!
//! What it has: ASF ping, Get Channel Authentication Capabilities and Cipher Suites before a session,
//! Open Session, RAKP 1-4, and in a session privilege, chassis status and control, boot options, close.
//! What it does not have: IPMI v1.5 sessions, sensors, SOL. `ipmitool` and `ipmi-rs` accept it, which is
//! what makes it a fair judge of our client although both use one codec.
//!
//! It can misbehave on request ([`Faults`]): lose packets, fall silent, repeat, send garbage.

use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use power::ipmi::command as ipmi;
use power::ipmi::crypto::{Exchange, SessionKeys, Suite};
use power::ipmi::handshake::{
    OpenRequest, OpenResponse, OpenedSession, Rakp1, Rakp2, Rakp2Proof, Rakp34, status,
};
use power::ipmi::wire::{Frame, PayloadType, Plus, Request, Response, Window};
use tokio::net::UdpSocket;

const SESSIONS_MAX: usize = 32;
const GUID: [u8; 16] = *b"muster-model-bmc";

pub type Answer<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The machine behind the BMC.
pub trait Chassis: Send + Sync {
    fn power(&self) -> Answer<bool>;
    fn set_power(&self, on: bool) -> Answer<()>;
    /// `pxe` or `default`.
    fn set_boot(&self, device: &'static str) -> Answer<()>;
    fn boot(&self) -> Answer<String>;
}

#[derive(Clone)]
pub struct Account {
    pub user: String,
    pub password: String,
    pub k_g: Option<Vec<u8>>,
    /// Highest privilege the user may have.
    pub privilege: u8,
}

/// How the model misbehaves. All off by default.
#[derive(Default)]
pub struct Faults {
    /// Answer nothing at all.
    pub silent: AtomicU32,
    /// Answer nothing once this many commands were answered in a session (0: never).
    pub silent_after_commands: AtomicU32,
    /// Forget all sessions after this many commands, once.
    pub forget_after_commands: AtomicU32,
    /// Ignore Open Session for suite 17, as some BMCs do.
    pub silent_for_17: AtomicU32,
    /// Do not know Get Channel Cipher Suites.
    pub no_suite_list: AtomicU32,
    /// Lose every n-th packet that arrives.
    pub lose_every: AtomicU32,
    /// Send garbage, and the previous answer again, before each answer.
    pub noise: AtomicU32,
    /// Accept chassis control and do nothing.
    pub stuck: AtomicU32,
    /// Answer this many commands with "node busy" first.
    pub busy: AtomicU32,
    /// Answer these commands (network function, command) with these codes; `None`: not at all.
    pub refuse: Mutex<HashMap<(u8, u8), Option<u8>>>,
    /// Bits of the chassis' power state that are set besides the power's own.
    pub power_bits: AtomicU32,
    /// Offer these suites, by id, whatever it has.
    pub lists: Mutex<Vec<u8>>,
    /// Answer RAKP 1 of these suites with this status; `None`: not at all.
    pub rakp1: Mutex<HashMap<u8, Option<u8>>>,
    /// Cut refusals of the handshake to their tag and status.
    pub short_refusals: AtomicU32,
    /// Answer these commands, after so many good answers, so many times with this code and no data.
    pub moods: Mutex<HashMap<(u8, u8), Mood>>,
    /// After this many commands in a session, once: hear nothing for `outage_ms`, and know no session then.
    pub outage_after_commands: AtomicU32,
    pub outage_ms: AtomicU32,
}

/// A command that is refused for a while.
#[derive(Clone, Copy)]
pub struct Mood {
    pub after: u32,
    pub times: u32,
    pub code: u8,
}

impl Faults {
    fn has(flag: &AtomicU32) -> bool {
        flag.load(Ordering::Relaxed) != 0
    }

    /// The code that a command is refused with now.
    fn mood(&self, command: (u8, u8)) -> Option<u8> {
        let mut moods = self.moods.lock().unwrap();
        let mood = moods.get_mut(&command)?;
        if mood.after > 0 {
            mood.after -= 1;
            return None;
        }
        mood.times = mood.times.checked_sub(1)?;
        Some(mood.code)
    }
}

/// What the model saw, for the tests.
#[derive(Default)]
pub struct Seen {
    /// Requests to open a session.
    pub opens: AtomicU32,
    pub sessions: AtomicU32,
    pub closed: AtomicU32,
    pub controls: Mutex<Vec<u8>>,
    pub boot_flags: Mutex<[u8; 5]>,
    pub suite: AtomicU32,
}

pub struct Model {
    pub account: Account,
    pub suites: Vec<Suite>,
    pub chassis: Arc<dyn Chassis>,
    pub faults: Arc<Faults>,
    pub seen: Arc<Seen>,
}

struct Half {
    suite: Suite,
    console_id: u32,
    privilege: u8,
    rakp1: Option<Begun>,
}

/// What RAKP 1 and our answer to it said.
struct Begun {
    role: u8,
    user: Vec<u8>,
    console_random: [u8; 16],
    system_random: [u8; 16],
}

struct Live {
    keys: SessionKeys,
    console_id: u32,
    privilege: u8,
    privilege_max: u8,
    sequence: u32,
    window: Window,
}

#[derive(Default)]
struct Sessions {
    half: HashMap<u32, Half>,
    live: HashMap<u32, Live>,
    next: u32,
    received: u32,
    commands: u32,
    /// The answer sent before this one, for `Faults::noise`.
    last: Vec<u8>,
    deaf_until: Option<Instant>,
}

impl Model {
    /// Serves until its task is dropped.
    pub async fn serve(self, socket: UdpSocket) {
        let mut sessions = Sessions::default();
        let mut octets = [0; 1_100];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut octets).await else {
                continue;
            };
            sessions.received += 1;
            let lose = self.faults.lose_every.load(Ordering::Relaxed);
            let deaf = sessions.deaf_until.is_some_and(|end| Instant::now() < end);
            if deaf
                || Faults::has(&self.faults.silent)
                || (lose != 0 && sessions.received % lose == 0)
            {
                continue;
            }
            let Some(answer) = self.answer(&mut sessions, &octets[..length]).await else {
                continue;
            };
            if Faults::has(&self.faults.noise) {
                self.make_noise(&socket, from, &sessions.last, &answer)
                    .await;
                sessions.last.clone_from(&answer);
            }
            let _ = socket.send_to(&answer, from).await;
        }
    }

    async fn make_noise(&self, socket: &UdpSocket, from: SocketAddr, last: &[u8], answer: &[u8]) {
        let mut bad = answer.to_vec();
        let end = bad.len() - 1;
        bad[end] ^= 0xff;
        let cut = &answer[..answer.len() / 2];
        for packet in [
            &b"garbage"[..],
            &[],
            last,
            cut,
            &bad[..],
            &[0x06, 0, 0xff, 0x07, 0x06],
        ] {
            // The damaged copy only where something protects it: before the session nothing does.
            if packet == &bad[..] && answer.get(5).is_none_or(|kind| kind & 0x40 == 0) {
                continue;
            }
            let _ = socket.send_to(packet, from).await;
        }
    }

    async fn answer(&self, sessions: &mut Sessions, octets: &[u8]) -> Option<Vec<u8>> {
        match Frame::parse(octets).ok()? {
            Frame::Ping { tag } => Some(Frame::emit_pong(tag, true)),
            Frame::Plain15 {
                session_id: 0,
                payload,
                ..
            } => Some(Frame::emit_plain15(&self.before_session(payload)?)),
            Frame::Plus(plus) if plus.session_id == 0 => {
                let payload = plus.open_plain().ok()?;
                let (kind, answer) = match plus.kind {
                    PayloadType::Ipmi => (PayloadType::Ipmi, self.before_session(payload)?),
                    PayloadType::OpenRequest => {
                        (PayloadType::OpenResponse, self.open(sessions, payload)?)
                    }
                    PayloadType::Rakp1 => (PayloadType::Rakp2, self.rakp1(sessions, payload)?),
                    PayloadType::Rakp3 => (PayloadType::Rakp4, self.rakp3(sessions, payload)?),
                    _ => return None,
                };
                let refused = kind != PayloadType::Ipmi && answer.get(1) != Some(&status::OK);
                let cut = refused && Faults::has(&self.faults.short_refusals);
                let length = if cut { 2 } else { answer.len() };
                Some(Plus::emit_plain(kind, &answer[..length]))
            }
            Frame::Plus(plus) => self.in_session(sessions, &plus).await,
            _ => None,
        }
    }

    /// Commands that need no session.
    fn before_session(&self, payload: &[u8]) -> Option<Vec<u8>> {
        let request = Request::parse(payload).ok()?;
        let mut data = Vec::new();
        let code = match (request.netfn, request.command) {
            (ipmi::NETFN_APP, ipmi::GET_CHANNEL_AUTHENTICATION_CAPABILITIES) => {
                let k_g = if self.account.k_g.is_some() { 0x20 } else { 0 };
                // Channel 1, v2.0 data only, non-null names, v2.0 supported, no OEM.
                data.extend([1, 0x80, k_g | 0x04, 0x02, 0, 0, 0, 0]);
                ipmi::completion::OK
            }
            (ipmi::NETFN_APP, ipmi::GET_CHANNEL_CIPHER_SUITES)
                if !Faults::has(&self.faults.no_suite_list) =>
            {
                let mut records = Vec::new();
                for id in self.faults.lists.lock().unwrap().iter() {
                    records.extend([0xc0, *id, 0x01, 0x41, 0x81]);
                }
                let honest = records.is_empty();
                for suite in self.suites.iter().filter(|_| honest) {
                    let [authentication, integrity, encryption] = suite.algorithms();
                    let protection = [0x40 | integrity, 0x80 | encryption];
                    records.extend([0xc0, suite.id(), authentication]);
                    records.extend(protection);
                }
                let index = usize::from(request.data.get(2).copied().unwrap_or_default() & 0x3f);
                data.push(1);
                data.extend(records.chunks(16).nth(index).unwrap_or_default());
                ipmi::completion::OK
            }
            _ => ipmi::completion::INVALID_COMMAND,
        };
        Some(respond(&request, code, &data))
    }

    fn open(&self, sessions: &mut Sessions, payload: &[u8]) -> Option<Vec<u8>> {
        let request = OpenRequest::parse(payload).ok()?;
        self.seen.opens.fetch_add(1, Ordering::Relaxed);
        let suite = self
            .suites
            .iter()
            .find(|suite| suite.algorithms() == request.algorithms);
        if request.algorithms == Suite::Sha256.algorithms()
            && Faults::has(&self.faults.silent_for_17)
        {
            return None;
        }
        let outcome = match suite {
            None => Err(status::NO_SUITE),
            Some(_) if sessions.live.len() + sessions.half.len() >= SESSIONS_MAX => {
                Err(status::NO_RESOURCES)
            }
            Some(suite) => {
                sessions.next += 1;
                let system_id = 0x0200_0000 | sessions.next;
                let console_id = request.console_id;
                let privilege = request.privilege;
                sessions.half.insert(
                    system_id,
                    Half {
                        suite: *suite,
                        console_id,
                        privilege,
                        rakp1: None,
                    },
                );
                // 0 asks for the highest that the algorithms allow.
                let privilege = if privilege == 0 { 4 } else { privilege };
                Ok(OpenedSession {
                    privilege,
                    system_id,
                    algorithms: suite.algorithms(),
                })
            }
        };
        let response = OpenResponse {
            tag: request.tag,
            console_id: request.console_id,
            outcome,
        };
        Some(response.emit())
    }

    fn rakp1(&self, sessions: &mut Sessions, payload: &[u8]) -> Option<Vec<u8>> {
        let message = Rakp1::parse(payload).ok()?;
        let half = sessions.half.get_mut(&message.system_id)?;
        let fail = |code| Rakp2 {
            tag: message.tag,
            console_id: half.console_id,
            outcome: Err(code),
        };
        let odd = self
            .faults
            .rakp1
            .lock()
            .unwrap()
            .get(&half.suite.id())
            .copied();
        match odd {
            Some(Some(code)) => return Some(fail(code).emit()),
            Some(None) => return None,
            None => {}
        }
        if message.user != self.account.user.as_bytes() {
            return Some(fail(status::UNAUTHORIZED_NAME).emit());
        }
        if message.role & 0x0f > self.account.privilege
            || (half.privilege != 0 && message.role & 0x0f > half.privilege)
        {
            return Some(fail(status::UNAUTHORIZED_ROLE).emit());
        }
        // A repeated RAKP 1 gets the same answer.
        let system_random = match &half.rakp1 {
            Some(begun) if begun.console_random == message.console_random => begun.system_random,
            _ => rand::random(),
        };
        half.rakp1 = Some(Begun {
            role: message.role,
            user: message.user.to_vec(),
            console_random: message.console_random,
            system_random,
        });
        let exchange = exchange(half, message.system_id)?;
        let code = exchange.rakp2_code(self.account.password.as_bytes());
        let proof = Rakp2Proof {
            system_random,
            system_guid: GUID,
            code: code.octets(),
        };
        let answer = Rakp2 {
            tag: message.tag,
            console_id: half.console_id,
            outcome: Ok(proof),
        };
        Some(answer.emit())
    }

    fn rakp3(&self, sessions: &mut Sessions, payload: &[u8]) -> Option<Vec<u8>> {
        let message = Rakp34::parse(payload).ok()?;
        let Some(half) = sessions.half.get(&message.session_id) else {
            let outcome = Err(status::INVALID_SESSION);
            return Some(
                Rakp34 {
                    tag: message.tag,
                    session_id: 0,
                    outcome,
                }
                .emit(),
            );
        };
        let session_id = half.console_id;
        let exchange = exchange(half, message.session_id)?;
        let password = self.account.password.as_bytes();
        let proof = message.outcome.ok().filter(|code| {
            exchange
                .rakp3_code(password)
                .matches(code, exchange.suite.digest_bytes())
        });
        if proof.is_none() {
            let refused = message.outcome.is_ok();
            sessions.half.remove(&message.session_id);
            // A console that gave up gets no answer.
            let outcome = Err(status::INVALID_CHECK_VALUE);
            return refused.then(|| {
                Rakp34 {
                    tag: message.tag,
                    session_id,
                    outcome,
                }
                .emit()
            });
        }
        let keys = exchange.keys(self.account.k_g.as_deref().unwrap_or(password));
        let check = exchange.rakp4_code(&keys);
        let code = &check.octets()[..exchange.suite.code_bytes()];
        let answer = Rakp34 {
            tag: message.tag,
            session_id,
            outcome: Ok(code),
        }
        .emit();
        let privilege_max = exchange.role & 0x0f;
        self.seen.sessions.fetch_add(1, Ordering::Relaxed);
        self.seen
            .suite
            .store(u32::from(exchange.suite.id()), Ordering::Relaxed);
        sessions.half.remove(&message.session_id);
        let live = Live {
            keys,
            console_id: session_id,
            privilege: 2,
            privilege_max,
            sequence: 0,
            window: Window::default(),
        };
        sessions.live.insert(message.session_id, live);
        Some(answer)
    }

    async fn in_session(&self, sessions: &mut Sessions, plus: &Plus<'_>) -> Option<Vec<u8>> {
        let session = sessions.live.get_mut(&plus.session_id)?;
        let payload = plus.open_sealed(&session.keys).ok()?;
        if plus.kind != PayloadType::Ipmi || !session.window.take(plus.sequence) {
            return None;
        }
        let request = Request::parse(&payload).ok()?;
        sessions.commands += 1;
        let limit = self.faults.silent_after_commands.load(Ordering::Relaxed);
        if limit != 0 && sessions.commands > limit {
            return None;
        }
        let limit = self.faults.forget_after_commands.load(Ordering::Relaxed);
        if limit != 0 && sessions.commands > limit {
            self.faults
                .forget_after_commands
                .store(0, Ordering::Relaxed);
            sessions.live.clear();
            return None;
        }
        let limit = self.faults.outage_after_commands.load(Ordering::Relaxed);
        if limit != 0 && sessions.commands > limit {
            self.faults
                .outage_after_commands
                .store(0, Ordering::Relaxed);
            let length = self.faults.outage_ms.load(Ordering::Relaxed);
            sessions.deaf_until = Some(Instant::now() + Duration::from_millis(length.into()));
            sessions.live.clear();
            return None;
        }
        let key = (request.netfn, request.command);
        let refused = self.faults.refuse.lock().unwrap().get(&key).copied();
        let odd = self.faults.mood(key).map(Some).or(refused);
        let (code, data) = match odd {
            Some(Some(code)) => (code, Vec::new()),
            Some(None) => return None,
            None => self.command(session, &request).await,
        };
        let answer = respond(&request, code, &data);
        session.sequence += 1;
        let packet = Plus::emit_sealed(
            &session.keys,
            PayloadType::Ipmi,
            session.console_id,
            session.sequence,
            rand::random(),
            &answer,
        );
        if request.netfn == ipmi::NETFN_APP && request.command == ipmi::CLOSE_SESSION {
            sessions.live.remove(&plus.session_id);
            self.seen.closed.fetch_add(1, Ordering::Relaxed);
        }
        Some(packet)
    }

    async fn command(&self, session: &mut Live, request: &Request<'_>) -> (u8, Vec<u8>) {
        use ipmi::completion::*;
        let done = (OK, Vec::new());
        if self.faults.busy.load(Ordering::Relaxed) > 0 {
            self.faults.busy.fetch_sub(1, Ordering::Relaxed);
            return (NODE_BUSY, Vec::new());
        }
        let needs_operator = matches!(
            (request.netfn, request.command),
            (
                ipmi::NETFN_CHASSIS,
                ipmi::CHASSIS_CONTROL | ipmi::SET_BOOT_OPTIONS
            )
        );
        if needs_operator && session.privilege < 3 {
            return (INSUFFICIENT_PRIVILEGE, Vec::new());
        }
        match (request.netfn, request.command, request.data) {
            (ipmi::NETFN_APP, ipmi::SET_SESSION_PRIVILEGE, [level, ..]) => {
                if *level > session.privilege_max {
                    return (0x81, Vec::new());
                }
                if *level != 0 {
                    session.privilege = *level;
                }
                (OK, vec![session.privilege])
            }
            (ipmi::NETFN_APP, ipmi::CLOSE_SESSION, _) => done,
            // Get Device ID: a BMC of no maker.
            (ipmi::NETFN_APP, 0x01, _) => {
                (OK, vec![0x20, 0x01, 0x01, 0x00, 0x02, 0x80, 0, 0, 0, 0, 0])
            }
            (ipmi::NETFN_CHASSIS, ipmi::GET_CHASSIS_STATUS, _) => {
                let power = u8::from(self.chassis.power().await);
                let bits = self.faults.power_bits.load(Ordering::Relaxed) as u8;
                (OK, vec![0x20 | bits | power, 0x00, 0x00])
            }
            (ipmi::NETFN_CHASSIS, ipmi::CHASSIS_CONTROL, [control, ..]) => {
                let control = control & 0x0f;
                self.seen.controls.lock().unwrap().push(control);
                match control {
                    _ if Faults::has(&self.faults.stuck) => {}
                    0 | 5 => self.chassis.set_power(false).await,
                    1 => self.chassis.set_power(true).await,
                    2 | 3 => {
                        // At once done, later true: as real BMCs do it.
                        let chassis = self.chassis.clone();
                        tokio::spawn(async move {
                            chassis.set_power(false).await;
                            tokio::time::sleep(Duration::from_secs(1)).await;
                            chassis.set_power(true).await;
                        });
                    }
                    _ => return (INVALID_FIELD, Vec::new()),
                }
                done
            }
            (ipmi::NETFN_CHASSIS, ipmi::SET_BOOT_OPTIONS, [5, flags @ ..]) if flags.len() >= 5 => {
                self.seen
                    .boot_flags
                    .lock()
                    .unwrap()
                    .copy_from_slice(&flags[..5]);
                let network = flags[0] & 0x80 != 0 && flags[1] & 0x3c == 0x04;
                self.chassis
                    .set_boot(if network { "pxe" } else { "default" })
                    .await;
                done
            }
            (ipmi::NETFN_CHASSIS, ipmi::SET_BOOT_OPTIONS, [0 | 3 | 4, ..]) => done,
            (ipmi::NETFN_CHASSIS, ipmi::GET_BOOT_OPTIONS, [5, ..]) => {
                let mut data = vec![1, 5];
                let mut flags = *self.seen.boot_flags.lock().unwrap();
                if self.chassis.boot().await == "pxe" {
                    flags[0] |= 0x80;
                    flags[1] = 0x04;
                } else {
                    flags[1] = 0;
                }
                data.extend(flags);
                (OK, data)
            }
            (ipmi::NETFN_CHASSIS, ipmi::GET_BOOT_OPTIONS, [parameter, ..]) => {
                (OK, vec![1, *parameter, 0, 0])
            }
            _ => (INVALID_COMMAND, Vec::new()),
        }
    }
}

fn exchange(half: &Half, system_id: u32) -> Option<Exchange<'_>> {
    let begun = half.rakp1.as_ref()?;
    Some(Exchange {
        suite: half.suite,
        console_id: half.console_id,
        system_id,
        console_random: begun.console_random,
        system_random: begun.system_random,
        system_guid: GUID,
        role: begun.role,
        user: &begun.user,
    })
}

fn respond(request: &Request<'_>, completion_code: u8, data: &[u8]) -> Vec<u8> {
    let Request {
        netfn,
        command,
        sequence,
        ..
    } = *request;
    Response {
        netfn: netfn | 1,
        command,
        sequence,
        completion_code,
        data,
    }
    .emit()
}

// ---------------------------------------------------------------- machines

/// A machine in memory that needs a moment to change its power.
#[allow(dead_code, reason = "used by the tests, not by the example")]
pub struct MemoryChassis {
    /// What it is, what it becomes, and when.
    state: Arc<Mutex<(bool, bool, Instant)>>,
    boot: Arc<Mutex<&'static str>>,
    delay: Duration,
}

#[allow(dead_code, reason = "used by the tests, not by the example")]
impl MemoryChassis {
    pub fn new(on: bool, delay: Duration) -> Self {
        Self {
            state: Arc::new(Mutex::new((on, on, Instant::now()))),
            boot: Arc::new(Mutex::new("default")),
            delay,
        }
    }

    fn now(&self) -> bool {
        let (is, becomes, at) = *self.state.lock().unwrap();
        if Instant::now() >= at { becomes } else { is }
    }
}

impl Chassis for MemoryChassis {
    fn power(&self) -> Answer<bool> {
        let on = self.now();
        Box::pin(async move { on })
    }

    fn set_power(&self, on: bool) -> Answer<()> {
        let is = self.now();
        let mut state = self.state.lock().unwrap();
        // A repeated command does not start the delay anew.
        if state.1 != on {
            *state = (is, on, Instant::now() + self.delay);
        }
        Box::pin(async {})
    }

    fn set_boot(&self, device: &'static str) -> Answer<()> {
        *self.boot.lock().unwrap() = device;
        Box::pin(async {})
    }

    fn boot(&self) -> Answer<String> {
        let device = self.boot.lock().unwrap().to_string();
        Box::pin(async move { device })
    }
}

/// A machine behind a program, called as ipmi_sim calls its `chassis_control`: `get power`, `get boot`
/// (answers `power:1`, `boot:pxe` on standard output), `set power 0|1`, `set boot pxe|default`.
#[allow(dead_code, reason = "used by the example, not by every test")]
pub struct ProgramChassis {
    pub program: PathBuf,
    pub arguments: Vec<String>,
}

#[allow(dead_code, reason = "used by the example, not by every test")]
impl ProgramChassis {
    fn call(&self, arguments: &[&str]) -> Answer<String> {
        let mut command = tokio::process::Command::new(&self.program);
        command
            .args(&self.arguments)
            .args(arguments)
            .kill_on_drop(true);
        command.stdin(std::process::Stdio::null());
        Box::pin(async move {
            let output = tokio::time::timeout(Duration::from_secs(10), command.output()).await;
            match output {
                Ok(Ok(output)) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
                _ => String::new(),
            }
        })
    }
}

impl Chassis for ProgramChassis {
    fn power(&self) -> Answer<bool> {
        let answer = self.call(&["get", "power"]);
        Box::pin(async move { answer.await.ends_with("power:1") })
    }

    fn set_power(&self, on: bool) -> Answer<()> {
        let answer = self.call(&["set", "power", if on { "1" } else { "0" }]);
        Box::pin(async move { drop(answer.await) })
    }

    fn set_boot(&self, device: &'static str) -> Answer<()> {
        let answer = self.call(&["set", "boot", device]);
        Box::pin(async move { drop(answer.await) })
    }

    fn boot(&self) -> Answer<String> {
        let answer = self.call(&["get", "boot"]);
        Box::pin(async move { answer.await.trim_start_matches("boot:").to_owned() })
    }
}

/// A machine in two files, `power` (0 or 1) and `boot`.
#[allow(dead_code, reason = "used by the example, not by every test")]
pub struct FileChassis {
    pub folder: PathBuf,
}

impl Chassis for FileChassis {
    fn power(&self) -> Answer<bool> {
        let text = std::fs::read_to_string(self.folder.join("power")).unwrap_or_default();
        Box::pin(async move { text.trim() == "1" })
    }

    fn set_power(&self, on: bool) -> Answer<()> {
        let _ = std::fs::write(self.folder.join("power"), if on { "1" } else { "0" });
        Box::pin(async {})
    }

    fn set_boot(&self, device: &'static str) -> Answer<()> {
        let _ = std::fs::write(self.folder.join("boot"), device);
        Box::pin(async {})
    }

    fn boot(&self) -> Answer<String> {
        let text = std::fs::read_to_string(self.folder.join("boot")).unwrap_or_default();
        Box::pin(async move { text.trim().to_owned() })
    }
}

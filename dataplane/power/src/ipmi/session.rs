//! One RMCP+ session over one UDP socket: open, ask, close, each bounded by a deadline.
//!
//! Retries: packets before the session are repeated as they are (same tag, IPMI v2.0 §13.16); a request
//! in the session keeps its rqSeq, by which the BMC knows it, and takes the next session sequence number
//! (§6.12.9). Answers must be authentic, inside the sequence window, and match rqSeq, NetFn and command;
//! everything else on the socket is counted and ignored.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use secrecy::ExposeSecret;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::command::{Command, completion};
use super::crypto::{Exchange, SessionKeys, Suite};
use super::handshake::{
    NAME_ONLY, OpenRequest, OpenResponse, Rakp1, Rakp2, Rakp34, status, suites_offered,
};
use super::wire::{Frame, PACKET_BYTES_MAX, PayloadType, Plus, Request, Response, Window};
use crate::parameters::IpmiParameters;

/// First wait for an answer; it doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// Times one packet is sent.
const SENDS_MAX: u32 = 4;
/// The suite list is a hint: a BMC that does not know the command costs at most this many sends.
const SENDS_FOR_SUITES: u32 = 2;
/// Octets of a password in IPMI 1.5.
const PASSWORD_BYTES_OLD: usize = 16;
/// 16 octets each; real BMCs fill one or two.
const SUITE_PARTS_MAX: u8 = 4;
/// Close is a courtesy: asked twice, briefly.
const CLOSE_WAIT: Duration = Duration::from_millis(200);

/// Why a step of a session failed, before it is known which BMC and which command.
#[derive(Debug)]
pub(super) enum Fault {
    NoAnswer,
    /// It opens a session, and then says nothing to this message.
    Mute(&'static str),
    Io(io::Error),
    /// RMCP+ or RAKP status code.
    Status(u8),
    /// RAKP 2 refuses who is asking, in words that name no reason.
    UserRefused,
    /// RAKP 2 does not prove the password.
    WrongPassword,
    /// RAKP 4 does not prove K_g.
    WrongKey,
    /// The BMC answered with algorithms that were not asked for.
    OtherSuite,
    Malformed,
}

impl Fault {
    /// Whether another cipher suite may do better.
    pub fn is_about_the_suite(&self) -> bool {
        matches!(
            self,
            Fault::NoAnswer
                | Fault::Mute(_)
                | Fault::OtherSuite
                | Fault::Malformed
                | Fault::UserRefused
                | Fault::Status(
                    status::INVALID_AUTHENTICATION
                        | status::INVALID_INTEGRITY
                        | status::NO_AUTHENTICATION
                        | status::NO_INTEGRITY
                        | status::INVALID_CONFIDENTIALITY
                        | status::NO_SUITE
                        | status::ILLEGAL_PARAMETER
                        // Suites may be kept for some privilege levels.
                        | status::INVALID_ROLE
                        | status::UNAUTHORIZED_ROLE,
                )
        )
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// An open session. Dropped without [`Session::close`] it sends a last Close Session and waits for nothing.
pub(super) struct Session {
    socket: UdpSocket,
    keys: SessionKeys,
    console_id: u32,
    system_id: u32,
    /// The last sequence number used towards the BMC.
    sequence: u32,
    /// The last rqSeq used, 6 bits.
    request: u8,
    window: Window,
    open: bool,
    /// The BMC has the first 16 octets of the password and no more.
    password_is_cut: bool,
}

/// Binds and connects a socket: the kernel then drops what does not come from the BMC.
pub(super) async fn connect(bmc: SocketAddr) -> Result<UdpSocket, Fault> {
    let any: SocketAddr = match bmc {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(bmc).await?;
    Ok(socket)
}

/// Asks, outside a session, which suites the BMC offers. `Ok(None)`: it did not say.
pub(super) async fn offered_suites(
    socket: &UdpSocket,
    deadline: Instant,
) -> Result<Option<Vec<Suite>>, Fault> {
    let mut records = Vec::new();
    for index in 0..SUITE_PARTS_MAX {
        let command = Command::cipher_suites(index);
        let request = Request {
            netfn: command.netfn,
            command: command.command,
            sequence: index,
            data: &command.data,
        };
        let packet = Frame::emit_plain15(&request.emit());
        let part = exchange(
            socket,
            SENDS_FOR_SUITES,
            deadline,
            || packet.clone(),
            |octets| {
                let payload = match Frame::parse(octets).ok()? {
                    Frame::Plain15 { payload, .. } => payload,
                    Frame::Plus(plus) => plus.open_plain().ok()?,
                    _ => return None,
                };
                let response = Response::parse(payload, true).ok()?;
                (answers(&response, &request)).then(|| match response.completion_code {
                    // The first octet is the channel.
                    completion::OK => response.data.get(1..).unwrap_or_default().to_vec(),
                    _ => Vec::new(),
                })
            },
        )
        .await;
        let part = match part {
            Ok(part) => part,
            Err(Fault::NoAnswer) if index == 0 => return Ok(None),
            // Some BMCs answer the first part only; what is known is enough.
            Err(Fault::NoAnswer) => break,
            Err(fault) => return Err(fault),
        };
        let last = part.len() < 16;
        records.extend(part);
        if last {
            break;
        }
    }
    Ok((!records.is_empty()).then(|| suites_offered(&records)))
}

fn answers(response: &Response<'_>, request: &Request<'_>) -> bool {
    response.netfn == request.netfn | 1
        && response.command == request.command
        && response.sequence == request.sequence
}

impl Session {
    /// Opens a session with `suite` and nothing else, up to RAKP 4. The session then has the lowest
    /// privilege; see [`Command::session_privilege`].
    pub async fn open(
        socket: UdpSocket,
        parameters: &IpmiParameters,
        suite: Suite,
        deadline: Instant,
    ) -> Result<Self, Fault> {
        // Never 0, which is "no session".
        let console_id = rand::random::<u32>() | 1;
        let tag = rand::random::<u8>();
        let open = OpenRequest {
            tag,
            // The same privilege as in RAKP 1: some BMCs hash the one and some the other.
            privilege: parameters.privilege as u8,
            console_id,
            algorithms: suite.algorithms(),
        };
        let packet = Plus::emit_plain(PayloadType::OpenRequest, &open.emit());
        let opened = exchange(
            &socket,
            SENDS_MAX,
            deadline,
            || packet.clone(),
            |octets| {
                let response =
                    OpenResponse::parse(plain(octets, PayloadType::OpenResponse)?).ok()?;
                // An error may come without our id.
                let ours = response.tag == tag
                    && (response.console_id == console_id || response.outcome.is_err());
                ours.then_some(response.outcome)
            },
        )
        .await?
        .map_err(Fault::Status)?;
        if opened.algorithms != suite.algorithms() {
            return Err(Fault::OtherSuite);
        }
        if opened.system_id == 0 {
            return Err(Fault::Malformed);
        }

        let user = parameters.user.as_bytes();
        let role = NAME_ONLY | parameters.privilege as u8;
        let console_random = rand::random::<[u8; 16]>();
        let tag = tag.wrapping_add(1);
        let rakp1 = Rakp1 {
            tag,
            system_id: opened.system_id,
            console_random,
            role,
            user,
        };
        let packet = Plus::emit_plain(PayloadType::Rakp1, &rakp1.emit());
        let (system_random, system_guid, code) = exchange(
            &socket,
            SENDS_MAX,
            deadline,
            || packet.clone(),
            |octets| {
                let rakp2 = Rakp2::parse(plain(octets, PayloadType::Rakp2)?).ok()?;
                let ours =
                    rakp2.tag == tag && (rakp2.console_id == console_id || rakp2.outcome.is_err());
                ours.then(|| {
                    rakp2
                        .outcome
                        .map(|p| (p.system_random, p.system_guid, p.code.to_vec()))
                })
            },
        )
        .await
        .map_err(|fault| mute(fault, "RAKP 1"))?
        .map_err(|code| match code {
            status::ILLEGAL_PARAMETER => Fault::UserRefused,
            code => Fault::Status(code),
        })?;

        let rakp = Exchange {
            suite,
            console_id,
            system_id: opened.system_id,
            console_random,
            system_random,
            system_guid,
            role,
            user,
        };
        let mut password = parameters.password.expose_secret().as_bytes();
        let tag = tag.wrapping_add(1);
        let proves = |password: &[u8]| {
            rakp.rakp2_code(password)
                .matches(&code, suite.digest_bytes())
        };
        // Passwords of IPMI 1.5 had 16 octets, and some BMCs have kept to that: they drop the rest when it is set.
        let cut = password.get(..PASSWORD_BYTES_OLD).unwrap_or(password);
        let password_is_cut = !proves(password) && proves(cut);
        if password_is_cut {
            password = cut;
        } else if !proves(password) {
            // Tell the BMC, so that it frees the session at once (§13.22), and wait for nothing.
            let outcome = Err(status::INVALID_CHECK_VALUE);
            let refusal = Rakp34 {
                tag,
                session_id: opened.system_id,
                outcome,
            };
            let _ = socket.try_send(&Plus::emit_plain(PayloadType::Rakp3, &refusal.emit()));
            return Err(Fault::WrongPassword);
        }
        let proof = rakp.rakp3_code(password);
        let rakp3 = Rakp34 {
            tag,
            session_id: opened.system_id,
            outcome: Ok(proof.octets()),
        };
        let packet = Plus::emit_plain(PayloadType::Rakp3, &rakp3.emit());
        let check = exchange(
            &socket,
            SENDS_MAX,
            deadline,
            || packet.clone(),
            |octets| {
                let rakp4 = Rakp34::parse(plain(octets, PayloadType::Rakp4)?).ok()?;
                let ours =
                    rakp4.tag == tag && (rakp4.session_id == console_id || rakp4.outcome.is_err());
                ours.then(|| rakp4.outcome.map(<[u8]>::to_vec))
            },
        )
        .await
        .map_err(|fault| mute(fault, "RAKP 3"))?
        .map_err(Fault::Status)?;

        let keys = rakp.keys(parameters.k_g.as_ref().map_or(password, |key| &key.0));
        if !rakp.rakp4_code(&keys).matches(&check, suite.code_bytes()) {
            return Err(Fault::WrongKey);
        }
        Ok(Self {
            socket,
            keys,
            console_id,
            system_id: opened.system_id,
            sequence: 0,
            request: rand::random::<u8>() & 0x3f,
            window: Window::default(),
            open: true,
            password_is_cut,
        })
    }

    /// Sends a command and waits for its answer: completion code and data.
    pub async fn ask(
        &mut self,
        command: &Command,
        skip_checksums: bool,
        deadline: Instant,
    ) -> Result<(u8, Vec<u8>), Fault> {
        self.ask_times(command, skip_checksums, SENDS_MAX, deadline)
            .await
    }

    async fn ask_times(
        &mut self,
        command: &Command,
        skip_checksums: bool,
        sends: u32,
        deadline: Instant,
    ) -> Result<(u8, Vec<u8>), Fault> {
        self.request = (self.request + 1) & 0x3f;
        let request = Request {
            netfn: command.netfn,
            command: command.command,
            sequence: self.request,
            data: &command.data,
        };
        let message = request.emit();
        let Self {
            socket,
            keys,
            console_id,
            system_id,
            sequence,
            window,
            ..
        } = self;
        exchange(
            socket,
            sends,
            deadline,
            || seal(keys, *system_id, sequence, &message),
            |octets| {
                let Ok(Frame::Plus(plus)) = Frame::parse(octets) else {
                    return None;
                };
                if plus.kind != PayloadType::Ipmi || plus.session_id != *console_id {
                    return None;
                }
                let payload = plus.open_sealed(keys).ok()?;
                // Only an authentic packet may move the window.
                if !window.take(plus.sequence) {
                    return None;
                }
                let response = Response::parse(&payload, !skip_checksums).ok()?;
                answers(&response, &request)
                    .then(|| (response.completion_code, response.data.to_vec()))
            },
        )
        .await
    }

    pub fn password_is_cut(&self) -> bool {
        self.password_is_cut
    }

    pub fn suite(&self) -> Suite {
        self.keys.suite()
    }

    /// Ends the session; at most 0.4 s. A BMC has few of them.
    pub async fn close(mut self) {
        let command = Command::close_session(self.system_id);
        for _ in 0..2 {
            let answer = self
                .ask_times(&command, true, 1, Instant::now() + CLOSE_WAIT)
                .await;
            if answer.is_ok() {
                break;
            }
        }
        self.open = false;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.open {
            let command = Command::close_session(self.system_id);
            let request = Request {
                netfn: command.netfn,
                command: command.command,
                sequence: (self.request + 1) & 0x3f,
                data: &command.data,
            };
            let packet = seal(
                &self.keys,
                self.system_id,
                &mut self.sequence,
                &request.emit(),
            );
            let _ = self.socket.try_send(&packet);
        }
    }
}

/// The next packet towards the BMC. Numbers start at 1 and skip 0 (§6.12.9).
fn seal(keys: &SessionKeys, system_id: u32, sequence: &mut u32, message: &[u8]) -> Vec<u8> {
    *sequence = sequence.checked_add(1).unwrap_or(1);
    Plus::emit_sealed(
        keys,
        PayloadType::Ipmi,
        system_id,
        *sequence,
        rand::random(),
        message,
    )
}

/// Silence after an answer is not the same as none.
fn mute(fault: Fault, to: &'static str) -> Fault {
    match fault {
        Fault::NoAnswer => Fault::Mute(to),
        fault => fault,
    }
}

/// What the network says of an earlier packet. A BMC that restarts, or whose port goes down with its machine's power
/// because both share it, is back a moment later.
fn may_pass(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionRefused | HostUnreachable | NetworkUnreachable
    )
}

/// The payload of a packet of the handshake.
fn plain(octets: &[u8], kind: PayloadType) -> Option<&[u8]> {
    match Frame::parse(octets) {
        Ok(Frame::Plus(plus)) if plus.kind == kind => plus.open_plain().ok(),
        _ => None,
    }
}

/// Sends, and waits until `accept` takes a packet; sends again when a wait ends without one.
async fn exchange<T>(
    socket: &UdpSocket,
    sends: u32,
    deadline: Instant,
    mut packet: impl FnMut() -> Vec<u8>,
    mut accept: impl FnMut(&[u8]) -> Option<T>,
) -> Result<T, Fault> {
    let mut octets = [0; PACKET_BYTES_MAX + 1];
    let mut wait = RETRY_FIRST;
    for _ in 0..sends {
        if let Err(error) = socket.send(&packet()).await
            && !may_pass(&error)
        {
            return Err(error.into());
        }
        let until = (Instant::now() + wait).min(deadline);
        while let Ok(received) = timeout_at(until, socket.recv(&mut octets)).await {
            match received {
                Ok(length) => match accept(&octets[..length]) {
                    Some(answer) => return Ok(answer),
                    None => tracing::trace!(length, "packet ignored"),
                },
                Err(error) if may_pass(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if Instant::now() >= deadline {
            break;
        }
        wait = (wait * 2).min(RETRY_LONGEST);
    }
    Err(Fault::NoAnswer)
}

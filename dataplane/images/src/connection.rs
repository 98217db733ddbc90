//! One HTTP connection: request heads in, steps out.
//!
//! ```text
//!  Reading --head--> Finding (the catalog said Later) --> Sending (waits for pieces) --> Reading | Close
//!     '-- not ours --> HandOff
//! ```
//! One request at a time; further ones wait in `input` (pipelining of the simplest kind). One send is in flight at a
//! time, at most `chunk_bytes` long: that is the fairness between connections. No response head goes out before the
//! first octet of its body is at hand, so that a fill that fails is a 503 and not a broken body.
//!
//! A send that failed is no send of nothing: whoever reports one says that the connection is broken, and a report of 0
//! octets ends it too. What counts as progress is what the client has taken, not what left for its socket: in each
//! stretch of `stall` it takes `take_bytes_min` octets or is dropped, so that neither silence nor one octet now and then
//! holds a place for ever.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use wire::http1::{HEAD_BYTES_MAX, Method, RequestHead, ResponseHead, Status};

use crate::object::{Object, State as ObjectState};

/// Octets a client may send ahead of our answers. More closes the connection.
pub const PIPELINE_BYTES_MAX: usize = 2 * HEAD_BYTES_MAX;
/// A body up to this size leaves with its head, in one send.
const INLINE_BYTES_MAX: usize = 16 * 1024;
const RETRY_AFTER_SECS: u32 = 2;
/// Longest path kept for `Served`.
const SERVED_PATH_BYTES_MAX: usize = 200;

/// What the catalog is asked.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Without query, scheme and authority.
    pub path: &'a str,
    /// As sent in `Host`; UEFI HTTP boot leaves the port out.
    pub host: Option<&'a str>,
    /// GET or HEAD; anything else can only be not ours or 405.
    pub readable: bool,
}

#[derive(Clone, Debug)]
pub enum Found {
    Object(Arc<Object>),
    Bytes {
        body: Bytes,
        content_type: &'static str,
    },
    NotFound,
    /// Not known yet; the shard calls `step` again when it is.
    Later,
    /// Over a limit: 503 with Retry-After.
    Busy,
    /// Another part of the rack answers this.
    NotOurs,
}

/// What a path means, from the shard's snapshot.
pub trait Catalog {
    fn find(&mut self, asked: &Asked<'_>) -> Found;
}

/// What the caller does next.
#[derive(Debug)]
pub enum Step {
    /// Nothing until more octets arrive or the deadline passes.
    Receive,
    /// Nothing until the send in flight makes progress or the deadline passes.
    Busy,
    /// Nothing until the catalog may know more.
    WaitAnswer,
    /// Send some or all of these octets, then report with `on_sent`. `more`: a body follows at once.
    SendBytes { bytes: Bytes, more: bool },
    /// Send some or all of these octets of the object's file, then report with `on_sent`.
    SendFile {
        object: Arc<Object>,
        offset: u64,
        length: u64,
    },
    /// Nothing until this piece is present or the object failed. `want`: nobody is filling it, ask for it.
    WaitFor {
        object: Arc<Object>,
        piece: u32,
        want: bool,
    },
    /// Take the socket away from the ring and give it, with these octets in front, to its owner.
    HandOff { read: Vec<u8> },
    /// Everything is sent: close in good order.
    Close,
    /// Drop the connection at once, unsent octets and all.
    Abort,
}

/// A response that left completely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    pub path: Box<str>,
    pub sha256: Option<[u8; 32]>,
    /// Octets of the body (of the range).
    pub bytes: u64,
    pub whole: bool,
}

/// What a connection holds its place for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// No whole head has come yet.
    New,
    /// Between requests.
    Idle,
    /// It was asked for something.
    Busy,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Octets per send: one connection's share of a turn.
    pub chunk_bytes: u64,
    /// For the first head, from the connection's beginning to its last octet.
    pub head: Duration,
    /// Between requests, the next head included.
    pub idle: Duration,
    /// How often it is looked at what a client takes, and the least that it has to take from one look to the next.
    pub stall: Duration,
    pub take_bytes_min: u64,
    /// For the catalog's answer.
    pub find: Duration,
    /// For the next piece of a file.
    pub fill: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            chunk_bytes: 512 * 1024,
            head: Duration::from_secs(10),
            idle: Duration::from_secs(30),
            stall: Duration::from_secs(20),
            // 1 KiB/s: slower than any network that machines boot over.
            take_bytes_min: 20 * 1024,
            find: Duration::from_secs(3),
            fill: Duration::from_secs(60),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub requests: u64,
    pub served: u64,
    pub body_bytes: u64,
    pub not_found: u64,
    /// 400, 405, 431, 505.
    pub refused: u64,
    pub range_refused: u64,
    /// 503: over a limit, no answer in time, or the fill failed.
    pub unavailable: u64,
    pub handed_off: u64,
    /// Closed because a head did not come whole in its time: the first, or the next.
    pub heads_late: u64,
    pub idle: u64,
    /// Dropped because the client took nothing, or too little.
    pub stalled: u64,
    /// Dropped in mid-body because the rest of the file did not come.
    pub broken: u64,
    /// Dropped for sending too much ahead.
    pub flooded: u64,
}

#[derive(Debug)]
enum State {
    Reading,
    /// The head at the front of `input` waits for the catalog.
    Finding,
    Sending(Response),
    /// Nothing more may happen.
    Ended,
}

#[derive(Debug)]
struct Response {
    /// What is left to send of the head, with a small body behind it.
    head: Bytes,
    /// Octets of it are on their way: it can't become another one.
    begun: bool,
    body: Body,
    /// Next octet of the body to send; `offset <= end`.
    offset: u64,
    end: u64,
    keep_alive: bool,
    /// What `on_sent` still has to report.
    in_flight: u64,
    clock: Clock,
    /// The object's failures when the request came.
    failures: u32,
    served: Option<Served>,
}

/// What the deadline of a response is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    /// Nothing was sent or waited for yet.
    Unset,
    /// The next piece; counts from when the wait began.
    Piece,
    /// The client's taking.
    Taking,
}

#[derive(Debug)]
enum Body {
    None,
    Bytes(Bytes),
    Object(Arc<Object>),
}

#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    /// Octets received and not used yet.
    input: Vec<u8>,
    state: State,
    ended_by_peer: bool,
    deadline: Instant,
    /// A head has come whole before.
    asked: bool,
    /// Octets that left for the socket, those that the client had not taken of them when it was last looked at, and those
    /// that it had when the stretch began.
    sent: u64,
    queued: u64,
    taken: u64,
    served: Option<Served>,
}

impl Connection {
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            input: Vec::new(),
            state: State::Reading,
            ended_by_peer: false,
            deadline: now + limits.head,
            asked: false,
            sent: 0,
            queued: 0,
            taken: 0,
            served: None,
        }
    }

    /// Answers 503 whatever is asked, and closes. Only between requests, or after a `HandOff` that could not be.
    pub fn refuse(&mut self, now: Instant, counters: &mut Counters) {
        counters.unavailable += 1;
        self.input.clear();
        self.answer_status(Status::Unavailable, false, now);
    }

    /// Between requests, with nothing received of the next one.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Reading) && self.input.is_empty()
    }

    /// What the connection holds its place for.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Reading if self.asked => Phase::Idle,
            State::Reading => Phase::New,
            State::Finding | State::Sending(_) | State::Ended => Phase::Busy,
        }
    }

    /// When `step` must be called again if nothing else happens.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// `step` is about to judge what the client takes: say before it, with `on_queued`, what it has not taken.
    pub fn wants_queued(&self, now: Instant) -> bool {
        matches!(self.state, State::Sending(_)) && self.deadline <= now
    }

    /// So many octets of those sent are not with the client yet.
    pub fn on_queued(&mut self, queued: u64) {
        self.queued = queued;
    }

    /// Octets arrived. Call `step` next.
    pub fn on_bytes(&mut self, octets: &[u8], counters: &mut Counters) {
        self.input.extend_from_slice(octets);
        if self.input.len() > PIPELINE_BYTES_MAX && !matches!(self.state, State::Reading) {
            counters.flooded += 1;
            self.state = State::Ended;
        }
    }

    /// The client will send no more. What it asked for is still answered.
    pub fn on_end(&mut self) {
        self.ended_by_peer = true;
    }

    /// The send in flight is over: so many octets left, not always all. None is a broken connection.
    pub fn on_sent(&mut self, sent: u64, counters: &mut Counters) {
        let State::Sending(response) = &mut self.state else {
            return;
        };
        if response.in_flight == 0 {
            return;
        }
        let sent = sent.min(response.in_flight);
        if sent == 0 {
            self.state = State::Ended;
            return;
        }
        self.sent += sent;
        response.in_flight = 0;
        if response.head.is_empty() {
            response.offset += sent;
            counters.body_bytes += sent;
        } else {
            response.head.advance(sent as usize); // no more than its length
        }
    }

    /// The last response that left completely, once.
    pub fn take_served(&mut self) -> Option<Served> {
        self.served.take()
    }

    /// Decides what happens next. Call it after every event, and when the deadline has passed.
    pub fn step(
        &mut self,
        now: Instant,
        catalog: &mut impl Catalog,
        counters: &mut Counters,
    ) -> Step {
        loop {
            match &mut self.state {
                State::Ended => return Step::Abort,
                State::Reading | State::Finding => {
                    if let Some(step) = self.read(now, catalog, counters) {
                        return step;
                    }
                }
                State::Sending(response) => {
                    let late = now >= self.deadline;
                    if response.in_flight > 0 {
                        let taken = self.sent.saturating_sub(self.queued);
                        if late && taken < self.taken + self.limits.take_bytes_min {
                            counters.stalled += 1;
                            return Step::Abort;
                        }
                        if late {
                            self.taken = taken;
                            self.deadline = now + self.limits.stall;
                        }
                        return Step::Busy;
                    }
                    let late = late && response.clock == Clock::Piece;
                    if let Some(step) = response.next(late, &self.limits, counters) {
                        let (clock, time) = match step {
                            Step::SendBytes { .. } | Step::SendFile { .. } => {
                                (Clock::Taking, self.limits.stall)
                            }
                            Step::WaitFor { .. } => (Clock::Piece, self.limits.fill),
                            _ => return step,
                        };
                        if response.clock != clock {
                            response.clock = clock;
                            self.deadline = now + time;
                        }
                        return step;
                    }
                    let served = response.served.take();
                    if served.is_some() {
                        counters.served += 1;
                    }
                    self.served = served;
                    if !response.keep_alive {
                        self.state = State::Ended;
                        return Step::Close;
                    }
                    self.state = State::Reading;
                    self.deadline = now + self.limits.idle;
                }
            }
        }
    }

    /// Looks for a request at the front of `input`. `None`: the state has changed, go on.
    fn read(
        &mut self,
        now: Instant,
        catalog: &mut impl Catalog,
        counters: &mut Counters,
    ) -> Option<Step> {
        let head = match RequestHead::parse(&self.input) {
            Ok(Some(head)) => head,
            Ok(None) if self.ended_by_peer => {
                self.state = State::Ended;
                return Some(Step::Close);
            }
            Ok(None) if now >= self.deadline => {
                if self.asked && self.input.is_empty() {
                    counters.idle += 1;
                } else {
                    counters.heads_late += 1;
                }
                self.state = State::Ended;
                return Some(Step::Close);
            }
            Ok(None) => return Some(Step::Receive),
            Err(refused) => {
                counters.refused += 1;
                self.answer_status(refused.status(), false, now);
                return None;
            }
        };
        self.asked = true;
        let waited = matches!(self.state, State::Finding);
        let readable = matches!(head.method, Method::Get | Method::Head);
        let path = head.path();
        let found = catalog.find(&Asked {
            path,
            host: head.host,
            readable,
        });
        if matches!(found, Found::NotOurs) {
            counters.handed_off += 1;
            self.state = State::Ended;
            return Some(Step::HandOff {
                read: std::mem::take(&mut self.input),
            });
        }
        if matches!(found, Found::Later) && readable && !head.has_body {
            if !waited {
                self.state = State::Finding;
                self.deadline = now + self.limits.find;
                return Some(Step::WaitAnswer);
            }
            if now < self.deadline {
                return Some(Step::WaitAnswer);
            }
        }
        counters.requests += 1;
        let refusal = if !readable {
            Some(Status::MethodNotAllowed)
        } else if head.has_body {
            Some(Status::BadRequest)
        } else {
            match &found {
                Found::NotFound => Some(Status::NotFound),
                Found::Later | Found::Busy => Some(Status::Unavailable),
                _ => None,
            }
        };
        if let Some(status) = refusal {
            // A body we do not read would be taken for the next request.
            let keep_alive = head.keep_alive && !head.has_body && readable;
            match status {
                Status::NotFound => counters.not_found += 1,
                Status::Unavailable => counters.unavailable += 1,
                _ => counters.refused += 1,
            }
            let used = head.head_bytes;
            self.input.drain(..used);
            self.answer_status(status, keep_alive, now);
            return None;
        }
        let response = Response::new(&head, found, counters);
        let used = head.head_bytes;
        self.input.drain(..used);
        self.state = State::Sending(response);
        self.deadline = now + self.limits.fill;
        None
    }

    /// An answer without a body.
    fn answer_status(&mut self, status: Status, keep_alive: bool, now: Instant) {
        self.state = State::Sending(Response::status(status, None, keep_alive));
        self.deadline = now + self.limits.stall;
    }
}

impl Response {
    fn status(status: Status, range: Option<(u64, u64)>, keep_alive: bool) -> Self {
        let mut head = Vec::with_capacity(256);
        ResponseHead {
            status,
            content_bytes: 0,
            content_type: "text/plain",
            range,
            etag: None,
            keep_alive,
            retry_after_secs: (status == Status::Unavailable).then_some(RETRY_AFTER_SECS),
        }
        .emit(&mut head);
        Self {
            head: head.into(),
            begun: false,
            body: Body::None,
            offset: 0,
            end: 0,
            keep_alive,
            in_flight: 0,
            clock: Clock::Unset,
            failures: 0,
            served: None,
        }
    }

    /// The answer to a request whose content is known. `found` is an object or bytes.
    fn new(request: &RequestHead<'_>, found: Found, counters: &mut Counters) -> Self {
        let (body, size_bytes, content_type, sha256) = match found {
            Found::Object(object) => {
                object.count_use();
                let (size, sha256) = (object.size_bytes(), *object.sha256());
                (
                    Body::Object(object),
                    size,
                    "application/octet-stream",
                    Some(sha256),
                )
            }
            Found::Bytes { body, content_type } => {
                let size = body.len() as u64;
                (Body::Bytes(body), size, content_type, None)
            }
            Found::NotFound | Found::Later | Found::Busy | Found::NotOurs => {
                return Self::status(Status::NotFound, None, request.keep_alive);
            }
        };
        let range = request.range.map(|range| range.resolve(size_bytes));
        let (status, offset, length) = match range {
            // A range is only defined for GET (RFC 9110 §14.2).
            Some(Some((offset, length))) if request.method == Method::Get => {
                (Status::PartialContent, offset, length)
            }
            Some(None) if request.method == Method::Get => {
                counters.range_refused += 1;
                let range = Some((0, size_bytes));
                return Self::status(Status::RangeNotSatisfiable, range, request.keep_alive);
            }
            _ => (Status::Ok, 0, size_bytes),
        };
        let mut etag = String::new();
        for octet in sha256.iter().flatten() {
            let _ = write!(etag, "{octet:02x}"); // a String takes everything
        }
        let mut head = Vec::with_capacity(512);
        ResponseHead {
            status,
            content_bytes: length,
            content_type,
            range: (status == Status::PartialContent).then_some((offset, size_bytes)),
            etag: sha256.is_some().then_some(&etag),
            keep_alive: request.keep_alive,
            retry_after_secs: None,
        }
        .emit(&mut head);
        let mut response = Self {
            head: Bytes::new(),
            begun: false,
            failures: match &body {
                Body::Object(object) => object.failures(),
                _ => 0,
            },
            body,
            offset,
            end: offset + length,
            keep_alive: request.keep_alive,
            in_flight: 0,
            clock: Clock::Unset,
            served: None,
        };
        if request.method == Method::Head {
            response.body = Body::None;
            response.end = offset;
        } else {
            let path = request.path();
            let cut = path.floor_char_boundary(SERVED_PATH_BYTES_MAX);
            response.served = Some(Served {
                path: path[..cut].into(),
                sha256,
                bytes: length,
                whole: length == size_bytes,
            });
            if let Body::Bytes(bytes) = &response.body
                && length as usize <= INLINE_BYTES_MAX
            {
                head.extend_from_slice(&bytes[offset as usize..(offset + length) as usize]);
                counters.body_bytes += length;
                response.offset = response.end;
            }
        }
        response.head = head.into();
        response
    }

    /// What to send or wait for; `None` when all has left. `late`: the wait for a piece has been too long.
    fn next(&mut self, late: bool, limits: &Limits, counters: &mut Counters) -> Option<Step> {
        let length = (self.end - self.offset).min(limits.chunk_bytes);
        if length > 0
            && let Body::Object(object) = &self.body
        {
            let available = object.available(self.offset, length);
            if available == 0 {
                return Some(self.wait(late, counters));
            }
            if self.head.is_empty() {
                let object = Arc::clone(object);
                self.in_flight = available;
                return Some(Step::SendFile {
                    object,
                    offset: self.offset,
                    length: available,
                });
            }
        }
        if !self.head.is_empty() {
            return Some(self.send_head(length > 0));
        }
        if length == 0 {
            return None;
        }
        let Body::Bytes(bytes) = &self.body else {
            return None; // an object was handled above, no body has no length
        };
        self.in_flight = length;
        let start = self.offset as usize;
        let bytes = bytes.slice(start..start + length as usize);
        Some(Step::SendBytes {
            bytes,
            more: self.offset + length < self.end,
        })
    }

    /// The next octets of the object are not here.
    fn wait(&mut self, late: bool, counters: &mut Counters) -> Step {
        let Body::Object(object) = &self.body else {
            return Step::Abort;
        };
        let failed = object.failures() != self.failures;
        if !failed && !late {
            let want = matches!(
                object.state(),
                ObjectState::Absent | ObjectState::Failed | ObjectState::Damaged
            );
            let piece = object.piece_at(self.offset);
            return Step::WaitFor {
                object: Arc::clone(object),
                piece,
                want,
            };
        }
        if self.begun {
            counters.broken += 1;
            return Step::Abort;
        }
        counters.unavailable += 1;
        *self = Self::status(Status::Unavailable, None, self.keep_alive);
        self.send_head(false)
    }

    fn send_head(&mut self, more: bool) -> Step {
        self.begun = true;
        self.in_flight = self.head.len() as u64;
        Step::SendBytes {
            bytes: self.head.clone(),
            more,
        }
    }
}

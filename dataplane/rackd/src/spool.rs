//! The spool on disk: facts that no region has taken yet survive the rack (`lease::spool` is the format).
//!
//! One thread owns the file: it appends and fsyncs what has gathered, so that the link thread never waits for a disk,
//! and reports to the lease machine with [`Input`]s. A damaged file is set aside and a new spool id taken, upon which the region
//! quarantines what the lost facts may have been about. Does not know what an entry means.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use lease::SpoolId;
use lease::rack::{Input, Start};
use lease::spool::{
    Entry, FILE_BYTES_MAX, FRAME_RECORDS_MAX, HEADER_BYTES, Record, SpoolError, encode_frame,
    encode_header, first_seq, replay,
};
use rustix::fs::FlockOperation;

const FILE: &str = "leases.spool";
const NEW_FILE: &str = "leases.spool.new";
const LOCK_FILE: &str = "leases.lock";
/// An empty spool whose file is larger than this begins anew.
const EMPTY_BYTES_MAX: u64 = 4 << 10;
/// A file above this is written anew with what still counts, if that is a quarter of it at most.
const COMPACT_BYTES_MIN: u64 = 16 << 20;
/// Octets that an entry takes on disk, generously.
const ENTRY_BYTES: u64 = 256;
/// Incarnations are the upper half of a seq, which the region keeps as a signed 64-bit number.
const INCARNATION_MAX: u32 = i32::MAX as u32;

/// Why the spool can't be opened at all. (A damaged file is no error: see [`Opened::fault`].)
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another rackd")]
    InUse { path: PathBuf },
    #[error("opening the spool {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What was found, and where the lease machine begins.
pub struct Opened {
    pub start: Start,
    /// The file that was there can't be used and was set aside. An operator should know.
    pub fault: Option<(SpoolError, PathBuf)>,
    pub spool: Spool,
}

/// The file and what it holds.
pub struct Spool {
    folder: PathBuf,
    file: File,
    bytes: u64,
    spool_id: SpoolId,
    incarnation: u32,
    live: BTreeMap<u64, Entry>,
    /// A write failed: what the file ends with is not known. Nothing is appended until it was written anew.
    broken: bool,
    /// Held as long as the spool is open.
    _lock: File,
}

/// Opens or makes the spool in `folder`. Blocks; to be called before the link thread starts.
pub fn open(folder: &Path) -> Result<Opened, OpenError> {
    open_in(folder).map_err(|source| {
        let path = folder.join(FILE);
        if source.kind() == io::ErrorKind::WouldBlock {
            OpenError::InUse { path }
        } else {
            OpenError::Io { path, source }
        }
    })
}

fn open_in(folder: &Path) -> io::Result<Opened> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    let lock = private()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join(LOCK_FILE))?;
    rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
    let path = folder.join(FILE);
    let mut fault = None;
    match read(&path)? {
        None => {}
        Some(Ok(found)) if found.incarnation < INCARNATION_MAX => {
            let file = private().append(true).open(&path)?;
            file.set_len(found.valid_bytes as u64)?;
            let mut spool = Spool {
                folder: folder.to_owned(),
                file,
                bytes: found.valid_bytes as u64,
                spool_id: found.spool_id,
                incarnation: found.incarnation + 1,
                live: found
                    .entries
                    .into_iter()
                    .map(|entry| (entry.seq, entry))
                    .collect(),
                broken: false,
                _lock: lock,
            };
            // On disk before any seq of this incarnation is used.
            spool.write_frame(&[Record::Opened {
                incarnation: spool.incarnation,
            }])?;
            return Ok(Opened {
                start: spool.start(),
                fault: None,
                spool,
            });
        }
        Some(found) => {
            let error = found.err().unwrap_or(SpoolError::Incarnation);
            fault = Some((error, set_aside(folder, &path)?));
        }
    }
    let spool_id = SpoolId(rand::random());
    let file = write_anew(folder, spool_id, 1, std::iter::empty())?;
    let spool = Spool {
        folder: folder.to_owned(),
        bytes: file.metadata()?.len(),
        file,
        spool_id,
        incarnation: 1,
        live: BTreeMap::new(),
        broken: false,
        _lock: lock,
    };
    Ok(Opened {
        start: spool.start(),
        fault,
        spool,
    })
}

/// None: there is no file.
fn read(path: &Path) -> io::Result<Option<Result<lease::spool::Replay, SpoolError>>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if file.metadata()?.len() > FILE_BYTES_MAX {
        return Ok(Some(Err(SpoolError::TooLarge)));
    }
    let mut octets = Vec::new();
    file.read_to_end(&mut octets)?;
    Ok(Some(replay(&octets)))
}

/// Moves an unusable file out of the way, over an older one of its kind.
fn set_aside(folder: &Path, path: &Path) -> io::Result<PathBuf> {
    let aside = folder.join(format!("{FILE}.damaged"));
    std::fs::rename(path, &aside)?;
    sync_folder(folder)?;
    Ok(aside)
}

/// Writes a whole file beside the old one, and puts it in its place once it is on disk.
fn write_anew<'e>(
    folder: &Path,
    spool_id: SpoolId,
    incarnation: u32,
    entries: impl Iterator<Item = &'e Entry>,
) -> io::Result<File> {
    let path = folder.join(NEW_FILE);
    let written = write_beside(&path, spool_id, incarnation, entries);
    if let Err(error) = written.and_then(|()| std::fs::rename(&path, folder.join(FILE))) {
        // Half a file on a full disk would keep it full.
        let _ = std::fs::remove_file(&path);
        return Err(error);
    }
    sync_folder(folder)?;
    // Appends go to the end, whatever happens.
    private().append(true).open(folder.join(FILE))
}

fn write_beside<'e>(
    path: &Path,
    spool_id: SpoolId,
    incarnation: u32,
    entries: impl Iterator<Item = &'e Entry>,
) -> io::Result<()> {
    let mut octets = encode_header(spool_id, incarnation).to_vec();
    let records: Vec<Record> = entries.map(|entry| Record::Entry(entry.clone())).collect();
    for records in records.chunks(FRAME_RECORDS_MAX) {
        encode_frame(spool_id, records, &mut octets);
    }
    let mut file = private()
        .create(true)
        .write(true)
        .truncate(true)
        .open(path)?;
    file.write_all(&octets)?;
    file.sync_all()
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Leases tell which machines there are: for this user only.
fn private() -> OpenOptions {
    let mut options = File::options();
    options.mode(0o600);
    options
}

impl Spool {
    fn start(&self) -> Start {
        let entries = self.live.values().cloned().collect();
        Start {
            spool_id: self.spool_id,
            seq: first_seq(self.incarnation),
            entries,
        }
    }

    /// One frame, one fsync.
    fn write_frame(&mut self, records: &[Record]) -> io::Result<()> {
        let mut octets = Vec::new();
        encode_frame(self.spool_id, records, &mut octets);
        self.broken = true;
        self.file.write_all(&octets)?;
        self.file.sync_data()?;
        self.broken = false;
        self.bytes += octets.len() as u64;
        for record in records {
            match record {
                Record::Entry(entry) => drop(self.live.insert(entry.seq, entry.clone())),
                Record::Removed(seqs) => seqs.iter().for_each(|seq| drop(self.live.remove(seq))),
                Record::Opened { .. } => {}
            }
        }
        Ok(())
    }

    /// Shortens a file that holds little or nothing any more.
    fn tidy(&mut self) -> io::Result<()> {
        let empty = self.live.is_empty() && self.bytes > EMPTY_BYTES_MAX + HEADER_BYTES as u64;
        let sparse =
            self.bytes > COMPACT_BYTES_MIN && self.live.len() as u64 * ENTRY_BYTES * 4 < self.bytes;
        if empty || sparse {
            self.rewrite()
        } else {
            Ok(())
        }
    }

    fn rewrite(&mut self) -> io::Result<()> {
        self.broken = true;
        self.file = write_anew(
            &self.folder,
            self.spool_id,
            self.incarnation,
            self.live.values(),
        )?;
        self.bytes = self.file.metadata()?.len();
        self.broken = false;
        Ok(())
    }

    fn replace(&mut self) -> io::Result<()> {
        self.broken = true;
        set_aside(&self.folder, &self.folder.join(FILE))?;
        (self.spool_id, self.incarnation) = (SpoolId(rand::random()), 1);
        self.live.clear();
        self.rewrite()
    }
}

// ---------------------------------------------------------------- the thread

enum Job {
    Append(Entry),
    Remove(Vec<u64>),
    Reset,
    Replace,
}

/// The spool's thread. Ends, with all jobs done, when this is dropped.
pub struct SpoolThread {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl SpoolThread {
    /// `report` carries [`Input`]s to the lease machine; it is called on the spool's thread and must not block.
    pub fn start(spool: Spool, report: impl Fn(Input) + Send + 'static) -> io::Result<SpoolThread> {
        let (jobs, queue) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("spool".into())
            .spawn(move || work(spool, &queue, &report))?;
        Ok(SpoolThread {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// `Action::AppendSpool`. Answered by `Input::SpoolDurable` or `Input::SpoolFailed`. The lease machine bounds how many
    /// are under way (`lease::rack::SPOOL_ENTRIES_MAX`).
    pub fn append(&self, entry: Entry) {
        self.send(Job::Append(entry));
    }

    /// `Action::RemoveSpool`.
    pub fn remove(&self, seqs: Vec<u64>) {
        self.send(Job::Remove(seqs));
    }

    /// `Action::ResetSpool`: writes the file anew, under the same spool id.
    pub fn reset(&self) {
        self.send(Job::Reset);
    }

    /// `Action::ReplaceSpool`: sets the file aside and begins a new one with a new id.
    pub fn replace(&self) {
        self.send(Job::Replace);
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread lives as long as the sender, so nothing is lost here.
            jobs.send(job).ok();
        }
    }
}

impl Drop for SpoolThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn work(mut spool: Spool, queue: &mpsc::Receiver<Job>, report: &impl Fn(Input)) {
    while let Ok(first) = queue.recv() {
        let mut jobs = vec![first];
        jobs.extend(queue.try_iter().take(FRAME_RECORDS_MAX - 1));
        let mut records = Vec::new();
        for job in jobs {
            match job {
                Job::Append(entry) => records.push(Record::Entry(entry)),
                Job::Remove(seqs) => {
                    for seqs in seqs.chunks(FRAME_RECORDS_MAX) {
                        records.push(Record::Removed(seqs.to_vec()));
                    }
                }
                Job::Reset | Job::Replace => {
                    append(&mut spool, std::mem::take(&mut records), report);
                    let replaced = if matches!(job, Job::Reset) {
                        spool.rewrite()
                    } else {
                        spool.replace()
                    };
                    report_replaced(&spool, replaced, report);
                }
            }
        }
        append(&mut spool, records, report);
    }
}

/// Writes what has gathered; the entries are reported once they are on disk.
fn append(spool: &mut Spool, records: Vec<Record>, report: &impl Fn(Input)) {
    if records.is_empty() {
        return;
    }
    let entries = records
        .iter()
        .filter(|record| matches!(record, Record::Entry(_)))
        .count();
    if spool.broken {
        // Forget what was taken, so that writing the file anew leaves it out.
        for record in &records {
            if let Record::Removed(seqs) = record {
                seqs.iter().for_each(|seq| drop(spool.live.remove(seq)));
            }
        }
        if entries > 0 {
            report(Input::SpoolFailed);
        }
        return;
    }
    match spool.write_frame(&records) {
        Ok(()) => {
            for record in records {
                if let Record::Entry(entry) = record {
                    report(Input::SpoolDurable { seq: entry.seq });
                }
            }
            // The facts are safe; that the file stays long is no harm yet.
            if let Err(error) = spool.tidy() {
                tracing::error!(%error, "shortening the spool");
                report(Input::SpoolFailed);
            }
        }
        Err(error) => {
            tracing::error!(%error, "writing the spool");
            report(Input::SpoolFailed);
        }
    }
}

fn report_replaced(spool: &Spool, replaced: io::Result<()>, report: &impl Fn(Input)) {
    match replaced {
        Ok(()) => report(Input::SpoolReplaced {
            spool_id: spool.spool_id,
            seq: first_seq(spool.incarnation),
        }),
        Err(error) => {
            tracing::error!(%error, "beginning the spool anew");
            report(Input::SpoolFailed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lease::{BlockId, Client, ClientKey, Epoch, Write, WriteKind};

    use super::*;

    fn entry(seq: u64) -> Entry {
        let client = Client {
            vlan: 5001,
            key: ClientKey::Mac([2, 0, 0, 0, 0, 1]),
        };
        let kind = WriteKind::Grant {
            client,
            lease: Duration::from_secs(600),
            hostname: "h".into(),
        };
        let address = "10.0.0.9".parse().unwrap();
        Entry {
            seq,
            write: Write {
                block: BlockId(1),
                epoch: Epoch(1),
                address,
                kind,
            },
        }
    }

    /// Runs the thread over `jobs` and returns what it reported.
    fn run(spool: Spool, jobs: impl FnOnce(&SpoolThread)) -> Vec<Input> {
        let (sender, reports) = mpsc::channel();
        let thread = SpoolThread::start(spool, move |input| sender.send(input).unwrap()).unwrap();
        jobs(&thread);
        drop(thread);
        reports.try_iter().collect()
    }

    fn seqs(start: &Start) -> Vec<u64> {
        start.entries.iter().map(|entry| entry.seq).collect()
    }

    #[test]
    fn what_was_reported_durable_is_there_after_a_restart_and_what_was_removed_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        assert_eq!(
            (first.start.seq, first.start.entries.len()),
            (first_seq(1), 0)
        );
        let reports = run(first.spool, |thread| {
            (1..=3).for_each(|seq| thread.append(entry(seq)));
            thread.remove(vec![2]);
        });
        assert_eq!(reports, [1, 2, 3].map(|seq| Input::SpoolDurable { seq }));
        let again = open(folder.path()).unwrap();
        assert_eq!(seqs(&again.start), [1, 3]);
        assert_eq!(
            (again.start.spool_id, again.start.seq),
            (first.start.spool_id, first_seq(2))
        );
        drop(again);
        assert_eq!(
            open(folder.path()).unwrap().start.seq,
            first_seq(3),
            "no seq is used twice"
        );
    }

    #[test]
    fn a_torn_tail_is_cut_and_damage_takes_a_new_spool_id() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let first = open(folder.path()).unwrap();
        run(first.spool, |thread| thread.append(entry(1)));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [&whole[..], b"FRM1\0\0"].concat()).unwrap();
        let torn = open(folder.path()).unwrap();
        assert_eq!((seqs(&torn.start), torn.fault.is_none()), (vec![1], true));
        // What is appended behind the cut is read again.
        run(torn.spool, |thread| thread.append(entry(2)));
        let second = open(folder.path()).unwrap();
        assert_eq!(seqs(&second.start), [1, 2]);
        drop(second);

        let mut damaged = std::fs::read(&path).unwrap();
        damaged[HEADER_BYTES + 30] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        let new = open(folder.path()).unwrap();
        assert!(new.start.entries.is_empty() && new.start.spool_id != first.start.spool_id);
        let (error, aside) = new.fault.unwrap();
        assert!(matches!(error, SpoolError::Damaged { .. }), "{error}");
        assert_eq!(
            std::fs::read(aside).unwrap(),
            damaged,
            "kept for whoever wants to look"
        );
    }

    #[test]
    fn a_lost_file_takes_a_new_spool_id_and_a_folder_has_one_user() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        assert!(matches!(open(folder.path()), Err(OpenError::InUse { .. })));
        let id = first.start.spool_id;
        drop(first);
        std::fs::remove_file(folder.path().join(FILE)).unwrap();
        assert_ne!(open(folder.path()).unwrap().start.spool_id, id);
    }

    #[test]
    fn a_drained_spool_is_short_again_and_keeps_its_id() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        let reports = run(first.spool, |thread| {
            (1..=2_000).for_each(|seq| thread.append(entry(seq)));
            thread.remove((1..=2_000).collect());
        });
        assert_eq!(reports.len(), 2_000);
        let bytes = std::fs::metadata(folder.path().join(FILE)).unwrap().len();
        assert_eq!(bytes, HEADER_BYTES as u64);
        let again = open(folder.path()).unwrap();
        assert_eq!(
            (again.start.spool_id, again.start.seq),
            (first.start.spool_id, first_seq(2))
        );
    }

    #[test]
    fn a_replaced_spool_has_a_new_id_and_a_reset_one_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let first = open(folder.path()).unwrap();
        let reports = run(first.spool, |thread| {
            thread.append(entry(1));
            thread.reset();
            thread.replace();
            thread.append(entry(7));
        });
        let [
            _,
            Input::SpoolReplaced {
                spool_id: reset,
                seq: same,
            },
            Input::SpoolReplaced { spool_id, seq },
            _,
        ] = reports[..]
        else {
            panic!("{reports:?}")
        };
        assert_eq!(
            (reset, same, seq),
            (first.start.spool_id, first_seq(1), first_seq(1))
        );
        let again = open(folder.path()).unwrap();
        assert_eq!(
            (again.start.spool_id, seqs(&again.start)),
            (spool_id, vec![7])
        );
        assert_ne!(spool_id, reset);
    }

    /// The disk is full: nothing is reported durable, and a reset brings the spool back.
    #[test]
    fn a_failed_write_is_reported_and_a_reset_heals() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = open(folder.path()).unwrap().spool;
        spool.file = File::options().write(true).open("/dev/full").unwrap();
        let reports = run(spool, |thread| {
            thread.append(entry(1));
            thread.reset();
            thread.append(entry(2));
        });
        assert_eq!(reports[0], Input::SpoolFailed);
        assert!(matches!(reports[1], Input::SpoolReplaced { .. }));
        assert_eq!(reports[2], Input::SpoolDurable { seq: 2 });
        assert_eq!(seqs(&open(folder.path()).unwrap().start), [2]);
    }

    /// A real full disk: what was safe stays safe, nothing is left half written, and once there is room the same entries
    /// are there with those that come after.
    #[test]
    fn a_full_disk_that_gets_room_again_has_lost_nothing() {
        struct Mounted(tempfile::TempDir);
        impl Drop for Mounted {
            fn drop(&mut self) {
                let unmount = std::process::Command::new("umount")
                    .arg(self.0.path())
                    .status();
                assert!(unmount.is_ok_and(|status| status.success()));
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"])
            .arg(folder.path())
            .status();
        if !mount.is_ok_and(|status| status.success()) {
            eprintln!("skipped: mounting a tmpfs needs CAP_SYS_ADMIN");
            return;
        }
        let disk = Mounted(folder);
        let path = disk.0.path();
        let (sender, reports) = mpsc::channel();
        let next = || {
            reports
                .recv_timeout(Duration::from_secs(10))
                .expect("a report")
        };
        let opened = open(path).unwrap();
        let thread =
            SpoolThread::start(opened.spool, move |input| sender.send(input).unwrap()).unwrap();
        let ballast = path.join("ballast");
        let mut file = File::create(&ballast).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        let mut safe = Vec::new();
        for seq in 1.. {
            thread.append(entry(seq));
            match next() {
                Input::SpoolDurable { seq } => safe.push(seq),
                report => {
                    assert_eq!(report, Input::SpoolFailed);
                    break;
                }
            }
        }
        assert!(!safe.is_empty(), "it held entries when it failed");
        // Still full.
        thread.reset();
        assert_eq!(next(), Input::SpoolFailed);
        assert!(
            !path.join(NEW_FILE).exists(),
            "nothing is left half written"
        );
        thread.append(entry(10_000));
        assert_eq!(next(), Input::SpoolFailed);
        // One is drained meanwhile.
        thread.remove(vec![safe.remove(0)]);
        std::fs::remove_file(&ballast).unwrap();
        drop(file);
        thread.reset();
        assert!(matches!(next(), Input::SpoolReplaced { .. }));
        thread.append(entry(10_001));
        assert_eq!(next(), Input::SpoolDurable { seq: 10_001 });
        drop(thread);
        safe.push(10_001);
        let again = open(path).unwrap();
        assert!(again.fault.is_none());
        assert_eq!(seqs(&again.start), safe);
        assert_eq!(again.start.spool_id, opened.start.spool_id);
        drop(again);
    }
}

//! A rack's spool as a file on a disk that forgets what was not fsynced, in the product's own format
//! (`lease::spool`). The thread that writes it does as `rackd::spool` does: all that waits is one frame and one fsync.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use lease::SpoolId;
use lease::rack::{Input, Start};
use lease::spool::{
    Entry, HEADER_BYTES, Record, SpoolError, encode_frame, encode_header, first_seq, replay,
};

use crate::rng::Rng;

/// A file above this that holds nothing is written anew.
const EMPTY_BYTES_MAX: usize = 8 << 10;

#[derive(Clone, Debug)]
pub(crate) enum Job {
    Append(Entry),
    Remove(Vec<u64>),
    Reset,
    Replace,
}

#[derive(Debug)]
pub(crate) struct Disk {
    /// What is on the disk for good.
    file: Vec<u8>,
    /// The file as it once was.
    older: Option<Vec<u8>>,
    spool_id: SpoolId,
    incarnation: u32,
    /// The last one that a region has answered.
    attached_in: u32,
    /// Facts in `file`.
    live: BTreeMap<u64, Entry>,
    /// A write failed; nothing is appended until the file was written anew.
    broken: bool,
    pub jobs: VecDeque<Job>,
    /// Writes fail until then.
    pub fails_until: Duration,
}

impl Disk {
    pub fn new(rng: &mut Rng) -> Self {
        let mut disk = Self {
            file: vec![],
            older: None,
            spool_id: SpoolId([0; 16]),
            incarnation: 0,
            attached_in: 0,
            live: BTreeMap::new(),
            broken: false,
            jobs: VecDeque::new(),
            fails_until: Duration::ZERO,
        };
        disk.wipe();
        disk.make_if_gone(rng);
        disk
    }

    /// Facts that no crash takes away.
    pub fn facts(&self) -> impl Iterator<Item = &Entry> {
        self.live.values()
    }

    // ---------------------------------------------------------------- crashes

    /// The process ends. What was being written may be there in whole, in part, or not at all.
    pub fn crash(&mut self, rng: &mut Rng) {
        let records: Vec<Record> = self
            .jobs
            .drain(..)
            .map_while(|job| match job {
                Job::Append(entry) => Some(Record::Entry(entry)),
                Job::Remove(seqs) => Some(Record::Removed(seqs)),
                Job::Reset | Job::Replace => None,
            })
            .collect();
        if !self.broken && !records.is_empty() && rng.coin() {
            let mut frame = vec![];
            encode_frame(self.spool_id, &records, &mut frame);
            let torn = if rng.coin() {
                frame.len()
            } else {
                rng.index(frame.len())
            };
            self.file.extend_from_slice(&frame[..torn]);
        }
        self.broken = false;
    }

    /// The file is gone.
    pub fn wipe(&mut self) {
        self.file.clear();
        self.live.clear();
        self.older = None;
    }

    /// Keeps the file as it is, for [`Self::set_back`].
    pub fn remember(&mut self) {
        self.older = Some(self.file.clone());
    }

    pub fn has_older(&self) -> bool {
        self.older.is_some()
    }

    /// Whether a region will see that the snapshot is one: it has seen a later start. Else this looks like a restart. If it
    /// has seen one start only, facts in the snapshot hide it as well: their drain uses up the seqs that the region would know.
    pub fn shows(&self) -> bool {
        let Some(found) = self.older.as_ref().and_then(|older| replay(older).ok()) else {
            return true;
        };
        let starts = self.attached_in.saturating_sub(found.incarnation);
        found.spool_id != self.spool_id || starts > 1 || (starts == 1 && found.entries.is_empty())
    }

    /// The process is attached.
    pub fn attached(&mut self) {
        self.attached_in = self.incarnation;
    }

    /// The snapshot of the disk is restored.
    pub fn set_back(&mut self) {
        if let Some(older) = self.older.take() {
            self.file = older;
            let facts = replay(&self.file).map_or(vec![], |found| found.entries);
            self.live = facts.into_iter().map(|entry| (entry.seq, entry)).collect();
        }
    }

    fn make_if_gone(&mut self, rng: &mut Rng) -> bool {
        let gone = self.file.is_empty();
        if gone {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&rng.next().to_be_bytes());
            (self.spool_id, self.incarnation) = (SpoolId(id), 1);
            self.attached_in = 0;
            self.live.clear();
            self.rewrite();
        }
        gone
    }

    /// Opens the file, as the process does when it starts.
    pub fn open(&mut self, rng: &mut Rng) -> Result<Start, SpoolError> {
        if !self.make_if_gone(rng) {
            let found = replay(&self.file)?;
            self.file.truncate(found.valid_bytes);
            self.spool_id = found.spool_id;
            self.incarnation = found.incarnation + 1;
            self.live = found
                .entries
                .into_iter()
                .map(|entry| (entry.seq, entry))
                .collect();
            let opened = Record::Opened {
                incarnation: self.incarnation,
            };
            encode_frame(self.spool_id, &[opened], &mut self.file);
        }
        Ok(Start {
            spool_id: self.spool_id,
            seq: first_seq(self.incarnation),
            entries: self.live.values().cloned().collect(),
        })
    }

    fn rewrite(&mut self) {
        self.file = encode_header(self.spool_id, self.incarnation).to_vec();
        if !self.live.is_empty() {
            let records: Vec<Record> = self.live.values().cloned().map(Record::Entry).collect();
            encode_frame(self.spool_id, &records, &mut self.file);
        }
        self.broken = false;
    }

    // ---------------------------------------------------------------- the spool's thread

    /// Does all jobs that wait; what the machine is told of it goes to `told`.
    pub fn work(&mut self, now: Duration, rng: &mut Rng, told: &mut Vec<Input>) {
        let fails = now < self.fails_until;
        let mut records = vec![];
        for job in std::mem::take(&mut self.jobs) {
            match job {
                Job::Append(entry) => records.push(Record::Entry(entry)),
                Job::Remove(seqs) => records.push(Record::Removed(seqs)),
                Job::Reset | Job::Replace => {
                    self.append(std::mem::take(&mut records), fails, told);
                    if fails {
                        self.broken = true;
                        told.push(Input::SpoolFailed);
                        continue;
                    }
                    if matches!(job, Job::Replace) {
                        self.file.clear();
                        self.make_if_gone(rng);
                    } else {
                        self.rewrite();
                    }
                    told.push(Input::SpoolReplaced {
                        spool_id: self.spool_id,
                        seq: first_seq(self.incarnation),
                    });
                }
            }
        }
        self.append(records, fails, told);
    }

    fn append(&mut self, records: Vec<Record>, fails: bool, told: &mut Vec<Input>) {
        if records.is_empty() {
            return;
        }
        let entries = records
            .iter()
            .any(|record| matches!(record, Record::Entry(_)));
        if self.broken || fails {
            for record in &records {
                if let Record::Removed(seqs) = record {
                    seqs.iter().for_each(|seq| drop(self.live.remove(seq)));
                }
            }
            if entries || !self.broken {
                told.push(Input::SpoolFailed);
            }
            self.broken = true;
            return;
        }
        encode_frame(self.spool_id, &records, &mut self.file);
        for record in records {
            match record {
                Record::Entry(entry) => {
                    told.push(Input::SpoolDurable { seq: entry.seq });
                    self.live.insert(entry.seq, entry);
                }
                Record::Removed(seqs) => seqs.iter().for_each(|seq| drop(self.live.remove(seq))),
                Record::Opened { .. } => {}
            }
        }
        if self.live.is_empty() && self.file.len() > EMPTY_BYTES_MAX + HEADER_BYTES {
            self.rewrite();
        }
    }
}

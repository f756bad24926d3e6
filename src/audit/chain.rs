//! The chain: verifies that each record follows from the line before it. Pure: lines in, verdicts
//! out.

use serde_json::Value;

use super::{
    Damage, Link, LogId,
    damage::DAMAGED,
    link::Position,
    record::{Head, LONGEST_LINE, MacError, Torn, check_mac},
};
use crate::crypto::{MacKey, fingerprint};

/// A line doesn't belong to the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// Not an audit record.
    #[error("not an audit record")]
    NotARecord,
    /// Longer than any record.
    #[error("the line is longer than any record")]
    TooLong,
    /// The record's number doesn't follow the previous one.
    #[error(
        "found record {found} instead of record {expected}: lines were removed, inserted or moved"
    )]
    OutOfOrder {
        /// The number that follows the previous one.
        expected: u64,
        /// The number found.
        found: u64,
    },
    /// The previous line isn't the one that this record was written after.
    #[error(
        "record {0} doesn't follow from the line before it: one of the two was modified, or lines \
         were removed, inserted or moved"
    )]
    Unlinked(u64),
    /// The record belongs to another log.
    #[error("record {seq} belongs to log {log}, not to {expected}: it was put here")]
    OtherLog {
        /// The record.
        seq: u64,
        /// Its log.
        log: LogId,
        /// The log, or logs, that it should belong to.
        expected: String,
    },
    /// A chain occurs twice.
    #[error("the chain of log {0} starts a second time: its lines were put here again")]
    Repeated(LogId),
    /// The MAC is wrong.
    #[error(
        "the MAC of record {0} is wrong: the line was modified, or was written with another key"
    )]
    WrongMac(u64),
    /// The MAC is missing.
    #[error(
        "record {0} has no MAC: it was written without the key. If the key was configured later, \
         name the first record that has a MAC: --keyed-from SEQ"
    )]
    NoMac(u64),
}

/// Verifies a log line by line.
pub struct Verifier<'k> {
    key: Option<&'k MacKey>,
    keyed_from: u64,
    several_chains: bool,
    /// The only logs that are accepted; empty if any is.
    logs: &'k [LogId],
    /// The logs of all chains so far.
    seen: Vec<LogId>,
    head: Option<Position>,
    torn: Option<Torn>,
    /// The number of the first record.
    pub first: Option<u64>,
    /// How many records there were.
    pub records: u64,
    /// How many unfinished lines there were.
    pub torn_lines: u64,
    /// What records report: their numbers, and what was found.
    pub damage: Vec<(u64, Option<Damage>)>,
}

impl<'k> Verifier<'k> {
    /// Creates a verifier that starts with any record. With a `key`, every record needs a valid
    /// MAC. With `several_chains`, a record 1 may start a new chain anywhere.
    pub fn new(key: Option<&'k MacKey>, several_chains: bool) -> Self {
        Self {
            key,
            keyed_from: 0,
            several_chains,
            logs: &[],
            seen: Vec::new(),
            head: None,
            torn: None,
            first: None,
            records: 0,
            torn_lines: 0,
            damage: Vec::new(),
        }
    }

    /// Accepts only records of `logs`, unless there are none.
    #[must_use]
    pub fn of_logs(self, logs: &'k [LogId]) -> Self {
        Self { logs, ..self }
    }

    /// Requires a MAC only of record `seq` and later ones.
    #[must_use]
    pub fn keyed_from(self, seq: u64) -> Self {
        Self {
            keyed_from: seq,
            ..self
        }
    }

    /// Creates a verifier that starts after `after`, without a key.
    pub(super) fn after(after: Option<Position>) -> Self {
        Self {
            head: after,
            ..Self::new(None, false)
        }
    }

    /// Returns the position of the last record.
    pub fn head(&self) -> Option<Link> {
        self.head.map(|head| head.link)
    }

    /// Returns the log of the last record.
    pub fn log(&self) -> Option<LogId> {
        self.head.map(|head| head.log)
    }

    /// Returns whether the last line was unfinished, and no record has described it yet.
    pub fn is_torn(&self) -> bool {
        self.torn.is_some()
    }

    /// Ends a file, and returns whether its last line is unfinished. That is accepted: the record
    /// that would describe the line may be in another file.
    pub fn end_of_file(&mut self) -> bool {
        let was_torn = self.torn.take().is_some();
        self.torn_lines += u64::from(was_torn);
        was_torn
    }

    /// Verifies the next line, without its newline. A line that isn't a record may be unfinished,
    /// which only the next line shows.
    ///
    /// # Errors
    /// [`ChainError`] for this line, or [`ChainError::NotARecord`] for the line before.
    pub fn line(&mut self, line: &[u8]) -> Result<(), ChainError> {
        if line.len() > LONGEST_LINE {
            return Err(ChainError::TooLong);
        }
        let Ok(head) = serde_json::from_slice::<Head>(line) else {
            if self.torn.is_some() {
                return Err(ChainError::NotARecord);
            }
            self.torn = Some(Torn::of(line));
            return Ok(());
        };
        if let Some(torn) = self.torn.take() {
            if !torn.is_described_by(&head) {
                return Err(ChainError::NotARecord);
            }
            self.torn_lines += 1;
        }
        let is_first = head.prev == Link::START.to_hex();
        let starts_chain = self.several_chains && head.seq == 1 && is_first;
        if let Some(before) = self.head.filter(|_| !starts_chain) {
            if head.log != before.log {
                return Err(other_log(&head, &before.log.to_string()));
            }
            if head.seq != before.link.seq + 1 {
                return Err(ChainError::OutOfOrder {
                    expected: before.link.seq + 1,
                    found: head.seq,
                });
            }
            if head.prev != before.link.to_hex() {
                return Err(ChainError::Unlinked(head.seq));
            }
        } else if head.seq == 0 || (head.seq == 1) != is_first {
            return Err(ChainError::Unlinked(head.seq));
        }
        self.check_mac(line, &head)?;
        if starts_chain || self.head.is_none() {
            self.begin_chain(&head)?;
        }
        if head.event == DAMAGED {
            let found = head.details.get("found").and_then(Value::as_str);
            let damage = found.and_then(Damage::named);
            self.damage.push((head.seq, damage));
        }
        self.first.get_or_insert(head.seq);
        self.records += 1;
        self.head = Some(Position {
            log: head.log,
            link: Link {
                seq: head.seq,
                hash: fingerprint(line),
            },
        });
        Ok(())
    }

    fn begin_chain(&mut self, head: &Head) -> Result<(), ChainError> {
        if !self.logs.is_empty() && !self.logs.contains(&head.log) {
            let expected: Vec<String> = self.logs.iter().map(LogId::to_string).collect();
            return Err(other_log(head, &expected.join(", ")));
        }
        if self.seen.contains(&head.log) {
            return Err(ChainError::Repeated(head.log));
        }
        self.seen.push(head.log);
        Ok(())
    }

    fn check_mac(&self, line: &[u8], head: &Head) -> Result<(), ChainError> {
        match self.key {
            Some(key) if head.seq >= self.keyed_from => {
                check_mac(key, line, head).map_err(|error| match error {
                    MacError::Missing => ChainError::NoMac(head.seq),
                    MacError::Wrong => ChainError::WrongMac(head.seq),
                })
            }
            // A MAC that is present isn't checked either: anyone who modifies a record can drop it.
            _ => Ok(()),
        }
    }
}

fn other_log(head: &Head, expected: &str) -> ChainError {
    ChainError::OtherLog {
        seq: head.seq,
        log: head.log,
        expected: expected.to_owned(),
    }
}

#[cfg(test)]
mod tests;

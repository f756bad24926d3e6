//! What a writer finds when a log and its head contradict each other. A crash leaves none of it.

use jiff::Timestamp;

use super::{Event, file::HeadFile, link::Position};

/// The event that reports damage. Verification fails on it.
pub(super) const DAMAGED: &str = "log.damaged";

/// A log and its head contradict each other: one of them was tampered with, or its disk lost it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The log has records, and no head.
    HeadMissing,
    /// The log has records, and the head names none.
    HeadEmptied,
    /// The log ends before the record that the head names.
    EndCut,
    /// The last record is not the one that the head names.
    EndChanged,
    /// The head is of another log.
    OtherLog,
}

impl Damage {
    const ALL: [Self; 5] = [
        Self::HeadMissing,
        Self::HeadEmptied,
        Self::EndCut,
        Self::EndChanged,
        Self::OtherLog,
    ];

    /// Compares a log's last record with its head.
    pub(super) fn find(last: Option<&Position>, head: &HeadFile) -> Option<Self> {
        // A log without records is new, or follows a rotation.
        let last = last?;
        let head = match head {
            HeadFile::Missing => return Some(Self::HeadMissing),
            HeadFile::Empty => return Some(Self::HeadEmptied),
            HeadFile::Names(head) => head,
        };
        if head.log != last.log {
            Some(Self::OtherLog)
        } else if head.link.seq > last.link.seq {
            Some(Self::EndCut)
        } else if head.link.seq == last.link.seq && head.link.hash != last.link.hash {
            Some(Self::EndChanged)
        } else {
            // A head that is behind its log was left by a crash.
            None
        }
    }

    /// What is wrong, as a clause.
    pub fn describe(self) -> &'static str {
        match self {
            Self::HeadMissing => "its head (FILE.head) was missing",
            Self::HeadEmptied => "its head (FILE.head) was emptied or overwritten",
            Self::EndCut => "its end was cut off",
            Self::EndChanged => "its last record was modified",
            Self::OtherLog => "its file or its head (FILE.head) was exchanged for another log's",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::HeadMissing => "head_missing",
            Self::HeadEmptied => "head_emptied",
            Self::EndCut => "end_cut",
            Self::EndChanged => "end_changed",
            Self::OtherLog => "other_log",
        }
    }

    /// Returns what a record reports, which a later version may know by another name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|damage| damage.name() == name)
    }

    pub(super) fn event(self, at: Timestamp) -> Event {
        Event::new(DAMAGED, at).with("found", self.name())
    }
}

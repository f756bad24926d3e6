//! What an operator does: recorded before it is done, so that nothing is done unrecorded, and again when its outcome is known.

use serde_json::{Map, Value};

use super::{AuditError, AuditFile, Event, Link, Origin};
use crate::clock::Clock;

/// An administrative act under way.
pub struct Act {
    file: AuditFile,
    origin: Origin,
    clock: Clock,
    name: &'static str,
    /// The record that began it.
    begun: Link,
}

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// An invariant stood against it.
    Refused,
    /// Something failed; parts of it may have been done.
    Failed,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl Act {
    /// Records that the act is about to be done.
    ///
    /// # Errors
    /// There is no record, so there must be no act.
    pub fn begin(
        mut file: AuditFile,
        name: &'static str,
        details: Map<String, Value>,
        clock: Clock,
    ) -> Result<Self, AuditError> {
        let origin = Origin::here();
        let event = Event::new(name, clock.now())
            .with("phase", "begun")
            .with_all(details);
        let begun = file.append(&origin, &[event])?;
        Ok(Self {
            file,
            origin,
            clock,
            name,
            begun,
        })
    }

    /// Records how it ended.
    ///
    /// # Errors
    /// The log says that it was begun and not how it ended.
    pub fn end(
        mut self,
        outcome: Outcome,
        details: Map<String, Value>,
    ) -> Result<Link, AuditError> {
        let event = Event::new(self.name, self.clock.now())
            .with("phase", outcome.as_str())
            .with("begun_by", self.begun.seq)
            .with_all(details);
        self.file.append(&self.origin, &[event])
    }
}

//! Acts of operators. Each is recorded before it is done, so that nothing is done without a record,
//! and again with its outcome.

use serde_json::{Map, Value};

use super::{Appended, AuditError, AuditFile, Damage, Event, Link, Origin};
use crate::clock::Clock;

/// An administrative act that has begun.
pub struct Act {
    file: AuditFile,
    origin: Origin,
    clock: Clock,
    name: &'static str,
    /// The record of its beginning.
    begun: Link,
    damage: Option<Damage>,
}

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActOutcome {
    /// The act was done.
    Done,
    /// An invariant forbids the act.
    Refused,
    /// The act failed; parts of it may have been done.
    Failed,
}

impl ActOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl Act {
    /// Records that an act begins.
    ///
    /// # Errors
    /// [`AuditError`]. There is no record, so the caller must not act.
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
        let Appended {
            last: begun,
            damage,
            ..
        } = file.append(&origin, &[event])?;
        Ok(Self {
            file,
            origin,
            clock,
            name,
            begun,
            damage,
        })
    }

    /// What was found to be wrong with the log before this act.
    pub fn damage(&self) -> Option<Damage> {
        self.damage
    }

    /// Records how the act ended.
    ///
    /// # Errors
    /// [`AuditError`]. The log contains only the beginning of the act.
    pub fn end(
        mut self,
        outcome: ActOutcome,
        details: Map<String, Value>,
    ) -> Result<Link, AuditError> {
        let event = Event::new(self.name, self.clock.now())
            .with("phase", outcome.as_str())
            .with("begun_by", self.begun.seq)
            .with_all(details);
        self.file
            .append(&self.origin, &[event])
            .map(|appended| appended.last)
    }
}

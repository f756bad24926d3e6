//! Why the database can't be used.

use crate::{http::problem::Problem, wire::Code};

/// An error of a hub's database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It can't be opened.
    #[error("can't open the hub's database {location}: {reason}; {advice}")]
    Unusable {
        /// The database, without a password.
        location: String,
        /// Why.
        reason: String,
        /// What to do.
        advice: &'static str,
    },
    /// It was written by a newer build.
    #[error(
        "the hub's database {location} has schema {found}, and this build knows {known}: start the \
         build that upgraded it, or a newer one, or restore the backup from before the upgrade"
    )]
    NewerSchema {
        /// The database, without a password.
        location: String,
        /// Its schema.
        found: i64,
        /// The newest schema of this build.
        known: i64,
    },
    /// A statement failed.
    #[error("the hub's database can't {doing}: {error}")]
    Failed {
        /// What was to be done.
        doing: &'static str,
        /// Why it can't be.
        error: sqlx::Error,
    },
    /// It doesn't answer.
    #[error("the hub's database does not answer within {seconds} s")]
    Silent {
        /// The wait, in seconds.
        seconds: u64,
    },
    /// A row isn't what this build writes.
    #[error("the hub's database has a damaged row in {table}: {reason}; restore a backup")]
    Damaged {
        /// The table.
        table: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The system gives no random bytes.
    #[error("the operating system gives no random bytes")]
    RandomnessUnavailable,
}

impl StoreError {
    pub(super) fn failed(doing: &'static str) -> impl Fn(sqlx::Error) -> Self {
        move |error| Self::Failed { doing, error }
    }

    pub(super) fn damaged(table: &'static str, reason: impl ToString) -> Self {
        Self::Damaged {
            table,
            reason: reason.to_string(),
        }
    }
}

/// The log says why, once.
impl From<&StoreError> for Problem {
    fn from(_: &StoreError) -> Self {
        Self::new(
            Code::DatabaseUnavailable,
            "the hub's database can't be read or written, so nothing was stored; the hub's log \
             says why",
        )
        .retry_after(5)
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        Self::from(&error)
    }
}

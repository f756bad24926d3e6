//! How phases, reasons and verbs read.

use std::fmt;

use super::{
    analysis::Verdict,
    machine::Verb,
    state::{Kind, PauseReason, Phase},
};

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("is running"),
            Self::Paused(reason) => write!(f, "is paused: {reason}"),
            Self::Halted(reason) => write!(f, "is halted: {reason}"),
            Self::RollingBack(reason) => write!(f, "is rolling back: {reason}"),
            Self::Aborting(reason) => write!(f, "is being aborted: {reason}"),
            Self::Finished => f.write_str("is finished"),
            Self::RolledBack(reason) => write!(f, "was rolled back: {reason}"),
            Self::Aborted(reason) => write!(f, "was aborted: {reason}"),
        }
    }
}

impl fmt::Display for PauseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operator(by) => write!(f, "paused by {by}; `rollout resume` goes on"),
            Self::Planned => f.write_str("the plan pauses here; `rollout promote` goes on"),
            Self::Approval => f.write_str("approvals are needed; `rollout approve` gives one"),
            Self::Inconclusive(reason) => write!(
                f,
                "the soak has no verdict ({reason}); `rollout promote` goes on without one, \
                 `rollout resume` begins it again"
            ),
            Self::StillUsed(reason) => write!(
                f,
                "the old version may be in use ({reason}); `rollout resume` waits again"
            ),
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Promote => "promote",
            Self::PromoteFull => "promote --full",
            Self::Retry => "retry",
            Self::Abort => "abort",
            Self::Rollback => "rollback",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pass => f.write_str("pass"),
            Self::Fail(reason) => write!(f, "fail: {reason}"),
            Self::Inconclusive(reason) => write!(f, "inconclusive: {reason}"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("started"),
            Self::Began => f.write_str("begin"),
            Self::Wrote(generation) => write!(f, "wrote generation {generation}"),
            Self::Converged(1) => f.write_str("1 sidecar is there"),
            Self::Converged(count) => write!(f, "{count} sidecars are there"),
            Self::Proved(1) => f.write_str("1 sidecar proved that it has the key"),
            Self::Proved(count) => write!(f, "{count} sidecars proved that they have the key"),
            Self::Verdict(verdict) => write!(f, "verdict: {verdict}"),
            Self::Retrying => f.write_str("retrying"),
            Self::Anomaly => f.write_str("anomaly"),
            Self::Paused => f.write_str("paused"),
            Self::Resumed => f.write_str("resumed"),
            Self::Promoted => f.write_str("promoted"),
            Self::Approved => f.write_str("approved"),
            Self::Halted => f.write_str("halted"),
            Self::RollingBack => f.write_str("rolling back"),
            Self::RolledBack => f.write_str("rolled back"),
            Self::Aborted => f.write_str("aborted"),
            Self::Finished => f.write_str("finished"),
        }
    }
}

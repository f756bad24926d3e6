//! Central rotation as one watched transaction: assess, generate, distribute, prove, then activate
//! and soak wave by wave, and retire the old version on evidence.
//!
//! Pure: [`step`] takes a state, an event and the time, and returns the next state and what is to
//! be done. A runner does it. Nothing here opens a connection or reads a clock.

mod analysis;
mod asked;
mod assess;
mod display;
mod fleet;
mod machine;
mod order;
mod plan;
mod report;
mod start;
mod state;
mod strategy;
#[cfg(test)]
mod tests;
mod waiting;

pub use self::{
    analysis::{Analysis, Counted, Measure, Verdict},
    asked::{Asked, LeftRequest, Request},
    assess::{Assessment, Finding, Level, assess},
    fleet::{Counters, FleetView, SidecarView, VersionView},
    machine::{
        Action, Authorization, Event, Observation, Verb, Write, WriteFailure, Written, begin, step,
    },
    order::{Approval, ApprovalRule, Base, Order, Requester},
    plan::{FormerPrimary, Intent, NamedVersion, Plan, Step},
    report::{Report, StepReport},
    start::{LONGEST_ORDER, SignedStart, StartOrder, StartRefusal, StartRules},
    state::{Baseline, Entry, Kind, PauseReason, Phase, Progress, State},
    strategy::{
        AfterActivation, BackUp, Generate, Observe, OnFailure, Pause, Retire, Soak, Strategy,
        Until, WaveSteps, Within,
    },
};

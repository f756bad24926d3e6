//! Collects what is missing, by code, and says it for people.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Code, Question, Reason};
use crate::{keyring::Class, model::Span};

/// How many processes or events a message names.
const NAMED: usize = 10;

/// What is missing, by code.
pub(super) struct Reasons<'a> {
    question: &'a Question,
    found: BTreeMap<Code, Vec<(Option<Timestamp>, String)>>,
}

impl<'a> Reasons<'a> {
    pub(super) fn new(question: &'a Question) -> Self {
        Self {
            question,
            found: BTreeMap::new(),
        }
    }

    pub(super) fn add(&mut self, code: Code) {
        self.found.entry(code).or_default();
    }

    pub(super) fn name(&mut self, code: Code, at: Option<Timestamp>, name: String) {
        self.found.entry(code).or_default().push((at, name));
    }

    /// Returns the reasons. Uses end `quiet_period` after the last of them.
    pub(super) fn finish(self, quiet_period: Span) -> Vec<Reason> {
        let question = self.question;
        let found = self.found.into_iter();
        found
            .map(|(code, mut named)| {
                named.sort_by(|one, other| other.cmp(one));
                let last = named.first().and_then(|(at, _)| *at);
                let until = match code {
                    Code::Used | Code::Unwatched | Code::Refused => {
                        last.and_then(|last| last.checked_add(quiet_period.0).ok())
                    }
                    _ => None,
                };
                let mut names: Vec<String> = named
                    .iter()
                    .take(NAMED)
                    .map(|(_, name)| name.clone())
                    .collect();
                if named.len() > NAMED {
                    names.push(format!("and {} more", named.len() - NAMED));
                }
                Reason {
                    code,
                    count: named.len().max(1),
                    until,
                    message: message(code, question, &names.join("; "), until, quiet_period),
                }
            })
            .collect()
    }
}

fn message(
    code: Code,
    question: &Question,
    names: &str,
    until: Option<Timestamp>,
    quiet_period: Span,
) -> String {
    let version = question.version;
    let wait = || match until {
        Some(until) => format!("wait until {until}: {quiet_period} without use"),
        None => format!("wait for {quiet_period} without use"),
    };
    match code {
        Code::NotSuperseded => format!(
            "version {version} is a primary, or is to become one; activate another version in \
             every wave"
        ),
        Code::NoWorkloads => "no workload is declared that may use the keyring, so one that runs \
                              rarely would be missed; declare all of them"
            .into(),
        Code::UseIsNoEvidence => class_demands(question.class, version),
        Code::FoundByScan => format!(
            "a scan found ciphertexts of version {version} ({names}); rewrap them and scan again"
        ),
        Code::Used => format!("version {version} was used: {names}; {}", wait()),
        Code::Unwatched => format!(
            "version {version} may have been used while nothing watched: {names}; {}",
            wait()
        ),
        Code::Refused => format!(
            "version {version} is disabled, and it was asked for: {names}; {}, or enable it again \
             (`keyring enable`)",
            match until {
                Some(until) => format!("the wait of {quiet_period} ends at {until}"),
                None => format!("the wait of {quiet_period} has begun again"),
            }
        ),
        Code::Open => format!(
            "these have requests in progress that use version {version}, such as streams: {names}; \
             let them end"
        ),
        Code::LostTooSoon => format!(
            "the hub gives up silent processes after {}, and they may encrypt for {}; set its \
             `lost_after` to at least the longest encrypt lease",
            question.lost_after, question.encrypt_lease
        ),
        Code::Silent => format!(
            "no answer to the barrier of {} from: {names}; restore their connection to the hub, or \
             let the roster confirm that they have ended",
            question.barrier.at
        ),
        Code::NotJoined => format!(
            "the roster lists these, and they have never reported: {names}; give them a [hub] \
             table, or end them"
        ),
        Code::Behind => format!(
            "these serve a generation before {}, which superseded version {version}: {names}; see \
             why their refresh fails",
            question
                .superseded
                .map_or(0, |superseded| superseded.generation)
        ),
        Code::Uncounted => {
            format!("these don't count uses of version {version}: {names}; upgrade them")
        }
        Code::NotRun => format!(
            "the workload has not run from start to end since version {version} was superseded; \
             run it, attest that it doesn't need the version, or remove its grant"
        ),
        Code::NoInstances => {
            "the workload has no process, which is no evidence; start it, declare \
                              how rarely it runs (max_interval), attest that it doesn't need the \
                              version, or remove its grant"
                .into()
        }
    }
}

fn class_demands(class: Class, version: u32) -> String {
    let demanded = match class {
        Class::Live => "nothing",
        Class::Archive => {
            "a scan of every store that finds no ciphertext of it, or the attestation of a named \
             person that no workload needs it"
        }
        Class::Kms => {
            "a storage migration of the cluster, and a scan of etcd after it that finds no \
             ciphertext of it"
        }
    };
    format!(
        "the class of version {version} is {class}, so that it isn't used is no evidence; needed \
         since it was superseded: {demanded}"
    )
}

//! Denied requests: each is counted for the audit log, and summarized in the process's log per
//! caller and minute. Callers can cause any number of them, so no denial writes a line of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    audit::{AccessRefusal, Recorder, RefusalCounts, Refused, Requester},
    clock::Clock,
    model::{KeyringName, Operation, SecretName},
    policy::Caller,
    wire::Code,
};

/// What was requested.
#[derive(Clone, Copy)]
pub(crate) enum Resource<'a> {
    /// Neither a keyring nor a secret.
    Other,
    Keyring(&'a KeyringName, Operation),
    /// A secret; without a name if it is not configured.
    Secret(Option<&'a SecretName>),
}

/// Counts denied requests. Clones count together.
#[derive(Clone)]
pub(crate) struct Denials(Arc<Shared>);

struct Shared {
    audit: Recorder,
    counts: Mutex<Counts>,
    /// Notified when a caller is denied for the first time in a while.
    is_due: Notify,
    clock: Clock,
}

/// Denials per caller and code, with the last one of each.
type Counts = RefusalCounts<(Requester, &'static str), Last>;

struct Last {
    refusal: AccessRefusal,
    pid: Option<i32>,
}

impl Denials {
    pub(crate) fn new(audit: Recorder, clock: Clock) -> Self {
        Self(Arc::new(Shared {
            audit,
            counts: Mutex::default(),
            is_due: Notify::new(),
            clock,
        }))
    }

    /// Starts to write summaries to the log, until `ending` is cancelled.
    pub(crate) fn report(&self, ending: CancellationToken) {
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            ending.run_until_cancelled(shared.report_due()).await;
            shared.log(true);
        });
    }

    /// Counts a request denied by the token, the policy or the state of a key version. Other
    /// failures are not denials. `version` is the key version that was refused.
    pub(crate) fn add(
        &self,
        caller: &Caller,
        resource: Resource<'_>,
        code: Code,
        version: Option<u32>,
    ) {
        if !matches!(
            code,
            Code::Forbidden
                | Code::Unauthorized
                | Code::KeyVersionDisabled
                | Code::KeyVersionDestroyed
        ) {
            return;
        }
        let (requester, pid) = match *caller {
            _ if code == Code::Unauthorized => (Requester::Unauthorized, None),
            Caller::Process { uid, gid, pid } => (Requester::Process { uid, gid }, pid),
            Caller::TokenHolder => (Requester::TokenHolder, None),
        };
        let (keyring, secret, operation) = match resource {
            Resource::Other => (None, None, None),
            Resource::Keyring(keyring, operation) => {
                (Some(keyring.clone()), None, Some(operation.as_str()))
            }
            Resource::Secret(secret) => (None, secret.cloned(), Some("fetch")),
        };
        let refusal = AccessRefusal {
            code: code.as_str(),
            keyring,
            secret,
            operation,
            version,
            requester,
        };
        self.0.audit.refused(refusal.clone(), pid);
        self.0.count(Last { refusal, pid });
    }
}

impl Shared {
    fn count(&self, last: Last) {
        let kind = (last.refusal.requester, last.refusal.code);
        let (at, now) = (self.clock.now(), Instant::now().into_std());
        if self.counts().add(kind, last, at, now) {
            self.is_due.notify_one();
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn report_due(&self) {
        loop {
            self.log(false);
            let due = self.counts().next_due();
            match due {
                Some(due) => tokio::select! {
                    () = sleep_until(due.into()) => {}
                    () = self.is_due.notified() => {}
                },
                None => self.is_due.notified().await,
            }
        }
    }

    fn log(&self, everything: bool) {
        let now = Instant::now().into_std();
        let due = self.counts().take(now, everything);
        for (kind, refused) in due {
            match kind {
                Some(_) => log_caller(&refused),
                None => warn!(
                    count = refused.count,
                    since = %refused.first,
                    "requests denied, of more callers than are told apart"
                ),
            }
        }
    }
}

fn log_caller(refused: &Refused<Last>) {
    let Last { refusal, pid } = &refused.detail;
    let (uid, gid, caller) = match refusal.requester {
        Requester::Process { uid, gid } => (Some(uid), Some(gid), None),
        Requester::TokenHolder => (None, None, Some("token")),
        Requester::Unauthorized => (None, None, Some("unknown")),
    };
    warn!(
        uid,
        gid,
        caller,
        last_pid = pid,
        code = refusal.code,
        count = refused.count,
        since = %refused.first,
        last_operation = refusal.operation,
        last_keyring = refusal.keyring.as_ref().map(tracing::field::display),
        last_secret = refusal.secret.as_ref().map(tracing::field::display),
        "requests denied"
    );
}

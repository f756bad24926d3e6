//! What people ask a runner for: it listens between two actions.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::sleep;

use super::{JournalError, RunError, Runner};
use crate::rollout::{Asked, Event, LeftRequest, Request};

/// How often the journal is read for requests.
pub(super) const LISTEN: Duration = Duration::from_secs(1);
/// How often a runner says that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(10);

impl Runner {
    /// Waits for a request, or until a time. Returns `None` if this process is to stop.
    pub(super) async fn listen(
        &mut self,
        until: Option<Timestamp>,
    ) -> Result<Option<Event>, RunError> {
        while !self.stop.is_cancelled() {
            if let Some(event) = self.next_request().await? {
                return Ok(Some(event));
            }
            let now = self.clock.now();
            let left = match until {
                Some(until) if until <= now => return Ok(Some(Event::Woken)),
                Some(until) => until.duration_since(now).unsigned_abs(),
                None => LISTEN,
            };
            self.pause(left.min(LISTEN)).await;
        }
        Ok(None)
    }

    /// Sleeps, unless this process is to stop.
    pub(super) async fn pause(&self, time: Duration) {
        self.stop.run_until_cancelled(sleep(time)).await;
    }

    /// Takes the oldest request from the journal.
    pub(super) async fn next_request(&mut self) -> Result<Option<Event>, RunError> {
        let now = self.clock.now();
        let read = self.journal.read().await;
        let stored = match read {
            Ok(Some(stored)) => stored,
            // Someone moved it away; the next write creates it again.
            Ok(None) => return Ok(None),
            // Requests wait until the location answers again.
            Err(JournalError::Backend(error)) if error.kind.is_temporary() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.require_own(&stored)?;
        let record = stored.record.clone();
        self.stored = Some(stored);
        let Some(left) = record.requests.first().cloned() else {
            let silence = now.duration_since(self.written_at).unsigned_abs();
            if silence >= HEARTBEAT {
                self.replace(record).await?;
            }
            return Ok(None);
        };
        self.taking = Some(left.clone());
        let request = match left {
            LeftRequest::Readable(request) => request,
            LeftRequest::Malformed(_) => {
                tracing::warn!("passed over a request that can't be read");
                return Ok(Some(Event::Malformed));
            }
        };
        let is_current = request.is_current(&record.state);
        if !is_current {
            // It was about a step that is over.
            self.replace(record).await?;
            return Ok(None);
        }
        Ok(Some(match request {
            Request::Asked(asked) => self.event_of(asked),
            Request::Approved(approval) => Event::Approved(approval),
        }))
    }

    fn event_of(&self, asked: Asked) -> Event {
        let counts = self
            .requesters
            .as_ref()
            .is_none_or(|keys| asked.is_signed_by(keys));
        let Asked { verb, by, .. } = asked;
        if counts {
            Event::Asked { verb, by }
        } else {
            tracing::warn!(%verb, "refused a request that no requester has signed");
            Event::Unsigned(verb)
        }
    }
}

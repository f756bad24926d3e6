//! The time on a server's clock, as its responses state it (`Date`, RFC 9110, section 6.6.1).

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use jiff::{Timestamp, fmt::rfc2822};

/// The clock of one server. It goes on between responses.
#[derive(Debug, Default)]
pub(super) struct ServerClock(Mutex<Option<(Timestamp, Instant)>>);

impl ServerClock {
    /// Sets the clock to the `Date` of a response that has just arrived. Anything else than a date
    /// is ignored: a server need not have a clock.
    pub(super) fn set(&self, date: Option<&str>) {
        let Some(date) = date.and_then(|date| rfc2822::parse(date).ok()) else {
            return;
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((date.timestamp(), Instant::now()));
    }

    /// Returns the server's time, to the second; `None` until it stated one.
    pub(super) fn now(&self) -> Option<Timestamp> {
        let (date, received) = (*self.0.lock().unwrap_or_else(PoisonError::into_inner))?;
        date.checked_add(received.elapsed()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_date_counts_and_goes_on() {
        let clock = ServerClock::default();
        assert_eq!(clock.now(), None);
        clock.set(None);
        clock.set(Some("yesterday"));
        assert_eq!(clock.now(), None);
        clock.set(Some("Sun, 06 Nov 1994 08:49:37 GMT"));
        let stated = Timestamp::from_second(784_111_777).expect("in range");
        let first = clock.now().expect("stated");
        assert!(first >= stated);
        assert!(clock.now().expect("stated") >= first);
        clock.set(Some("Sun, 06 Nov 1994 08:49:07 GMT"));
        assert!(clock.now().expect("stated") < stated);
    }
}

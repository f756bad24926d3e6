use std::time::Duration;

use tokio::{sync::watch, time::sleep};

/// How a fake answers. A call that hangs continues as soon as the mode changes.
pub(super) struct Mode<F>(watch::Sender<State<F>>);

#[derive(Clone)]
enum State<F> {
    Work(Duration),
    Fail(F),
    Hang,
}

impl<F> Default for Mode<F> {
    fn default() -> Self {
        Self(watch::Sender::new(State::Work(Duration::ZERO)))
    }
}

impl<F: Clone> Mode<F> {
    pub(super) fn work(&self) {
        self.delay(Duration::ZERO);
    }

    pub(super) fn delay(&self, delay: Duration) {
        self.0.send_replace(State::Work(delay));
    }

    pub(super) fn fail(&self, fault: F) {
        self.0.send_replace(State::Fail(fault));
    }

    pub(super) fn hang(&self) {
        self.0.send_replace(State::Hang);
    }

    /// Waits as long as the test says.
    ///
    /// # Errors
    /// Returns the fault with which the fake currently fails.
    pub(super) async fn answer(&self) -> Result<(), F> {
        let mut states = self.0.subscribe();
        loop {
            let state = states.borrow_and_update().clone();
            match state {
                State::Work(delay) if delay.is_zero() => return Ok(()),
                State::Work(delay) => {
                    sleep(delay).await;
                    return Ok(());
                }
                State::Fail(fault) => return Err(fault),
                // The sender lives as long as `self`.
                State::Hang => states.changed().await.expect("the fake is alive"),
            }
        }
    }
}

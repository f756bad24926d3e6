//! Work that blocks, apart from the tasks.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Blocking work on one path or device, apart from the tasks and only so many jobs at a time: one that hangs holds these threads and
/// no more, however often it is asked.
#[derive(Debug, Clone)]
pub(super) struct Lane(Arc<Semaphore>);

/// How many jobs whose callers still wait run at once: few, so that a start with many keyrings makes no crowd.
static CROWD: Semaphore = Semaphore::const_new(4);

impl Lane {
    /// A lane for `width` jobs at a time.
    pub(super) fn new(width: usize) -> Self {
        Self(Arc::new(Semaphore::new(width)))
    }

    /// Waits for its turn and does `work`. Whoever stops waiting gives up his place in the crowd, not the lane.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (Ok(turn), Ok(_place)) = (
            Arc::clone(&self.0).acquire_owned().await,
            CROWD.acquire().await,
        ) else {
            unreachable!("nobody closes these semaphores")
        };
        let work = move || {
            let _turn = turn;
            work()
        };
        aside(work).await
    }
}

/// Does work that may take long apart from the tasks.
pub(crate) async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is shutting down and drops this future next.
            Err(_) => std::future::pending().await,
        },
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_path_that_hangs_holds_one_thread_and_stops_no_other_path() {
        let (release, hold) = mpsc::channel::<()>();
        let hung = Lane::new(1);
        let (begun, begins) = mpsc::channel();
        let stuck = {
            let hung = hung.clone();
            tokio::spawn(async move {
                hung.run(move || {
                    begun.send(()).expect("test");
                    hold.recv()
                })
                .await
            })
        };
        tokio::task::spawn_blocking(move || begins.recv())
            .await
            .expect("joined")
            .expect("it runs");
        for _ in 0..100 {
            // More often than there are threads or places in the crowd.
            timeout(Duration::from_millis(1), hung.run(|| ()))
                .await
                .expect_err("its lane is taken");
        }
        assert_eq!(Lane::new(1).run(|| 7).await, 7);
        release.send(()).expect("waits");
        stuck.await.expect("joined").expect("released");
        hung.run(|| ()).await;
    }
}

//! Blocking work, off the async tasks.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// Runs the blocking work on one path or device, a few jobs at a time. A path that hangs occupies
/// only these threads, no matter how many requests there are.
#[derive(Debug, Clone)]
pub(crate) struct BlockingPool(Arc<Semaphore>);

/// Concurrent jobs of all pools that a caller waits for. A start with many keyrings must not spawn
/// a thread for each of them.
const MAX_AWAITED_JOBS: usize = 4;

static AWAITED_JOBS: Semaphore = Semaphore::const_new(MAX_AWAITED_JOBS);

impl BlockingPool {
    pub(crate) fn new(max_jobs: usize) -> Self {
        Self(Arc::new(Semaphore::new(max_jobs)))
    }

    /// Runs `work` when its turn comes. A caller that stops waiting frees its share of
    /// `MAX_AWAITED_JOBS`, but the job counts against this pool until it has ended.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let (Ok(permit), Ok(_awaited)) = (
            Arc::clone(&self.0).acquire_owned().await,
            AWAITED_JOBS.acquire().await,
        ) else {
            unreachable!("these semaphores are never closed")
        };
        let work = move || {
            let _permit = permit;
            work()
        };
        run_blocking(work).await
    }
}

/// Runs blocking work on a thread of its own.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
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
    async fn a_path_that_hangs_occupies_one_thread_and_delays_no_other_path() {
        let (release, hold) = mpsc::channel::<()>();
        let hung = BlockingPool::new(1);
        let (started, starts) = mpsc::channel();
        let stuck = {
            let hung = hung.clone();
            tokio::spawn(async move {
                hung.run(move || {
                    started.send(()).expect("test");
                    hold.recv()
                })
                .await
            })
        };
        tokio::task::spawn_blocking(move || starts.recv())
            .await
            .expect("joined")
            .expect("started");
        // More often than there are threads or awaited jobs.
        for _ in 0..100 {
            timeout(Duration::from_millis(1), hung.run(|| ()))
                .await
                .expect_err("the pool is full");
        }
        assert_eq!(BlockingPool::new(1).run(|| 7).await, 7);
        release.send(()).expect("receiver");
        stuck.await.expect("joined").expect("released");
        hung.run(|| ()).await;
    }
}

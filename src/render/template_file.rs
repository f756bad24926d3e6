//! The file of a template, which is read again when it changes. One that can't be used changes
//! nothing: the last valid one stays in use.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until, timeout},
};

use super::RenderFailure;
use crate::{
    clock::{backoff, spread},
    config::{Content, load_template},
    files::{self, BlockingPool, ChangeCallback, WatchGuard},
    template::Template,
};

/// How long reading the file may take.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) struct TemplateFile {
    path: PathBuf,
    /// The last valid one.
    template: Arc<Template>,
    /// Why the file can't be used as it is now.
    failure: Option<RenderFailure>,
    pool: BlockingPool,
    /// None from a read that takes too long until the next one that doesn't.
    watch: Option<WatchGuard>,
    changed: Arc<Notify>,
    /// How often in a row reading has taken too long.
    time_outs: u32,
    max_backoff: Duration,
    /// When to read the file again because no change of it would be noticed.
    retry: Option<Instant>,
}

impl TemplateFile {
    /// The template's file, if the content comes from one.
    pub(super) fn of(content: &Content, max_backoff: Duration) -> Option<Self> {
        match content {
            Content::Template {
                template,
                file: Some(path),
            } => Some(Self {
                path: path.clone(),
                template: Arc::clone(template),
                failure: None,
                pool: BlockingPool::new(1),
                watch: None,
                changed: Arc::new(Notify::new()),
                time_outs: 0,
                max_backoff,
                retry: None,
            }),
            Content::Template { file: None, .. } | Content::Secret { .. } => None,
        }
    }

    pub(super) fn template(&self) -> &Arc<Template> {
        &self.template
    }

    pub(super) fn failure(&self) -> Option<&RenderFailure> {
        self.failure.as_ref()
    }

    /// Waits until the file may have changed since it was read.
    pub(super) async fn changed(&self) {
        let retry = async {
            match self.retry {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.changed.notified() => {}
            () = retry => {}
        }
    }

    /// Reads the file, and watches it from then on. `is_known` says which secrets there are.
    pub(super) async fn read(&mut self, is_known: impl Fn(&str) -> bool + Send + 'static) {
        let changed = Arc::clone(&self.changed);
        let on_change: ChangeCallback = Arc::new(move || changed.notify_one());
        let (path, former) = (self.path.clone(), self.watch.take());
        let read = self.pool.run(move || {
            // Before reading, so that no change in between is missed.
            let watch = files::watch(&path, former, &on_change);
            (watch, load_template(&path, is_known))
        });
        let failure = match timeout(READ_TIMEOUT, read).await {
            Ok((watch, loaded)) => {
                self.watch = Some(watch);
                (self.time_outs, self.retry) = (0, None);
                match loaded {
                    Ok(template) => {
                        self.template = Arc::new(template);
                        None
                    }
                    Err(faults) => {
                        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
                        Some(faults.join("; "))
                    }
                }
            }
            Err(_) => {
                self.time_outs = self.time_outs.saturating_add(1);
                let wait = backoff(READ_TIMEOUT, self.time_outs, self.max_backoff);
                self.retry = Some(Instant::now() + spread(wait));
                Some(format!(
                    "{}: can't be read within {READ_TIMEOUT:?}",
                    self.path.display()
                ))
            }
        };
        self.failure = failure.map(|message| RenderFailure {
            reason: "template",
            message: format!("{message}; the last valid template stays in use"),
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, sync::mpsc};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_file_that_could_not_be_read_in_time_is_read_and_watched_again() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("t.j2");
        fs::write(&path, "one").expect("write");
        let content = Content::Template {
            template: Arc::new(load_template(&path, |_| true).expect("valid")),
            file: Some(path.clone()),
        };
        let max_backoff = Duration::from_secs(60);
        let mut file = TemplateFile::of(&content, max_backoff).expect("a file");
        file.read(|_| true).await;
        assert!(file.failure().is_none());

        // The path hangs.
        let (release, hold) = mpsc::channel::<()>();
        let pool = file.pool.clone();
        let hung = tokio::spawn(async move { pool.run(move || hold.recv()).await });
        tokio::task::yield_now().await;
        for _ in 0..3 {
            // Time passes only by hand while a thread is busy.
            let mut read = Box::pin(file.read(|_| true));
            assert!(futures_util::poll!(&mut read).is_pending());
            tokio::time::advance(READ_TIMEOUT).await;
            read.await;
            assert!(file.failure().is_some());
        }
        fs::write(&path, "two").expect("write");
        release.send(()).expect("held");
        hung.await.expect("joined").expect("released");

        let retried = timeout(2 * max_backoff, file.changed()).await;
        retried.expect("it is read again");
        file.read(|_| true).await;
        assert!(file.failure().is_none());
        let watched = timeout(2 * max_backoff, file.changed()).await;
        watched.expect_err("no change, so no reason to read it");
        fs::write(&path, "three").expect("write");
        let noticed = timeout(2 * max_backoff, file.changed()).await;
        noticed.expect("it is watched");
    }
}

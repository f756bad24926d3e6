//! The file of a template, which is read again when it changes. One that can't be used changes
//! nothing: the last valid one stays in use.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::Notify, time::timeout};

use super::RenderFailure;
use crate::{
    config::{Content, load_template},
    files::{self, BlockingPool, ChangeCallback, WatchGuard},
    secrets::Secrets,
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
    watch: Option<WatchGuard>,
    changed: Arc<Notify>,
}

impl TemplateFile {
    /// The template's file, if the content comes from one.
    pub(super) fn of(content: &Content) -> Option<Self> {
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
        self.changed.notified().await;
    }

    /// Reads the file.
    pub(super) async fn read(&mut self, secrets: &Arc<Secrets>) {
        let changed = Arc::clone(&self.changed);
        let on_change: ChangeCallback = Arc::new(move || changed.notify_one());
        let (path, former, secrets) = (self.path.clone(), self.watch.take(), Arc::clone(secrets));
        let read = self.pool.run(move || {
            // Before reading, so that no change in between is missed.
            let watch = files::watch(&path, former, &on_change);
            (
                watch,
                load_template(&path, |name| secrets.is_configured(name)),
            )
        });
        let failure = match timeout(READ_TIMEOUT, read).await {
            Ok((watch, loaded)) => {
                self.watch = Some(watch);
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
            Err(_) => Some(format!(
                "{}: can't be read within {READ_TIMEOUT:?}",
                self.path.display()
            )),
        };
        self.failure = failure.map(|message| RenderFailure {
            reason: "template",
            message: format!("{message}; the last valid template stays in use"),
        });
    }
}

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::config;

/// The data plane's worker threads, which serve the applications.
///
/// Dropping this doesn't wait for them: it may happen on the control plane, where blocking is not
/// allowed.
pub(super) struct Workers {
    handle: Handle,
    /// `None` only while it is being dropped.
    runtime: Option<Runtime>,
}

impl Workers {
    pub(super) fn start(settings: &config::Runtime) -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        if let Some(count) = settings.workers {
            builder.worker_threads(count);
        }
        let runtime = builder.thread_name("sidekey-data").enable_all().build()?;
        Ok(Self {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

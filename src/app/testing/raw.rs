use std::{io, path::Path, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::time::Time;

/// One connection to a sidecar, for a test that writes its own bytes: slow, cut short or malformed.
pub(crate) struct RawConnection {
    stream: UnixStream,
    time: Arc<Time>,
}

impl RawConnection {
    pub(super) async fn open(socket: &Path, time: Arc<Time>) -> Self {
        let stream = UnixStream::connect(socket).await.expect("connected");
        Self { stream, time }
    }

    /// Sends bytes.
    pub(crate) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let written = self.try_write(bytes).await;
        written.expect("the connection is open");
    }

    /// Like [`RawConnection::write`], but the sidecar may close the connection meanwhile.
    pub(crate) async fn try_write(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.time
            .within(self.stream.write_all(bytes.as_ref()))
            .await
    }

    /// Sends no more bytes, but still receives.
    pub(crate) async fn shut_down(&mut self) {
        self.stream
            .shutdown()
            .await
            .expect("the connection is open");
    }

    /// Returns whether the sidecar has closed the connection without another byte.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.stream.try_read(&mut [0; 1]), Ok(0))
    }

    /// Returns what has come so far.
    pub(crate) fn received(&self) -> String {
        let mut bytes = vec![0; 64 << 10];
        let length = self.stream.try_read(&mut bytes).unwrap_or(0);
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    /// Returns all that comes until the sidecar closes the connection.
    pub(crate) async fn rest(mut self) -> String {
        let mut bytes = Vec::new();
        // A reset is an end, too.
        let _ = self.time.within(self.stream.read_to_end(&mut bytes)).await;
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

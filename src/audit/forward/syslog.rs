//! Syslog: RFC 5424 messages, counted as in RFC 6587 §3.4.1, over TCP or TLS (RFC 5425).
//!
//! Nothing confirms a message, so a connection that ends may have lost the last ones. They are sent
//! again on the next one: a collector may get some twice, which `seq` shows.

use std::{collections::VecDeque, future::pending, path::PathBuf, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    deliver::{Deliver, Undelivered},
    message::append_frame,
};
use crate::config::AuditForward;

/// The time limit for a connection and a batch.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long before the end of a connection a message may be lost with it.
const UNSURE: Duration = Duration::from_secs(30);
/// The most messages that are sent again.
const MAX_UNSURE: usize = 1024;

/// A collector that takes syslog.
pub(super) struct Syslog {
    host: String,
    port: u16,
    /// None for plain TCP.
    tls: Option<Trust>,
    open: Option<Open>,
    /// The lines that may be lost with the connection, and when they were written.
    unsure: VecDeque<(Instant, Bytes)>,
}

/// The files of a TLS client.
#[cfg_attr(
    not(feature = "tls"),
    expect(dead_code, reason = "builds without TLS read none")
)]
struct Trust {
    ca_file: Option<PathBuf>,
    certificate: Option<(PathBuf, PathBuf)>,
}

trait Transport: AsyncRead + AsyncWrite + Send + Sync + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Transport for T {}

struct Open {
    reader: ReadHalf<Box<dyn Transport>>,
    writer: WriteHalf<Box<dyn Transport>>,
}

impl Syslog {
    pub(super) fn new(host: &str, port: u16, settings: &AuditForward) -> Self {
        let trust = || Trust {
            ca_file: settings.ca_file.clone(),
            certificate: settings.certificate.clone(),
        };
        Self {
            host: host.to_owned(),
            port,
            tls: settings.to.is_tls().then(trust),
            open: None,
            unsure: VecDeque::new(),
        }
    }

    async fn send(&mut self, lines: &[Bytes]) -> Result<(), String> {
        let mut frames = Vec::new();
        if self.open.is_none() {
            let (reader, writer) = split(self.connect().await?);
            self.open = Some(Open { reader, writer });
            for (_, line) in &self.unsure {
                append_frame(&mut frames, line);
            }
        }
        for line in lines {
            append_frame(&mut frames, line);
        }
        match &mut self.open {
            Some(open) => open.write(&frames).await,
            None => unreachable!("it was opened above"),
        }
    }

    /// Remembers what was written.
    fn written(&mut self, lines: &[Bytes]) {
        let now = Instant::now();
        let lines = lines.iter().map(|line| (now, line.clone()));
        self.unsure.extend(lines);
        self.forget_old(now);
    }

    fn forget_old(&mut self, now: Instant) {
        let is_old = |(at, _): &(Instant, Bytes)| now.duration_since(*at) > UNSURE;
        while self.unsure.len() > MAX_UNSURE || self.unsure.front().is_some_and(is_old) {
            self.unsure.pop_front();
        }
    }

    async fn connect(&self) -> Result<Box<dyn Transport>, String> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        stream
            .set_nodelay(true)
            .map_err(|error| error.to_string())?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some(trust) => self.secure(stream, trust).await,
        }
    }

    #[cfg(feature = "tls")]
    async fn secure(&self, stream: TcpStream, trust: &Trust) -> Result<Box<dyn Transport>, String> {
        use std::sync::Arc;

        use rustls_pki_types::ServerName;
        use tokio_rustls::TlsConnector;

        use crate::{
            backend::{Identity, client_config},
            files::run_blocking,
        };

        let identity = Identity {
            ca_file: trust.ca_file.clone(),
            client: trust.certificate.clone(),
        };
        // For each connection, because the files may have changed.
        let config = run_blocking(move || client_config(&identity)).await?;
        let name = ServerName::try_from(self.host.clone())
            .map_err(|error| format!("{}: {error}", self.host))?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Box::new(stream))
    }

    #[cfg(not(feature = "tls"))]
    async fn secure(&self, _: TcpStream, _: &Trust) -> Result<Box<dyn Transport>, String> {
        Err("this build lacks TLS (feature `tls`)".into())
    }
}

impl Deliver for Syslog {
    async fn deliver(&mut self, lines: &[Bytes]) -> Result<(), Undelivered> {
        let sent = timeout(PATIENCE, self.send(lines)).await;
        let sent = sent.unwrap_or_else(|_| Err(format!("not sent within {PATIENCE:?}")));
        match sent {
            Ok(()) => {
                self.written(lines);
                Ok(())
            }
            Err(reason) => {
                // It may have ended within a frame.
                self.open = None;
                Err(Undelivered::Failed(reason))
            }
        }
    }

    async fn lost(&mut self) -> String {
        let Some(open) = &mut self.open else {
            if self.unsure.is_empty() {
                return pending().await;
            }
            return "the last connection may have lost records".into();
        };
        let reason = open.ended().await;
        self.open = None;
        // What was written long before has arrived.
        self.forget_old(Instant::now());
        if self.unsure.is_empty() {
            return pending().await;
        }
        reason
    }

    async fn close(&mut self) {
        let Some(mut open) = self.open.take() else {
            return;
        };
        // With TLS, this sends close_notify (RFC 5425 §4.4). The collector closes once it has read
        // everything; until then, an end of this process could still lose something.
        if open.writer.shutdown().await.is_ok() {
            open.ended().await;
        }
    }
}

impl Open {
    async fn write(&mut self, frames: &[u8]) -> Result<(), String> {
        let write = async {
            self.writer.write_all(frames).await?;
            self.writer.flush().await
        };
        // A connection that ended meanwhile would take the bytes and lose them, so its end is
        // looked for first.
        tokio::select! {
            biased;
            reason = ended(&mut self.reader) => Err(reason),
            written = write => written.map_err(|error| error.to_string()),
        }
    }

    /// Resolves at the end of the connection.
    async fn ended(&mut self) -> String {
        ended(&mut self.reader).await
    }
}

/// Reads to the end of a connection, and returns its reason. A collector has nothing to say.
async fn ended(reader: &mut (impl AsyncRead + Unpin)) -> String {
    let mut ignored = [0; 256];
    loop {
        match reader.read(&mut ignored).await {
            Ok(0) => return "the collector closed the connection".into(),
            Ok(_) => {}
            Err(error) => return error.to_string(),
        }
    }
}

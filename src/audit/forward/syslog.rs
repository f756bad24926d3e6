//! Syslog: RFC 5424 messages, counted as in RFC 6587 §3.4.1, over TCP or TLS (RFC 5425).
//!
//! Nothing confirms a message, so a connection that ends may have lost the last ones. They are sent
//! again on the next one: a collector may get some twice, which `seq` shows.

use std::{future::pending, io, path::PathBuf, time::Duration};

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split},
    net::TcpStream,
    time::{Instant, timeout},
};

use super::{
    deliver::{Deliver, Undelivered},
    message::append_frame,
    unsure::Unsure,
};
use crate::config::AuditForward;

/// The time limit for a connection, and for a piece.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most bytes of records that are written together, unless one record has more.
const PIECE: usize = 64 << 10;

/// A collector that takes syslog.
pub(super) struct Syslog {
    host: String,
    port: u16,
    /// None for plain TCP.
    tls: Option<Trust>,
    open: Option<Open>,
    unsure: Unsure,
    /// Why there is no connection any more.
    reason: String,
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
            unsure: Unsure::default(),
            reason: String::new(),
        }
    }

    /// Repeats what is due, then sends these lines.
    async fn send(&mut self, lines: &[Bytes]) -> Result<(), String> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => {
                let stream = in_time("not connected", self.connect()).await?;
                Open::over(stream)
            }
        };
        loop {
            let due: Vec<Bytes> = first_piece(self.unsure.due()).cloned().collect();
            if due.is_empty() {
                break;
            }
            open.write(&due).await?;
            self.unsure.repeated(due.len(), Instant::now());
        }
        let mut rest = lines;
        while !rest.is_empty() {
            let (piece, later) = rest.split_at(first_piece(rest).count());
            open.write(piece).await?;
            rest = later;
        }
        self.unsure.written(lines, Instant::now());
        self.open = Some(open);
        Ok(())
    }

    fn ended(&mut self, reason: &str) {
        self.open = None;
        self.unsure.ended(Instant::now());
        reason.clone_into(&mut self.reason);
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
        // After a failure the connection is gone: it may have ended within a frame.
        self.send(lines).await.map_err(|reason| {
            self.ended(&reason);
            Undelivered::Failed(reason)
        })
    }

    async fn lost(&mut self) -> String {
        if let Some(open) = &mut self.open {
            let reason = open.ended().await;
            self.ended(&reason);
        }
        if self.unsure.is_empty() {
            return pending().await;
        }
        self.reason.clone()
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
    fn over(stream: Box<dyn Transport>) -> Self {
        let (reader, writer) = split(stream);
        Self { reader, writer }
    }

    async fn write(&mut self, lines: &[Bytes]) -> Result<(), String> {
        let mut frames = Vec::new();
        for line in lines {
            append_frame(&mut frames, line);
        }
        let write = async {
            self.writer.write_all(&frames).await?;
            self.writer.flush().await
        };
        let write = async { write.await.map_err(|error: io::Error| error.to_string()) };
        // A connection that ended meanwhile would take the bytes and lose them, so its end is
        // looked for first.
        tokio::select! {
            biased;
            reason = ended(&mut self.reader) => Err(reason),
            written = in_time("not sent", write) => written,
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

async fn in_time<T>(
    failure: &str,
    attempt: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let attempt = timeout(PATIENCE, attempt).await;
    attempt.unwrap_or_else(|_| Err(format!("{failure} within {PATIENCE:?}")))
}

/// Returns the first lines that are written together: at least one if there is one.
fn first_piece<'a>(lines: impl IntoIterator<Item = &'a Bytes>) -> impl Iterator<Item = &'a Bytes> {
    let mut bytes = 0;
    lines.into_iter().take_while(move |line| {
        let is_first = bytes == 0;
        bytes += line.len();
        is_first || bytes <= PIECE
    })
}

#[cfg(test)]
mod tests {
    use tokio::{io::duplex, time::sleep};

    use super::*;
    use crate::audit::forward::unsure::MAX_BYTES;

    fn record(byte: u8) -> Bytes {
        Bytes::from(vec![byte; PIECE])
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_collector_gets_all_that_is_due_on_one_connection() {
        let settings = AuditForward {
            to: "syslog+tcp://slow:1".parse().expect("a collector"),
            ca_file: None,
            certificate: None,
            authorization_file: None,
        };
        let mut syslog = Syslog::new("slow", 1, &settings);
        let count = MAX_BYTES / PIECE;
        for _ in 0..count {
            syslog.unsure.written(&[record(b'o')], Instant::now());
        }
        syslog.ended("it was restarted");
        let (near, mut far) = duplex(1024);
        syslog.open = Some(Open::over(Box::new(near)));
        let collector = tokio::spawn(async move {
            let mut got = Vec::new();
            let mut part = vec![0; PIECE / 8];
            while let Ok(length @ 1..) = far.read(&mut part).await {
                got.extend_from_slice(&part[..length]);
                // 8 KiB a second.
                sleep(Duration::from_millis(length as u64 * 1000 / 8192)).await;
            }
            got
        });
        let began = Instant::now();
        assert_eq!(syslog.deliver(&[record(b'n'), record(b'n')]).await, Ok(()));
        assert!(began.elapsed() > 2 * PATIENCE);
        drop(syslog);
        let got = collector.await.expect("what it got");
        let of = |byte: u8| got.iter().filter(|got| **got == byte).count() / PIECE;
        assert_eq!((of(b'o'), of(b'n')), (count, 2));
    }
}
